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

#include "policy/decide.hpp"
#include "userspace/base/cgroup2.hpp"
#include "userspace/base/clock.hpp"

namespace holdfast::cli {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
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

Result<std::string> parse_holder(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view value = colon == text.npos ? std::string_view() : text.substr(colon + 1);
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(value.begin(), value.end(), number);
  const bool is_number = error == std::errc() && end == value.end();
  if (kind == "uid" && is_number && number < UINT32_MAX) return fmt::format("uid:{}", number);
  if (kind == "cgroup" && is_number && number != 0) return fmt::format("cgroup:{}", number);
  if (kind == "key") {
    const Result<Holder> key = parse_holder_name(text);
    if (key) return holder_name(*key);
  }
  if (kind == "cgroup" && value.starts_with('/')) {
    Result<uint64_t> id = cgroup_id(std::string(value));
    if (!id) return pass_on(id);
    return fmt::format("cgroup:{}", *id);
  }
  return fail(ErrorKind::invalid, "usage", fmt::format("\"{}\" is not a holder", text),
              "write uid:1000, cgroup:/system.slice/web.service, or key: and a thumbprint");
}

}  // namespace holdfast::cli
