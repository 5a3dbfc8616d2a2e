// Of any bytes only the one proof that the key can have made for this connection is good. Each is
// judged as it is, and once more with the key and the signature that belong to it, so that the
// search gets behind both.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tests/fuzz/issuer.hpp"
#include "userspace/base/check.hpp"
#include "userspace/token/proof.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::token;
  const ProofPlace here{.node = "ni:///sha-256;node", .epoch = 4, .challenge = {7}};
  const std::span<const uint8_t> proof(data, size);
  static const std::vector<uint8_t> right = *make_proof(issuer_key(), here);
  const holdfast::Result<Digest> key = check_proof(proof, here);
  CHECK(!key || size == right.size());
  if (size < sizeof(Signature)) return 0;
  // The signature is the last thing; the payload stands before it as in the right one.
  std::vector<uint8_t> resigned(proof.begin(), proof.end());
  std::copy(right.end() - sizeof(Signature), right.end(), resigned.end() - sizeof(Signature));
  CHECK(check_proof(resigned, here).has_value() == same(resigned, right));
  return 0;
}
