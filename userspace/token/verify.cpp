#include "userspace/token/verify.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "policy/decide.hpp"

namespace holdfast::token {
namespace {

std::unexpected<Refused> refuse(Refusal why, std::string detail = {}) {
  return std::unexpected(Refused{why, std::move(detail)});
}

bool allows(const std::vector<std::string>& names, std::string_view name) {
  return std::ranges::any_of(names,
                             [&](const std::string& each) { return each == "*" || each == name; });
}

Checked<void> check_key(const Anchor* anchor, const Head& head, const Revocations& revoked) {
  if (anchor == nullptr)
    return refuse(Refusal::unknown_key,
                  head.issuer == head.audience ? "not the one with which the node signs now" : "");
  if (!is_live(*anchor) || revoked.has_key(anchor->thumbprint))
    return refuse(Refusal::key_not_live);
  if (!anchor->for_tokens || (anchor->own && head.kind != Kind::use))
    return refuse(Refusal::key_not_for_tokens);
  if (anchor->issuer != head.issuer)
    return refuse(Refusal::wrong_issuer,
                  fmt::format("the key is of {}, the head says {}", anchor->issuer, head.issuer));
  return {};
}

Checked<void> check_times(const ClaimsView& claims, uint64_t now_s, uint64_t longest_s) {
  if (claims.issued_at > now_s + clock_skew_s)
    return refuse(Refusal::issued_in_future, fmt::format("in {} s", claims.issued_at - now_s));
  if (claims.not_before > now_s)
    return refuse(Refusal::not_yet_valid, fmt::format("in {} s", claims.not_before - now_s));
  if (claims.expires <= now_s)
    return refuse(Refusal::expired, fmt::format("{} s ago", now_s - claims.expires));
  if (claims.expires - claims.issued_at > longest_s || claims.ttl_s > longest_s)
    return refuse(
        Refusal::life_too_long,
        fmt::format("{} s, and the key's tokens may {}",
                    std::max(claims.expires - claims.issued_at, claims.ttl_s), longest_s));
  return {};
}

Checked<void> check_authority(const Anchor& anchor, const ClaimsView& claims) {
  if (!allows(anchor.tenants, claims.tenant))
    return refuse(Refusal::tenant_not_allowed, std::string(claims.tenant));
  std::string_view beyond;
  const bool all = claims.operations.all([&](std::string_view operation) {
    beyond = operation;
    return allows(anchor.operations, operation);
  });
  if (!all) return refuse(Refusal::operation_not_allowed, std::string(beyond));
  return {};
}

Checked<void> check_revocations(const Revocations& revoked, const Digest& leaf,
                                const ClaimsView& claims) {
  if (revoked.empty()) return {};
  if (revoked.has_token(leaf)) return refuse(Refusal::revoked, "the token");
  if (claims.holder_key || !claims.holder.empty()) {
    const std::string holder = claims.holder_key
                                   ? holder_name({Holder::Kind::key, 0, *claims.holder_key})
                                   : std::string(claims.holder);
    if (revoked.has_holder(holder)) return refuse(Refusal::revoked, "its holder, " + holder);
  }
  if (claims.issued_at < revoked.issued_before_s(claims.issuer, claims.tenant))
    return refuse(Refusal::revoked, "all that its issuer had issued by then");
  return {};
}

}  // namespace

Checked<const Anchor*> judge_head(const Head& head, const Anchors& anchors, const Place& place) {
  if (head.audience != place.node) return refuse(Refusal::wrong_audience, head.audience);
  if (head.epoch != place.epoch)
    return refuse(Refusal::stale_epoch,
                  fmt::format("epoch {}, and the node's is {}", head.epoch, place.epoch));
  const Anchor* anchor = anchors.find(head.key);
  if (Checked<void> ok = check_key(anchor, head, place.revoked); !ok)
    return std::unexpected(std::move(ok.error()));
  if (head.expires <= place.now_s)
    return refuse(Refusal::head_expired, fmt::format("{} s ago", place.now_s - head.expires));
  return anchor;
}

bool verify_root(const Anchor& anchor, Kind kind, std::span<const uint8_t> header,
                 const Digest& root, std::span<const uint8_t, 64> signature) {
  return verify_signature(anchor.key, signed_bytes(kind, header, root), signature);
}

Checked<void> judge_claims(std::span<const uint8_t> bytes, const Digest& leaf, Kind kind,
                           const Anchor& anchor, const Place& place, ClaimsView& claims) {
  if (Status ok = decode_claims(bytes, kind, claims); !ok)
    return refuse(Refusal::bad_claims, std::move(ok.error().message));
  // The head names the anchor's issuer and this node.
  if (claims.issuer != anchor.issuer || claims.audience != place.node)
    return refuse(Refusal::claims_differ);
  if (Checked<void> ok = check_times(claims, place.now_s, anchor.life_max_s); !ok) return ok;
  if (Checked<void> ok = check_authority(anchor, claims); !ok) return ok;
  return check_revocations(place.revoked, leaf, claims);
}

Checked<Verified> verify(std::span<const uint8_t> token, const Anchors& anchors,
                         const Place& place) {
  Checked<Parts> parts = take_apart(token);
  if (!parts) return std::unexpected(std::move(parts.error()));
  const Head& head = parts->head;
  const Checked<const Anchor*> anchor = judge_head(head, anchors, place);
  if (!anchor) return std::unexpected(anchor.error());
  const Digest leaf = leaf_hash(parts->claims);
  const std::optional<Digest> root =
      root_of_path(leaf, parts->index, head.tree_size, parts->path());
  if (!root) return refuse(Refusal::bad_proof);
  if (!verify_root(**anchor, head.kind, parts->header, *root, parts->signature))
    return refuse(Refusal::bad_signature);
  const Digest id = head_id(head.kind, parts->header, *root);
  if (place.revoked.has_head(id)) return refuse(Refusal::revoked, "its head");
  ClaimsView claims;
  if (Checked<void> ok = judge_claims(parts->claims, leaf, head.kind, **anchor, place, claims); !ok)
    return std::unexpected(std::move(ok.error()));
  return Verified{.head = head,
                  .claims = claims.copy(),
                  .id = leaf,
                  .head_id = id,
                  .expires_s = std::min(claims.expires, head.expires)};
}

}  // namespace holdfast::token
