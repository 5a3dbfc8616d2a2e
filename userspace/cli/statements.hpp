// What nodes say under their signature, reports and notices, for the commands that ask for them and
// check them.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/token/node_identity.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::cli {

// Who has to have said it: a name, a thumbprint, or a file with a public key. Errors: those of
// read_signer_key(), naming --node.
Result<std::string> read_node_name(const std::string& named);
Result<token::Challenge> drawn_challenge();
// "uid:N", who runs this, when nobody is named. Errors: usage.
Result<std::string> audience_or_self(const std::string& named);

// Whose notices are believed.
struct NoticesFrom {
  std::string node;
  std::optional<std::string> audience;
  uint64_t epoch = 0;  // any, if it is 0
};

// The notices of a node, stream after stream, and in each one after the other with none left out.
// The first of a stream comes out as {"type": "asked", "args"} with "node", "epoch", "for",
// "challenge" and "issued" added.
class Notices {
 public:
  explicit Notices(NoticesFrom from) : from_(std::move(from)) {}

  // The next is the first of the stream for this. Without, any stream that has not been may begin
  // behind the last one of another, as in a file.
  void expect(token::StatementFor target);
  // What the next one says. Errors: those of token::check_statement(); denied / stale_epoch,
  // wrong_challenge, wrong_audience, notice_missing, notice_repeated; those of cbor::decode().
  Result<cbor::Value> open(std::span<const uint8_t> notice);

 private:
  Status begin(const token::StatementFor& target);

  NoticesFrom from_;
  token::StatementFor next_;
  bool is_kept_ = true;  // no target was named
  std::set<token::Challenge> begun_;
};

// A file of notices, one behind the other (a CBOR sequence, RFC 8742), however long.
class NoticeFile {
 public:
  // "-" is standard input. Errors: not_found / file_missing.
  static Result<NoticeFile> open(const std::string& path);

  // The next one, until the next call; an empty one behind the last. Errors: file_read; invalid /
  // malformed_cbor where no whole one stands.
  Result<std::span<const uint8_t>> next();
  // "FILE: notice N", of the one that came last.
  std::string place() const;

 private:
  Status fill();

  UniqueFd fd_;
  std::string name_;
  std::vector<uint8_t> buffer_;
  size_t at_ = 0;
  bool has_ended_ = false;
  uint64_t count_ = 0;
};

}  // namespace holdfast::cli
