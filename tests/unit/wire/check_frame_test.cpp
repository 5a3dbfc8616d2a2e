// Frames of verify.sock: what is put together is read back, and everything damaged is refused or is
// another frame that says so.
#include "userspace/wire/check_frame.hpp"

#include <array>

#include <gtest/gtest.h>

namespace holdfast::wire {
namespace {

constexpr std::array<uint8_t, 64> signature{1, 2, 3};
constexpr std::array<uint8_t, 3> header{4, 5, 6};
constexpr std::array<uint8_t, 64> path{7};
constexpr std::array<uint8_t, 2> claims{8, 9};

std::vector<uint8_t> frame_of(size_t heads, size_t checks) {
  CheckFrame frame;
  for (size_t i = 0; i < heads; ++i) frame.add_head(header, signature);
  for (size_t i = 0; i < checks; ++i)
    frame.add({.head = i % heads,
               .index = i,
               .path = path,
               .claims = claims,
               .operation = "connect",
               .resource = "web@10.1.0.2:443",
               .presenter = i % 2 == 0 ? "" : "uid:1000"});
  const size_t at_most = frame.bytes_at_most();
  std::vector<uint8_t> made = frame.finish(7);
  EXPECT_LE(made.size(), at_most);
  return made;
}

// The frame anew from what was read, or nothing if it was refused.
std::vector<uint8_t> read_and_write(std::span<const uint8_t> body, uint32_t id) {
  CheckReader in(body);
  CheckFrame again;
  for (CheckHead head; in.next_head(head);) again.add_head(head.header, head.signature.first<64>());
  in.begin_checks();
  for (Check check; in.next(check);) again.add(check);
  return in.finish() ? again.finish(id) : std::vector<uint8_t>();
}

TEST(CheckFrame, IsReadAsItWasWritten) {
  for (const size_t heads : {1U, 3U, 24U, 300U})
    for (const size_t checks : {0U, 1U, 23U, 24U, 255U, 256U}) {
      const std::vector<uint8_t> frame = frame_of(heads, checks);
      const Result<Datagram> datagram = read_datagram(frame);
      if (frame.size() > check_frame_bytes_max) {
        EXPECT_EQ(datagram.error().code, "frame_too_large");
        continue;
      }
      ASSERT_TRUE(datagram) << datagram.error().text();
      EXPECT_EQ(datagram->request_id, 7U);
      EXPECT_EQ(read_and_write(datagram->body, 7), frame);
    }
}

TEST(CheckFrame, EveryTruncationIsRefused) {
  const std::vector<uint8_t> frame = frame_of(2, 3);
  for (size_t size = 0; size < frame.size(); ++size) {
    const auto part = std::span(frame).first(size);
    EXPECT_FALSE(read_datagram(part)) << size;
    if (size < frame_header_bytes) continue;
    EXPECT_TRUE(read_and_write(part.subspan(frame_header_bytes), 7).empty()) << size;
  }
}

TEST(CheckFrame, WhatIsReadHasOneEncoding) {
  const std::vector<uint8_t> frame = frame_of(2, 2);
  size_t read = 0;
  for (size_t bit = 8 * frame_header_bytes; bit < 8 * frame.size(); ++bit) {
    std::vector<uint8_t> bad = frame;
    bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    const std::vector<uint8_t> again =
        read_and_write(std::span(bad).subspan(frame_header_bytes), 7);
    if (again.empty()) continue;
    ++read;
    EXPECT_EQ(again, bad) << bit;
  }
  EXPECT_GT(read, 100U) << "flips in texts and bytes make other frames";
}

TEST(CheckFrame, Limits) {
  for (const std::vector<uint8_t>& big :
       {frame_of(check_heads_max + 1, 0), frame_of(1, checks_max + 1)})
    EXPECT_TRUE(read_and_write(std::span(big).subspan(frame_header_bytes), 7).empty());
  // A head that is not there.
  CheckFrame frame;
  frame.add_head(header, signature);
  frame.add({.head = 1,
             .index = 0,
             .path = {},
             .claims = claims,
             .operation = "a",
             .resource = "b",
             .presenter = {}});
  const std::vector<uint8_t> absent = frame.finish(7);
  EXPECT_TRUE(read_and_write(std::span(absent).subspan(frame_header_bytes), 7).empty());
}

TEST(CheckFrame, VerdictsComeBack) {
  std::vector<uint8_t> body;
  cbor::Writer out(body);
  out.array(2);
  write_verdict(out, {.reason = 0, .slot = 5, .generation = 9, .valid_until_boot_ns = 1'000'000});
  write_verdict(out, {.reason = 23});
  out.end();
  const Result<std::vector<Verdict>> verdicts = read_verdicts(body);
  ASSERT_TRUE(verdicts);
  ASSERT_EQ(verdicts->size(), 2U);
  EXPECT_EQ((*verdicts)[0].slot, 5U);
  EXPECT_EQ((*verdicts)[0].valid_until_boot_ns, 1'000'000U);
  EXPECT_EQ((*verdicts)[1].reason, 23U);
  for (size_t size = 0; size < body.size(); ++size)
    EXPECT_FALSE(read_verdicts(std::span(body).first(size))) << size;
}

}  // namespace
}  // namespace holdfast::wire
