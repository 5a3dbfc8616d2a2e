// watch: who is told what, from where on, and what is forgotten. No socket, no clock.
#include "userspace/daemon/watch.hpp"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

using cbor::Value;

Value list(std::initializer_list<const char*> names) {
  Value out = Value::array();
  for (const char* name : names) out.push(name);
  return out;
}

WatchFilter filter(std::initializer_list<const char*> kinds,
                   std::initializer_list<const char*> tenants = {}) {
  const Result<WatchFilter> made =
      WatchFilter::read(Value::map({{"kinds", list(kinds)}, {"tenants", list(tenants)}}));
  EXPECT_TRUE(made) << made.error().text();
  return made ? *made : WatchFilter();
}

TEST(WatchFilter, Wants) {
  struct Case {
    const char* name;
    WatchFilter filter;
    const char* event;
    const char* tenant;
    bool wanted;
  };
  const Case cases[] = {
      {"everything", {}, "lease.grant", "a/b/c", true},
      {"a noun", filter({"lease"}), "lease.grant", "a/b/c", true},
      {"another noun", filter({"policy", "tenant"}), "lease.grant", "a/b/c", false},
      {"a name", filter({"lease.grant"}), "lease.grant", "a/b/c", true},
      {"another name", filter({"lease.renew"}), "lease.grant", "a/b/c", false},
      {"a tenant", filter({}, {"x/y/z", "a/b/c"}), "lease.grant", "a/b/c", true},
      {"another tenant", filter({}, {"x/y/z"}), "lease.grant", "a/b/c", false},
      {"of no tenant", filter({}, {"x/y/z"}), "node.drain", "", true},
      {"kind and tenant", filter({"lease"}, {"a/b/c"}), "lease.grant", "a/b/c", true},
      {"the kind alone", filter({"lease"}, {"a/b/c"}), "lease.grant", "x/y/z", false},
  };
  for (const Case& c : cases) EXPECT_EQ(c.filter.wants(c.event, c.tenant), c.wanted) << c.name;
  EXPECT_TRUE(filter({"lease.grant"}).wants_noun("lease"));
  EXPECT_FALSE(filter({"lease.grant"}).wants_noun("policy"));
  EXPECT_EQ(filter({}, {"a/b/c"}).only_tenant(), "a/b/c");
  EXPECT_EQ(filter({}, {"a/b/c", "x/y/z"}).only_tenant(), "");
  EXPECT_EQ(filter({"tenant", "lease", "lease"}), filter({"lease", "tenant"}));
}

TEST(WatchFilter, Refused) {
  struct Case {
    const char* name;
    Value args;
    const char* code;
  };
  Value many = Value::array();
  for (int i = 0; i < 65; ++i) many.push(std::to_string(i));
  const Case cases[] = {
      {"a misspelt kind", Value::map({{"kinds", list({"leases"})}}), "unknown_kind"},
      {"an event there is not", Value::map({{"kinds", list({"lease.granted"})}}), "unknown_kind"},
      {"no text", Value::map({{"kinds", Value(Value::Array{Value(7)})}}), "watch_filter"},
      {"an empty name", Value::map({{"tenants", list({""})}}), "watch_filter"},
      {"a long name", Value::map({{"tenants", Value(Value::Array{std::string(257, 'x')})}}),
       "watch_filter"},
      {"too many", Value::map({{"tenants", many}}), "watch_filter"},
      {"no list", Value::map({{"tenants", "a/b/c"}}), "wrong_type"},
  };
  for (const Case& c : cases) {
    const Result<WatchFilter> made = WatchFilter::read(c.args);
    ASSERT_FALSE(made) << c.name;
    EXPECT_EQ(made.error().code, c.code) << c.name;
  }
}

TEST(WatchCursor, Refused) {
  const Value cases[] = {
      Value("0123456789abcdef:1"),
      Value::map({{"instance", "0123456789abcdef"}}),
      Value::map({{"seq", 1}}),
      Value::map({{"instance", "short"}, {"seq", 1}}),
      Value::map({{"instance", "0123456789abcdef"}, {"seq", "1"}}),
      Value::map({{"instance", "0123456789abcdef"}, {"seq", 1}, {"more", 1}}),
  };
  for (const Value& c : cases) EXPECT_FALSE(WatchCursor::read(c)) << cbor::to_json(c);
  const WatchCursor cursor{"0123456789abcdef", 7};
  EXPECT_EQ(*WatchCursor::read(cursor.value()), cursor);
}

const std::string run = "0123456789abcdef";

void push(EventRing& ring, const char* tenant = "a/b/c", const char* name = "lease.grant") {
  ring.push(name, tenant, Value::map({{"event", name}, {"tenant", tenant}}));
}

// The numbers of the events in a frame, and the cursor behind them.
std::pair<std::vector<uint64_t>, uint64_t> told(const EventRing::Batch& batch) {
  const Result<Value> frame = cbor::decode(batch.frame);
  EXPECT_TRUE(frame) << frame.error().text();
  std::vector<uint64_t> seqs;
  for (const Value& event : **frame->get_array("events")) seqs.push_back(*event.get_u64("seq"));
  return {seqs, *(*frame->get_map("cursor"))->get_u64("seq")};
}

using Seqs = std::vector<uint64_t>;

TEST(EventRing, TellsInOrderAndOnlyWhatIsWanted) {
  EventRing ring(run, 1U << 20);
  EXPECT_EQ(ring.cursor(), (WatchCursor{run, 0}));
  EXPECT_TRUE(ring.batch(1, {}, 1000).frame.empty());
  push(ring);
  push(ring, "x/y/z");
  push(ring);
  const EventRing::Batch all = ring.batch(1, {}, 1U << 16);
  EXPECT_EQ(all.next, 4U);
  EXPECT_EQ(told(all), std::make_pair(Seqs({1, 2, 3}), uint64_t{3}));
  EXPECT_EQ(told(ring.batch(3, {}, 1U << 16)).first, Seqs({3}));
  // What is left out counts as seen.
  const EventRing::Batch some = ring.batch(1, filter({}, {"x/y/z"}), 1U << 16);
  EXPECT_EQ(told(some), std::make_pair(Seqs({2}), uint64_t{3}));
  const EventRing::Batch none = ring.batch(1, filter({"policy"}), 1U << 16);
  EXPECT_TRUE(none.frame.empty());
  EXPECT_EQ(none.next, 4U);
}

TEST(EventRing, FramesAreBounded) {
  EventRing ring(run, 1U << 20);
  for (int i = 0; i < 100; ++i) push(ring);
  uint64_t at = 1, frames = 0;
  Seqs seen;
  while (at < ring.end()) {
    const EventRing::Batch batch = ring.batch(at, {}, 1000);
    EXPECT_LE(batch.frame.size(), 1200U);
    const auto [seqs, last] = told(batch);
    EXPECT_EQ(last + 1, batch.next);
    seen.insert(seen.end(), seqs.begin(), seqs.end());
    at = batch.next;
    ++frames;
  }
  ASSERT_EQ(seen.size(), 100U);
  for (size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], i + 1);
  EXPECT_GT(frames, 3U);
  // One that is larger than a frame should be goes alone, and is not stuck.
  EXPECT_EQ(told(ring.batch(1, {}, 1)).first, Seqs({1}));
}

TEST(EventRing, ForgetsTheOldestAndSaysSo) {
  EventRing ring(run, 8192);
  for (int i = 0; i < 1000; ++i) push(ring);
  EXPECT_EQ(ring.end(), 1001U);
  EXPECT_GT(ring.begin(), 900U);
  EXPECT_LT(ring.begin(), 1000U);
  struct Case {
    const char* name;
    WatchCursor cursor;
    std::optional<uint64_t> next;
  };
  const Case cases[] = {
      {"the last", {run, 1000}, 1001},
      {"one before", {run, 999}, 1000},
      {"just before the oldest", {run, ring.begin() - 1}, ring.begin()},
      {"one is forgotten", {run, ring.begin() - 2}, std::nullopt},
      {"the first", {run, 0}, std::nullopt},
      {"of the future", {run, 1001}, std::nullopt},
      {"the largest", {run, UINT64_MAX}, std::nullopt},
      {"of another run", {"fedcba9876543210", 999}, std::nullopt},
  };
  for (const Case& c : cases) EXPECT_EQ(ring.after(c.cursor), c.next) << c.name;
}

TEST(EventRing, KeepsOneHoweverLarge) {
  EventRing ring(run, 10);
  push(ring);
  push(ring);
  EXPECT_EQ(ring.begin(), 2U);
  EXPECT_EQ(told(ring.batch(2, {}, 10)).first, Seqs({2}));
}

}  // namespace
}  // namespace holdfast
