// Leased endpoints (G1, G2, G5): a packet passes under a live lease, the same packet is denied
// without one, in every direction, and the reason says why.
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

// What red0 serves: a request that comes in, the answer that goes out, the lease both need.
struct Service {
  std::string name;
  Packet request;
  Packet answer;
  std::uint32_t slot;
};

const Ether kToHost{};  // from red0
const Ether kFromHost{.from = std::string(kHostMac), .to = std::string(kTenantMac)};
const Ip4 kIn4{.from = "192.0.2.9", .to = "10.0.0.1"};
const Ip4 kOut4{.from = "10.0.0.1", .to = "192.0.2.9"};
const Ip6 kIn6{.from = "2001:db8::9", .to = "fd00::1"};
const Ip6 kOut6{.from = "fd00::1", .to = "2001:db8::9"};

std::vector<Service> services() {
  const Tcp syn{.sport = 40000, .dport = 443, .flags = "S"};
  const Tcp syn_ack{.sport = 443, .dport = 40000, .flags = "SA"};
  const Udp ask{.sport = 40000, .dport = 53};
  const Udp tell{.sport = 53, .dport = 40000};
  return {
      {"TCP over IPv4", kFromHost / kIn4 / syn, kToHost / kOut4 / syn_ack, kRed0Tcp4},
      {"TCP over IPv6", kFromHost / kIn6 / syn, kToHost / kOut6 / syn_ack, kRed0Tcp6},
      {"UDP over IPv4", kFromHost / kIn4 / ask, kToHost / kOut4 / tell, kRed0Udp4},
      {"UDP over IPv6", kFromHost / kIn6 / ask, kToHost / kOut6 / tell, kRed0Udp6},
      {"echo over IPv4", kFromHost / kIn4 / Echo{}, kToHost / kOut4 / Echo{.reply = true},
       kRed0Echo4},
      {"echo over IPv6", kFromHost / kIn6 / Echo{}, kToHost / kOut6 / Echo{.reply = true},
       kRed0Echo6},
  };
}

struct End {
  std::string name;
  std::function<void(Node&, std::uint32_t slot)> change;
  hf_reason verdict;
};

const std::vector<End> kEnds = {
    {"expired", [](Node& n, std::uint32_t slot) { n.lease(slot, {.expires_in = -5s}); },
     HF_REASON_lease_expired},
    {"expired just now", [](Node& n, std::uint32_t slot) { n.lease(slot, {.expires_in = 0s}); },
     HF_REASON_lease_expired},
    {"revoked", [](Node& n, std::uint32_t slot) { n.revoke(slot); }, HF_REASON_no_lease},
    {"never leased", [](Node& n, std::uint32_t slot) { n.gate(slot, 0); }, HF_REASON_no_lease},
    {"tenant disabled", [](Node& n, std::uint32_t) { n.disable_tenant(kRed); },
     HF_REASON_tenant_disabled},
    {"limited to another peer, IPv4",
     [](Node& n, std::uint32_t slot) { n.lease(slot, {.peer = "198.51.100.0", .peer_bits = 120}); },
     HF_REASON_peer_not_leased},
    {"limited to another peer, IPv6",
     [](Node& n, std::uint32_t slot) {
       n.lease(slot, {.peer = "2001:db8:ffff::", .peer_bits = 48});
     },
     HF_REASON_peer_not_leased},
};

TEST(Lease, EveryEndIsSeenInEveryDirection) {
  std::vector<Row> rows;
  for (const Service& s : services()) {
    for (const End& end : kEnds) {
      const std::string name = s.name + ", " + end.name;
      const auto change = [end, slot = s.slot](Node& n) { end.change(n, slot); };
      rows.push_back({.name = "to the tenant: " + name,
                      .hook = Hook::to_tenant,
                      .packet = s.request,
                      .change = change,
                      .verdict = end.verdict});
      rows.push_back({.name = "from the uplink: " + name,
                      .hook = Hook::uplink_xdp,
                      .packet = s.request,
                      .change = change,
                      .verdict = end.verdict});
      rows.push_back({.name = "from the tenant: " + name,
                      .hook = Hook::from_tenant,
                      .packet = s.answer,
                      .given = [](Node& n) { n.gate(kRed0Egress, 0); },
                      .change = change,
                      .verdict = end.verdict});
    }
  }
  run(rows);
}

// G5: a revoked endpoint's connections end, although the port may still send by its egress lease:
// an answer is not something the tenant begins, and must not come to life again as a flow.
TEST(Lease, AnEgressLeaseDoesNotCarryOnWhatTheEndpointBegan) {
  std::vector<Row> rows;
  for (const Service& s : services()) {
    for (const End& end : kEnds) {
      if (end.name == "tenant disabled") continue;  // ends the egress too
      rows.push_back({.name = s.name + ", " + end.name,
                      .hook = Hook::from_tenant,
                      .packet = s.answer,
                      .change = [end, slot = s.slot](Node& n) { end.change(n, slot); },
                      .verdict = end.verdict});
    }
  }
  run(rows);
}

TEST(Lease, ARevokedConnectionStaysDeadBothWays) {
  for (const Service& s : services()) {
    SCOPED_TRACE(s.name);
    Node node;
    expect(node, Hook::to_tenant, Node::red0(), s.request, HF_REASON_endpoint);
    node.revoke(s.slot);
    node.send(Hook::from_tenant, Node::red0(), s.answer);  // the server goes on talking
    expect(node, Hook::uplink_xdp, Node::uplink(), s.request, HF_REASON_no_lease);
    expect(node, Hook::to_tenant, Node::red0(), s.request, HF_REASON_no_lease);
    EXPECT_TRUE(node.flows(kRed).empty());
  }
}

TEST(Lease, RenewedAndRegrantedItPassesAgain) {
  for (const Service& s : services()) {
    SCOPED_TRACE(s.name);
    Node node;
    node.lease(s.slot, {.expires_in = -1s});
    expect(node, Hook::to_tenant, Node::red0(), s.request, HF_REASON_lease_expired);
    node.renew(s.slot, 10s);
    expect(node, Hook::to_tenant, Node::red0(), s.request, HF_REASON_endpoint);
    node.revoke(s.slot);
    expect(node, Hook::to_tenant, Node::red0(), s.request, HF_REASON_no_lease);
    node.lease(s.slot, {.incarnation = 3});
    expect(node, Hook::to_tenant, Node::red0(), s.request, HF_REASON_endpoint);
    EXPECT_TRUE(node.flows(kRed).empty()) << "endpoints need no flows";
  }
}

TEST(Lease, NoEndpointNoPassage) {
  const Tcp ssh{.sport = 40000, .dport = 22, .flags = "S"};
  run({
      {.name = "another port of the same address",
       .packet = kFromHost / kIn4 / ssh,
       .control_packet = {services()[0].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "v6",
       .packet = kFromHost / kIn6 / ssh,
       .control_packet = {services()[1].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "the right port of the wrong protocol",
       .packet = kFromHost / kIn4 / Udp{.dport = 443},
       .control_packet = {services()[0].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "uplink: another port",
       .hook = Hook::uplink_xdp,
       .packet = kFromHost / kIn4 / ssh,
       .control_packet = {services()[0].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "uplink: a tenant address without any endpoint",
       .hook = Hook::uplink_xdp,
       .packet = Ip4{.from = "192.0.2.9", .to = "10.0.0.2"} / ssh,
       .control_packet = {services()[0].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "an address that is not behind the port",
       .packet = Ip4{.from = "192.0.2.9", .to = "10.0.0.7"} / ssh,
       .control_packet = {services()[0].request},
       .verdict = HF_REASON_wrong_port},
      {.name = "another port's endpoint",
       .port = Node::red1,
       .packet = services()[0].request,
       .control = HF_REASON_neighbour,
       .control_packet = {Packet(Arp{})},
       .verdict = HF_REASON_wrong_port},
      {.name = "another tenant's endpoint",
       .port = Node::blue0,
       .packet = services()[1].request,
       .control = HF_REASON_neighbour,
       .control_packet = {Packet(Arp{})},
       .verdict = HF_REASON_wrong_port},
  });
}

TEST(Lease, AnEndpointAnswersButDoesNotBegin) {
  const auto no_egress = [](Node& n) { n.gate(kRed0Egress, 0); };
  const Packet answer = services()[0].answer;
  const Packet echo_answer = services()[4].answer;
  run({
      {.name = "a SYN from the endpoint's port",
       .hook = Hook::from_tenant,
       .packet = kOut4 / Tcp{.sport = 443, .dport = 80, .flags = "S"},
       .given = no_egress,
       .control_packet = {answer},
       .verdict = HF_REASON_no_egress_lease},
      {.name = "a SYN from the endpoint's port, v6",
       .hook = Hook::from_tenant,
       .packet = kOut6 / Tcp{.sport = 443, .dport = 80, .flags = "S"},
       .given = no_egress,
       .control_packet = {services()[1].answer},
       .verdict = HF_REASON_no_egress_lease},
      {.name = "an echo request with id 0",
       .hook = Hook::from_tenant,
       .packet = kOut4 / Echo{.id = 0},
       .given = no_egress,
       .control_packet = {echo_answer},
       .verdict = HF_REASON_no_egress_lease},
      {.name = "an echo request with id 0, v6",
       .hook = Hook::from_tenant,
       .packet = kOut6 / Echo{.id = 0},
       .given = no_egress,
       .control_packet = {services()[5].answer},
       .verdict = HF_REASON_no_egress_lease},
      {.name = "an echo reply with id 0 to the tenant",
       .packet = kIn4 / Echo{.id = 0, .reply = true},
       .control_packet = {services()[4].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "an echo reply with id 0 to the tenant, v6",
       .packet = kIn6 / Echo{.id = 0, .reply = true},
       .control_packet = {services()[5].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "an echo reply with id 0 on the uplink",
       .hook = Hook::uplink_xdp,
       .packet = kIn4 / Echo{.id = 0, .reply = true},
       .control_packet = {services()[4].request},
       .verdict = HF_REASON_no_endpoint},
      {.name = "another local port",
       .hook = Hook::from_tenant,
       .packet = kOut4 / Tcp{.sport = 8443, .dport = 40000},
       .given = no_egress,
       .control_packet = {answer},
       .verdict = HF_REASON_no_egress_lease},
  });
}

TEST(Lease, APeerPrefixIsOver128Bits) {
  struct Case {
    const char* prefix;
    std::uint32_t bits;
    const char* inside;
    const char* outside;  // nullptr: nothing is
  };
  const std::vector<Case> v6 = {
      {"8000::", 1, "ffff::1", "7fff::1"},
      {"2001:db8::", 31, "2001:db9::1", "2001:dba::1"},
      {"2001:db8::", 32, "2001:db8:ffff::1", "2001:db9::1"},
      {"2001:db8:8000::", 33, "2001:db8:ffff::1", "2001:db8:7fff::1"},
      {"2001:db8:1:2::", 64, "2001:db8:1:2:ffff::", "2001:db8:1:3::"},
      {"2001:db8:1:2:3:4::", 96, "2001:db8:1:2:3:4:ffff:1", "2001:db8:1:2:3:5:0:1"},
      {"2001:db8:1:2:3:4:8000:0", 97, "2001:db8:1:2:3:4:8000:1", "2001:db8:1:2:3:4:7fff:1"},
      {"2001:db8::6", 127, "2001:db8::7", "2001:db8::8"},
      {"2001:db8::6", 128, "2001:db8::6", "2001:db8::7"},
      {"2001:db8::6", 0, "3fff::1", nullptr},
  };
  const std::vector<Case> v4 = {
      {"192.0.2.0", 120, "192.0.2.255", "192.0.3.0"},
      {"128.0.0.0", 97, "223.1.1.1", "127.255.255.255"},
      {"192.0.2.8", 127, "192.0.2.9", "192.0.2.10"},
      {"192.0.2.9", 128, "192.0.2.9", "192.0.2.8"},
      {"0.0.0.0", 96, "198.51.100.1", nullptr},
      {"192.0.2.0", 0, "198.51.100.1", nullptr},
  };
  const auto check = [](const Case& c, std::uint32_t slot, auto request) {
    SCOPED_TRACE(std::string(c.prefix) + "/" + std::to_string(c.bits));
    Node node;
    node.lease(slot, {.peer = c.prefix, .peer_bits = c.bits});
    expect(node, Hook::to_tenant, Node::red0(), request(c.inside), HF_REASON_endpoint);
    if (c.outside)
      expect(node, Hook::to_tenant, Node::red0(), request(c.outside), HF_REASON_peer_not_leased);
  };
  const Tcp syn{.flags = "S"};
  for (const Case& c : v6)
    check(c, kRed0Tcp6,
          [&](const char* from) { return Ip6{.from = from, .to = "fd00::1"} / Packet(syn); });
  for (const Case& c : v4)
    check(c, kRed0Tcp4,
          [&](const char* from) { return Ip4{.from = from, .to = "10.0.0.1"} / Packet(syn); });
}

TEST(Lease, TheDeadlineIsRoundedDownToATickOf2To20Nanoseconds) {
  Node node;
  const Packet request = services()[0].request;
  constexpr std::uint64_t tick_ns = 1 << HF_GATE_TICK_SHIFT;
  // A deadline in the tick that is passing now comes out as its beginning, which is behind us.
  node.gate(kRed0Tcp4, hf_gate(boot_ns() / tick_ns * tick_ns + tick_ns - 1, 1));
  expect(node, Hook::to_tenant, Node::red0(), request, HF_REASON_lease_expired);
  // The lease's own end: it passes before, and never after.
  const std::uint64_t deadline_ns = boot_ns() + 30'000'000;
  node.gate(kRed0Tcp4, hf_gate(deadline_ns, 1));
  bool was_denied = false;
  for (;;) {
    const std::uint64_t before_ns = boot_ns();
    const bool passed = node.send(Hook::to_tenant, Node::red0(), request).passed;
    const std::uint64_t after_ns = boot_ns();
    if (before_ns >= deadline_ns) {
      EXPECT_FALSE(passed) << "passed after the deadline";
      break;
    }
    if (after_ns + tick_ns < deadline_ns) {
      EXPECT_TRUE(passed) << "denied more than a tick early";
    }
    EXPECT_FALSE(was_denied && passed) << "came back to life";
    was_denied = was_denied || !passed;
  }
}

TEST(Lease, AFarDeadlineIsJudgedByACachedClockAndANearOneByTheTrueOne) {
  Node node;
  const Packet request = services()[0].request;
  node.send(Hook::to_tenant, Node::red0(), request);  // fills this CPU's reading
  for (int i = 0; i < 20; i++) {
    node.lease(kRed0Tcp4, {.expires_in = -1ms});
    expect(node, Hook::to_tenant, Node::red0(), request, HF_REASON_lease_expired);
    node.lease(kRed0Tcp4, {.expires_in = 1h});
    expect(node, Hook::to_tenant, Node::red0(), request, HF_REASON_endpoint);
  }
}

}  // namespace
}  // namespace holdfast::test
