// lease.grant and lease.renew by token: what Tokens believed becomes a lease, and a use token.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

// Of a token that was good a moment ago; 0 if it has expired since.
uint64_t time_left_ns(const token::Verified& token) {
  const uint64_t now = wall_now_ns();
  const uint64_t end = token.expires_s * ns_per_s;
  return end > now ? end - now : 0;
}

}  // namespace

// The lease as it is, and what shows a service that it is in force.
Verbs::Answer Verbs::with_use_token(const LeaseId& id, const std::vector<std::string>& operations) {
  const Result<LeaseView> lease = node_.lease(id);
  if (!lease) return std::unexpected(lease.error());
  Value reply = lease_value(*lease);
  // The lease is in force, whatever becomes of its token.
  if (Result<std::string> token = tokens_.use_token(*lease, operations))
    reply.set("token", std::move(*token));
  else
    log::error("use_token_not_made",
               {{"lease", format_lease_id(id)}, {"cause", token.error().text()}});
  return reply;
}

Verbs::Answer Verbs::grant_by_token(const Actor& presenter, const Value& args) {
  if (Status ok = args.only_keys({"token", "admission"}); !ok) return pass_on(ok);
  const Result<std::span<const uint8_t>> bytes = args.get_bytes("token");
  if (!bytes) return std::unexpected(bytes.error());
  const Result<token::Verified> grant = tokens_.judge(*bytes, token::Kind::grant, presenter);
  if (!grant) return std::unexpected(grant.error());
  const token::Claims& claims = grant->claims;
  const LeaseId id = tokens_.lease_of(grant->id);
  // Asked again, perhaps because the answer was lost: the same lease.
  if (tokens_.is_spent(*grant)) {
    if (node_.lease(id)) return with_use_token(id, claims.operations);
    return tokens_.refuse(token::Refusal::already_used, format_lease_id(id), presenter);
  }
  Result<std::optional<Scheduling>> admission = admission_of(presenter, args, *grant);
  if (!admission) return pass_on(admission);

  GrantRequest request;
  request.tenant = claims.tenant;
  request.endpoints.assign(claims.endpoints.begin(), claims.endpoints.end());
  request.egress.assign(claims.egress.begin(), claims.egress.end());
  const Result<Holder> holder = Tokens::holder_of(claims, presenter);
  if (!holder) return std::unexpected(holder.error());
  request.holder = *holder;
  if (!claims.peer.empty()) {
    const Result<Prefix> peer = parse_prefix(claims.peer);
    if (!peer) return std::unexpected(peer.error());
    request.peer = *peer;
  }
  // No lease outlives the token it was made by.
  request.ttl_ns = std::min(claims.ttl_s * ns_per_s, time_left_ns(*grant));

  bool spent = false;
  const auto spend = [&] {
    const Status ok = tokens_.spend(*grant);
    spent = ok.has_value();
    return ok;
  };
  const ByToken by_token{.id = id, .spend = spend, .admission = std::move(*admission)};
  bool taken = false;
  const auto next = [&](GrantRequest& out) -> Result<bool> {
    if (std::exchange(taken, true)) return false;
    out = request;
    return true;
  };
  const Result<Grant> granted =
      node_.grant({presenter.uid, true}, next, Tokens::origin_of(*grant), &by_token);
  if (granted) return with_use_token(id, claims.operations);
  if (spent) tokens_.take_back(*grant);
  return std::unexpected(granted.error());
}

Verbs::Answer Verbs::renew_by_token(const Actor& presenter, const Value& args) {
  if (Status ok = args.only_keys({"token"}); !ok) return pass_on(ok);
  const Result<std::span<const uint8_t>> bytes = args.get_bytes("token");
  if (!bytes) return std::unexpected(bytes.error());
  const Result<token::Verified> renewal = tokens_.judge(*bytes, token::Kind::renew, presenter);
  if (!renewal) return std::unexpected(renewal.error());
  const token::Claims& claims = renewal->claims;
  const LeaseId id = LeaseId::of(claims.lease->id);
  const Result<LeaseView> lease = node_.lease(id);
  // Of another tenant's lease not even its existence is told.
  if (!lease || lease->tenant != claims.tenant)
    return tokens_.refuse(token::Refusal::no_lease, format_lease_id(id), presenter);
  if (lease->generation != claims.lease->generation)
    return tokens_.refuse(
        token::Refusal::old_generation,
        fmt::format("generation {}, and it is at {}", claims.lease->generation, lease->generation),
        presenter);
  if (!presenter.operates && !presenter.is(lease->holder))
    return tokens_.refuse(token::Refusal::wrong_holder,
                          "the lease is " + holder_name(lease->holder), presenter);
  const uint64_t ttl_ns = std::min(claims.ttl_s * ns_per_s, time_left_ns(*renewal));
  const LeaseOrigin origin = Tokens::origin_of(*renewal);
  const Result<LeaseView> renewed =
      node_.renew({presenter.uid, true}, id, ttl_ns, claims.lease->generation, &origin);
  if (!renewed) return std::unexpected(renewed.error());
  return with_use_token(id, claims.operations);
}

}  // namespace holdfast
