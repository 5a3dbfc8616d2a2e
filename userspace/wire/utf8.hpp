// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace holdfast::cbor {

// The length of the well-formed sequence at `at`, or 0.
inline size_t utf8_sequence(const uint8_t* at, size_t left) {
  const uint8_t first = at[0];
  if (first < 0x80) return 1;
  size_t size = 0;
  uint8_t low = 0x80;  // bounds of the second byte; they exclude overlong forms and surrogates
  uint8_t high = 0xbf;
  if (first >= 0xc2 && first <= 0xdf) {
    size = 2;
  } else if (first >= 0xe0 && first <= 0xef) {
    size = 3;
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f;
  } else if (first >= 0xf0 && first <= 0xf4) {
    size = 4;
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
  }
  if (size == 0 || left < size || at[1] < low || at[1] > high) return 0;
  for (size_t i = 2; i < size; ++i) {
    if ((at[i] & 0xc0) != 0x80) return 0;
  }
  return size;
}

inline bool is_ascii(std::string_view text) {
  constexpr uint64_t high_bits = 0x8080808080808080;
  if (text.size() < sizeof(uint64_t)) {
    uint8_t any = 0;
    for (const char each : text) any |= static_cast<uint8_t>(each);
    return any < 0x80;
  }
  const auto word_at = [&](size_t at) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + at, sizeof word);
    return word;
  };
  const size_t last = text.size() - sizeof(uint64_t);  // it may overlap the one before
  uint64_t any = word_at(last);
  for (size_t i = 0; i < last; i += sizeof(uint64_t)) any |= word_at(i);
  return (any & high_bits) == 0;
}

// How many bytes from the start are well-formed. Nearly all text is ASCII, which takes no branches.
inline size_t utf8_valid_prefix(std::string_view text) {
  if (is_ascii(text)) return text.size();
  const auto* at = reinterpret_cast<const uint8_t*>(text.data());
  size_t i = 0;
  while (i < text.size()) {
    if (text.size() - i >= 8) {
      uint64_t word = 0;
      std::memcpy(&word, at + i, sizeof word);
      if ((word & 0x8080808080808080) == 0) {
        i += 8;
        continue;
      }
    }
    const size_t size = utf8_sequence(at + i, text.size() - i);
    if (size == 0) break;
    i += size;
  }
  return i;
}

// The text with each byte that does not belong to a well-formed sequence replaced by U+FFFD.
inline std::string repaired_utf8(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t good = utf8_valid_prefix(text);
    out.append(text.substr(0, good));
    text.remove_prefix(good);
    if (text.empty()) break;
    out.append("\xef\xbf\xbd");
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace holdfast::cbor
