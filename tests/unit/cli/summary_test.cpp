// doctor: what its rows add up to.
#include <gtest/gtest.h>

#include "userspace/doctor/doctor.hpp"

namespace holdfast::doctor {
namespace {

Finding row(Verdict verdict, bool essential, const char* feature) {
  return {feature, verdict, {}, {}, essential};
}

TEST(Summary, TheWorstOfWhatIsEssentialDecides) {
  const Finding good = row(Verdict::enforced, true, "good");
  const Finding bad = row(Verdict::refused, true, "bad");
  const Finding unknown = row(Verdict::unknown, true, "unknown");
  const Finding instead = row(Verdict::fallback, false, "instead");
  const Finding lacking = row(Verdict::refused, false, "lacking");
  const Finding untried = row(Verdict::unknown, false, "untried");
  EXPECT_EQ(summarize({good}).verdict, Verdict::enforced);
  EXPECT_EQ(summarize({good, lacking}).verdict, Verdict::enforced);
  EXPECT_EQ(summarize({good, untried}).verdict, Verdict::enforced);
  EXPECT_EQ(summarize({good, instead, lacking}).verdict, Verdict::fallback);
  EXPECT_EQ(summarize({good, instead, unknown}).verdict, Verdict::unknown);
  EXPECT_EQ(summarize({good, unknown, bad}).verdict, Verdict::refused);
  EXPECT_EQ(summarize({good, bad}).text, "This machine cannot enforce leases: bad.");
  EXPECT_EQ(summarize({good, instead, lacking}).text,
            "This machine enforces leases, with a fallback for: instead. Not here, and not needed "
            "for them: lacking.");
}

}  // namespace
}  // namespace holdfast::doctor
