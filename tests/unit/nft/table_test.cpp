#include "nft/table.hpp"

#include <atomic>
#include <chrono>
#include <thread>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "policy/address.hpp"
#include "tests/unit/nft/namespace.hpp"
#include "userspace/base/clock.hpp"

namespace holdfast::nft {
namespace {

using test::in_fresh_namespace;
using test::run;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint32_t port_a = 5;

LeaseElement tcp(const char* address, uint16_t port, const char* peer = nullptr) {
  LeaseElement out{.ifindex = port_a, .address = *parse_address(address), .port = port, .peer = {}};
  if (peer != nullptr) out.peer = *parse_prefix(peer);
  return out;
}
LeaseElement echo(const char* address, const char* peer = nullptr) {
  LeaseElement out = tcp(address, 0, peer);
  out.protocol = Protocol::icmp_echo;
  return out;
}
LeaseElement egress() {
  return {.kind = LeaseElement::Kind::egress, .ifindex = port_a, .address = {}, .peer = {}};
}

HostRules host_rules() {
  return {
      .failsafe_ports = {22},
      .listeners = {{Protocol::tcp, 443, {}},
                    {Protocol::udp, 53, {*parse_prefix("10.0.0.0/8"), *parse_prefix("fd00::/8")}}}};
}

Table ready() {
  auto table = Table::open("holdfast");
  EXPECT_TRUE(table) << table.error().text();
  auto made = table->ensure(host_rules());
  EXPECT_TRUE(made) << made.error().text();
  return std::move(*table);
}

#define ASSERT_GOOD(expression)               \
  do {                                        \
    auto good = (expression);                 \
    ASSERT_TRUE(good) << good.error().text(); \
  } while (0)

std::optional<uint32_t> left_ms(Table& table, const LeaseElement& element, Side side) {
  LeaseKey key{element, side};
  auto out = table.remaining_ms({&key, 1});
  EXPECT_TRUE(out) << out.error().text();
  return out->front();
}

void wait_ms(int ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

TEST(NftTable, EnsureMakesTheTableOnceAndThenChangesNothing) {
  in_fresh_namespace([] {
    Table table = ready();
    std::string first = run("nft -a list ruleset").text;
    ASSERT_GOOD(table.ensure(host_rules()));
    EXPECT_EQ(run("nft -a list ruleset").text, first) << "the rules' handles tell a replacement";
    EXPECT_THAT(first, HasSubstr("type filter hook forward priority filter - 10; policy drop;"));
    EXPECT_THAT(first, HasSubstr("type filter hook input priority filter - 10; policy drop;"));
  });
}

TEST(NftTable, WhatNftListsIsReadable) {
  in_fresh_namespace([] {
    Table table = ready();
    Changes changes;
    changes.arm = {1};
    changes.own = {{1, *parse_address("10.0.0.2")}};
    LeaseElement lease = tcp("10.0.0.2", 443, "192.0.2.0/24");
    lease.ifindex = 1;
    changes.grant(lease, 60'000);
    lease.peer.reset();
    changes.grant(lease, 60'000);
    ASSERT_GOOD(table.apply(changes));
    std::string text = run("nft list table inet holdfast").text;
    EXPECT_THAT(text,
                HasSubstr("type iface_index . ipv4_addr . inet_proto . inet_service . ipv4_addr"));
    EXPECT_THAT(text, HasSubstr("\"lo\" . 10.0.0.2 . tcp . 443 . 192.0.2.0/24 timeout 1m"));
    EXPECT_THAT(text, HasSubstr("\"lo\" . 10.0.0.2 . tcp . 443 timeout 1m"));
    EXPECT_THAT(text, HasSubstr("iif . ip saddr != @owned4 counter packets 0 bytes 0 drop comment "
                                "\"spoofed_address\""));
    EXPECT_THAT(text, HasSubstr("oif . ip daddr . meta l4proto . th dport @lease4_a return"));
    EXPECT_THAT(
        text,
        HasSubstr("oif . ip6 daddr . meta l4proto . th dport . ip6 saddr @lease6_peer_b return"));
    EXPECT_THAT(text, HasSubstr("tcp dport 22 accept"));
    EXPECT_THAT(text, HasSubstr("ip saddr 10.0.0.0/8 udp dport 53 accept"));
    EXPECT_THAT(text, HasSubstr("ip6 saddr fd00::/8 udp dport 53 accept"));
  });
}

TEST(NftTable, ChangedHostRulesReplaceTheRulesAndLeaveTheElements) {
  in_fresh_namespace([] {
    Table table = ready();
    Changes changes;
    changes.grant(tcp("10.0.0.2", 443), 60'000);
    ASSERT_GOOD(table.apply(changes));
    HostRules other = host_rules();
    other.failsafe_ports = {2222};
    ASSERT_FALSE(table.check_rules(other));
    ASSERT_GOOD(table.ensure(other));
    std::string text = run("nft list chain inet holdfast input").text;
    EXPECT_THAT(text, HasSubstr("tcp dport 2222 accept"));
    EXPECT_THAT(text, Not(HasSubstr("tcp dport 22 accept")));
    EXPECT_TRUE(left_ms(table, tcp("10.0.0.2", 443), Side::a));
  });
}

TEST(NftTable, EnsurePutsBackWhatAnotherProgramChanged) {
  in_fresh_namespace([] {
    Table table = ready();
    for (const char* tamper :
         {"nft insert rule inet holdfast forward accept", "nft flush chain inet holdfast to_tenant",
          "nft chain inet holdfast forward '{ policy accept; }'",
          "nft add table inet holdfast '{ flags dormant; }'", "nft flush ruleset"}) {
      ASSERT_EQ(run(tamper).status, 0) << tamper;
      ASSERT_GOOD(table.ensure(host_rules()));
      ASSERT_GOOD(table.check_rules(host_rules()));
      EXPECT_THAT(run("nft list table inet holdfast").text, Not(HasSubstr("dormant")));
    }
  });
}

TEST(NftTable, AForeignTableOfTheNameIsRefusedAndLeftAlone) {
  in_fresh_namespace([] {
    ASSERT_EQ(run("nft add table inet holdfast").status, 0);
    auto table = Table::open("holdfast");
    ASSERT_TRUE(table);
    auto refused = table->ensure(host_rules());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::conflict);
    EXPECT_THAT(refused.error().text(), HasSubstr("table inet holdfast"));
    ASSERT_FALSE(table->remove());
    EXPECT_EQ(run("nft list ruleset").text, "table inet holdfast {\n}\n");

    auto other = Table::open("another");
    ASSERT_TRUE(other);
    ASSERT_GOOD(other->ensure(host_rules()));
  });
}

TEST(NftTable, RemoveDeletesOursAndNothingIsSuccessToo) {
  in_fresh_namespace([] {
    Table table = ready();
    ASSERT_EQ(run("nft add table inet foreign").status, 0);
    ASSERT_GOOD(table.remove());
    ASSERT_GOOD(table.remove());
    EXPECT_EQ(run("nft list ruleset").text, "table inet foreign {\n}\n");
  });
}

TEST(NftTable, TheBootDenyTableLoadsTwiceAndIsRemoved) {
  in_fresh_namespace([] {
    for (int i = 0; i < 2; ++i) {
      auto loaded = run(std::string("nft -f ") + BOOT_DENY);
      ASSERT_EQ(loaded.status, 0) << loaded.text;
    }
    EXPECT_THAT(run("nft list ruleset").text, HasSubstr("policy drop"));
    Table table = ready();
    ASSERT_GOOD(table.remove_boot_deny());
    EXPECT_THAT(run("nft list tables").text, Not(HasSubstr("holdfast_boot")));
    ASSERT_GOOD(table.remove_boot_deny());
  });
}

TEST(NftTable, EveryKindOfElementIsAppliedReadBackAndRemoved) {
  in_fresh_namespace([] {
    Table table = ready();
    Changes changes;
    changes.arm = {1, 2, port_a};
    changes.add_tenants = {port_a};
    changes.own = {{port_a, *parse_address("10.0.0.2")}, {port_a, *parse_address("fd00::2")}};
    std::vector<LeaseElement> leases = {tcp("10.0.0.2", 443),
                                        tcp("fd00::2", 443),
                                        echo("10.0.0.2"),
                                        echo("fd00::2"),
                                        egress(),
                                        tcp("10.0.0.2", 80, "192.0.2.0/24"),
                                        tcp("10.0.0.2", 81, "0.0.0.0/0"),
                                        tcp("fd00::2", 80, "2001:db8::/61"),
                                        tcp("fd00::2", 81, "::/0"),
                                        echo("10.0.0.2", "192.0.2.1"),
                                        echo("fd00::2", "2001:db8::1")};
    for (const LeaseElement& each : leases) changes.grant(each, 60'000);
    ASSERT_GOOD(table.apply(changes));
    ASSERT_GOOD(table.verify(changes));
    for (const LeaseElement& each : leases) {
      auto left = left_ms(table, each, Side::a);
      ASSERT_TRUE(left) << describe(each, Side::a);
      EXPECT_GT(*left, 50'000U);
      EXPECT_LE(*left, 60'000U);
      EXPECT_FALSE(left_ms(table, each, Side::b));
    }
    EXPECT_TRUE(*table.is_armed(2));
    EXPECT_FALSE(*table.is_armed(3));
    EXPECT_TRUE(*table.is_tenant(port_a));
    EXPECT_TRUE(*table.is_owned({port_a, *parse_address("10.0.0.2")}));
    EXPECT_FALSE(*table.is_owned({port_a, *parse_address("10.0.0.3")}));

    Changes gone;
    gone.disarm = {2};
    gone.remove_tenants = {port_a};
    gone.disown = changes.own;
    for (const LeaseElement& each : leases) gone.revoke(each);
    ASSERT_GOOD(table.apply(gone));
    ASSERT_GOOD(table.verify(gone));
    ASSERT_FALSE(table.verify(changes));
    EXPECT_FALSE(*table.is_armed(2));
    EXPECT_TRUE(*table.is_armed(1));
    EXPECT_THAT(run("nft list set inet holdfast lease4_peer_a").text, Not(HasSubstr("elements")));
    ASSERT_GOOD(table.apply(gone));  // removing what is gone is success
  });
}

TEST(NftTable, APeerPrefixIsReadBackAsItselfNotAsOneThatHoldsIt) {
  in_fresh_namespace([] {
    Table table = ready();
    Changes changes;
    changes.grant(tcp("10.0.0.2", 443, "192.0.0.0/16"), 60'000);
    ASSERT_GOOD(table.apply(changes));
    EXPECT_TRUE(left_ms(table, tcp("10.0.0.2", 443, "192.0.0.0/16"), Side::a));
    EXPECT_FALSE(left_ms(table, tcp("10.0.0.2", 443, "192.0.0.0/24"), Side::a));
    Changes overlap;
    overlap.grant(tcp("10.0.0.2", 443, "192.0.2.0/24"), 60'000);
    auto refused = table.apply(overlap);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::conflict);
    EXPECT_THAT(refused.error().text(), HasSubstr("192.0.2.0/24"));
  });
}

TEST(NftTable, ALeaseDiesInTheKernelByItself) {
  in_fresh_namespace([] {
    Table table = ready();
    Changes changes;
    for (const LeaseElement& each :
         {tcp("10.0.0.2", 443), tcp("10.0.0.2", 443, "192.0.2.0/24"), egress()}) {
      changes.grant(each, 1'000);
    }
    ASSERT_GOOD(table.apply(changes));
    ASSERT_GOOD(table.verify(changes));
    wait_ms(1'060);
    for (const LeaseWrite& each : changes.writes) {
      EXPECT_FALSE(left_ms(table, each.element, each.side)) << describe(each.element, each.side);
    }
    EXPECT_EQ(*table.count("lease4_a"), 0U);
    EXPECT_EQ(*table.count("lease4_peer_a"), 0U);
    // An expired element is neither in the way of a new one nor of a removal.
    ASSERT_GOOD(table.apply(changes));
    ASSERT_GOOD(table.verify(changes));
    wait_ms(1'060);
    Changes gone;
    for (const LeaseWrite& each : changes.writes) gone.revoke(each.element);
    ASSERT_GOOD(table.apply(gone));
  });
}

TEST(NftTable, RenewingInTurnRefreshesTheTimeoutAndLeavesTheLiveElementAlone) {
  in_fresh_namespace([] {
    Table table = ready();
    for (const LeaseElement& lease : {tcp("10.0.0.2", 443), tcp("10.0.0.2", 443, "192.0.2.0/24")}) {
      Changes grant;
      grant.grant(lease, 10'000);
      ASSERT_GOOD(table.apply(grant));
      Side live = Side::a;
      for (uint32_t i = 0; i < 20; ++i) {
        auto before = left_ms(table, lease, live);
        ASSERT_TRUE(before);
        Changes renew;
        Side next = renew.renew(lease, live, 20'000 + i);
        ASSERT_GOOD(table.apply(renew));
        ASSERT_GOOD(table.verify(renew));
        auto old_left = left_ms(table, lease, live);
        ASSERT_TRUE(old_left) << "the live element was deleted";
        EXPECT_LE(*old_left, *before);
        EXPECT_GT(*left_ms(table, lease, next), 15'000U);
        live = next;
      }
    }
  });
}

// A second reader asks both sides, as a packet does, while one renews as fast as it can.
TEST(NftTable, AtNoInstantOfARenewalAreBothSidesEmpty) {
  in_fresh_namespace([] {
    Table table = ready();
    LeaseElement lease = tcp("10.0.0.2", 443);
    Changes grant;
    grant.grant(lease, 10'000);
    ASSERT_GOOD(table.apply(grant));
    auto reader = Table::open("holdfast");
    ASSERT_TRUE(reader);
    std::atomic<bool> done = false;
    uint64_t looks = 0, misses = 0;
    std::thread looking([&] {
      std::array<LeaseKey, 1> a = {LeaseKey{lease, Side::a}}, b = {LeaseKey{lease, Side::b}};
      while (!done) {
        ++looks;
        // As a packet: side a, then side b. Renewals in between make this stricter than one lookup,
        // so only a miss of a, b and a again would be a gap.
        if (!reader->remaining_ms(a)->front() && !reader->remaining_ms(b)->front() &&
            !reader->remaining_ms(a)->front()) {
          ++misses;
        }
      }
    });
    Side live = Side::a;
    for (int i = 0; i < 2000; ++i) {
      Changes renew;
      live = renew.renew(lease, live, 10'000);
      auto renewed = table.apply(renew);
      EXPECT_TRUE(renewed) << renewed.error().text();
    }
    done = true;
    looking.join();
    EXPECT_GT(looks, 100U);
    EXPECT_EQ(misses, 0U);
  });
}

TEST(NftTable, AnElementInTheWayIsReplaced) {
  in_fresh_namespace([] {
    Table table = ready();
    Changes changes;
    changes.grant(tcp("10.0.0.2", 443), 5'000);
    changes.grant(tcp("10.0.0.2", 444), 5'000);
    ASSERT_GOOD(table.apply(changes));
    changes.writes.front().timeout_ms = 50'000;
    ASSERT_GOOD(table.apply(changes));
    EXPECT_GT(*left_ms(table, tcp("10.0.0.2", 443), Side::a), 40'000U);
    // Removed and written in one go, and removed twice.
    changes.revoke(tcp("10.0.0.2", 443));
    changes.revoke(tcp("10.0.0.2", 443));
    ASSERT_GOOD(table.apply(changes));
    ASSERT_GOOD(table.verify(changes));
  });
}

TEST(NftTable, AFailedTransactionChangesNothingAndNamesTheElement) {
  in_fresh_namespace([] {
    Table table = ready();
    Changes before;
    before.grant(tcp("10.0.0.2", 99, "10.0.0.0/8"), 60'000);
    before.grant(tcp("10.0.0.2", 7), 60'000);
    ASSERT_GOOD(table.apply(before));
    Changes changes;
    changes.arm = {77};
    changes.removals = {{tcp("10.0.0.2", 7), Side::a}};
    for (uint16_t port = 1000; port < 6000; ++port) changes.grant(tcp("10.0.0.2", port), 60'000);
    changes.grant(tcp("10.0.0.2", 98, "10.1.0.0/16"), 60'000);
    changes.grant(tcp("10.0.0.2", 99, "10.1.0.0/16"), 60'000);
    changes.grant(tcp("10.0.0.2", 100, "10.1.0.0/16"), 60'000);
    auto refused = table.apply(changes);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().text(),
                HasSubstr("interface 5, 10.0.0.2 tcp 99, peer 10.1.0.0/16"));
    EXPECT_FALSE(*table.is_armed(77));
    EXPECT_EQ(*table.count("lease4_a"), 1U);
    EXPECT_TRUE(left_ms(table, tcp("10.0.0.2", 7), Side::a));
    EXPECT_EQ(*table.count("lease4_peer_a"), 1U);
  });
}

TEST(NftTable, WhatCannotBeAnElementIsRefusedBeforeAnythingIsSent) {
  in_fresh_namespace([] {
    Table table = ready();
    for (uint32_t timeout_ms : {0U, element_timeout_max_ms + 1}) {
      Changes changes;
      changes.arm = {77};
      changes.grant(tcp("10.0.0.2", 443), timeout_ms);
      auto refused = table.apply(changes);
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().kind, ErrorKind::invalid);
      EXPECT_FALSE(*table.is_armed(77));
    }
  });
}

TEST(NftTable, AMissingTableIsAnErrorAndNotAbsence) {
  in_fresh_namespace([] {
    Table table = ready();
    ASSERT_EQ(run("nft flush ruleset").status, 0);
    LeaseKey key{tcp("10.0.0.2", 443), Side::a};
    auto out = table.remaining_ms({&key, 1});
    ASSERT_FALSE(out);
    EXPECT_EQ(out.error().kind, ErrorKind::not_found);
    Changes gone;
    gone.revoke(key.element);
    EXPECT_FALSE(table.apply(gone));
    EXPECT_FALSE(table.verify(gone));
  });
}

TEST(NftTable, ABulkLoadIsOneTransaction) {
  in_fresh_namespace([] {
    Table table = ready();
    const char* wanted = std::getenv("HOLDFAST_NFT_BULK");
    uint32_t leases = wanted != nullptr ? static_cast<uint32_t>(std::atoi(wanted)) : 200'000;
    Changes changes;
    for (uint32_t i = 0; i < leases; ++i) {
      LeaseElement lease = tcp("10.0.0.0", static_cast<uint16_t>(1 + i % 1000));
      lease.address.bytes[13] = static_cast<uint8_t>(i / 1000 >> 8);
      lease.address.bytes[14] = static_cast<uint8_t>(i / 1000);
      changes.grant(lease, 200'000);
    }
    auto timed = [&](const char* what, auto action) {
      uint64_t start_ns = boot_now_ns();
      ASSERT_GOOD(action());
      double took_s = static_cast<double>(boot_now_ns() - start_ns) / 1e9;
      fmt::print("{} {} elements: {:.2f} s, {:.2f} million a second\n", what, leases, took_s,
                 leases / took_s / 1e6);
    };
    timed("add", [&] { return table.apply(changes); });
    timed("read back", [&] { return table.verify(changes); });
    Changes renew;
    for (const LeaseWrite& each : changes.writes)
      renew.renew(each.element, Side::a, 250'000, false);
    timed("renew into the other side", [&] { return table.apply(renew); });
    Changes again;
    for (const LeaseWrite& each : changes.writes) again.renew(each.element, Side::b, 300'000);
    timed("renew over what is left", [&] { return table.apply(again); });
    Changes peers;
    for (uint32_t i = 0; i < leases / 100; ++i) {
      LeaseElement lease = changes.writes[i].element;
      lease.peer = *parse_prefix("192.0.2.0/24");
      peers.grant(lease, 200'000);
    }
    uint64_t peers_start_ns = boot_now_ns();
    ASSERT_GOOD(table.apply(peers));
    fmt::print("add {} with a peer prefix: {} ms\n", leases / 100,
               (boot_now_ns() - peers_start_ns) / ns_per_ms);
    peers_start_ns = boot_now_ns();
    Changes one_peer;
    one_peer.renew(peers.writes.front().element, Side::a, 100'000, false);
    ASSERT_GOOD(table.apply(one_peer));
    one_peer.writes.front().side = Side::a;
    ASSERT_GOOD(table.apply(one_peer));
    fmt::print("renew one of these twice: {} us\n", (boot_now_ns() - peers_start_ns) / 1000);
    Changes one;
    one.renew(changes.writes.front().element, Side::a, 100'000);
    uint64_t start_ns = boot_now_ns();
    ASSERT_GOOD(table.apply(one));
    fmt::print("renew one among them: {} us\n", (boot_now_ns() - start_ns) / 1000);
    Changes gone;
    for (const LeaseWrite& each : changes.writes) gone.revoke(each.element);
    timed("revoke", [&] { return table.apply(gone); });
    ASSERT_GOOD(table.verify(gone));
    EXPECT_EQ(*table.count("lease4_a"), 0U);
    EXPECT_EQ(*table.count("lease4_b"), 0U);
  });
}

}  // namespace
}  // namespace holdfast::nft
