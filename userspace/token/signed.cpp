#include "userspace/token/signed.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <zstd.h>

#include "userspace/token/cose.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/frame.hpp"

namespace holdfast::token {
namespace {

using cbor::Reader;
using cbor::Writer;

// RFC 9864, and one of ours.
constexpr std::array<int64_t, 2> algorithms{-19, -65538};
constexpr int64_t private_label = -65537;
constexpr size_t name_bytes_max = 256;
enum Label : uint8_t { alg = 1, kid = 4, cwt_claims = 15, typ = 16 };  // of a COSE header
enum Claim : uint8_t { aud = 3, exp = 4, iat = 6 };                    // of a CWT
enum Private : uint8_t {
  epoch = 1,
  challenge = 2,
  sequence = 3,
  generation = 4,
  unpacked = 5,
  nonce = 6,
  root_key = 7,
  root_application = 8,
  certificate = 9,
};

struct PurposeWords {
  std::string_view name;
  std::string_view type;
  std::string_view context;
  bool expires = false;
  // What there is in the private map, in its order.
  bool epoch = false;
  bool challenge = false;
  bool sequence = false;
  bool generation = false;
  bool nonce = false;
  bool root = false;  // and its application, if there is one
  bool certificate = false;
};
constexpr std::array<PurposeWords, purposes> words{{
    {.name = "request",
     .type = "application/holdfast-request+cose",
     .context = "holdfast request v1",
     .epoch = true,
     .challenge = true,
     .sequence = true},
    {.name = "bundle",
     .type = "application/holdfast-bundle+cose",
     .context = "holdfast bundle v1",
     .expires = true,
     .generation = true},
    {.name = "operator grant",
     .type = "application/holdfast-operator-grant+cose",
     .context = "holdfast operator-grant v1",
     .expires = true},
    {.name = "enrollment bundle",
     .type = "application/holdfast-enrollment+cose",
     .context = "holdfast enrollment v1",
     .expires = true,
     .generation = true,
     .nonce = true,
     .root = true},
    {.name = "node's epoch key",
     .type = "application/holdfast-epoch-key+cose",
     .context = "holdfast epoch-key v1",
     .epoch = true,
     .root = true},
    {.name = "node's report",
     .type = "application/holdfast-report+cose",
     .context = "holdfast report v1",
     .epoch = true,
     .challenge = true,
     .certificate = true},
    {.name = "node's notice",
     .type = "application/holdfast-notice+cose",
     .context = "holdfast notice v1",
     .epoch = true,
     .challenge = true,
     .sequence = true,
     .certificate = true},
    {.name = "preempt",
     .type = "application/holdfast-preempt+cose",
     .context = "holdfast preempt v1",
     .expires = true},
    {.name = "admission",
     .type = "application/holdfast-admission+cose",
     .context = "holdfast admission v1",
     .expires = true},
}};

const PurposeWords& words_of(Purpose purpose) {
  return words[static_cast<size_t>(purpose)];
}

std::vector<uint8_t> encode_header(Purpose purpose, const SignedHeader& header) {
  std::vector<uint8_t> bytes;
  Writer out(bytes);
  out.map(5)
      .u64(alg)
      .i64(algorithms[static_cast<size_t>(header.algorithm)])
      .u64(kid)
      .bytes(header.key);
  const PurposeWords& has = words_of(purpose);
  out.u64(cwt_claims).map(has.expires ? 3 : 2).u64(aud).text(header.audience);
  if (has.expires) out.u64(exp).u64(header.expires_s);
  out.u64(iat).u64(header.issued_s).end();
  out.u64(typ).text(has.type);
  const bool packed = header.unpacked_bytes.has_value();
  const bool application = has.root && !header.root.application.empty();
  out.i64(private_label);
  out.map(static_cast<size_t>(has.epoch) + has.challenge + has.sequence + has.generation + packed +
          has.nonce + has.root + application + has.certificate);
  if (has.epoch) out.u64(epoch).u64(header.epoch);
  if (has.challenge) out.u64(challenge).bytes(header.challenge);
  if (has.sequence) out.u64(sequence).u64(header.sequence);
  if (has.generation) out.u64(generation).u64(header.generation);
  if (packed) out.u64(unpacked).u64(*header.unpacked_bytes);
  if (has.nonce) out.u64(nonce).bytes(header.nonce);
  if (has.root) out.u64(root_key).bytes(header.root.key);
  if (application) out.u64(root_application).text(header.root.application);
  if (has.certificate) out.u64(certificate).bytes(header.certificate);
  out.end().end();
  return bytes;
}

// What a header of any purpose may hold; that it is one of this purpose is seen by encoding it
// again.
bool read_header(std::span<const uint8_t> bytes, SignedHeader& header, std::string_view& type) {
  Reader in(bytes, {.depth_max = 2, .bytes_max = signed_header_bytes_max});
  const auto copy = [&](std::array<uint8_t, 32>& out) {
    const std::span<const uint8_t> from = in.bytes();
    if (from.size() == out.size())
      std::ranges::copy(from, out.begin());
    else
      in.refuse(cbor::Fault::out_of_range);
  };
  const auto expect = [&](int64_t value) {
    if (in.i64() != value) in.refuse(cbor::Fault::out_of_range);
  };
  in.map();
  expect(alg);
  const auto* known = std::ranges::find(algorithms, in.i64());
  if (known == algorithms.end())
    in.refuse(cbor::Fault::out_of_range);
  else
    header.algorithm = static_cast<Algorithm>(known - algorithms.begin());
  expect(kid);
  copy(header.key);
  expect(cwt_claims);
  for (in.map(); in.more();) {
    switch (in.u64()) {
      case aud: header.audience = in.text(); break;
      case exp: header.expires_s = in.u64(); break;
      case iat: header.issued_s = in.u64(); break;
      default: in.refuse(cbor::Fault::out_of_range);
    }
  }
  in.end();
  expect(typ);
  type = in.text();
  expect(private_label);
  for (in.map(); in.more();) {
    switch (in.u64()) {
      case epoch: header.epoch = in.u64(); break;
      case challenge: copy(header.challenge); break;
      case sequence: header.sequence = in.u64(); break;
      case generation: header.generation = in.u64(); break;
      case unpacked: header.unpacked_bytes = in.u64(); break;
      case nonce: copy(header.nonce); break;
      case root_key: copy(header.root.key); break;
      case root_application: header.root.application = in.text(); break;
      case certificate: {
        const std::span<const uint8_t> from = in.bytes();
        header.certificate.assign(from.begin(), from.end());
        break;
      }
      default: in.refuse(cbor::Fault::out_of_range);
    }
  }
  in.end();
  in.end();
  return in.finish() && header.audience.size() <= name_bytes_max &&
         header.root.application.size() <= name_bytes_max;
}

std::vector<uint8_t> signed_bytes(Purpose purpose, std::span<const uint8_t> header,
                                  std::span<const uint8_t> payload) {
  return sig_structure(header, words_of(purpose).context, payload);
}

std::unexpected<Error> malformed(std::string why) {
  return fail(ErrorKind::invalid, "malformed_signed", std::move(why),
              "make it as userspace/token/README.md says");
}

std::unexpected<Error> bad_packing(std::string why) {
  return fail(ErrorKind::invalid, "bad_packing", std::move(why),
              "one zstd frame, of the size that the header says");
}

// Smaller than it was, or nothing.
std::vector<uint8_t> pack(std::span<const uint8_t> content) {
  std::vector<uint8_t> packed(ZSTD_compressBound(content.size()));
  const size_t size = ZSTD_compress(packed.data(), packed.size(), content.data(), content.size(),
                                    ZSTD_CLEVEL_DEFAULT);
  if (ZSTD_isError(size) != 0 || size >= content.size()) return {};
  packed.resize(size);
  return packed;
}

}  // namespace

std::string_view name_of(Purpose purpose) {
  return words_of(purpose).name;
}

Result<std::vector<uint8_t>> make_signed(const Signer& signer, Purpose purpose, SignedHeader header,
                                         std::span<const uint8_t> content, size_t pack_from) {
  header.algorithm = signer.algorithm();
  header.key = signer.key();
  if (words_of(purpose).root)
    header.root = {.key = signer.public_key(), .application = std::string(signer.application())};
  header.unpacked_bytes.reset();
  std::vector<uint8_t> packed;
  if (content.size() >= pack_from && content.size() <= unpacked_bytes_max) packed = pack(content);
  if (!packed.empty()) header.unpacked_bytes = content.size();
  const std::span<const uint8_t> payload =
      packed.empty() ? content : std::span<const uint8_t>(packed);
  const std::vector<uint8_t> head = encode_header(purpose, header);
  const Result<std::vector<uint8_t>> signature = signer.sign(signed_bytes(purpose, head, payload));
  if (!signature) return std::unexpected(signature.error());
  return encode_sign1({.header = head, .payload = payload, .signature = *signature});
}

Result<SignedObject> take_apart_signed(std::span<const uint8_t> bytes, Purpose purpose) {
  const Result<Sign1> parts = take_sign1(bytes, wire::memfd_body_bytes_max);
  if (!parts) return malformed("that is no COSE_Sign1: " + parts.error().message);
  const auto& [header_bytes, payload, signature] = *parts;
  if (signature.size() != sizeof(Signature) && signature.size() != ssh_security_signature_bytes)
    return malformed("its signature has neither 64 bytes, nor the 69 of a security key");
  SignedHeader header;
  std::string_view type;
  if (!read_header(header_bytes, header, type)) return malformed("its header is none of ours");
  if (type != words_of(purpose).type)
    return fail(ErrorKind::denied, "wrong_purpose",
                fmt::format("it was signed as \"{}\", and a {} is wanted",
                            type.substr(0, name_bytes_max), words_of(purpose).name),
                "what is signed for one purpose serves no other");
  if (!std::ranges::equal(header_bytes, encode_header(purpose, header)))
    return malformed(fmt::format("its header is not that of a {}", words_of(purpose).name));
  return SignedObject{.header = std::move(header),
                      .header_bytes = header_bytes,
                      .payload = payload,
                      .signature = signature};
}

bool is_signed_by(const SignerKey& key, Purpose purpose, const SignedObject& object) {
  const std::vector<uint8_t> bytes = signed_bytes(purpose, object.header_bytes, object.payload);
  if (object.header.algorithm == Algorithm::ssh)
    return verify_ssh_signature(key, bytes, object.signature);
  return key.application.empty() && object.signature.size() == sizeof(Signature) &&
         verify_signature(key.key, bytes, object.signature.first<sizeof(Signature)>());
}

Result<std::span<const uint8_t>> content_of(const SignedObject& object,
                                            std::vector<uint8_t>& storage, uint64_t bytes_max) {
  if (!object.header.unpacked_bytes) return object.payload;
  const uint64_t size = *object.header.unpacked_bytes;
  const std::span<const uint8_t> payload = object.payload;
  if (size == 0 || size > bytes_max)
    return bad_packing(fmt::format("{} bytes, where 1 to {} may be packed", size, bytes_max));
  // One frame and nothing behind it, and the frame itself says the same size.
  if (ZSTD_findFrameCompressedSize(payload.data(), payload.size()) != payload.size() ||
      ZSTD_getFrameContentSize(payload.data(), payload.size()) != size)
    return bad_packing("the payload is not one zstd frame of that size");
  // In one go: the content is its own window, whatever window the frame asks for.
  storage.resize(size);
  if (ZSTD_decompress(storage.data(), storage.size(), payload.data(), payload.size()) != size) {
    storage.clear();
    return bad_packing("the payload does not unpack to that size");
  }
  return std::span<const uint8_t>(storage);
}

}  // namespace holdfast::token
