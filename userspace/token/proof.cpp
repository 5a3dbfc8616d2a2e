#include "userspace/token/proof.hpp"

#include <algorithm>

#include "userspace/token/cose.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

using cbor::Reader;
using cbor::Writer;

constexpr size_t proof_bytes_max = 512;
constexpr std::string_view context = "holdfast holder proof v1";
constexpr int64_t private_label = -65537;
enum Label : uint8_t { aud = 3, cnf = 8, nonce = 10 };  // of a CWT (RFC 8392, RFC 8747, RFC 9711)

std::vector<uint8_t> protected_header() {
  std::vector<uint8_t> bytes;
  Writer(bytes).map(2).u64(1).i64(-19).u64(16).text("application/holdfast-holder-proof+cwt").end();
  return bytes;
}

std::vector<uint8_t> encode_payload(const PublicKey& key, const ProofPlace& place) {
  std::vector<uint8_t> bytes;
  Writer out(bytes);
  out.map(4).u64(aud).text(place.node);
  out.u64(cnf).map(1).u64(1);
  out.map(3).u64(1).u64(1).i64(-1).u64(6).i64(-2).bytes(key).end().end();
  out.u64(nonce).bytes(place.challenge);
  out.i64(private_label).map(1).u64(1).u64(place.epoch).end().end();
  return bytes;
}

// The key that a payload names, and whether the payload is one.
bool read_payload(std::span<const uint8_t> bytes, PublicKey& key) {
  ProofPlace said;
  Reader in(bytes, {.depth_max = 4, .bytes_max = proof_bytes_max});
  const auto expect = [&](int64_t value) {
    if (in.i64() != value) in.refuse(cbor::Fault::out_of_range);
  };
  const auto copy = [&](std::array<uint8_t, 32>& out) {
    const std::span<const uint8_t> from = in.bytes();
    if (from.size() == out.size())
      std::ranges::copy(from, out.begin());
    else
      in.refuse(cbor::Fault::out_of_range);
  };
  in.map();
  expect(aud);
  said.node = in.text();
  expect(cnf);
  in.map();
  expect(1);
  in.map();
  for (const int64_t each : {1, 1, -1, 6, -2}) expect(each);
  copy(key);
  in.end();
  in.end();
  expect(nonce);
  copy(said.challenge);
  expect(private_label);
  in.map();
  expect(1);
  said.epoch = in.u64();
  in.end();
  in.end();
  return in.finish();
}

}  // namespace

Result<std::vector<uint8_t>> make_proof(const Signer& signer, const ProofPlace& place) {
  const std::vector<uint8_t> header = protected_header();
  const std::vector<uint8_t> payload = encode_payload(signer.public_key(), place);
  const Result<Signature> signature = sign_plainly(signer, sig_structure(header, context, payload));
  if (!signature) return std::unexpected(signature.error());
  return encode_sign1({.header = header, .payload = payload, .signature = *signature});
}

Result<Digest> check_proof(std::span<const uint8_t> proof, const ProofPlace& place) {
  const Result<Sign1> parts = take_sign1(proof, proof_bytes_max);
  PublicKey key{};
  if (!parts || parts->signature.size() != sizeof(Signature) ||
      !std::ranges::equal(parts->header, protected_header()) || !read_payload(parts->payload, key))
    return fail(ErrorKind::invalid, "malformed_proof", "that is no proof of a key",
                "make it as userspace/token/README.md says");
  if (!verify_signature(key, sig_structure(parts->header, context, parts->payload),
                        parts->signature.first<sizeof(Signature)>()))
    return fail(ErrorKind::denied, "bad_signature", "the proof's signature is wrong",
                "sign with the key that the proof names");
  // What was signed is what this connection asked for, to the last byte.
  if (!std::ranges::equal(parts->payload, encode_payload(key, place)))
    return fail(ErrorKind::denied, "wrong_challenge",
                "the proof was made for another connection, node or epoch",
                "sign the challenge of this connection's hello");
  return thumbprint(key);
}

Result<Digest> prove_once(std::optional<Digest>& proved, std::span<const uint8_t> proof,
                          const ProofPlace& place) {
  if (proved)
    return fail(ErrorKind::conflict, "already_proved", "this connection has proved a key already",
                "connect once for each key");
  Result<Digest> key = check_proof(proof, place);
  if (key) proved = *key;
  return key;
}

}  // namespace holdfast::token
