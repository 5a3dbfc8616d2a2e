// Reader and Writer: what is CBOR here and what is not.
#include "userspace/wire/cbor.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/wire/hex.hpp"

namespace holdfast::cbor {
namespace {

using testing::from_hex;
using testing::to_hex;

struct Valid {
  const char* hex;
  const char* json;
};

// RFC 8949 appendix A, as far as it is deterministic and of our types, and what it leaves out.
constexpr Valid valid[] = {
    {"00", "0"},
    {"01", "1"},
    {"0a", "10"},
    {"17", "23"},
    {"1818", "24"},
    {"1819", "25"},
    {"1864", "100"},
    {"18ff", "255"},
    {"190100", "256"},
    {"1903e8", "1000"},
    {"19ffff", "65535"},
    {"1a00010000", "65536"},
    {"1a000f4240", "1000000"},
    {"1affffffff", "4294967295"},
    {"1b0000000100000000", "4294967296"},
    {"1b000000e8d4a51000", "1000000000000"},
    {"1bffffffffffffffff", "18446744073709551615"},
    {"20", "-1"},
    {"29", "-10"},
    {"3863", "-100"},
    {"3903e7", "-1000"},
    {"3b7fffffffffffffff", "-9223372036854775808"},
    {"3b8000000000000000", "-9223372036854775809"},
    {"3bffffffffffffffff", "-18446744073709551616"},
    {"f4", "false"},
    {"f5", "true"},
    {"f6", "null"},
    {"40", R"("")"},
    {"4401020304", R"("01020304")"},
    {"60", R"("")"},
    {"6161", R"("a")"},
    {"6449455446", R"("IETF")"},
    {"62225c", R"("\"\\")"},
    {"62c3bc", "\"\u00fc\""},
    {"63e6b0b4", "\"\u6c34\""},
    {"64f0908591", "\"\U00010151\""},
    {"640a0d097f", R"("\n\r\t\u007f")"},
    {"6100", R"("\u0000")"},
    {"80", "[]"},
    {"83010203", "[1,2,3]"},
    {"8301820203820405", "[1,[2,3],[4,5]]"},
    {"98190102030405060708090a0b0c0d0e0f101112131415161718181819",
     "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25]"},
    {"a0", "{}"},
    {"a26161016162820203", R"({"a":1,"b":[2,3]})"},
    {"826161a161626163", R"(["a",{"b":"c"}])"},
    {"a56161614161626142616361436164614461656145", R"({"a":"A","b":"B","c":"C","d":"D","e":"E"})"},
    {"a2616201626161f6", R"({"b":1,"aa":null})"},  // the shorter key first
    {"a26001616102", R"({"":1,"a":2})"},
};

TEST(Cbor, ValidItemsDecodeAndEncodeToTheSameBytes) {
  for (const Valid& item : valid) {
    SCOPED_TRACE(item.hex);
    const auto bytes = from_hex(item.hex);
    const Result<Value> value = decode(bytes);
    ASSERT_TRUE(value) << value.error().text();
    EXPECT_EQ(to_json(*value), item.json);
    EXPECT_EQ(to_hex(encode(*value)), item.hex);
    Reader in(bytes);
    EXPECT_EQ(in.raw().size(), bytes.size());
    EXPECT_TRUE(in.finish());
  }
}

struct Invalid {
  const char* hex;
  Fault fault;
};

constexpr Invalid invalid[] = {
    {"", Fault::truncated},
    // Integers and lengths that have a shorter form.
    {"1800", Fault::not_shortest},
    {"1817", Fault::not_shortest},
    {"190000", Fault::not_shortest},
    {"1900ff", Fault::not_shortest},
    {"1a00000000", Fault::not_shortest},
    {"1a0000ffff", Fault::not_shortest},
    {"1b0000000000000000", Fault::not_shortest},
    {"1b00000000ffffffff", Fault::not_shortest},
    {"3817", Fault::not_shortest},
    {"3900ff", Fault::not_shortest},
    {"580161", Fault::not_shortest},
    {"59000161", Fault::not_shortest},
    {"780161", Fault::not_shortest},
    {"980100", Fault::not_shortest},
    {"b800", Fault::not_shortest},
    {"a1780161"
     "00",
     Fault::not_shortest},
    // Indefinite lengths and a break alone.
    {"5f4101ff", Fault::indefinite},
    {"7f6161ff", Fault::indefinite},
    {"9fff", Fault::indefinite},
    {"bfff", Fault::indefinite},
    {"ff", Fault::indefinite},
    {"81ff", Fault::indefinite},
    {"1f", Fault::indefinite},
    {"3f", Fault::indefinite},
    // Reserved additional information.
    {"1c", Fault::reserved},
    {"1d", Fault::reserved},
    {"1e", Fault::reserved},
    {"3c", Fault::reserved},
    {"5d", Fault::reserved},
    {"7e", Fault::reserved},
    {"9c", Fault::reserved},
    {"bd", Fault::reserved},
    {"fc", Fault::reserved},
    {"fe", Fault::reserved},
    // Floating point, other simple values, tags.
    {"f90000", Fault::float_refused},
    {"fa47c35000", Fault::float_refused},
    {"fb3ff199999999999a", Fault::float_refused},
    {"f97e00", Fault::float_refused},
    {"f7", Fault::simple_refused},
    {"e0", Fault::simple_refused},
    {"f0", Fault::simple_refused},
    {"f3", Fault::simple_refused},
    {"f818", Fault::simple_refused},
    {"f8ff", Fault::simple_refused},
    {"f814", Fault::simple_refused},
    {"c074323031332d30332d32315432303a30343a30305a", Fault::tag_refused},
    {"c11a514b67b0", Fault::tag_refused},
    {"81c100", Fault::tag_refused},
    {"a16161c100", Fault::tag_refused},
    {"c249010000000000000000", Fault::tag_refused},
    // Bytes missing: in the head, in the content, in the count.
    {"18", Fault::truncated},
    {"1901", Fault::truncated},
    {"1a000100", Fault::truncated},
    {"1b00000001000000", Fault::truncated},
    {"41", Fault::truncated},
    {"6261", Fault::truncated},
    {"58ff00", Fault::truncated},
    {"5bffffffffffffffff00", Fault::truncated},
    {"7b7fffffffffffffff61", Fault::truncated},
    {"81", Fault::truncated},
    {"8201", Fault::truncated},
    {"9bffffffffffffffff", Fault::truncated},
    {"9a7fffffff00", Fault::truncated},
    {"a1", Fault::truncated},
    {"a100", Fault::truncated},
    {"bbffffffffffffffff0000", Fault::truncated},
    {"bb80000000000000010000", Fault::truncated},
    {"a261610061", Fault::truncated},
    // Bytes left.
    {"0000", Fault::trailing},
    {"6161f6", Fault::trailing},
    {"a000", Fault::trailing},
    {"8000", Fault::trailing},
    // Text that is not UTF-8.
    {"61ff", Fault::bad_utf8},
    {"6180", Fault::bad_utf8},
    {"61c3", Fault::bad_utf8},
    {"62c080", Fault::bad_utf8},  // overlong
    {"62c1bf", Fault::bad_utf8},
    {"63e08080", Fault::bad_utf8},
    {"63e09fbf", Fault::bad_utf8},
    {"64f0808080", Fault::bad_utf8},
    {"64f08fbfbf", Fault::bad_utf8},
    {"63eda080", Fault::bad_utf8},  // surrogates
    {"63edbfbf", Fault::bad_utf8},
    {"64f4908080", Fault::bad_utf8},  // above U+10FFFF
    {"64f5808080", Fault::bad_utf8},
    {"62c328", Fault::bad_utf8},
    {"63e28228", Fault::bad_utf8},
    {"6961616161616161"
     "c3"
     "28",
     Fault::bad_utf8},
    {"69616161616161616180", Fault::bad_utf8},
    // Keys.
    {"a2616101616102", Fault::duplicate_key},
    {"a2616201616102", Fault::key_order},
    {"a262616101616202", Fault::key_order},  // bytewise, a longer key comes later
    {"a3616101616302616203", Fault::key_order},
    {"a1f400", Fault::key_type},
    {"a1f600", Fault::key_type},
    {"a18000", Fault::key_type},
    {"a1a000", Fault::key_type},
    {"a1c10000", Fault::tag_refused},
};

TEST(Cbor, InvalidItemsAreRefusedWithTheirReason) {
  for (const Invalid& item : invalid) {
    SCOPED_TRACE(item.hex);
    const auto bytes = from_hex(item.hex);
    Reader in(bytes);
    in.skip();  // asks for no type in particular, so that the reason is what is wrong with the
                // bytes
    in.finish();
    EXPECT_EQ(describe(in.fault()), describe(item.fault));
    const Result<Value> value = decode(bytes);
    ASSERT_FALSE(value);
    EXPECT_EQ(value.error().code, "malformed_cbor");
    EXPECT_EQ(value.error().kind, ErrorKind::invalid);
  }
}

TEST(Cbor, MapKeysMayBeIntegersBytesAndTextForAReader) {
  // {10: 1, 100: 2, -1: 3, h'00': 4, "z": 5, "aa": 6}, the order of RFC 8949 4.2.1.
  const auto bytes = from_hex("a60a01186402200341000461 7a05 62616106");
  Reader in(bytes);
  EXPECT_EQ(in.map(), 6U);
  EXPECT_EQ(in.u64(), 10U);
  in.skip();
  EXPECT_EQ(in.i64(), 100);
  in.skip();
  EXPECT_EQ(in.i64(), -1);
  in.skip();
  EXPECT_EQ(in.bytes().size(), 1U);
  in.skip();
  EXPECT_EQ(in.text(), "z");
  in.skip();
  EXPECT_EQ(in.text(), "aa");
  EXPECT_EQ(in.u64(), 6U);
  in.end();
  EXPECT_TRUE(in.finish());
  EXPECT_FALSE(decode(bytes)) << "a Value has text keys only";
}

TEST(Cbor, ReaderKeepsTheFirstFaultAndReturnsNothingAfterIt) {
  const auto bytes = from_hex("83616101f5");
  Reader in(bytes);
  EXPECT_EQ(in.array(), 3U);
  EXPECT_EQ(in.u64(), 0U);  // it is text
  EXPECT_EQ(in.fault(), Fault::wrong_type);
  EXPECT_EQ(in.fault_offset(), 1U);
  EXPECT_TRUE(in.text().empty());
  EXPECT_FALSE(in.boolean());
  EXPECT_FALSE(in.more());
  EXPECT_EQ(in.peek(), Type::end);
  in.end();
  EXPECT_FALSE(in.finish());
  EXPECT_EQ(in.fault(), Fault::wrong_type);
  EXPECT_EQ(in.error().message, "CBOR at byte 1: another type than expected");
}

TEST(Cbor, ReaderInsistsOnTheCounts) {
  const auto bytes = from_hex("820102");
  {
    Reader in(bytes);
    in.array();
    in.u64();
    in.end();
    EXPECT_EQ(in.fault(), Fault::items_left);
  }
  {
    Reader in(bytes);
    in.array();
    in.u64();
    in.u64();
    in.u64();
    EXPECT_EQ(in.fault(), Fault::past_end);
  }
  {
    Reader in(bytes);
    in.array_of(3);
    EXPECT_EQ(in.fault(), Fault::wrong_type);
  }
  {
    Reader in(bytes);
    in.array();
    EXPECT_FALSE(in.finish());
    EXPECT_EQ(in.fault(), Fault::items_left);
  }
  {
    Reader in(bytes);
    EXPECT_FALSE(in.finish());
  }
  {
    Reader in(bytes);
    in.skip();
    in.skip();
    EXPECT_EQ(in.fault(), Fault::past_end);
  }
}

TEST(Cbor, SixtyFourBitBoundsOfSignedIntegers) {
  struct Case {
    const char* hex;
    int64_t value;
    Fault fault;
  };
  for (const Case& c : {Case{"1b7fffffffffffffff", INT64_MAX, Fault::none},
                        Case{"1b8000000000000000", 0, Fault::out_of_range},
                        Case{"3b7fffffffffffffff", INT64_MIN, Fault::none},
                        Case{"3b8000000000000000", 0, Fault::out_of_range}}) {
    SCOPED_TRACE(c.hex);
    const auto bytes = from_hex(c.hex);
    Reader in(bytes);
    EXPECT_EQ(in.i64(), c.value);
    EXPECT_EQ(in.fault(), c.fault);
  }
}

TEST(Cbor, TagsOnlyWhereAsked) {
  const auto bytes = from_hex("82d28101d81800");  // [18([1]), 24(0)]
  Reader in(bytes);
  in.array_of(2);
  EXPECT_EQ(in.peek(), Type::tag);
  EXPECT_EQ(in.tag(), 18U);
  in.array_of(1);
  EXPECT_EQ(in.u64(), 1U);
  in.end();
  EXPECT_EQ(in.tag(), 24U);
  EXPECT_EQ(in.u64(), 0U);
  in.end();
  EXPECT_TRUE(in.finish());

  Reader alone(bytes);
  alone.array_of(2);
  alone.array();
  EXPECT_EQ(alone.fault(), Fault::tag_refused);

  const auto bare = from_hex("c1");
  Reader tag_without_item(bare);
  tag_without_item.tag();
  EXPECT_FALSE(tag_without_item.finish());

  std::vector<uint8_t> out;
  Writer(out).array(2).tag(18).array(1).u64(1).end().tag(24).u64(0).end();
  EXPECT_EQ(out, bytes);
}

TEST(Cbor, DepthIsBounded) {
  for (const uint32_t depth : {1U, 16U, 17U, 32U, 33U, 1000U}) {
    std::vector<uint8_t> bytes(depth, 0x81);
    bytes.push_back(0x00);
    SCOPED_TRACE(depth);
    EXPECT_EQ(decode(bytes).has_value(), depth <= 16);
    Limits deep;
    deep.depth_max = 1000;
    EXPECT_EQ(decode(bytes, deep).has_value(), depth <= depth_limit);
    Reader in(bytes, deep);
    in.skip();
    EXPECT_EQ(in.finish(), depth <= depth_limit);
    if (depth > depth_limit) {
      EXPECT_EQ(in.fault(), Fault::too_deep);
    }
  }
}

TEST(Cbor, LengthAndItemsAreBounded) {
  Limits limits;
  limits.bytes_max = 4;
  EXPECT_TRUE(decode(from_hex("43010203"), limits));
  EXPECT_FALSE(decode(from_hex("4401020304"), limits));

  limits = {};
  limits.items_max = 3;
  EXPECT_TRUE(decode(from_hex("820102"), limits));
  EXPECT_FALSE(decode(from_hex("83010203"), limits));
}

TEST(Cbor, WriterRepairsTextThatIsNotUtf8) {
  std::vector<uint8_t> out;
  Writer(out).text("a\xff\xc3(b");
  const Result<Value> value = decode(out);
  ASSERT_TRUE(value);
  EXPECT_EQ(*value->as_text(), "a\ufffd\ufffd(b");
}

using CborDeathTest = ::testing::Test;

TEST(CborDeathTest, WriterRefusesItsCallersBugs) {
  std::vector<uint8_t> out;
  EXPECT_DEATH(Writer(out).map(2).text("b").u64(1).text("a"), "bug at");
  EXPECT_DEATH(Writer(out).map(2).text("a").u64(1).text("a"), "bug at");
  EXPECT_DEATH(Writer(out).map(2).text("a").u64(1).end(), "bug at");
  EXPECT_DEATH(Writer(out).array(1).u64(1).u64(2), "bug at");
  EXPECT_DEATH(Writer(out).map(1).boolean(true), "bug at");
  EXPECT_DEATH(Writer(out).end(), "bug at");
}

// A sample with every type, nesting, long heads and multi-byte text.
std::vector<uint8_t> sample() {
  return encode(Value::map({
      {"id", Value::bytes(std::vector<uint8_t>(16, 0xab))},
      {"verb", "lease.grant"},
      {"args", Value::map({{"tenant", "org/app/env \u6c34"},
                           {"ttl_ns", 60'000'000'000},
                           {"offset", -70000},
                           {"ports", Value::array({443, 8443, 65535, nullptr, true, false})},
                           {"empty", Value::map()}})},
      {"blob", Value::bytes(std::vector<uint8_t>(300, 0x5a))},
      {"list", Value::array({Value::array(), Value::array({Value::array({1U << 31})})})},
  }));
}

// The property that makes an encoding canonical: what decodes encodes to the same bytes.
void expect_refused_or_canonical(const std::vector<uint8_t>& bytes) {
  const Result<Value> value = decode(bytes);
  if (value) {
    EXPECT_EQ(encode(*value), bytes);
  }
  Reader in(bytes);
  in.skip();
  const bool skipped = in.finish();
  if (value) {
    EXPECT_TRUE(skipped);
  }
}

TEST(Cbor, EveryTruncationIsRefused) {
  const std::vector<uint8_t> whole = sample();
  ASSERT_TRUE(decode(whole));
  for (size_t size = 0; size < whole.size(); ++size) {
    // An exact allocation, so that a sanitizer sees a read past the end.
    const std::vector<uint8_t> part(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_FALSE(decode(part)) << size;
  }
  std::vector<uint8_t> longer = whole;
  longer.push_back(0);
  EXPECT_FALSE(decode(longer));
}

TEST(Cbor, EverySingleBitFlipIsRefusedOrCanonical) {
  const std::vector<uint8_t> whole = sample();
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::vector<uint8_t> flipped = whole;
    flipped[bit / 8] = static_cast<uint8_t>(flipped[bit / 8] ^ (1U << (bit % 8)));
    expect_refused_or_canonical(flipped);
  }
}

TEST(Cbor, EveryShortInputIsRefusedOrCanonical) {
  for (unsigned a = 0; a < 256; ++a) {
    expect_refused_or_canonical({static_cast<uint8_t>(a)});
    for (unsigned b = 0; b < 256; ++b) {
      expect_refused_or_canonical({static_cast<uint8_t>(a), static_cast<uint8_t>(b)});
    }
  }
}

TEST(Cbor, AMillionSmallMapsGoThroughReaderAndWriter) {
  constexpr uint64_t leases = 1'000'000;
  std::vector<uint8_t> bytes;
  Writer out(bytes);
  const std::vector<uint8_t> id(16, 0x11);
  out.array(leases);
  for (uint64_t i = 0; i < leases; ++i) {
    out.map(4).text("id").bytes(id).text("slot").u64(i).text("tenant").u64(7).text("ttl_ns");
    out.u64(60'000'000'000).end();
  }
  out.end();

  Limits limits;
  limits.bytes_max = 256U << 20;
  Reader in(bytes, limits);
  uint64_t slots = 0;
  for (in.array(); in.more();) {
    for (in.map(); in.more();) {
      const std::string_view key = in.text();
      if (key == "slot") {
        slots += in.u64();
      } else if (key == "id") {
        EXPECT_EQ(in.bytes().size(), 16U);
      } else {
        in.u64();
      }
    }
    in.end();
  }
  in.end();
  ASSERT_TRUE(in.finish()) << in.error().text();
  EXPECT_EQ(slots, leases * (leases - 1) / 2);
}

}  // namespace
}  // namespace holdfast::cbor
