#include <array>
#include <charconv>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"

namespace holdfast {
namespace {

struct Unit {
  std::string_view name;
  uint64_t ns;
};
// From large to small, the order in which they may follow one another.
constexpr std::array<Unit, 5> units{{{"d", 86400 * ns_per_s},
                                     {"h", 3600 * ns_per_s},
                                     {"m", 60 * ns_per_s},
                                     {"s", ns_per_s},
                                     {"ms", ns_per_ms}}};

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::unexpected<Error> bad_duration(std::string_view text, std::string_view why) {
  return fail(ErrorKind::invalid, "usage", fmt::format("\"{}\" is not a duration: {}", text, why),
              "write a number and its unit, such as 500ms, 90s, 5m or 2m30s");
}

// One "12.5s" at the front of `rest`, which it takes off; `unit_from` is where the next unit
// begins.
Result<uint64_t> take_part(std::string_view text, std::string_view& rest, size_t& unit_from) {
  size_t digits = 0;
  while (digits < rest.size() && is_digit(rest[digits])) ++digits;
  if (digits == 0) return bad_duration(text, "a number is missing");
  uint64_t whole = 0;
  if (std::from_chars(rest.begin(), rest.begin() + digits, whole).ec != std::errc())
    return bad_duration(text, "it is too long");
  rest.remove_prefix(digits);

  // Decimals as a fraction of 10^9, so that none of a millisecond's nanoseconds is lost.
  uint64_t fraction = 0;
  if (!rest.empty() && rest[0] == '.') {
    rest.remove_prefix(1);
    uint64_t place = ns_per_s / 10;
    size_t decimals = 0;
    for (; decimals < rest.size() && is_digit(rest[decimals]); ++decimals, place /= 10)
      fraction += static_cast<uint64_t>(rest[decimals] - '0') * place;
    if (decimals == 0 || decimals > 9) return bad_duration(text, "it takes one to nine decimals");
    rest.remove_prefix(decimals);
  }

  size_t letters = 0;
  while (letters < rest.size() && !is_digit(rest[letters])) ++letters;
  const std::string_view name = rest.substr(0, letters);
  rest.remove_prefix(letters);
  if (name.empty()) {
    return fail(ErrorKind::invalid, "usage", fmt::format("\"{}\" has no unit", text),
                fmt::format("say what it counts: {0}s is seconds, {0}m minutes, {0}ms milliseconds",
                            whole));
  }
  for (size_t i = 0; i < units.size(); ++i) {
    if (units[i].name != name) continue;
    if (i < unit_from) return bad_duration(text, "units go from large to small, each once");
    unit_from = i + 1;
    uint64_t ns = 0;
    if (__builtin_mul_overflow(whole, units[i].ns, &ns))
      return bad_duration(text, "it is too long");
    return ns + units[i].ns / 1000 * fraction / (ns_per_s / 1000);
  }
  return bad_duration(text, fmt::format("\"{}\" is no unit of time", name));
}

}  // namespace

Result<uint64_t> parse_duration(std::string_view text) {
  if (text.empty()) return bad_duration(text, "it is empty");
  if (text[0] == '-') return bad_duration(text, "it is negative");
  uint64_t total_ns = 0;
  size_t unit_from = 0;
  std::string_view rest = text;
  while (!rest.empty()) {
    Result<uint64_t> part = take_part(text, rest, unit_from);
    if (!part) return part;
    if (__builtin_add_overflow(total_ns, *part, &total_ns))
      return bad_duration(text, "it is too long");
  }
  return total_ns;
}

}  // namespace holdfast
