// The clocks Holdfast reads. Deadlines are CLOCK_BOOTTIME, which counts suspend, read the way the
// kernel reads it (TRAPS: a time namespace would shift it; the daemon refuses to run in one). Wall
// time is only for people. Code that decides takes `now` as an argument; only edges call these.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <time.h>

#include "userspace/base/result.hpp"

namespace holdfast {

constexpr uint64_t ns_per_s = 1'000'000'000;
constexpr uint64_t ns_per_ms = 1'000'000;

inline uint64_t read_clock_ns(clockid_t clock) {
  timespec ts{};
  ::clock_gettime(clock, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * ns_per_s + static_cast<uint64_t>(ts.tv_nsec);
}

inline uint64_t boot_now_ns() {
  return read_clock_ns(CLOCK_BOOTTIME);
}
inline uint64_t wall_now_ns() {
  return read_clock_ns(CLOCK_REALTIME);
}

// RFC 3339, UTC, milliseconds: "2026-11-22T02:04:51.123Z".
std::string rfc3339_utc(uint64_t wall_ns);

// "4m12s", "1.5s", "300ms": the form flags accept and tables print.
std::string human_duration(uint64_t ns);

// "90s", "5m", "500ms", "1.5s", "2m30s": numbers with units from large to small, each at most once
// (d, h, m, s, ms). A bare number is refused, since 90 could mean anything.
Result<uint64_t> parse_duration(std::string_view text);

}  // namespace holdfast
