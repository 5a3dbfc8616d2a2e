// Malformed packets through the programs: each parser reason is counted under the hook that met it.
// The full tables of what is refused are tests/unit/parser's.
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

struct Bad {
  const char* name;
  Packet from_tenant;  // red0 to the world
  Packet to_tenant;    // the world to red0
  hf_reason reason;
};

std::vector<Bad> bad() {
  const Ip4 out{.from = "10.0.0.1", .to = "192.0.2.9"}, in{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Tcp syn{.flags = "S"};
  const auto ip4 = [](auto set) {
    Ip4 header;
    set(header);
    Ip4 back = header;
    std::swap(back.from, back.to);
    return std::pair(header, back);
  };
  const auto [options, options_in] = ip4([](Ip4& h) { h.options = {1, 1, 1, 1}; });
  const auto [flag, flag_in] = ip4([](Ip4& h) { h.reserved_flag = true; });
  const auto [sctp, sctp_in] = ip4([](Ip4& h) { h.protocol = 132; });
  const auto [longer, longer_in] = ip4([](Ip4& h) { h.total_length = 100; });
  const auto [tiny, tiny_in] = ip4([](Ip4& h) { h.protocol = 6, h.more = true; });
  const Ip6 out6{.from = "fd00::1", .to = "2001:db8::9"},
      in6{.from = "2001:db8::9", .to = "fd00::1"};
  return {
      {"truncated", longer / syn, longer_in / syn, HF_REASON_truncated},
      {"contradicts itself", flag / syn, flag_in / syn, HF_REASON_ip_header},
      {"IPv4 options", options / syn, options_in / syn, HF_REASON_ip_options},
      {"IPv6 routing header", out6 / routing() / syn, in6 / routing() / syn, HF_REASON_ip_options},
      {"IPv6 extension header", out6 / Extension{.number = 135} / syn,
       in6 / Extension{.number = 135} / syn, HF_REASON_ip_extension},
      {"SCTP", sctp / zeros(20), sctp_in / zeros(20), HF_REASON_protocol},
      {"SYN and FIN", out / Tcp{.flags = "SF"}, in / Tcp{.flags = "SF"}, HF_REASON_l4_header},
      {"IPv4 redirect", out / icmp_error(5, 0, in / syn), in / icmp_error(5, 0, out / syn),
       HF_REASON_icmp_unrelated},
      {"tiny first fragment", tiny / zeros(8), tiny_in / zeros(8), HF_REASON_fragment_overlap},
  };
}

TEST(Malformed, EveryHookNamesTheReason) {
  std::vector<Row> rows;
  const Packet honest_out = Ip4{} / Tcp{.sport = 443, .dport = 40000, .flags = "SA"};
  const Packet honest_in = Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Tcp{.flags = "S"};
  for (const Bad& b : bad()) {
    rows.push_back({.name = std::string("from the tenant: ") + b.name,
                    .hook = Hook::from_tenant,
                    .packet = b.from_tenant,
                    .control_packet = {honest_out},
                    .verdict = b.reason});
    rows.push_back({.name = std::string("to the tenant: ") + b.name,
                    .hook = Hook::to_tenant,
                    .packet = b.to_tenant,
                    .control_packet = {honest_in},
                    .verdict = b.reason});
    rows.push_back({.name = std::string("uplink: ") + b.name,
                    .hook = Hook::uplink_xdp,
                    .packet = b.to_tenant,
                    .control_packet = {honest_in},
                    .verdict = b.reason});
  }
  run(rows);
}

TEST(Malformed, LinkLayer) {
  std::vector<Row> rows;
  const Tcp answer{.sport = 443, .dport = 40000, .flags = "SA"}, syn{.flags = "S"};
  const Ip4 in{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Packet out4 = Ip4{} / answer, in4 = in / syn, out6 = Ip6{} / answer,
               in6 = Ip6{.from = "2001:db8::9", .to = "fd00::1"} / syn;
  const auto both = [&](const char* name, auto wrap, hf_reason reason) {
    for (const auto& [hook, packet] :
         {std::pair(Hook::from_tenant, out4), std::pair(Hook::to_tenant, in4),
          std::pair(Hook::from_tenant, out6), std::pair(Hook::to_tenant, in6)}) {
      rows.push_back({.name = name,
                      .hook = hook,
                      .packet = wrap(packet),
                      .control_packet = {packet},
                      .verdict = reason});
    }
  };
  both("a tag", [](const Packet& p) { return Ether{} / Vlan{.id = 5} / p; }, HF_REASON_vlan);
  both("a tag of id 0", [](const Packet& p) { return Ether{} / Vlan{} / p; }, HF_REASON_vlan);
  both(
      "an 802.1ad tag of id 0", [](const Packet& p) { return Ether{} / Vlan{.tpid = 0x88a8} / p; },
      HF_REASON_vlan);
  both(
      "two tags", [](const Packet& p) { return Ether{} / Vlan{.tpid = 0x88a8} / Vlan{} / p; },
      HF_REASON_vlan);
  both(
      "three tags of id 0", [](const Packet& p) { return Ether{} / Vlan{} / Vlan{} / Vlan{} / p; },
      HF_REASON_vlan);
  both(
      "an unknown EtherType", [](const Packet& p) { return Ether{.type = 0x8847} / p; },
      HF_REASON_ethertype);
  run(rows);
}

// On the uplink a tag is the host's business; what is inside is still judged.
TEST(Malformed, AnUplinkMayBeTagged) {
  Node node;
  const Packet tagged =
      Ether{} / Vlan{.id = 5} / Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Tcp{.flags = "S"};
  expect(node, Hook::uplink_xdp, Node::uplink(), tagged, HF_REASON_endpoint);
  node.revoke(kRed0Tcp4);
  expect(node, Hook::uplink_xdp, Node::uplink(), tagged, HF_REASON_no_lease);
  expect(node, Hook::uplink_tc, Node::uplink(), tagged, HF_REASON_no_lease);
}

// A real frame into a real hook: by then the kernel has taken the outer tag out of band.
TEST(Malformed, ATagInMetadataCountsLikeOneInBand) {
  const Packet answer = Ip4{} / Tcp{.sport = 443, .dport = 40000, .flags = "SA"};
  Node node;
  node.inject_at_red0(answer);
  EXPECT_EQ(node.reason_counter(HF_FROM_TENANT, HF_REASON_endpoint).total.packets, 1u);
  node.inject_at_red0(Ether{} / Vlan{} / answer);
  node.inject_at_red0(Ether{} / Vlan{.id = 5} / answer);
  node.inject_at_red0(Ether{} / Vlan{.tpid = 0x88a8} / answer);
  node.inject_at_red0(Ether{} / Vlan{} / Vlan{} / answer);
  EXPECT_EQ(node.reason_counter(HF_FROM_TENANT, HF_REASON_vlan).total.packets, 4u);
  node.inject_at_red0(Ether{} / Vlan{} / Vlan{} / Vlan{} / answer);
  node.inject_at_red0(Ether{} / Vlan{} / Vlan{} / Vlan{} / Vlan{} / answer);
  EXPECT_EQ(node.reason_counter(HF_FROM_TENANT, HF_REASON_vlan).total.packets, 6u);
  EXPECT_EQ(node.reason_counter(HF_FROM_TENANT, HF_REASON_endpoint).total.packets, 1u);
}

// Cut anywhere, a packet has a reason and never passes a tenant's port. PROG_TEST_RUN refuses to
// make an skb without a whole IP header, so the shortest frames go through XDP and the real hook
// alone.
TEST(Malformed, CutAnywhereItHasAReason) {
  Node node;
  const Packet whole =
      Ip6{} / destination_options() / Fragment6{} / Tcp{.sport = 443, .dport = 40000};
  const std::size_t full = whole.bytes().size();
  ASSERT_TRUE(node.send(Hook::from_tenant, Node::red0(), whole).passed);
  for (std::size_t length = 14; length < full; length++) {
    SCOPED_TRACE(length);
    const Packet part = whole.cut(length);
    EXPECT_EQ(node.send(Hook::uplink_xdp, Node::uplink(), part).packets(HF_REASON_unclassified),
              0u);
    if (length < 54) {
      const auto before = node.reason_counter(HF_FROM_TENANT, HF_REASON_truncated).total.packets;
      node.inject_at_red0(part);
      EXPECT_EQ(node.reason_counter(HF_FROM_TENANT, HF_REASON_truncated).total.packets, before + 1);
      continue;
    }
    expect(node, Hook::from_tenant, Node::red0(), part, HF_REASON_truncated);
    expect(node, Hook::to_tenant, Node::red0(), part, HF_REASON_truncated);
    EXPECT_EQ(node.send(Hook::uplink_tc, Node::uplink(), part).packets(HF_REASON_unclassified), 0u);
  }
}

}  // namespace
}  // namespace holdfast::test
