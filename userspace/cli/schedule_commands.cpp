// lease preempt, token admit: what a scheduler signs.
#include <span>

#include <fmt/format.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"
#include "userspace/token/schedule.hpp"
#include "userspace/token/signers.hpp"
#include "userspace/token/token.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

Result<uint64_t> life_option(const std::string& text) {
  const Result<uint64_t> ns = parse_duration(text);
  if (!ns) return std::unexpected(Error(ns.error()).in("--life"));
  if (*ns < ns_per_s || *ns / ns_per_s > token::schedule_life_max_s)
    return usage("--life: it may be brought for 1s to 300s", "write it like 5m");
  return *ns / ns_per_s;
}

Status print_signed(Session& session, std::span<const uint8_t> bytes) {
  if (::isatty(STDOUT_FILENO) == 1)
    return usage("what is signed is not for a terminal", "redirect it to a file");
  session.print({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return {};
}

// To a file, or to who reads the standard output.
Status write_out(Session& session, const std::string& path, std::span<const uint8_t> bytes) {
  if (path == "-") return print_signed(session, bytes);
  return write_file(path, bytes);
}

// That of the lease as the node has it now.
Result<uint64_t> generation_of(Session& session, const PreemptWords& words) {
  if (words.generation) return *words.generation;
  const Result<Value> lease = session.call("lease.show", Value::map({{"id", words.id}}));
  if (!lease) return std::unexpected(lease.error());
  return number_of(*lease, "generation");
}

Result<std::vector<uint8_t>> signed_preempt(Session& session, const PreemptWords& words) {
  if (words.id.empty() || words.reason.empty() || words.key.empty())
    return usage("lease preempt: which lease, why, and by whose key?",
                 "give its id, --reason and --key; or what was signed, with --file");
  token::Preempt preempt;
  const auto id = from_hex<sizeof(preempt.lease)>(words.id);
  if (!id) return usage("the lease is not 32 hexadecimal digits", "as holdfast lease ls shows it");
  preempt.lease = *id;
  preempt.reason = words.reason;
  const Result<std::optional<uint64_t>> grace_ns = grace_option(words.grace);
  if (!grace_ns) return std::unexpected(grace_ns.error());
  preempt.grace_ns = *grace_ns;
  const Result<uint64_t> life_s = life_option(words.life);
  if (!life_s) return std::unexpected(life_s.error());
  const Result<std::unique_ptr<token::Signer>> signer = token::open_signer(words.key);
  if (!signer) return std::unexpected(signer.error());
  const Result<uint64_t> generation = generation_of(session, words);
  if (!generation) return std::unexpected(generation.error());
  preempt.generation = *generation;
  const Result<std::string> node = session.node_or(words.node);
  if (!node) return std::unexpected(node.error());
  return token::sign_preempt(**signer, *node, *life_s, preempt);
}

Result<std::vector<uint8_t>> preempt_of_file(const PreemptWords& words) {
  if (!words.id.empty() || !words.reason.empty() || !words.key.empty() || !words.grace.empty() ||
      !words.node.empty() || !words.out.empty() || words.generation)
    return usage("--file says all, and the command line says something too",
                 "leave out the lease and every other option");
  const Result<std::string> text = read_file(words.file, token::schedule_bytes_max);
  if (!text) return std::unexpected(text.error());
  const std::span<const uint8_t> bytes = bytes_of(*text);
  return std::vector<uint8_t>(bytes.begin(), bytes.end());
}

}  // namespace

Outcome run_lease_preempt(Session& session, const PreemptWords& words) {
  Result<std::vector<uint8_t>> preempt =
      words.file.empty() ? signed_preempt(session, words) : preempt_of_file(words);
  if (!preempt) return pass_on(preempt);
  if (!words.out.empty()) {
    if (Status ok = write_out(session, words.out, *preempt); !ok) return pass_on(ok);
    return ExitCode::done;
  }
  const Result<Value> reply =
      session.call("lease.preempt", Value::map({{"preempt", std::move(*preempt)}}));
  if (!reply) return std::unexpected(reply.error());
  print_ending(session, *reply);
  return ExitCode::done;
}

Outcome run_token_admit(Session& session, const TokenAdmitWords& words) {
  const Result<uint64_t> life_s = life_option(words.life);
  if (!life_s) return std::unexpected(life_s.error());
  const Result<std::vector<uint8_t>> token = read_token(words.file);
  if (!token) return std::unexpected(token.error());
  const token::Checked<token::Parts> parts = token::take_apart(*token);
  const auto refuse = [&](std::string why) -> Outcome {
    return fail(ErrorKind::invalid, "no_grant_token",
                fmt::format("{}: {}", shown_name(words.file), why),
                "give a grant token, as holdfast token issue printed it");
  };
  if (!parts) return refuse(std::string(token::describe(parts.error().why)));
  if (parts->head.kind != token::Kind::grant)
    return refuse(fmt::format("that is a {} token", token::name_of(parts->head.kind)));
  const Result<token::ClaimsView> claims = token::decode_claims(parts->claims, parts->head.kind);
  if (!claims) return std::unexpected(claims.error());
  const Result<std::unique_ptr<token::Signer>> signer = token::open_signer(words.key);
  if (!signer) return std::unexpected(signer.error());
  const Result<std::vector<uint8_t>> admission =
      token::sign_admission(**signer, parts->head.audience, *life_s,
                            {.token = token::leaf_hash(parts->claims),
                             .tenant = std::string(claims->tenant),
                             .reason = words.reason});
  if (!admission) return std::unexpected(admission.error());
  if (Status ok = print_signed(session, *admission); !ok) return pass_on(ok);
  return ExitCode::done;
}

}  // namespace holdfast::cli
