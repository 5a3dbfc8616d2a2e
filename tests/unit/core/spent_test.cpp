// G11: what was used stays used, wherever a crash or damage leaves the file.
#include "userspace/daemon/spent.hpp"

#include "tests/unit/core/directory.hpp"

namespace holdfast {
namespace {

constexpr uint64_t now_s = 1'800'000'000;
constexpr size_t entry_bytes = 48;

token::Digest id_of(uint8_t number) {
  token::Digest id{};
  id.fill(number);
  return id;
}

Spent open_at(const Directory& state, uint64_t now, bool& whole) {
  Result<Spent> spent = Spent::open(state.path(), now, whole);
  EXPECT_TRUE(spent) << spent.error().text();
  return std::move(*spent);
}

TEST(Spent, RemembersOverRestarts) {
  const Directory state;
  bool whole = true;
  {
    Spent spent = open_at(state, now_s, whole);
    EXPECT_FALSE(whole) << "there was none";
    ASSERT_TRUE(spent.add(id_of(1), now_s + 60, now_s));
    ASSERT_TRUE(spent.add(id_of(2), now_s + 60, now_s));
    ASSERT_TRUE(spent.take_back(id_of(2)));
    EXPECT_TRUE(spent.has(id_of(1)));
    EXPECT_FALSE(spent.has(id_of(2)));
  }
  Spent again = open_at(state, now_s + 1, whole);
  EXPECT_TRUE(whole);
  EXPECT_TRUE(again.has(id_of(1)));
  EXPECT_FALSE(again.has(id_of(2)));
  // Forgotten a minute after it expired, and no sooner.
  EXPECT_TRUE(open_at(state, now_s + 120, whole).has(id_of(1)));
  EXPECT_FALSE(open_at(state, now_s + 121, whole).has(id_of(1)));
}

TEST(Spent, EveryTruncationLosesOnlyWhatWasUnderWay) {
  const Directory state;
  bool whole = false;
  {
    Spent spent = open_at(state, now_s, whole);
    for (uint8_t i = 1; i <= 3; ++i) ASSERT_TRUE(spent.add(id_of(i), now_s + 60, now_s));
  }
  const std::string good = state.read("spent");
  ASSERT_EQ(good.size(), 3 * entry_bytes);
  for (size_t size = 0; size <= good.size(); ++size) {
    state.write("spent", good.substr(0, size));
    const Spent spent = open_at(state, now_s, whole);
    EXPECT_TRUE(whole) << size;
    for (uint8_t i = 1; i <= 3; ++i)
      EXPECT_EQ(spent.has(id_of(i)), size >= i * entry_bytes) << size;
  }
}

TEST(Spent, EveryFlippedBitIsSeen) {
  const Directory state;
  bool whole = false;
  {
    Spent spent = open_at(state, now_s, whole);
    for (uint8_t i = 1; i <= 2; ++i) ASSERT_TRUE(spent.add(id_of(i), now_s + 60, now_s));
  }
  const std::string good = state.read("spent");
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    state.write("spent", bad);
    const Spent spent = open_at(state, now_s, whole);
    // In the last entry it looks like one that was under way.
    EXPECT_EQ(whole, bit / 8 >= entry_bytes) << bit;
    EXPECT_EQ(spent.has(id_of(1)), bit / 8 >= entry_bytes) << bit;
  }
}

TEST(Spent, TheFileDoesNotGrowWithoutEnd) {
  const Directory state;
  bool whole = false;
  Spent spent = open_at(state, now_s, whole);
  for (uint32_t i = 0; i < 10'000; ++i) {
    token::Digest id{};
    id[0] = static_cast<uint8_t>(i);
    id[1] = static_cast<uint8_t>(i >> 8);
    ASSERT_TRUE(spent.add(id, now_s + i / 10, now_s + i / 10)) << i;
  }
  // Each lives for a tenth of the run and a minute: about 700 at a time.
  EXPECT_LT(std::filesystem::file_size(state.path() + "/spent"), 2500 * entry_bytes);
  EXPECT_LT(spent.size(), 2500U);
}

}  // namespace
}  // namespace holdfast
