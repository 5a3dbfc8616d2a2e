#include "userspace/token/node_identity.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace holdfast::token {
namespace {

// Reports, which are made once. Of notices many a second go out.
constexpr size_t pack_reports_from = 4096;

}  // namespace

Result<std::vector<uint8_t>> certify(const Signer& node_key, uint64_t epoch, const PublicKey& key,
                                     uint64_t issued_s) {
  SignedHeader header;
  header.audience = node_name(node_key.public_key());
  header.issued_s = issued_s;
  header.epoch = epoch;
  return make_signed(node_key, Purpose::epoch_key, std::move(header), key);
}

Result<EpochKey> check_certificate(std::span<const uint8_t> bytes, std::string_view node) {
  const Result<SignedObject> object = take_apart_signed(bytes, Purpose::epoch_key);
  if (!object) return std::unexpected(object.error());
  const SignedHeader& header = object->header;
  const PublicKey& signer = header.root.key;
  if (header.algorithm != Algorithm::ed25519 || !header.root.application.empty())
    return fail(ErrorKind::invalid, "malformed_signed", "no node's own key is one of OpenSSH's",
                "make it as userspace/token/README.md says");
  if (header.audience != node || node_name(signer) != node || thumbprint(signer) != header.key)
    return fail(ErrorKind::denied, "wrong_node",
                fmt::format("the epoch key is of {}, and not of {}", header.audience, node),
                "ask the node itself: holdfast node identity");
  if (!is_signed_by({signer}, Purpose::epoch_key, *object))
    return fail(ErrorKind::denied, "bad_signature", "the signature is not the node's key's",
                "ask the node itself: holdfast node identity");
  EpochKey made{
      .node = std::string(node), .epoch = header.epoch, .key = {}, .issued_s = header.issued_s};
  if (header.unpacked_bytes || object->payload.size() != made.key.size())
    return fail(ErrorKind::invalid, "malformed_signed",
                fmt::format("an epoch key has {} bytes", made.key.size()),
                "make it as userspace/token/README.md says");
  std::ranges::copy(object->payload, made.key.begin());
  return made;
}

Result<std::vector<uint8_t>> sign_statement(Purpose purpose, const Signer& epoch_key,
                                            uint64_t epoch, std::span<const uint8_t> certificate,
                                            const StatementFor& target, uint64_t issued_s,
                                            std::span<const uint8_t> content) {
  SignedHeader header;
  header.audience = target.audience;
  header.issued_s = issued_s;
  header.epoch = epoch;
  header.challenge = target.challenge;
  header.sequence = target.sequence;
  header.certificate.assign(certificate.begin(), certificate.end());
  return make_signed(epoch_key, purpose, std::move(header), content,
                     purpose == Purpose::report ? pack_reports_from : SIZE_MAX);
}

Result<Statement> check_statement(Purpose purpose, std::span<const uint8_t> bytes,
                                  std::string_view node) {
  const Result<SignedObject> object = take_apart_signed(bytes, purpose);
  if (!object) return std::unexpected(object.error());
  const SignedHeader& header = object->header;
  Result<EpochKey> by = check_certificate(header.certificate, node);
  if (!by) return pass_on(by, "its certificate");
  if (header.algorithm != Algorithm::ed25519 || header.key != thumbprint(by->key) ||
      header.epoch != by->epoch)
    return fail(ErrorKind::denied, "wrong_key",
                "it is signed by another key, or of another epoch, than its certificate says",
                "ask the node again");
  if (!is_signed_by({by->key}, purpose, *object))
    return fail(ErrorKind::denied, "bad_signature", "the signature is not its epoch key's",
                "ask the node again");
  std::vector<uint8_t> storage;
  const Result<std::span<const uint8_t>> content = content_of(*object, storage);
  if (!content) return std::unexpected(content.error());
  return Statement{.by = std::move(*by),
                   .target = {.audience = header.audience,
                              .challenge = header.challenge,
                              .sequence = header.sequence},
                   .issued_s = header.issued_s,
                   .content = {content->begin(), content->end()}};
}

Anchor own_anchor(const std::string& node, const PublicKey& key) {
  Anchor own;
  own.issuer = node;
  own.key = key;
  own.thumbprint = thumbprint(key);
  own.for_tokens = true;
  own.own = true;
  own.tenants = {"*"};
  own.operations = {"*"};
  return own;
}

}  // namespace holdfast::token
