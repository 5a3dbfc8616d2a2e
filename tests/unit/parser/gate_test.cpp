// The gate word (bpf/abi.h): incarnation and deadline in one u64. The deadline is rounded down,
// never up: a lease ends at most one tick (2^20 ns, about 1 ms) early and never late (G2).
#include <random>

#include <gtest/gtest.h>

#include "tests/support/native_parser.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

constexpr std::uint64_t kTick_ns = 1ULL << HF_GATE_TICK_SHIFT;
constexpr std::uint64_t kDeadlineEnd_ns = 1ULL << 60;  // 36 years of uptime; 40 bits of ticks

TEST(Gate, DeadlineZeroIsDenyWhateverTheIncarnation) {
  for (const std::uint32_t incarnation : {0u, 1u, 0xffffffu}) {
    EXPECT_EQ(hf_gate(0, incarnation) >> HF_GATE_INCARNATION_BITS, 0u);
    EXPECT_EQ(hf_gate(kTick_ns - 1, incarnation) >> HF_GATE_INCARNATION_BITS, 0u)
        << "less than a tick ahead";
    EXPECT_NE(hf_gate(kTick_ns, incarnation) >> HF_GATE_INCARNATION_BITS, 0u);
  }
}

TEST(Gate, IncarnationHas24Bits) {
  EXPECT_EQ(hf_gate_incarnation(hf_gate(kTick_ns, 0xffffff)), 0xffffffu);
  EXPECT_EQ(hf_gate_incarnation(hf_gate(kTick_ns, 0x1000000)), 0u) << "wraps";
  EXPECT_EQ(hf_gate_deadline_boot_ns(hf_gate(kTick_ns, 0xffffffff)), kTick_ns)
      << "and never reaches the deadline";
}

TEST(Gate, RoundsDownByLessThanOneTickAndNeverLater) {
  std::mt19937_64 random(20240607);
  for (int i = 0; i < 1'000'000; i++) {
    const std::uint64_t asked_ns = random() >> (4 + random() % 60);
    const auto incarnation = static_cast<std::uint32_t>(random());
    const std::uint64_t gate = hf_gate(asked_ns, incarnation);
    const std::uint64_t got_ns = hf_gate_deadline_boot_ns(gate);
    ASSERT_LE(got_ns, asked_ns);
    ASSERT_LT(asked_ns - got_ns, kTick_ns);
    ASSERT_EQ(hf_gate_incarnation(gate), incarnation & 0xffffff);
  }
}

TEST(Gate, OutOfRangeDeadlinesComeOutEarlierNotLater) {
  for (const std::uint64_t asked_ns :
       {kDeadlineEnd_ns, kDeadlineEnd_ns + 12345 * kTick_ns, ~std::uint64_t{0}})
    EXPECT_LT(hf_gate_deadline_boot_ns(hf_gate(asked_ns, 1)), asked_ns);
}

TEST(Gate, OrdersLikeItsDeadline) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 100'000; i++) {
    const std::uint64_t early_ns = random() >> 5;
    const std::uint64_t late_ns = early_ns + random() % (1ULL << 40);
    ASSERT_LE(hf_gate_deadline_boot_ns(hf_gate(early_ns, 9)),
              hf_gate_deadline_boot_ns(hf_gate(late_ns, 3)));
  }
}

TEST(Reasons, FitTheBitmapAndAgreeWithTheList) {
  const bool passes[] = {
#define HF_REASON(name, verdict, text) HF_CLASS_##verdict == 1,
#include "bpf/reasons.def"
#undef HF_REASON
  };
  for (std::uint32_t reason = 0; reason < HF_REASON_COUNT; reason++)
    EXPECT_EQ(hf_reason_passes(reason) != 0, passes[reason]) << reason;
  EXPECT_FALSE(hf_reason_passes(HF_REASON_unclassified));
}

TEST(Reasons, EachDirectionHasCountersOfItsOwn) {
  EXPECT_EQ(hf_reason_index(HF_FROM_TENANT, 0), 0u);
  EXPECT_EQ(hf_reason_index(HF_TO_TENANT, 0), static_cast<std::uint32_t>(HF_REASON_COUNT));
  EXPECT_EQ(hf_reason_index(HF_FROM_UPLINK, HF_REASON_COUNT - 1), 3u * HF_REASON_COUNT - 1);
}

}  // namespace
}  // namespace holdfast::test
