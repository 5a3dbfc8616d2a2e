# bash completion for holdfast(1). Lease ids and tenant names come from the daemon, silently none if it
# is down or may not be asked.

# _holdfast_ask KEY COMMAND...: the values of a key in what the daemon answers as JSON.
_holdfast_ask() {
  local key=$1
  shift
  timeout 2 "${_holdfast_program[@]}" "$@" --json 2>/dev/null </dev/null |
    grep -oE "\"$key\" ?: ?(\"[^\"]*\"|[0-9]+)" | sed -E 's/^"[^"]*" ?: ?//; s/"//g'
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
      --endpoint | --egress | --peer | --holder | --ttl | --grace | --generation | --from) ((++i)) ;;
      -*) ;;
      *) words+=("$word") ;;
    esac
  done

  local candidates="" files=0
  case "$prev" in
    --socket | --from) files=1 ;;
    --ttl) candidates="30s 60s 2m 5m" ;;
    --grace) candidates="0s 5s 10s 30s" ;;
    --holder) candidates="uid: cgroup:" ;;
    --endpoint | --egress | --peer | --generation) return ;;
    *)
      local flags="--json --socket --help"
      case "${words[*]}" in
        "") candidates="status doctor lease route tenant bundle drops flows explain node" flags+=" --version" ;;
        lease) candidates="ls show grant renew revoke release" ;;
        route) candidates="ls" ;;
        tenant) candidates="ls disable enable" ;;
        bundle) candidates="check push show diff" ;;
        node) candidates="detach" ;;
        "lease grant")
          candidates=$(_holdfast_ask name tenant ls)
          flags+=" --from"
          ;;
        "lease grant "*) flags+=" --endpoint --egress --peer --holder --ttl --grace" ;;
        "tenant disable" | "tenant enable") candidates=$(_holdfast_ask name tenant ls) ;;
        "lease show" | "lease release") candidates=$(_holdfast_ask id lease ls) ;;
        "lease renew")
          candidates=$(_holdfast_ask id lease ls)
          flags+=" --ttl --generation"
          ;;
        "lease renew "*) flags+=" --ttl --generation" ;;
        "lease revoke"*)
          candidates=$(_holdfast_ask id lease ls)
          flags+=" --grace"
          ;;
        "bundle check" | "bundle push" | "bundle diff") files=1 ;;
        drops) flags+=" --follow" ;;
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
