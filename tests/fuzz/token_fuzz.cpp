// Any bytes are refused, or are the one encoding of what they say.
#include <cstddef>
#include <cstdint>
#include <span>

#include "tests/fuzz/issuer.hpp"
#include "userspace/base/check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::token;
  const std::span<const uint8_t> token(data, size);
  const Checked<Parts> parts = take_apart(token);
  const Checked<Verified> verified = verify(token, anchors(), place());
  if (!parts) {
    CHECK(!verified && verified.error().why == parts.error().why);
    return 0;
  }
  CHECK(same(encode_head(parts->head), parts->header));
  const holdfast::Result<ClaimsView> claims = decode_claims(parts->claims, parts->head.kind);
  if (claims) CHECK(same(*encode_claims(claims->copy(), parts->head.kind), parts->claims));
  if (verified) CHECK(claims && claims->copy() == verified->claims);
  CHECK(*from_text(to_text(token)) == std::vector<uint8_t>(token.begin(), token.end()));
  return 0;
}
