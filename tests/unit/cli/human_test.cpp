// Durations, times and holders as people write them.
#include "userspace/cli/human.hpp"

#include <cstdlib>

#include <gtest/gtest.h>

#include "userspace/base/clock.hpp"

namespace holdfast::cli {
namespace {

struct GoodDuration {
  const char* text;
  uint64_t ns;
};

TEST(Duration, Good) {
  for (const GoodDuration& each : {
           GoodDuration{"90s", 90 * ns_per_s},
           {"5m", 300 * ns_per_s},
           {"500ms", 500 * ns_per_ms},
           {"1h", 3600 * ns_per_s},
           {"1d", 86400 * ns_per_s},
           {"0s", 0},
           {"2m30s", 150 * ns_per_s},
           {"1m1s1ms", 61 * ns_per_s + ns_per_ms},
           {"1.5s", 1'500 * ns_per_ms},
           {"0.25m", 15 * ns_per_s},
           {"1.000000001s", ns_per_s + 1},
           {"00010s", 10 * ns_per_s},
       }) {
    const Result<uint64_t> ns = parse_duration(each.text);
    ASSERT_TRUE(ns) << each.text << ": " << ns.error().text();
    EXPECT_EQ(*ns, each.ns) << each.text;
  }
}

TEST(Duration, WhatTablesPrintIsWhatFlagsTake) {
  for (const uint64_t ns : {30 * ns_per_ms, ns_per_s, 1'500 * ns_per_ms, 59 * ns_per_s,
                            252 * ns_per_s, 300 * ns_per_s, 3'660 * ns_per_s}) {
    const Result<uint64_t> back = parse_duration(human_duration(ns));
    ASSERT_TRUE(back) << human_duration(ns);
    EXPECT_EQ(*back, ns);
  }
}

struct BadDuration {
  const char* text;
  const char* says;
};

TEST(Duration, Bad) {
  for (const BadDuration& each : {
           BadDuration{"90", "has no unit"},
           {"0", "has no unit"},
           {"2m30", "has no unit"},
           {"", "empty"},
           {"-5s", "negative"},
           {"s", "number is missing"},
           {".5s", "number is missing"},
           {"5 s", "no unit of time"},
           {"5sec", "no unit of time"},
           {"5S", "no unit of time"},
           {"5us", "no unit of time"},
           {"30s2m", "from large to small"},
           {"1s1s", "from large to small"},
           {"1.s", "decimals"},
           {"1.0000000001s", "decimals"},
           {"99999999999999999999s", "too long"},
           {"999999999999d", "too long"},
           {"1e3s", "no unit of time"},
       }) {
    const Result<uint64_t> ns = parse_duration(each.text);
    ASSERT_FALSE(ns) << each.text;
    EXPECT_EQ(ns.error().code, "usage");
    EXPECT_NE(ns.error().message.find(each.says), std::string::npos) << ns.error().message;
    EXPECT_FALSE(ns.error().next_step.empty()) << each.text;
  }
}

TEST(Times, LocalFromUtc) {
  ::setenv("TZ", "UTC-2", 1);  // two hours east of Greenwich, as POSIX writes it
  ::tzset();
  EXPECT_EQ(local_time("2026-11-22T02:04:51.123Z"), "2026-11-22 04:04:51");
  EXPECT_EQ(local_clock("2026-11-22T23:04:51.123Z"), "01:04:51.123");
  EXPECT_EQ(local_time("soon"), "soon");
  EXPECT_EQ(parse_rfc3339_utc("1970-01-01T00:00:01.5Z"), 1'500 * ns_per_ms);
  for (const char* bad : {"", "2026-11-22", "2026-11-22T02:04:51", "2026-11-22T02:04:51+01:00"})
    EXPECT_FALSE(parse_rfc3339_utc(bad)) << bad;
}

TEST(Numbers, ForPeople) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes(32U << 20), "32 MiB");
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1'000'000), "1,000,000");
  EXPECT_EQ(count_of(0, "lease", "leases"), "no leases");
  EXPECT_EQ(count_of(1, "lease", "leases"), "1 lease");
  EXPECT_EQ(count_of(2048, "lease", "leases"), "2,048 leases");
}

TEST(Holder, GoodAndBad) {
  for (const char* good : {"uid:0", "uid:1000", "cgroup:4711"}) {
    const Result<std::string> holder = parse_holder(good);
    ASSERT_TRUE(holder) << good;
    EXPECT_EQ(*holder, good);
  }
  for (const char* bad : {"", "1000", "uid", "uid:", "uid:root", "uid:-1", "uid:4294967295",
                          "cgroup:", "cgroup:0", "cgroup:web.service", "gid:1000"}) {
    const Result<std::string> holder = parse_holder(bad);
    ASSERT_FALSE(holder) << bad;
    EXPECT_EQ(holder.error().code, "usage") << bad;
  }
}

}  // namespace
}  // namespace holdfast::cli
