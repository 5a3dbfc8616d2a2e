// Banks (G4), tenants (G5), and what `explain` answers.
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

const Ip4 kIn{.from = "192.0.2.9", .to = "10.0.0.1"};
const Packet kOld = kIn / Tcp{.dport = 443, .flags = "S"};
const Packet kNew = kIn / Tcp{.dport = 8443, .flags = "S"};

TEST(Bank, NothingOfTheIdleOneIsSeenUntilTheFlip) {
  Node node;
  node.lease(kSpare);
  node.stage(1);
  node.standard_policy();
  node.endpoint("10.0.0.1", HF_PROTO_TCP, 8443, kSpare, Node::red0(), kRed);
  for (const Hook hook : {Hook::to_tenant, Hook::uplink_xdp, Hook::uplink_tc}) {
    const std::uint32_t at = hook == Hook::to_tenant ? Node::red0() : Node::uplink();
    node.flip(0);
    expect(node, hook, at, kOld, HF_REASON_endpoint);
    expect(node, hook, at, kNew, HF_REASON_no_endpoint);
    EXPECT_EQ(node.explain(hook, at, kNew).bank, 0u);
    node.flip(1);
    expect(node, hook, at, kOld, HF_REASON_endpoint);
    expect(node, hook, at, kNew, HF_REASON_endpoint);
    EXPECT_EQ(node.explain(hook, at, kNew).bank, 1u);
  }
}

TEST(Bank, AnEmptyPolicyDeniesAllTenantTraffic) {
  Node node;
  node.send(Hook::from_tenant, Node::red0(), Ip4{} / Tcp{.sport = 50000, .flags = "S"});
  node.flip(1);  // cleared, never filled
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_unknown_port);
  expect(node, Hook::to_tenant, Node::red0(),
         kIn / Tcp{.sport = 443, .dport = 50000, .flags = "SA"}, HF_REASON_unknown_port);
  expect(node, Hook::from_tenant, Node::red0(), Ip4{} / Tcp{.sport = 50000, .flags = "S"},
         HF_REASON_unknown_port);
  expect(node, Hook::from_tenant, Node::red0(), Arp{}, HF_REASON_unknown_port);
  expect(node, Hook::uplink_xdp, Node::uplink(), kOld,
         HF_REASON_not_ours);  // nobody's property now
  node.flip(0);
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_endpoint);
}

TEST(Bank, FlowsGoOnAcrossAFlip) {
  Node node;
  node.stage(1);
  node.standard_policy();
  node.send(Hook::from_tenant, Node::red0(), Ip4{} / Tcp{.sport = 50000, .flags = "S"});
  const Packet answer = kIn / Tcp{.sport = 443, .dport = 50000, .flags = "SA"};
  expect(node, Hook::to_tenant, Node::red0(), answer, HF_REASON_flow);
  node.flip(1);
  expect(node, Hook::to_tenant, Node::red0(), answer, HF_REASON_flow);
  // A bank that gives the port another egress slot: its old flows are not of that lease.
  node.stage(0);
  node.clear_bank();
  node.standard_policy();
  node.port(Node::red0(), "02:00:00:00:00:01", kRed, kSpare);
  node.lease(kSpare);
  node.flip(0);
  expect(node, Hook::from_tenant, Node::red0(), Ip4{} / Tcp{.sport = 50000, .flags = "A"},
         HF_REASON_lease_revoked);
}

TEST(Tenant, OneStoreEndsEverythingOfItAndEnablingRevivesNothing) {
  Node node;
  const Packet out = Ip4{} / Tcp{.sport = 50000, .flags = "S"};
  const Packet answer = kIn / Tcp{.sport = 443, .dport = 50000, .flags = "SA"};
  const Packet blue = Ip4{.from = "192.0.2.9", .to = "10.0.1.1"} / Tcp{.flags = "S"};
  node.send(Hook::from_tenant, Node::red0(), out);
  node.disable_tenant(kRed);
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_tenant_disabled);
  expect(node, Hook::to_tenant, Node::red0(), answer, HF_REASON_tenant_disabled);
  expect(node, Hook::from_tenant, Node::red0(), out, HF_REASON_tenant_disabled);
  expect(node, Hook::uplink_xdp, Node::uplink(), kOld, HF_REASON_tenant_disabled);
  expect(node, Hook::to_tenant, Node::blue0(), blue, HF_REASON_endpoint);
  // Renewed under the old epoch it stays dead; only a new bind is under the new one.
  node.renew(kRed0Tcp4, 100s);
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_tenant_disabled);
  node.lease(kRed0Tcp4, {.incarnation = 2});
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_endpoint);
}

TEST(Slot, OutOfRangeIsDeny) {
  Node node;
  node.endpoint("10.0.0.1", HF_PROTO_TCP, 443, kSlots + 5, Node::red0(), kRed);
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_no_lease);
  expect(node, Hook::uplink_xdp, Node::uplink(), kOld, HF_REASON_no_lease);
  node.port(Node::red0(), "02:00:00:00:00:01", kRed, HF_NO_SLOT);
  expect(node, Hook::from_tenant, Node::red0(), Ip4{} / Tcp{.sport = 50000, .flags = "S"},
         HF_REASON_no_egress_lease);
}

TEST(Slot, OfATenantThatDoesNotExistIsDeny) {
  Node node;
  const std::uint32_t nobody = HF_TENANTS_MAX;
  node.endpoint("10.0.0.1", HF_PROTO_TCP, 443, kRed0Tcp4, Node::red0(), nobody);
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_no_lease);
  expect(node, Hook::uplink_xdp, Node::uplink(), kOld, HF_REASON_no_lease);
}

// A slot that the tables give to one tenant and a lease to another is nobody's.
TEST(Slot, OfAnotherTenantsLeaseIsDeny) {
  const auto bind = [](std::uint32_t slot) {
    return [slot](Node& n) { n.lease(slot, {.tenant = kBlue}); };
  };
  const Packet begins = Ip4{} / Tcp{.sport = 50000, .flags = "S"};
  const Packet answer = Ip4{} / Tcp{.sport = 443, .dport = 40000, .flags = "SA"};
  const Packet across = Ip4{.to = "10.0.1.1"} / Tcp{.sport = 50000, .flags = "S"};
  const Packet later = fragment(kIn / Tcp{} / zeros(300), 9, 104, 208);
  const auto egress_moves = [](Node& n) { n.lease(kRed0Egress, {.tenant = kBlue}); };
  const auto begun = [begins](Node& n) { n.send(Hook::from_tenant, Node::red0(), begins); };
  const Packet reply = kIn / Tcp{.sport = 443, .dport = 50000, .flags = "SA"};
  const auto blue_names_red = [](Node& n) {
    n.lease(kBlue0Tcp4, {.tenant = kBlue, .peer = "10.0.0.1", .peer_bits = 128});
  };
  const auto red_holds_blues = [](Node& n) {
    n.lease(kBlue0Tcp4, {.tenant = kRed, .peer = "10.0.0.1", .peer_bits = 128});
  };
  run({
      {.name = "to the endpoint",
       .packet = kOld,
       .change = bind(kRed0Tcp4),
       .verdict = HF_REASON_no_lease},
      {.name = "to the endpoint, from the uplink",
       .hook = Hook::uplink_xdp,
       .packet = kOld,
       .change = bind(kRed0Tcp4),
       .verdict = HF_REASON_no_lease},
      {.name = "from the endpoint",
       .hook = Hook::from_tenant,
       .packet = answer,
       .change = bind(kRed0Tcp4),
       .verdict = HF_REASON_no_lease},
      {.name = "egress",
       .hook = Hook::from_tenant,
       .packet = begins,
       .control = HF_REASON_egress,
       .change = egress_moves,
       .verdict = HF_REASON_no_egress_lease},
      {.name = "a flow",
       .packet = reply,
       .given = begun,
       .control = HF_REASON_flow,
       .change = egress_moves,
       .verdict = HF_REASON_lease_revoked},
      {.name = "across the boundary",
       .hook = Hook::from_tenant,
       .packet = across,
       .given = blue_names_red,
       .control = HF_REASON_egress,
       .change = red_holds_blues,
       .verdict = HF_REASON_lateral},
      {.name = "a later fragment",
       .packet = later,
       .control_packet = {fragment(kIn / Tcp{} / zeros(300), 9, 0, 104)},
       .change = bind(kRed0Tcp4),
       .verdict = HF_REASON_no_lease},
  });
}

TEST(Slot, OfATenantWhoseEpochWentOnIsDeny) {
  Node node;
  node.disable_tenant(kRed);
  node.lease(kRed0Tcp4);  // bound under the new epoch
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_endpoint);
  node.disable_tenant(kRed);
  expect(node, Hook::to_tenant, Node::red0(), kOld, HF_REASON_tenant_disabled);
}

TEST(Explain, NamesTheLeaseThatDecided) {
  Node node;
  const verdict passed = node.explain(Hook::to_tenant, Node::red0(), kOld);
  EXPECT_EQ(passed.reason, static_cast<__u32>(HF_REASON_endpoint));
  EXPECT_EQ(passed.slot, static_cast<__u32>(kRed0Tcp4));
  EXPECT_EQ(passed.tenant, kRed);
  EXPECT_EQ(passed.gate, node.gate(kRed0Tcp4));
  const verdict egress =
      node.explain(Hook::from_tenant, Node::red0(), Ip4{} / Tcp{.sport = 50000, .flags = "S"});
  EXPECT_EQ(egress.reason, static_cast<__u32>(HF_REASON_egress));
  EXPECT_EQ(egress.slot, static_cast<__u32>(kRed0Egress));
  EXPECT_TRUE(node.flows(kRed).empty()) << "explaining an opening does not open";
  const verdict malformed = node.explain(Hook::to_tenant, Node::red0(), kIn / Tcp{.flags = "SF"});
  EXPECT_EQ(malformed.reason, static_cast<__u32>(HF_REASON_l4_header));
  EXPECT_EQ(malformed.slot, static_cast<__u32>(HF_NO_SLOT));
  EXPECT_EQ(malformed.tenant, static_cast<__u32>(HF_TENANTS_MAX));
  const verdict foreign = node.explain(Hook::uplink_xdp, Node::uplink(),
                                       Ip4{.from = "192.0.2.9", .to = "203.0.113.1"} / Tcp{});
  EXPECT_EQ(foreign.reason, static_cast<__u32>(HF_REASON_not_ours));
}

}  // namespace
}  // namespace holdfast::test
