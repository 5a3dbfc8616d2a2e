// L9: what a scheduler says of a lease or of a grant token, exactly so and nothing else.
#include "userspace/token/schedule.hpp"

#include "tests/unit/token/fixture.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

using cbor::Value;

Preempt preempt() {
  return {.lease = {1, 2, 3}, .generation = 7, .reason = "job 17", .grace_ns = 10'000'000'000U};
}

Admission admission() {
  return {.token = {4, 5}, .tenant = "acme/shop/prod", .reason = "job 17"};
}

// The content under the signature.
std::vector<uint8_t> content_of(const Result<std::vector<uint8_t>>& made, Purpose purpose) {
  EXPECT_TRUE(made) << made.error().text();
  const Result<SignedObject> object = take_apart_signed(*made, purpose);
  EXPECT_TRUE(object) << object.error().text();
  EXPECT_TRUE(is_signed_by({key_of(3).public_key()}, purpose, *object));
  EXPECT_EQ(object->header.audience, node());
  EXPECT_EQ(object->header.expires_s - object->header.issued_s, 60U);
  return {object->payload.begin(), object->payload.end()};
}

std::vector<uint8_t> preempt_content(const Preempt& said = preempt()) {
  return content_of(sign_preempt(key_of(3), node(), 60, said), Purpose::preempt);
}

std::vector<uint8_t> admission_content() {
  return content_of(sign_admission(key_of(3), node(), 60, admission()), Purpose::admission);
}

std::string preempted(std::span<const uint8_t> content) {
  const auto said = decode_preempt(content);
  return said ? "good" : std::string(said.error().code);
}

std::string admitted(std::span<const uint8_t> content) {
  const auto said = decode_admission(content);
  return said ? "good" : std::string(said.error().code);
}

TEST(Schedule, SaysWhatWasSigned) {
  EXPECT_EQ(decode_preempt(preempt_content()), preempt());
  Preempt plain = preempt();
  plain.grace_ns.reset();
  EXPECT_EQ(decode_preempt(preempt_content(plain)), plain);
  plain.grace_ns = 0;
  EXPECT_EQ(decode_preempt(preempt_content(plain)), plain);
  EXPECT_EQ(decode_admission(admission_content()), admission());
}

TEST(Schedule, WhatCannotBeMeantIsNotSigned) {
  const auto sign = [](auto change) {
    Preempt said = preempt();
    change(said);
    const auto made = sign_preempt(key_of(3), node(), 60, said);
    return made ? "good" : std::string(made.error().code);
  };
  EXPECT_EQ(sign([](Preempt& p) { p.reason.assign(reason_bytes_max, 'x'); }), "good");
  EXPECT_EQ(sign([](Preempt& p) { p.reason += std::string(reason_bytes_max, 'x'); }),
            "malformed_preempt");
  EXPECT_EQ(sign([](Preempt& p) { p.reason.clear(); }), "malformed_preempt");
  EXPECT_EQ(sign([](Preempt& p) { p.grace_ns = 300'000'000'000U; }), "good");
  EXPECT_EQ(sign([](Preempt& p) { p.grace_ns = 300'000'000'001U; }), "malformed_preempt");
  EXPECT_EQ(sign([](Preempt& p) { p.generation = UINT64_MAX; }), "good");
  Admission said = admission();
  said.tenant.clear();
  EXPECT_EQ(sign_admission(key_of(3), node(), 60, said).error().code, "malformed_admission");
}

TEST(Schedule, EveryTruncationAndWhatDoesNotBelong) {
  const std::vector<uint8_t> p = preempt_content();
  const std::vector<uint8_t> a = admission_content();
  ASSERT_EQ(preempted(p), "good");
  ASSERT_EQ(admitted(a), "good");
  for (size_t size = 0; size < p.size(); ++size)
    ASSERT_EQ(preempted(std::span(p).first(size)), "malformed_preempt") << size;
  for (size_t size = 0; size < a.size(); ++size)
    ASSERT_EQ(admitted(std::span(a).first(size)), "malformed_admission") << size;
  EXPECT_EQ(preempted(a), "malformed_preempt");
  EXPECT_EQ(admitted(p), "malformed_admission");
  const Value::Bytes lease(16), short_lease(15);
  const std::pair<const char*, Value> rows[] = {
      {"no reason", Value::map({{"lease", lease}, {"generation", 1}})},
      {"a short lease", Value::map({{"lease", short_lease}, {"reason", "x"}, {"generation", 1}})},
      {"no number", Value::map({{"lease", lease}, {"reason", "x"}, {"generation", "1"}})},
      {"another key",
       Value::map({{"lease", lease}, {"reason", "x"}, {"tenant", "a"}, {"generation", 1}})},
      {"one more", Value::map({{"lease", lease},
                               {"reason", "x"},
                               {"grace_ns", 1},
                               {"generation", 1},
                               {"generations", 1}})},
      {"no map", Value::array({lease, "x", 1})},
  };
  for (const auto& [name, value] : rows)
    EXPECT_EQ(preempted(cbor::encode(value)), "malformed_preempt") << name;
  EXPECT_EQ(
      preempted(cbor::encode(Value::map({{"lease", lease}, {"reason", "x"}, {"generation", 1}}))),
      "good");
}

// Under a signature none of these bits could have been changed; the reader takes none amiss.
TEST(Schedule, EveryBitIsReadOrRefused) {
  const std::vector<uint8_t> whole = preempt_content();
  size_t good = 0;
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::vector<uint8_t> damaged = whole;
    damaged[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
    const auto said = decode_preempt(damaged);
    if (said) {
      ++good;
      EXPECT_NE(*said, preempt()) << bit;
    }
  }
  EXPECT_GT(good, 8U * 16) << "those of the lease";
  EXPECT_LT(good, 8 * whole.size());
}

}  // namespace
}  // namespace holdfast::token
