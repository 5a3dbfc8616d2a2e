// H5: who goes on with what is refused is suspended, until an operator resumes it; also after a
// restart, and whatever else fills the list.
#include "userspace/daemon/peers.hpp"

#include <sys/stat.h>

#include "tests/unit/core/directory.hpp"

namespace holdfast {
namespace {

using wire::Offence;

constexpr uint64_t second = ns_per_s;
constexpr uint64_t wall_ms = 1'800'000'000'000;
constexpr PeerLimits limits{.window_ns = second,
                            .offences_per_window = 3,
                            .windows = 4,
                            .peers_max = 4,
                            .peers_for_operators = 0};

class PeersTest : public ::testing::Test {
 protected:
  std::unique_ptr<Peers> open(const PeerLimits& with = limits) {
    Result<std::unique_ptr<Peers>> peers = Peers::open(state.path(), journal, with);
    EXPECT_TRUE(peers) << peers.error().text();
    (*peers)->on_suspended(
        [this](const std::function<bool(const wire::Peer&)>& whom, const Error& why) {
          ended.emplace_back(why.code);
          ends_1000 = whom(peer_of(1000)) && !whom(peer_of(1001));
        });
    return std::move(*peers);
  }

  static wire::Peer peer_of(uid_t uid, wire::Role role = wire::Role::none) {
    wire::Peer peer;
    peer.uid = uid;
    peer.role = role;
    return peer;
  }

  // `count` offences in each of so many seconds, from `from` on. Whether it was suspended.
  static bool offend(Peers& peers, uid_t uid, uint64_t from_s, int seconds, int count,
                     Offence offence = Offence::rate) {
    bool suspended = false;
    for (int s = 0; s < seconds; ++s)
      for (int i = 0; i < count; ++i)
        suspended |= peers.offend(uid, offence, (from_s + s) * second + i, wall_ms);
    return suspended;
  }

  Directory state;
  Journal journal;
  std::vector<std::string> ended;
  bool ends_1000 = false;
};

// Other processes of its uid may be operators, and these go on; unless an operator has said so.
TEST_F(PeersTest, WhatSuspendsItselfDoesNotSuspendOperators) {
  const auto peers = open();
  EXPECT_TRUE(offend(*peers, 1000, 100, 4, 3));
  EXPECT_FALSE(peers->may_connect(peer_of(1000)));
  EXPECT_TRUE(peers->may_connect(peer_of(1000, wire::Role::operates)));
  ASSERT_TRUE(peers->suspend(1000, 0, wall_ms));
  EXPECT_FALSE(peers->may_connect(peer_of(1000, wire::Role::operates)));
  EXPECT_FALSE(open()->may_connect(peer_of(1000, wire::Role::operates)));
}

TEST_F(PeersTest, OnlyWhoGoesOnIsSuspended) {
  struct Case {
    const char* name;
    std::vector<int> offences;  // second by second
    bool suspended;
  };
  const Case cases[] = {
      {"as long as it takes", {3, 3, 3, 3}, true},
      {"more than it takes", {100, 3, 9, 50}, true},
      {"one window less", {3, 3, 3}, false},
      {"one offence less", {3, 3, 3, 2}, false},
      {"a burst", {100000}, false},
      {"a window too quiet in between", {3, 3, 2, 3, 3}, false},
      {"a window of peace in between", {3, 3, 0, 3, 3}, false},
      {"and then in a row", {3, 0, 3, 3, 3, 3}, true},
      {"a little for long", {2, 2, 2, 2, 2, 2, 2, 2, 2, 2}, false},
  };
  uid_t uid = 2000;
  for (const Case& c : cases) {
    const auto peers = open();
    bool suspended = false;
    for (size_t s = 0; s < c.offences.size(); ++s)
      suspended |= offend(*peers, uid, 50 + s, 1, c.offences[s]);
    EXPECT_EQ(suspended, c.suspended) << c.name;
    EXPECT_EQ(peers->is_suspended(uid), c.suspended) << c.name;
    if (c.suspended) {
      EXPECT_TRUE(peers->resume(uid));
    }
    ++uid;
  }
}

TEST_F(PeersTest, EveryKindOfOffenceCountsAndTogether) {
  const auto peers = open();
  for (uint64_t s = 1; s <= 4; ++s) {
    offend(*peers, 1000, s, 1, 1, Offence::frame);
    offend(*peers, 1000, s, 1, 1, Offence::signature);
    offend(*peers, 1000, s, 1, 1, Offence::proof);
  }
  EXPECT_TRUE(peers->is_suspended(1000));
  EXPECT_EQ(ended, std::vector<std::string>{"suspended"});
  EXPECT_TRUE(ends_1000) << "its connections, and nobody else's";
  const Status refused = peers->may_connect(peer_of(1000));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::denied);
  EXPECT_EQ(refused.error().code, "suspended");
  EXPECT_NE(refused.error().next_step.find("holdfast peer resume 1000"), std::string::npos);
  EXPECT_TRUE(peers->may_connect(peer_of(1001)));
}

TEST_F(PeersTest, OperatorsAreNotSuspendedByThemselvesAndRootByNobody) {
  const auto peers = open({.window_ns = 1, .offences_per_window = 1, .windows = 1});
  for (const uid_t uid : {0U, 1000U})
    peers->on_offence(peer_of(uid, wire::Role::operates), Offence::rate);
  EXPECT_EQ(peers->suspended(), 0U);
  EXPECT_EQ(peers->offences(Offence::rate), 2U) << "but counted";
  peers->on_offence(peer_of(1000), Offence::rate);
  EXPECT_TRUE(peers->is_suspended(1000)) << "the same uid, without the group";
  const Status root = peers->suspend(0, 0, wall_ms);
  ASSERT_FALSE(root);
  EXPECT_EQ(root.error().code, "root_peer");
}

TEST_F(PeersTest, ASuspensionOutlivesTheDaemon) {
  ASSERT_TRUE(offend(*open(), 1000, 1, 4, 3));
  {
    const auto peers = open();
    ASSERT_TRUE(peers->suspend(4000000000U, 7, wall_ms + 1));
    ASSERT_TRUE(peers->suspend(4000000000U, 8, wall_ms + 2)) << "again changes nothing";
  }
  struct stat file{};
  ASSERT_EQ(::stat((state.path() + "/peers").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 07777, 0600U);
  const auto peers = open();
  ASSERT_EQ(peers->suspended(), 2U);
  EXPECT_EQ(peers->all().at(1000).suspension, (Suspension{wall_ms, 0, "rate"}));
  EXPECT_EQ(peers->all().at(4000000000U).suspension, (Suspension{wall_ms + 1, 7, "operator"}));
  ASSERT_TRUE(peers->resume(1000));
  EXPECT_TRUE(peers->may_connect(peer_of(1000)));
  EXPECT_EQ(peers->resume(1000).error().code, "not_suspended");
  EXPECT_EQ(open()->suspended(), 1U);
  EXPECT_FALSE(offend(*peers, 1000, 100, 3, 3)) << "it begins anew";
}

TEST_F(PeersTest, WhoGaveOffenceLeastLatelyIsForgottenFirstAndTheSuspendedNever) {
  const auto peers = open();
  ASSERT_TRUE(peers->suspend(10, 0, wall_ms));
  for (const uid_t uid : {11U, 12U, 13U}) offend(*peers, uid, uid, 1, 1);
  offend(*peers, 11, 20, 1, 1);
  offend(*peers, 14, 21, 1, 1);
  const auto known = [&] {
    std::vector<uid_t> out;
    for (const auto& [uid, record] : peers->all()) out.push_back(uid);
    return out;
  };
  EXPECT_EQ(known(), (std::vector<uid_t>{10, 11, 13, 14}));
  for (const uid_t uid : {21U, 22U, 23U}) ASSERT_TRUE(peers->suspend(uid, 0, wall_ms));
  EXPECT_EQ(known(), (std::vector<uid_t>{10, 21, 22, 23}));
  const Status full = peers->suspend(24, 0, wall_ms);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, "peers_max");
  EXPECT_FALSE(offend(*peers, 24, 30, 10, 10)) << "it is refused all the same";
  EXPECT_EQ(known(), (std::vector<uid_t>{10, 21, 22, 23}));
}

TEST_F(PeersTest, WhoHasManyUidsLeavesOperatorsTheirPlaces) {
  PeerLimits with = limits;
  with.peers_for_operators = 2;
  const auto peers = open(with);
  for (const uid_t uid : {11U, 12U}) EXPECT_TRUE(offend(*peers, uid, uid * 10, 4, 3));
  EXPECT_FALSE(offend(*peers, 13, 200, 9, 9));
  for (const uid_t uid : {13U, 14U}) EXPECT_TRUE(peers->suspend(uid, 0, wall_ms));
  EXPECT_EQ(peers->suspended(), 4U);
  EXPECT_EQ(peers->suspend(15, 0, wall_ms).error().code, "peers_max");
}

TEST_F(PeersTest, EveryDamageLeavesOnlyOperatorsServed) {
  ASSERT_TRUE(open()->suspend(1000, 0, wall_ms));
  const std::string good = state.read("peers");
  const auto check = [&](const std::string& text, const std::string& what) {
    state.write("peers", text);
    const auto peers = open();
    EXPECT_TRUE(peers->everybody()) << what;
    EXPECT_FALSE(peers->may_connect(peer_of(1001))) << what;
    EXPECT_TRUE(peers->may_connect(peer_of(0, wire::Role::operates))) << what;
  };
  check("", "empty");
  check(good + "x", "longer");
  for (size_t at = 0; at < good.size(); ++at) {
    check(good.substr(0, at), "cut short");
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1 << bit);
      check(bad, "a bit");
    }
  }
  const auto peers = open();
  EXPECT_EQ(peers->suspend(1000, 0, wall_ms).error().code, "peers_damaged");
  EXPECT_EQ(peers->resume(1000).error().code, "peers_damaged");
  ASSERT_TRUE(peers->resume_all());
  EXPECT_TRUE(peers->may_connect(peer_of(1001)));
  EXPECT_FALSE(open()->everybody());
}

TEST_F(PeersTest, WhatCannotBeWrittenHoldsAndIsSaidOrDoesNotHappen) {
  const auto peers = open();
  ASSERT_TRUE(peers->suspend(1000, 0, wall_ms));
  std::filesystem::remove_all(state.path());
  EXPECT_FALSE(peers->suspend(1001, 0, wall_ms));
  EXPECT_TRUE(peers->is_suspended(1001)) << "to tighten holds first";
  EXPECT_FALSE(peers->resume(1000));
  EXPECT_TRUE(peers->is_suspended(1000)) << "to widen is written first";
  EXPECT_FALSE(peers->resume_all());
  EXPECT_EQ(peers->suspended(), 2U);
  EXPECT_TRUE(offend(*peers, 1002, 1, 4, 3));
  EXPECT_TRUE(peers->is_suspended(1002));
  std::filesystem::create_directory(state.path());
  EXPECT_TRUE(peers->suspend(1001, 0, wall_ms)) << "asked again it is written, with the others";
  EXPECT_EQ(open()->suspended(), 3U);
}

}  // namespace
}  // namespace holdfast
