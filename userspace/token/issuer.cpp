#include "userspace/token/issuer.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>
#include <sys/random.h>

#include "policy/address.hpp"
#include "policy/holder.hpp"

namespace holdfast::token {
namespace {

std::vector<std::string> sorted(std::vector<std::string> names) {
  std::ranges::sort(names);
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

Result<TokenId> random_id() {
  TokenId id;
  if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size()))
    return fail_sys(errno, "random", "asking the kernel for random bytes");
  return id;
}

// What the request alone decides. The rest is checked where claims are encoded.
Result<Claims> claims_of(const TokenRequest& request, Kind kind) {
  if (!request.peer.empty())
    if (Result<Prefix> peer = parse_prefix(request.peer); !peer) return pass_on(peer, "the peer");
  if (!request.holder.empty())
    if (Result<Holder> holder = parse_holder_name(request.holder); !holder)
      return pass_on(holder, "the holder");
  Result<TokenId> id = random_id();
  if (!id) return pass_on(id);
  Claims claims;
  claims.id = *id;
  claims.tenant = request.tenant;
  claims.endpoints = sorted(request.endpoints);
  claims.egress = sorted(request.egress);
  claims.operations = sorted(request.operations);
  claims.peer = request.peer;
  claims.holder = request.holder;
  if (request.holder_key) claims.holder_key = thumbprint(*request.holder_key);
  if (kind != Kind::use) claims.ttl_s = request.ttl_s;
  claims.lease = request.lease;
  return claims;
}

}  // namespace

Result<std::vector<IssuedToken>> Issuer::issue(const Batch& batch,
                                               std::span<const TokenRequest> requests,
                                               uint64_t now_s) const {
  if (batch.life_s == 0 || batch.life_s > life_max_s)
    return fail(ErrorKind::invalid, "bad_life", fmt::format("a life of {} s", batch.life_s),
                fmt::format("1 to {} s", life_max_s));
  std::vector<Claims> all;
  all.reserve(requests.size());
  for (const TokenRequest& request : requests) {
    Result<Claims> claims = claims_of(request, batch.kind);
    if (!claims) return pass_on(claims, fmt::format("token {}", all.size() + 1));
    claims->issuer = name_;
    claims->audience = batch.node;
    claims->issued_at = now_s;
    claims->not_before = now_s - clock_skew_s;  // the node's clock may be behind this one
    claims->expires = now_s + batch.life_s;
    all.push_back(std::move(*claims));
  }
  Head head;
  head.kind = batch.kind;
  head.issuer = name_;
  head.audience = batch.node;
  head.expires = now_s + batch.life_s;
  head.epoch = batch.epoch;
  Result<std::vector<std::vector<uint8_t>>> tokens = token::issue(*key_, std::move(head), all);
  if (!tokens) return pass_on(tokens);
  std::vector<IssuedToken> issued;
  issued.reserve(all.size());
  for (size_t i = 0; i < all.size(); ++i)
    issued.push_back({std::move((*tokens)[i]), std::move(all[i])});
  return issued;
}

}  // namespace holdfast::token
