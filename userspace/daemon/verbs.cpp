#include "userspace/daemon/verbs.hpp"

#include <algorithm>
#include <charconv>
#include <ranges>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "policy/address.hpp"
#include "policy/parse.hpp"
#include "policy/render.hpp"
#include "userspace/base/check.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/authority.hpp"
#include "userspace/daemon/explain.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/times.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t leases_per_page = 1000;
constexpr size_t trust_per_page = 500;  // each may have names of 256 bytes
constexpr size_t peers_told_max = 32;   // by status, signers and operators first; of each
constexpr size_t names_told_max = 4;    // so many verbs and tenants
constexpr size_t flows_per_reply = 1000;
constexpr size_t followers_max = 64;     // of readers, and as many of operators
constexpr size_t uid_followers_max = 8;  // of one reader
constexpr size_t note_bytes_max = 256;   // of a checkpoint: it goes to everybody who watches
constexpr size_t grant_items_max = abi::HF_SLOTS_MAX;
// Bearer tokens that expire while nobody asks, and keys that retire: how long one may be outlived.
constexpr uint64_t trust_period_ns = ns_per_s;

// A teardown takes a grace period and two netlink round trips; after two seconds it is not that.
constexpr uint64_t drain_attempt_period_ns = 20 * ns_per_ms;
constexpr uint32_t drain_attempts_max = 100;
// A larger request is told to come again, instead of being kept.
constexpr size_t waiting_body_bytes_max = size_t{1} << 20;

std::string address_port(const uint32_t (&address)[4], uint16_t port_be) {
  const Address a = address_of(address);
  return port_be == 0 ? format_address(a) : format_address_port({a, ntohs(port_be)});
}

std::string protocol_name(uint8_t protocol) {
  switch (protocol) {
    case 1:
    case 58: return "icmp_echo";
    case 6: return "tcp";
    case 17: return "udp";
    default: return fmt::format("{}", protocol);
  }
}

Result<Protocol> parse_protocol(std::string_view text) {
  for (const Protocol p : {Protocol::icmp_echo, Protocol::tcp, Protocol::udp})
    if (protocol_name(p) == text) return p;
  return fail(ErrorKind::invalid, "bad_protocol",
              fmt::format("\"{}\" is no protocol of ours", text), "tcp, udp or icmp_echo");
}

Result<uint64_t> number_or(const Value& args, std::string_view key, uint64_t min, uint64_t max,
                           uint64_t otherwise) {
  return args.has(key) ? args.get_u64(key, min, max) : otherwise;
}

Value counter_value(const abi::counter& counter) {
  return Value::map({{"packets", counter.packets}, {"bytes", counter.bytes}});
}

// Who a peer is, without what it signs.
Actor actor_of(const wire::Peer& peer) {
  return {peer.uid, peer.role == wire::Role::operates, peer.proved_key, peer.cgroups};
}

// A signer that may ask for a verb may do it to all that is in its scope.
Status check_life(uint64_t ttl_ns, uint64_t life_max_ns) {
  if (ttl_ns <= life_max_ns) return {};
  return fail(ErrorKind::denied, "life_too_long",
              fmt::format("{}, and a lease by this key lives for {} at the most",
                          human_duration(ttl_ns), human_duration(life_max_ns)),
              "ask for a shorter term, or for a longer `life` of the key's anchor");
}

Actor actor_of(const wire::Peer& peer, const wire::Request& request) {
  if (request.signer == nullptr) return actor_of(peer);
  return {.uid = peer.uid, .operates = true};
}

Value verifier_value(const verifier::Server& server) {
  const verifier::WorkerCounts counts = server.counts();
  Value refused = Value::map();
  for (size_t i = 1; i < counts.verdicts.size(); ++i)
    if (counts.verdicts[i] != 0)
      refused.set(token::name_of(static_cast<token::Refusal>(i - 1)), counts.verdicts[i]);
  return Value::map({{"by", server.transport()},
                     {"workers", server.workers()},
                     {"connections", counts.connections},
                     {"frames", counts.frames},
                     {"malformed", counts.malformed},
                     {"signatures", counts.signatures},
                     {"good", counts.verdicts[0]},
                     {"refused", std::move(refused)}});
}

// One item of a bulk grant; what it names are views of the body. Unknown keys are refused: a
// misspelt limit must not be ignored.
Result<bool> read_grant(cbor::Reader& in, GrantRequest& request, bool& each) {
  request.tenant = {};
  request.endpoints.clear();
  request.egress.clear();
  request.peer.reset();
  request.grace_ns = 0;
  request.ttl_ns = 0;
  each = false;
  const auto texts = [&](std::vector<std::string_view>& out) {
    for (in.array(); in.more();) out.emplace_back(in.text());
    in.end();
  };
  std::optional<Error> bad;
  for (in.map(); in.more() && !bad;) {
    const std::string_view key = in.text();
    if (key == "tenant") {
      request.tenant = in.text();
    } else if (key == "endpoints") {
      texts(request.endpoints);
    } else if (key == "egress") {
      texts(request.egress);
    } else if (key == "ttl_ns") {
      request.ttl_ns = in.u64();
    } else if (key == "grace_ns") {
      request.grace_ns = in.u64();
    } else if (key == "each") {
      each = in.boolean();
    } else if (key == "peer") {
      Result<Prefix> peer = parse_prefix(in.text());
      if (peer)
        request.peer = *peer;
      else
        bad = std::move(peer.error());
    } else if (key == "holder") {
      Result<Holder> holder = parse_holder_name(in.text());
      if (holder)
        request.holder = *holder;
      else
        bad = std::move(holder.error());
    } else if (in.ok()) {
      bad = Error{
          ErrorKind::invalid, "unknown_key", 0, fmt::format("a lease has no \"{}\"", key), {}};
    }
  }
  if (bad) return std::unexpected(std::move(*bad));
  in.end();
  if (!in.ok()) return std::unexpected(in.error());
  return true;
}

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

Status Verbs::attach_drop_events(Verbs& verbs) {
  Result<DropEvents> events = DropEvents::open(
      verbs.node_.plane().object, [&verbs](const abi::drop_event& e) { verbs.on_drop(e); });
  if (!events) return pass_on(events);
  verbs.drop_events_ = std::move(*events);
  Result<wire::FdWatch> watch = verbs.loop_.watch(
      verbs.drop_events_->fd(), EPOLLIN, [&verbs](uint32_t) { verbs.drop_events_->consume(); });
  if (!watch) return pass_on(watch);
  verbs.drop_watch_ = std::move(*watch);
  return {};
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
  if (request.verb == "drops.follow") {
    std::erase_if(followers_, [](const Follower& f) { return !f.responder->is_open(); });
    if (Status ok = may_follow(peer); !ok) return responder.fail(ok.error());
    followers_.push_back({peer.uid, peer.role == wire::Role::operates, request.signer,
                          std::make_shared<wire::Responder>(std::move(responder))});
    return;
  }
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
  Answer answer = Value();
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
  if (request.verb == "lease.grant") {
    answer = lease_grant(peer, request);
    // What is being torn down is free in a moment: the grant waits for it instead of being refused.
    if (!answer && answer.error().code == "draining" && attempt < drain_attempts_max &&
        request.body.size() <= waiting_body_bytes_max)
      return change_later(peer, std::move(request), std::move(responder), attempt + 1);
  } else if (request.verb == "lease.renew") {
    answer = lease_renew(peer, request);
  } else if (request.verb == "bundle.push") {
    answer = bundle_push(peer, request);
  } else if (request.verb == "enroll.begin") {
    answer = enroll_begin(peer, request.args);
  } else if (request.verb == "enroll.finish") {
    answer = enroll_finish(peer, request);
  } else if (request.verb == "enroll.end") {
    answer = enroll_end(peer, request.args);
  } else if (request.verb == "trust.revoke") {
    answer = trust_revoke(request.args);
  } else if (request.verb == "trust.restore") {
    answer = trust_restore(request.args);
  } else if (request.verb == "trust.rotate") {
    answer = trust_rotate(request.args);
  } else if (request.verb.starts_with("peer.")) {
    answer = peer_change(peer, request);
  } else if (request.verb == "bearer.create") {
    answer = bearer_create(peer, request);
  } else if (request.verb == "bearer.revoke") {
    answer = bearer_revoke(request.args);
  } else if (request.verb.starts_with("node.") && request.verb != "node.detach") {
    answer = node_state(peer, request);
  } else if (request.verb == "node.detach") {
    Result<std::vector<std::string>> removed = detach_();
    if (removed) {
      Value list = Value::array();
      for (std::string& item : *removed) list.push(std::move(item));
      answer = Value::map({{"removed", std::move(list)}});
    } else {
      answer = pass_on(removed);
    }
  } else {
    const bool disable = request.verb == "tenant.disable";
    CHECK(disable || request.verb == "tenant.enable");
    const Result<std::string_view> name = request.args.get_text("name");
    const Status ok = !name     ? Status(std::unexpected(name.error()))
                      : disable ? node_.disable_tenant(*name)
                                : node_.enable_tenant(*name);
    if (ok) {
      answer = Value::map({{"name", *name}, {"state", disable ? "disabled" : "enabled"}});
    } else {
      answer = std::unexpected(ok.error());
    }
  }
  if (answer) return responder.answer(*answer);
  if (brings_its_own_signature(request)) count_disbelief(peer, answer.error());
  responder.fail(answer.error());
}

// Whoever brings it is told no more than that. Counted when this is over: what comes of it was not
// asked for.
void Verbs::count_disbelief(const wire::Peer& peer, const Error& why) {
  if (why.code == "denied")
    loop_.defer([this, peer, why] { offence(peer, wire::Offence::proof, why); });
}

// ---- leases

Verbs::Answer Verbs::lease_list(const Value& args) const {
  if (Status ok = args.only_keys({"cursor", "limit", "tenant"}); !ok) return pass_on(ok);
  const Result<uint64_t> cursor = args.get_u64_or("cursor", 0);
  const Result<uint64_t> limit = number_or(args, "limit", 1, UINT64_MAX, leases_per_page);
  const Result<std::string_view> tenant = args.get_text_or("tenant", "");
  if (!cursor) return std::unexpected(cursor.error());
  if (!limit) return std::unexpected(limit.error());
  if (!tenant) return std::unexpected(tenant.error());
  auto slot = static_cast<uint32_t>(std::min<uint64_t>(*cursor, UINT32_MAX));
  Value list = Value::array();
  for (const LeaseView& lease :
       node_.leases(slot, std::min<uint64_t>(*limit, leases_per_page), *tenant))
    list.push(lease_value(lease));
  const bool more = slot < node_.plane().slots.size();
  return Value::map({{"leases", std::move(list)}, {"next", more ? Value(slot) : Value()}});
}

Verbs::Answer Verbs::lease_show(const Value& args) const {
  const Result<std::string_view> text = args.get_text("id");
  if (!text) return std::unexpected(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return std::unexpected(id.error());
  const Result<LeaseView> lease = node_.lease(*id);
  if (!lease) return std::unexpected(lease.error());
  return lease_value(*lease);
}

namespace {

// Before anything of the tenant is looked up.
Status may_grant(const wire::Principal* signer, const GrantRequest& request) {
  if (signer == nullptr) return {};
  if (!signer->covers(request.tenant))
    return std::unexpected(not_in_scope(*signer, request.tenant));
  return check_life(request.ttl_ns, signer->life_max_ns);
}

}  // namespace

Verbs::Answer Verbs::lease_grant(const wire::Peer& peer, const wire::Request& request) {
  if (request.args.has("token")) return grant_by_token(actor_of(peer), request.args);
  if (!request.has_body)
    return fail(ErrorKind::invalid, "no_body", "lease.grant takes an array of leases as its body");
  const uint64_t begin = boot_now_ns();
  cbor::Reader in(request.body, {.bytes_max = request.body.size()});
  const uint64_t count = in.array();
  if (!in.ok()) return std::unexpected(in.error());
  if (count == 0 || count > grant_items_max)
    return fail(ErrorKind::invalid, "lease_count", fmt::format("{} leases in one request", count),
                fmt::format("between 1 and {}", grant_items_max));

  // `each` stands for one lease on every member of what it selects.
  std::vector<Resource> members;
  size_t member = 0;
  const auto next = [&](GrantRequest& out) -> Result<bool> {
    if (member == members.size()) {
      if (!in.more()) {
        in.end();
        if (!in.finish()) return std::unexpected(in.error());
        return false;
      }
      bool each = false;
      out.holder = {Holder::Kind::uid, peer.uid, {}};
      out.selected.reset();
      Result<bool> ok = read_grant(in, out, each);
      if (ok)
        if (Status may = may_grant(request.signer.get(), out); !may) ok = pass_on(may);
      if (!ok || !each) return ok;
      Result<std::vector<Resource>> all = select_members(node_.index(), out);
      if (!all) return pass_on(all);
      members = std::move(*all);
      member = 0;
    }
    out.selected = members[member++];
    return true;
  };
  const wire::Principal* signer = request.signer.get();
  const Result<Grant> granted =
      node_.grant(actor_of(peer, request), next,
                  signer != nullptr ? Tokens::origin_of(*signer) : LeaseOrigin());
  if (!granted) return std::unexpected(granted.error());
  Value reply = Value::map({{"granted", granted->ids.size()},
                            {"took_ns", boot_now_ns() - begin},
                            {"ebpf_ns", granted->ebpf_ns},
                            {"nft_ns", granted->nft_ns}});
  if (granted->ids.size() <= leases_per_page) {
    Value list = Value::array();
    for (const LeaseId& id : granted->ids)
      if (const Result<LeaseView> lease = node_.lease(id); lease) list.push(lease_value(*lease));
    reply.set("leases", std::move(list));
  }
  return reply;
}

Verbs::Answer Verbs::lease_renew(const wire::Peer& peer, const wire::Request& request) {
  const Value& args = request.args;
  if (args.has("token")) return renew_by_token(actor_of(peer), args);
  if (Status ok = args.only_keys({"id", "ttl_ns", "generation"}); !ok) return pass_on(ok);
  const Result<std::string_view> text = args.get_text("id");
  if (!text) return std::unexpected(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return std::unexpected(id.error());
  const Result<uint64_t> ttl = args.get_u64("ttl_ns");
  if (!ttl) return std::unexpected(ttl.error());
  std::optional<uint64_t> generation;
  if (args.has("generation")) {
    const Result<uint64_t> given = args.get_u64("generation");
    if (!given) return std::unexpected(given.error());
    generation = *given;
  }
  Actor actor = actor_of(peer, request);
  std::optional<LeaseOrigin> origin;
  if (request.signer != nullptr) {
    origin = Tokens::origin_of(*request.signer);
    if (Status ok = check_life(*ttl, request.signer->life_max_ns); !ok) return pass_on(ok);
  } else {
    // To prolong another's lease is to widen.
    actor.operates = actor.operates && !tokens_.signatures_needed();
    if (const uint64_t issuer = node_.issuer_of(*id); issuer != 0)
      if (Status ok = check_life(*ttl, tokens_.life_max_ns(issuer)); !ok) return pass_on(ok);
  }
  const Result<LeaseView> lease =
      node_.renew(actor, *id, *ttl, generation, origin ? &*origin : nullptr);
  if (!lease) return std::unexpected(lease.error());
  return lease_value(*lease);
}

void Verbs::lease_end(const wire::Peer& peer, const wire::Request& request,
                      wire::Responder responder) {
  const Result<std::string_view> text = request.args.get_text("id");
  if (!text) return responder.fail(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return responder.fail(id.error());
  std::optional<uint64_t> grace;
  if (request.args.has("grace_ns")) {
    const Result<uint64_t> given = request.args.get_u64("grace_ns", 0, lease_term_max_ns);
    if (!given) return responder.fail(given.error());
    grace = *given;
  }
  auto waiting = std::make_shared<wire::Responder>(std::move(responder));
  const auto done = [this, waiting, id = *id](const Status& ok) {
    ok ? waiting->answer(ending_value(id)) : waiting->fail(ok.error());
  };
  if (request.verb == "lease.release") return node_.release(actor_of(peer, request), *id, done);
  node_.revoke(*id, grace, done);
}

void Verbs::lease_checkpoint(const wire::Peer& peer, const wire::Request& request,
                             wire::Responder responder) {
  const Value& args = request.args;
  if (Status ok = args.only_keys({"id", "note", "keep_grace"}); !ok)
    return responder.fail(ok.error());
  const Result<std::string_view> text = args.get_text("id");
  if (!text) return responder.fail(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return responder.fail(id.error());
  const Result<std::string_view> note = args.get_text_or("note", "");
  if (!note) return responder.fail(note.error());
  const Result<bool> keep_grace = args.get_bool_or("keep_grace", false);
  if (!keep_grace) return responder.fail(keep_grace.error());
  if (note->size() > note_bytes_max)
    return responder.fail(Error{
        ErrorKind::invalid, "note_too_long", 0, fmt::format("the note has {} bytes", note->size()),
        fmt::format("at most {}: of what is longer, its digest", note_bytes_max)});
  auto waiting = std::make_shared<wire::Responder>(std::move(responder));
  node_.checkpoint(actor_of(peer, request), *id, *note, *keep_grace,
                   [this, waiting, id = *id](const Status& ok) {
                     ok ? waiting->answer(ending_value(id)) : waiting->fail(ok.error());
                   });
}

// What became of a lease that was to end: it is still listed while its grace runs.
Value Verbs::ending_value(const LeaseId& id) const {
  const Result<LeaseView> lease = node_.lease(id);
  if (!lease) return Value::map({{"id", format_lease_id(id)}, {"state", "torndown"}});
  return lease_value(*lease);
}

// ---- reading

Verbs::Answer Verbs::status(const wire::Peer& peer) const {
  const DataPlane& plane = node_.plane();
  const Policy& policy = node_.policy();
  uint64_t endpoints = 0;
  for (const Tenant& tenant : policy.tenants)
    for (const Endpoint& e : tenant.endpoints)
      endpoints += e.addresses.size() * (static_cast<uint64_t>(e.listen.last) - e.listen.first + 1);
  Value uplinks = Value::array();
  for (const std::string& name : policy.uplinks)
    if (const LinkInfo* link = node_.network().find(name); link != nullptr)
      uplinks.push(Value::map(
          {{"interface", name}, {"hook", plane.attachments.uplink_hook_of(link->ifindex)}}));
  Value dark = Value::array();
  for (const auto& [name, error] : node_.dark()) dark.push(error_value(name, error));
  Value unenforced = Value::array();
  for (const Unenforced& each : node_.unenforced()) {
    Value value = error_value(each.interface, each.cause);
    value.set("what", name_of(each.layer));
    unenforced.push(std::move(value));
  }
  const abi::control& control = plane.banks.control();
  return Value::map(
      {{"version", HOLDFAST_VERSION},
       {"node", tokens_.node()},
       {"epoch", tokens_.epoch()},
       {"state", standing_value(node_)},
       {"enrollment", enrollment_value(enrollment_, node_)},
       {"tokens", tokens_.status()},
       {"signed_requests", signed_requests_.status()},
       {"policy", Value::map({{"generation", policy.generation},
                              {"digest", hex(control.policy_digest)},
                              {"tenants", policy.tenants.size()},
                              {"endpoints", endpoints}})},
       {"leases", Value::map({{"live", node_.lease_count()}, {"max", plane.slots.size()}})},
       {"hooks", Value::map({{"tenant", plane.attachments.tenant_hook_in_use()},
                             {"uplinks", std::move(uplinks)}})},
       {"dark", std::move(dark)},
       {"unenforced", std::move(unenforced)},
       {"mapped_bytes", plane.slots.mapped_bytes() + plane.banks.mapped_bytes()},
       {"started_at", rfc3339_utc(started_wall_ns_)},
       {"uptime_ns", boot_now_ns() - started_boot_ns_},
       {"bpf_digest", kernel_object_digest()},
       {"pin_dir", plane.object.root()},
       {"table", plane.nft.name()},
       {"connections", server_ != nullptr ? server_->stats().connections : 0},
       {"peers", peers()},
       {"abuse", abuse_value()},
       {"bearers", bearers_status()},
       {"watch", watch_.status()},
       {"verifier", verifier_ != nullptr ? verifier_value(*verifier_) : Value()},
       {"peer", Value::map({{"uid", peer.uid}, {"role", wire::name_of(peer.role)}})}});
}

// Who is connected, and what they may ask for besides what their role lets them; the first so many.
Value Verbs::peers() const {
  Value list = Value::array();
  size_t told = 0;
  const auto names = [](const std::vector<std::string>& from) {
    Value out = Value::array();
    for (const std::string& each : from | std::views::take(names_told_max)) out.push(each);
    if (from.size() > names_told_max)
      out.push(fmt::format("and {} more", from.size() - names_told_max));
    return out;
  };
  const auto may = [&](const wire::Principal& principal) {
    return Value::map({{"name", principal.name},
                       {"key", hex(principal.key)},
                       {"verbs", names(principal.verbs)},
                       {"tenants", names(principal.tenants)}});
  };
  bool foremost = true;
  const auto tell = [&](const wire::Peer& peer) {
    const bool first =
        peer.signer != nullptr || !peer.delegations.empty() || peer.role == wire::Role::operates;
    if (first != foremost || ++told > peers_told_max) return;
    Value grants = Value::array();
    for (const wire::Delegation& each : peer.delegations) grants.push(may(each.principal));
    list.push(Value::map({{"uid", peer.uid},
                          {"pid", static_cast<uint64_t>(peer.pid)},
                          {"role", wire::name_of(peer.role)},
                          {"since", wall_of(peer.connected_boot_ns)},
                          {"signer", peer.signer ? may(*peer.signer) : Value()},
                          {"bearer", peer.bearer ? Value(peer.bearer->name) : Value()},
                          {"grants", std::move(grants)}}));
  };
  for (foremost = true; server_ != nullptr; foremost = false) {
    server_->for_each_peer(tell);
    if (!foremost) break;
  }
  return list;
}

Verbs::Answer Verbs::route_list() const {
  Value routes = Value::array();
  const DataPlane& plane = node_.plane();
  for (const Tenant& tenant : node_.policy().tenants)
    for (const Endpoint& e : tenant.endpoints) {
      Value addresses = Value::array();
      uint64_t leased = 0;
      for (const Address& address : e.addresses) {
        addresses.push(format_address(address));
        for (uint32_t port = e.listen.first; port <= e.listen.last; ++port)
          if (const auto entry = plane.banks.endpoint(
                  endpoint_key(address, e.protocol, static_cast<uint16_t>(port)));
              entry && plane.slots.bound(entry->slot))
            ++leased;
      }
      const TenantPort& port = tenant.ports[e.port];
      routes.push(
          Value::map({{"tenant", tenant.name},
                      {"endpoint", e.name},
                      {"protocol", protocol_name(e.protocol)},
                      {"addresses", std::move(addresses)},
                      {"listen", listen_text(e)},
                      {"port", port.name},
                      {"interface", port.interface},
                      {"members", e.addresses.size() *
                                      (static_cast<uint64_t>(e.listen.last) - e.listen.first + 1)},
                      {"leased", leased}}));
    }
  return Value::map({{"routes", std::move(routes)}});
}

Verbs::Answer Verbs::tenant_list(const wire::Principal* signer) const {
  Value list = Value::array();
  for (const TenantView& view : node_.tenants()) {
    if (signer != nullptr && !signer->covers(view.tenant->name)) continue;
    Value ports = Value::array();
    for (const TenantPort& port : view.tenant->ports) {
      Value addresses = Value::array();
      for (const Address& address : port.addresses) addresses.push(format_address(address));
      ports.push(Value::map({{"name", port.name},
                             {"interface", port.interface},
                             {"mac", format_mac(port.mac)},
                             {"addresses", std::move(addresses)},
                             {"present", node_.network().find(port.interface) != nullptr}}));
    }
    const Result<abi::tenant_counter> counted = counters_.tenant(view.index);
    if (!counted) return std::unexpected(counted.error());
    list.push(Value::map({{"name", view.tenant->name},
                          {"id", view.tenant->id},
                          {"state", view.disabled ? "disabled" : "enabled"},
                          {"epoch", view.epoch},
                          {"leases", view.leases},
                          {"leases_max", view.tenant->leases_max},
                          {"ports", std::move(ports)},
                          {"to_tenant", counter_value(counted->to_tenant)},
                          {"from_tenant", counter_value(counted->from_tenant)},
                          {"dropped", counter_value(counted->dropped)}}));
  }
  return Value::map({{"tenants", std::move(list)}});
}

Verbs::Answer Verbs::drops_read() const {
  const Result<std::vector<ReasonCount>> rows = counters_.reasons();
  if (!rows) return std::unexpected(rows.error());
  Value list = Value::array();
  uint64_t lost = 0, unsampled = 0;
  for (const ReasonCount& row : *rows) {
    lost += row.count.events_lost;
    unsampled += row.count.events_unsampled;
    list.push(Value::map({{"hook", hook_name(row.hook)},
                          {"reason", reason_name(row.reason)},
                          {"verdict", abi::hf_reason_passes(row.reason) ? "pass" : "drop"},
                          {"packets", row.count.total.packets},
                          {"bytes", row.count.total.bytes},
                          {"text", reason_text(row.reason)}}));
  }
  return Value::map(
      {{"reasons", std::move(list)}, {"events_lost", lost}, {"events_unsampled", unsampled}});
}

Value Verbs::event_value(const abi::drop_event& e) const {
  const LinkInfo* link = node_.network().find(e.ifindex);
  const std::optional<LeaseId> lease = node_.lease_of_slot(e.verdict.slot);
  return Value::map({{"time", wall_of(e.time_boot_ns)},
                     {"hook", hook_name(e.direction)},
                     {"reason", reason_name(e.verdict.reason)},
                     {"interface", link != nullptr ? link->name : fmt::format("{}", e.ifindex)},
                     {"source", address_port(e.source, e.source_port)},
                     {"destination", address_port(e.destination, e.destination_port)},
                     {"protocol", protocol_name(e.protocol)},
                     {"tenant", node_.tenant_name(e.verdict.tenant)},
                     {"lease", lease ? Value(format_lease_id(*lease)) : Value()},
                     {"length", e.length}});
}

// Operators have places of their own, so that readers cannot take them all.
Status Verbs::may_follow(const wire::Peer& peer) const {
  const bool operates = peer.role == wire::Role::operates;
  const auto same_role = [&](const Follower& f) { return f.operates == operates; };
  const auto same_uid = [&](const Follower& f) { return f.uid == peer.uid; };
  const auto all = std::count_if(followers_.begin(), followers_.end(), same_role);
  const auto own = std::count_if(followers_.begin(), followers_.end(), same_uid);
  if (static_cast<size_t>(all) >= followers_max)
    return fail(ErrorKind::exhausted, "followers_max",
                fmt::format("{} others follow drop events", all), "try later");
  if (!operates && static_cast<size_t>(own) >= uid_followers_max)
    return fail(ErrorKind::exhausted, "followers_max",
                fmt::format("uid {} follows drop events {} times already", peer.uid, own),
                "end one of them");
  return {};
}

void Verbs::on_drop(const abi::drop_event& event) {
  if (followers_.empty()) return;
  const Value value = event_value(event);
  // A follower that does not keep up misses events; the counters miss nothing.
  std::erase_if(followers_, [&](const Follower& follower) {
    const Status sent = follower.responder->event(value);
    return !sent && sent.error().code == "peer_gone";
  });
}

Verbs::Answer Verbs::flows_list(const Value& args) const {
  if (Status ok = args.only_keys({"tenant", "limit"}); !ok) return pass_on(ok);
  const Result<std::string_view> tenant = args.get_text_or("tenant", "");
  const Result<uint64_t> limit = number_or(args, "limit", 1, UINT64_MAX, flows_per_reply);
  if (!tenant) return std::unexpected(tenant.error());
  if (!limit) return std::unexpected(limit.error());
  const size_t wanted = std::min<uint64_t>(*limit, flows_per_reply);
  const DataPlane& plane = node_.plane();
  Value list = Value::array();
  size_t listed = 0;
  for (const TenantView& view : node_.tenants()) {
    if (!tenant->empty() && view.tenant->name != *tenant) continue;
    const Result<std::vector<abi::flow>> flows = counters_.flows(view.index, wanted - listed);
    if (!flows) return std::unexpected(flows.error());
    for (const abi::flow& flow : *flows) {
      const bool live = flow.slot < plane.slots.size() && plane.slots.bound(flow.slot) &&
                        abi::hf_gate_incarnation(plane.slots.gate(flow.slot)) == flow.incarnation &&
                        abi::hf_gate_deadline_boot_ns(plane.slots.gate(flow.slot)) > boot_now_ns();
      const LinkInfo* link = node_.network().find(flow.key.ifindex);
      const std::optional<LeaseId> lease = live ? node_.lease_of_slot(flow.slot) : std::nullopt;
      list.push(Value::map(
          {{"tenant", view.tenant->name},
           {"protocol", protocol_name(flow.key.protocol)},
           {"local", address_port(flow.key.local, flow.key.local_port)},
           {"remote", address_port(flow.key.remote, flow.key.remote_port)},
           {"interface", link != nullptr ? link->name : fmt::format("{}", flow.key.ifindex)},
           {"lease", lease ? Value(format_lease_id(*lease)) : Value()},
           {"state", live ? "live" : "dead"}}));
      ++listed;
    }
  }
  return Value::map({{"flows", std::move(list)}, {"truncated", listed >= wanted}});
}

Verbs::Answer Verbs::explain(const Value& args) const {
  if (Status ok = args.only_keys({"from", "source", "destination", "protocol", "source_port",
                                  "destination_port", "flags", "source_mac"});
      !ok)
    return pass_on(ok);
  ProbePacket packet;
  const Result<std::string_view> from = args.get_text_or("from", "uplink");
  const Result<std::string_view> source = args.get_text("source");
  const Result<std::string_view> destination = args.get_text("destination");
  const Result<std::string_view> protocol = args.get_text("protocol");
  const Result<std::string_view> flags = args.get_text_or("flags", "S");
  const Result<uint64_t> source_port = number_or(args, "source_port", 0, UINT16_MAX, 0);
  const Result<uint64_t> destination_port = number_or(args, "destination_port", 0, UINT16_MAX, 0);
  for (const auto* text : {&from, &source, &destination, &protocol, &flags})
    if (!*text) return std::unexpected(text->error());
  for (const auto* number : {&source_port, &destination_port})
    if (!*number) return std::unexpected(number->error());
  const Result<Address> source_address = parse_address(*source);
  if (!source_address) return std::unexpected(source_address.error());
  const Result<Address> destination_address = parse_address(*destination);
  if (!destination_address) return std::unexpected(destination_address.error());
  const Result<Protocol> proto = parse_protocol(*protocol);
  if (!proto) return std::unexpected(proto.error());
  if (*flags != "S" && *flags != "A")
    return fail(ErrorKind::invalid, "bad_flags", fmt::format("flags \"{}\"", *flags),
                "S opens a connection or asks for an echo, A carries data or answers");
  std::optional<std::string> source_mac;
  if (args.has("source_mac")) {
    const Result<std::string_view> given = args.get_text("source_mac");
    if (!given) return std::unexpected(given.error());
    source_mac = *given;
  }
  packet.source = *source_address;
  packet.destination = *destination_address;
  packet.protocol = *proto;
  packet.source_port = static_cast<uint16_t>(*source_port);
  packet.destination_port = static_cast<uint16_t>(*destination_port);
  packet.tcp_syn = *flags == "S";
  packet.echo_reply = *flags == "A" && *proto == Protocol::icmp_echo;
  const Result<std::vector<ExplainStep>> steps =
      explain_packet(node_, *from, packet, source_mac ? &*source_mac : nullptr);
  if (!steps) return std::unexpected(steps.error());
  Value list = Value::array();
  bool passes = true;
  for (const ExplainStep& step : *steps) {
    const abi::verdict& v = step.verdict;
    const bool pass = abi::hf_reason_passes(v.reason) != 0;
    passes = passes && pass;
    const std::optional<LeaseId> lease = node_.lease_of_slot(v.slot);
    const uint64_t deadline = abi::hf_gate_deadline_boot_ns(v.gate);
    const uint64_t now = v.now_boot_ns != 0 ? v.now_boot_ns : boot_now_ns();
    const std::string tenant = node_.tenant_name(v.tenant);
    list.push(Value::map(
        {{"hook", hook_name(step.hook)},
         {"interface", step.interface},
         {"verdict", pass ? "pass" : "drop"},
         {"reason", reason_name(v.reason)},
         {"text", reason_text(v.reason)},
         {"tenant", tenant.empty() ? Value() : Value(tenant)},
         {"lease", lease ? Value(format_lease_id(*lease)) : Value()},
         {"remaining_ns", deadline > now ? Value(deadline - now) : Value()},
         {"ended_ns_ago", deadline != 0 && deadline <= now ? Value(now - deadline) : Value()},
         {"bank", v.bank}}));
  }
  return Value::map({{"verdict", passes ? "pass" : "drop"}, {"steps", std::move(list)}});
}

}  // namespace holdfast
