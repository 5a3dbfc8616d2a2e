#include "userspace/daemon/lease_table.hpp"

#include <set>

#include <gtest/gtest.h>

namespace holdfast {
namespace {

TEST(LeaseId, TextBothWays) {
  const LeaseId id = LeaseId::random();
  const std::string text = format_lease_id(id);
  EXPECT_EQ(text.size(), 32U);
  const Result<LeaseId> back = parse_lease_id(text);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, id);
  for (const char* bad :
       {"", "12", "g0000000000000000000000000000000", "0000000000000000000000000000000",
        "-0000000000000000000000000000000", "000000000000000000000000000000000"})
    EXPECT_FALSE(parse_lease_id(bad)) << bad;
}

TEST(LeaseId, DoesNotRepeat) {
  std::set<LeaseId> seen;
  for (int i = 0; i < 100000; ++i) EXPECT_TRUE(seen.insert(LeaseId::random()).second);
}

TEST(LeaseTable, EarliestComesFirstAndCountsAreByTenant) {
  LeaseTable table;
  const LeaseId a = LeaseId::random(), b = LeaseId::random();
  table.add(a, 1, 1, 500, 0);
  table.add(b, 2, 1, 300, 3);
  ASSERT_TRUE(table.earliest());
  EXPECT_EQ(table.earliest()->slot, 2U);
  table.moved(1, 1, 100);  // a shorter term
  EXPECT_EQ(table.earliest()->slot, 1U);
  EXPECT_EQ(table.of_tenant(0), 1U);
  EXPECT_EQ(table.of_tenant(3), 1U);
  EXPECT_EQ(table.of_tenant(99), 0U);
  table.remove(a, 0);
  table.remove(a, 0);
  EXPECT_EQ(table.of_tenant(0), 0U);
  EXPECT_FALSE(table.find(a));
  EXPECT_EQ(table.find(b), 2U);
}

TEST(LeaseTable, HoldsManyAndForgetsThemInAnyOrder) {
  LeaseTable table;
  std::vector<LeaseId> ids;
  for (uint32_t slot = 0; slot < 4000; ++slot) {
    // Half of them belong to the same few places, so that they stand in each other's way.
    LeaseId id = LeaseId::random();
    if (slot % 2 == 0) id.words[0] &= 7;
    ids.push_back(id);
    table.add(id, slot, 1, 1000, 0);
    if (slot == 1000) table.reserve(8000);
  }
  EXPECT_EQ(table.size(), ids.size());
  const auto check = [&](auto is_there) {
    for (uint32_t slot = 0; slot < ids.size(); ++slot)
      ASSERT_EQ(table.find(ids[slot]), is_there(slot) ? std::optional(slot) : std::nullopt);
  };
  check([](uint32_t) { return true; });
  for (uint32_t slot = 0; slot < ids.size(); slot += 3) table.remove(ids[slot], 0);
  check([](uint32_t slot) { return slot % 3 != 0; });
  for (uint32_t slot = 0; slot < ids.size(); ++slot)
    if (slot % 1000 != 1) table.remove(ids[slot], 0);
  check([](uint32_t slot) { return slot % 1000 == 1 && slot % 3 != 0; });
  EXPECT_EQ(table.of_tenant(0), table.size());
}

}  // namespace
}  // namespace holdfast
