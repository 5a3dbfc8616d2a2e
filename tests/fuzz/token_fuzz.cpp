// Any bytes are refused, or are the one encoding of what they say; only what an issuer signed is
// good.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "userspace/base/check.hpp"
#include "userspace/token/verify.hpp"

namespace {

using namespace holdfast::token;

bool same(std::span<const uint8_t> left, std::span<const uint8_t> right) {
  return std::ranges::equal(left, right);
}

// The issuer, node and time of tests/vectors/tokens.json, whose tokens are the seeds.
const Anchors& anchors() {
  static const Anchors made = [] {
    std::array<uint8_t, 32> seed{};
    seed.fill(1);
    Anchor anchor;
    anchor.issuer = "cp.example";
    anchor.key = SecretKey::from_seed(seed).public_key();
    anchor.thumbprint = thumbprint(anchor.key);
    anchor.for_tokens = true;
    anchor.tenants = {"acme/shop/prod"};
    anchor.operations = {"connect"};
    Anchors one;
    one.add(std::move(anchor));
    return one;
  }();
  return made;
}

const Place& place() {
  static const Place made = [] {
    std::array<uint8_t, 32> seed{};
    seed.fill(9);
    return Place{.node = node_name(SecretKey::from_seed(seed).public_key()),
                 .epoch = 4,
                 .now_s = 1'800'000'000};
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> token(data, size);
  const Checked<Parts> parts = take_apart(token);
  const Checked<Verified> verified = verify(token, anchors(), place());
  if (!parts) {
    CHECK(!verified && verified.error().why == parts.error().why);
    return 0;
  }
  CHECK(same(encode_head(parts->head), parts->header));
  const holdfast::Result<ClaimsView> claims = decode_claims(parts->claims, parts->head.kind);
  if (claims) CHECK(same(*encode_claims(*claims, parts->head.kind), parts->claims));
  if (verified) CHECK(claims && *claims == verified->claims);
  CHECK(*from_text(to_text(token)) == std::vector<uint8_t>(token.begin(), token.end()));
  return 0;
}
