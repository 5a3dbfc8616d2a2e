#include "userspace/token/cose.hpp"

#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

constexpr size_t frame_bytes = 64;  // of the items around what they hold, with room to spare

}  // namespace

std::vector<uint8_t> encode_sign1(const Sign1& parts) {
  std::vector<uint8_t> bytes;
  bytes.reserve(parts.header.size() + parts.payload.size() + parts.signature.size() + frame_bytes);
  cbor::Writer(bytes)
      .array(4)
      .bytes(parts.header)
      .map(0)
      .end()
      .bytes(parts.payload)
      .bytes(parts.signature)
      .end();
  return bytes;
}

Result<Sign1> take_sign1(std::span<const uint8_t> bytes, size_t bytes_max) {
  Sign1 parts;
  cbor::Reader in(bytes, {.depth_max = 2, .bytes_max = bytes_max});
  in.array_of(4);
  parts.header = in.bytes();
  in.map();
  in.end();
  parts.payload = in.bytes();
  parts.signature = in.bytes();
  in.end();
  if (!in.finish()) return std::unexpected(in.error());
  return parts;
}

std::vector<uint8_t> sig_structure(std::span<const uint8_t> header, std::string_view context,
                                   std::span<const uint8_t> payload) {
  std::vector<uint8_t> bytes;
  bytes.reserve(header.size() + context.size() + payload.size() + frame_bytes);
  cbor::Writer(bytes)
      .array(4)
      .text("Signature1")
      .bytes(header)
      .bytes(std::span(reinterpret_cast<const uint8_t*>(context.data()), context.size()))
      .bytes(payload)
      .end();
  return bytes;
}

}  // namespace holdfast::token
