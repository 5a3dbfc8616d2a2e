// The source guard: a port speaks for its own MAC, its own addresses and in no other role (G13).
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

const std::string kMac(kTenantMac);
const std::string kOther = "02:00:00:00:00:03";  // blue0's
const Tcp kSyn{.sport = 50000, .flags = "S"};

Row from_red0(const char* name, const Packet& packet, hf_reason control,
              const Packet& control_packet, hf_reason verdict) {
  return {.name = name,
          .hook = Hook::from_tenant,
          .packet = packet,
          .control = control,
          .control_packet = {control_packet},
          .verdict = verdict};
}

TEST(Spoof, MacAndAddresses) {
  const auto row = [](const char* name, const Packet& packet, hf_reason verdict) {
    return from_red0(name, packet, HF_REASON_egress, Ip4{} / kSyn, verdict);
  };
  run({
      row("another port's MAC", Ether{.from = kOther} / Ip4{} / kSyn, HF_REASON_spoofed_mac),
      row("a multicast MAC", Ether{.from = "01:00:5e:00:00:01"} / Ip4{} / kSyn,
          HF_REASON_spoofed_mac),
      row("one bit of the MAC", Ether{.from = "02:00:00:00:00:00"} / Ip6{} / kSyn,
          HF_REASON_spoofed_mac),
      row("ARP by another MAC", Ether{.from = kOther} / Arp{}, HF_REASON_spoofed_mac),
      row("the other port's address", Ip4{.from = "10.0.0.2"} / kSyn, HF_REASON_spoofed_address),
      row("another tenant's address", Ip4{.from = "10.0.1.1"} / kSyn, HF_REASON_spoofed_address),
      row("the host's address", Ip4{.from = "10.0.0.254"} / kSyn, HF_REASON_spoofed_address),
      row("the metadata service's address", Ip4{.from = "169.254.169.254"} / kSyn,
          HF_REASON_spoofed_address),
      row("nobody's address", Ip4{.from = "10.0.0.77"} / kSyn, HF_REASON_spoofed_address),
      row("0.0.0.0, as a DHCP client",
          Ether{.to = "ff:ff:ff:ff:ff:ff"} / Ip4{.from = "0.0.0.0", .to = "255.255.255.255"} /
              Udp{.sport = 68, .dport = 67},
          HF_REASON_spoofed_address),
      row("another tenant's endpoint", Ip4{.from = "10.0.1.1"} / Tcp{.sport = 443, .dport = 40000},
          HF_REASON_spoofed_address),
      row("v6: the other port's address", Ip6{.from = "fd00::2"} / kSyn, HF_REASON_spoofed_address),
      row("v6: another tenant's address", Ip6{.from = "fd00:1::1"} / kSyn,
          HF_REASON_spoofed_address),
      row("v6: unspecified", Ip6{.from = "::"} / kSyn, HF_REASON_spoofed_address),
      row("v6: IPv4-mapped", Ip6{.from = "::ffff:10.0.0.1"} / kSyn, HF_REASON_ip_header),
      row("a later fragment", Ip4{.from = "10.0.1.1", .offset = 8, .protocol = 17} / zeros(8),
          HF_REASON_spoofed_address),
      row("an ICMP error from another's address",
          Ip4{.from = "10.0.1.1"} /
              icmp_error(3, 3, Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Tcp{}),
          HF_REASON_spoofed_address),
      row("a DHCP server", Ip4{} / Udp{.sport = 67, .dport = 68}, HF_REASON_spoofed_neighbour),
      row("a DHCP server answering a relay", Ip4{} / Udp{.sport = 67, .dport = 67},
          HF_REASON_spoofed_neighbour),
      row("a DHCPv6 server", Ip6{} / Udp{.sport = 547, .dport = 546}, HF_REASON_spoofed_neighbour),
  });
}

TEST(Spoof, UnknownPort) {
  run({
      {.name = "from an interface the policy does not name",
       .hook = Hook::from_tenant,
       .packet = Ip4{} / kSyn,
       .control = HF_REASON_egress,
       .change = [](Node& n) { n.forget_port(Node::red0()); },
       .verdict = HF_REASON_unknown_port},
      {.name = "ARP from it",
       .hook = Hook::from_tenant,
       .packet = Arp{},
       .control = HF_REASON_neighbour,
       .change = [](Node& n) { n.forget_port(Node::red0()); },
       .verdict = HF_REASON_unknown_port},
      {.name = "ARP to it",
       .hook = Hook::to_tenant,
       .packet = Arp{},
       .control = HF_REASON_neighbour,
       .change = [](Node& n) { n.forget_port(Node::red0()); },
       .verdict = HF_REASON_unknown_port},
      {.name = "to it",
       .hook = Hook::to_tenant,
       .packet = Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Udp{.dport = 99},
       .given =
           [](Node& n) {
             n.send(Hook::from_tenant, Node::red0(), Ip4{} / Udp{.sport = 50000, .dport = 123});
           },
       .control = HF_REASON_flow,
       .control_packet = {Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} /
                          Udp{.sport = 123, .dport = 50000}},
       .change = [](Node& n) { n.forget_port(Node::red0()); },
       .verdict = HF_REASON_unknown_port},
  });
}

TEST(Spoof, Arp) {
  const auto row = [](const char* name, const Packet& packet,
                      hf_reason verdict = HF_REASON_spoofed_neighbour) {
    return from_red0(name, packet, HF_REASON_neighbour, Arp{}, verdict);
  };
  run({
      row("for another tenant's address", Arp{.sender = "10.0.1.1"}),
      row("for the other port's address", Arp{.sender = "10.0.0.2"}),
      row("for the host's address", Arp{.sender = "10.0.0.254"}),
      row("for nobody's address", Arp{.sender = "10.0.0.77"}),
      row("a reply for the gateway",
          Arp{.operation = 2, .sender = "10.0.0.254", .target = "10.0.0.2"}),
      row("gratuitous, for the gateway", Arp{.sender = "10.0.0.254", .target = "10.0.0.254"}),
      row("its own address at another's MAC", Arp{.sender_mac = kOther}),
      row("its own address at no MAC", Arp{.operation = 2, .sender_mac = "00:00:00:00:00:00"}),
      row("a probe for another's address", Arp{.sender = "0.0.0.0", .target = "10.0.1.1"}),
      row("tagged", Ether{} / Vlan{} / Arp{}, HF_REASON_vlan),
      row("inverse", Arp{.operation = 8}, HF_REASON_l4_header),
  });
  for (const Packet& honest :
       {Packet(Arp{}), Packet(Arp{.operation = 2}), Packet(Arp{.target = "10.0.0.1"}),
        Packet(Arp{.sender = "0.0.0.0", .target = "10.0.0.1"})}) {
    Node node;
    node.gate(kRed0Egress, 0);  // neighbours need no lease
    expect(node, Hook::from_tenant, Node::red0(), honest, HF_REASON_neighbour, 3);
    expect(node, Hook::to_tenant, Node::red0(), honest, HF_REASON_neighbour, 3);
  }
}

TEST(Spoof, NeighbourDiscovery) {
  const Packet honest =
      nd("fd00::1", "ff02::1:ff00:fe", {.target = "fd00::fe", .source_mac = kMac});
  const auto row = [&](const char* name, const Packet& packet,
                       hf_reason verdict = HF_REASON_spoofed_neighbour) {
    return from_red0(name, packet, HF_REASON_neighbour, honest, verdict);
  };
  run({
      row("solicitation with another's MAC",
          nd("fd00::1", "ff02::1:ff00:fe", {.source_mac = kOther})),
      row("solicitation from another's address",
          nd("fd00:1::1", "ff02::1:ff00:fe", {.source_mac = kMac})),
      row("solicitation from the host's address",
          nd("fd00::fe", "ff02::1:ff00:fe", {.source_mac = kMac})),
      row("detection of another's address", nd("::", "ff02::1:ff00:1", {.target = "fd00:1::1"})),
      row("advertisement of another's address",
          nd("fd00::1", "fd00::fe", {.type = 136, .target = "fd00:1::1", .target_mac = kMac})),
      row("advertisement of the gateway",
          nd("fd00::1", "ff02::1", {.type = 136, .target = "fd00::fe", .target_mac = kMac})),
      row("advertisement with another's MAC",
          nd("fd00::1", "fd00::fe", {.type = 136, .target = "fd00::1", .target_mac = kOther})),
      row("advertisement from another's address",
          nd("fd00:1::1", "fd00::fe", {.type = 136, .target = "fd00::1", .target_mac = kMac})),
      row("router advertisement", nd("fe80::1", "ff02::1", {.type = 134, .source_mac = kMac})),
      row("redirect", nd("fe80::1", "fd00::fe", {.type = 137, .target = "fe80::1"})),
      row("router solicitation from another's address", nd("fd00:1::1", "ff02::2", {.type = 133})),
      row("hop limit 254", Ip6{.to = "ff02::1:ff00:fe", .hop_limit = 254} / Nd{.source_mac = kMac},
          HF_REASON_l4_header),
      row("two link-layer addresses",
          nd("fd00::1", "ff02::1:ff00:fe", {.source_mac = kMac, .target_mac = kOther}),
          HF_REASON_l4_header),
      // Hop limit 255 does not keep it on the link: the node would forward it, without any lease
      // (G1).
      row("solicitation to the outside world", nd("fd00::1", "2001:db8::9", {.target = "fd00::fe"}),
          HF_REASON_destination_denied),
      row("solicitation to another tenant", nd("fd00::1", "fd00:1::1", {.target = "fd00:1::1"}),
          HF_REASON_destination_denied),
      row("advertisement to the outside world",
          nd("fd00::1", "2001:db8::9", {.type = 136, .target = "fd00::1"}),
          HF_REASON_destination_denied),
      row("router solicitation to the outside world", nd("fd00::1", "2001:db8::9", {.type = 133}),
          HF_REASON_destination_denied),
      row("solicitation to all of the site", nd("fd00::1", "ff05::1", {.target = "fd00::fe"}),
          HF_REASON_destination_denied),
  });
  const std::vector<Packet> fine = {
      honest,
      nd("fe80::1", "ff02::1:ff00:fe", {.source_mac = kMac}),
      nd("fd00::1", "fd00::fe", {.target = "fd00::fe"}),
      nd("fd00::1", "fe80::fe", {.target = "fe80::fe"}),
      nd("::", "ff02::1:ff00:1", {.target = "fd00::1"}),
      nd("fd00::1", "fd00::fe", {.type = 136, .target = "fd00::1", .target_mac = kMac}),
      nd("fd00::1", "ff02::1", {.type = 136, .target = "fe80::1", .target_mac = kMac}),
      nd("fe80::1", "ff02::2", {.type = 133, .source_mac = kMac}),
      nd("::", "ff02::2", {.type = 133}),
  };
  for (std::size_t i = 0; i < fine.size(); i++) {
    SCOPED_TRACE("honest message " + std::to_string(i));
    Node node;
    node.gate(kRed0Egress, 0);
    expect(node, Hook::from_tenant, Node::red0(), fine[i], HF_REASON_neighbour, 3);
  }
}

}  // namespace
}  // namespace holdfast::test
