#include "userspace/cli/statements.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>
#include <sys/random.h>
#include <unistd.h>

#include "userspace/base/hex.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"

namespace holdfast::cli {
namespace {

constexpr size_t audience_bytes_max = 256;
constexpr size_t content_bytes_max = size_t{1} << 20;  // as it comes from a node, a sixteenth

}  // namespace

Result<std::string> read_node_name(const std::string& named) {
  if (named.starts_with("ni:")) return named;
  if (const auto thumbprint = from_hex<sizeof(token::Digest)>(named))
    return token::node_name_of(*thumbprint);
  const Result<token::SignerKey> key = read_signer_key(named);
  if (!key) return std::unexpected(Error(key.error()).in("--node"));
  return token::node_name(key->key);
}

Result<std::optional<token::Challenge>> read_challenge(const std::string& digits) {
  if (digits.empty()) return std::nullopt;
  const auto challenge = from_hex<sizeof(token::Challenge)>(digits);
  if (!challenge)
    return usage("--challenge: 64 hexadecimal digits, in lower case",
                 "draw one: openssl rand -hex 32");
  return challenge;
}

Result<token::Challenge> drawn_challenge() {
  token::Challenge challenge{};
  if (::getrandom(challenge.data(), challenge.size(), 0) != static_cast<ssize_t>(challenge.size()))
    return fail_sys(errno, "random", "drawing a challenge");
  return challenge;
}

Result<std::string> audience_or_self(const std::string& named) {
  if (named.size() > audience_bytes_max)
    return usage("--for: a name of 1 to 256 bytes", "name who is told");
  return named.empty() ? fmt::format("uid:{}", ::getuid()) : named;
}

Result<cbor::Value> Notices::open(std::span<const uint8_t> notice) {
  const Result<token::Statement> said =
      token::check_statement(token::Purpose::notice, notice, node_);
  if (!said) return std::unexpected(said.error());
  return open(*said);
}

Result<cbor::Value> Notices::open_kept(std::span<const uint8_t> notice) {
  const Result<token::Statement> said =
      token::check_statement(token::Purpose::notice, notice, node_);
  if (!said) return std::unexpected(said.error());
  if (said->target.sequence == 0) next_ = said->target;
  return open(*said);
}

Result<cbor::Value> Notices::open(const token::Statement& said) {
  if (said.target.challenge != next_.challenge)
    return fail(ErrorKind::denied, "wrong_challenge",
                fmt::format("a notice of another stream: it answers the challenge {}",
                            hex(said.target.challenge)),
                "somebody else's stands among these, or the first of its stream is missing");
  if (said.target.audience != next_.audience)
    return fail(ErrorKind::denied, "wrong_audience",
                fmt::format("a notice for {}", printable(said.target.audience)),
                "somebody else's stands among these");
  if (said.target.sequence != next_.sequence)
    return fail(
        ErrorKind::denied, "notice_missing",
        fmt::format("notice {} comes where notice {} is due", said.target.sequence, next_.sequence),
        "something was left out, repeated or moved: watch anew");
  ++next_.sequence;
  return cbor::decode(said.content,
                      {.bytes_max = std::max(said.content.size(), content_bytes_max)});
}

}  // namespace holdfast::cli
