// P18: the node's state outlives the daemon; a file that may have said anything is a quarantine.
// And what a policy opens by itself, which a quarantine does not let it.
#include "userspace/daemon/node_state.hpp"

#include "policy/address.hpp"
#include "policy/opens.hpp"
#include "tests/unit/core/directory.hpp"

namespace holdfast {
namespace {

TEST(NodeState, IsWhatWasWritten) {
  const Directory state;
  EXPECT_EQ(read_standing(state.path()), NodeStanding());
  for (const NodeState to :
       {NodeState::draining, NodeState::disabled, NodeState::quarantined, NodeState::active}) {
    const NodeStanding standing{to, 1'800'000'000'000, 1000};
    ASSERT_TRUE(write_standing(state.path(), standing));
    EXPECT_EQ(read_standing(state.path()), standing) << name_of(to);
  }
}

TEST(NodeState, EveryDamageIsAQuarantine) {
  const Directory state;
  ASSERT_TRUE(write_standing(state.path(), {NodeState::draining, 1'800'000'000'000, 1000}));
  const std::string good = state.read("node_state");
  const auto read = [&](const std::string& text) {
    state.write("node_state", text);
    const Result<NodeStanding> standing = read_standing(state.path());
    EXPECT_TRUE(standing);
    return standing ? standing->state : NodeState::active;
  };
  EXPECT_EQ(read(good), NodeState::draining);
  EXPECT_EQ(read(good + "x"), NodeState::quarantined);
  for (size_t at = 0; at < good.size(); ++at) {
    EXPECT_EQ(read(good.substr(0, at)), NodeState::quarantined) << at;
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1 << bit);
      EXPECT_EQ(read(bad), NodeState::quarantined) << at << " " << bit;
    }
  }
}

Policy some_policy() {
  Policy policy;
  policy.uplinks = {"up0"};
  policy.failsafe_ports = {22};
  policy.listeners = {
      {Protocol::tcp, 443, {}},
      {Protocol::udp, 53, {*parse_prefix("10.0.0.0/8"), *parse_prefix("fd00::/8")}}};
  Tenant tenant;
  tenant.ports.resize(2);
  tenant.ports[0].interface = "va";
  tenant.ports[1].interface = "vb";
  policy.tenants = {tenant};
  return policy;
}

TEST(WhatOpens, IsWhatCouldNotBeReachedBefore) {
  using Change = void (*)(Policy&);
  struct Case {
    const char* name;
    Change change;
    std::vector<std::string> opens;
  };
  const Case cases[] = {
      {"nothing changed", [](Policy&) {}, {}},
      {"a failsafe port more",
       [](Policy& p) { p.failsafe_ports.push_back(2222); },
       {"failsafe port 2222"}},
      {"a failsafe port less", [](Policy& p) { p.failsafe_ports.clear(); }, {}},
      {"a listener that was failsafe",
       [](Policy& p) { p.listeners.push_back({Protocol::tcp, 22, {}}); },
       {}},
      {"a listener less", [](Policy& p) { p.listeners.clear(); }, {}},
      {"another listener",
       [](Policy& p) { p.listeners.push_back({Protocol::tcp, 80, {*parse_prefix("10.0.0.0/8")}}); },
       {"tcp port 80 from 10.0.0.0/8"}},
      {"another protocol",
       [](Policy& p) { p.listeners.push_back({Protocol::udp, 443, {}}); },
       {"udp port 443 from anywhere"}},
      {"for fewer", [](Policy& p) { p.listeners[0].from = {*parse_prefix("10.0.0.0/8")}; }, {}},
      {"for fewer of some",
       [](Policy& p) { p.listeners[1].from = {*parse_prefix("10.1.0.0/16")}; },
       {}},
      {"for more",
       [](Policy& p) { p.listeners[1].from = {*parse_prefix("0.0.0.0/0")}; },
       {"udp port 53 from 0.0.0.0/0"}},
      {"for all", [](Policy& p) { p.listeners[1].from = {}; }, {"udp port 53 from anywhere"}},
      {"an uplink let go", [](Policy& p) { p.uplinks.clear(); }, {"interface up0 is let go"}},
      {"a port let go",
       [](Policy& p) { p.tenants[0].ports.pop_back(); },
       {"interface vb is let go"}},
      {"a port more", [](Policy& p) { p.tenants[0].ports.resize(3); }, {}},
  };
  for (const Case& c : cases) {
    Policy next = some_policy();
    c.change(next);
    EXPECT_EQ(what_opens(some_policy(), next), c.opens) << c.name;
  }
}

}  // namespace
}  // namespace holdfast
