// Any bytes are refused as a file of revocations, or are the one encoding of what they say. The
// list itself is searched too, under a sum that is right.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tests/fuzz/issuer.hpp"
#include "userspace/base/check.hpp"
#include "userspace/token/revocations.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::token;
  const std::span<const uint8_t> list(data, size);
  CHECK(!Revocations::decode(list) || size > sizeof(Digest));
  std::vector<uint8_t> file;
  holdfast::cbor::Writer(file).array(2).bytes(sha256(list)).bytes(list).end();
  const holdfast::Result<Revocations> read = Revocations::decode(file);
  if (!read) return 0;
  CHECK(read->all().size() <= revocations_max);
  CHECK(same(read->encode(), file));
  return 0;
}
