// Any bytes are either refused or the one encoding of what they decode to.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "userspace/base/check.hpp"
#include "userspace/wire/cbor.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::cbor;
  const std::span<const uint8_t> input(data, size);
  const holdfast::Result<Value> value = decode(input);

  Reader in(input);
  in.skip();
  const bool skipped = in.finish();
  if (!value) {
    CHECK(value.error().code == "malformed_cbor");
    // It may still be well formed: a Reader takes integer and byte-string keys, a Value has text
    // keys.
    return 0;
  }
  CHECK(skipped);
  const std::vector<uint8_t> again = encode(*value);
  CHECK(again.size() == size && std::equal(again.begin(), again.end(), data));
  CHECK(*decode(again) == *value);
  CHECK(is_utf8(to_json(*value)));
  return 0;
}
