// Boundaries (G13): where a tenant may not send, and what crosses from one tenant to another.
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

const Tcp kSyn{.sport = 50000, .flags = "S"};
const Packet kHonest4 = Ip4{} / kSyn;
const Packet kHonest6 = Ip6{} / kSyn;

TEST(Boundary, DestinationsNoTenantReaches) {
  std::vector<Row> rows;
  const auto to = [&](const char* address, hf_reason verdict) {
    const bool v6 = std::string_view(address).find(':') != std::string_view::npos;
    const Packet honest = v6 ? kHonest6 : kHonest4;
    rows.push_back({.name = std::string("to ") + address,
                    .hook = Hook::from_tenant,
                    .packet = v6 ? Ip6{.to = address} / kSyn : Ip4{.to = address} / kSyn,
                    .control = HF_REASON_egress,
                    .control_packet = {honest},
                    .verdict = verdict});
  };
  for (const char* address : {"10.0.0.254", "203.0.113.1", "fd00::fe", "fe80::fe"})
    to(address, HF_REASON_host);
  for (const char* address : {"169.254.169.254", "fd00:ec2::254"}) to(address, HF_REASON_metadata);
  for (const char* address :
       {"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.0.1", "169.254.169.253",
        "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::10.0.0.1",
        "fe80::2", "febf::1", "ff02::1", "ff0e::1"})
    to(address, HF_REASON_destination_denied);
  run(rows);
}

TEST(Boundary, NextToTheDeniedRangesIsAllowed) {
  for (const char* address : {"1.0.0.1", "126.255.255.255", "128.0.0.1", "169.253.1.1",
                              "169.255.0.1", "223.255.255.255"}) {
    SCOPED_TRACE(address);
    Node node;
    expect(node, Hook::from_tenant, Node::red0(), Ip4{.to = address} / kSyn, HF_REASON_egress);
  }
  for (const char* address : {"fe7f::1", "fec0::1", "fd00:2::1", "2001:db8::1", "64:ff9b::1"}) {
    SCOPED_TRACE(address);
    Node node;
    expect(node, Hook::from_tenant, Node::red0(), Ip6{.to = address} / kSyn, HF_REASON_egress);
  }
}

TEST(Boundary, AnEndpointsAnswersReachNoForbiddenDestinationEither) {
  const Tcp answer{.sport = 443, .dport = 40000, .flags = "SA"};
  const Packet honest = Ip4{} / answer;
  const auto row = [&](const char* to, hf_reason verdict) {
    return Row{.name = to,
               .hook = Hook::from_tenant,
               .packet = Ip4{.to = to} / answer,
               .control_packet = {honest},
               .verdict = verdict};
  };
  run({row("10.0.0.254", HF_REASON_host), row("169.254.169.254", HF_REASON_metadata),
       row("224.0.0.1", HF_REASON_destination_denied), row("10.0.1.1", HF_REASON_lateral)});
}

// red0 to blue0: only to an endpoint whose live lease names red0, and back by the same.
TEST(Lateral, OnlyToAnEndpointWhoseLeaseNamesThePeer) {
  struct Family {
    std::string name;
    Packet across, elsewhere, answer;
    std::uint32_t slot;
    std::string red, other;
    std::uint32_t bits, net_bits;
  };
  const Ether from_blue{.from = "02:00:00:00:00:03"};
  const Tcp answer{.sport = 443, .dport = 50000, .flags = "SA"};
  const std::vector<Family> families = {
      {"v4", Ip4{.to = "10.0.1.1"} / kSyn,
       Ip4{.to = "10.0.1.1"} / Tcp{.sport = 50000, .dport = 80, .flags = "S"},
       from_blue / Ip4{.from = "10.0.1.1", .to = "10.0.0.1"} / answer, kBlue0Tcp4, "10.0.0.1",
       "10.0.0.2", 128, 120},
      {"v6", Ip6{.to = "fd00:1::1"} / kSyn,
       Ip6{.to = "fd00:1::1"} / Tcp{.sport = 50000, .dport = 80, .flags = "S"},
       from_blue / Ip6{.from = "fd00:1::1", .to = "fd00::1"} / answer, kBlue0Tcp6, "fd00::1",
       "fd00::2", 128, 64},
  };
  for (const Family& f : families) {
    SCOPED_TRACE(f.name);
    Node node;
    const auto from_red = [&](const Packet& p, hf_reason reason) {
      expect(node, Hook::from_tenant, Node::red0(), p, reason, reason == HF_REASON_egress ? 1 : 3);
    };
    from_red(f.across, HF_REASON_lateral);  // its lease is for everyone, which no other tenant is
    EXPECT_TRUE(node.flows(kRed).empty());
    expect(node, Hook::from_tenant, Node::blue0(), f.answer, HF_REASON_lateral);

    node.lease(f.slot, {.tenant = kBlue, .peer = f.red, .peer_bits = f.bits});
    from_red(f.across, HF_REASON_egress);
    from_red(f.across, HF_REASON_flow);
    expect(node, Hook::to_tenant, Node::blue0(), f.across, HF_REASON_endpoint, 3);
    expect(node, Hook::from_tenant, Node::blue0(), f.answer, HF_REASON_endpoint, 3);
    expect(node, Hook::to_tenant, Node::red0(), f.answer, HF_REASON_flow, 3);
    from_red(f.elsewhere, HF_REASON_lateral);

    // An established flow crosses only while that lease lives: judged again for every packet.
    node.lease(f.slot, {.tenant = kBlue, .peer = f.other, .peer_bits = f.bits});
    from_red(f.across, HF_REASON_lateral);
    node.lease(f.slot, {.tenant = kBlue, .peer = f.red, .peer_bits = f.net_bits});
    from_red(f.across, HF_REASON_flow);
    node.lease(f.slot, {.tenant = kBlue, .expires_in = -1s, .peer = f.red, .peer_bits = f.bits});
    from_red(f.across, HF_REASON_lateral);
    expect(node, Hook::to_tenant, Node::blue0(), f.across, HF_REASON_lease_expired);
    node.lease(f.slot, {.tenant = kBlue, .peer = f.red, .peer_bits = f.bits});
    node.disable_tenant(kBlue);
    from_red(f.across, HF_REASON_lateral);
    node.lease(f.slot, {.tenant = kBlue, .peer = f.red, .peer_bits = f.bits});
    from_red(f.across, HF_REASON_flow);

    // And it needs the sender's own egress besides.
    node.revoke(kRed0Egress);
    from_red(f.across, HF_REASON_no_egress_lease);
  }
}

// What reaches blue's port from red by a lease without a peer: however it came past red's own port
// (a lease of red's that names blue lets its endpoint answer there).
TEST(Lateral, ALeaseWithoutAPeerIsNotForOtherTenants) {
  const Udp ask{.sport = 53, .dport = 53};
  const Ip4 to_blue{.from = "192.0.2.9", .to = "10.0.1.1"},
      red_to_blue{.from = "10.0.0.1", .to = "10.0.1.1"};
  const Ip6 to_blue6{.from = "2001:db8::9", .to = "fd00:1::1"},
      red_to_blue6{.from = "fd00::1", .to = "fd00:1::1"};
  const auto serves_udp = [](Node& n) {
    n.endpoint("10.0.1.1", HF_PROTO_UDP, 53, kSpare, Node::blue0(), kBlue);
    n.lease(kSpare, {.tenant = kBlue});
  };
  const Packet served = Ip4{.from = "10.0.1.1", .to = "192.0.2.9"} / Tcp{.sport = 443};
  const auto row = [&](const char* name, const Packet& packet, const Packet& honest,
                       hf_reason control = HF_REASON_endpoint, Change change = {},
                       hf_reason verdict = HF_REASON_lateral) {
    return Row{.name = name,
               .port = Node::blue0,
               .packet = packet,
               .given = serves_udp,
               .control = control,
               .control_packet = {honest},
               .change = std::move(change),
               .verdict = verdict};
  };
  const auto revoke = [](Node& n) { n.revoke(kBlue0Tcp4); };
  const auto names_red = [](Node& n) {
    n.lease(kBlue0Tcp4, {.tenant = kBlue, .peer = "10.0.0.1", .peer_bits = 128});
  };
  run({
      row("UDP", red_to_blue / ask, to_blue / ask),
      row("TCP", red_to_blue / kSyn, to_blue / kSyn),
      row("TCP, v6", red_to_blue6 / kSyn, to_blue6 / kSyn),
      row("from another port of red's", Ip4{.from = "10.0.0.2", .to = "10.0.1.1"} / kSyn,
          to_blue / kSyn),
      row("an ICMP error, by who sends it", red_to_blue / icmp_error(3, 4, served),
          Ip4{.from = "198.51.100.1", .to = "10.0.1.1"} / icmp_error(3, 4, served),
          HF_REASON_icmp_error),
      row("the lease is judged first", red_to_blue / kSyn, to_blue / kSyn, HF_REASON_endpoint,
          revoke, HF_REASON_no_lease),
      row("a lease that names red", red_to_blue / kSyn, to_blue / kSyn, HF_REASON_endpoint,
          names_red, HF_REASON_endpoint),
      row("the node itself is no tenant", Ip4{.from = "10.0.0.254", .to = "10.0.1.1"} / kSyn,
          to_blue / kSyn, HF_REASON_endpoint, {}, HF_REASON_endpoint),
  });
}

TEST(Lateral, TheTenantsOwnOtherPortIsNotLateral) {
  Node node;
  node.endpoint("10.0.0.2", HF_PROTO_TCP, 443, kSpare, Node::red1(), kRed);
  node.lease(kSpare);
  const Packet across = Ip4{.to = "10.0.0.2"} / kSyn;
  expect(node, Hook::from_tenant, Node::red0(), across, HF_REASON_egress);
  expect(node, Hook::to_tenant, Node::red1(), across, HF_REASON_endpoint);
}

TEST(Boundary, WhatIsNotOursIsLeftToTheHost) {
  const std::vector<std::pair<const char*, Packet>> foreign = {
      {"to the host", Ip4{.from = "192.0.2.9", .to = "203.0.113.1"} / kSyn},
      {"to the host, v6", Ip6{.from = "2001:db8::9", .to = "fd00::fe"} / kSyn},
      {"in transit", Ip4{.from = "192.0.2.9", .to = "198.51.100.1"} / kSyn},
      {"malformed, in transit",
       Ip4{.from = "192.0.2.9", .to = "198.51.100.1", .options = {1, 1, 1, 1}} / kSyn},
      {"SCTP to the host",
       Ip4{.from = "192.0.2.9", .to = "203.0.113.1", .protocol = 132} / zeros(20)},
      {"a later fragment to the host",
       Ip4{.from = "192.0.2.9", .to = "203.0.113.1", .offset = 8, .protocol = 17} / zeros(20)},
      {"ARP", Packet(Arp{})},
      {"neighbour discovery", nd("fe80::9", "ff02::1", {})},
      {"LLDP", Ether{.type = 0x88cc} / zeros(46)},
      {"three tags", Ether{} / Vlan{} / Vlan{} / Vlan{} / Ip4{.to = "10.0.0.1"} / kSyn},
  };
  for (const auto& [name, packet] : foreign) {
    SCOPED_TRACE(name);
    Node node;
    expect(node, Hook::uplink_xdp, Node::uplink(), packet, HF_REASON_not_ours, 3);
    expect(node, Hook::uplink_tc, Node::uplink(), packet, HF_REASON_not_ours, 3);
  }
}

TEST(Boundary, OnTheUplinkNobodyClaimsATenantsAddress) {
  const Packet honest = Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Tcp{};
  const auto row = [&](const char* name, const Packet& packet) {
    return Row{.name = name,
               .hook = Hook::uplink_xdp,
               .packet = packet,
               .control_packet = {honest},
               .verdict = HF_REASON_spoofed_address};
  };
  run({
      row("to a live endpoint", Ip4{.from = "10.0.0.2", .to = "10.0.0.1"} / Tcp{}),
      row("to the host", Ip4{.from = "10.0.1.1", .to = "203.0.113.1"} / kSyn),
      row("v6, in transit", Ip6{.from = "fd00:1::1", .to = "2001:db8::1"} / kSyn),
      row("malformed",
          Ip4{.from = "10.0.0.1", .to = "203.0.113.1", .options = {1, 1, 1, 1}} / kSyn),
      row("a later fragment",
          Ip4{.from = "10.0.0.1", .to = "203.0.113.1", .offset = 8, .protocol = 17} / zeros(8)),
  });
}

}  // namespace
}  // namespace holdfast::test
