// Value: building, asking by key, printing.
#include <string>

#include <gtest/gtest.h>

#include "tests/unit/wire/hex.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::cbor {
namespace {

using testing::to_hex;

Value sample() {
  return Value::map({{"ttl_ns", 5},
                     {"name", "a"},
                     {"id", Value::bytes(std::vector<uint8_t>{1, 2, 3})},
                     {"live", true},
                     {"shift", -3},
                     {"ports", Value::array({1, 2})},
                     {"more", Value::map({{"x", nullptr}})}});
}

TEST(Value, MapsAreSortedWhateverTheOrderTheyAreBuiltIn) {
  Value other = Value::map();
  other.set("more", Value::map({{"x", nullptr}}))
      .set("id", Value::bytes(std::vector<uint8_t>{1, 2, 3}));
  other.set("name", "replaced").set("shift", -3).set("ttl_ns", 5).set("live", true);
  other.set("ports", Value::array({1, 2})).set("name", "a");
  EXPECT_EQ(encode(other), encode(sample()));
  EXPECT_EQ(other, sample());
  EXPECT_EQ(to_json(other),
            R"({"id":"010203","live":true,"more":{"x":null},"name":"a","ports":[1,2],)"
            R"("shift":-3,"ttl_ns":5})");
}

TEST(Value, GettersReturnWhatIsThere) {
  const Value v = sample();
  EXPECT_EQ(*v.get_u64("ttl_ns"), 5U);
  EXPECT_EQ(*v.get_text("name"), "a");
  EXPECT_EQ(v.get_bytes("id")->size(), 3U);
  EXPECT_EQ(v.get_bytes("id", 3)->size(), 3U);
  EXPECT_EQ(*v.get_bool("live"), true);
  EXPECT_EQ(*v.get_i64("shift"), -3);
  EXPECT_EQ(*v.get_i64("ttl_ns"), 5);
  EXPECT_EQ((*v.get_array("ports"))->size(), 2U);
  EXPECT_TRUE((*v.get_map("more"))->find("x")->is_null());
  EXPECT_EQ(*v.get_u64_or("absent", 9), 9U);
  EXPECT_EQ(*v.get_bool_or("absent", true), true);
  EXPECT_EQ(*v.get_text_or("absent", "z"), "z");
  EXPECT_EQ(*v.get_u64_or("ttl_ns", 9), 5U);
}

TEST(Value, GettersNameTheKeyInTheirErrors) {
  struct Case {
    Error error;
    const char* code;
    const char* message;
  };
  const Value v = sample();
  const Case cases[] = {
      {v.get_u64("absent").error(), "missing_key", "\"absent\" is missing"},
      {v.get_u64("name").error(), "wrong_type", "\"name\" must be an unsigned integer, it is text"},
      {v.get_u64("shift").error(), "wrong_type",
       "\"shift\" must be an unsigned integer, it is a negative integer"},
      {v.get_text("id").error(), "wrong_type", "\"id\" must be text, it is bytes"},
      {v.get_bytes("name").error(), "wrong_type", "\"name\" must be bytes, it is text"},
      {v.get_bytes("id", 16).error(), "out_of_range", "\"id\" has 3 bytes, it must have 16"},
      {v.get_bool("ttl_ns").error(), "wrong_type",
       "\"ttl_ns\" must be a boolean, it is an unsigned integer"},
      {v.get_array("more").error(), "wrong_type", "\"more\" must be an array, it is a map"},
      {v.get_map("ports").error(), "wrong_type", "\"ports\" must be a map, it is an array"},
      {v.get_u64("ttl_ns", 10, 20).error(), "out_of_range",
       "\"ttl_ns\" is 5, it must be from 10 to 20"},
      {v.get_u64_or("name", 1).error(), "wrong_type",
       "\"name\" must be an unsigned integer, it is text"},
      {v.only_keys({"id", "name"}).error(), "unknown_key", "\"live\" is not a known key"},
      {Value(1).only_keys({}).error(), "wrong_type",
       "a map is expected here, not an unsigned integer"},
      {Value(1).get_u64("x").error(), "missing_key", "\"x\" is missing"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(c.error.kind, ErrorKind::invalid);
    EXPECT_EQ(c.error.code, c.code);
    EXPECT_EQ(c.error.message, c.message);
  }
}

TEST(Value, IntegersKeepTheirSign) {
  EXPECT_EQ(to_hex(encode(Value(INT64_MIN))), "3b7fffffffffffffff");
  EXPECT_EQ(to_hex(encode(Value(INT64_MAX))), "1b7fffffffffffffff");
  EXPECT_EQ(to_hex(encode(Value(UINT64_MAX))), "1bffffffffffffffff");
  EXPECT_EQ(to_hex(encode(Value(int8_t{-1}))), "20");
  EXPECT_EQ(to_hex(encode(Value(uint8_t{255}))), "18ff");
  EXPECT_EQ(*Value(INT64_MIN).as_i64(), INT64_MIN);
  EXPECT_FALSE(Value(UINT64_MAX).as_i64());
}

TEST(Value, TextIsAlwaysUtf8) {
  EXPECT_EQ(*Value("x\x80y").as_text(), "x\ufffdy");
  Value map;
  map.set("k\xff", 1);
  EXPECT_TRUE(decode(encode(map)));
}

TEST(Value, NullBecomesWhatIsPutIntoIt) {
  Value list;
  list.push(1).push("a");
  EXPECT_EQ(to_json(list), R"([1,"a"])");
  Value map;
  map.set("a", std::move(list));
  EXPECT_EQ(to_json(map), R"({"a":[1,"a"]})");
}

TEST(ValueDeathTest, TheSameKeyTwiceIsABug) {
  EXPECT_DEATH(Value::map({{"a", 1}, {"a", 2}}), "bug at");
  EXPECT_DEATH(Value(1).set("a", 1), "bug at");
  EXPECT_DEATH(Value("x").push(1), "bug at");
}

}  // namespace
}  // namespace holdfast::cbor
