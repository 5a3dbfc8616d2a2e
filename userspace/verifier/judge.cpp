#include "userspace/verifier/judge.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "policy/decide.hpp"
#include "userspace/base/clock.hpp"

namespace holdfast {
namespace {

using token::Refusal;
using wire::Verdict;

constexpr size_t checks_per_batch = 16;  // more of them wait for memory at once than it serves

// A check of a batch. `why` no_lease: its lease is still to be looked for.
struct Asked {
  wire::Check check;
  Refusal why = Refusal::no_lease;
  uint64_t name = 0;
};

Verdict refused(Refusal why) {
  return {.reason = 1 + static_cast<uint64_t>(why)};
}

// Whether a token that names "web" or "web@10.1.0.2" speaks for "web@10.1.0.2:443".
bool covers(const token::NamesView& names, std::string_view resource) {
  return !names.all([&](std::string_view name) {
    const bool same_or_part =
        resource.starts_with(name) &&
        (resource.size() == name.size() || resource[name.size()] == '@' ||
         (resource[name.size()] == ':' && name.find('@') != std::string_view::npos));
    return !same_or_part;
  });
}

bool covers(const token::ClaimsView& claims, std::string_view resource) {
  constexpr std::string_view egress = "egress:";
  if (resource.starts_with(egress)) return claims.egress.has(resource.substr(egress.size()));
  return covers(claims.endpoints, resource);
}

// `named`: whom a relying service says it was shown by; empty: the asker itself.
bool is_holder(const token::ClaimsView& claims, std::string_view named, const Asker& asker) {
  if (claims.holder_key)
    return named.empty() ? asker.proved_key == claims.holder_key
                         : named == holder_name({Holder::Kind::key, 0, *claims.holder_key});
  if (claims.holder.empty()) return true;
  return named.empty() ? std::ranges::find(asker.names, claims.holder) != asker.names.end()
                       : named == claims.holder;
}

// Whether no token is good any more in the hand of who shows it. One that names no holder is its
// presenter's.
bool is_revoked(const token::Revocations& revoked, const token::ClaimsView& claims,
                std::string_view named, const Asker& asker) {
  if (!named.empty()) return revoked.has_holder(named);
  const bool bearers = claims.holder.empty() && !claims.holder_key;
  return (bearers && !asker.cgroups_known && revoked.has_cgroups()) ||
         std::ranges::any_of(asker.names,
                             [&](const std::string& name) { return revoked.has_holder(name); });
}

bool is_lease(const token::LeaseId& id, const Slots::Reading& there) {
  const auto word = [&](size_t at) {
    uint64_t value = 0;
    for (size_t i = 0; i < 8; ++i) value = value << 8 | id[at + i];
    return value;
  };
  return word(0) == there.lease_id[0] && word(8) == there.lease_id[1];
}

// All but the lease: that is looked for next.
Refusal judge_use(const wire::Check& check, const token::Item& item, const VerifierState& state,
                  const token::Beliefs& beliefs, const Asker& asker) {
  const token::ClaimsView& claims = item.said;
  if (item.head->kind != token::Kind::use) return Refusal::wrong_kind;
  if (!check.presenter.empty() && !asker.relying) return Refusal::not_relying;
  if (!is_holder(claims, check.presenter, asker)) return Refusal::wrong_holder;
  if (is_revoked(beliefs.revoked, claims, check.presenter, asker)) return Refusal::revoked;
  if (!claims.operations.has(check.operation)) return Refusal::operation_not_named;
  if (!covers(claims, check.resource)) return Refusal::resource_not_named;
  if (state.clock_in_doubt.load(std::memory_order_relaxed)) return Refusal::clock_suspect;
  return Refusal::no_lease;
}

}  // namespace

Result<std::vector<uint8_t>> take_proof(const wire::Datagram& frame, const token::Beliefs& beliefs,
                                        Asker& asker) {
  Result<token::Digest> key = token::prove_once(
      asker.proved_key, frame.body,
      {.node = beliefs.node, .epoch = beliefs.epoch, .challenge = asker.challenge});
  if (!key) return pass_on(key);
  asker.names.push_back(holder_name({Holder::Kind::key, 0, *key}));
  std::vector<uint8_t> body;
  cbor::Writer(body).bytes(*key);
  std::vector<uint8_t> answer;
  wire::append_frame(answer, wire::FrameType::proved, 0, frame.request_id, body);
  return answer;
}

FrameJudge::FrameJudge(uint32_t request_id, std::span<const uint8_t> body)
    : request_id_(request_id), in_(body) {}

Verdict FrameJudge::judge_lease(uint64_t name, const token::Item& item,
                                const VerifierState& state) const {
  const token::ClaimsView& claims = item.said;
  uint32_t slot = 0;
  std::optional<Slots::Reading> lease;
  const bool found = state.names.find(name, [&](uint32_t candidate) {
    slot = candidate;
    lease = state.slots.read(slot);
    return lease && is_lease(claims.lease->id, *lease);
  });
  if (!found || lease->deadline_boot_ns <= boot_ns_ ||
      state.tenants[lease->tenant].epoch != lease->tenant_epoch)
    return refused(Refusal::no_lease);
  if (lease->generation != claims.lease->generation) return refused(Refusal::old_generation);
  // A frame may take so long that a token which was good when its head was looked up is so no more.
  const uint64_t token_ends_ns = item.expires_s * ns_per_s + boot_less_wall_ns_;
  if (token_ends_ns <= boot_ns_) return refused(Refusal::expired);
  return {.reason = 0,
          .slot = slot,
          .generation = lease->generation,
          .valid_until_boot_ns = std::min(lease->deadline_boot_ns, token_ends_ns)};
}

bool FrameJudge::go_on(token::Checker& checker, const VerifierState& state,
                       const token::Beliefs& beliefs, const Asker& asker, uint64_t budget_ns,
                       VerdictCounts& counts) {
  if (!begun_) {
    begun_ = true;
    heads_.reserve(std::min<uint64_t>(in_.heads(), wire::check_heads_max));
    for (wire::CheckHead head; in_.next_head(head);) {
      heads_.push_back({.header = head.header, .signature = head.signature.first<64>()});
      checker.expect(heads_.back());
    }
    verdicts_.reserve(std::min<uint64_t>(in_.begin_checks(), wire::checks_max));
  }
  // What a frame's heads were found to be holds under the beliefs they were judged by.
  if (judged_by_ != 0 && judged_by_ != beliefs.version)
    for (token::FramedHead& head : heads_)
      head = {.header = head.header, .signature = head.signature};
  judged_by_ = beliefs.version;
  wall_ns_ = wall_now_ns();
  boot_ns_ = boot_now_ns();
  boot_less_wall_ns_ = boot_ns_ - wall_ns_;
  const uint64_t ends = boot_ns_ + budget_ns;
  std::array<token::Item, checks_per_batch> items;
  std::array<Asked, checks_per_batch> asked;
  for (bool more = true; more;) {
    size_t count = 0;
    while (count < checks_per_batch && (more = in_.next(asked[count].check))) {
      const wire::Check& check = asked[count].check;
      items[count].head = &heads_[check.head];
      items[count].index = check.index;
      items[count].path = check.path;
      items[count].claims = check.claims;
      ++count;
    }
    if (!in_.ok()) break;
    checker.check(std::span(items).first(count), beliefs, wall_ns_ / ns_per_s);
    // Where memory is asked for nothing else is done: the requests then wait together, and what
    // follows runs meanwhile.
    for (size_t i = 0; i < count; ++i)
      if (items[i].verdict)
        asked[i].name = state.names.hash(items[i].said.tenant, asked[i].check.resource);
    for (size_t i = 0; i < count; ++i)
      if (items[i].verdict) state.names.ask_for(asked[i].name);
    for (size_t i = 0; i < count; ++i)
      asked[i].why = items[i].verdict ? judge_use(asked[i].check, items[i], state, beliefs, asker)
                                      : items[i].verdict.error().why;
    for (size_t i = 0; i < count; ++i)
      if (asked[i].why == Refusal::no_lease)
        state.names.find(asked[i].name, [&](uint32_t slot) {
          state.slots.ask_for(slot);
          return true;
        });
    boot_ns_ = boot_now_ns();
    for (size_t i = 0; i < count; ++i) {
      const Refusal why = asked[i].why;
      Verdict verdict =
          why == Refusal::no_lease ? judge_lease(asked[i].name, items[i], state) : refused(why);
      ++counts[verdict.reason];
      if (token::is_before_signature(why) && !asker.relying) verdict = refused(Refusal::denied);
      verdicts_.push_back(verdict);
    }
    if (more && boot_ns_ >= ends) return false;
  }
  malformed_ = !in_.finish();
  return true;
}

std::vector<uint8_t> FrameJudge::answer() {
  std::vector<uint8_t> body;
  std::vector<uint8_t> frame;
  if (malformed_) {
    const Error error = in_.error();
    body = cbor::encode(wire::encode_error(error, wire::default_retry(error)));
    wire::append_frame(frame, wire::FrameType::error, 0, request_id_, body);
    return frame;
  }
  cbor::Writer out(body);
  out.array(verdicts_.size());
  for (const Verdict& each : verdicts_) wire::write_verdict(out, each);
  out.end();
  wire::append_frame(frame, wire::FrameType::verdicts, 0, request_id_, body);
  return frame;
}

}  // namespace holdfast
