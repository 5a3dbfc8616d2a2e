// What the parser follows, and everything it says about it. The independent decoder has to say the
// same.
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/fuzz/difference.hpp"
#include "tests/support/native_parser.hpp"
#include "tests/support/packet.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

// Ports and identifiers in host order. Outer addresses are the tuple's unless given.
struct Facts {
  hf_packet_kind kind = HF_KIND_IP;
  std::string from = "10.0.0.1";
  std::string to = "192.0.2.9";
  unsigned sport = 0;
  unsigned dport = 0;
  unsigned protocol = 6;
  bool initiates = false;
  unsigned tags = 0;
  unsigned headers = 0;  // bytes up to the payload
  std::string outer_from = {};
  std::string outer_to = {};
  hf_fragment fragment = HF_FRAGMENT_NONE;
  unsigned fragment_offset = 0;
  unsigned fragment_end = 0;
  std::string mac = {};
  std::string target = {};
};

struct Row {
  std::string name;
  Packet packet;
  Facts facts;
};

Bytes address(const __u32 (&words)[4]) {
  Bytes out(16);
  std::memcpy(out.data(), words, 16);
  return out;
}

void follows(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    const Bytes frame = row.packet.bytes();
    const Parsed parsed = parse(frame);
    const abi::packet& p = parsed.packet;
    const Facts& want = row.facts;
    EXPECT_EQ(parsed.reason, static_cast<hf_reason>(HF_PARSED));
    EXPECT_EQ(p.kind, want.kind);
    EXPECT_EQ(address(p.source), mapped_bytes(want.from));
    EXPECT_EQ(address(p.destination), mapped_bytes(want.to));
    EXPECT_EQ(__builtin_bswap16(p.source_port), want.sport);
    EXPECT_EQ(__builtin_bswap16(p.destination_port), want.dport);
    if (want.kind != HF_KIND_ARP) {
      EXPECT_EQ(p.protocol, want.protocol);
      EXPECT_EQ(address(p.outer_source),
                mapped_bytes(want.outer_from.empty() ? want.from : want.outer_from));
      EXPECT_EQ(address(p.outer_destination),
                mapped_bytes(want.outer_to.empty() ? want.to : want.outer_to));
    }
    EXPECT_EQ(p.initiates != 0, want.initiates);
    EXPECT_EQ(p.vlan_tags, want.tags);
    if (want.headers) {
      EXPECT_EQ(p.header_length, want.headers);
    }
    EXPECT_EQ(p.fragment, want.fragment);
    if (want.fragment) {
      EXPECT_EQ(p.fragment_offset, want.fragment_offset);
      EXPECT_EQ(p.fragment_end, want.fragment_end);
    }
    EXPECT_EQ(p.neighbour_has_mac != 0, !want.mac.empty());
    if (!want.mac.empty()) {
      EXPECT_EQ(Bytes(p.neighbour_mac, p.neighbour_mac + 6), mac_bytes(want.mac));
    }
    if (!want.target.empty()) {
      EXPECT_EQ(address(p.neighbour_target), ip6_bytes(want.target));
    }
    EXPECT_EQ(p.reserved, 0);
    EXPECT_EQ(difference(parsed, decode(frame)), "") << "the independent decoder disagrees";
    // Minimum-size padding behind the packet changes nothing.
    EXPECT_EQ(parse((row.packet.cut(frame.size() + 18)).bytes()).reason,
              static_cast<hf_reason>(HF_PARSED));
  }
}

const Tcp kSyn{.sport = 40000, .dport = 443, .flags = "S"};
const Udp kUdp{.sport = 40000, .dport = 53};

TEST(ParserFollows, Ip4) {
  const Packet datagram = Ip4{} / kUdp / zeros(3000);
  follows({
      {"SYN", Ip4{} / kSyn, {.sport = 40000, .dport = 443, .initiates = true, .headers = 54}},
      {"SYN with data (fast open)",
       Ip4{} / Tcp{.flags = "S", .options = {34, 4, 1, 2}} / zeros(100),
       {.sport = 40000, .dport = 443, .initiates = true, .headers = 58}},
      {"SYN-ACK",
       Ip4{} / Tcp{.sport = 443, .dport = 40000, .flags = "SA"},
       {.sport = 443, .dport = 40000}},
      {"ACK", Ip4{} / Tcp{.flags = "A"}, {.sport = 40000, .dport = 443}},
      {"RST", Ip4{} / Tcp{.flags = "R"}, {.sport = 40000, .dport = 443}},
      {"no flags at all", Ip4{} / Tcp{.flags = ""}, {.sport = 40000, .dport = 443}},
      {"TCP header of 60 bytes",
       Ip4{} / Tcp{.options = Bytes(40, 1)},
       {.sport = 40000, .dport = 443, .headers = 94}},
      {"do not fragment",
       Ip4{.dont_fragment = true} / kSyn,
       {.sport = 40000, .dport = 443, .initiates = true}},
      {"UDP",
       Ip4{} / kUdp / zeros(10),
       {.sport = 40000, .dport = 53, .protocol = 17, .headers = 42}},
      {"UDP shorter than its packet",
       Ip4{} / Udp{.length = 8} / zeros(10),
       {.sport = 40000, .dport = 53, .protocol = 17}},
      {"echo request: the identifier is on the asking side",
       Ip4{} / Echo{.id = 77},
       {.sport = 77, .protocol = 1, .initiates = true}},
      {"echo reply", Ip4{} / Echo{.id = 77, .reply = true}, {.dport = 77, .protocol = 1}},
      {"first fragment",
       fragment(datagram, 5, 0, 1480),
       {.sport = 40000,
        .dport = 53,
        .protocol = 17,
        .fragment = HF_FRAGMENT_FIRST,
        .fragment_end = 1480}},
      {"middle fragment: no ports are read",
       fragment(datagram, 5, 1480, 2960),
       {.protocol = 17,
        .fragment = HF_FRAGMENT_LATER,
        .fragment_offset = 1480,
        .fragment_end = 2960}},
      {"last fragment",
       fragment(datagram, 5, 2960, 4000),
       {.protocol = 17,
        .fragment = HF_FRAGMENT_LATER,
        .fragment_offset = 2960,
        .fragment_end = 3008}},
      {"first fragment, exactly a TCP header and 4 bytes",
       fragment(Ip4{} / kSyn / zeros(40), 5, 0, 24),
       {.sport = 40000,
        .dport = 443,
        .initiates = true,
        .fragment = HF_FRAGMENT_FIRST,
        .fragment_end = 24}},
      {"offset 8: what RFC 3128 warns of, left to the overlap check",
       Ip4{.offset = 8, .protocol = 6} / zeros(16),
       {.protocol = 6, .fragment = HF_FRAGMENT_LATER, .fragment_offset = 8, .fragment_end = 24}},
  });
}

TEST(ParserFollows, Vlan) {
  const Packet inner = Ip4{} / kSyn;
  const auto tagged = [](unsigned tags) {
    return Facts{
        .sport = 40000, .dport = 443, .initiates = true, .tags = tags, .headers = 54 + 4 * tags};
  };
  follows({
      {"id 5", Ether{} / Vlan{.id = 5} / inner, tagged(1)},
      {"id 0 counts", Ether{} / Vlan{.id = 0} / inner, tagged(1)},
      {"802.1ad, id 0", Ether{} / Vlan{.tpid = 0x88a8} / inner, tagged(1)},
      {"QinQ", Ether{} / Vlan{.id = 5, .tpid = 0x88a8} / Vlan{.id = 6} / inner, tagged(2)},
      {"QinQ, both 0", Ether{} / Vlan{} / Vlan{} / inner, tagged(2)},
      {"a tagged ARP",
       Ether{} / Vlan{} / Arp{},
       {.kind = HF_KIND_ARP, .to = "10.0.0.254", .tags = 1, .mac = std::string(kTenantMac)}},
  });
}

Facts v6(Facts f) {
  if (f.from == "10.0.0.1") f.from = "fd00::1";
  if (f.to == "192.0.2.9") f.to = "2001:db8::9";
  return f;
}

TEST(ParserFollows, Ip6) {
  const Facts syn = v6({.sport = 40000, .dport = 443, .initiates = true});
  const Packet datagram = Ip6{} / kUdp / zeros(3000);
  follows({
      {"SYN", Ip6{} / kSyn, v6({.sport = 40000, .dport = 443, .initiates = true, .headers = 74})},
      {"UDP", Ip6{} / kUdp, v6({.sport = 40000, .dport = 53, .protocol = 17})},
      {"echo request", Ip6{} / Echo{.id = 77},
       v6({.sport = 77, .protocol = 58, .initiates = true})},
      {"echo reply", Ip6{} / Echo{.id = 77, .reply = true}, v6({.dport = 77, .protocol = 58})},
      {"hop-by-hop", Ip6{} / hop_by_hop() / kSyn, syn},
      {"destination options of 24 bytes", Ip6{} / destination_options(2) / kSyn, syn},
      {"AH is (n + 2) * 4 bytes", Ip6{} / Ah{.icv_words = 3} / kSyn, syn},
      {"AH with a 32-byte ICV", Ip6{} / Ah{.icv_words = 8} / kSyn, syn},
      {"an atomic fragment is a whole datagram", Ip6{} / Fragment6{} / kSyn, syn},
      {"the fragment header's second byte is reserved, not a length",
       Ip6{} / Fragment6{.reserved = 255} / kSyn, syn},
      {"six extension headers",
       Ip6{} / hop_by_hop() / destination_options() / Fragment6{} / Ah{} / destination_options() /
           destination_options() / kSyn,
       syn},
      {"hop-by-hop, then AH, then an atomic fragment",
       Ip6{} / hop_by_hop() / Ah{} / Fragment6{} / kSyn, syn},
      {"first fragment", fragment(datagram, 5, 0, 1448),
       v6({.sport = 40000,
           .dport = 53,
           .protocol = 17,
           .fragment = HF_FRAGMENT_FIRST,
           .fragment_end = 1448})},
      {"later fragment", fragment(datagram, 5, 1448, 2896),
       v6({.protocol = 17,
           .fragment = HF_FRAGMENT_LATER,
           .fragment_offset = 1448,
           .fragment_end = 2896})},
      {"later fragment, reserved byte set",
       Ip6{} / Fragment6{.offset = 8, .reserved = 9, .next = 6} / zeros(20),
       v6({.protocol = 6,
           .fragment = HF_FRAGMENT_LATER,
           .fragment_offset = 8,
           .fragment_end = 28})},
      {"first fragment behind destination options",
       Ip6{} / destination_options() / Fragment6{.more = true} / kUdp / zeros(8),
       v6({.sport = 40000,
           .dport = 53,
           .protocol = 17,
           .fragment = HF_FRAGMENT_FIRST,
           .fragment_end = 16})},
      {"the largest datagram", Ip6{} / Fragment6{.offset = 65520, .next = 17} / zeros(15),
       v6({.protocol = 17,
           .fragment = HF_FRAGMENT_LATER,
           .fragment_offset = 65520,
           .fragment_end = 65535})},
  });
}

TEST(ParserFollows, IcmpErrorsByWhatTheyQuote) {
  // The tenant sent it, so the error's tuple is that of an answer to it.
  const Ip4 back{.from = "198.51.100.1", .to = "10.0.0.1"};
  const Ip6 back6{.from = "2001:db8:ffff::1", .to = "fd00::1"};
  const auto about = [](unsigned protocol, unsigned sport, unsigned dport) {
    return Facts{.kind = HF_KIND_ICMP_ERROR,
                 .from = "192.0.2.9",
                 .to = "10.0.0.1",
                 .sport = sport,
                 .dport = dport,
                 .protocol = protocol,
                 .outer_from = "198.51.100.1"};
  };
  const auto about6 = [](unsigned protocol, unsigned sport, unsigned dport) {
    return Facts{.kind = HF_KIND_ICMP_ERROR,
                 .from = "2001:db8::9",
                 .to = "fd00::1",
                 .sport = sport,
                 .dport = dport,
                 .protocol = protocol,
                 .outer_from = "2001:db8:ffff::1"};
  };
  follows({
      {"unreachable, UDP", back / icmp_error(3, 3, Ip4{} / kUdp), about(17, 53, 40000)},
      {"unreachable, TCP, 8 bytes of it", back / icmp_error(3, 4, Ip4{} / kSyn, 28),
       about(6, 443, 40000)},
      {"time exceeded", back / icmp_error(11, 0, Ip4{} / kSyn), about(6, 443, 40000)},
      {"parameter problem", back / icmp_error(12, 0, Ip4{} / kSyn), about(6, 443, 40000)},
      {"about an echo request", back / icmp_error(3, 1, Ip4{} / Echo{.id = 77}), about(1, 0, 77)},
      {"about an echo reply", back / icmp_error(3, 1, Ip4{} / Echo{.id = 77, .reply = true}),
       about(1, 77, 0)},
      {"about a first fragment", back / icmp_error(11, 1, Ip4{.more = true} / kUdp / zeros(8)),
       about(17, 53, 40000)},
      {"v6 unreachable", back6 / icmp_error(1, 4, Ip6{} / kUdp), about6(17, 53, 40000)},
      {"v6 too big, 8 bytes of TCP", back6 / icmp_error(2, 0, Ip6{} / kSyn, 48),
       about6(6, 443, 40000)},
      {"v6 time exceeded", back6 / icmp_error(3, 0, Ip6{} / kSyn), about6(6, 443, 40000)},
      {"v6 parameter problem", back6 / icmp_error(4, 1, Ip6{} / kSyn), about6(6, 443, 40000)},
      {"v6 about an echo request", back6 / icmp_error(1, 0, Ip6{} / Echo{.id = 77}),
       about6(58, 0, 77)},
      {"v6 behind hop-by-hop", back6 / hop_by_hop() / icmp_error(1, 0, Ip6{} / kSyn),
       about6(6, 443, 40000)},
  });
}

TEST(ParserFollows, Neighbours) {
  const std::string mac(kTenantMac);
  const Bytes nonce = {14, 1, 1, 2, 3, 4, 5, 6};
  const auto message = [](Facts f) {
    f.kind = HF_KIND_NEIGHBOUR;
    f.protocol = 58;
    return v6(f);
  };
  follows({
      {"ARP request", Arp{}, {.kind = HF_KIND_ARP, .to = "10.0.0.254", .mac = mac}},
      {"ARP reply",
       Arp{.operation = 2, .target_mac = std::string(kHostMac)},
       {.kind = HF_KIND_ARP, .to = "10.0.0.254", .mac = mac}},
      {"ARP probe",
       Arp{.sender = "0.0.0.0", .target = "10.0.0.1"},
       {.kind = HF_KIND_ARP, .from = "0.0.0.0", .to = "10.0.0.1", .mac = mac}},
      {"solicitation", nd("fd00::1", "ff02::1:ff00:fe", {.target = "fd00::fe", .source_mac = mac}),
       message({.to = "ff02::1:ff00:fe", .mac = mac, .target = "fd00::fe"})},
      {"solicitation without options", nd("fd00::1", "fd00::fe", {.target = "fd00::fe"}),
       message({.to = "fd00::fe", .target = "fd00::fe"})},
      {"solicitation with a nonce",
       nd("fd00::1", "fd00::fe", {.source_mac = mac, .options = nonce}),
       message({.to = "fd00::fe", .mac = mac, .target = "fd00::fe"})},
      {"advertisement",
       nd("fd00::1", "fd00::fe", {.type = 136, .target = "fd00::1", .target_mac = mac}),
       message({.to = "fd00::fe", .mac = mac, .target = "fd00::1"})},
      {"router solicitation", nd("fd00::1", "ff02::2", {.type = 133, .source_mac = mac}),
       message({.to = "ff02::2", .mac = mac})},
      {"router advertisement", nd("fd00::1", "ff02::1", {.type = 134, .source_mac = mac}),
       message({.to = "ff02::1"})},
      {"redirect", nd("fd00::1", "fd00::fe", {.type = 137, .target = "fd00::1"}),
       message({.to = "fd00::fe"})},
  });
}

}  // namespace
}  // namespace holdfast::test
