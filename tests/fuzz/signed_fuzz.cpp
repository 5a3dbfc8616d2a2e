// Of any bytes only what the key signed for this purpose is opened. Each is judged as it is, and
// once more under a good signature, so that the search gets behind it: then what was opened is what
// was signed, and what is packed unpacks to what it says, within bounds.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tests/fuzz/issuer.hpp"
#include "userspace/base/check.hpp"
#include "userspace/token/signed.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::token;
  const std::span<const uint8_t> bytes(data, size);
  for (const Purpose purpose : {Purpose::request, Purpose::bundle, Purpose::operator_grant,
                                Purpose::enrollment, Purpose::epoch_key, Purpose::report,
                                Purpose::notice, Purpose::preempt, Purpose::admission}) {
    const auto object = take_apart_signed(bytes, purpose);
    if (!object) continue;
    // No input was signed by this key.
    CHECK(!is_signed_by({key_of(5).public_key()}, purpose, *object));
    std::vector<uint8_t> storage;
    const auto content = content_of(*object, storage);
    if (!content) continue;
    CHECK(content->size() <= (object->header.unpacked_bytes ? unpacked_bytes_max : size));
    const SecretKey signer = key_of(3);
    const auto again = make_signed(signer, purpose, object->header, *content);
    CHECK(again.has_value());
    const auto opened = take_apart_signed(*again, purpose);
    CHECK(opened.has_value());
    CHECK(is_signed_by({key_of(3).public_key()}, purpose, *opened));
    CHECK(same(opened->payload, *content));
    // No other object has the same header and payload: what is malleable is the signature alone.
    if (!object->header.unpacked_bytes && object->header.key == signer.key() &&
        object->header.algorithm == Algorithm::ed25519 &&
        ((purpose != Purpose::enrollment && purpose != Purpose::epoch_key) ||
         object->header.root == SignerKey{signer.public_key(), ""}) &&
        object->signature.size() == sizeof(Signature))
      CHECK(same(std::span(*again).first(again->size() - sizeof(Signature)),
                 bytes.first(again->size() - sizeof(Signature))));
  }
  return 0;
}
