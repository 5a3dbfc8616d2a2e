// Files of leases: what goes over the wire, and what is refused and where.
#include "userspace/cli/bulk.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "userspace/wire/cbor.hpp"

namespace holdfast::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string json_of(GrantBody& body) {
  const Result<cbor::Value> value = cbor::decode(body.finish());
  return value ? cbor::to_json(*value) : "not canonical: " + value.error().text();
}

struct Good {
  const char* name;
  const char* text;
  const char* body;
};

TEST(Bulk, Good) {
  for (
      const Good& each : {
          Good{"one line", R"({"tenant": "a/b/c", "endpoints": ["web"]})",
               R"([{"tenant":"a/b/c","ttl_ns":60000000000,"endpoints":["web"]}])"},
          {"every key",
           R"({"each": true, "grace": "5s", "ttl": "90s", "holder": "uid:7", "peer": "10.0.0.0/8",)"
           R"( "endpoints": ["web@[fd00::2]:443", "ping"], "tenant": "a/b/c"})",
           R"([{"each":true,"peer":"10.0.0.0/8","holder":"uid:7","tenant":"a/b/c",)"
           R"("ttl_ns":90000000000,"grace_ns":5000000000,"endpoints":["web@[fd00::2]:443","ping"]}])"},
          {"egress alone, each false", R"({"tenant":"a/b/c","egress":["p0"],"each":false})",
           R"([{"egress":["p0"],"tenant":"a/b/c","ttl_ns":60000000000}])"},
          {"lines, blank ones too",
           "\n{\"tenant\":\"a/b/c\",\"egress\":[\"p\"]}\n\n  "
           "{\"tenant\":\"d/e/f\",\"egress\":[\"q\"]}\r\n",
           R"([{"egress":["p"],"tenant":"a/b/c","ttl_ns":60000000000},)"
           R"({"egress":["q"],"tenant":"d/e/f","ttl_ns":60000000000}])"},
          {"an array",
           " [\n{\"tenant\":\"a/b/c\",\"egress\":[\"p\"]} "
           ",\n{\"tenant\":\"d/e/f\",\"egress\":[\"q\"]}]\n",
           R"([{"egress":["p"],"tenant":"a/b/c","ttl_ns":60000000000},)"
           R"({"egress":["q"],"tenant":"d/e/f","ttl_ns":60000000000}])"},
          {"escapes", R"({"\u0074enant": "a\/b\/c", "egress": ["p"]})",
           R"([{"egress":["p"],"tenant":"a/b/c","ttl_ns":60000000000}])"},
          {"nothing is left over from the entry before",
           R"({"tenant":"a/b/c","endpoints":["x","y"],"peer":"10.0.0.0/8","each":true,"grace":"1s"})"
           R"({"tenant":"a/b/c","egress":["p"]})",
           R"([{"each":true,"peer":"10.0.0.0/8","tenant":"a/b/c","ttl_ns":60000000000,)"
           R"("grace_ns":1000000000,"endpoints":["x","y"]},)"
           R"({"egress":["p"],"tenant":"a/b/c","ttl_ns":60000000000}])"},
      }) {
    Result<GrantBody> body = parse_bulk(each.text, "leases.jsonl", {});
    ASSERT_TRUE(body) << each.name << ": " << body.error().text();
    EXPECT_EQ(json_of(*body), each.body) << each.name;
  }
}

TEST(Bulk, DefaultsAreForEntriesThatDoNotSay) {
  const BulkDefaults defaults{
      .ttl_ns = 30'000'000'000, .grace_ns = 2'000'000'000, .holder = "uid:5"};
  Result<GrantBody> body = parse_bulk(
      R"({"tenant":"a/b/c","egress":["p"]}{"tenant":"a/b/c","egress":["q"],"ttl":"9s","grace":"0s","holder":"uid:6"})",
      "f", defaults);
  ASSERT_TRUE(body);
  EXPECT_EQ(
      json_of(*body),
      R"([{"egress":["p"],"holder":"uid:5","tenant":"a/b/c","ttl_ns":30000000000,"grace_ns":2000000000},)"
      R"({"egress":["q"],"holder":"uid:6","tenant":"a/b/c","ttl_ns":9000000000,"grace_ns":0}])");
}

// The head of the array takes 1, 2, 3 or 5 bytes.
TEST(Bulk, AnyCountIsCanonical) {
  for (const size_t count : {1U, 23U, 24U, 255U, 256U, 65535U, 65536U}) {
    std::string text;
    for (size_t i = 0; i < count; ++i) text += "{\"tenant\":\"a/b/c\",\"egress\":[\"p\"]}\n";
    Result<GrantBody> body = parse_bulk(text, "f", {});
    ASSERT_TRUE(body);
    EXPECT_EQ(body->count(), count);
    cbor::Reader in(body->finish(), {.bytes_max = SIZE_MAX});
    EXPECT_EQ(in.array(), count);
    while (in.more()) in.skip();
    in.end();
    EXPECT_TRUE(in.finish()) << count;
  }
}

struct Bad {
  const char* text;
  const char* begins;  // file and line
  const char* says;
};

TEST(Bulk, Bad) {
  const std::string good = "{\"tenant\":\"a/b/c\",\"egress\":[\"p\"]}\n";
  for (const Bad& each : {
           Bad{R"({"tenant":"a/b/c","endpoints":["w"],"tll":"60s"})", "f:2: ", "no \"tll\""},
           {R"({"tenant":"a/b/c","tenant":"a/b/c","egress":["p"]})", "f:2: ", "given twice"},
           {R"({"tenant":"a/b/c","egress":["p"],"ttl":60})", "f:2: ", "60 has no unit"},
           {R"({"tenant":"a/b/c","egress":["p"],"ttl":"60"})", "f:2: ttl: ", "has no unit"},
           {R"({"tenant":"a/b/c","egress":["p"],"ttl":"301s"})", "f:2: ttl: ", "5m1s"},
           {R"({"tenant":"a/b/c","egress":["p"],"ttl":"0s"})", "f:2: ttl: ", "0ms"},
           {R"({"tenant":"a/b/c","egress":["p"],"grace":"soon"})",
            "f:2: grace: ", "number is missing"},
           {R"({"tenant":"a/b/c","egress":["p"],"peer":"10.0.0.1/8"})", "f:2: peer: ", "bits set"},
           {R"({"tenant":"a/b/c","egress":["p"],"holder":"root"})",
            "f:2: holder: ", "not a holder"},
           {R"({"tenant":"a/b/c","egress":"p"})", "f:2: ", "list of names"},
           {R"({"tenant":["a/b/c"],"egress":["p"]})", "f:2: ", "is text"},
           {R"({"tenant":"a/b/c","egress":[["p"]]})", "f:2: ", "list of names"},
           {R"({"tenant":"a/b/c","egress":[1]})", "f:2: ", "list of names"},
           {R"({"tenant":"a/b/c","egress":[""]})", "f:2: ", "empty"},
           {R"({"tenant":null,"egress":["p"]})", "f:2: ", "is text"},
           {R"({"tenant":"a/b/c","endpoints":["p"],"each":"yes"})", "f:2: ", "true or false"},
           {R"({"tenant":"a/b/c","egress":["p"],"each":true})", "f:2: ", "every member"},
           {R"({"tenant":"a/b/c","endpoints":["p"],"egress":["p"],"each":true})",
            "f:2: ", "every member"},
           {R"({"egress":["p"]})", "f:2: ", "without \"tenant\""},
           {R"({"tenant":"a/b/c"})", "f:2: ", "opens nothing"},
           {R"({"tenant":"a/b/c","endpoints":[]})", "f:2: ", "opens nothing"},
           {R"({})", "f:2: ", "without \"tenant\""},
           {R"("a/b/c")", "f:2: ", "is an object"},
           {R"(7)", "f:2: ", "is an object"},
           {R"([])", "f:2: ", "is an object"},
           {"{\"tenant\":\n\"a/b/c\",\n\"egress\":[\"p\",]}", "f:4: not JSON", ""},
           {R"({"tenant":"a/b/c","egress":["p"])", "f:2: not JSON", ""},
           {R"({'tenant':'a/b/c'})", "f:2: not JSON", ""},
           {R"({"tenant":"a/b/c","egress":["p"]} trailing)", "f:2: not JSON", ""},
           {"{\"tenant\":\"a/b\xff/c\",\"egress\":[\"p\"]}", "f:2: not JSON", "UTF-8"},
           {"{\"tenant\":\"a\nb\",\"egress\":[\"p\"]}", "f:2: not JSON", ""},
           {R"({"tenant":"\ud800","egress":["p"]})", "f:2: not JSON", ""},
           {R"({"tenant":"a/b/c","egress":{"p":1}})", "f:2: ", "list of names"},
       }) {
    Result<GrantBody> body = parse_bulk(good + each.text, "f", {});
    ASSERT_FALSE(body) << each.text;
    EXPECT_THAT(body.error().message, StartsWith(each.begins)) << each.text;
    EXPECT_THAT(body.error().message, HasSubstr(each.says)) << each.text;
    EXPECT_FALSE(body.error().next_step.empty()) << each.text;
    EXPECT_EQ(body.error().kind, ErrorKind::invalid);
  }
}

TEST(Bulk, WholeFileBad) {
  for (const char* empty : {"", " \n\n", "[]", "[ ]\n"}) {
    Result<GrantBody> body = parse_bulk(empty, "f", {});
    ASSERT_FALSE(body) << empty;
    EXPECT_EQ(body.error().code, "bulk_empty") << empty;
  }
  for (const char* bad : {"[{\"tenant\":\"a/b/c\",\"egress\":[\"p\"]}] x", "[[]]", "[1]", "[\"a\"]",
                          "[{\"tenant\":\"a/b/c\",\"egress\":[\"p\"]}", "[] []"}) {
    EXPECT_FALSE(parse_bulk(bad, "f", {})) << bad;
  }
  const std::string zero("{\"tenant\":\"a/b/c\",\"egress\":[\"p\"]}\n\0{}", 37);
  Result<GrantBody> body = parse_bulk(zero, "f", {});
  ASSERT_FALSE(body);
  EXPECT_THAT(body.error().message, StartsWith("f:2: not JSON: a zero byte"));
  // A bracket in every byte must not overflow the reader's stack.
  EXPECT_FALSE(parse_bulk(std::string(1'000'000, '['), "f", {}));
}

TEST(Bulk, FilesAreBounded) {
  Result<std::string> missing = read_file("/nonexistent/leases", 10);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind, ErrorKind::not_found);
  Result<std::string> endless = read_file("/dev/zero", 1 << 20);
  ASSERT_FALSE(endless);
  EXPECT_EQ(endless.error().code, "file_too_large");
}

}  // namespace
}  // namespace holdfast::cli
