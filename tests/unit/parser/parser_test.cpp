// What the parser refuses, and by which reason: one table a header. Every row's packet is one
// change away from a packet that is accepted (accepted_test.cpp), so that a row fails for what its
// name says.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/fuzz/decoder.hpp"
#include "tests/support/native_parser.hpp"
#include "tests/support/packet.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

struct Row {
  std::string name;
  Packet packet;
  hf_reason reason;
  // Whether the addresses were found before the refusal: what the uplink decides by.
  bool addressed = true;
};

void refuses(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    const Bytes frame = row.packet.bytes();
    const Parsed parsed = parse(frame);
    EXPECT_EQ(parsed.reason, row.reason);
    EXPECT_EQ(parsed.packet.kind != HF_KIND_NONE, row.addressed);
    EXPECT_FALSE(decode(frame).accepted()) << "the independent decoder follows this packet";
  }
}

const Tcp kSyn{.sport = 40000, .dport = 443, .flags = "S"};
const Udp kUdp{.sport = 40000, .dport = 53};
constexpr bool kNotAddressed = false;

TEST(ParserRefuses, Ethernet) {
  refuses({
      {"nothing at all", Packet(Ip4{}).cut(0), HF_REASON_truncated, kNotAddressed},
      {"13 bytes", (Ip4{} / kSyn).cut(13), HF_REASON_truncated, kNotAddressed},
      {"a header alone, IPv4", (Ip4{} / kSyn).cut(14), HF_REASON_truncated, kNotAddressed},
      {"a header alone, ARP", Packet(Arp{}).cut(14), HF_REASON_truncated, kNotAddressed},
      {"unknown EtherType", Ether{.type = 0x1234} / zeros(46), HF_REASON_ethertype, kNotAddressed},
      {"an 802.3 length", Ether{.type = 46} / zeros(46), HF_REASON_ethertype, kNotAddressed},
      {"MPLS", Ether{.type = 0x8847} / zeros(46), HF_REASON_ethertype, kNotAddressed},
      {"PPPoE", Ether{.type = 0x8864} / zeros(46), HF_REASON_ethertype, kNotAddressed},
      {"MACsec", Ether{.type = 0x88e5} / zeros(46), HF_REASON_ethertype, kNotAddressed},
      {"EAPOL", Ether{.type = 0x888e} / zeros(46), HF_REASON_ethertype, kNotAddressed},
      {"the old QinQ tag", Ether{.type = 0x9100} / zeros(46), HF_REASON_ethertype, kNotAddressed},
  });
}

TEST(ParserRefuses, Vlan) {
  const Packet inner = Ip4{} / kSyn;
  refuses({
      {"three tags", Ether{} / Vlan{.id = 1} / Vlan{.id = 2} / Vlan{.id = 3} / inner,
       HF_REASON_vlan, kNotAddressed},
      {"three tags, all id 0", Ether{} / Vlan{} / Vlan{} / Vlan{} / inner, HF_REASON_vlan,
       kNotAddressed},
      {"three 802.1ad tags of id 0",
       Ether{} / Vlan{.tpid = 0x88a8} / Vlan{.tpid = 0x88a8} / Vlan{.tpid = 0x88a8} / inner,
       HF_REASON_vlan, kNotAddressed},
      {"four tags", Ether{} / Vlan{} / Vlan{} / Vlan{} / Vlan{} / inner, HF_REASON_vlan,
       kNotAddressed},
      {"half a tag", (Ether{} / Vlan{} / inner).cut(16), HF_REASON_truncated, kNotAddressed},
      {"half a second tag", (Ether{} / Vlan{} / Vlan{} / inner).cut(20), HF_REASON_truncated,
       kNotAddressed},
      {"a tag and an unknown EtherType", Ether{} / Vlan{.type = 0x1234} / zeros(46),
       HF_REASON_ethertype, kNotAddressed},
      {"an old QinQ tag inside", Ether{} / Vlan{.type = 0x9100} / zeros(46), HF_REASON_ethertype,
       kNotAddressed},
  });
}

TEST(ParserRefuses, Ip4) {
  refuses({
      {"half a header", (Ip4{} / kSyn).cut(33), HF_REASON_truncated, kNotAddressed},
      {"version 6 under the IPv4 EtherType", Ip4{.version = 6} / kSyn, HF_REASON_ip_header},
      {"version 0", Ip4{.version = 0} / kSyn, HF_REASON_ip_header},
      {"header length 4 words", Ip4{.header_words = 4} / kSyn, HF_REASON_ip_header},
      {"header length 0", Ip4{.header_words = 0} / kSyn, HF_REASON_ip_header},
      {"options: none but padding", Ip4{.options = {1, 1, 1, 0}} / kSyn, HF_REASON_ip_options},
      {"options: loose source route", Ip4{.options = {131, 7, 4, 10, 9, 9, 9, 0}} / kSyn,
       HF_REASON_ip_options},
      {"options: router alert", Ip4{.options = {148, 4, 0, 0}} / kSyn, HF_REASON_ip_options},
      {"options: 40 bytes", Ip4{.options = Bytes(40, 1)} / kSyn, HF_REASON_ip_options},
      {"total length below the header's", Ip4{.total_length = 19} / kSyn, HF_REASON_ip_header},
      {"total length 0, as of a jumbo super-packet", Ip4{.total_length = 0} / kSyn,
       HF_REASON_ip_header},
      {"total length beyond the frame", Ip4{.total_length = 41} / kSyn, HF_REASON_truncated},
      {"the reserved flag", Ip4{.reserved_flag = true} / kSyn, HF_REASON_ip_header},
  });
}

TEST(ParserRefuses, Ip4Fragments) {
  refuses({
      {"first, too small for a TCP header", Ip4{.more = true, .protocol = 6} / zeros(16),
       HF_REASON_fragment_overlap},
      {"first, 8 bytes of TCP: ports and nothing else", Ip4{.more = true, .protocol = 6} / zeros(8),
       HF_REASON_fragment_overlap},
      {"first, no payload", Ip4{.more = true, .protocol = 6} / Packet(), HF_REASON_ip_header},
      {"first, TCP options in the next one", Ip4{.more = true} / Tcp{.header_words = 10} / zeros(4),
       HF_REASON_l4_header},
      {"not the last, length not in eights", Ip4{.more = true} / kUdp / zeros(9),
       HF_REASON_ip_header},
      {"later, no payload", Ip4{.offset = 1480, .protocol = 17} / Packet(), HF_REASON_ip_header},
      {"the ping of death", Ip4{.offset = 65528, .protocol = 1} / zeros(100), HF_REASON_ip_header},
      {"later, more, length not in eights",
       Ip4{.more = true, .offset = 1480, .protocol = 17} / zeros(9), HF_REASON_ip_header},
      {"first of an ICMP error",
       Ip4{.from = "192.0.2.9", .to = "10.0.0.1", .more = true} /
           icmp_error(3, 3, Ip4{} / kUdp / zeros(4)),
       HF_REASON_protocol},
  });
}

TEST(ParserRefuses, Ip6) {
  refuses({
      {"half a header", (Ip6{} / kSyn).cut(53), HF_REASON_truncated, kNotAddressed},
      {"version 4 under the IPv6 EtherType", Ip6{.version = 4} / kSyn, HF_REASON_ip_header},
      {"payload length beyond the frame", Ip6{.payload_length = 21} / kSyn, HF_REASON_truncated},
      {"payload length 0, as of a jumbogram", Ip6{.payload_length = 0} / hop_by_hop() / kSyn,
       HF_REASON_truncated},
      {"an IPv4-mapped source", Ip6{.from = "::ffff:10.0.0.1"} / kSyn, HF_REASON_ip_header},
      {"an IPv4-mapped destination", Ip6{.to = "::ffff:169.254.169.254"} / kSyn,
       HF_REASON_ip_header},
  });
}

TEST(ParserRefuses, Ip6Extensions) {
  const auto other = [](std::uint8_t number) { return Extension{.number = number}; };
  refuses({
      {"a routing header", Ip6{} / routing() / kSyn, HF_REASON_ip_options},
      {"a routing header after an atomic fragment", Ip6{} / Fragment6{} / routing() / kSyn,
       HF_REASON_ip_options},
      {"hop-by-hop second", Ip6{} / destination_options() / hop_by_hop() / kSyn,
       HF_REASON_ip_extension},
      {"hop-by-hop twice", Ip6{} / hop_by_hop() / hop_by_hop() / kSyn, HF_REASON_ip_extension},
      {"hop-by-hop inside an atomic fragment", Ip6{} / Fragment6{} / hop_by_hop() / kSyn,
       HF_REASON_ip_extension},
      {"seven extension headers",
       Ip6{} / hop_by_hop() / destination_options() / destination_options() /
           destination_options() / destination_options() / destination_options() /
           destination_options() / kSyn,
       HF_REASON_ip_extension},
      {"a later fragment's header in the seventh place",
       Ip6{} / hop_by_hop() / destination_options() / destination_options() /
           destination_options() / destination_options() / destination_options() /
           Fragment6{.offset = 8, .next = 6} / zeros(20),
       HF_REASON_ip_extension},
      {"an extension header longer than the payload", Ip6{} / Extension{.length = 9} / kSyn,
       HF_REASON_truncated},
      {"one that ends the payload", Ip6{} / Extension{.next = 6}, HF_REASON_truncated},
      {"a header of 2048 bytes", Ip6{} / destination_options(255) / kSyn, HF_REASON_ip_extension},
      {"headers beyond the parser's reach",
       Ip6{} / destination_options(9) / destination_options(9) / kSyn, HF_REASON_ip_extension},
      {"AH shorter than its fixed part", Ip6{} / Ah{.icv_words = 0, .length = 0} / kSyn,
       HF_REASON_ip_extension},
      {"AH whose length was taken for eights", Ip6{} / Ah{.icv_words = 3, .length = 1} / kSyn,
       HF_REASON_l4_header},
      {"ESP", Ip6{.next = 50} / zeros(40), HF_REASON_protocol},
      {"no next header", Ip6{.next = 59} / zeros(8), HF_REASON_protocol},
      {"mobility", Ip6{} / other(135) / kSyn, HF_REASON_ip_extension},
      {"HIP", Ip6{} / other(139) / kSyn, HF_REASON_ip_extension},
      {"Shim6", Ip6{} / other(140) / kSyn, HF_REASON_ip_extension},
      {"an unassigned header", Ip6{} / other(253) / kSyn, HF_REASON_protocol},
      {"IPv4 in IPv6", Ip6{.next = 4} / zeros(40), HF_REASON_protocol},
      {"IPv4's ICMP in IPv6", Ip6{.next = 1} / Icmp{.type = 8}, HF_REASON_protocol},
  });
}

TEST(ParserRefuses, Ip6Fragments) {
  refuses({
      {"a fragment of a fragment", Ip6{} / Fragment6{} / Fragment6{} / kSyn,
       HF_REASON_ip_extension},
      {"first, too small for a TCP header", Ip6{} / Fragment6{.more = true, .next = 6} / zeros(16),
       HF_REASON_fragment_overlap},
      {"first, the transport header is in the next one",
       Ip6{} / Fragment6{.more = true} / Extension{.next = 6}, HF_REASON_fragment_overlap},
      {"first, an extension header is in the next one",
       Ip6{} / Fragment6{.more = true, .next = 60} / Packet(), HF_REASON_ip_header},
      {"not the last, length not in eights", Ip6{} / Fragment6{.more = true} / kUdp / zeros(9),
       HF_REASON_ip_header},
      {"later, no payload", Ip6{} / Fragment6{.offset = 1448, .next = 17}, HF_REASON_ip_header},
      {"beyond 65535 bytes", Ip6{} / Fragment6{.offset = 65528, .next = 17} / zeros(16),
       HF_REASON_ip_header},
      {"beyond 65535 bytes with the headers before it",
       Ip6{} / destination_options() / Fragment6{.offset = 65520, .next = 17} / zeros(8),
       HF_REASON_ip_header},
      {"half a fragment header", Ip6{.next = 44, .payload_length = 4} / zeros(4),
       HF_REASON_truncated},
      {"first of an ICMP error",
       Ip6{.from = "2001:db8::9", .to = "fd00::1"} / Fragment6{.more = true} /
           icmp_error(1, 4, Ip6{} / kUdp),
       HF_REASON_protocol},
      {"neighbour discovery in a first fragment",
       Ip6{.hop_limit = 255} / Fragment6{.more = true} / Nd{}, HF_REASON_protocol},
  });
}

TEST(ParserRefuses, Transport) {
  refuses({
      {"SCTP", Ip4{.protocol = 132} / zeros(20), HF_REASON_protocol},
      {"GRE", Ip4{.protocol = 47} / zeros(20), HF_REASON_protocol},
      {"IP in IP", Ip4{.protocol = 4} / zeros(40), HF_REASON_protocol},
      {"AH over IPv4", Ip4{} / Ah{} / kSyn, HF_REASON_protocol},
      {"UDP-Lite", Ip4{.protocol = 136} / zeros(20), HF_REASON_protocol},
      {"IGMP", Ip4{.protocol = 2} / zeros(8), HF_REASON_protocol},
      {"IPv6's ICMP in IPv4", Ip4{.protocol = 58} / Icmp{.type = 128}, HF_REASON_protocol},
      {"TCP cut at 19 bytes", Ip4{.protocol = 6} / zeros(19), HF_REASON_truncated},
      {"TCP cut by the total length, the rest trailing", Ip4{.total_length = 39} / kSyn,
       HF_REASON_truncated},
      {"TCP header of 4 words", Ip4{} / Tcp{.header_words = 4}, HF_REASON_l4_header},
      {"TCP header longer than the segment", Ip4{} / Tcp{.header_words = 6}, HF_REASON_l4_header},
      {"SYN and FIN", Ip4{} / Tcp{.flags = "SF"}, HF_REASON_l4_header},
      {"SYN and RST", Ip6{} / Tcp{.flags = "SR"}, HF_REASON_l4_header},
      {"SYN, ACK and FIN", Ip4{} / Tcp{.flags = "SAF"}, HF_REASON_l4_header},
      {"UDP cut at 7 bytes", Ip4{.protocol = 17} / zeros(7), HF_REASON_truncated},
      {"UDP length below its header's", Ip4{} / Udp{.length = 7}, HF_REASON_l4_header},
      {"UDP length 0, as of a jumbogram", Ip6{} / Udp{.length = 0}, HF_REASON_l4_header},
      {"UDP length beyond the packet", Ip4{} / Udp{.length = 9}, HF_REASON_l4_header},
      {"echo cut at 7 bytes", Ip4{.protocol = 1} / Raw{{8, 0, 0, 0, 0, 0, 0}}, HF_REASON_truncated},
  });
}

TEST(ParserRefuses, Icmp) {
  const Packet sent = Ip4{} / kUdp;  // by the tenant
  const Ip4 back{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Packet sent6 = Ip6{} / kUdp;
  const Ip6 back6{.from = "2001:db8::9", .to = "fd00::1"};
  refuses({
      {"redirect", back / icmp_error(5, 1, sent), HF_REASON_icmp_unrelated},
      {"source quench", back / icmp_error(4, 0, sent), HF_REASON_protocol},
      {"timestamp request", Ip4{} / Icmp{.type = 13} / zeros(12), HF_REASON_protocol},
      {"address mask request", Ip4{} / Icmp{.type = 17} / zeros(4), HF_REASON_protocol},
      {"extended echo", Ip4{} / Icmp{.type = 42}, HF_REASON_protocol},
      {"router advertisement (RFC 1256)", Ip4{} / Icmp{.type = 9} / zeros(8), HF_REASON_protocol},
      {"the quote misses its last byte", back / icmp_error(3, 3, sent, 27), HF_REASON_truncated},
      {"no quote", back / Icmp{.type = 3, .code = 3}, HF_REASON_truncated},
      {"the quote trails the IP packet",
       Ip4{.from = "192.0.2.9", .to = "10.0.0.1", .total_length = 28} / icmp_error(3, 3, sent),
       HF_REASON_truncated},
      {"quotes a packet somebody else sent",
       back / icmp_error(3, 3, Ip4{.from = "10.0.0.2"} / kUdp), HF_REASON_icmp_unrelated},
      {"quotes IPv4 options", back / icmp_error(3, 3, Ip4{.options = {1, 1, 1, 1}} / kUdp),
       HF_REASON_icmp_unrelated},
      {"quotes version 6", back / icmp_error(3, 3, Ip4{.version = 6} / kUdp),
       HF_REASON_icmp_unrelated},
      {"quotes a later fragment",
       back / icmp_error(11, 1, Ip4{.offset = 8, .protocol = 17} / zeros(8)),
       HF_REASON_icmp_unrelated},
      {"quotes another error", back / icmp_error(3, 3, Ip4{} / icmp_error(3, 3, Ip4{} / kUdp)),
       HF_REASON_icmp_unrelated},
      {"quotes SCTP", back / icmp_error(3, 2, Ip4{.protocol = 132} / zeros(12)),
       HF_REASON_icmp_unrelated},
      {"v6: the quote misses its last byte", back6 / icmp_error(1, 4, sent6, 47),
       HF_REASON_truncated},
      {"v6: the quote trails the IP packet",
       Ip6{.from = "2001:db8::9", .to = "fd00::1", .payload_length = 8} / icmp_error(1, 4, sent6),
       HF_REASON_truncated},
      {"v6: quotes a packet somebody else sent",
       back6 / icmp_error(1, 4, Ip6{.from = "fd00::2"} / kUdp), HF_REASON_icmp_unrelated},
      {"v6: quotes version 4", back6 / icmp_error(1, 4, Ip6{.version = 4} / kUdp),
       HF_REASON_icmp_unrelated},
      {"v6: quotes a destination that aliases IPv4",
       back6 / icmp_error(1, 4, Ip6{.to = "::ffff:10.0.0.1"} / kUdp), HF_REASON_icmp_unrelated},
      {"v6: quotes an extension header",
       back6 / icmp_error(1, 4, Ip6{} / destination_options() / kUdp), HF_REASON_icmp_unrelated},
      {"v6: quotes neighbour discovery", back6 / icmp_error(1, 3, Ip6{} / Nd{}),
       HF_REASON_icmp_unrelated},
      {"v6: error type 0", back6 / Icmp{.type = 0} / Raw{sent6.ip_bytes()}, HF_REASON_protocol},
      {"v6: error type 5", back6 / Icmp{.type = 5} / Raw{sent6.ip_bytes()}, HF_REASON_protocol},
      {"v6: multicast listener report", Ip6{.hop_limit = 1} / hop_by_hop() / Icmp{.type = 143},
       HF_REASON_protocol},
      {"v6: node information query", Ip6{} / Icmp{.type = 139} / zeros(8), HF_REASON_protocol},
  });
}

TEST(ParserRefuses, Arp) {
  refuses({
      {"one byte short", Packet(Arp{}).cut(41), HF_REASON_truncated, kNotAddressed},
      {"not Ethernet", Arp{.hardware = 6}, HF_REASON_l4_header, kNotAddressed},
      {"not IPv4", Arp{.protocol = 0x86dd}, HF_REASON_l4_header, kNotAddressed},
      {"8-byte hardware addresses", Arp{.hardware_length = 8}, HF_REASON_l4_header, kNotAddressed},
      {"16-byte protocol addresses", Arp{.protocol_length = 16}, HF_REASON_l4_header,
       kNotAddressed},
      {"operation 0", Arp{.operation = 0}, HF_REASON_l4_header, kNotAddressed},
      {"RARP", Arp{.operation = 3}, HF_REASON_l4_header, kNotAddressed},
      {"inverse ARP", Arp{.operation = 8}, HF_REASON_l4_header, kNotAddressed},
  });
}

TEST(ParserRefuses, NeighbourDiscovery) {
  const std::string mac(kTenantMac);
  const Bytes padding(8, 0);
  const auto message = [](Nd m) { return nd("fd00::1", "ff02::1", std::move(m)); };
  Bytes five_options;
  for (int i = 0; i < 5; i++) {
    const Bytes nonce = {14, 1, 0, 0, 0, 0, 0, 0};
    five_options.insert(five_options.end(), nonce.begin(), nonce.end());
  }
  Bytes far_option(8 * 25, 0);  // the next one would begin past the parser's reach
  far_option[0] = 14;
  far_option[1] = 25;
  far_option.insert(far_option.end(), {2, 1, 2, 0, 0, 0, 0, 99});
  refuses({
      {"hop limit 254", Ip6{.hop_limit = 254} / Nd{}, HF_REASON_l4_header},
      {"code 1", message({.code = 1}), HF_REASON_l4_header},
      {"solicitation without its target", Ip6{.hop_limit = 255} / Icmp{.type = 135} / zeros(15),
       HF_REASON_truncated},
      {"advertisement without its target", Ip6{.hop_limit = 255} / Icmp{.type = 136},
       HF_REASON_truncated},
      {"an option of length 0", message({.options = {14, 0, 0, 0, 0, 0, 0, 0}}),
       HF_REASON_l4_header},
      {"an option longer than the message", message({.options = {14, 2, 0, 0, 0, 0, 0, 0}}),
       HF_REASON_l4_header},
      {"half an option", message({.options = {14, 1, 0, 0}}), HF_REASON_truncated},
      {"two source link-layer addresses",
       message({.source_mac = mac, .options = {1, 1, 2, 0, 0, 0, 0, 99}}), HF_REASON_l4_header},
      {"a source and a target link-layer address", message({.source_mac = mac, .target_mac = mac}),
       HF_REASON_l4_header},
      {"a link-layer address of 14 bytes",
       message({.options = {1, 2, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}}), HF_REASON_l4_header},
      {"five options", message({.options = five_options}), HF_REASON_l4_header},
      {"an option out of the parser's reach", message({.options = far_option}),
       HF_REASON_l4_header},
      {"router solicitation with half an option", message({.type = 133, .options = {1, 1, 2}}),
       HF_REASON_truncated},
  });
}

}  // namespace
}  // namespace holdfast::test
