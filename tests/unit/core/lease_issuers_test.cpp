#include "userspace/daemon/lease_issuers.hpp"

#include <map>
#include <random>

#include <gtest/gtest.h>

namespace holdfast {
namespace {

using List = std::vector<uint32_t>;

List slots_of(const LeaseIssuers& issuers, uint64_t issuer) {
  List slots;
  issuers.append_slots(issuer, slots);
  return slots;
}

TEST(LeaseIssuers, FindsExactlyTheirs) {
  constexpr uint32_t slots = 1000;  // not a multiple of what is read at once
  LeaseIssuers issuers(slots);
  constexpr uint32_t last = slots - 1;
  issuers.put(0, 11, true);
  issuers.put(last, 11, true);
  issuers.put(64, 11, true);
  issuers.put(63, 22, true);
  issuers.put(5, 0, true);  // an operator's
  EXPECT_EQ(slots_of(issuers, 11), (List{0, 64, last}));
  EXPECT_EQ(slots_of(issuers, 22), List{63});
  for (const uint64_t nobody : {0, 33}) {
    EXPECT_EQ(slots_of(issuers, nobody), List());
    EXPECT_EQ(issuers.slots(nobody), 0U);
    EXPECT_EQ(issuers.leases(nobody), 0U);
  }
  EXPECT_EQ(issuers.leases(11), 3U);
}

TEST(LeaseIssuers, CountsLeasesBesideSlots) {
  LeaseIssuers issuers(100);
  for (uint32_t slot = 10; slot < 20; ++slot) issuers.put(slot, 11, slot == 10);
  EXPECT_EQ(issuers.slots(11), 10U);
  EXPECT_EQ(issuers.leases(11), 1U);
  issuers.remove(10);
  EXPECT_EQ(issuers.slots(11), 9U);
  EXPECT_EQ(issuers.leases(11), 0U);
}

TEST(LeaseIssuers, AnotherKeysRenewalMovesIt) {
  LeaseIssuers issuers(100);
  issuers.put(7, 11, true);
  issuers.put(7, 22, true);
  EXPECT_EQ(slots_of(issuers, 11), List());
  EXPECT_EQ(slots_of(issuers, 22), List{7});
  EXPECT_EQ(issuers.issuers(), std::vector<uint64_t>{22});
  issuers.put(7, 0, true);
  EXPECT_EQ(issuers.issuers(), std::vector<uint64_t>());
}

TEST(LeaseIssuers, NumbersAreUsedAgain) {
  LeaseIssuers issuers(100);
  issuers.put(1, 1, true);
  for (uint64_t issuer = 2; issuer < 200'000; ++issuer) {
    issuers.put(2, issuer, true);
    if (issuer % 2 == 0) issuers.remove(2);
  }
  EXPECT_EQ(slots_of(issuers, 1), List{1});
  EXPECT_EQ(slots_of(issuers, 199'999), List{2});
}

TEST(LeaseIssuers, AgreesWithAMapInAnyOrder) {
  constexpr uint32_t slots = 5000;
  LeaseIssuers issuers(slots);
  std::map<uint32_t, std::pair<uint64_t, bool>> expected;
  std::mt19937 random(1);
  for (int i = 0; i < 50'000; ++i) {
    const auto slot = static_cast<uint32_t>(random() % slots);
    const uint64_t issuer = random() % 40;
    const bool leads = random() % 2 != 0;
    if (random() % 4 == 0) {
      issuers.remove(slot);
      expected.erase(slot);
    } else {
      issuers.put(slot, issuer, leads);
      expected[slot] = {issuer, leads};
    }
  }
  for (uint64_t issuer = 1; issuer < 40; ++issuer) {
    List theirs;
    size_t leases = 0;
    for (const auto& [slot, is] : expected) {
      if (is.first != issuer) continue;
      theirs.push_back(slot);
      leases += is.second;
    }
    EXPECT_EQ(slots_of(issuers, issuer), theirs);
    EXPECT_EQ(issuers.slots(issuer), theirs.size());
    EXPECT_EQ(issuers.leases(issuer), leases);
  }
}

}  // namespace
}  // namespace holdfast
