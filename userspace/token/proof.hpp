// Proof of a holder's key, once for a connection: the key signs what the node said at its
// beginning. README.md has the format. Pure.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"

namespace holdfast::token {

using Challenge = std::array<uint8_t, 32>;

// What the node said in its hello.
struct ProofPlace {
  std::string_view node;
  uint64_t epoch = 0;
  Challenge challenge{};
};

// Errors: those of sign_plainly().
Result<std::vector<uint8_t>> make_proof(const Signer& signer, const ProofPlace& place);

// The thumbprint of the key that was proved. Errors: invalid / malformed_proof; denied /
// bad_signature; denied / wrong_challenge when it was made for another connection, node or epoch.
Result<Digest> check_proof(std::span<const uint8_t> proof, const ProofPlace& place);
// The same, once for a connection: `proved` is the key that it has proved. Errors also: conflict /
// already_proved.
Result<Digest> prove_once(std::optional<Digest>& proved, std::span<const uint8_t> proof,
                          const ProofPlace& place);

}  // namespace holdfast::token
