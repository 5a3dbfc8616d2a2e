# bash completion for holdfast(1). Lease ids and tenant names come from the daemon, silently none if it
# is down or may not be asked.

# _holdfast_ask COLUMN COMMAND...: a column of the table that a command prints, without its title. What is
# said instead of an empty table is one line, and so is not taken for a row.
_holdfast_ask() {
  local column=$1
  shift
  timeout 2 "${_holdfast_program[@]}" "$@" 2>/dev/null </dev/null |
    awk -v column="$column" 'NR > 1 { print $column }'
}

_holdfast() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
  local -a words=() _holdfast_program=("${COMP_WORDS[0]}")
  local word i
  # The command so far, without options and their values; which socket to ask.
  for ((i = 1; i < COMP_CWORD; ++i)); do
    word=${COMP_WORDS[i]}
    case "$word" in
      --socket)
        _holdfast_program+=(--socket "${COMP_WORDS[i + 1]}")
        ((++i))
        ;;
      --endpoint | --egress | --peer | --holder | --ttl | --grace | --generation | --from | --token | --tenant | --limit | \
        --source-mac | --pin-dir | --key | --issuer | --node | --epoch | --kind | --life | --operation | \
        --holder-key | --lease | --anchors | --at | --resource | --issued-before | --kinds | --bearer-file | --name | --env | \
        --scope | --sign-key | --grant | --public-key | --verb | --anchor | --enroll | --identity | --out | --verify | --challenge | \
        --for | --reason | --note | --file | --admission | --keep) ((++i)) ;;
      -*) ;;
      *) words+=("$word") ;;
    esac
  done

  local candidates="" files=0
  case "$prev" in
    --socket | --pin-dir | --key | --holder-key | --sign-key | --grant | --public-key | --anchors | --token | --bearer-file | --enroll | --identity | \
      --out | --verify | --file | --admission | --keep) files=1 ;;
    --from)
      files=1
      [[ ${words[0]-} != explain ]] || candidates="uplink" files=0
      [[ ${words[0]-} != watch ]] || files=0
      ;;
    --endpoint) candidates=$(_holdfast_ask 2 route ls) ;;
    --tenant) candidates=$(_holdfast_ask 1 tenant ls) ;;
    --verb) candidates="lease.grant lease.renew lease.revoke tenant.enable tenant.disable bundle.push trust.revoke trust.restore trust.rotate" ;;
    --ttl | --life) candidates="30s 60s 2m 5m" ;;
    --kinds) candidates="lease policy tenant node interface trust peer bearer enroll" ;;
    --scope) candidates="status lease.list lease.show route.list tenant.list bundle.show drops.read drops.follow flows.list explain trust.show watch peer.list bearer.list enroll.show node.identity node.report" ;;
    --kind) candidates="grant renew use" ;;
    --grace) candidates="0s 5s 10s 30s" ;;
    --holder) candidates="uid: cgroup: key:" ;;
    --egress | --peer | --generation | --limit | --source-mac | --issuer | --node | --epoch | --operation | --resource | --lease | --at | \
      --issued-before | --after | --name | --env | --anchor | --challenge | --for | --reason | --note)
      return
      ;;
    *)
      local flags="--json --socket --sign-key --grant --bearer-file --help"
      case "${words[*]}" in
        "") candidates="status doctor lease route tenant bundle token trust enroll operator peer bearer watch drops flows explain node" flags+=" --version" ;;
        lease) candidates="ls show grant renew revoke preempt checkpoint release" ;;
        route) candidates="ls" ;;
        tenant) candidates="ls disable enable" ;;
        bundle) candidates="check push show diff sign" ;;
        token) candidates="issue admit inspect verify" ;;
        trust) candidates="show revoke restore rotate" ;;
        "trust revoke") candidates="key: head: token: holder: issuer:" flags+=" --tenant --issued-before" ;;
        "trust restore") candidates="key: head: token: holder: issuer: retire:" flags+=" --tenant" ;;
        "trust rotate"*) flags+=" --after --dry-run" ;;
        enroll) candidates="begin finish end show fingerprint" ;;
        "enroll begin") flags+=" --anchor --ttl --tenant" ;;
        "enroll finish" | "enroll fingerprint") files=1 ;;
        "enroll end") flags+=" --now" ;;
        node) candidates="identity report drain disable quarantine resume release detach" ;;
        "lease grant")
          candidates=$(_holdfast_ask 1 tenant ls)
          flags+=" --from --token --admission --holder-key --holder --ttl --grace"
          ;;
        "lease grant "*) flags+=" --endpoint --egress --each --peer --holder --ttl --grace" ;;
        "tenant disable" | "tenant enable") candidates=$(_holdfast_ask 1 tenant ls) ;;
        "lease ls" | flows) flags+=" --tenant --limit" ;;
        doctor) flags+=" --pin-dir" ;;
        explain) candidates="tcp udp icmp_echo" flags+=" --from --syn --ack --source-mac" ;;
        "explain "*) flags+=" --from --syn --ack --source-mac" ;;
        "node identity") flags+=" --out" ;;
        "node report") flags+=" --sign --out --verify --node --challenge --for --epoch" ;;
        "node detach") flags+=" --yes" ;;
        "lease show") candidates=$(_holdfast_ask 1 lease ls --limit 200) ;;
        "lease release"*)
          candidates=$(_holdfast_ask 1 lease ls --limit 200)
          flags+=" --holder-key"
          ;;
        "lease renew")
          candidates=$(_holdfast_ask 1 lease ls --limit 200)
          flags+=" --ttl --generation --token --holder-key"
          ;;
        "lease renew "*) flags+=" --ttl --generation" ;;
        "lease revoke"*)
          candidates=$(_holdfast_ask 1 lease ls --limit 200)
          flags+=" --grace"
          ;;
        "lease preempt"*)
          candidates=$(_holdfast_ask 1 lease ls --limit 200)
          flags+=" --reason --grace --key --generation --node --life --out --file"
          ;;
        "lease checkpoint"*)
          candidates=$(_holdfast_ask 1 lease ls --limit 200)
          flags+=" --note --keep-grace --holder-key"
          ;;
        "bundle push") files=1 flags+=" --dry-run" ;;
        "bundle check" | "bundle diff") files=1 ;;
        "bundle sign"*) files=1 flags+=" --key --node --anchors --enroll --life" ;;
        operator) candidates="grant" ;;
        "operator grant"*) flags+=" --public-key --verb --tenant --life --key --node" ;;
        peer) candidates="ls suspend resume" ;;
        "peer suspend") candidates=$(_holdfast_ask 1 peer ls) ;;
        "peer resume") candidates="all $(_holdfast_ask 1 peer ls)" ;;
        bearer) candidates="create ls revoke" ;;
        "bearer create"*) flags+=" --name --env --scope --tenant --ttl" ;;
        "bearer revoke") candidates=$(_holdfast_ask 1 bearer ls) ;;
        "token issue"*)
          flags+=" --key --issuer --node --epoch --kind --life --ttl --endpoint --egress --operation --peer --holder"
          flags+=" --holder-key --lease --generation --from"
          ;;
        "token admit"*) files=1 flags+=" --reason --key --life" ;;
        "token inspect") files=1 flags+=" --anchors" ;;
        "token verify") files=1 flags+=" --operation --resource --holder --holder-key --anchors --identity --node --epoch --at" ;;
        drops) flags+=" --follow" ;;
        watch) flags+=" --tenant --kinds --from --reconnect --node --for --epoch --keep --verify" ;;
      esac
      [[ $cur != -* ]] || candidates=$flags files=0
      ;;
  esac

  if ((files)); then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
  else
    mapfile -t COMPREPLY < <(compgen -W "$candidates" -- "$cur")
    # A colon ends a word for bash, which would put the prefix in twice.
    [[ ${COMPREPLY[*]-} != *: ]] || compopt -o nospace 2>/dev/null
  fi
}

complete -F _holdfast holdfast
