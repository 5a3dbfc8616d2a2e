// Clocks: what people read, and the one clock deadlines are kept in.
#include "userspace/base/clock.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

namespace holdfast {
namespace {

TEST(Clock, DurationsReadAsFlagsAreWritten) {
  struct Case {
    uint64_t ns;
    const char* text;
  };
  const Case cases[] = {
      {0, "0ms"},
      {999'999, "0ms"},
      {1 * ns_per_ms, "1ms"},
      {300 * ns_per_ms, "300ms"},
      {999 * ns_per_ms, "999ms"},
      {1 * ns_per_s, "1.0s"},
      {1'500 * ns_per_ms, "1.5s"},
      {9'999 * ns_per_ms, "9.9s"},  // cut, not rounded: never more time than there is
      {10 * ns_per_s, "10s"},
      {59 * ns_per_s, "59s"},
      {60 * ns_per_s, "1m"},
      {252 * ns_per_s, "4m12s"},
      {300 * ns_per_s, "5m"},
      {3'599 * ns_per_s, "59m59s"},
      {3'600 * ns_per_s, "1h0m"},
      {86'399 * ns_per_s, "23h59m"},
      {86'400 * ns_per_s, "1d0h"},
      {400 * 86'400 * ns_per_s, "400d0h"},
  };
  for (const Case& c : cases) EXPECT_EQ(human_duration(c.ns), c.text) << c.ns;
}

TEST(Clock, WallTimeIsRfc3339InUtc) {
  struct Case {
    uint64_t wall_ns;
    const char* text;
  };
  const Case cases[] = {
      {0, "1970-01-01T00:00:00.000Z"},
      {999 * ns_per_ms, "1970-01-01T00:00:00.999Z"},
      {951'782'400 * ns_per_s, "2000-02-29T00:00:00.000Z"},  // a leap day
      {1'795'313'091 * ns_per_s + 123'999'999, "2026-11-22T02:04:51.123Z"},
      {2'147'483'648 * ns_per_s, "2038-01-19T03:14:08.000Z"},  // past 31 bits
      {4'294'967'296 * ns_per_s, "2106-02-07T06:28:16.000Z"},  // past 32 bits
  };
  for (const Case& c : cases) EXPECT_EQ(rfc3339_utc(c.wall_ns), c.text) << c.wall_ns;
}

TEST(Clock, WallTimeDoesNotFollowTheLocalZone) {
  const char* before = std::getenv("TZ");
  const std::string saved = before != nullptr ? before : "";
  ::setenv("TZ", "Pacific/Kiritimati", 1);  // UTC+14
  ::tzset();
  EXPECT_EQ(rfc3339_utc(0), "1970-01-01T00:00:00.000Z");
  if (before != nullptr) {
    ::setenv("TZ", saved.c_str(), 1);
  } else {
    ::unsetenv("TZ");
  }
  ::tzset();
}

TEST(Clock, BootTimeIsTheKernelsBoottimeAndDoesNotGoBack) {
  const uint64_t low = read_clock_ns(CLOCK_BOOTTIME);
  const uint64_t now = boot_now_ns();
  const uint64_t high = read_clock_ns(CLOCK_BOOTTIME);
  EXPECT_LE(low, now);
  EXPECT_LE(now, high);
  // BOOTTIME includes suspend, MONOTONIC does not: it can only be ahead.
  EXPECT_GE(high, read_clock_ns(CLOCK_MONOTONIC) - ns_per_s);
}

}  // namespace
}  // namespace holdfast
