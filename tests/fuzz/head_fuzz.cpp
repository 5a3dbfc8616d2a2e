// Any bytes are refused as a token's header, or are the one encoding of what they say.
#include <cstddef>
#include <cstdint>
#include <span>

#include "tests/fuzz/issuer.hpp"
#include "userspace/base/check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::token;
  const std::span<const uint8_t> header(data, size);
  const Checked<Head> head = decode_head(header);
  if (!head) {
    CHECK(head.error().why <= Refusal::wrong_type);
    return 0;
  }
  CHECK(size <= header_bytes_max);
  CHECK(head->tree_size >= 1 && head->tree_size <= tree_size_max);
  CHECK(same(encode_head(*head), header));
  return 0;
}
