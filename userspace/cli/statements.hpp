// What nodes say under their signature, reports and notices, for the commands that ask for them and
// check them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "userspace/base/result.hpp"
#include "userspace/token/node_identity.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::cli {

// Who has to have said it: a name, a thumbprint, or a file with a public key. Errors: those of
// read_signer_key(), naming --node.
Result<std::string> read_node_name(const std::string& named);
// Of 64 hexadecimal digits; none, if there are none. Errors: usage.
Result<std::optional<token::Challenge>> read_challenge(const std::string& digits);
Result<token::Challenge> drawn_challenge();
// "uid:N", who runs this, when nobody is named. Errors: usage.
Result<std::string> audience_or_self(const std::string& named);

// The notices of a node, one after the other and none left out.
class Notices {
 public:
  explicit Notices(std::string node) : node_(std::move(node)) {}

  // The next is the first of a stream for this.
  void expect(token::StatementFor target) { next_ = std::move(target); }
  // What the next one says, and when it was said. Errors: those of token::check_statement();
  // denied / wrong_challenge, wrong_audience, notice_missing; those of cbor::decode().
  Result<cbor::Value> open(std::span<const uint8_t> notice);
  // Of what was kept: whatever streams one after the other, each from its first on.
  Result<cbor::Value> open_kept(std::span<const uint8_t> notice);

 private:
  Result<cbor::Value> open(const token::Statement& said);

  std::string node_;
  token::StatementFor next_;
};

}  // namespace holdfast::cli
