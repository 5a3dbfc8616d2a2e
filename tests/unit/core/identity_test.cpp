// G11, G12: a node keeps its name and its epoch while it keeps its state, and has a later epoch in
// every other case.
#include "userspace/daemon/identity.hpp"

#include <sys/stat.h>

#include "tests/unit/core/directory.hpp"

namespace holdfast {
namespace {

const Identity::Moment first_boot{1'800'000'000'000, "boot-1"};
const Identity::Moment later{1'800'000'100'000, "boot-1"};
const Identity::Moment next_boot{1'800'000'200'000, "boot-2"};

uint64_t epoch_at(const Directory& state, const Identity::Moment& now) {
  const Result<Identity> identity = Identity::open(state.path(), now);
  EXPECT_TRUE(identity) << identity.error().text();
  return identity ? identity->epoch() : 0;
}

TEST(Identity, StaysWhatItIs) {
  const Directory state;
  const Result<Identity> made = Identity::open(state.path(), first_boot);
  ASSERT_TRUE(made) << made.error().text();
  EXPECT_EQ(made->epoch(), first_boot.wall_ms);
  EXPECT_TRUE(made->epoch_is_new());
  const Result<Identity> again = Identity::open(state.path(), later);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->name(), made->name());
  EXPECT_EQ(again->epoch(), made->epoch());
  EXPECT_FALSE(again->epoch_is_new());
  EXPECT_EQ(again->wall_floor_ms(), later.wall_ms);
  struct stat key{};
  ASSERT_EQ(::stat((state.path() + "/node.key").c_str(), &key), 0);
  EXPECT_EQ(key.st_mode & 07777, 0400U);
}

TEST(Identity, AnEpochForEachBoot) {
  const Directory state;
  const uint64_t before = epoch_at(state, first_boot);
  EXPECT_GT(epoch_at(state, next_boot), before);
  // Also when the clock is behind.
  EXPECT_EQ(epoch_at(state, {1000, "boot-3"}), next_boot.wall_ms + 1);
}

TEST(Identity, EveryDamageBeginsAnEpoch) {
  const Directory state;
  const uint64_t before = epoch_at(state, first_boot);
  const std::string good = state.read("identity");
  for (size_t at = 0; at < good.size(); ++at) {
    for (const std::string& bad :
         {good.substr(0, at),
          good.substr(0, at) + static_cast<char>(good[at] ^ 1) + good.substr(at + 1)}) {
      state.write("identity", bad);
      EXPECT_EQ(epoch_at(state, later), later.wall_ms) << at;
    }
  }
  state.write("identity", good + "x");
  EXPECT_GT(epoch_at(state, later), before);
  state.write("identity", good);
  EXPECT_EQ(epoch_at(state, later), before);
}

TEST(Identity, AnothersKeyIsRefused) {
  const Directory state;
  const Directory other;
  epoch_at(state, first_boot);
  epoch_at(other, first_boot);
  std::filesystem::remove(state.path() + "/node.key");
  std::filesystem::copy_file(other.path() + "/node.key", state.path() + "/node.key");
  const Result<Identity> refused = Identity::open(state.path(), later);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "node_key_changed");
  // A node that lost its key is another one.
  std::filesystem::remove(state.path() + "/node.key");
  EXPECT_EQ(epoch_at(state, later), later.wall_ms);
}

}  // namespace
}  // namespace holdfast
