// What a scheduler signed, whoever brings it: lease.preempt, and the admission of a grant token.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/verbs.hpp"
#include "userspace/token/schedule.hpp"

namespace holdfast {
namespace {

using cbor::Value;

// So many that come again, because their answer was lost, are told what became of them. Each is
// good for five minutes; one that was forgotten finds its lease in its grace, or none.
constexpr size_t preempts_kept = 1024;

// A scheduler's object of which the signature is good, and nothing of its content has been read.
struct Scheduled {
  std::shared_ptr<const token::Anchor> scheduler;
  uint64_t issued_s = 0;
  std::vector<uint8_t> content;

  bool covers(std::string_view tenant) const {
    return std::ranges::any_of(
        scheduler->tenants, [&](const std::string& each) { return each == "*" || each == tenant; });
  }
};

// `signature_held` says whether what is wrong may be told to whoever asks.
Result<Scheduled> check(const Tokens& tokens, std::span<const uint8_t> bytes,
                        token::Purpose purpose, bool& signature_held) {
  if (bytes.size() > token::schedule_bytes_max)
    return fail(ErrorKind::invalid, "malformed_signed",
                fmt::format("it has {} bytes, and what a scheduler signs {} at the most",
                            bytes.size(), token::schedule_bytes_max),
                "make it as userspace/token/README.md says");
  const Result<token::SignedObject> object = token::take_apart_signed(bytes, purpose);
  if (!object) return std::unexpected(object.error());
  auto scheduler = tokens.judge_kept(*object, purpose, token::schedule_life_max_s);
  if (!scheduler) return pass_on(scheduler);
  signature_held = true;
  std::vector<uint8_t> storage;
  const auto content = token::content_of(*object, storage, token::schedule_bytes_max);
  if (!content) return std::unexpected(content.error());
  return Scheduled{.scheduler = std::move(*scheduler),
                   .issued_s = object->header.issued_s,
                   .content = {content->begin(), content->end()}};
}

Status check_issued(const Tokens& tokens, const Scheduled& scheduled, std::string_view tenant) {
  if (!tokens.is_revoked_before(scheduled.scheduler->issuer, scheduled.issued_s, tenant)) return {};
  return fail(ErrorKind::denied, "revoked",
              fmt::format("what its signer had issued about {} by then is revoked", tenant),
              "holdfast trust show");
}

// As whoever brings it is told.
Error refused(token::Purpose purpose, const Error& why, bool signature_held, bool operates,
              uint32_t uid) {
  log::notice("schedule_refused", {{"what", token::name_of(purpose)},
                                   {"reason", why.code},
                                   {"detail", why.message},
                                   {"uid", uid}});
  if (signature_held || operates) return why;
  return {ErrorKind::denied, "denied", 0, "this node does not accept that signature",
          "an operator sees why in the log"};
}

Scheduling scheduling(const Scheduled& scheduled, std::string reason,
                      std::span<const uint8_t> bytes) {
  return {.scheduler = scheduled.scheduler->issuer,
          .key = hex(scheduled.scheduler->thumbprint),
          .reason = std::move(reason),
          .object = token::to_text(bytes)};
}

// What a preempt says of a lease that its scheduler may speak of.
Result<Preemption> read_preempt(const Tokens& tokens, const Node& node, const Scheduled& scheduled,
                                std::span<const uint8_t> bytes, LeaseId& id) {
  Result<token::Preempt> said = token::decode_preempt(scheduled.content);
  if (!said) return pass_on(said);
  id = LeaseId::of(said->lease);
  const Result<LeaseView> lease = node.lease(id);
  // Of another tenant's lease not even its existence is told.
  if (!lease || !scheduled.covers(lease->tenant)) return std::unexpected(no_such_lease(id));
  if (Status ok = check_issued(tokens, scheduled, lease->tenant); !ok) return pass_on(ok);
  return Preemption{.generation = said->generation,
                    .grace_ns = said->grace_ns,
                    .by = scheduling(scheduled, std::move(said->reason), bytes)};
}

// What an admission says of this grant token.
Result<Scheduling> read_admission(const Tokens& tokens, const token::Verified& grant,
                                  const Scheduled& scheduled, std::span<const uint8_t> bytes) {
  Result<token::Admission> said = token::decode_admission(scheduled.content);
  if (!said) return pass_on(said);
  const std::string& tenant = grant.claims.tenant;
  if (said->token != grant.id || said->tenant != tenant)
    return fail(ErrorKind::denied, "wrong_admission",
                fmt::format("it admits token {} of {}, and this is {} of {}", hex(said->token),
                            said->tenant, hex(grant.id), tenant),
                "sign one for this token: holdfast token admit");
  if (!scheduled.covers(tenant))
    return fail(
        ErrorKind::denied, "tenant_not_allowed",
        fmt::format("the key of {} admits nothing of {}", scheduled.scheduler->issuer, tenant),
        "its anchor lists the tenants it may: holdfast trust show");
  if (Status ok = check_issued(tokens, scheduled, tenant); !ok) return pass_on(ok);
  return scheduling(scheduled, std::move(said->reason), bytes);
}

}  // namespace

// One that comes again, by its outcome.
Verbs::Answer Verbs::preempted_value(const Preempted& preempted) const {
  if (!preempted.outcome)
    return Value::map({{"id", format_lease_id(preempted.lease)}, {"state", "forced_teardown"}});
  if (!*preempted.outcome) return std::unexpected(preempted.outcome->error());
  if (preempted.had_grace && !node_.lease(preempted.lease))
    return Value::map({{"id", format_lease_id(preempted.lease)}, {"state", "expired"}});
  return ending_value(preempted.lease);
}

void Verbs::remember_preempt(std::shared_ptr<const Preempted> preempted) {
  if (preempted_.size() == preempts_kept) preempted_.pop_front();
  preempted_.push_back(std::move(preempted));
}

void Verbs::lease_preempt(const wire::Peer& peer, const wire::Request& request,
                          wire::Responder responder) {
  if (Status ok = request.args.only_keys({"preempt"}); !ok) return responder.fail(ok.error());
  const Result<std::span<const uint8_t>> bytes = request.args.get_bytes("preempt");
  if (!bytes) return responder.fail(bytes.error());
  constexpr auto purpose = token::Purpose::preempt;
  bool signature_held = false;
  const auto refuse = [&](const Error& why) {
    const Error told =
        refused(purpose, why, signature_held, peer.role == wire::Role::operates, peer.uid);
    count_disbelief(peer, told);
    responder.fail(told);
  };
  const Result<Scheduled> scheduled = check(tokens_, *bytes, purpose, signature_held);
  if (!scheduled) return refuse(scheduled.error());
  auto preempted = std::make_shared<Preempted>();
  preempted->digest = token::sha256({*bytes});
  for (const auto& known : preempted_)
    if (known->digest == preempted->digest) {
      const Answer answer = preempted_value(*known);
      return answer ? responder.answer(*answer) : responder.fail(answer.error());
    }
  const Result<Preemption> said =
      read_preempt(tokens_, node_, *scheduled, *bytes, preempted->lease);
  if (!said) return refuse(said.error());
  auto waiting = std::make_shared<wire::Responder>(std::move(responder));
  node_.preempt(preempted->lease, *said, [this, preempted, waiting](const Status& ok) {
    preempted->outcome = ok;
    preempted->had_grace = node_.lease(preempted->lease).has_value();
    ok ? waiting->answer(ending_value(preempted->lease)) : waiting->fail(ok.error());
  });
  // What was refused at once has changed nothing, and may be right later.
  if (!preempted->outcome || *preempted->outcome) remember_preempt(std::move(preempted));
}

Result<std::optional<Scheduling>> Verbs::admission_of(const Actor& presenter, const Value& args,
                                                      const token::Verified& grant) const {
  if (!args.has("admission")) {
    const Tenant* tenant = node_.index().tenant(grant.claims.tenant);
    if (tenant == nullptr || !tenant->admission_required) return std::nullopt;
    return fail(ErrorKind::denied, "admission_required",
                fmt::format("a scheduler has to admit what a token grants {}", tenant->name),
                "bring its admission with the token: lease grant --token FILE --admission FILE");
  }
  const Result<std::span<const uint8_t>> bytes = args.get_bytes("admission");
  if (!bytes) return std::unexpected(bytes.error());
  constexpr auto purpose = token::Purpose::admission;
  bool signature_held = false;
  const Result<Scheduled> scheduled = check(tokens_, *bytes, purpose, signature_held);
  Result<Scheduling> admission = scheduled ? read_admission(tokens_, grant, *scheduled, *bytes)
                                           : std::unexpected(scheduled.error());
  if (admission) return std::optional(std::move(*admission));
  return std::unexpected(
      refused(purpose, admission.error(), signature_held, presenter.operates, presenter.uid));
}

}  // namespace holdfast
