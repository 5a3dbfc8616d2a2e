// Values as people write and read them: durations, times, sizes, holders. Pure but for the time
// zone (localtime) and cgroup paths (stat). Errors are of kind `invalid`, code `usage`, unless
// said: they end as exit code 2.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/result.hpp"

namespace holdfast::cli {

// RFC 3339 UTC, as the daemon sends it, to nanoseconds since 1970.
std::optional<uint64_t> parse_rfc3339_utc(std::string_view text);

// In the machine's time zone: "2026-11-22 14:03:05". What is no such time comes back as it is.
std::string local_time(std::string_view rfc3339);
// The same without the day: "14:03:05.123".
std::string local_clock(std::string_view rfc3339);

// "0 B", "1.5 KiB", "32 MiB".
std::string human_bytes(uint64_t bytes);
// "1,000,000".
std::string human_count(uint64_t count);
// "1 lease", "2 leases", "no leases".
std::string count_of(uint64_t count, std::string_view one, std::string_view many);

// "uid:1000", "cgroup:4711" or "cgroup:/system.slice/web.service" to what the daemon takes:
// "uid:1000" or "cgroup:ID". A path is below the cgroup v2 mount, with or without it in front.
// Errors, besides usage: not_found / cgroup_missing, unsupported / no_cgroup2.
Result<std::string> parse_holder(std::string_view text);

}  // namespace holdfast::cli
