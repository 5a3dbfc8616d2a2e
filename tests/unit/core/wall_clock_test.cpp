// When wall time is not relied on to judge tokens (PROTOCOL.md, section 3).
#include <gtest/gtest.h>

#include "userspace/base/clock.hpp"
#include "userspace/daemon/tokens.hpp"

namespace holdfast {
namespace {

TEST(WallClock, DoubtsSteps) {
  constexpr uint64_t wall = 1'800'000'000 * ns_per_s;
  constexpr uint64_t boot = 5000 * ns_per_s;
  const WallClock clock(wall, boot, 0);
  struct Case {
    const char* what;
    int64_t wall_moves_ms;
    int64_t boot_moves_ms;
    bool doubted;
  };
  for (const Case& each : {
           Case{"nothing", 0, 0, false},
           Case{"both go on", 86'400'000, 86'400'000, false},
           Case{"two seconds forward", 12'000, 10'000, false},
           Case{"more than two", 12'001, 10'000, true},
           Case{"two seconds back", 8'000, 10'000, false},
           Case{"more than two back", 7'999, 10'000, true},
           Case{"an hour forward", 3'600'000, 0, true},
           Case{"to 1970", -1'800'000'000'000, 0, true},
       })
    EXPECT_EQ(
        clock.doubt(wall + each.wall_moves_ms * ns_per_ms, boot + each.boot_moves_ms * ns_per_ms)
            .has_value(),
        each.doubted)
        << each.what;
}

TEST(WallClock, DoubtsTimesThatHaveBeen) {
  constexpr uint64_t wall_s = 1'800'000'000;
  EXPECT_FALSE(WallClock(wall_s * ns_per_s, 0, wall_s + 30).doubt(wall_s * ns_per_s, 0));
  EXPECT_TRUE(WallClock(wall_s * ns_per_s, 0, wall_s + 31).doubt(wall_s * ns_per_s, 0));
}

// What ends by it is not put off by who sets the clock, nor by a start with a clock that is behind.
TEST(WallClock, UnsetGoesOnWithBootTime) {
  constexpr uint64_t wall_s = 1'800'000'000;
  const WallClock clock(wall_s * ns_per_s, 500 * ns_per_s, wall_s - 100);
  EXPECT_EQ(clock.unset_s(500 * ns_per_s), wall_s);
  EXPECT_EQ(clock.unset_s(800 * ns_per_s), wall_s + 300);
  EXPECT_EQ(WallClock(0, 500 * ns_per_s, wall_s).unset_s(800 * ns_per_s), wall_s + 300);
}

}  // namespace
}  // namespace holdfast
