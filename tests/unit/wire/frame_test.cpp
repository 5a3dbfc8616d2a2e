// Frames, bodies in memfds, error bodies, request bodies, and the rate limit: all without a socket.
#include "userspace/wire/frame.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/unit/wire/hex.hpp"
#include "userspace/wire/rate_limit.hpp"

namespace holdfast::wire {
namespace {

using testing::from_hex;
using testing::to_hex;

std::vector<uint8_t> bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

UniqueFd memfd(std::string_view content, int seals) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::write(fd.get(), content.data(), content.size()),
            static_cast<ssize_t>(content.size()));
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

constexpr int all_seals = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;

TEST(Frame, LayoutIsFixed) {
  std::vector<uint8_t> out;
  append_frame(out, FrameType::reply, flag_more, 0x01020304, bytes_of("abc"));
  EXPECT_EQ(to_hex(out),
            "484c4446"
            "01"
            "03"
            "0001"
            "00000003"
            "01020304"
            "616263");
}

TEST(Frame, ReaderCutsAStreamHoweverItArrives) {
  std::vector<uint8_t> stream;
  append_frame(stream, FrameType::request, 0, 1, bytes_of("first"));
  append_frame(stream, FrameType::request, 0, 2, {});
  append_frame(stream, FrameType::reply, flag_more, 3, std::vector<uint8_t>(1000, 7));
  for (const size_t step :
       {size_t{1}, size_t{2}, size_t{15}, size_t{16}, size_t{17}, size_t{4096}}) {
    SCOPED_TRACE(step);
    FrameReader reader;
    std::vector<Frame> frames;
    for (size_t at = 0; at < stream.size(); at += step) {
      reader.feed(std::span(stream).subspan(at, std::min(step, stream.size() - at)));
      for (;;) {
        Result<std::optional<Frame>> frame = reader.next();
        ASSERT_TRUE(frame);
        if (!*frame) break;
        frames.push_back(std::move(**frame));
      }
    }
    ASSERT_EQ(frames.size(), 3U);
    EXPECT_EQ(frames[0].body, bytes_of("first"));
    EXPECT_EQ(frames[1].request_id, 2U);
    EXPECT_TRUE(frames[1].body.empty());
    EXPECT_TRUE(frames[2].more());
    EXPECT_EQ(frames[2].body.size(), 1000U);
    EXPECT_FALSE(reader.has_pending());
  }
}

struct BadFrame {
  const char* name;
  const char* hex;
  const char* code;
};

constexpr BadFrame bad_frames[] = {
    {"wrong magic", "484c4445 01 02 0000 00000000 00000001", "bad_magic"},
    {"wrong first byte alone", "47", "bad_magic"},
    {"an HTTP request", "474554202f20485454502f312e310d0a", "bad_magic"},
    {"version 0", "484c4446 00 02 0000 00000000 00000001", "unknown_version"},
    {"version 2", "484c4446 02 02 0000 00000000 00000001", "unknown_version"},
    {"type 0", "484c4446 01 00 0000 00000000 00000001", "unknown_type"},
    {"type 6", "484c4446 01 06 0000 00000000 00000001", "unknown_type"},
    {"type 255", "484c4446 01 ff 0000 00000000 00000001", "unknown_type"},
    {"flag bit 2", "484c4446 01 02 0004 00000000 00000001", "unknown_flag"},
    {"flag bit 15", "484c4446 01 02 8000 00000000 00000001", "unknown_flag"},
    {"one byte too long", "484c4446 01 02 0000 00100001 00000001", "frame_too_large"},
    {"the longest length", "484c4446 01 02 0000 ffffffff 00000001", "frame_too_large"},
    {"memfd with a length", "484c4446 01 02 0002 00000001 00000001", "memfd_length"},
    {"memfd without one", "484c4446 01 02 0002 00000000 00000001", "memfd_missing"},
};

TEST(Frame, BadHeadersAreRefusedByNameAndForGood) {
  for (const BadFrame& bad : bad_frames) {
    SCOPED_TRACE(bad.name);
    FrameReader reader;
    reader.feed(from_hex(bad.hex));
    const auto first = reader.next();
    ASSERT_FALSE(first);
    EXPECT_EQ(first.error().code, bad.code);
    // A valid frame after it changes nothing: the stream is out of step.
    std::vector<uint8_t> good;
    append_frame(good, FrameType::request, 0, 9, {});
    reader.feed(good);
    const auto second = reader.next();
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, bad.code);
  }
}

TEST(Frame, ABodyOfTheLargestSizePasses) {
  std::vector<uint8_t> out;
  append_frame(out, FrameType::request, 0, 1, std::vector<uint8_t>(inline_body_bytes_max, 1));
  FrameReader reader;
  reader.feed(std::span(out).first(out.size() - 1));
  ASSERT_FALSE(*reader.next());
  EXPECT_EQ(reader.pending_request_id(), 1U);
  reader.feed(std::span(out).last(1));
  const auto frame = reader.next();
  ASSERT_TRUE(frame && *frame);
  EXPECT_EQ((*frame)->body.size(), inline_body_bytes_max);
}

TEST(Frame, AnUnfinishedFrameIsNotAFrame) {
  std::vector<uint8_t> out;
  append_frame(out, FrameType::request, 0, 1, bytes_of("abc"));
  for (size_t size = 0; size < out.size(); ++size) {
    FrameReader reader;
    reader.feed(std::span(out).first(size));
    const auto frame = reader.next();
    ASSERT_TRUE(frame);
    EXPECT_FALSE(*frame);
    EXPECT_EQ(reader.has_pending(), size > 0);
  }
}

std::vector<UniqueFd> one(UniqueFd fd) {
  std::vector<UniqueFd> out;
  out.push_back(std::move(fd));
  return out;
}

TEST(Frame, ADeclaredDescriptorStaysWithItsFrame) {
  std::vector<uint8_t> plain;
  append_frame(plain, FrameType::request, 0, 1, bytes_of("x"));
  std::vector<uint8_t> declared;
  append_frame_header(declared, FrameType::request, flag_memfd, 2, 0);
  // The kernel may join the plain frame before it to the same recvmsg, and cut the header.
  for (size_t cut = 1; cut <= declared.size(); ++cut) {
    SCOPED_TRACE(cut);
    FrameReader reader;
    std::vector<uint8_t> first = plain;
    first.insert(first.end(), declared.begin(), declared.begin() + static_cast<ptrdiff_t>(cut));
    reader.feed(first, one(memfd("body", all_seals)));
    auto frame = reader.next();
    ASSERT_TRUE(frame && *frame);
    EXPECT_FALSE((*frame)->memfd);
    frame = reader.next();
    ASSERT_TRUE(frame);
    if (cut < declared.size()) {
      ASSERT_FALSE(*frame);
      reader.feed(std::span(declared).subspan(cut));
      frame = reader.next();
    }
    ASSERT_TRUE(frame && *frame);
    ASSERT_TRUE((*frame)->memfd);
    Result<MappedBody> body = MappedBody::map(std::move((*frame)->memfd));
    ASSERT_TRUE(body);
    EXPECT_EQ(std::string(body->bytes().begin(), body->bytes().end()), "body");
  }
}

TEST(Frame, UndeclaredDescriptorsAreClosed) {
  std::vector<uint8_t> plain;
  append_frame(plain, FrameType::request, 0, 1, bytes_of("x"));
  std::vector<uint8_t> declared;
  append_frame_header(declared, FrameType::request, flag_memfd, 2, 0);

  FrameReader reader;
  UniqueFd stray = memfd("stray", all_seals);
  const int stray_number = stray.get();
  reader.feed(plain, one(std::move(stray)));
  ASSERT_TRUE(*reader.next());
  EXPECT_FALSE(is_open(stray_number));
  // And is not there for a later frame to claim.
  reader.feed(declared);
  const auto frame = reader.next();
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error().code, "memfd_missing");
}

TEST(Frame, ADescriptorFromAnEarlierFrameIsNotTaken) {
  std::vector<uint8_t> plain;
  append_frame(plain, FrameType::request, 0, 1, bytes_of("x"));
  std::vector<uint8_t> declared;
  append_frame_header(declared, FrameType::request, flag_memfd, 2, 0);
  FrameReader reader;
  reader.feed(plain, one(memfd("early", all_seals)));
  reader.feed(declared);
  ASSERT_TRUE(*reader.next());
  const auto frame = reader.next();
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error().code, "memfd_missing");
}

TEST(Frame, AFloodOfDescriptorsIsBounded) {
  FrameReader reader;
  std::vector<int> numbers;
  std::vector<uint8_t> header;
  append_frame_header(header, FrameType::request, 0, 1, 1000);
  reader.feed(header);
  for (int i = 0; i < 20; ++i) {
    UniqueFd fd = memfd("x", 0);
    const int duplicate = ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 100 + i);
    numbers.push_back(duplicate);
    const uint8_t byte = 0;
    reader.feed({&byte, 1}, one(UniqueFd(duplicate)));
    ASSERT_TRUE(reader.next());
  }
  EXPECT_LE(std::count_if(numbers.begin(), numbers.end(), is_open),
            static_cast<ptrdiff_t>(pending_fds_max));
}

TEST(MappedBody, OnlyAFullySealedMemfdIsMapped) {
  struct Case {
    const char* name;
    int seals;
    const char* code;
  };
  const Case cases[] = {
      {"all seals", all_seals, ""},
      {"none", 0, "memfd_unsealed"},
      {"no write seal", F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL, "memfd_unsealed"},
      {"no grow seal", F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_SEAL, "memfd_unsealed"},
      {"no shrink seal", F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SEAL, "memfd_unsealed"},
      {"no seal seal", F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK, "memfd_unsealed"},
      {"future write only", F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL,
       "memfd_unsealed"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Result<MappedBody> body = MappedBody::map(memfd("hello", c.seals));
    EXPECT_EQ(body.has_value(), std::string_view(c.code).empty());
    if (!body) {
      EXPECT_EQ(body.error().code, c.code);
    }
  }
}

TEST(MappedBody, OtherDescriptorsAndSizesAreRefused) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd write_end(ends[1]);
  EXPECT_EQ(MappedBody::map(UniqueFd(ends[0])).error().code, "memfd_unsealed");
  EXPECT_EQ(MappedBody::map(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC))).error().code,
            "memfd_unsealed");
  EXPECT_EQ(MappedBody::map(memfd("", all_seals)).error().code, "memfd_empty");
  UniqueFd large(::memfd_create("large", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(large.get(), static_cast<off_t>(memfd_body_bytes_max + 1)), 0);
  ASSERT_EQ(::fcntl(large.get(), F_ADD_SEALS, all_seals), 0);
  EXPECT_EQ(MappedBody::map(std::move(large)).error().code, "memfd_too_large");
}

TEST(MappedBody, ASealedMemfdOfOursIsAccepted) {
  Result<UniqueFd> fd = sealed_memfd({bytes_of("ab"), bytes_of("cd")});
  ASSERT_TRUE(fd);
  Result<MappedBody> body = MappedBody::map(std::move(*fd));
  ASSERT_TRUE(body) << body.error().text();
  MappedBody moved = std::move(*body);
  EXPECT_EQ(std::string(moved.bytes().begin(), moved.bytes().end()), "abcd");
}

// ---- errors ----

TEST(ErrorFrame, EveryKindAndRetryGoesThrough) {
  const ErrorKind kinds[] = {ErrorKind::invalid,     ErrorKind::denied,    ErrorKind::not_found,
                             ErrorKind::conflict,    ErrorKind::exhausted, ErrorKind::unavailable,
                             ErrorKind::unsupported, ErrorKind::internal};
  const Retry retries[] = {
      {Retry::When::never, 0}, {Retry::When::after_event, 0}, {Retry::When::after_ms, 1500}};
  for (const ErrorKind kind : kinds) {
    for (const Retry& retry : retries) {
      const Error error{kind, "some_code", 0, "lease x: is not live", "grant it again"};
      const Result<WireError> back = decode_error(cbor::encode(encode_error(error, retry)));
      ASSERT_TRUE(back) << back.error().text();
      EXPECT_EQ(back->error.kind, kind);
      EXPECT_EQ(back->error.code, "some_code");
      EXPECT_EQ(back->error.message, error.message);
      EXPECT_EQ(back->error.next_step, error.next_step);
      EXPECT_EQ(back->retry, retry);
    }
  }
}

TEST(ErrorFrame, StepUpHasAClassOfItsOwn) {
  const Error error{ErrorKind::denied, "step_up_required", 0, "prove yourself", ""};
  EXPECT_EQ(class_name(error), "step_up_required");
  const auto back = decode_error(cbor::encode(encode_error(error, default_retry(error))));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->error.kind, ErrorKind::denied);
  EXPECT_EQ(back->error.code, "step_up_required");
}

TEST(ErrorFrame, TheErrnoIsSaidInWords) {
  const Error error{ErrorKind::internal, "journal", ENOSPC, "cannot write the journal", ""};
  const auto back = decode_error(cbor::encode(encode_error(error, {})));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->error.message, "cannot write the journal: No space left on device");
  EXPECT_EQ(back->error.sys, 0);
}

TEST(ErrorFrame, DefaultRetries) {
  const auto when = [](ErrorKind kind) { return default_retry(Error{kind, "x", 0, "", ""}).when; };
  EXPECT_EQ(when(ErrorKind::unavailable), Retry::When::after_ms);
  EXPECT_EQ(when(ErrorKind::exhausted), Retry::When::after_event);
  EXPECT_EQ(when(ErrorKind::conflict), Retry::When::after_event);
  EXPECT_EQ(when(ErrorKind::denied), Retry::When::never);
  EXPECT_EQ(when(ErrorKind::internal), Retry::When::never);
}

TEST(ErrorFrame, UnknownThingsAreRefused) {
  const auto base = [] {
    return cbor::Value::map({{"code", "c"},
                             {"class", "denied"},
                             {"detail", ""},
                             {"next_step", ""},
                             {"retry", "never"}});
  };
  ASSERT_TRUE(decode_error(cbor::encode(base())));
  std::vector<cbor::Value> bad;
  bad.push_back(base().set("class", "fatal"));
  bad.push_back(base().set("class", "step_up_required"));  // only with that code
  bad.push_back(base().set("class", 1));
  bad.push_back(base().set("retry", "soon"));
  bad.push_back(base().set("retry", 1));
  bad.push_back(base().set("retry", cbor::Value::map()));
  bad.push_back(base().set("retry", cbor::Value::map({{"after_ms", 1ULL << 32}})));
  bad.push_back(base().set("retry", cbor::Value::map({{"after_ms", 1}, {"x", 1}})));
  bad.push_back(base().set("extra", 1));
  bad.push_back(cbor::Value::map({{"code", "c"}}));
  bad.push_back(cbor::Value::array());
  for (const cbor::Value& value : bad) {
    SCOPED_TRACE(cbor::to_json(value));
    EXPECT_FALSE(decode_error(cbor::encode(value)));
  }
  auto strange = decode_error(cbor::encode(base().set("code", "Rm -rf \x1b[31m")));
  ASSERT_TRUE(strange);
  EXPECT_EQ(strange->error.code, "unlisted");
}

// ---- requests ----

std::vector<uint8_t> whole(const RequestParts& parts, std::span<const uint8_t> body = {}) {
  std::vector<uint8_t> out = parts.before;
  out.insert(out.end(), body.begin(), body.end());
  out.insert(out.end(), parts.after.begin(), parts.after.end());
  return out;
}

TEST(RequestBody, GoesThroughWithAndWithoutRawBytes) {
  const cbor::Value args = cbor::Value::map({{"id", 7}});
  const auto plain = whole(encode_request("lease.show", args, std::nullopt));
  auto back = decode_request(plain);
  ASSERT_TRUE(back) << back.error().text();
  EXPECT_EQ(back->verb, "lease.show");
  EXPECT_EQ(back->args, args);
  EXPECT_FALSE(back->has_body);

  const std::vector<uint8_t> raw(70000, 3);
  const auto with_body = whole(encode_request("lease.grant", args, raw.size()), raw);
  back = decode_request(with_body);
  ASSERT_TRUE(back) << back.error().text();
  EXPECT_TRUE(back->has_body);
  EXPECT_EQ(back->body.size(), raw.size());
  EXPECT_EQ(cbor::encode(*cbor::decode(with_body)), with_body);
}

TEST(RequestBody, OtherShapesAreRefused) {
  using cbor::Value;
  const Value args = Value::map();
  const Value bad[] = {
      Value::map({{"verb", "x"}}),
      Value::map({{"args", args}}),
      Value::map({{"args", args}, {"verb", 1}}),
      Value::map({{"args", Value::array()}, {"verb", "x"}}),
      Value::map({{"args", args}, {"verb", ""}}),
      Value::map({{"args", args}, {"verb", std::string(65, 'v')}}),
      Value::map({{"args", args}, {"verb", "x"}, {"other", 1}}),
      Value::map({{"args", args}, {"verb", "x"}, {"body", "text"}}),
      Value::array({"x", args}),
      Value("x"),
  };
  for (const Value& value : bad) {
    SCOPED_TRACE(cbor::to_json(value));
    EXPECT_FALSE(decode_request(cbor::encode(value)));
  }
  EXPECT_FALSE(decode_request({}));
}

// ---- rate ----

TEST(RateLimiter, SpendsTheBurstThenRefillsAtTheRate) {
  const Rate rate{10, 3};  // one token each 100 ms
  RateLimiter limiter;
  constexpr uint64_t start = 1'000 * ns_per_s;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(limiter.take(rate, start), 0U);
  EXPECT_EQ(limiter.take(rate, start), 100 * ns_per_ms);
  EXPECT_EQ(limiter.take(rate, start + 40 * ns_per_ms), 60 * ns_per_ms);
  EXPECT_EQ(limiter.take(rate, start + 100 * ns_per_ms), 0U);
  EXPECT_NE(limiter.take(rate, start + 100 * ns_per_ms), 0U);
  EXPECT_FALSE(limiter.is_full(start + 100 * ns_per_ms));
  EXPECT_TRUE(limiter.is_full(start + ns_per_s));
  // A long pause gives the burst back, not more.
  for (int i = 0; i < 3; ++i) EXPECT_EQ(limiter.take(rate, start + 1000 * ns_per_s), 0U);
  EXPECT_NE(limiter.take(rate, start + 1000 * ns_per_s), 0U);
}

TEST(RateLimiter, ZeroIsUnlimited) {
  RateLimiter limiter;
  for (int i = 0; i < 100000; ++i) ASSERT_EQ(limiter.take(Rate{}, 5), 0U);
}

}  // namespace
}  // namespace holdfast::wire
