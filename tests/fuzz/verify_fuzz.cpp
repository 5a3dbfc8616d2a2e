// Only what the issuer signed is good; and of what it signed, whatever it is, only what README.md
// of userspace/token allows. Each token is judged as it is, and once more with the signature that
// belongs to it, so that the search gets behind that.
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tests/fuzz/issuer.hpp"
#include "userspace/base/check.hpp"
#include "userspace/token/checker.hpp"

namespace {

using namespace holdfast::token;

bool in_force(const Head& head, const Claims& claims) {
  const uint64_t now_s = place().now_s;
  return head.audience == place().node && head.epoch == place().epoch &&
         head.key == thumbprint(issuer_key().public_key()) && head.issuer == "cp.example" &&
         head.expires > now_s && claims.issuer == head.issuer && claims.audience == head.audience &&
         claims.issued_at <= now_s + 30 && claims.not_before <= now_s && claims.expires > now_s &&
         claims.expires <= claims.issued_at + 300 && claims.tenant == "acme/shop/prod" &&
         std::ranges::all_of(claims.operations, [](const auto& each) { return each == "connect"; });
}

std::optional<Refusal> fast_refusal(std::span<const uint8_t> token) {
  static Checker checker(64, 64);
  static const Beliefs beliefs = [] {
    Beliefs made;
    made.node = place().node;
    made.epoch = place().epoch;
    made.anchors = anchors();
    return made;
  }();
  const Checked<Parts> parts = take_apart(token);
  std::vector<uint8_t> path;
  for (const Digest& node : parts->path()) path.insert(path.end(), node.begin(), node.end());
  FramedHead head{.header = parts->header, .signature = parts->signature};
  std::array<Item, 1> batch;
  batch[0].head = &head;
  batch[0].index = parts->index;
  batch[0].path = path;
  batch[0].claims = parts->claims;
  checker.check(batch, beliefs, place().now_s);
  if (batch[0].verdict) return std::nullopt;
  return batch[0].verdict.error().why;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> token(data, size);
  const Checked<Parts> parts = take_apart(token);
  if (!parts) return 0;
  const Head& head = parts->head;
  const Digest leaf = leaf_hash(parts->claims);
  const std::optional<Digest> root =
      root_of_path(leaf, parts->index, head.tree_size, parts->path());
  CHECK(root);  // taking it apart has seen to the path's length
  // Ed25519 is deterministic: there is one signature that the issuer can have made.
  const Signature right =
      *sign_plainly(issuer_key(), signed_bytes(head.kind, parts->header, *root));
  if (verify(token, anchors(), place())) CHECK(same(parts->signature, right));

  std::vector<uint8_t> signed_token(token.begin(), token.end());
  std::ranges::copy(right, signed_token.begin() + (parts->signature.data() - data));
  const Checked<Verified> verified = verify(signed_token, anchors(), place());
  const holdfast::Result<ClaimsView> claims = decode_claims(parts->claims, head.kind);
  CHECK(verified.has_value() == (claims && in_force(head, claims->copy())));
  // The fast way says the same, whatever it remembers of the inputs before.
  CHECK(fast_refusal(signed_token) ==
        (verified ? std::nullopt : std::optional(verified.error().why)));
  if (!verified) return 0;
  CHECK(verified->head == head && verified->claims == claims->copy() && verified->id == leaf);
  CHECK(verified->expires_s == std::min(head.expires, claims->expires));
  return 0;
}
