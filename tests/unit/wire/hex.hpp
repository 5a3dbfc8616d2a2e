// Bytes written as the RFC's tables write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace holdfast::testing {

inline std::vector<uint8_t> from_hex(std::string_view hex) {
  std::vector<uint8_t> out;
  unsigned half = 0;
  bool odd = false;
  for (const char c : hex) {
    if (c == ' ') continue;
    const unsigned digit = static_cast<unsigned>(c <= '9' ? c - '0' : c - 'a' + 10);
    if (odd) out.push_back(static_cast<uint8_t>(half << 4 | digit));
    half = digit;
    odd = !odd;
  }
  return out;
}

inline std::string to_hex(const std::vector<uint8_t>& bytes) {
  std::string out;
  for (const uint8_t byte : bytes) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 0xf];
  }
  return out;
}

}  // namespace holdfast::testing
