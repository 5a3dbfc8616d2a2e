// Signed objects: content under a key's signature, for one purpose (COSE_Sign1, RFC 9052).
// README.md has the format. Pure, apart from who signs.
//
// Whoever takes one apart has read the bounded header and nothing else; content() is for after the
// signature.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"
#include "userspace/token/proof.hpp"
#include "userspace/token/ssh_key.hpp"

namespace holdfast::token {

constexpr size_t signed_header_bytes_max = 1024;
// What a compressed content may become: a policy of the largest size, three times over.
constexpr uint64_t unpacked_bytes_max = 48ULL << 20;

// A signature for one is none for another: each has a type and a context of its own.
enum class Purpose : uint8_t {
  request,         // what control.sock is asked to do, on one connection
  bundle,          // the desired state of a node, delivered by anybody
  operator_grant,  // what a person's key may ask for, for some hours
  enrollment,      // the first bundle of a node, for what it asked by `enroll begin`
  epoch_key,       // with what a node signs, by the key that it is named for
  report,          // what a node has and is, for who asked
  notice,          // what happens on a node, a frame of a stream for who asked
  preempt,         // that a lease has to end, by a scheduler
  admission,       // that a grant token may be used, by a scheduler
};
constexpr size_t purposes = 9;
std::string_view name_of(Purpose purpose);

struct SignedHeader {
  Algorithm algorithm = Algorithm::ed25519;
  Digest key{};          // the signer's thumbprint
  std::string audience;  // the node's name; of reports and notices, whom it is for
  uint64_t issued_s = 0;
  // Of requests and notices; of a node's epoch key and reports the first, of reports the challenge
  // too.
  uint64_t epoch = 0;
  Challenge challenge{};
  uint64_t sequence = 0;
  // Of what is kept until it is used.
  uint64_t expires_s = 0;
  // Of bundles and enrollments.
  uint64_t generation = 0;
  // Of enrollments: the request's, and the key that signs, of which the node knows the thumbprint.
  // Of epoch keys the latter: the node's name is its thumbprint.
  Digest nonce{};
  SignerKey root = {};
  std::vector<uint8_t> certificate = {};  // of reports and notices: of the epoch key that signs

  std::optional<uint64_t> unpacked_bytes = {};  // of a content that is compressed (zstd)

  bool operator==(const SignedHeader&) const = default;
};

// An object taken apart; the views are of its bytes.
struct SignedObject {
  SignedHeader header;
  std::span<const uint8_t> header_bytes;
  std::span<const uint8_t> payload;
  std::span<const uint8_t> signature;
};

// `header.key`, and of enrollments and epoch keys `root`, are taken from the signer. A content from
// `pack_from` bytes on is compressed, if that makes it smaller.
Result<std::vector<uint8_t>> make_signed(const Signer& signer, Purpose purpose, SignedHeader header,
                                         std::span<const uint8_t> content,
                                         size_t pack_from = SIZE_MAX);

// Errors: invalid / malformed_signed; denied / wrong_purpose.
Result<SignedObject> take_apart_signed(std::span<const uint8_t> bytes, Purpose purpose);
bool is_signed_by(const SignerKey& key, Purpose purpose, const SignedObject& object);
// The content: the payload, or what it unpacks to, in `storage`. Errors: invalid / bad_packing.
Result<std::span<const uint8_t>> content_of(const SignedObject& object,
                                            std::vector<uint8_t>& storage,
                                            uint64_t bytes_max = unpacked_bytes_max);

}  // namespace holdfast::token
