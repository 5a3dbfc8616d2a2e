// Flows: what a tenant begins under a live egress lease, and nothing else (G1, G5).
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

struct Exchange {
  std::string name;
  Packet opening;  // red0 begins
  Packet answer;
  Packet more;  // red0 goes on
};

std::vector<Exchange> exchanges() {
  const Ip4 out4{.from = "10.0.0.1", .to = "192.0.2.9"}, in4{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Ip6 out6{.from = "fd00::1", .to = "2001:db8::9"},
      in6{.from = "2001:db8::9", .to = "fd00::1"};
  const Tcp syn{.sport = 50000, .dport = 443, .flags = "S"},
      syn_ack{.sport = 443, .dport = 50000, .flags = "SA"};
  const Tcp ack{.sport = 50000, .dport = 443, .flags = "A"};
  const Udp ask{.sport = 50000, .dport = 123}, tell{.sport = 123, .dport = 50000};
  const Echo ping{.id = 9}, pong{.id = 9, .reply = true};
  return {
      {"TCP over IPv4", out4 / syn, in4 / syn_ack, out4 / ack},
      {"TCP over IPv6", out6 / syn, in6 / syn_ack, out6 / ack},
      {"UDP over IPv4", out4 / ask, in4 / tell, out4 / ask},
      {"UDP over IPv6", out6 / ask, in6 / tell, out6 / ask},
      {"echo over IPv4", out4 / ping, in4 / pong, out4 / ping},
      {"echo over IPv6", out6 / ping, in6 / pong, out6 / ping},
  };
}

template <typename Body>
void each(Body body) {
  for (const Exchange& e : exchanges()) {
    SCOPED_TRACE(e.name);
    Node node;
    body(node, e);
  }
}

TEST(Flow, BegunByTheTenantTheAnswerPasses) {
  each([](Node& node, const Exchange& e) {
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_no_endpoint);
    expect(node, Hook::uplink_xdp, Node::uplink(), e.answer, HF_REASON_no_endpoint);
    EXPECT_TRUE(node.flows(kRed).empty()) << "only from_tenant makes flows";
    expect(node, Hook::from_tenant, Node::red0(), e.opening, HF_REASON_egress);
    expect(node, Hook::uplink_xdp, Node::uplink(), e.answer, HF_REASON_flow, 3);
    expect(node, Hook::uplink_tc, Node::uplink(), e.answer, HF_REASON_flow, 3);
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_flow, 3);
    expect(node, Hook::from_tenant, Node::red0(), e.more, HF_REASON_flow, 3);
    const auto flows = node.flows(kRed);
    ASSERT_EQ(flows.size(), 1u);
    EXPECT_EQ(flows[0].slot, static_cast<std::uint32_t>(kRed0Egress));
    EXPECT_EQ(flows[0].incarnation, 1u);
    EXPECT_EQ(flows[0].key.ifindex, Node::red0());
    EXPECT_TRUE(node.flows(kBlue).empty());
  });
}

TEST(Flow, NotBegunWithoutALiveEgressLease) {
  std::vector<Row> rows;
  for (const Exchange& e : exchanges()) {
    const auto row = [&](const char* what, Change change, hf_reason verdict) {
      rows.push_back({.name = e.name + ", " + what,
                      .hook = Hook::from_tenant,
                      .packet = e.opening,
                      .control = HF_REASON_egress,
                      .change = std::move(change),
                      .verdict = verdict});
    };
    row("never leased", [](Node& n) { n.gate(kRed0Egress, 0); }, HF_REASON_no_egress_lease);
    row("revoked", [](Node& n) { n.revoke(kRed0Egress); }, HF_REASON_no_egress_lease);
    row(
        "expired", [](Node& n) { n.lease(kRed0Egress, {.expires_in = -1s}); },
        HF_REASON_lease_expired);
    row("tenant disabled", [](Node& n) { n.disable_tenant(kRed); }, HF_REASON_tenant_disabled);
    row(
        "narrowed to another peer",
        [](Node& n) { n.lease(kRed0Egress, {.peer = "203.0.113.0", .peer_bits = 120}); },
        HF_REASON_peer_not_leased);
  }
  run(rows);
  each([](Node& node, const Exchange& e) {
    node.revoke(kRed0Egress);
    node.send(Hook::from_tenant, Node::red0(), e.opening);
    EXPECT_TRUE(node.flows(kRed).empty()) << "a denied packet begins nothing";
  });
}

TEST(Flow, DiesWithItsLease) {
  std::vector<Row> rows;
  const auto begun = [](const Packet& opening) {
    return [opening](Node& n) { n.send(Hook::from_tenant, Node::red0(), opening); };
  };
  for (const Exchange& e : exchanges()) {
    for (const Hook hook : {Hook::to_tenant, Hook::uplink_xdp}) {
      // The uplink does not look for flows of a port whose egress is closed; the port itself does.
      const hf_reason closed =
          hook == Hook::to_tenant ? HF_REASON_lease_revoked : HF_REASON_no_endpoint;
      const auto row = [&](const char* what, Change change, hf_reason verdict) {
        rows.push_back({.name = e.name + ", " + what,
                        .hook = hook,
                        .packet = e.answer,
                        .given = begun(e.opening),
                        .control = HF_REASON_flow,
                        .change = std::move(change),
                        .verdict = verdict});
      };
      row("revoked", [](Node& n) { n.revoke(kRed0Egress); }, closed);
      row(
          "revoked, then granted anew",
          [](Node& n) {
            n.revoke(kRed0Egress);
            n.lease(kRed0Egress, {.incarnation = 2});
          },
          HF_REASON_lease_revoked);
      row(
          "the gate closed without a new incarnation",
          [](Node& n) { n.gate(kRed0Egress, hf_gate(0, 1)); }, closed);
      row("expired", [](Node& n) { n.renew(kRed0Egress, -1s); }, HF_REASON_lease_expired);
      row("tenant disabled", [](Node& n) { n.disable_tenant(kRed); }, HF_REASON_tenant_disabled);
      row(
          "narrowed to another peer",
          [](Node& n) { n.lease(kRed0Egress, {.peer = "203.0.113.0", .peer_bits = 120}); },
          HF_REASON_peer_not_leased);
    }
  }
  run(rows);
}

TEST(Flow, GoesOnAcrossARenewal) {
  each([](Node& node, const Exchange& e) {
    node.send(Hook::from_tenant, Node::red0(), e.opening);
    node.renew(kRed0Egress, 200s);
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_flow);
    expect(node, Hook::from_tenant, Node::red0(), e.more, HF_REASON_flow);
  });
}

// G5: the tenant's next packet on an old connection does not begin it again under a new lease.
TEST(Flow, ANewLeaseDoesNotReviveAnOldConnection) {
  for (const Exchange& e : {exchanges()[0], exchanges()[1]}) {
    SCOPED_TRACE(e.name);
    Node node;
    node.send(Hook::from_tenant, Node::red0(), e.opening);
    expect(node, Hook::from_tenant, Node::red0(), e.more, HF_REASON_flow);
    node.revoke(kRed0Egress);
    expect(node, Hook::from_tenant, Node::red0(), e.more, HF_REASON_no_egress_lease);
    node.lease(kRed0Egress, {.incarnation = 3});
    expect(node, Hook::from_tenant, Node::red0(), e.more, HF_REASON_lease_revoked);
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_lease_revoked);
    // A new connection by the same ports is a new one.
    expect(node, Hook::from_tenant, Node::red0(), e.opening, HF_REASON_egress);
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_flow);
  }
}

TEST(Flow, OnlyAnOpeningBeginsOne) {
  const Ether from_red1{.from = "02:00:00:00:00:02"};  // which has no endpoints
  const Ip4 out{.from = "10.0.0.2", .to = "192.0.2.9"};
  const Packet syn = out / Tcp{.sport = 50000, .flags = "S"};
  const auto row = [&](const char* name, const Packet& packet) {
    return Row{.name = name,
               .hook = Hook::from_tenant,
               .port = Node::red1,
               .packet = from_red1 / packet,
               .control = HF_REASON_egress,
               .control_packet = {from_red1 / syn},
               .verdict = HF_REASON_lease_revoked};
  };
  run({
      row("mid-stream", out / Tcp{.sport = 50001, .flags = "A"}),
      row("SYN-ACK", out / Tcp{.sport = 50001, .flags = "SA"}),
      row("RST", out / Tcp{.sport = 50001, .flags = "R"}),
      row("echo reply nobody asked for", Ip6{.from = "fd00::2"} / Echo{.id = 3, .reply = true}),
  });
}

TEST(Flow, IncarnationsWrapAndStillDiffer) {
  each([](Node& node, const Exchange& e) {
    node.lease(kRed0Egress, {.incarnation = 0xffffff});
    expect(node, Hook::from_tenant, Node::red0(), e.opening, HF_REASON_egress);
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_flow);
    node.revoke(kRed0Egress);
    EXPECT_EQ(hf_gate_incarnation(node.gate(kRed0Egress)), 0u);
    EXPECT_EQ(hf_gate_deadline_boot_ns(node.gate(kRed0Egress)), 0u)
        << "the carry must not open the gate";
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_lease_revoked);
    node.lease(kRed0Egress, {.incarnation = 0});
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_lease_revoked);
  });
}

TEST(Flow, BelongsToOnePort) {
  each([](Node& node, const Exchange& e) {
    node.send(Hook::from_tenant, Node::red0(), e.opening);
    expect(node, Hook::to_tenant, Node::red1(), e.answer, HF_REASON_wrong_port);
    expect(node, Hook::to_tenant, Node::blue0(), e.answer, HF_REASON_wrong_port);
    // The address moves to red1 (a policy change): red0's flow does not come along.
    for (const char* text : {"10.0.0.1", "fd00::1"}) node.address(text, kRed, Node::red1());
    expect(node, Hook::to_tenant, Node::red1(), e.answer, HF_REASON_no_endpoint);
    expect(node, Hook::uplink_xdp, Node::uplink(), e.answer, HF_REASON_no_endpoint);
  });
}

// A push gives red0's address to blue. The route may still lead to red0 for a while; red's old flow
// no longer opens the port for it.
TEST(Flow, DoesNotKeepAnAddressThatMovedToAnotherTenant) {
  for (const Exchange& e : exchanges()) {
    for (const bool to_blue : {true, false}) {
      SCOPED_TRACE(e.name + (to_blue ? ", to blue" : ", to nobody"));
      Node node;
      node.send(Hook::from_tenant, Node::red0(), e.opening);
      expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_flow);
      for (const char* text : {"10.0.0.1", "fd00::1"}) {
        if (to_blue) node.address(text, kBlue, Node::blue0());
        if (!to_blue) node.forget_address(text);
      }
      expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_wrong_port, 3);
      if (to_blue)
        expect(node, Hook::uplink_xdp, Node::uplink(), e.answer, HF_REASON_no_endpoint, 3);
    }
  }
}

// The port's egress is another lease's now, of a port by another name; the old one may even live
// on.
TEST(Flow, BelongsToThePortsEgressLease) {
  each([](Node& node, const Exchange& e) {
    node.send(Hook::from_tenant, Node::red0(), e.opening);
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_flow);
    node.lease(kSpare);
    node.port(Node::red0(), "02:00:00:00:00:01", kRed, kSpare);
    expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_lease_revoked, 3);
  });
}

TEST(Flow, AnswersOnlyFromWhomItWasBegunWith) {
  Node node;
  const Ip4 out{.from = "10.0.0.1", .to = "192.0.2.9"};
  node.send(Hook::from_tenant, Node::red0(), out / Udp{.sport = 50000, .dport = 123});
  const auto answer = [](const char* from, Udp udp) {
    return Ip4{.from = from, .to = "10.0.0.1"} / Packet(udp);
  };
  expect(node, Hook::to_tenant, Node::red0(), answer("192.0.2.9", {.sport = 123, .dport = 50000}),
         HF_REASON_flow);
  expect(node, Hook::to_tenant, Node::red0(), answer("192.0.2.8", {.sport = 123, .dport = 50000}),
         HF_REASON_no_endpoint);
  expect(node, Hook::to_tenant, Node::red0(), answer("192.0.2.9", {.sport = 124, .dport = 50000}),
         HF_REASON_no_endpoint);
  expect(node, Hook::to_tenant, Node::red0(), answer("192.0.2.9", {.sport = 123, .dport = 50001}),
         HF_REASON_no_endpoint);
}

TEST(Flow, WithoutATableOfTheTenantAnswersAreDenied) {
  Node node;
  const Exchange e = exchanges()[0];
  node.drop_tables(kRed);
  expect(node, Hook::from_tenant, Node::red0(), e.opening, HF_REASON_egress);
  expect(node, Hook::to_tenant, Node::red0(), e.answer, HF_REASON_no_endpoint);
}

TEST(Flow, OneTenantsFloodLeavesTheOthersAlone) {
  Node node;
  const Ip4 blue_out{.from = "10.0.1.1", .to = "192.0.2.9"},
      blue_in{.from = "192.0.2.9", .to = "10.0.1.1"};
  const Packet opening =
      Ether{.from = "02:00:00:00:00:03"} / blue_out / Tcp{.sport = 50000, .flags = "S"};
  const Packet answer = blue_in / Tcp{.sport = 443, .dport = 50000, .flags = "SA"};
  expect(node, Hook::from_tenant, Node::blue0(), opening, HF_REASON_egress);
  for (std::uint16_t port = 1024; port < 1024 + 3000; port++) {
    const Packet flood = Ip4{} / Udp{.sport = port, .dport = 9};
    ASSERT_TRUE(node.send(Hook::from_tenant, Node::red0(), flood).passed);
  }
  EXPECT_LE(node.flows(kRed).size(), 1024u);
  expect(node, Hook::to_tenant, Node::blue0(), answer, HF_REASON_flow);
}

// An ICMP error is judged by what it quotes.
TEST(IcmpError, AboutAFlowOrAnEndpoint) {
  const Ip4 router{.from = "198.51.100.1", .to = "10.0.0.1"},
      out{.from = "10.0.0.1", .to = "192.0.2.9"};
  const Ip4 in{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Ip6 router6{.from = "2001:db8:ffff::1", .to = "fd00::1"},
      out6{.from = "fd00::1", .to = "2001:db8::9"};
  const Ip6 in6{.from = "2001:db8::9", .to = "fd00::1"};
  const Tcp syn{.sport = 50000, .flags = "S"}, served{.sport = 443, .dport = 40000},
      request{.flags = "S"};
  const Udp ask{.sport = 50000, .dport = 123}, tell{.sport = 123, .dport = 50000};

  struct Case {
    std::string name;
    Packet opening;  // begins the flow, if there is to be one
    Packet to_tenant;
    std::uint32_t slot;
    hf_reason revoked;
  };
  const std::vector<Case> cases = {
      {"a flow, v4", out / syn, router / icmp_error(3, 4, out / syn), kRed0Egress,
       HF_REASON_lease_revoked},
      {"a flow, v6", out6 / syn, router6 / icmp_error(2, 0, out6 / syn), kRed0Egress,
       HF_REASON_lease_revoked},
      {"an echo flow", out / Echo{}, router / icmp_error(11, 0, out / Echo{}), kRed0Egress,
       HF_REASON_lease_revoked},
      {"an endpoint, v4",
       {},
       router / icmp_error(11, 0, out / served),
       kRed0Tcp4,
       HF_REASON_no_lease},
      {"an endpoint, v6",
       {},
       router6 / icmp_error(3, 0, out6 / served),
       kRed0Tcp6,
       HF_REASON_no_lease},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Node node;
    const bool flow = !c.opening.layers().empty();
    if (flow) {
      expect(node, Hook::to_tenant, Node::red0(), c.to_tenant, HF_REASON_icmp_unrelated);
      expect(node, Hook::uplink_xdp, Node::uplink(), c.to_tenant, HF_REASON_icmp_unrelated);
      node.send(Hook::from_tenant, Node::red0(), c.opening);
    }
    for (const Hook hook : {Hook::to_tenant, Hook::uplink_xdp, Hook::uplink_tc}) {
      const std::uint32_t ifindex = hook == Hook::to_tenant ? Node::red0() : Node::uplink();
      expect(node, hook, ifindex, c.to_tenant, HF_REASON_icmp_error, 3);
    }
    node.revoke(c.slot);
    expect(node, Hook::to_tenant, Node::red0(), c.to_tenant, c.revoked, 3);
    expect(node, Hook::uplink_xdp, Node::uplink(), c.to_tenant,
           flow ? HF_REASON_icmp_unrelated : c.revoked, 3);
  }

  // From the tenant: about what came to its endpoint, or came back by a flow.
  Node node;
  const Packet about_flow = out / icmp_error(3, 3, in / tell);
  const Packet about_flow6 = out6 / icmp_error(1, 4, in6 / tell);
  const Packet about_endpoint = out / icmp_error(3, 3, in / request);
  const Packet about_endpoint6 = out6 / icmp_error(1, 4, in6 / request);
  expect(node, Hook::from_tenant, Node::red0(), about_flow, HF_REASON_icmp_unrelated);
  expect(node, Hook::from_tenant, Node::red0(), about_flow6, HF_REASON_icmp_unrelated);
  node.send(Hook::from_tenant, Node::red0(), out / ask);
  node.send(Hook::from_tenant, Node::red0(), out6 / ask);
  for (const Packet& p : {about_flow, about_flow6, about_endpoint, about_endpoint6})
    expect(node, Hook::from_tenant, Node::red0(), p, HF_REASON_icmp_error, 3);
  EXPECT_EQ(node.flows(kRed).size(), 2u) << "an error begins no flow";
  node.gate(kRed0Tcp4, 0);
  expect(node, Hook::from_tenant, Node::red0(), about_endpoint, HF_REASON_no_lease);
  node.revoke(kRed0Egress);
  expect(node, Hook::from_tenant, Node::red0(), about_flow, HF_REASON_no_egress_lease);
  node.lease(kRed0Egress, {.incarnation = 9});
  expect(node, Hook::from_tenant, Node::red0(), about_flow, HF_REASON_icmp_unrelated);
}

TEST(IcmpError, RedirectsNeverAndRoutersAdvertisementsFromNoTenant) {
  const Ip4 back{.from = "192.0.2.9", .to = "10.0.0.1"}, out{.from = "10.0.0.1", .to = "192.0.2.9"};
  const Packet redirect4 = back / icmp_error(5, 1, out / Tcp{.sport = 443, .dport = 40000});
  const Packet redirect6 = nd("fe80::fe", "fd00::1", {.type = 137, .target = "fe80::bad"});
  Node node;
  expect(node, Hook::to_tenant, Node::red0(), redirect4, HF_REASON_icmp_unrelated);
  expect(node, Hook::uplink_xdp, Node::uplink(), redirect4, HF_REASON_icmp_unrelated);
  expect(node, Hook::to_tenant, Node::red0(), redirect6, HF_REASON_icmp_unrelated);
  expect(node, Hook::from_tenant, Node::red0(), out / icmp_error(5, 1, back / Tcp{}),
         HF_REASON_icmp_unrelated);
}

}  // namespace
}  // namespace holdfast::test
