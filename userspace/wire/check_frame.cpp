#include "userspace/wire/check_frame.hpp"

#include <algorithm>
#include <array>

namespace holdfast::wire {
namespace {

constexpr size_t signature_bytes = 64;

uint32_t big_endian_at(std::span<const uint8_t> bytes, size_t at) {
  return uint32_t{bytes[at]} << 24 | uint32_t{bytes[at + 1]} << 16 | uint32_t{bytes[at + 2]} << 8 |
         bytes[at + 3];
}

}  // namespace

uint64_t CheckFrame::add_head(std::span<const uint8_t> header,
                              std::span<const uint8_t, 64> signature) {
  cbor::Writer(heads_body_).array(2).bytes(header).bytes(signature).end();
  return heads_++;
}

void CheckFrame::add(const Check& check) {
  cbor::Writer out(body_);
  out.array(7).u64(check.head).u64(check.index).bytes(check.path).bytes(check.claims);
  out.text(check.operation).text(check.resource);
  if (check.presenter.empty())
    out.null();
  else
    out.text(check.presenter);
  out.end();
  ++checks_;
}

std::vector<uint8_t> CheckFrame::finish(uint32_t request_id) {
  std::vector<uint8_t> list;
  const auto array_head = [&](uint64_t count) {
    list.clear();
    cbor::Writer(list).u64(count);
    list.front() |= 0x80;  // an array's head is that of its count, with another major type
  };
  array_head(heads_);
  const std::vector<uint8_t> heads_head = list;
  array_head(checks_);
  const size_t length = 1 + heads_head.size() + heads_body_.size() + list.size() + body_.size();
  std::vector<uint8_t> frame;
  frame.reserve(frame_header_bytes + length);
  append_frame_header(frame, FrameType::check, 0, request_id, length);
  frame.push_back(0x82);
  frame.insert(frame.end(), heads_head.begin(), heads_head.end());
  frame.insert(frame.end(), heads_body_.begin(), heads_body_.end());
  frame.insert(frame.end(), list.begin(), list.end());
  frame.insert(frame.end(), body_.begin(), body_.end());
  heads_body_.clear();
  body_.clear();
  heads_ = checks_ = 0;
  return frame;
}

Result<Datagram> read_datagram(std::span<const uint8_t> bytes) {
  if (bytes.size() > check_frame_bytes_max)
    return fail(ErrorKind::invalid, "frame_too_large",
                "a frame on verify.sock has at most 65536 bytes", "ask about fewer tokens in one");
  if (bytes.size() < frame_header_bytes ||
      !std::ranges::equal(bytes.first(frame_magic.size()), frame_magic))
    return fail(ErrorKind::invalid, "bad_magic", "this is no frame of Holdfast's");
  if (bytes[4] != protocol_version)
    return fail(ErrorKind::unsupported, "unknown_version",
                "this daemon speaks version 1 of the protocol");
  const auto type = static_cast<FrameType>(bytes[5]);
  if (type < FrameType::hello || type > FrameType::proved)
    return fail(ErrorKind::invalid, "unknown_type", "there is no frame of that type");
  if (bytes[6] != 0 || bytes[7] != 0)
    return fail(ErrorKind::invalid, "unknown_flag", "no flag means anything here");
  if (big_endian_at(bytes, 8) != bytes.size() - frame_header_bytes)
    return fail(ErrorKind::invalid, "frame_length",
                "the header says another length than the datagram has");
  return Datagram{type, big_endian_at(bytes, 12), bytes.subspan(frame_header_bytes)};
}

CheckReader::CheckReader(std::span<const uint8_t> body)
    : in_(body, {.depth_max = 3, .bytes_max = check_frame_bytes_max}) {
  in_.array_of(2);
  heads_ = in_.array();
  if (heads_ > check_heads_max) in_.refuse(cbor::Fault::too_long);
}

bool CheckReader::next_head(CheckHead& head) {
  if (!in_.more()) return false;
  in_.array_of(2);
  head.header = in_.bytes();
  head.signature = in_.bytes();
  if (head.signature.size() != signature_bytes) in_.refuse(cbor::Fault::out_of_range);
  in_.end();
  return in_.ok();
}

uint64_t CheckReader::begin_checks() {
  in_.end();
  const uint64_t count = in_.array();
  if (count > checks_max) in_.refuse(cbor::Fault::too_long);
  return count;
}

bool CheckReader::next(Check& check) {
  if (!in_.more()) return false;
  in_.array_of(7);
  check.head = in_.u64();
  if (check.head >= heads_) in_.refuse(cbor::Fault::out_of_range);
  check.index = in_.u64();
  check.path = in_.bytes();
  check.claims = in_.bytes();
  check.operation = in_.text();
  check.resource = in_.text();
  check.presenter = {};
  if (in_.peek() == cbor::Type::null) {
    in_.null();
  } else {
    check.presenter = in_.text();
    if (check.presenter.empty()) in_.refuse(cbor::Fault::out_of_range);  // null says that
  }
  in_.end();
  return in_.ok();
}

bool CheckReader::finish() {
  in_.end();
  in_.end();
  return in_.finish();
}

void write_verdict(cbor::Writer& out, const Verdict& verdict) {
  if (verdict.reason != 0)
    out.array(1).u64(verdict.reason).end();
  else
    out.array(4)
        .u64(0)
        .u64(verdict.slot)
        .u64(verdict.generation)
        .u64(verdict.valid_until_boot_ns)
        .end();
}

Result<std::vector<Verdict>> read_verdicts(std::span<const uint8_t> body) {
  std::vector<Verdict> verdicts;
  cbor::Reader in(body, {.depth_max = 2, .bytes_max = check_frame_bytes_max});
  if (in.array() > checks_max) in.refuse(cbor::Fault::too_long);
  while (in.more()) {
    Verdict verdict;
    const uint64_t parts = in.array();
    verdict.reason = in.u64();
    if (parts != (verdict.reason == 0 ? 4 : 1)) in.refuse(cbor::Fault::out_of_range);
    if (verdict.reason == 0) {
      verdict.slot = in.u64();
      verdict.generation = in.u64();
      verdict.valid_until_boot_ns = in.u64();
    }
    in.end();
    verdicts.push_back(verdict);
  }
  in.end();
  if (!in.finish()) return std::unexpected(in.error());
  return verdicts;
}

}  // namespace holdfast::wire
