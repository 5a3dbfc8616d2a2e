// Counters are exact, events are sampled, and every event that is not sent is counted.
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

const Packet kRequest = Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Tcp{.flags = "S"};
const Packet kDenied = Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Tcp{.dport = 22, .flags = "S"};

TEST(Accounting, PacketsAndBytesAreExact) {
  Node node;
  const std::size_t length = kRequest.bytes().size();
  const Outcome passed = node.send(Hook::to_tenant, Node::red0(), kRequest, 1000);
  EXPECT_EQ(passed.counted.at(HF_REASON_endpoint).packets, 1000u);
  EXPECT_EQ(passed.counted.at(HF_REASON_endpoint).bytes, 1000 * length);
  const Outcome denied = node.send(Hook::to_tenant, Node::red0(), kDenied, 500);
  EXPECT_EQ(denied.counted.at(HF_REASON_no_endpoint).packets, 500u);
  EXPECT_EQ(denied.counted.at(HF_REASON_no_endpoint).bytes, 500 * kDenied.bytes().size());
}

TEST(Accounting, ATenantIsMeteredOnceEachWay) {
  Node node;
  const Packet out = Ip4{} / Udp{.sport = 50000} / zeros(100);
  const std::size_t in_length = kRequest.bytes().size(), out_length = out.bytes().size();
  node.send(Hook::uplink_xdp, Node::uplink(), kRequest, 7);  // passes here, metered at the port
  node.send(Hook::to_tenant, Node::red0(), kRequest, 7);
  node.send(Hook::from_tenant, Node::red0(), out, 3);
  node.send(Hook::to_tenant, Node::red0(), kDenied, 2);
  node.send(Hook::uplink_tc, Node::uplink(), kDenied, 4);
  const abi::tenant_counter red = node.tenant_counter(kRed);
  EXPECT_EQ(red.to_tenant.packets, 7u);
  EXPECT_EQ(red.to_tenant.bytes, 7 * in_length);
  EXPECT_EQ(red.from_tenant.packets, 3u);
  EXPECT_EQ(red.from_tenant.bytes, 3 * out_length);
  EXPECT_EQ(red.dropped.packets, 6u);
  EXPECT_EQ(red.dropped.bytes, 6 * kDenied.bytes().size());
  const abi::tenant_counter blue = node.tenant_counter(kBlue);
  EXPECT_EQ(blue.to_tenant.packets + blue.from_tenant.packets + blue.dropped.packets, 0u);
}

TEST(Accounting, AGsoPacketCountsAsTheWireCarriesIt) {
  struct Case {
    const char* name;
    Packet packet;
    std::size_t payload, headers;
    std::uint32_t segment;
    std::uint64_t packets;
  };
  const Ip4 in{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Ip6 in6{.from = "2001:db8::9", .to = "fd00::1"};
  const std::vector<Case> cases = {
      {"TCP over IPv4, even", in / Tcp{} / zeros(3000), 3000, 54, 1000, 3},
      {"one byte over", in / Tcp{} / zeros(3001), 3001, 54, 1000, 4},
      {"one byte under", in / Tcp{} / zeros(2999), 2999, 54, 1000, 3},
      {"with options", in / Tcp{.options = Bytes(12, 1)} / zeros(2896), 2896, 66, 1448, 2},
      {"TCP over IPv6", in6 / Tcp{} / zeros(2856), 2856, 74, 1428, 2},
      {"UDP", in / Udp{.dport = 53} / zeros(2400), 2400, 42, 1200, 2},
      {"a single segment", in / Tcp{} / zeros(500), 500, 54, 1000, 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Node node;
    ASSERT_EQ(c.packet.bytes().size(), c.headers + c.payload);
    const Outcome outcome =
        node.send(Hook::to_tenant, Node::red0(), c.packet, 2,
                  {.size = c.segment, .segments = static_cast<std::uint32_t>(c.packets)});
    EXPECT_EQ(outcome.counted.at(HF_REASON_endpoint).packets, 2 * c.packets);
    EXPECT_EQ(outcome.counted.at(HF_REASON_endpoint).bytes,
              2 * (c.payload + c.packets * c.headers));
  }
}

TEST(Events, NameThePacketAndTheVerdict) {
  Node node;
  node.lease(kRed0Tcp4, {.expires_in = -1s, .incarnation = 42});
  const std::uint64_t before_ns = boot_ns();
  node.send(Hook::to_tenant, Node::red0(), kRequest);
  const std::uint64_t after_ns = boot_ns();
  const auto events = node.events();
  ASSERT_EQ(events.size(), 1u);
  const drop_event& e = events[0];
  EXPECT_EQ(e.verdict.reason, static_cast<__u32>(HF_REASON_lease_expired));
  EXPECT_EQ(e.verdict.slot, static_cast<__u32>(kRed0Tcp4));
  EXPECT_EQ(e.verdict.tenant, kRed);
  EXPECT_EQ(e.verdict.bank, 0u);
  EXPECT_EQ(e.verdict.gate, node.gate(kRed0Tcp4));
  EXPECT_EQ(hf_gate_incarnation(e.verdict.gate), 42u);
  EXPECT_GE(e.verdict.now_boot_ns, hf_gate_deadline_boot_ns(e.verdict.gate));
  EXPECT_GE(e.time_boot_ns, before_ns);
  EXPECT_LE(e.time_boot_ns, after_ns);
  EXPECT_EQ(Bytes(reinterpret_cast<const std::uint8_t*>(e.source),
                  reinterpret_cast<const std::uint8_t*>(e.source) + 16),
            mapped_bytes("192.0.2.9"));
  EXPECT_EQ(Bytes(reinterpret_cast<const std::uint8_t*>(e.destination),
                  reinterpret_cast<const std::uint8_t*>(e.destination) + 16),
            mapped_bytes("10.0.0.1"));
  EXPECT_EQ(__builtin_bswap16(e.source_port), 40000);
  EXPECT_EQ(__builtin_bswap16(e.destination_port), 443);
  EXPECT_EQ(e.ifindex, Node::red0());
  EXPECT_EQ(e.length, kRequest.bytes().size());
  EXPECT_EQ(e.protocol, HF_PROTO_TCP);
  EXPECT_EQ(e.direction, HF_TO_TENANT);
  EXPECT_EQ(e.reserved[0] | e.reserved[1], 0);
}

TEST(Events, OfSpoofedArpNameWhoWasClaimed) {
  Node node;
  node.send(Hook::from_tenant, Node::red0(), Arp{.sender = "10.0.1.1"});
  const auto events = node.events();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(Bytes(reinterpret_cast<const std::uint8_t*>(events[0].source),
                  reinterpret_cast<const std::uint8_t*>(events[0].source) + 16),
            mapped_bytes("10.0.1.1"));
  EXPECT_EQ(events[0].verdict.reason, static_cast<__u32>(HF_REASON_spoofed_neighbour));
  EXPECT_EQ(events[0].verdict.slot, static_cast<__u32>(HF_NO_SLOT));
}

TEST(Events, PassesLeaveNone) {
  Node node;
  node.send(Hook::to_tenant, Node::red0(), kRequest, 100);
  EXPECT_TRUE(node.events().empty());
}

TEST(Events, SampledAndTheRestCounted) {
  Node node;
  std::size_t received = 0;
  for (int i = 0; i < 20; i++) {
    node.send(Hook::to_tenant, Node::red0(), kDenied, 1000);
    received += node.events().size();
  }
  const abi::reason_counter counter = node.reason_counter(HF_TO_TENANT, HF_REASON_no_endpoint);
  EXPECT_EQ(counter.total.packets, 20'000u);
  EXPECT_EQ(received + counter.events_unsampled + counter.events_lost, 20'000u);
  EXPECT_EQ(counter.events_lost, 0u);
  EXPECT_GE(received, 1u);
  EXPECT_GT(counter.events_unsampled, 19'000u) << "20 calls take some jiffies, not thousands";
}

TEST(Events, LostWhenTheRingIsFullAndCounted) {
  Node node;
  // The ring holds 4096 bytes, some 42 events; nobody reads it here.
  abi::reason_counter counter = {};
  std::uint64_t sent = 0;
  for (int i = 0; i < 5000 && counter.events_lost == 0; i++) {
    sent += node.send(Hook::to_tenant, Node::red0(), kDenied).packets(HF_REASON_no_endpoint);
    counter = node.reason_counter(HF_TO_TENANT, HF_REASON_no_endpoint);
  }
  ASSERT_GT(counter.events_lost, 0u) << "the ring never filled";
  sent += node.send(Hook::to_tenant, Node::red0(), kDenied, 100).packets(HF_REASON_no_endpoint);
  counter = node.reason_counter(HF_TO_TENANT, HF_REASON_no_endpoint);
  EXPECT_EQ(counter.total.packets, sent) << "drops are counted whether or not their events fit";
  const std::size_t received = node.events().size();
  EXPECT_EQ(received + counter.events_lost + counter.events_unsampled, sent);
  // Read out, it takes events again.
  for (int i = 0; i < 5000 && node.events().empty(); i++)
    node.send(Hook::to_tenant, Node::red0(), kDenied);
  EXPECT_EQ(node.reason_counter(HF_TO_TENANT, HF_REASON_no_endpoint).events_lost,
            counter.events_lost);
}

}  // namespace
}  // namespace holdfast::test
