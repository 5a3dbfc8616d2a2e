#include "userspace/cli/human.hpp"

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <ctime>

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "userspace/base/clock.hpp"
#include "userspace/doctor/cgroup2.hpp"

namespace holdfast::cli {
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

std::string format_local(uint64_t wall_ns, const char* format) {
  const time_t seconds = static_cast<time_t>(wall_ns / ns_per_s);
  tm parts{};
  ::localtime_r(&seconds, &parts);
  std::array<char, 64> text{};
  const size_t length = std::strftime(text.data(), text.size(), format, &parts);
  return {text.data(), length};
}

Result<uint64_t> cgroup_id(const std::string& given) {
  const std::string mount = cgroup2_mount();
  if (mount.empty()) {
    return fail(ErrorKind::unsupported, "no_cgroup2", "cgroup v2 is not mounted on this machine",
                "mount it (mount -t cgroup2 none /sys/fs/cgroup), or give the holder as uid:N");
  }
  const bool whole = given == mount || given.starts_with(mount + "/");
  const std::string path = whole ? given : mount + given;
  struct stat info{};
  struct statfs fs{};
  if (::stat(path.c_str(), &info) != 0 || ::statfs(path.c_str(), &fs) != 0) {
    return std::unexpected(Error{ErrorKind::not_found, "cgroup_missing", errno,
                                 fmt::format("cgroup {}", path),
                                 "see what there is: systemd-cgls, or ls " + mount});
  }
  if (static_cast<unsigned long>(fs.f_type) != CGROUP2_SUPER_MAGIC || !S_ISDIR(info.st_mode)) {
    return fail(ErrorKind::invalid, "usage", fmt::format("{} is not a cgroup", path),
                "give a directory below " + mount);
  }
  return static_cast<uint64_t>(info.st_ino);  // on a 64-bit kernel the cgroup's id
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

std::optional<uint64_t> parse_rfc3339_utc(std::string_view text) {
  tm parts{};
  int length = 0;
  const std::string copy(text);
  if (std::sscanf(copy.c_str(), "%4d-%2d-%2dT%2d:%2d:%2d%n", &parts.tm_year, &parts.tm_mon,
                  &parts.tm_mday, &parts.tm_hour, &parts.tm_min, &parts.tm_sec, &length) != 6) {
    return std::nullopt;
  }
  std::string_view rest = text.substr(static_cast<size_t>(length));
  uint64_t fraction_ns = 0;
  if (rest.starts_with('.')) {
    uint64_t place = ns_per_s / 10;
    for (rest.remove_prefix(1); !rest.empty() && is_digit(rest[0]); rest.remove_prefix(1)) {
      fraction_ns += static_cast<uint64_t>(rest[0] - '0') * place;
      place /= 10;
    }
  }
  if (rest != "Z") return std::nullopt;
  parts.tm_year -= 1900;
  parts.tm_mon -= 1;
  const time_t seconds = ::timegm(&parts);
  if (seconds < 0) return std::nullopt;
  return static_cast<uint64_t>(seconds) * ns_per_s + fraction_ns;
}

std::string local_time(std::string_view rfc3339) {
  const std::optional<uint64_t> wall_ns = parse_rfc3339_utc(rfc3339);
  return wall_ns ? format_local(*wall_ns, "%Y-%m-%d %H:%M:%S") : std::string(rfc3339);
}

std::string local_clock(std::string_view rfc3339) {
  const std::optional<uint64_t> wall_ns = parse_rfc3339_utc(rfc3339);
  if (!wall_ns) return std::string(rfc3339);
  return fmt::format("{}.{:03}", format_local(*wall_ns, "%H:%M:%S"),
                     *wall_ns % ns_per_s / ns_per_ms);
}

std::string human_bytes(uint64_t bytes) {
  constexpr std::array<std::string_view, 6> names{"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  size_t name = 0;
  while (value >= 1024 && name + 1 < names.size()) {
    value /= 1024;
    ++name;
  }
  const bool round =
      name == 0 || value >= 100 || value == static_cast<double>(static_cast<uint64_t>(value));
  return round ? fmt::format("{:.0f} {}", value, names[name])
               : fmt::format("{:.1f} {}", value, names[name]);
}

std::string human_count(uint64_t count) {
  const std::string digits = fmt::format("{}", count);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i != 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string count_of(uint64_t count, std::string_view one, std::string_view many) {
  if (count == 0) return fmt::format("no {}", many);
  return fmt::format("{} {}", human_count(count), count == 1 ? one : many);
}

std::string hex(std::span<const uint8_t> bytes) {
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

Result<std::string> parse_holder(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view value = colon == text.npos ? std::string_view() : text.substr(colon + 1);
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(value.begin(), value.end(), number);
  const bool is_number = error == std::errc() && end == value.end();
  if (kind == "uid" && is_number && number < UINT32_MAX) return fmt::format("uid:{}", number);
  if (kind == "cgroup" && is_number && number != 0) return fmt::format("cgroup:{}", number);
  if (kind == "cgroup" && value.starts_with('/')) {
    Result<uint64_t> id = cgroup_id(std::string(value));
    if (!id) return pass_on(id);
    return fmt::format("cgroup:{}", *id);
  }
  return fail(ErrorKind::invalid, "usage", fmt::format("\"{}\" is not a holder", text),
              "write uid:1000, or cgroup:/system.slice/web.service");
}

}  // namespace holdfast::cli
