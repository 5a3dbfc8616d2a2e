// With what a node signs what it makes: use tokens, and what it says of itself. Where its own key
// is on a PKCS#11 token, which is too slow to sign for every lease, that is a key in memory, for
// which its own key has signed once; else it is its own key. Who knows the node by its name needs
// nothing else to check either: the name is the key's thumbprint, and the key stands in the
// certificate. README.md has the format. Pure, apart from who signs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/signed.hpp"
#include "userspace/token/verify.hpp"

namespace holdfast::token {

// What a certificate says.
struct EpochKey {
  std::string node;
  uint64_t epoch = 0;
  PublicKey key{};
  uint64_t issued_s = 0;

  bool operator==(const EpochKey&) const = default;
};

// By the node's own key. Errors: those of make_signed().
Result<std::vector<uint8_t>> certify(const Signer& node_key, uint64_t epoch, const PublicKey& key,
                                     uint64_t issued_s);
// Of the node of that name, whatever its epoch. Errors: those of take_apart_signed(); denied /
// wrong_node, bad_signature; invalid / malformed_signed.
Result<EpochKey> check_certificate(std::span<const uint8_t> bytes, std::string_view node);

constexpr size_t audience_bytes_max = 256;

// To whom a node says something, and over whose challenge.
struct StatementFor {
  std::string audience;  // at least a byte
  Challenge challenge{};
  uint64_t sequence = 0;  // of notices: which of their stream, the first is 0

  bool operator==(const StatementFor&) const = default;
};

// What a node has said of itself: a report or a notice.
struct Statement {
  EpochKey by;
  StatementFor target;
  uint64_t issued_s = 0;
  std::vector<uint8_t> content;
};

// By the key that `certificate` is of. Errors: those of make_signed().
Result<std::vector<uint8_t>> sign_statement(Purpose purpose, const Signer& epoch_key,
                                            uint64_t epoch, std::span<const uint8_t> certificate,
                                            const StatementFor& target, uint64_t issued_s,
                                            std::span<const uint8_t> content);
// One by the node of that name. Whether it answers a challenge is its asker's to see, and whether a
// notice is missing. Errors: those of take_apart_signed() and content_of(); those of
// check_certificate(); denied / wrong_key, bad_signature.
Result<Statement> check_statement(Purpose purpose, std::span<const uint8_t> bytes,
                                  std::string_view node);

// Who signs a node's use tokens.
Anchor own_anchor(const std::string& node, const PublicKey& key);

}  // namespace holdfast::token
