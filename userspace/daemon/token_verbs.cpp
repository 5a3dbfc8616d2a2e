// lease.grant and lease.renew by token: what Tokens believed becomes a lease, and a use token.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/verbs.hpp"
#include "userspace/token/proof.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t tenant_name_bytes_max = 256;

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
  if (Status ok = args.only_keys({"token"}); !ok) return pass_on(ok);
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
  const ByToken by_token{.id = id, .origin = Tokens::origin_of(*grant), .spend = [&] {
                           const Status ok = tokens_.spend(*grant);
                           spent = ok.has_value();
                           return ok;
                         }};
  bool taken = false;
  const auto next = [&](GrantRequest& out) -> Result<bool> {
    if (std::exchange(taken, true)) return false;
    out = request;
    return true;
  };
  const Result<Grant> granted = node_.grant({presenter.uid, true}, next, &by_token);
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

// ---- keys

Verbs::Answer Verbs::prove_key(wire::Peer& peer, const Value& args) const {
  if (Status ok = args.only_keys({"proof"}); !ok) return pass_on(ok);
  const Result<std::span<const uint8_t>> proof = args.get_bytes("proof");
  if (!proof) return std::unexpected(proof.error());
  if (peer.proved_key)
    return fail(ErrorKind::conflict, "already_proved", "this connection has proved a key already",
                "connect once for each key");
  const Result<token::Digest> key = token::check_proof(
      *proof, {.node = tokens_.node(), .epoch = tokens_.epoch(), .challenge = peer.challenge});
  if (!key) return std::unexpected(key.error());
  peer.proved_key = *key;
  return Value::map({{"holder", holder_name({Holder::Kind::key, 0, *key})}});
}

// ---- trust

// What trust.revoke and trust.restore are about.
Result<token::Revocation> Verbs::read_revocation(const Value& args) {
  if (Status ok = args.only_keys({"what", "tenant", "issued_before_s"}); !ok) return pass_on(ok);
  const Result<std::string_view> what = args.get_text("what");
  if (!what) return std::unexpected(what.error());
  Result<token::Revocation> revocation = token::parse_revocation(*what);
  if (!revocation) return revocation;
  const bool of_issuer = revocation->kind == token::Revocation::Kind::issuer;
  if (!of_issuer && (args.has("tenant") || args.has("issued_before_s")))
    return fail(ErrorKind::invalid, "bad_revocation",
                "a tenant or a time narrows what of an issuer is revoked, and nothing else",
                "leave it out, or name issuer:NAME");
  const Result<std::string_view> tenant = args.get_text_or("tenant", "");
  if (!tenant) return std::unexpected(tenant.error());
  if (tenant->size() > tenant_name_bytes_max)
    return fail(ErrorKind::invalid, "bad_revocation", "no tenant has a name that long",
                "holdfast tenant ls shows them");
  revocation->tenant = *tenant;
  // Of this second, too, since it is not over.
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  const Result<uint64_t> before = args.get_u64_or("issued_before_s", now_s + 1);
  if (!before) return std::unexpected(before.error());
  if (*before > now_s + token::life_max_s)
    return fail(ErrorKind::invalid, "bad_revocation", "that time is more than 5m ahead",
                "revoke the issuer's key: it stays revoked until it is restored");
  if (of_issuer) revocation->issued_before_s = *before;
  return revocation;
}

Verbs::Answer Verbs::trust_revoke(const wire::Peer& peer, const Value& args) {
  const Result<token::Revocation> revocation = read_revocation(args);
  if (!revocation) return std::unexpected(revocation.error());
  std::optional<uint64_t> tenant_id;
  if (!revocation->tenant.empty()) {
    const Tenant* tenant = node_.index().tenant(revocation->tenant);
    tenant_id = tenant != nullptr ? tenant->id : 0;  // no tenant has that
  }
  size_t ended = 0;
  const Status ok = tokens_.revoke(
      *revocation, [&] { ended = node_.revoke_all(tokens_.meant_by(*revocation, tenant_id)); });
  const std::string what = token::text_of(*revocation);
  log::notice(
      "trust_revoke",
      {{"what", what}, {"tenant", revocation->tenant}, {"leases_ended", ended}, {"uid", peer.uid}});
  if (!ok) return std::unexpected(ok.error());
  return Value::map({{"what", what}, {"leases_ended", ended}});
}

Verbs::Answer Verbs::trust_restore(const wire::Peer& peer, const Value& args) {
  const Result<token::Revocation> revocation = read_revocation(args);
  if (!revocation) return std::unexpected(revocation.error());
  if (Status ok = tokens_.restore(*revocation); !ok) return pass_on(ok);
  const std::string what = token::text_of(*revocation);
  log::notice("trust_restore", {{"what", what}, {"tenant", revocation->tenant}, {"uid", peer.uid}});
  return Value::map({{"what", what}});
}

}  // namespace holdfast
