// Frames on verify.sock: one SEQPACKET datagram each, the header of frame.hpp, then deterministic
// CBOR. A frame asks about many tokens and lists each head once; the answer has a verdict for each,
// in their order.
//
//   check    = [[* [header: bstr, signature: bstr .size 64]],
//               [* [head: uint, index: uint, path: bstr, claims: bstr,
//                   operation: tstr, resource: tstr, presenter: tstr / null]]]
//   verdicts = [* [0, slot: uint, generation: uint, valid_until: uint] / [reason: uint]]
//
// A frame `prove` has a proof of a key as its body (userspace/token/README.md), signed over the
// hello's challenge; `proved` answers it with the key's thumbprint, and from then on the peer is
// that key's holder. Once for a connection; a wrong one ends it.
//
// `path` is the digests of the inclusion proof one after the other: with header, signature, index
// and claims they are the token (userspace/token/README.md). `presenter` is who shows it: null is
// the peer itself. valid_until is CLOCK_BOOTTIME in nanoseconds. A reason is 1 + token::Refusal,
// which the hello lists by name.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/frame.hpp"

namespace holdfast::wire {

constexpr size_t check_frame_bytes_max = 64U << 10;
constexpr size_t checks_max = 512;       // of a frame
constexpr size_t check_heads_max = 512;  // of a frame

struct Check {
  uint64_t head = 0;  // which of the frame's
  uint64_t index = 0;
  std::span<const uint8_t> path;
  std::span<const uint8_t> claims;
  std::string_view operation;
  std::string_view resource;
  std::string_view presenter;  // empty: the peer itself
};

// Puts a frame together. What is added is copied.
class CheckFrame {
 public:
  // Answers the number for Check::head.
  uint64_t add_head(std::span<const uint8_t> header, std::span<const uint8_t, 64> signature);
  void add(const Check& check);
  size_t checks() const { return checks_; }
  // The datagram's size if it were finished now, at most.
  size_t bytes_at_most() const {
    return frame_header_bytes + 16 + heads_body_.size() + body_.size();
  }
  std::vector<uint8_t> finish(uint32_t request_id);  // empty again

 private:
  std::vector<uint8_t> heads_body_;
  std::vector<uint8_t> body_;
  size_t heads_ = 0;
  size_t checks_ = 0;
};

// A datagram's header, and what follows it. Errors: those of FrameReader, and invalid /
// frame_length.
struct Datagram {
  FrameType type;
  uint32_t request_id;
  std::span<const uint8_t> body;
};
Result<Datagram> read_datagram(std::span<const uint8_t> bytes);

struct CheckHead {
  std::span<const uint8_t> header;
  std::span<const uint8_t> signature;  // 64 bytes
};

// Reads a frame's body item by item; views point into it. After next() has answered false, ok()
// says whether that was the end.
class CheckReader {
 public:
  explicit CheckReader(std::span<const uint8_t> body);

  uint64_t heads() const { return heads_; }  // to be taken first, all of them
  bool next_head(CheckHead& head);
  // How many checks; after the heads.
  uint64_t begin_checks();
  bool next(Check& check);
  bool finish();
  bool ok() const { return in_.ok(); }
  Error error() const { return in_.error(); }

 private:
  cbor::Reader in_;
  uint64_t heads_ = 0;
};

struct Verdict {
  uint64_t reason = 0;  // 0: good; else 1 + token::Refusal
  uint64_t slot = 0;
  uint64_t generation = 0;
  uint64_t valid_until_boot_ns = 0;
};

void write_verdict(cbor::Writer& out, const Verdict& verdict);
Result<std::vector<Verdict>> read_verdicts(std::span<const uint8_t> body);

}  // namespace holdfast::wire
