#include "userspace/daemon/verbs.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/check.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/authority.hpp"
#include "userspace/daemon/inventory.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t trust_per_page = 500;  // each may have names of 256 bytes
// Bearer tokens that expire while nobody asks, and keys that retire: how long one may be outlived.
constexpr uint64_t trust_period_ns = ns_per_s;

// A teardown takes a grace period and two netlink round trips; after two seconds it is not that.
constexpr uint64_t drain_attempt_period_ns = 20 * ns_per_ms;
constexpr uint32_t drain_attempts_max = 100;
// A larger request is told to come again, instead of being kept.
constexpr size_t waiting_body_bytes_max = size_t{1} << 20;

}  // namespace

Verbs::Verbs(wire::EventLoop& loop, Node& node, Tokens& tokens, Bundles& bundles, Bearers& bearers,
             Peers& peers, Enrollment& enrollment,
             std::function<Result<std::vector<std::string>>()> detach)
    : loop_(loop),
      node_(node),
      tokens_(tokens),
      bundles_(bundles),
      bearers_(bearers),
      peers_(peers),
      enrollment_(enrollment),
      signed_requests_(tokens),
      detach_(std::move(detach)),
      counters_(node.plane().object),
      watch_(
          loop,
          [this](const WatchFilter& filter) {
            return new_inventory(node_, tokens_, enrollment_, filter);
          },
          [this](const token::StatementFor& target, std::span<const uint8_t> frame) {
            return tokens_.sign_statement(token::Purpose::notice, target, frame);
          }),
      started_boot_ns_(boot_now_ns()),
      started_wall_ns_(wall_now_ns()) {
  node_.journal().listen([this](JournalAction action, std::span<const log::Field> fields) {
    watch_.tell(action, fields);
  });
  trust_timer_ = loop_.every(trust_period_ns, [this] {
    end_bearers();
    end_retired();
  });
}

void Verbs::set_server(wire::ControlServer* server) {
  server_ = server;
  peers_.on_suspended([this](std::function<bool(const wire::Peer&)> whom, const Error& why) {
    server_->end_peers(std::move(whom), why);
  });
}

Value Verbs::hello(const wire::Peer& peer) const {
  return Value::map({{"version", HOLDFAST_VERSION},
                     {"abi", static_cast<uint64_t>(abi::HF_ABI_VERSION)},
                     {"generation", node_.policy().generation},
                     {"node", tokens_.node()},
                     {"epoch", tokens_.epoch()},
                     {"role", wire::name_of(peer.role)},
                     {"challenge", Value::Bytes(peer.challenge.begin(), peer.challenge.end())},
                     {"boot_ns", boot_now_ns()},
                     {"wall_time", rfc3339_utc(wall_now_ns())}});
}

Value Verbs::verify_hello(const wire::Peer& peer) const {
  Value reasons = Value::array({"good"});
  for (size_t i = 0; i < token::refusals; ++i)
    reasons.push(token::name_of(static_cast<token::Refusal>(i)));
  Value hello = this->hello(peer);
  hello.set("reasons", std::move(reasons));
  hello.set("frame_bytes_max", wire::check_frame_bytes_max);
  hello.set("checks_max", wire::checks_max);
  return hello;
}

void Verbs::handle(wire::Peer& peer, wire::Request request, wire::Responder responder) {
  const Reach reach = reach_of(request.verb);
  Status may = may_ask(peer, request, reach, tokens_.signatures_needed());
  const bool by_bearer = peer.bearer != nullptr && request.signer == nullptr;
  if (may && by_bearer && reach == Reach::reading) {
    may = bearer_holds(peer.bearer->key);
    request.signer = peer.bearer;
  }
  if (may && request.signer != nullptr) may = in_scope(*request.signer, request);
  if (!may) {
    log::notice("denied", {{"verb", request.verb},
                           {"reason", may.error().code},
                           {"signer", request.signer ? request.signer->name : ""},
                           {"uid", peer.uid}});
    if (by_bearer) ++bearer_refused_[may.error().code];
    if (by_bearer || request.signer == nullptr)
      offence(peer, wire::Offence::authority, may.error());
    return responder.fail(may.error());
  }
  if (reach == Reach::proving) {
    const Answer answer = request.verb == "holder.prove"       ? prove_key(peer, request.args)
                          : request.verb == "operator.present" ? present_grant(peer, request.args)
                          : request.verb == "session.bearer"   ? show_bearer(peer, request.args)
                                                               : renew_challenge(peer);
    if (!answer) offence(peer, wire::Offence::proof, answer.error());
    return answer ? responder.answer(*answer) : responder.fail(answer.error());
  }
  if (reach != Reach::reading) {
    if (request.signer != nullptr)
      log::notice("signed_request", {{"verb", request.verb},
                                     {"signer", request.signer->name},
                                     {"key", hex(request.signer->key)},
                                     {"uid", peer.uid}});
    return change(peer, std::move(request), std::move(responder), 0);
  }
  const bool is_stream = request.verb == "drops.follow" || request.verb == "watch";
  // An anchor's key can be asked about at any time; a grant of hours ends while nobody looks.
  if (is_stream && request.signer != nullptr && request.signer->by)
    return responder.fail(Error{ErrorKind::denied, "verb_not_allowed", 0,
                                "an operator grant is for single requests, and no stream",
                                "join group holdfast, or sign with an anchor's key"});
  if (request.verb == "drops.follow") return drops_follow(peer, request, std::move(responder));
  if (request.verb == "watch")
    return watch_.begin(peer, request.args, request.signer, std::move(responder));
  Answer answer = read(peer, request);
  if (answer) return responder.answer(*answer);
  responder.fail(answer.error());
}

Verbs::Answer Verbs::read(const wire::Peer& peer, const wire::Request& request) {
  if (request.verb == "status") return status(peer);
  if (request.verb == "lease.list") return lease_list(request.args);
  if (request.verb == "lease.show") return lease_show(request.args);
  if (request.verb == "route.list") return route_list();
  if (request.verb == "tenant.list") return tenant_list(request.signer.get());
  if (request.verb == "bundle.show") return bundle_show(request.args);
  if (request.verb == "enroll.show") {
    if (Status ok = request.args.only_keys({}); !ok) return pass_on(ok);
    return enrollment_value(enrollment_, node_);
  }
  if (request.verb == "node.identity") {
    if (Status ok = request.args.only_keys({}); !ok) return pass_on(ok);
    return tokens_.identity();
  }
  if (request.verb == "node.report") return node_report(peer, request.args);
  if (request.verb == "drops.read") return drops_read();
  if (request.verb == "flows.list") return flows_list(request.args);
  if (request.verb == "explain") return explain(request.args);
  if (request.verb == "peer.list") return peer_list(request.args);
  if (request.verb == "bearer.list") return bearer_list(request.args);
  if (request.verb == "trust.show") {
    if (Status ok = request.args.only_keys({"cursor"}); !ok) return pass_on(ok);
    const Result<uint64_t> cursor = request.args.get_u64_or("cursor", 0);
    if (!cursor) return std::unexpected(cursor.error());
    return tokens_.trust(*cursor, trust_per_page, enrollment_.pending_root());
  }
  return fail(ErrorKind::invalid, "unknown_verb",
              fmt::format("there is no verb \"{}\"", request.verb),
              "client and daemon may be of different versions: compare `holdfast --version` with "
              "`holdfast status`");
}

// Counted against the peer, unless it could not have known: that the clock is in doubt, that the
// node has begun another epoch, that there is no room.
void Verbs::offence(const wire::Peer& peer, wire::Offence kind, const Error& why) {
  const bool known = why.kind == ErrorKind::denied || why.kind == ErrorKind::invalid;
  if (known && why.code != "clock_suspect" && why.code != "stale_epoch")
    peers_.on_offence(peer, kind);
}

// Whether what a request is about is one of its signer's tenants. What bulk grants name is seen as
// they are read, and what a token names is its issuer's to say.
Status Verbs::in_scope(const wire::Principal& signer, const wire::Request& request) const {
  const std::string_view verb = request.verb;
  const Value& args = request.args;
  if (signer.covers_all() || brings_its_own_signature(request) ||
      reach_of(verb) == Reach::proving || verb == "lease.grant" || verb == "tenant.list" ||
      verb == "node.identity")
    return {};
  if (verb == "lease.list" || verb == "flows.list" || verb.starts_with("tenant.")) {
    const Result<std::string_view> tenant =
        args.get_text_or(verb.starts_with("tenant.") ? "name" : "tenant", "");
    if (!tenant) return std::unexpected(tenant.error());
    return signer.covers(*tenant) ? Status() : std::unexpected(not_in_scope(signer, *tenant));
  }
  if (verb.starts_with("lease.")) {
    // Of another tenant's lease not even its existence is told.
    const Result<std::string_view> text = args.get_text("id");
    if (!text) return std::unexpected(text.error());
    const Result<LeaseId> id = parse_lease_id(*text);
    if (!id) return std::unexpected(id.error());
    const Result<LeaseView> lease = node_.lease(*id);
    if (lease && !signer.covers(lease->tenant)) return std::unexpected(no_such_lease(*id));
    return {};
  }
  return std::unexpected(not_in_scope(signer, "*"));
}

// Tries a change again when what stands in its way may have gone.
void Verbs::change_later(const wire::Peer& peer, wire::Request request, wire::Responder responder,
                         uint32_t attempt) {
  struct Waiting {
    wire::Peer peer;
    wire::Request request;
    wire::Responder responder;
    wire::Timer timer;
  };
  auto waiting =
      std::make_shared<Waiting>(Waiting{peer, std::move(request), std::move(responder), {}});
  waiting->timer = loop_.after(drain_attempt_period_ns, [this, waiting, attempt] {
    // What may be asked for may have changed while the request waited.
    const Status may = judge_again(waiting->peer, waiting->request);
    if (!may)
      waiting->responder.fail(may.error());
    else if (waiting->responder.is_open())
      change(waiting->peer, std::move(waiting->request), std::move(waiting->responder), attempt);
    loop_.defer([waiting] { waiting->timer.reset(); });
  });
}

Status Verbs::judge_again(const wire::Peer& peer, wire::Request& request) const {
  if (request.signer != nullptr) {
    Result<wire::Principal> signer = signed_requests_.principal(peer, request.signer->key);
    if (!signer) return pass_on(signer);
    request.signer = std::make_shared<const wire::Principal>(std::move(*signer));
  }
  if (Status ok = may_ask(peer, request, reach_of(request.verb), tokens_.signatures_needed()); !ok)
    return ok;
  return request.signer != nullptr ? in_scope(*request.signer, request) : Status();
}

Status Verbs::may_lease() const {
  const token::Digest policy = node_.policy_digest();
  const BundleRecord* in_force = bundles_.of(policy);
  if (Status ok = enrollment_.may_lease(in_force, policy); !ok) return ok;
  const std::optional<token::Anchor> root = enrollment_.root();
  if (root && (tokens_.is_revoked(root->thumbprint) ||
               tokens_.is_revoked_before(root->issuer, in_force->issued_s)))
    return fail(ErrorKind::conflict, "root_revoked",
                "this node is enrolled, and its root is revoked",
                "holdfast trust show; or leave it: holdfast enroll end");
  return {};
}

void Verbs::change(const wire::Peer& peer, wire::Request request, wire::Responder responder,
                   uint32_t attempt) {
  const Journal::AskedBy asked_by(node_.journal(), peer.uid,
                                  request.signer ? request.signer->name : "");
  // A quarantined node widens nothing. These look for themselves: what they do may widen nothing,
  // or be counted, or lift the quarantine.
  static constexpr std::string_view own_look[] = {"lease.grant", "bundle.push", "node.resume",
                                                  "node.release"};
  const Reach reach = reach_of(request.verb);
  if ((reach == Reach::widening || reach == Reach::founding || reach == Reach::ending) &&
      std::ranges::find(own_look, request.verb) == std::end(own_look))
    if (Status ok = node_.may_widen(request.verb); !ok) return responder.fail(ok.error());
  if (request.verb == "lease.revoke" || request.verb == "lease.release")
    return lease_end(peer, request, std::move(responder));
  if (request.verb == "lease.checkpoint")
    return lease_checkpoint(peer, request, std::move(responder));
  if (request.verb == "lease.preempt") return lease_preempt(peer, request, std::move(responder));
  if (request.verb == "lease.grant" || request.verb == "lease.renew") {
    if (Status ok = may_lease(); !ok) {
      log::notice(request.verb == "lease.grant" ? "grant_refused" : "renewal_refused",
                  {{"code", ok.error().code}});
      return responder.fail(ok.error());
    }
  }
  const Answer answer = change_now(peer, request);
  // What is being torn down is free in a moment: the grant waits for it instead of being refused.
  if (!answer && request.verb == "lease.grant" && answer.error().code == "draining" &&
      attempt < drain_attempts_max && request.body.size() <= waiting_body_bytes_max)
    return change_later(peer, std::move(request), std::move(responder), attempt + 1);
  if (answer) return responder.answer(*answer);
  if (brings_its_own_signature(request)) count_disbelief(peer, answer.error());
  responder.fail(answer.error());
}

// What is done when the call returns.
Verbs::Answer Verbs::change_now(const wire::Peer& peer, const wire::Request& request) {
  if (request.verb == "lease.grant") return lease_grant(peer, request);
  if (request.verb == "lease.renew") return lease_renew(peer, request);
  if (request.verb == "bundle.push") return bundle_push(peer, request);
  if (request.verb == "enroll.begin") return enroll_begin(peer, request.args);
  if (request.verb == "enroll.finish") return enroll_finish(peer, request);
  if (request.verb == "enroll.end") return enroll_end(peer, request.args);
  if (request.verb == "trust.revoke") return trust_revoke(request.args);
  if (request.verb == "trust.restore") return trust_restore(request.args);
  if (request.verb == "trust.rotate") return trust_rotate(request.args);
  if (request.verb.starts_with("peer.")) return peer_change(peer, request);
  if (request.verb == "bearer.create") return bearer_create(peer, request);
  if (request.verb == "bearer.revoke") return bearer_revoke(request.args);
  if (request.verb == "node.detach") return node_detach();
  if (request.verb.starts_with("node.")) return node_state(peer, request);
  return tenant_change(request);
}

Verbs::Answer Verbs::node_detach() {
  Result<std::vector<std::string>> removed = detach_();
  if (!removed) return pass_on(removed);
  return Value::map({{"removed", names_value(*removed)}});
}

Verbs::Answer Verbs::tenant_change(const wire::Request& request) {
  const bool disable = request.verb == "tenant.disable";
  CHECK(disable || request.verb == "tenant.enable");
  const Result<std::string_view> name = request.args.get_text("name");
  if (!name) return std::unexpected(name.error());
  if (Status ok = disable ? node_.disable_tenant(*name) : node_.enable_tenant(*name); !ok)
    return pass_on(ok);
  return Value::map({{"name", *name}, {"state", disable ? "disabled" : "enabled"}});
}

// Whoever brings it is told no more than that. Counted when this is over: what comes of it was not
// asked for.
void Verbs::count_disbelief(const wire::Peer& peer, const Error& why) {
  if (why.code == "denied")
    loop_.defer([this, peer, why] { offence(peer, wire::Offence::proof, why); });
}

}  // namespace holdfast
