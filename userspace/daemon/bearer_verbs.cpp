// bearer.create, bearer.list, bearer.revoke, session.bearer: tokens for reading only.
#include <algorithm>

#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/authority.hpp"
#include "userspace/daemon/bearers.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

uint64_t wall_now_ms() {
  return wall_now_ns() / ns_per_ms;
}

Result<std::vector<std::string>> texts(const Value& args, std::string_view key) {
  const Result<const Value::Array*> list = args.get_array(key);
  if (!list) return std::unexpected(list.error());
  std::vector<std::string> out;
  for (const Value& each : **list) {
    if (each.as_text() == nullptr)
      return fail(ErrorKind::invalid, "bearer_list", fmt::format("\"{}\" is a list of names", key),
                  "such as [\"status\"]");
    out.push_back(*each.as_text());
  }
  return out;
}

Value list_value(const std::vector<std::string>& from) {
  Value out = Value::array();
  for (const std::string& each : from) out.push(each);
  return out;
}

// All that is known of it, but for the digest.
Value bearer_value(const Bearer& bearer, std::string_view state) {
  return Value::map({{"name", bearer.name},
                     {"state", state},
                     {"environment", bearer.environment},
                     {"scope", list_value(bearer.scope)},
                     {"tenants", list_value(bearer.tenants)},
                     {"created", rfc3339_utc(bearer.created_wall_ms * ns_per_ms)},
                     {"expires", rfc3339_utc(bearer.expires_wall_ms * ns_per_ms)},
                     {"by_uid", bearer.by_uid}});
}

}  // namespace

Verbs::Answer Verbs::bearer_create(const wire::Peer& peer, const wire::Request& request) {
  const Value& args = request.args;
  if (Status ok = args.only_keys({"name", "environment", "scope", "tenants", "ttl_ns"}); !ok)
    return pass_on(ok);
  const Result<std::string_view> name = args.get_text("name");
  if (!name) return std::unexpected(name.error());
  const Result<std::string_view> environment = args.get_text("environment");
  if (!environment) return std::unexpected(environment.error());
  Result<std::vector<std::string>> scope = texts(args, "scope");
  if (!scope) return pass_on(scope);
  Result<std::vector<std::string>> tenants = std::vector<std::string>{"*"};
  if (args.has("tenants")) tenants = texts(args, "tenants");
  if (!tenants) return pass_on(tenants);
  const Result<uint64_t> ttl_ns = args.get_u64("ttl_ns", 0, bearer_life_max_ns);
  if (!ttl_ns) return std::unexpected(ttl_ns.error());
  if (tokens_.clock_in_doubt())
    return fail(ErrorKind::unavailable, "clock_suspect",
                "the node's clock is in doubt, and a bearer token is dated",
                "set the clock right, then restart holdfastd");
  Bearer wanted{.name = std::string(*name),
                .environment = std::string(*environment),
                .scope = std::move(*scope),
                .tenants = std::move(*tenants),
                .by_uid = peer.uid};
  const uint64_t now_ms = wall_now_ms();
  wanted.expires_wall_ms = now_ms + *ttl_ns / ns_per_ms;
  if (const wire::Principal* signer = request.signer.get(); signer != nullptr) {
    // Nobody hands on what it has for some hours, or may not ask for itself.
    if (signer->by)
      return fail(ErrorKind::denied, "verb_not_allowed",
                  "a bearer token outlives an operator grant, so none is made by it",
                  "have an anchor's key ask for it, or root");
    for (const std::string& verb : wanted.scope)
      if (!signer->may_ask(verb))
        return fail(ErrorKind::denied, "verb_not_allowed",
                    fmt::format("the key of {} may not ask for {}", signer->name, verb),
                    "its anchor lists the verbs it may: holdfast trust show");
    wanted.by_key = signer->key;
  }
  const Result<std::string> token = bearers_.create(wanted, now_ms);
  if (!token) return std::unexpected(token.error());
  const Bearer& made = bearers_.all().back();
  node_.journal().record(log::Level::notice, "bearer.create",
                         {{"name", made.name},
                          {"scope", made.scope},
                          {"tenants", made.tenants},
                          {"expires", rfc3339_utc(made.expires_wall_ms * ns_per_ms)}});
  Value reply = bearer_value(made, state_of(made, now_ms));
  reply.set("token", *token);
  return reply;
}

Verbs::Answer Verbs::bearer_list(const Value& args) const {
  if (Status ok = args.only_keys({}); !ok) return pass_on(ok);
  const uint64_t now_ms = wall_now_ms();
  Value list = Value::array();
  for (const Bearer& each : bearers_.all()) list.push(bearer_value(each, state_of(each, now_ms)));
  return Value::map({{"bearers", std::move(list)}});
}

Verbs::Answer Verbs::bearer_revoke(const Value& args) {
  if (Status ok = args.only_keys({"name"}); !ok) return pass_on(ok);
  const Result<std::string_view> name = args.get_text("name");
  if (!name) return std::unexpected(name.error());
  const Result<Bearer> revoked = bearers_.revoke(*name);
  end_bearers();  // also if it could not be written
  if (!revoked && revoked.error().kind == ErrorKind::not_found)
    return std::unexpected(revoked.error());
  node_.journal().record(log::Level::notice, "bearer.revoke", {{"name", *name}});
  if (!revoked) return std::unexpected(revoked.error());
  return bearer_value(*revoked, state_of(*revoked, wall_now_ms()));
}

// On this connection nothing else is asked for from then on.
Verbs::Answer Verbs::show_bearer(wire::Peer& peer, const Value& args) {
  const Result<Bearer> bearer = [&]() -> Result<Bearer> {
    if (Status ok = args.only_keys({"token"}); !ok) return pass_on(ok);
    const Result<std::string_view> token = args.get_text("token");
    if (!token) return std::unexpected(token.error());
    if (peer.bearer != nullptr)
      return fail(ErrorKind::conflict, "bearer_shown",
                  fmt::format("this connection has shown the bearer token {}", peer.bearer->name),
                  "connect anew");
    Result<Bearer> found = bearers_.judge(*token, wall_now_ms());
    if (!found) return found;
    if (Status ok = bearer_holds(found->sha256); !ok) return pass_on(ok);
    return found;
  }();
  if (!bearer) {
    ++bearer_refused_[bearer.error().code];
    log::notice("bearer_refused", {{"reason", bearer.error().code}, {"uid", peer.uid}});
    return std::unexpected(bearer.error());
  }
  ++bearer_good_;
  peer.bearer = std::make_shared<const wire::Principal>(wire::Principal{.name = bearer->name,
                                                                        .key = bearer->sha256,
                                                                        .verbs = bearer->scope,
                                                                        .tenants = bearer->tenants,
                                                                        .is_bearer = true});
  return bearer_value(*bearer, state_of(*bearer, wall_now_ms()));
}

// Whether the key that asked for it could ask for it now.
bool Verbs::may_still_hand_on(const Bearer& bearer) const {
  const auto anchor = tokens_.signer(*bearer.by_key, token::Purpose::request);
  if (!anchor || tokens_.is_revoked_before((*anchor)->issuer, bearer.created_wall_ms / 1000))
    return false;
  wire::Principal now;
  now.verbs = (*anchor)->verbs;
  now.tenants = (*anchor)->tenants;
  return now.covers_all() &&
         std::ranges::all_of(bearer.scope, [&](const auto& verb) { return now.may_ask(verb); });
}

// As `bearer ls` has it; one whose key counts again is live again.
std::string_view Verbs::state_of(const Bearer& bearer, uint64_t now_wall_ms) const {
  if (bearer.revoked) return "revoked";
  if (bearer.is_over(now_wall_ms)) return "expired";
  return bearer.by_key && !may_still_hand_on(bearer) ? "key_not_live" : "live";
}

// Whether what was good when it was shown still is.
Status Verbs::bearer_holds(const token::Digest& sha256) const {
  if (tokens_.clock_in_doubt())
    return fail(ErrorKind::denied, "clock_suspect",
                "the node's clock is in doubt, and a bearer token is dated",
                "have an operator set the clock right and restart holdfastd");
  if (Status ok = bearers_.judge_again(sha256, wall_now_ms()); !ok) return ok;
  const auto found = std::ranges::find(bearers_.all(), sha256, &Bearer::sha256);
  if (found != bearers_.all().end() && found->by_key && !may_still_hand_on(*found))
    return fail(
        ErrorKind::denied, "bearer_key_not_live",
        fmt::format("the key that asked for the bearer token {} may sign no more", found->name),
        "have an operator make another: holdfast bearer create");
  return {};
}

// Ends the connections whose token is not good any more, with the streams on them.
void Verbs::end_bearers() {
  if (server_ == nullptr) return;
  server_->end_peers(
      [this](const wire::Peer& peer) {
        return peer.bearer != nullptr && !bearer_holds(peer.bearer->key);
      },
      Error{ErrorKind::denied, "bearer_over", 0,
            "the bearer token of this connection is revoked or has expired",
            "connect anew with another"});
}

// {"live": n, "shown": n, "refused": {code: n}}
Value Verbs::bearers_status() const {
  Value refused = Value::map();
  for (const auto& [code, count] : bearer_refused_) refused.set(code, count);
  const uint64_t now_ms = wall_now_ms();
  const auto live = std::ranges::count_if(
      bearers_.all(), [&](const Bearer& each) { return state_of(each, now_ms) == "live"; });
  return Value::map({{"live", static_cast<uint64_t>(live)},
                     {"shown", bearer_good_},
                     {"refused", std::move(refused)}});
}

}  // namespace holdfast
