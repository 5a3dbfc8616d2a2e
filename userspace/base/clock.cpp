#include "userspace/base/clock.hpp"

#include <fmt/format.h>

namespace holdfast {

std::string rfc3339_utc(uint64_t wall_ns) {
  const time_t seconds = static_cast<time_t>(wall_ns / ns_per_s);
  tm parts{};
  ::gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     wall_ns % ns_per_s / ns_per_ms);
}

std::string human_duration(uint64_t ns) {
  if (ns < ns_per_s) return fmt::format("{}ms", ns / ns_per_ms);
  if (ns < 10 * ns_per_s)
    return fmt::format("{}.{}s", ns / ns_per_s, ns % ns_per_s / (100 * ns_per_ms));
  const uint64_t s = ns / ns_per_s;
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600)
    return s % 60 == 0 ? fmt::format("{}m", s / 60) : fmt::format("{}m{}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{}m", s / 3600, s % 3600 / 60);
  return fmt::format("{}d{}h", s / 86400, s % 86400 / 3600);
}

}  // namespace holdfast
