// Tables and answers as people see them.
#include "userspace/cli/render.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace holdfast::cli {
namespace {

using cbor::Value;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr Style plain{};
constexpr Style colours{.colours = true};

TEST(Table, AlignsAndEndsNoLineInBlanks) {
  Table table({{"NAME"}, {"COUNT", Align::right}, {"STATE"}});
  table.add({"a", "5", "x"});
  table.add({"longer", "1,000", ""});
  EXPECT_EQ(table.render(plain),
            "NAME    COUNT  STATE\n"
            "a           5  x\n"
            "longer  1,000  -\n");
}

TEST(Table, CountsCodePointsAndColoursTakeNoColumns) {
  Table table({{"A"}, {"B"}});
  table.add({Cell("é", Colour::green), "x"});
  table.add({"ab", "y"});
  EXPECT_EQ(table.render(colours),
            "\x1b[1mA\x1b[0m   \x1b[1mB\x1b[0m\n"
            "\x1b[32mé\x1b[0m   x\n"
            "ab  y\n");
}

TEST(Table, PagesKeepTheirWidthsAndOneTitle) {
  Table table({{"A"}, {"B"}});
  table.add({"wide one", "1"});
  EXPECT_EQ(table.render(plain), "A         B\nwide one  1\n");
  table.add({"x", "2"});
  EXPECT_EQ(table.render(plain), "x         2\n");
  EXPECT_EQ(table.render(plain), "");
}

TEST(Table, NothingOfOthersReachesTheTerminalRaw) {
  EXPECT_EQ(printable("a\x1b[31mb\n\x7f"), "a?[31mb??");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "?31m");
  EXPECT_EQ(printable("naïve"), "naïve");
  Table table({{"A"}});
  table.add({"\x1b]0;owned\x07"});
  EXPECT_THAT(table.render(plain), Not(HasSubstr("\x1b")));
}

Value lease() {
  return Value::map(
      {{"id", "00ff"},
       {"state", "active"},
       {"tenant", "acme/shop/prod"},
       {"resources", Value::array({"web@10.1.0.2:443", "ping@10.1.0.2", "egress:web0"})},
       {"holder", "uid:1000"},
       {"peer", nullptr},
       {"granted_at", "2026-11-22T02:04:51.000Z"},
       {"expires_at", "2026-11-22T02:05:51.000Z"},
       {"remaining_ns", 41'700'000'000U},
       {"generation", 3}});
}

TEST(Leases, Table) {
  Table table = lease_table();
  add_leases(table, Value::map({{"leases", Value::array({lease()})}}));
  EXPECT_EQ(table.render(plain),
            "LEASE  TENANT          OPENS                                     PEER  HOLDER    "
            "STATE   EXPIRES\n"
            "00ff   acme/shop/prod  web@10.1.0.2:443, ping@10.1.0.2, +1 more  any   uid:1000  "
            "active  in 42s\n");
}

TEST(Leases, Grant) {
  const Value one = Value::map({{"granted", 1}, {"leases", Value::array({lease()})}});
  EXPECT_THAT(render_grant(one, plain),
              ::testing::StartsWith(
                  "granted 00ff to acme/shop/prod: web@10.1.0.2:443, ping@10.1.0.2, egress:web0; "
                  "expires in 42s, at 2026-11-2"));
  const Value many = Value::map({{"granted", 1'000'000},
                                 {"took_ns", 3'000'000'000U},
                                 {"ebpf_ns", 500'000'000},
                                 {"nft_ns", 2'100'000'000U}});
  EXPECT_EQ(render_grant(many, plain),
            "granted 1,000,000 leases in 3.0s (eBPF 500ms, nftables 2.1s)\n");
}

TEST(Answers, EmptyOnesSaySoAndWhatToDo) {
  const Value none = Value::map();
  for (const std::string& text : {render_routes(none, plain), render_tenants(none, plain),
                                  render_drops(none, plain), render_flows(none, plain)}) {
    EXPECT_THAT(text, EndsWith("\n"));
    EXPECT_THAT(text, HasSubstr("No"));
  }
  EXPECT_THAT(render_push(none, true, plain), HasSubstr("No difference"));
}

TEST(Answers, AnOlderDaemonIsStillReadable) {
  // Nothing of what is expected, and of other types: no crash, and dashes.
  const Value odd =
      Value::map({{"leases", Value::array({7, nullptr, Value::map({{"id", 5}})})},
                  {"tenants", Value::array({"x"})},
                  {"routes", Value::array({Value::map()})},
                  {"flows", Value::array({Value::map()})},
                  {"steps", Value::array({Value::map()})},
                  {"reasons", Value::array({Value::map({{"verdict", "drop"}, {"packets", 1}})})},
                  {"hooks", "tcx"}});
  Table table = lease_table();
  add_leases(table, odd);
  EXPECT_THAT(table.render(plain), HasSubstr("-"));
  for (const std::string& text :
       {render_status(odd, "s", plain), render_lease(odd, plain), render_grant(odd, plain),
        render_routes(odd, plain), render_tenants(odd, plain), render_push(odd, false, plain),
        render_drops(odd, plain), render_drop_event(odd, plain), render_flows(odd, plain),
        render_explain(odd, "p", plain)})
    EXPECT_FALSE(text.empty());
}

TEST(Enrollment, SaysWhoseNodeItIs) {
  const auto shown = [](std::string_view state, bool expired = false) {
    return render_enrollment(Value::map({{"state", state},
                                         {"since", "2026-11-28T12:00:00Z"},
                                         {"by_uid", 0},
                                         {"root", "00ff"},
                                         {"tenants", Value::array({"acme/shop/prod", "\x1b[2J"})},
                                         {"expires", "2026-11-28T13:00:00Z"},
                                         {"expired", expired}}),
                             plain);
  };
  EXPECT_THAT(shown("unenrolled"), HasSubstr("this machine's own"));
  EXPECT_THAT(shown("pending"), HasSubstr("pending until 2026-11-28 "));
  EXPECT_THAT(shown("pending", true), HasSubstr("the request expired at 2026-11-28 "));
  EXPECT_THAT(shown("enrolled"), HasSubstr("enrolled under root 00ff, for acme/shop/prod, "));
  EXPECT_THAT(shown("enrolled"), Not(HasSubstr("\x1b")));
  EXPECT_THAT(shown("left"), HasSubstr("left root 00ff"));
  EXPECT_THAT(
      render_enroll_end(
          Value::map({{"enrollment", Value::map()}, {"leases", 2}, {"leases_ended", 1}}), plain),
      HasSubstr("1 lease ended\n2 leases left, until the end of their term\n"));
}

TEST(Drops, OnlyWhatWasDroppedTheMostFirst) {
  const auto row = [](std::string_view reason, std::string_view verdict, uint64_t packets) {
    return Value::map({{"hook", "to_tenant"},
                       {"reason", reason},
                       {"verdict", verdict},
                       {"packets", packets},
                       {"bytes", packets * 100},
                       {"text", "why"}});
  };
  const Value reply =
      Value::map({{"reasons", Value::array({row("no_lease", "drop", 3), row("endpoint", "pass", 9),
                                            row("lateral", "drop", 0), row("vlan", "drop", 12)})},
                  {"events_lost", 1},
                  {"events_unsampled", 2}});
  EXPECT_EQ(render_drops(reply, plain),
            "HOOK       REASON    PACKETS    BYTES  WHY\n"
            "to_tenant  vlan           12  1.2 KiB  why\n"
            "to_tenant  no_lease        3    300 B  why\n"
            "Counts are exact. Of single events, 2 were beyond the sample and 1 lost.\n");
}

TEST(Explain, NamesTheEntryThatDecided) {
  const Value step = Value::map({{"hook", "to_tenant"},
                                 {"interface", "veth0"},
                                 {"verdict", "drop"},
                                 {"reason", "lease_expired"},
                                 {"text", "the lease's deadline has passed"},
                                 {"tenant", "acme/shop/prod"},
                                 {"lease", "00ff"},
                                 {"remaining_ns", nullptr},
                                 {"ended_ns_ago", 12'000'000'000U},
                                 {"bank", 1}});
  const Value reply = Value::map({{"verdict", "drop"}, {"steps", Value::array({step})}});
  EXPECT_EQ(render_explain(reply, "tcp 198.51.100.7:1 -> 10.1.0.2:443, from uplink", plain),
            "tcp 198.51.100.7:1 -> 10.1.0.2:443, from uplink\n\n"
            "1. to_tenant veth0  drop  lease_expired: the lease's deadline has passed\n"
            "   lease 00ff, tenant acme/shop/prod, ended 12s ago, policy bank 1\n\n"
            "drop on its way to the tenant: the lease's deadline has passed "
            "(lease 00ff, tenant acme/shop/prod, ended 12s ago)\n");
}

}  // namespace
}  // namespace holdfast::cli
