#include "policy/text.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>

namespace holdfast {
namespace {

constexpr size_t quote_text_max = 80;
constexpr size_t word_max = 32;  // longer than any key; keeps nearest_word cheap for hostile text

// Levenshtein's distance, two adjacent letters swapped counting as one mistake too.
size_t mistakes(std::string_view a, std::string_view b) {
  std::array<std::array<size_t, word_max + 1>, word_max + 1> d{};
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t change = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string quote_text(std::string_view text) {
  std::string out = "\"";
  for (char c : text.substr(0, quote_text_max)) {
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  out += text.size() > quote_text_max ? "...\"" : "\"";
  return out;
}

std::string_view nearest_word(std::string_view text, std::span<const std::string_view> candidates) {
  std::string_view best;
  if (text.size() > word_max) return best;
  size_t best_mistakes = 3;
  for (std::string_view candidate : candidates) {
    if (candidate.size() > word_max) continue;
    size_t count = mistakes(text, candidate);
    // Half of a short word wrong is another word.
    if (count < best_mistakes && count * 2 < std::max(candidate.size(), text.size())) {
      best = candidate;
      best_mistakes = count;
    }
  }
  return best;
}

}  // namespace holdfast
