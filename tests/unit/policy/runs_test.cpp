// Overlaps of address runs and claims, checked against comparing every pair.
#include "policy/runs.hpp"

#include <random>
#include <set>

#include <gtest/gtest.h>

#include "policy/address.hpp"

namespace holdfast {
namespace {

// std::mt19937 answers with 64-bit integers of 32 bits.
class Dice {
 public:
  explicit Dice(uint32_t seed) : engine_(seed) {}
  uint32_t operator()() { return static_cast<uint32_t>(engine_()); }

 private:
  std::mt19937 engine_;
};

using OwnerPair = std::pair<uint32_t, uint32_t>;

AddressRun run_from(uint32_t first, uint32_t length, uint32_t owner) {
  auto address = [](uint32_t low) {
    Address out = *parse_address("10.0.0.0");
    out.bytes[14] = static_cast<uint8_t>(low >> 8);
    out.bytes[15] = static_cast<uint8_t>(low);
    return out;
  };
  return {.first = address(first),
          .last = address(first + length - 1),
          .owner = owner,
          .line = owner + 1};
}

bool share_address(const AddressRun& a, const AddressRun& b) {
  return a.first <= b.last && b.first <= a.last;
}

TEST(Runs, AddressOverlapsAreWhatEveryPairSays) {
  Dice random(1);
  for (int round = 0; round < 3000; ++round) {
    std::vector<AddressRun> runs;
    uint32_t count = 1 + random() % 8;
    for (uint32_t i = 0; i < count; ++i)
      runs.push_back(run_from(random() % 100, 1 + random() % 12, i));
    std::set<uint32_t> involved;
    for (const AddressRun& a : runs) {
      for (const AddressRun& b : runs) {
        if (a.owner < b.owner && share_address(a, b)) involved.insert({a.owner, b.owner});
      }
    }
    std::vector<Overlap> found = find_overlaps(runs, 1000);
    EXPECT_EQ(found.empty(), involved.empty());
    std::set<OwnerPair> pairs;
    for (const Overlap& overlap : found) {
      EXPECT_TRUE(share_address(runs[overlap.earlier], runs[overlap.later]));
      EXPECT_LT(runs[overlap.earlier].line, runs[overlap.later].line);
      EXPECT_TRUE(pairs.emplace(runs[overlap.earlier].owner, runs[overlap.later].owner).second);
    }
  }
}

TEST(Runs, ClaimOverlapsAreWhatEveryPairSays) {
  Dice random(2);
  int clean = 0;
  for (int round = 0; round < 5000; ++round) {
    std::vector<ListenRun> runs;
    uint32_t count = 1 + random() % 10;
    for (uint32_t i = 0; i < count; ++i) {
      auto first = static_cast<uint16_t>(1 + random() % 40);
      runs.push_back({run_from(random() % 60, 1 + random() % 12, i),
                      random() % 2 == 0 ? Protocol::tcp : Protocol::udp,
                      {first, static_cast<uint16_t>(first + random() % 6)}});
    }
    auto overlap_of = [](const ListenRun& a, const ListenRun& b) {
      return a.protocol == b.protocol && share_address(a.addresses, b.addresses) &&
             a.listen.first <= b.listen.last && b.listen.first <= a.listen.last;
    };
    bool any = false;
    for (const ListenRun& a : runs) {
      for (const ListenRun& b : runs)
        any = any || (a.addresses.owner < b.addresses.owner && overlap_of(a, b));
    }
    std::vector<Overlap> found = find_overlaps(runs, 1000);
    EXPECT_EQ(!found.empty(), any);
    clean += any ? 0 : 1;
    for (const Overlap& overlap : found)
      EXPECT_TRUE(overlap_of(runs[overlap.earlier], runs[overlap.later]));
  }
  EXPECT_GT(clean, 500);  // both answers were met
}

TEST(Runs, FamiliesNeverOverlap) {
  std::vector<AddressRun> runs = {run_of(*parse_prefix("::/0")),
                                  run_of(*parse_prefix("0.0.0.0/0"))};
  EXPECT_TRUE(find_overlaps(runs, 10).empty());
  runs.push_back(run_of(*parse_prefix("fd00::1")));
  EXPECT_EQ(find_overlaps(runs, 10).size(), 1U);
}

TEST(Runs, Size) {
  EXPECT_EQ(run_size(run_of(*parse_prefix("10.0.0.1"))), 1U);
  EXPECT_EQ(run_size(run_of(*parse_prefix("10.0.0.0/8"))), 1U << 24);
  EXPECT_EQ(run_size(run_of(*parse_prefix("fd00::/65"))), 1ULL << 63);
  EXPECT_EQ(run_size(run_of(*parse_prefix("fd00::/64"))), UINT64_MAX);
  EXPECT_EQ(run_size(run_of(*parse_prefix("::/0"))), UINT64_MAX);
}

TEST(Runs, Covers) {
  std::vector<AddressRun> sorted = {run_of(*parse_prefix("10.0.0.0/29")),
                                    run_of(*parse_prefix("10.0.0.8/29")),
                                    run_of(*parse_prefix("10.0.1.0/29"))};
  std::vector<AddressRun> whole = joined(sorted);
  EXPECT_EQ(whole.size(), 2U);
  EXPECT_TRUE(covers(whole, run_of(*parse_prefix("10.0.0.0/28"))));
  EXPECT_TRUE(covers(whole, run_of(*parse_prefix("10.0.1.7"))));
  EXPECT_FALSE(covers(whole, run_of(*parse_prefix("10.0.0.0/27"))));
  EXPECT_FALSE(covers(whole, run_of(*parse_prefix("10.0.1.8"))));
  EXPECT_FALSE(covers(whole, run_of(*parse_prefix("9.255.255.255"))));
  EXPECT_FALSE(covers(whole, run_of(*parse_prefix("::/0"))));
}

TEST(Runs, CollapseIsTheInverseOfExpand) {
  Dice random(3);
  for (int round = 0; round < 2000; ++round) {
    std::set<Address> chosen;
    for (uint32_t i = random() % 6; i-- > 0;) {
      std::vector<Address> some;
      expand(run_from(random() % 300, 1 + random() % 70, 0), some);
      chosen.insert(some.begin(), some.end());
    }
    std::vector<Address> addresses(chosen.begin(), chosen.end());
    std::vector<Address> back;
    for (const Prefix& prefix : collapse(addresses)) expand(run_of(prefix), back);
    EXPECT_EQ(back, addresses);
  }
  std::vector<Address> all;
  expand(run_of(*parse_prefix("10.1.0.0/16")), all);
  EXPECT_EQ(all.size(), 65536U);
  EXPECT_EQ(collapse(all), std::vector<Prefix>{*parse_prefix("10.1.0.0/16")});
}

}  // namespace
}  // namespace holdfast
