// Result and Error: an error keeps its kind, code and errno on the way up, and reads as one line.
#include "userspace/base/result.hpp"

#include <cerrno>
#include <memory>

#include <gtest/gtest.h>

namespace holdfast {
namespace {

Result<int> parse_ttl(int seconds) {
  if (seconds < 1 || seconds > 300) {
    return fail(ErrorKind::invalid, "ttl_out_of_range", "a lease of 301s", "ask for 1s to 300s");
  }
  return seconds;
}

TEST(Result, HoldsAValueOrAnError) {
  EXPECT_EQ(parse_ttl(60).value(), 60);
  const Result<int> refused = parse_ttl(301);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid);
  EXPECT_EQ(refused.error().code, "ttl_out_of_range");
  EXPECT_EQ(refused.error().sys, 0);
}

TEST(Result, TextIsMessageThenCauseThenNextStep) {
  struct Case {
    const char* name;
    Error error;
    const char* text;
  };
  const Case cases[] = {
      {"message alone",
       {.kind = ErrorKind::invalid, .code = "x", .message = "no tenant 7"},
       "no tenant 7"},
      {"with a next step",
       {.kind = ErrorKind::invalid,
        .code = "x",
        .message = "no tenant 7",
        .next_step = "see 'holdfast tenant ls'"},
       "no tenant 7; see 'holdfast tenant ls'"},
      {"with an errno",
       {.kind = ErrorKind::internal, .code = "x", .sys = ENOENT, .message = "open /nonexistent"},
       "open /nonexistent: No such file or directory"},
      {"with both",
       {.kind = ErrorKind::internal,
        .code = "x",
        .sys = EPERM,
        .message = "load the gate",
        .next_step = "run as root"},
       "load the gate: Operation not permitted; run as root"},
  };
  for (const Case& c : cases) EXPECT_EQ(c.error.text(), c.text) << c.name;
}

TEST(Result, SystemErrorsAreHeldPositiveWhicheverSignTheCallUsed) {
  // libc sets errno (positive); libbpf and libmnl answer with a negative one.
  for (const int sys : {EBUSY, -EBUSY}) {
    const Status status = fail_sys(sys, "attach_failed", "attach the gate to veth-a");
    EXPECT_EQ(status.error().sys, EBUSY);
    EXPECT_EQ(status.error().kind, ErrorKind::internal);
  }
}

TEST(Result, PassOnChangesTheValueTypeAndKeepsTheError) {
  Result<int> inner = parse_ttl(0);
  const Result<std::string> same = pass_on(inner);
  EXPECT_EQ(same.error().message, "a lease of 301s");

  Result<int> again = parse_ttl(0);
  const Result<std::string> named = pass_on(again, "web0");
  EXPECT_EQ(named.error().message, "web0: a lease of 301s");
  EXPECT_EQ(named.error().code, "ttl_out_of_range");
  EXPECT_EQ(named.error().next_step, "ask for 1s to 300s");
}

TEST(Result, ContextIsAddedOutermostFirst) {
  const Error error =
      Error{ErrorKind::internal, "x", EIO, "read slot 3", {}}.in("bank 1").in("adopt");
  EXPECT_EQ(error.message, "adopt: bank 1: read slot 3");
  EXPECT_EQ(error.sys, EIO);
}

TEST(Result, CarriesMoveOnlyValues) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(7);
  const std::unique_ptr<int> taken = std::move(result.value());
  EXPECT_EQ(*taken, 7);
}

}  // namespace
}  // namespace holdfast
