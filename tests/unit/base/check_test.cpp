// CHECK stays on in release builds and ends the process: leases then expire by themselves (G2).
#include "userspace/base/check.hpp"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

TEST(CheckDeathTest, FailureAbortsAndNamesTheInvariant) {
  const int slots = 3;
  EXPECT_DEATH(CHECK(slots == 4), "holdfast: bug at .*check_test.cpp:[0-9]+: slots == 4");
}

TEST(Check, EvaluatesItsConditionOnce) {
  int evaluated = 0;
  CHECK(++evaluated == 1);
  EXPECT_EQ(evaluated, 1);
}

}  // namespace
}  // namespace holdfast
