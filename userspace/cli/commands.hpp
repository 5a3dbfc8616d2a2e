// The commands, one function each: asks the daemon (or not, where it says so) and prints. What goes
// wrong is answered, not printed: main reports it once. Options hold what the command line said;
// words that mean something are parsed here, so that errors name them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "policy/limits.hpp"
#include "userspace/cli/packet.hpp"
#include "userspace/cli/session.hpp"
#include "userspace/token/ssh_key.hpp"

namespace holdfast::cli {

using Outcome = Result<ExitCode>;

// A policy and anchors, not packed, with a signature around them.
constexpr size_t bundle_bytes_max = policy_bytes_max + (size_t{2} << 20);

// What became of a lease that was to end, as the daemon answers it.
void print_ending(Session& session, const cbor::Value& reply);
// What --grace says, if it was given.
Result<std::optional<uint64_t>> grace_option(const std::string& text);

// The one token that a file holds.
Result<std::vector<uint8_t>> read_token(const std::string& path);

// A .pub file of OpenSSH's, or PEM.
Result<token::SignerKey> read_signer_key(const std::string& path);

Outcome run_status(Session& session, const std::string& socket);

struct DoctorWords {
  std::string pin_dir = "/sys/fs/bpf/holdfast";
};
Outcome run_doctor(Session& session, const DoctorWords& words);  // needs no daemon

struct ListWords {
  std::string tenant;
  uint64_t limit = 0;  // 0: all there are
};
Outcome run_lease_ls(Session& session, const ListWords& words);
Outcome run_lease_show(Session& session, const std::string& id);

struct GrantWords {
  std::string tenant;
  std::vector<std::string> endpoints;
  std::vector<std::string> egress;
  std::string peer;
  std::string holder;
  std::string ttl = "60s";
  std::string grace;
  bool each = false;
  std::string from;        // a file, or "-"; then none of the others but holder, ttl and grace
  std::string token;       // a file, or "-"; then none of the others but holder_key and admission
  std::string admission;   // a file; comes with the token
  std::string holder_key;  // a file; proved first
};
Outcome run_lease_grant(Session& session, const GrantWords& words);

struct RenewWords {
  std::string id;
  std::string ttl = "60s";
  std::optional<uint64_t> generation;
  std::string token;       // a file, or "-"; then none of the others but holder_key
  std::string holder_key;  // a file; proved first
};
Outcome run_lease_renew(Session& session, const RenewWords& words);

struct EndWords {
  std::vector<std::string> ids;
  std::string grace;
  std::string holder_key;  // a file; proved first
};
Outcome run_lease_revoke(Session& session, const EndWords& words);
Outcome run_lease_release(Session& session, const EndWords& words);

struct PreemptWords {
  std::string id, reason, grace, key, node, out, life = "5m";
  std::optional<uint64_t> generation;
  std::string file;  // or "-"; then none of the others
};
Outcome run_lease_preempt(Session& session, const PreemptWords& words);

struct CheckpointWords {
  std::string id, note;
  std::string holder_key;  // a file; proved first
  bool keep_grace = false;
};
Outcome run_lease_checkpoint(Session& session, const CheckpointWords& words);

Outcome run_route_ls(Session& session);
Outcome run_tenant_ls(Session& session);
Outcome run_tenant_disable(Session& session, const std::string& name);
Outcome run_tenant_enable(Session& session, const std::string& name);

Outcome run_bundle_check(Session& session, const std::string& file);  // needs no daemon
Outcome run_bundle_push(Session& session, const std::string& file, bool dry_run);
Outcome run_bundle_show(Session& session);
struct OperatorGrantWords {
  std::string name, public_key, key, node, life = "8h";
  std::vector<std::string> verbs, tenants;
};
Outcome run_operator_grant(Session& session, const OperatorGrantWords& words);
struct BundleSignWords {
  std::string file, key, node, anchors, enroll, life = "24h";
};
Outcome run_bundle_sign(Session& session, const BundleSignWords& words);

struct EnrollBeginWords {
  std::string anchor, ttl = "1h";
  std::vector<std::string> tenants;
};
Outcome run_enroll_begin(Session& session, const EnrollBeginWords& words);
Outcome run_enroll_finish(Session& session, const std::string& file);
Outcome run_enroll_end(Session& session, bool now);
Outcome run_enroll_show(Session& session);
Outcome run_enroll_fingerprint(Session& session, const std::string& file);  // needs no daemon

Outcome run_drops(Session& session, bool follow);
Outcome run_flows(Session& session, const ListWords& words);
Outcome run_explain(Session& session, const PacketWords& words);

// These need no daemon.
struct TokenIssueWords {
  std::string key;  // a file
  std::string issuer;
  std::string node;
  uint64_t epoch = 0;
  std::string kind = "grant";
  std::string life = "60s";
  std::string ttl = "60s";
  std::string tenant;
  std::vector<std::string> endpoints;
  std::vector<std::string> egress;
  std::vector<std::string> operations;
  std::string peer;
  std::string holder;
  std::string holder_key;  // a file
  std::string lease;
  std::string generation;
  std::string from;  // a file, or "-"; then none of tenant to holder, lease and generation
};
Outcome run_token_issue(Session& session, const TokenIssueWords& words);

struct TokenCheckWords {
  std::string file;      // or "-"; a token a line
  std::string anchors;   // a file
  std::string identity;  // a file: with what the node itself signs
  std::string node;
  uint64_t epoch = 0;
  std::string at;  // RFC 3339; empty: now
  // Without anchors the node is asked, about this use.
  std::string operation;
  std::string resource;
  std::string presenter;   // empty: whoever asks
  std::string holder_key;  // a file; proved first
};
struct TokenAdmitWords {
  std::string file;  // or "-"; one grant token
  std::string key, reason, life = "5m";
};
Outcome run_token_admit(Session& session, const TokenAdmitWords& words);
Outcome run_token_inspect(Session& session, const TokenCheckWords& words);
Outcome run_token_verify(Session& session, const TokenCheckWords& words);

Outcome run_trust_show(Session& session);
struct TrustWords {
  std::string what;
  std::string tenant;
  std::string issued_before;  // RFC 3339; empty: now
};
Outcome run_trust_revoke(Session& session, const TrustWords& words);
Outcome run_trust_restore(Session& session, const TrustWords& words);
struct RotateWords {
  std::string old_key;
  std::string new_key;
  std::string after = "330s";
  bool dry_run = false;
};
Outcome run_trust_rotate(Session& session, const RotateWords& words);

Outcome run_peer_ls(Session& session);
Outcome run_peer_suspend(Session& session, const std::string& uid);
Outcome run_peer_resume(Session& session, const std::string& uid);  // or "all"

struct BearerWords {
  std::string name;
  std::string environment;
  std::vector<std::string> scope;
  std::vector<std::string> tenants;  // none: all
  std::string ttl = "24h";
};
Outcome run_bearer_create(Session& session, const BearerWords& words);
Outcome run_bearer_ls(Session& session);
Outcome run_bearer_revoke(Session& session, const std::string& name);

struct WatchWords {
  std::vector<std::string> tenants;
  std::vector<std::string> kinds;
  std::string from;  // INSTANCE:SEQ; empty: a snapshot first
  bool reconnect = false;
  std::string node;      // who has to sign each frame: its name, its key's thumbprint, or a file
  std::string audience;  // whom it signs for
  uint64_t epoch = 0;    // in which it has to sign; any, if it is 0
  std::string keep;      // a file that what is signed is appended to
  std::string verify;    // a file of that kind, and no daemon is asked
};
Outcome run_watch(Session& session, const WatchWords& words);

// `out`: a file for the certificate, or empty.
Outcome run_node_identity(Session& session, const std::string& out);
struct ReportWords {
  bool sign = false;      // asks the node for one, to `out` or the standard output
  std::string out;        // a file
  std::string verify;     // a file, and no daemon is asked
  std::string node;       // its name, its key's thumbprint, or a file with its public key
  std::string challenge;  // 64 hexadecimal digits
  std::string audience;   // whom it is for
  uint64_t epoch = 0;     // of --verify; any, if it is 0
};
Outcome run_node_report(Session& session, const ReportWords& words);
// `verb`: drain, disable, quarantine, resume or release.
Outcome run_node_state(Session& session, const std::string& verb);
Outcome run_node_detach(Session& session, bool yes);

}  // namespace holdfast::cli
