// Frames on control.sock: a header of 16 bytes, then a body of deterministic CBOR.
//
//   0        4         5      6       8        12           16
//   | "HLDF" | version | type | flags | length | request_id | body ... |      all big-endian
//
// The server speaks first (hello, request id 0). A request's id is chosen by the client, never 0,
// and not reused while it is unanswered; replies, events and errors carry it. An error with id 0
// concerns the connection and is followed by its end.
//
//   more   (bit 0, replies)   further reply frames for the same request follow
//   memfd  (bit 1, requests, signed or not)  length is 0 and the body is in a sealed memfd, passed by SCM_RIGHTS
//   with
//                             the sendmsg that carries the header's first byte
//
// Anything unknown is refused by name. Bodies:
//   request  {"args": map, "body"?: bytes, "verb": text}
//   error    {"code", "class", "retry": "never" | "after_event" | {"after_ms": n}, "detail",
//   "next_step"} others   a map that belongs to the verb
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::wire {

constexpr std::string_view frame_magic = "HLDF";
constexpr uint8_t protocol_version = 1;
constexpr size_t frame_header_bytes = 16;
constexpr size_t inline_body_bytes_max = 1U << 20;
constexpr uint64_t memfd_body_bytes_max = 256ULL << 20;
// From this size on a client uses a memfd: half the inline limit, so that no request is near it.
constexpr size_t memfd_body_bytes_from = 512U << 10;
// Descriptors waiting for the header they came with. A peer that sends more loses the newest.
constexpr size_t pending_fds_max = 4;

enum class FrameType : uint8_t {
  hello = 1,
  request = 2,
  reply = 3,
  error = 4,
  event = 5,
  check = 6,  // these on verify.sock only: check_frame.hpp
  verdicts = 7,
  prove = 8,
  proved = 9,
  signed_request = 10,  // a request inside a COSE_Sign1: userspace/token/README.md
};

constexpr uint16_t flag_more = 1U << 0;
constexpr uint16_t flag_memfd = 1U << 1;

struct Frame {
  FrameType type;
  uint16_t flags = 0;
  uint32_t request_id = 0;
  std::vector<uint8_t> body;
  UniqueFd memfd;  // set exactly when flags has flag_memfd; seals not yet checked

  bool more() const { return (flags & flag_more) != 0; }
};

void append_frame_header(std::vector<uint8_t>& out, FrameType type, uint16_t flags,
                         uint32_t request_id, size_t length);
// The body must fit inline_body_bytes_max.
void append_frame(std::vector<uint8_t>& out, FrameType type, uint16_t flags, uint32_t request_id,
                  std::span<const uint8_t> body);

// Cuts a byte stream into frames. Feed what recvmsg returned, in order; take frames until none is
// left. The first bad header is final: next() returns the same error from then on. It holds at most
// one unfinished frame plus what was last fed, and owns the descriptors it was fed: those that no
// header declares are closed.
class FrameReader {
 public:
  // `bytes` is what one recvmsg returned and `fds` what came with it.
  void feed(std::span<const uint8_t> bytes, std::vector<UniqueFd> fds = {});

  // A frame, or none until more is fed. Errors (invalid, version: unsupported): bad_magic,
  // unknown_version, unknown_type, unknown_flag, frame_too_large, memfd_length, memfd_missing.
  Result<std::optional<Frame>> next();

  // Bytes of a frame that is not complete, or frames not taken yet.
  bool has_pending() const { return buffer_.size() != consumed_; }
  // The id in the header of the frame that failed or is unfinished; 0 when there is no whole
  // header, or it is not one of this version.
  uint32_t pending_request_id() const;

 private:
  struct PendingFd {
    uint64_t begin;  // stream offsets of the recvmsg it came with
    uint64_t end;
    UniqueFd fd;
  };

  Result<std::optional<Frame>> cut();

  std::vector<uint8_t> buffer_;
  size_t consumed_ = 0;        // from the front of buffer_
  uint64_t stream_begin_ = 0;  // stream offset of buffer_[0]
  std::deque<PendingFd> fds_;
  std::optional<Error> error_;
};

// A sealed memfd mapped for reading. Nobody can change or shrink it any more, so it is safe to
// parse in place. Move-only; unmaps on destruction.
class MappedBody {
 public:
  // Errors (invalid): memfd_unsealed (or not a memfd), memfd_empty, memfd_too_large.
  static Result<MappedBody> map(UniqueFd memfd);

  MappedBody() = default;
  MappedBody(MappedBody&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedBody& operator=(MappedBody&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedBody();

  std::span<const uint8_t> bytes() const { return bytes_; }
  explicit operator bool() const { return !bytes_.empty(); }

 private:
  std::span<const uint8_t> bytes_;
};

// A memfd holding the pieces one after another, sealed against every change.
Result<UniqueFd> sealed_memfd(std::initializer_list<std::span<const uint8_t>> pieces);

// When it makes sense to repeat a failed request.
struct Retry {
  enum class When : uint8_t { never, after_event, after_ms } when = When::never;
  uint32_t after_ms = 0;  // only with When::after_ms
  bool operator==(const Retry&) const = default;
};

// unavailable: in a second; exhausted and conflict: when something changed; all others: never.
Retry default_retry(const Error& error);

// The class of an error on the wire: the kind's name, except that denied / step_up_required is the
// class step_up_required of its own.
std::string_view class_name(const Error& error);

struct WireError {
  Error error;
  Retry retry;
};

// The errno becomes words in "detail"; its number means nothing to another machine.
cbor::Value encode_error(const Error& error, const Retry& retry);
// Strict: an unknown class, key or retry is malformed_error.
Result<WireError> decode_error(std::span<const uint8_t> body);

// The bytes of a request's body, apart from the raw bytes it may carry: what comes before and
// after.
struct RequestParts {
  std::vector<uint8_t> before;
  std::vector<uint8_t> after;
};
RequestParts encode_request(std::string_view verb, const cbor::Value& args,
                            std::optional<size_t> body_bytes);

// A request as it came in. `body` points into what it was decoded from.
struct DecodedRequest {
  std::string_view verb;
  cbor::Value args;
  std::span<const uint8_t> body;
  bool has_body = false;
};
// Errors (invalid): malformed_cbor, malformed_request.
Result<DecodedRequest> decode_request(std::span<const uint8_t> bytes);

}  // namespace holdfast::wire
