// Small text helpers for messages.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace holdfast {

// Text of unknown origin inside a message: in double quotes, printable ASCII only (other letters
// can look like ones they are not, or turn the line around), and cut after 80 bytes.
std::string quote_text(std::string_view text);

// The candidate that is a typing mistake or two away from `text`, or empty. For "did you mean".
std::string_view nearest_word(std::string_view text, std::span<const std::string_view> candidates);

}  // namespace holdfast
