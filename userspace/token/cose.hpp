// COSE_Sign1 (RFC 9052, 4.2), untagged, with nothing in its unprotected header. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"

namespace holdfast::token {

// The views are of the bytes that it was taken from.
struct Sign1 {
  std::span<const uint8_t> header;
  std::span<const uint8_t> payload;
  std::span<const uint8_t> signature;
};

std::vector<uint8_t> encode_sign1(const Sign1& parts);
// Errors: invalid / malformed_cbor.
Result<Sign1> take_sign1(std::span<const uint8_t> bytes, size_t bytes_max);

// What is signed: the Sig_structure, with the context as external_aad.
std::vector<uint8_t> sig_structure(std::span<const uint8_t> header, std::string_view context,
                                   std::span<const uint8_t> payload);

}  // namespace holdfast::token
