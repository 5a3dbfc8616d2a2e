// operator grant: what a person's key may ask for.
#include <fmt/format.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/token/operator_grant.hpp"
#include "userspace/token/signers.hpp"

namespace holdfast::cli {
namespace {

constexpr size_t key_bytes_max = 65536;

}  // namespace

Result<token::SignerKey> read_signer_key(const std::string& path) {
  const Result<std::string> text = read_file(path, key_bytes_max);
  if (!text) return std::unexpected(text.error());
  if (!text->starts_with("-----BEGIN ")) {
    const Result<token::SignerKey> key = token::parse_ssh_public_key(*text);
    if (!key) return std::unexpected(Error(key.error()).in(path));
    return key;
  }
  const Result<token::PublicKey> key = token::parse_public_key(*text);
  if (!key) return std::unexpected(Error(key.error()).in(path));
  return token::SignerKey{.key = *key};
}

Outcome run_operator_grant(Session& session, const OperatorGrantWords& words) {
  if (::isatty(STDOUT_FILENO) == 1)
    return usage("a grant is not for a terminal", "holdfast operator grant ... > NAME.grant");
  const Result<uint64_t> life_ns = parse_duration(words.life);
  if (!life_ns) return std::unexpected(Error(life_ns.error()).in("--life"));
  if (*life_ns < ns_per_s || *life_ns / ns_per_s > token::operator_grant_life_max_s)
    return usage("--life: an operator grant lives for 1s to 24h", "write it like 8h");
  const Result<token::SignerKey> key = read_signer_key(words.public_key);
  if (!key) return std::unexpected(key.error());
  const Result<std::unique_ptr<token::Signer>> signer = token::open_signer(words.key);
  if (!signer) return std::unexpected(signer.error());
  const Result<std::string> node = session.node_or(words.node);
  if (!node) return std::unexpected(node.error());
  const Result<std::vector<uint8_t>> grant = token::sign_operator_grant(
      **signer, *node, *life_ns / ns_per_s,
      {.name = words.name, .key = *key, .verbs = words.verbs, .tenants = words.tenants});
  if (!grant) return std::unexpected(grant.error());
  session.print({reinterpret_cast<const char*>(grant->data()), grant->size()});
  return ExitCode::done;
}

}  // namespace holdfast::cli
