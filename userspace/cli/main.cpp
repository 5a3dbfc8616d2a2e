// holdfast: the command line. The only file that knows CLI11: it turns words into the options of
// commands.hpp, calls one command, and ends with its exit code.
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "userspace/cli/commands.hpp"

namespace {

using namespace holdfast;
using namespace holdfast::cli;

// What was asked for, filled by the parser.
struct Words {
  SessionOptions session;
  DoctorWords doctor;
  ListWords list;
  GrantWords grant;
  RenewWords renew;
  EndWords end;
  PreemptWords preempt;
  CheckpointWords checkpoint;
  PacketWords packet;
  TokenIssueWords issue;
  TokenAdmitWords admit;
  TokenCheckWords check;
  TrustWords trust;
  RotateWords rotate;
  WatchWords watch;
  BundleSignWords sign;
  OperatorGrantWords operator_grant;
  BearerWords bearer;
  ReportWords report;
  std::string name;
  EnrollBeginWords enroll;
  std::string id;
  std::string tenant;
  std::string file;
  bool dry_run = false;
  bool follow = false;
  bool yes = false;
  bool now = false;
};

using Run = std::function<Outcome(Session&)>;

constexpr const char* exit_codes =
    "Exit codes: 0 done, 1 refused or failed, 2 wrong command line, 3 this machine cannot enforce "
    "it,\n"
    "4 needs a fresh authentication. See holdfast(1).";

constexpr const char* holder_key_help =
    "The holder's own Ed25519 key, in PEM or a pkcs11: URI: it is proved to the node first";

void examples(CLI::App* app, const char* text) {
  app->footer(std::string("Examples:\n") + text);
}

// A noun needs a verb; without one its help says which there are.
CLI::App* noun(CLI::App& app, const char* name, const char* what) {
  CLI::App* made = app.add_subcommand(name, what);
  made->require_subcommand(1);
  return made;
}

void add_preempt(CLI::App& lease, Words& words, Run& run) {
  CLI::App* preempt = lease.add_subcommand("preempt",
                                           "End a lease by a scheduler's signature, which the "
                                           "journal keeps; whoever has it may bring it");
  PreemptWords& p = words.preempt;
  preempt->add_option("ID", p.id, "The lease");
  preempt->add_option("--reason", p.reason, "Why; at most 256 bytes")->type_name("TEXT");
  preempt
      ->add_option(
          "--grace", p.grace,
          "How long its holder has to save what is to be saved; default: as the lease says")
      ->type_name("DURATION");
  preempt
      ->add_option(
          "--key", p.key,
          "The scheduler's Ed25519 key, in PEM, of OpenSSH's, or a pkcs11: URI; its anchor\n"
          "has the use schedule")
      ->type_name("KEY");
  preempt
      ->add_option("--generation", p.generation,
                   "The lease's, now: no other one ends; default: asked of the node")
      ->type_name("NUMBER");
  preempt->add_option("--node", p.node, "The node's name; default: the one that runs here")
      ->type_name("NAME");
  preempt->add_option("--life", p.life, "How long it may be brought, 300s at most; default: 5m")
      ->type_name("DURATION");
  preempt->add_option("--out", p.out, "Only write what was signed; - is standard output")
      ->type_name("FILE");
  preempt->add_option("--file", p.file, "Bring what --out wrote; - is standard input")
      ->type_name("FILE");
  preempt->callback([&] { run = [&](Session& s) { return run_lease_preempt(s, words.preempt); }; });
  examples(
      preempt,
      "  holdfast lease preempt 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de --reason 'job 17 comes first' \\\n"
      "      --grace 10s --key scheduler.pem\n"
      "  holdfast lease preempt 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de --reason maintenance \\\n"
      "      --generation 3 --node 'ni:///sha-256;...' --key scheduler.pem --out job17.preempt\n"
      "  holdfast lease preempt --file job17.preempt");
}

void add_lease(CLI::App& app, Words& words, Run& run) {
  CLI::App* lease = noun(app, "lease", "What may be used, by whom and until when");

  CLI::App* ls =
      lease->add_subcommand("ls", "All leases, with tenant, what they open, holder and time left");
  ls->add_option("--tenant", words.list.tenant, "Only this tenant's")->type_name("TENANT");
  ls->add_option("--limit", words.list.limit, "At most so many")->type_name("NUMBER");
  ls->callback([&] { run = [&](Session& s) { return run_lease_ls(s, words.list); }; });
  examples(ls, "  holdfast lease ls\n  holdfast lease ls --tenant acme/shop/prod --json");

  CLI::App* show = lease->add_subcommand("show", "One lease");
  show->add_option("ID", words.id, "The lease")->required();
  show->callback([&] { run = [&](Session& s) { return run_lease_show(s, words.id); }; });
  examples(show, "  holdfast lease show 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de");

  CLI::App* grant = lease->add_subcommand(
      "grant",
      "Grant a lease, or many from a file: all or none. It is answered when every layer\n"
      "enforces it and was read back");
  GrantWords& g = words.grant;
  grant->add_option("TENANT", g.tenant, "Whose it is: org/app/env");
  grant
      ->add_option("--endpoint", g.endpoints,
                   "An endpoint of the policy, or one address or port of it (repeatable)")
      ->type_name("NAME[@ADDRESS[:PORT]]")
      ->allow_extra_args(false);
  grant->add_option("--egress", g.egress, "Let the tenant begin flows from this port (repeatable)")
      ->type_name("PORT")
      ->allow_extra_args(false);
  grant->add_flag("--each", g.each,
                  "One lease for every member of the endpoints, instead of one for all");
  grant->add_option("--peer", g.peer, "Only for traffic with addresses in this prefix")
      ->type_name("PREFIX");
  grant
      ->add_option("--holder", g.holder,
                   "Who holds it: uid:N, cgroup:PATH or key:THUMBPRINT; default: whoever asks")
      ->type_name("HOLDER");
  grant->add_option("--ttl", g.ttl, "Its term, at most 300s; default 60s")->type_name("DURATION");
  grant
      ->add_option("--grace", g.grace,
                   "How long connections may finish once it is revoked; default: cut at once")
      ->type_name("DURATION");
  grant
      ->add_option(
          "--from", g.from,
          "Leases from a file (- is standard input): a JSON object a line, or one array of\n"
          "objects, with keys tenant, endpoints, egress, peer, holder, ttl, grace, each.\n"
          "--ttl, --grace and --holder are for those that do not say")
      ->type_name("FILE");
  grant->add_option("--token", g.token, "What a grant token says; a file, or - for stdin")
      ->type_name("FILE");
  grant
      ->add_option("--admission", g.admission,
                   "A scheduler's admission of the token, where the policy requires one")
      ->type_name("FILE");
  grant->add_option("--holder-key", g.holder_key, holder_key_help)->type_name("KEY");
  grant->callback([&] { run = [&](Session& s) { return run_lease_grant(s, words.grant); }; });
  examples(
      grant,
      "  holdfast lease grant acme/shop/prod --endpoint web --ttl 2m\n"
      "  holdfast lease grant acme/shop/prod --endpoint 'web@[fd00:1::2]:443' --peer 10.0.0.0/8\n"
      "  holdfast lease grant acme/shop/prod --egress web0 --grace 5s --holder uid:1000\n"
      "  echo '{\"tenant\": \"acme/shop/prod\", \"endpoints\": [\"web\"], \"ttl\": \"90s\"}' |\n"
      "    holdfast lease grant --from -");

  CLI::App* renew =
      lease->add_subcommand("renew", "Move a lease's deadline forward; nothing else changes");
  renew->add_option("ID", words.renew.id, "The lease");
  renew->add_option("--token", words.renew.token, "What a renew token says; a file, or - for stdin")
      ->type_name("FILE");
  renew->add_option("--holder-key", words.renew.holder_key, holder_key_help)->type_name("KEY");
  renew->add_option("--ttl", words.renew.ttl, "From now on, at most 300s; default 60s")
      ->type_name("DURATION");
  renew
      ->add_option("--generation", words.renew.generation,
                   "Only if nobody changed it since it had this generation")
      ->type_name("NUMBER");
  renew->callback([&] { run = [&](Session& s) { return run_lease_renew(s, words.renew); }; });
  examples(renew, "  holdfast lease renew 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de --ttl 5m");

  CLI::App* revoke = lease->add_subcommand("revoke", "End leases: the next packet is denied");
  revoke->add_option("ID", words.end.ids, "The leases")->required();
  revoke->add_option("--grace", words.end.grace, "Let connections finish for so long")
      ->type_name("DURATION");
  revoke->callback([&] { run = [&](Session& s) { return run_lease_revoke(s, words.end); }; });
  examples(revoke,
           "  holdfast lease revoke 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de\n"
           "  holdfast lease revoke 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de --grace 5s");

  CLI::App* release = lease->add_subcommand("release", "Give one's own leases back");
  release->add_option("ID", words.end.ids, "The leases")->required();
  release->add_option("--holder-key", words.end.holder_key, holder_key_help)->type_name("KEY");
  release->callback([&] { run = [&](Session& s) { return run_lease_release(s, words.end); }; });
  examples(release, "  holdfast lease release 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de");

  CheckpointWords& c = words.checkpoint;
  CLI::App* checkpoint = lease->add_subcommand(
      "checkpoint",
      "In the grace of one's own lease: all is saved, and the rest of the grace is not needed");
  checkpoint->add_option("ID", c.id, "The lease")->required();
  checkpoint
      ->add_option(
          "--note", c.note,
          "Kept with it in the journal, and told to who watches: where it was saved, or a\n"
          "digest of it; at most 256 bytes")
      ->type_name("TEXT");
  checkpoint->add_flag("--keep-grace", c.keep_grace, "The lease goes on until its grace ends");
  checkpoint->add_option("--holder-key", c.holder_key, holder_key_help)->type_name("KEY");
  checkpoint->callback(
      [&] { run = [&](Session& s) { return run_lease_checkpoint(s, words.checkpoint); }; });
  examples(checkpoint,
           "  holdfast lease checkpoint 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de --note snapshot-17\n"
           "  holdfast lease checkpoint 5f0c1e6bb2f64d6c8f8d2f7a40a1c3de --keep-grace");

  add_preempt(*lease, words, run);
}

void add_policy(CLI::App& app, Words& words, Run& run) {
  CLI::App* route = noun(app, "route", "What is published");
  CLI::App* route_ls = route->add_subcommand(
      "ls",
      "Every address, port and protocol that is published, its owner, and how much is leased");
  route_ls->callback([&] { run = [](Session& s) { return run_route_ls(s); }; });
  examples(route_ls, "  holdfast route ls");

  CLI::App* tenant = noun(app, "tenant", "Who there is");
  CLI::App* tenant_ls = tenant->add_subcommand("ls", "Tenants, their ports, leases and traffic");
  tenant_ls->callback([&] { run = [](Session& s) { return run_tenant_ls(s); }; });
  examples(tenant_ls, "  holdfast tenant ls");
  CLI::App* disable = tenant->add_subcommand(
      "disable", "Close everything of one tenant with one store; no lease of before revives");
  disable->add_option("TENANT", words.tenant, "org/app/env")->required();
  disable->callback([&] { run = [&](Session& s) { return run_tenant_disable(s, words.tenant); }; });
  examples(disable, "  holdfast tenant disable acme/shop/prod");
  CLI::App* enable = tenant->add_subcommand("enable", "Let it be granted leases again");
  enable->add_option("TENANT", words.tenant, "org/app/env")->required();
  enable->callback([&] { run = [&](Session& s) { return run_tenant_enable(s, words.tenant); }; });
  examples(enable, "  holdfast tenant enable acme/shop/prod");

  CLI::App* bundle = noun(app, "bundle", "The policy");
  CLI::App* check = bundle->add_subcommand(
      "check", "Whether a policy file is good; needs no daemon and changes nothing");
  check
      ->add_option("FILE", words.file,
                   "YAML or JSON, or what bundle sign made; - is standard input")
      ->required();
  check->callback([&] { run = [&](Session& s) { return run_bundle_check(s, words.file); }; });
  examples(check, "  holdfast bundle check /etc/holdfast/policy.yaml");
  CLI::App* push = bundle->add_subcommand("push", "Put a policy in force, whole or not at all");
  push->add_option("FILE", words.file,
                   "YAML or JSON, or what bundle sign made; - is standard input")
      ->required();
  push->add_flag("--dry-run", words.dry_run, "Only say what would change");
  push->callback(
      [&] { run = [&](Session& s) { return run_bundle_push(s, words.file, words.dry_run); }; });
  examples(push, "  holdfast bundle push /etc/holdfast/policy.yaml");
  CLI::App* diff = bundle->add_subcommand("diff", "What pushing a file would change");
  diff->add_option("FILE", words.file,
                   "YAML or JSON, or what bundle sign made; - is standard input")
      ->required();
  diff->callback([&] { run = [&](Session& s) { return run_bundle_push(s, words.file, true); }; });
  examples(diff, "  holdfast bundle diff /etc/holdfast/policy.yaml");
  CLI::App* show =
      bundle->add_subcommand("show", "The policy in force, as JSON that can be pushed again");
  show->callback([&] { run = [](Session& s) { return run_bundle_show(s); }; });
  examples(show, "  holdfast bundle show > policy.json");
  CLI::App* sign = bundle->add_subcommand(
      "sign", "Make a signed bundle of a policy, for one node; whoever has it may push it there");
  BundleSignWords& s = words.sign;
  sign->add_option("FILE", s.file, "The policy, YAML or JSON; - is standard input")->required();
  sign->add_option("--key", s.key,
                   "The Ed25519 key that signs, in PEM, of OpenSSH's, or a pkcs11: URI")
      ->required()
      ->type_name("KEY");
  sign->add_option("--node", s.node, "The node's name; default: the one that runs here")
      ->type_name("NAME");
  sign->add_option("--anchors", s.anchors,
                   "Anchors that come with it, none wider than the key's own; without them those\n"
                   "of the bundle before go")
      ->type_name("FILE");
  sign->add_option("--enroll", s.enroll,
                   "The answer to this request of `enroll begin`, for `enroll finish` there; the\n"
                   "node is the one that asks")
      ->type_name("REQUEST");
  sign->add_option("--life", s.life, "How long it may be put in force; default 24h, at most 720h")
      ->type_name("DURATION");
  sign->callback([&] { run = [&](Session& each) { return run_bundle_sign(each, words.sign); }; });
  examples(sign,
           "  holdfast bundle sign policy.yaml --key root.pem > node1.bundle\n"
           "  holdfast bundle push node1.bundle");
}

void add_enroll(CLI::App& app, Words& words, Run& run) {
  CLI::App* enroll = noun(app, "enroll", "Whose node this is: who signs its policy");
  EnrollBeginWords& b = words.enroll;
  CLI::App* begin = enroll->add_subcommand(
      "begin",
      "Ask to come under a root; prints the request. Until it is answered nothing is leased, and\n"
      "no other policy is taken");
  begin
      ->add_option("--anchor", b.anchor,
                   "The fingerprint of the only key whose answer is taken, as fingerprint tells it")
      ->required()
      ->type_name("FINGERPRINT");
  begin->add_option("--ttl", b.ttl, "How long it may be answered; default 1h, at most 24h")
      ->type_name("DURATION");
  begin
      ->add_option("--tenant", b.tenants,
                   "Take the policy of this tenant (repeatable); default: of all that it names")
      ->allow_extra_args(false)
      ->type_name("TENANT");
  begin->callback([&] { run = [&](Session& s) { return run_enroll_begin(s, words.enroll); }; });
  examples(
      begin,
      "  holdfast enroll begin --anchor $(cat root.fingerprint) > node1.request\n"
      "  holdfast bundle sign policy.yaml --key root.pem --enroll node1.request > node1.bundle\n"
      "  holdfast enroll finish node1.bundle");
  CLI::App* finish = enroll->add_subcommand(
      "finish", "Take the answer: its root, its policy and its keys, whole or not at all, once");
  finish->add_option("BUNDLE", words.file, "What bundle sign --enroll made; - is standard input")
      ->required();
  finish->callback([&] { run = [&](Session& s) { return run_enroll_finish(s, words.file); }; });
  examples(finish, "  holdfast enroll finish node1.bundle");
  CLI::App* end = enroll->add_subcommand(
      "end",
      "Leave the root: nothing that it or its keys sign counts any more, and leases end at their\n"
      "term; or give up a request");
  end->add_flag("--now", words.now, "End the leases at once");
  end->callback([&] { run = [&](Session& s) { return run_enroll_end(s, words.now); }; });
  examples(end, "  holdfast enroll end\n  holdfast enroll end --now");
  CLI::App* show = enroll->add_subcommand("show", "Whether it is enrolled, under whom, since when");
  show->callback([&] { run = [](Session& s) { return run_enroll_show(s); }; });
  examples(show, "  holdfast enroll show\n  holdfast enroll show --json");
  CLI::App* fingerprint = enroll->add_subcommand(
      "fingerprint", "What --anchor takes, of a public key; needs no daemon");
  fingerprint->add_option("FILE", words.file, "A .pub file of OpenSSH's, or PEM")->required();
  fingerprint->callback(
      [&] { run = [&](Session& s) { return run_enroll_fingerprint(s, words.file); }; });
  examples(
      fingerprint,
      "  openssl pkey -in root.pem -pubout | holdfast enroll fingerprint - > root.fingerprint");
}

void add_operator(CLI::App& app, Words& words, Run& run) {
  CLI::App* person = noun(app, "operator", "Persons who may ask for something, each in their name");
  CLI::App* grant = person->add_subcommand(
      "grant",
      "Let a person's key ask for some verbs about some tenants, for at most 24 hours; they show\n"
      "it with --grant and sign with --sign-key");
  OperatorGrantWords& g = words.operator_grant;
  grant->add_option("NAME", g.name, "Who it is, as logs say it")->required();
  grant->add_option("--public-key", g.public_key, "Theirs: a .pub file of OpenSSH's, or PEM")
      ->required()
      ->type_name("FILE");
  grant->add_option("--verb", g.verbs, "What it may ask for; * is all (repeatable)")
      ->required()
      ->allow_extra_args(false)
      ->type_name("VERB");
  grant->add_option("--tenant", g.tenants, "About whom; * is all (repeatable)")
      ->required()
      ->allow_extra_args(false)
      ->type_name("TENANT");
  grant->add_option("--life", g.life, "Until it expires, at most 24h; default 8h")
      ->type_name("DURATION");
  grant->add_option("--key", g.key, "The key that signs; its anchor has the use operator")
      ->required()
      ->type_name("KEY");
  grant->add_option("--node", g.node, "The node's name; default: the one that runs here")
      ->type_name("NAME");
  grant->callback([&] { run = [&](Session& s) { return run_operator_grant(s, g); }; });
  examples(
      grant,
      "  holdfast operator grant ann --public-key ann.pub --verb lease.grant --tenant '*' \\\n"
      "      --key root.pem > ann.grant\n"
      "  holdfast tenant enable acme/shop/prod --sign-key ~/.ssh/id_ed25519 --grant ann.grant");
}

void add_why(CLI::App& app, Words& words, Run& run) {
  CLI::App* drops = app.add_subcommand("drops", "What was denied and why, counted by reason");
  drops->add_flag("--follow", words.follow, "A sample of the denied packets as they come");
  drops->callback([&] { run = [&](Session& s) { return run_drops(s, words.follow); }; });
  examples(drops, "  holdfast drops\n  holdfast drops --follow --json");

  CLI::App* flows = app.add_subcommand("flows", "Flows that tenants began");
  flows->add_option("--tenant", words.list.tenant, "Only this tenant's")->type_name("TENANT");
  flows->add_option("--limit", words.list.limit, "At most so many")->type_name("NUMBER");
  flows->callback([&] { run = [&](Session& s) { return run_flows(s, words.list); }; });
  examples(flows, "  holdfast flows --tenant acme/shop/prod");

  CLI::App* explain = app.add_subcommand(
      "explain",
      "What would happen to a packet: runs it through the loaded programs on the live tables,\n"
      "says what decided, and leaves no trace. Exits with 0 whether it passes or not");
  PacketWords& p = words.packet;
  explain->add_option("PROTOCOL", p.protocol, "tcp, udp or icmp_echo")->required();
  explain->add_option("SOURCE", p.source, "ADDRESS:PORT, [V6]:PORT; without a port for icmp_echo")
      ->required();
  explain->add_option("DESTINATION", p.destination, "Likewise")->required();
  explain
      ->add_option("--from", p.from,
                   "Where it enters: uplink, or the interface of a tenant port;\n"
                   "default: uplink")
      ->type_name("INTERFACE");
  explain->add_flag("--syn", p.syn, "It opens a connection (the default for tcp)");
  explain->add_flag("--ack", p.ack,
                    "It belongs to an established connection; for icmp_echo, the reply");
  explain->add_option("--source-mac", p.source_mac, "From a tenant port; default: the port's own")
      ->type_name("MAC");
  explain->callback([&] { run = [&](Session& s) { return run_explain(s, words.packet); }; });
  examples(explain,
           "  holdfast explain tcp 198.51.100.7:40000 10.1.0.2:443\n"
           "  holdfast explain tcp 10.1.0.2:40000 192.0.2.1:443 --from veth-web\n"
           "  holdfast explain udp '[2001:db8::7]:5353' '[fd00:1::2]:53'\n"
           "  holdfast explain icmp_echo 198.51.100.7 10.1.0.2");
}

void add_token(CLI::App& app, Words& words, Run& run) {
  CLI::App* token = noun(app, "token", "Signed capabilities, made and read without the daemon");

  CLI::App* issue = token->add_subcommand(
      "issue", "Sign one token, or many from a file under one signature; prints one a line");
  TokenIssueWords& i = words.issue;
  issue->add_option("TENANT", i.tenant, "Whose lease it is for: org/app/env");
  issue->add_option("--key", i.key, "The issuer's Ed25519 key, in PEM or a pkcs11: URI")
      ->required()
      ->type_name("KEY");
  issue->add_option("--issuer", i.issuer, "The issuer's name, as the node's anchors have it")
      ->required()
      ->type_name("NAME");
  issue
      ->add_option("--node", i.node,
                   "The node's name: ni:///sha-256;...; default: asked of the node that runs here")
      ->type_name("NAME");
  issue->add_option("--epoch", i.epoch, "The node's epoch; default: likewise")->type_name("NUMBER");
  issue->add_option("--kind", i.kind, "grant, renew or use; default: grant")->type_name("KIND");
  issue->add_option("--life", i.life, "How long the token is good, 300s at most; default: 60s")
      ->type_name("DURATION");
  issue->add_option("--ttl", i.ttl, "The lease's term; default: 60s")->type_name("DURATION");
  issue->add_option("--endpoint", i.endpoints, "What may be used (repeatable)")
      ->type_name("ENDPOINT");
  issue->add_option("--egress", i.egress, "A port that may send (repeatable)")->type_name("PORT");
  issue->add_option("--operation", i.operations, "What may be done (repeatable)")
      ->type_name("NAME");
  issue->add_option("--peer", i.peer, "Only for this prefix")->type_name("PREFIX");
  issue->add_option("--holder", i.holder, "Only for uid:N or cgroup:PATH")->type_name("HOLDER");
  issue->add_option("--holder-key", i.holder_key, "Only for who proves this public key, in PEM")
      ->type_name("FILE");
  issue->add_option("--lease", i.lease, "Of a renew or use token")->type_name("ID");
  issue->add_option("--generation", i.generation, "The lease's, now")->type_name("NUMBER");
  issue->add_option("--from", i.from, "A list of tokens in YAML or JSON, - is standard input")
      ->type_name("FILE");
  issue->callback([&] { run = [&](Session& s) { return run_token_issue(s, words.issue); }; });
  examples(
      issue,
      "  openssl genpkey -algorithm ed25519 -out cp.pem && chmod 0400 cp.pem\n"
      "  holdfast token issue acme/shop/prod --endpoint web --key cp.pem --issuer cp.example \\\n"
      "      --node 'ni:///sha-256;...' --epoch 1\n"
      "  holdfast token issue --from tokens.yaml --key cp.pem --issuer cp.example \\\n"
      "      --node 'ni:///sha-256;...' --epoch 1 --life 5m");

  TokenAdmitWords& a = words.admit;
  CLI::App* admit = token->add_subcommand(
      "admit", "Sign that a grant token may be used, as a scheduler; the journal keeps it");
  admit->add_option("FILE", a.file, "The token, - is standard input")->required();
  admit->add_option("--reason", a.reason, "Why; at most 256 bytes")->required()->type_name("TEXT");
  admit
      ->add_option(
          "--key", a.key,
          "The scheduler's Ed25519 key, in PEM, of OpenSSH's, or a pkcs11: URI; its anchor\n"
          "has the use schedule")
      ->required()
      ->type_name("KEY");
  admit->add_option("--life", a.life, "How long it may be brought, 300s at most; default: 5m")
      ->type_name("DURATION");
  admit->callback([&] { run = [&](Session& s) { return run_token_admit(s, words.admit); }; });
  examples(admit,
           "  holdfast token admit token --reason 'job 17' --key scheduler.pem > admission\n"
           "  holdfast lease grant --token token --admission admission");

  TokenCheckWords& c = words.check;
  CLI::App* inspect =
      token->add_subcommand("inspect", "Everything that is in a token, believed or not");
  inspect->add_option("FILE", c.file, "A token a line, - is standard input")->required();
  inspect->add_option("--anchors", c.anchors, "Check the signature by the keys of this file")
      ->type_name("FILE");
  inspect->callback([&] { run = [&](Session& s) { return run_token_inspect(s, words.check); }; });
  examples(inspect, "  holdfast token inspect - < token\n  holdfast token inspect token --json");

  CLI::App* verify = token->add_subcommand(
      "verify",
      "Whether tokens hold, and if not, why: asks the node whether they allow a use now, or\n"
      "judges by the keys of a file, without the node");
  verify->add_option("FILE", c.file, "A token a line, - is standard input")->required();
  verify->add_option("--anchors", c.anchors, "The keys and what they may sign")->type_name("FILE");
  verify
      ->add_option("--identity", c.identity,
                   "The node's own key, for use tokens that it made: from node identity --out")
      ->type_name("FILE");
  verify->add_option("--node", c.node, "The node's name: ni:///sha-256;...")->type_name("NAME");
  verify->add_option("--epoch", c.epoch, "The node's epoch")->type_name("NUMBER");
  verify->add_option("--operation", c.operation, "Asking the node: what is to be done")
      ->type_name("NAME");
  verify->add_option("--resource", c.resource, "Asking the node: on what, as lease ls names it")
      ->type_name("NAME");
  verify
      ->add_option("--holder", c.presenter,
                   "Asking the node: who shows the token: uid:N, cgroup:PATH or key:THUMBPRINT;\n"
                   "default: whoever asks")
      ->type_name("HOLDER");
  verify->add_option("--holder-key", c.holder_key, holder_key_help)->type_name("KEY");
  verify->add_option("--at", c.at, "At this time in UTC instead of now")->type_name("TIME");
  verify->callback([&] { run = [&](Session& s) { return run_token_verify(s, words.check); }; });
  examples(
      verify,
      "  holdfast token verify token --operation connect --resource web@10.1.0.2:443\n"
      "  holdfast token verify token --anchors anchors.yaml --node 'ni:///sha-256;...' --epoch 1\n"
      "  holdfast token verify token --identity node.id --node 'ni:///sha-256;...' --epoch 1");
}

void add_rotate(CLI::App* trust, RotateWords& words, Run& run) {
  CLI::App* rotate =
      trust->add_subcommand("rotate", "Let a key retire, since another has taken its place");
  rotate->add_option("OLD", words.old_key, "Its thumbprint, as trust show has it")->required();
  rotate->add_option("NEW", words.new_key, "That of a current key which may sign all that OLD may")
      ->required();
  rotate
      ->add_option("--after", words.after,
                   "How long OLD is still believed; default and longest: 330s,\n"
                   "after which nothing that it signed before is good")
      ->type_name("DURATION");
  rotate->add_flag("--dry-run", words.dry_run, "Only whether it may, and until when it would");
  rotate->callback([&] { run = [&](Session& s) { return run_trust_rotate(s, words); }; });
  examples(rotate,
           "  holdfast trust rotate OLD NEW --dry-run\n"
           "  holdfast trust rotate OLD NEW --after 2m");
}

void add_trust(CLI::App& app, Words& words, Run& run) {
  CLI::App* trust = noun(app, "trust", "Whose signatures this node believes");
  CLI::App* show = trust->add_subcommand("show", "The keys that may sign, and what is revoked");
  show->callback([&] { run = [](Session& s) { return run_trust_show(s); }; });
  examples(show, "  holdfast trust show\n  holdfast trust show --json");

  TrustWords& t = words.trust;
  const auto add = [&](const char* name, const char* what) {
    CLI::App* made = trust->add_subcommand(name, what);
    made->add_option("WHAT", t.what,
                     "key:THUMBPRINT, head:DIGEST or token:DIGEST, as token inspect shows them;\n"
                     "holder:uid:N, holder:cgroup:ID or holder:key:THUMBPRINT; issuer:NAME")
        ->required();
    made->add_option("--tenant", t.tenant, "Of an issuer: only this tenant's tokens")
        ->type_name("TENANT");
    return made;
  };
  CLI::App* revoke = add("revoke", "Believe it no more, and end the leases that stand on it");
  revoke
      ->add_option("--issued-before", t.issued_before,
                   "Of an issuer: what it issued before this time in UTC; default: now")
      ->type_name("TIME");
  revoke->callback([&] { run = [&](Session& s) { return run_trust_revoke(s, words.trust); }; });
  examples(revoke,
           "  holdfast trust revoke holder:uid:1000\n"
           "  holdfast trust revoke issuer:cp.example --tenant acme/shop/prod");
  CLI::App* restore = add("restore", "Take a revocation back; leases that it ended stay ended");
  restore->callback([&] { run = [&](Session& s) { return run_trust_restore(s, words.trust); }; });
  examples(restore, "  holdfast trust restore holder:uid:1000");
  add_rotate(trust, words.rotate, run);
}

void add_peer(CLI::App& app, Words& words, Run& run) {
  CLI::App* peer = noun(app, "peer", "Who is served on the control socket");
  CLI::App* ls = peer->add_subcommand(
      "ls", "Users that are connected, have been refused something, or are suspended");
  ls->callback([&] { run = [](Session& s) { return run_peer_ls(s); }; });
  examples(ls, "  holdfast peer ls\n  holdfast peer ls --json");
  CLI::App* suspend =
      peer->add_subcommand("suspend", "Close a user's connections, and serve it no more");
  suspend->add_option("UID", words.id, "Its number")->required();
  suspend->callback([&] { run = [&](Session& s) { return run_peer_suspend(s, words.id); }; });
  examples(suspend, "  holdfast peer suspend 1000");
  CLI::App* resume = peer->add_subcommand("resume", "Serve a user again that is suspended");
  resume->add_option("UID", words.id, "Its number, or all")->required();
  resume->callback([&] { run = [&](Session& s) { return run_peer_resume(s, words.id); }; });
  examples(resume, "  holdfast peer resume 1000\n  holdfast peer resume all");
}

void add_bearer(CLI::App& app, Words& words, Run& run) {
  CLI::App* bearer = noun(app, "bearer", "Tokens of this node for reading, for who is in no group");
  CLI::App* create = bearer->add_subcommand(
      "create", "Make one, and print it: the only time that it is shown. See --bearer-file");
  BearerWords& b = words.bearer;
  create->add_option("--name", b.name, "How it is called: letters, digits, '.', '_' and '-'")
      ->required()
      ->type_name("NAME");
  create
      ->add_option("--env", b.environment, "The environment, which the token begins with: hf_ENV_")
      ->required()
      ->type_name("ENV");
  create->add_option("--scope", b.scope, "What it may ask for: reading verbs, separated by commas")
      ->required()
      ->type_name("VERB")
      ->delimiter(',')
      ->allow_extra_args(false);
  create->add_option("--tenant", b.tenants, "Only about this tenant (repeatable); default: all")
      ->type_name("TENANT")
      ->allow_extra_args(false);
  create->add_option("--ttl", b.ttl, "Until it expires, at most 90d; default 24h")
      ->type_name("DURATION");
  create->callback([&] { run = [&](Session& s) { return run_bearer_create(s, words.bearer); }; });
  examples(create,
           "  holdfast bearer create --name grafana --env prod --scope status,lease.list > token\n"
           "  holdfast --bearer-file token lease ls");
  CLI::App* ls = bearer->add_subcommand("ls", "Those there are: name, scope, tenants, expiry");
  ls->callback([&] { run = [](Session& s) { return run_bearer_ls(s); }; });
  examples(ls, "  holdfast bearer ls");
  CLI::App* revoke = bearer->add_subcommand(
      "revoke", "Believe one no more, and close the connections that have shown it");
  revoke->add_option("NAME", words.name, "How it is called")->required();
  revoke->callback([&] { run = [&](Session& s) { return run_bearer_revoke(s, words.name); }; });
  examples(revoke, "  holdfast bearer revoke grafana");
}

void add_watch(CLI::App& app, Words& words, Run& run) {
  CLI::App* watch = app.add_subcommand(
      "watch", "What there is on this node, then what happens on it, as it happens");
  WatchWords& w = words.watch;
  watch->add_option("--tenant", w.tenants, "Only of this tenant, and of all (repeatable)")
      ->type_name("TENANT")
      ->allow_extra_args(false);
  watch
      ->add_option("--kinds", w.kinds,
                   "Only these: lease, policy, tenant, node, interface, trust, peer, bearer, "
                   "enroll, or one\n"
                   "of their events, such as lease.grant; separated by commas")
      ->type_name("KIND")
      ->delimiter(',')
      ->allow_extra_args(false);
  watch
      ->add_option("--from", w.from,
                   "Go on behind this cursor, without a snapshot if the daemon still knows what\n"
                   "came after it")
      ->type_name("INSTANCE:SEQ");
  watch->add_flag("--reconnect", w.reconnect,
                  "When the daemon goes, wait for it and go on; without, that ends it with 1");
  watch
      ->add_option("--node", w.node,
                   "Have each frame signed by this node, and take no other: a name\n"
                   "(ni:///sha-256;...), the thumbprint of the node's key, or a file with its "
                   "public key")
      ->type_name("NODE");
  watch
      ->add_option("--for", w.audience,
                   "With --node: whom it signs for, default: the user who asks; with --verify:\n"
                   "whom it has to be for")
      ->type_name("NAME");
  watch
      ->add_option("--epoch", w.epoch,
                   "With --node: the node's epoch; what signed in an earlier one may have become\n"
                   "known")
      ->type_name("NUMBER");
  watch
      ->add_option("--keep", w.keep,
                   "With --node: append what it signed to this file, as evidence for others")
      ->type_name("FILE");
  watch
      ->add_option("--verify", w.verify,
                   "What was kept in this file: whether it is that node's, in each stream with\n"
                   "none missing before its last, and what it says; needs no daemon; - is\n"
                   "standard input")
      ->type_name("FILE");
  watch->callback([&] { run = [&](Session& s) { return run_watch(s, words.watch); }; });
  examples(watch,
           "  holdfast watch\n"
           "  holdfast watch --tenant acme/shop/prod --kinds lease.grant,lease.expired\n"
           "  holdfast watch --json --reconnect\n"
           "  holdfast watch --node 'ni:///sha-256;...' --kinds lease --keep leases.notices\n"
           "  holdfast watch --verify leases.notices --node 'ni:///sha-256;...'");
}

void add_node_identity(CLI::App& node, Words& words, Run& run) {
  CLI::App* identity = node.add_subcommand(
      "identity", "Who this node is, and with what it signs use tokens, reports and notices");
  identity
      ->add_option("--out", words.file,
                   "Keep what the node's own key says of that in this file: token verify "
                   "--identity takes it")
      ->type_name("FILE");
  identity->callback([&] { run = [&](Session& s) { return run_node_identity(s, words.file); }; });
  examples(identity, "  holdfast node identity\n  holdfast node identity --out node.id");
}

void add_node_report(CLI::App& node, Words& words, Run& run) {
  ReportWords& r = words.report;
  CLI::App* report = node.add_subcommand(
      "report",
      "What this node has and is, signed by it over a challenge; and, without a daemon,\n"
      "whether a report is a node's, and what it says");
  report->add_flag("--sign", r.sign, "Ask the node for one; it goes to --out, or is printed");
  report->add_option("--out", r.out, "Keep it in this file")->type_name("FILE");
  report->add_option("--verify", r.verify, "Check this one, - is standard input")
      ->type_name("FILE");
  report
      ->add_option(
          "--node", r.node,
          "Of --verify: whose it has to be: a name (ni:///sha-256;...), the thumbprint of\n"
          "the node's key, or a file with its public key")
      ->type_name("NODE");
  report
      ->add_option("--challenge", r.challenge,
                   "64 hexadecimal digits, of whoever is to be shown that it is fresh: to be\n"
                   "signed, default: drawn anew; or, of --verify, what has to have been signed")
      ->type_name("HEX");
  report
      ->add_option("--for", r.audience,
                   "Whom it is for, default: the user who asks; of --verify: whom it has to be for")
      ->type_name("NAME");
  report
      ->add_option("--epoch", r.epoch,
                   "Of --verify: the node's epoch; what signed in an earlier one may have become\n"
                   "known since")
      ->type_name("NUMBER");
  report->callback([&] { run = [&](Session& s) { return run_node_report(s, words.report); }; });
  examples(
      report,
      "  holdfast node report --sign --challenge $(openssl rand -hex 32) --for cp.example \\\n"
      "      --out node.report\n"
      "  holdfast node report --verify node.report --node 'ni:///sha-256;...' --challenge 5f0c...");
}

void add_node_states(CLI::App& node, Run& run) {
  const auto add = [&](const char* verb, const char* what) {
    CLI::App* made = node.add_subcommand(verb, what);
    made->callback([&run, verb] { run = [verb](Session& s) { return run_node_state(s, verb); }; });
    made->footer(fmt::format("Examples:\n  holdfast node {}", verb));
  };
  add("drain", "Take no new leases; running ones go on and may be renewed");
  add("disable", "End all leases, and take no new ones");
  add("quarantine",
      "End all leases, and let nothing be opened until it is released: no lease, no policy");
  add("resume", "Take leases again, after drain or disable");
  add("release", "Lift a quarantine; tokens of before are refused from then on");
}

void add_all(CLI::App& app, Words& words, Run& run) {
  app.fallthrough();  // --json and --socket may stand behind the command as well
  app.require_subcommand(1);
  app.set_help_flag("-h,--help", "Print what a command takes, and exit");
  app.set_version_flag("--version", std::string("holdfast " HOLDFAST_VERSION),
                       "Print the version, and exit");
  app.add_option("--socket", words.session.socket,
                 fmt::format("The daemon's control socket; default: {}", default_socket))
      ->type_name("PATH");
  app.add_option(
         "--sign-key", words.session.sign_key,
         "Sign what is asked for with this Ed25519 key, in PEM, of OpenSSH's (in a file, in\n"
         "ssh-agent or in a security key), or on a PKCS#11 token (a pkcs11: URI): the node\n"
         "believes the key, and not who runs this")
      ->type_name("KEY");
  app.add_option("--grant", words.session.grant,
                 "Show this operator grant first: it says what --sign-key may ask for")
      ->type_name("FILE");
  app.add_option(
         "--bearer-file", words.session.bearer,
         "Show the bearer token in this file first, and ask for what that is for; default:\n"
         "$HOLDFAST_BEARER_FILE")
      ->envname("HOLDFAST_BEARER_FILE")
      ->type_name("FILE");
  app.add_flag("--json", words.session.json,
               "Print JSON: one object, or one a line from what follows");
  app.footer(exit_codes);

  CLI::App* status = app.add_subcommand("status", "What is in force, and what needs attention");
  status->callback([&] { run = [&](Session& s) { return run_status(s, words.session.socket); }; });
  examples(status, "  holdfast status\n  holdfast status --json");
  CLI::App* doctor = app.add_subcommand(
      "doctor",
      "What this kernel can enforce, from probes that really try. Needs no daemon, and root\n"
      "for most probes. Exits with 3 if something essential cannot be enforced here");
  doctor
      ->add_option("--pin-dir", words.doctor.pin_dir,
                   "Where holdfastd pins; default: /sys/fs/bpf/holdfast")
      ->type_name("DIRECTORY");
  doctor->callback([&] { run = [&](Session& s) { return run_doctor(s, words.doctor); }; });
  examples(doctor, "  holdfast doctor\n  holdfast doctor --json");

  add_lease(app, words, run);
  add_policy(app, words, run);
  add_token(app, words, run);
  add_trust(app, words, run);
  add_enroll(app, words, run);
  add_operator(app, words, run);
  add_peer(app, words, run);
  add_bearer(app, words, run);
  add_why(app, words, run);

  add_watch(app, words, run);
  CLI::App* node = noun(app, "node", "The node as a whole");
  add_node_identity(*node, words, run);
  add_node_report(*node, words, run);
  add_node_states(*node, run);
  CLI::App* detach = node->add_subcommand(
      "detach", "Remove all enforcement: programs, tables, pins. The only command that opens");
  detach->add_flag("--yes", words.yes, "Do not ask");
  detach->callback([&] { run = [&](Session& s) { return run_node_detach(s, words.yes); }; });
  examples(detach, "  holdfast node detach");
}

// "holdfast lease": the innermost command that was named.
std::string help_name(const CLI::App& app) {
  std::string name = "holdfast";
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    name += " " + at->get_name();
  }
  return name;
}

// What is wrong, in words that fit us better than the library's.
std::string describe(const CLI::ParseError& wrong, const CLI::App& app) {
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  std::string verbs;
  for (const CLI::App* verb : at->get_subcommands([](const CLI::App*) { return true; }))
    verbs += (verbs.empty() ? "" : ", ") + verb->get_name();
  const std::vector<std::string> rest = app.remaining(true);
  if (!verbs.empty() && wrong.get_name() == "RequiredError") {
    if (rest.empty()) return fmt::format("{} what? There is {}", help_name(app), verbs);
    return fmt::format("{} has no \"{}\"; there is {}", help_name(app), rest.front(), verbs);
  }
  std::string message = wrong.what();
  while (!message.empty() && (message.back() == '\n' || message.back() == '.')) message.pop_back();
  return message;
}

ExitCode run_command(int count, char** values) {
  CLI::App app("See and change who may use what on this node.", "holdfast");
  Words words;
  Run run;
  add_all(app, words, run);
  // A quoted "->" between two addresses reads well and means nothing.
  std::vector<std::string> arguments(values + 1, values + count);
  std::erase(arguments, "->");
  const bool json = std::ranges::find(arguments, "--json") != arguments.end();
  std::ranges::reverse(arguments);  // as CLI11 wants them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::Success& wanted) {  // --help, --version
    app.exit(wanted);
    return ExitCode::done;
  } catch (const CLI::ParseError& wrong) {
    words.session.json = json;
    const Error error =
        usage(describe(wrong, app), fmt::format("see {} --help", help_name(app))).error();
    return Session(words.session).report(error);
  }
  Session session(words.session);
  Outcome outcome = run(session);
  if (!outcome) return session.report(outcome.error());
  if (Status written = session.flush(); !written) return session.report(written.error());
  return *outcome;
}

}  // namespace

int main(int count, char** values) {
  try {
    return static_cast<int>(run_command(count, values));
  } catch (const std::exception& unexpected) {  // of libraries: out of memory
    fmt::print(stderr, "holdfast: {}\n", unexpected.what());
    return static_cast<int>(ExitCode::failed);
  }
}
