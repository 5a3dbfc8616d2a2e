// SHA-256 (FIPS 180-4) by the CPU's own instructions where it has them, else in portable code. Own
// code because a token is one leaf and a few nodes of hashing: what a library does around it would
// cost as much as the hash.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace holdfast::token {

using Digest = std::array<uint8_t, 32>;

// Of all parts, one after the other.
Digest sha256(std::initializer_list<std::span<const uint8_t>> parts);
inline Digest sha256(std::span<const uint8_t> bytes) {
  return sha256({bytes});
}

// Two at once. The CPU's instructions wait for one another within a message; two messages fill the
// gaps.
void sha256_two(std::initializer_list<std::span<const uint8_t>> a, Digest& a_digest,
                std::initializer_list<std::span<const uint8_t>> b, Digest& b_digest);

// Which code runs, chosen at the first use: "sha-ni" or "portable".
std::string_view sha256_code();

// For tests: both must give the same. `blocks` is whole blocks of 64 bytes.
using Sha256State = std::array<uint32_t, 8>;
void sha256_portable(Sha256State& state, std::span<const uint8_t> blocks);

}  // namespace holdfast::token
