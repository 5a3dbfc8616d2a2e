#include "nft/watch.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include "nft/table.hpp"
#include "policy/address.hpp"
#include "tests/unit/nft/namespace.hpp"

namespace holdfast::nft {
namespace {

using test::in_fresh_namespace;
using test::run;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Fixture {
  Table table;
  Watch watch;
};

Fixture ready() {
  auto table = Table::open("holdfast");
  EXPECT_TRUE(table) << table.error().text();
  uint32_t port_id = table->port_id();
  auto watch = Watch::open("holdfast", {&port_id, 1});
  EXPECT_TRUE(watch) << watch.error().text();
  auto made = table->ensure({.failsafe_ports = {22}, .listeners = {}});
  EXPECT_TRUE(made) << made.error().text();
  return {std::move(*table), std::move(*watch)};
}

std::vector<std::string> drained(Watch& watch) {
  std::vector<std::string> out;
  auto events = watch.drain();
  EXPECT_TRUE(events) << events.error().text();
  for (const Event& each : *events) out.push_back(each.text());
  return out;
}

Changes grant(uint32_t leases) {
  Changes out;
  for (uint32_t i = 0; i < leases; ++i) {
    LeaseElement lease{.ifindex = 1 + i / 1000,
                       .address = *parse_address("10.0.0.2"),
                       .port = static_cast<uint16_t>(1 + i % 1000),
                       .peer = {}};
    out.grant(lease, 100'000);
  }
  return out;
}

TEST(NftWatch, OurOwnChangesAreNotReportedHoweverMany) {
  in_fresh_namespace([] {
    Fixture f = ready();
    ASSERT_TRUE(f.table.apply(grant(100'000)));
    EXPECT_THAT(drained(f.watch), IsEmpty());
  });
}

TEST(NftWatch, AFlushedRulesetIsSeenWithItsCulprit) {
  in_fresh_namespace([] {
    Fixture f = ready();
    ASSERT_TRUE(f.table.apply(grant(3)));
    ASSERT_EQ(run("nft flush ruleset").status, 0);
    pollfd ready_to_read{f.watch.fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&ready_to_read, 1, 1000), 1);
    auto events = drained(f.watch);
    EXPECT_THAT(events, Contains(HasSubstr("table removed holdfast by nft, process")));
    EXPECT_THAT(drained(f.watch), IsEmpty());
  });
}

TEST(NftWatch, EachForeignChangeToOurTableIsSeenAndOthersTablesAreNot) {
  in_fresh_namespace([] {
    Fixture f = ready();
    ASSERT_TRUE(f.table.apply(grant(3)));
    struct Case {
      const char* command;
      const char* event;
    };
    const Case cases[] = {
        {"nft delete element inet holdfast lease4_a '{ 1 . 10.0.0.2 . tcp . 1 }'",
         "element removed from set lease4_a by nft"},
        {"nft add element inet holdfast armed '{ 9 }'", "element added to set armed by nft"},
        {"nft flush set inet holdfast lease4_a",
         "element removed from set lease4_a (2 times) by nft"},
        {"nft insert rule inet holdfast forward accept", "rule added to chain forward by nft"},
        {"nft flush chain inet holdfast input", "rule removed from chain input ("},
        {"nft chain inet holdfast input '{ policy accept; }'",
         "chain made or changed input by nft"},
    };
    for (const Case& each : cases) {
      auto done = run(each.command);
      ASSERT_EQ(done.status, 0) << done.text;
      EXPECT_THAT(drained(f.watch), Contains(HasSubstr(each.event))) << each.command;
    }
    ASSERT_EQ(
        run("nft add table inet foreign; nft add set inet foreign armed '{ type iface_index; }'; "
            "nft add element inet foreign armed '{ 9 }'")
            .status,
        0);
    EXPECT_THAT(drained(f.watch), IsEmpty());
    // Not every kernel is built with flowtables; where it is not, nobody can make one.
    auto made =
        run("ip link set lo up; nft add flowtable inet foreign fast "
            "'{ hook ingress priority 0; devices = { lo }; }'");
    if (made.status == 0) {
      EXPECT_THAT(drained(f.watch), Contains(HasSubstr("flowtable made foreign fast by nft")));
    } else {
      EXPECT_THAT(made.text, HasSubstr("No such file or directory"));
    }
  });
}

TEST(NftWatch, AnOverflowIsReported) {
  in_fresh_namespace([] {
    Fixture f = ready();
    auto other = Table::open("holdfast");
    ASSERT_TRUE(other);
    ASSERT_TRUE(other->apply(grant(200'000)));
    auto events = f.watch.drain();
    ASSERT_TRUE(events);
    bool overrun = false;
    for (const Event& each : *events) overrun |= each.kind == EventKind::overrun;
    EXPECT_TRUE(overrun);
  });
}

}  // namespace
}  // namespace holdfast::nft
