// Fragments: later ones share the first one's verdict while its lease lives; there is no first
// without its whole transport header, no overlap, no orphan.
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

// A datagram in pieces, at one hook.
struct Datagram {
  std::string name;
  Hook hook;
  Packet whole;
  std::uint32_t slot;
  hf_reason passes;
  Packet part(std::size_t begin, std::size_t end, unsigned id = 77) const {
    return fragment(whole, id, begin, end);
  }
  std::uint32_t ifindex() const {
    return direction_of(hook) == HF_FROM_UPLINK ? Node::uplink() : Node::red0();
  }
};

std::vector<Datagram> datagrams() {
  const Ip4 in4{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Ip6 in6{.from = "2001:db8::9", .to = "fd00::1"};
  const Udp ask{.dport = 53}, tell{.sport = 53, .dport = 40000},
      begin{.sport = 50000, .dport = 123};
  const Raw body = zeros(300);
  return {
      {"to the tenant, v4", Hook::to_tenant, in4 / ask / body, kRed0Udp4, HF_REASON_endpoint},
      {"to the tenant, v6", Hook::to_tenant, in6 / ask / body, kRed0Udp6, HF_REASON_endpoint},
      {"to the tenant, TCP", Hook::to_tenant, in4 / Tcp{} / body, kRed0Tcp4, HF_REASON_endpoint},
      {"uplink, v4", Hook::uplink_xdp, in4 / ask / body, kRed0Udp4, HF_REASON_endpoint},
      {"uplink, v6", Hook::uplink_tc, in6 / ask / body, kRed0Udp6, HF_REASON_endpoint},
      {"from the endpoint, v4", Hook::from_tenant, Ip4{} / tell / body, kRed0Udp4,
       HF_REASON_endpoint},
      {"from the endpoint, v6", Hook::from_tenant, Ip6{} / tell / body, kRed0Udp6,
       HF_REASON_endpoint},
      {"by egress, v4", Hook::from_tenant, Ip4{} / begin / body, kRed0Egress, HF_REASON_egress},
      {"by egress, v6", Hook::from_tenant, Ip6{} / begin / body, kRed0Egress, HF_REASON_egress},
      {"echo", Hook::to_tenant, in4 / Echo{} / body, kRed0Echo4, HF_REASON_endpoint},
  };
}

template <typename Body>
void each(Body body) {
  for (const Datagram& d : datagrams()) {
    SCOPED_TRACE(d.name);
    Node node;
    body(node, d, [&node, &d](const Packet& p, hf_reason reason, std::uint32_t repeat = 1) {
      expect(node, d.hook, d.ifindex(), p, reason, repeat);
    });
  }
}

TEST(Fragment, InOrderTheyPass) {
  each([](Node& node, const Datagram& d, auto sees) {
    sees(d.part(0, 104), d.passes);
    sees(d.part(104, 208), HF_REASON_fragment);
    sees(d.part(208, 1000), HF_REASON_fragment);
    EXPECT_EQ(node.fragments(kRed).size(), 1u);
  });
}

TEST(Fragment, OrphansDoNot) {
  each([](Node& node, const Datagram& d, auto sees) {
    sees(d.part(104, 208), HF_REASON_fragment_orphan, 5);
    sees(d.part(0, 104), d.passes);
    sees(d.part(104, 208, 78), HF_REASON_fragment_orphan, 5);  // another datagram's
    node.age_fragments(31s);
    sees(d.part(104, 208), HF_REASON_fragment_orphan, 5);
  });
}

TEST(Fragment, OverlapsDoNot) {
  each([](Node&, const Datagram& d, auto sees) {
    sees(d.part(0, 104), d.passes);
    sees(d.part(8, 112), HF_REASON_fragment_overlap, 5);
    sees(d.part(96, 208), HF_REASON_fragment_overlap, 5);
    sees(d.part(104, 208), HF_REASON_fragment);
    sees(d.part(104, 208), HF_REASON_fragment_overlap, 5);  // the same again
    sees(d.part(200, 1000), HF_REASON_fragment_overlap, 5);
    sees(d.part(208, 1000), HF_REASON_fragment);
  });
}

TEST(Fragment, TheLeaseRevokedBetween) {
  each([](Node& node, const Datagram& d, auto sees) {
    sees(d.part(0, 104), d.passes);
    sees(d.part(104, 208), HF_REASON_fragment);
    node.revoke(d.slot);
    sees(d.part(208, 1000), HF_REASON_lease_revoked, 5);
    node.lease(d.slot, {.incarnation = 2});
    sees(d.part(208, 1000), HF_REASON_lease_revoked, 5);
  });
}

// A push gives the address to another tenant between two fragments.
TEST(Fragment, TheAddressMovesBetween) {
  for (const Datagram& d : datagrams()) {
    if (d.hook != Hook::to_tenant) continue;
    SCOPED_TRACE(d.name);
    Node node;
    expect(node, d.hook, d.ifindex(), d.part(0, 104), d.passes);
    for (const char* text : {"10.0.0.1", "fd00::1"}) node.address(text, kBlue, Node::blue0());
    expect(node, d.hook, d.ifindex(), d.part(104, 208), HF_REASON_wrong_port, 5);
  }
}

TEST(Fragment, TheLeaseEndsBetween) {
  each([](Node& node, const Datagram& d, auto sees) {
    sees(d.part(0, 104), d.passes);
    node.renew(d.slot, -1s);
    sees(d.part(104, 208), HF_REASON_lease_expired, 5);
    node.renew(d.slot, 10s);
    sees(d.part(104, 208), HF_REASON_fragment);
    node.disable_tenant(kRed);
    sees(d.part(208, 1000), HF_REASON_tenant_disabled, 5);
  });
}

TEST(Fragment, ADeniedFirstOneLeavesOrphans) {
  each([](Node& node, const Datagram& d, auto) {
    node.gate(kRed0Egress, 0);
    node.revoke(d.slot);
    EXPECT_FALSE(node.send(d.hook, d.ifindex(), d.part(0, 104)).passed);
    expect(node, d.hook, d.ifindex(), d.part(104, 208), HF_REASON_fragment_orphan);
    EXPECT_TRUE(node.fragments(kRed).empty());
  });
}

TEST(Fragment, ATinyFirstOneIsRefusedAndLeavesOrphans) {
  Node node;
  const Ip4 in{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Packet whole = in / Tcp{.flags = "S"} / zeros(100);
  expect(node, Hook::to_tenant, Node::red0(), fragment(whole, 9, 0, 8), HF_REASON_fragment_overlap,
         5);
  expect(node, Hook::to_tenant, Node::red0(), fragment(whole, 9, 0, 16), HF_REASON_fragment_overlap,
         5);
  expect(node, Hook::to_tenant, Node::red0(), fragment(whole, 9, 16, 48), HF_REASON_fragment_orphan,
         5);
  expect(node, Hook::to_tenant, Node::red0(), fragment(whole, 9, 0, 24), HF_REASON_endpoint);
}

// G13: first fragments that a tenant sends, or that are sent to it, evict nobody else's.
TEST(Fragment, OneTenantsFloodLeavesTheOthersAlone) {
  const Packet blue = Ip4{.from = "192.0.2.9", .to = "10.0.1.1"} / Tcp{} / zeros(300);
  const Packet from_red = Ip4{} / Udp{.sport = 53, .dport = 40000} / zeros(300);
  const Packet to_red = Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Udp{.dport = 53} / zeros(300);
  struct At {
    Hook hook;
    std::uint32_t ifindex;
  };
  const At blues[] = {{Hook::to_tenant, Node::blue0()}, {Hook::uplink_xdp, Node::uplink()}};
  struct Flood {
    std::string name;
    At at;
    Packet datagram;
  };
  const std::vector<Flood> floods = {
      {"from red", {Hook::from_tenant, Node::red0()}, from_red},
      {"to red", {Hook::to_tenant, Node::red0()}, to_red},
      {"to red, uplink", {Hook::uplink_xdp, Node::uplink()}, to_red},
  };
  for (const Flood& flood : floods) {
    SCOPED_TRACE(flood.name);
    Node node;
    for (const At& at : blues)
      expect(node, at.hook, at.ifindex, fragment(blue, 9, 0, 104), HF_REASON_endpoint);
    for (unsigned id = 0; id < 3 * HF_FRAGMENTS_MAX; id++) {
      const Packet first = fragment(flood.datagram, id, 0, 104);
      ASSERT_TRUE(node.send(flood.at.hook, flood.at.ifindex, first).passed);
    }
    EXPECT_LE(node.fragments(kRed).size(), static_cast<std::size_t>(HF_FRAGMENTS_MAX));
    for (const At& at : blues)
      expect(node, at.hook, at.ifindex, fragment(blue, 9, 104, 208), HF_REASON_fragment);
  }
}

TEST(Fragment, WithoutATableOfTheTenantLaterOnesAreOrphans) {
  each([](Node& node, const Datagram& d, auto sees) {
    node.drop_tables(kRed);
    sees(d.part(0, 104), d.passes);
    sees(d.part(104, 208), HF_REASON_fragment_orphan, 5);
  });
}

TEST(Fragment, OfADatagramThatIsWholeInOnePieceNeedsNoState) {
  Node node;
  const Packet atomic =
      Ip6{.from = "2001:db8::9", .to = "fd00::1"} / Fragment6{.id = 5} / Udp{.dport = 53};
  expect(node, Hook::to_tenant, Node::red0(), atomic, HF_REASON_endpoint, 3);
  EXPECT_TRUE(node.fragments(kRed).empty());
}

TEST(Fragment, OneDirectionOrPortDoesNotVouchForAnother) {
  Node node;
  const Datagram in = datagrams()[0];
  expect(node, Hook::to_tenant, Node::red0(), in.part(0, 104), HF_REASON_endpoint);
  expect(node, Hook::uplink_xdp, Node::uplink(), in.part(104, 208), HF_REASON_fragment_orphan);
  expect(node, Hook::to_tenant, Node::red1(), in.part(104, 208), HF_REASON_wrong_port);
  node.address("10.0.0.1", kRed, Node::red1());
  expect(node, Hook::to_tenant, Node::red1(), in.part(104, 208), HF_REASON_fragment_orphan);
}

TEST(Fragment, LaterOnesReachNoForbiddenDestination) {
  const auto later = [](const char* to) {
    return Packet(Ip4{.to = to, .offset = 104, .protocol = 17} / zeros(8));
  };
  Node node;
  expect(node, Hook::from_tenant, Node::red0(), later("10.0.0.254"), HF_REASON_host);
  expect(node, Hook::from_tenant, Node::red0(), later("169.254.169.254"), HF_REASON_metadata);
  expect(node, Hook::from_tenant, Node::red0(), later("224.0.0.1"), HF_REASON_destination_denied);
  expect(node, Hook::from_tenant, Node::red0(), later("10.0.1.1"), HF_REASON_fragment_orphan);
}

}  // namespace
}  // namespace holdfast::test
