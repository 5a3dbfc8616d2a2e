// bundle.push and bundle.show: a policy as a file, or as a signed bundle, put in force whole or not
// at all.
#include <algorithm>

#include <fmt/format.h>

#include "policy/parse.hpp"
#include "policy/render.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t changes_told_max = 1000;
constexpr size_t piece_bytes_max = size_t{512} << 10;  // of a policy; a line has a few KiB at most

// As change_policy() makes it: control.policy_digest.
token::Digest digest_of(const Policy& policy) {
  const std::string text = render_policy_json(policy);
  return token::sha256({{reinterpret_cast<const uint8_t*>(text.data()), text.size()}});
}

}  // namespace

Value Verbs::pushed(const PushOutcome& outcome, uint64_t generation) const {
  // A policy of the largest size may change in more places than fit a reply.
  const size_t told = std::min(outcome.changes.size(), changes_told_max);
  Value changes = Value::array();
  for (size_t i = 0; i < told; ++i) changes.push(outcome.changes[i]);
  Value dark = Value::array();
  for (const auto& [name, error] : outcome.dark) dark.push(error_value(name, error));
  return Value::map({{"applied", outcome.applied},
                     {"generation", generation},
                     {"digest", hex(node_.plane().banks.control().policy_digest)},
                     {"changes", std::move(changes)},
                     {"changes_more", outcome.changes.size() - told},
                     {"leases_ended", outcome.leases_ended},
                     {"dark", std::move(dark)}});
}

Verbs::Answer Verbs::bundle_push(const wire::Peer& peer, const wire::Request& request) {
  if (Status ok = request.args.only_keys({"file", "dry_run", "signed"}); !ok) return pass_on(ok);
  if (!request.has_body)
    return fail(ErrorKind::invalid, "no_body",
                "bundle.push takes the policy file, or a signed bundle, as its body");
  const Result<std::string_view> file = request.args.get_text_or("file", "policy");
  if (!file) return std::unexpected(file.error());
  const Result<bool> dry_run = request.args.get_bool_or("dry_run", false);
  if (!dry_run) return std::unexpected(dry_run.error());
  const Result<bool> is_signed = request.args.get_bool_or("signed", false);
  if (!is_signed) return std::unexpected(is_signed.error());
  if (Status ok = enrollment_.may_push(); !ok) return pass_on(ok);
  if (*is_signed) return push_signed(peer, request, *file, *dry_run);
  if (tokens_.takes_signed_bundles_only())
    return fail(ErrorKind::denied, "signature_required",
                enrollment_.root() ? "this node is enrolled: it takes what its root has signed"
                                   : "this node takes signed bundles: an anchor has the use "
                                     "\"bundle\"",
                "sign it: holdfast bundle sign");
  const std::string_view text(reinterpret_cast<const char*>(request.body.data()),
                              request.body.size());
  Result<Policy> policy = parse_policy(text, *file);
  if (!policy) return pass_on(policy);
  const uint64_t generation = policy->generation;
  const Result<PushOutcome> outcome = node_.push_policy(std::move(*policy), *dry_run);
  if (!*dry_run) end_orphans();  // an enrollment may have been left behind by it
  if (!outcome) return std::unexpected(outcome.error());
  return pushed(*outcome, generation);
}

// Who may read here, or signs for all tenants, is told what changed; who only delivers is not.
bool Verbs::may_read_all(const wire::Peer& peer, const wire::Request& request) {
  return request.signer != nullptr ? request.signer->covers_all() : peer.role != wire::Role::none;
}

Status Verbs::read_policy(BelievedBundle& bundle, std::string_view file, Policy& policy) const {
  Result<Policy> read = parse_policy(bundle.policy, file);
  if (!read) return pass_on(read);
  if (read->generation != bundle.record.generation)
    return fail(ErrorKind::invalid, "generation_differs",
                fmt::format("the bundle has generation {}, and its policy {}",
                            bundle.record.generation, read->generation),
                "sign it again: holdfast bundle sign");
  if (enrollment_.root() || enrollment_.is_pending())
    if (Status ok = enrollment_.covers(*read); !ok) return ok;
  policy = std::move(*read);
  bundle.record.policy_digest = digest_of(policy);
  // Nothing that a quarantine is to stop comes in with the keys of a bundle.
  const BundleRecord* former = bundles_.of(node_.policy_digest());
  if (!bundle.record.anchors.empty() &&
      (former == nullptr || bundle.record.anchors != former->anchors))
    return node_.may_widen("bundle.push");
  return {};
}

Result<BelievedBundle> Verbs::believe_bundle(const wire::Peer& peer, const wire::Request& request,
                                             std::string_view file, Policy& policy) const {
  // Where policies have to be signed, what is in force is a floor by itself, should the record be
  // lost.
  const Bundles::InForce now{
      .generation = tokens_.takes_signed_bundles_only() ? node_.policy().generation : 0,
      .policy_digest = node_.policy_digest()};
  bool signature_held = false;
  Result<BelievedBundle> bundle = bundles_.check(request.body, tokens_, now, signature_held);
  if (bundle && !bundle->is_in_force)
    if (Status ok = read_policy(*bundle, file, policy); !ok) bundle = pass_on(ok);
  if (bundle) return bundle;
  const Error& why = bundle.error();
  log::notice("bundle_refused", {{"reason", why.code}, {"detail", why.message}, {"uid", peer.uid}});
  if (!signature_held && peer.role != wire::Role::operates)
    return fail(ErrorKind::denied, "denied", "this node does not accept that bundle",
                "an operator sees why in the log");
  return bundle;
}

Result<PushOutcome> Verbs::put_in_force(const wire::Peer& peer, const BelievedBundle& bundle,
                                        Policy policy, const token::SignedHeader* enrolling) {
  const auto take_back = [this] {
    if (Status back = bundles_.take_back(); !back)
      log::error("bundle_record_not_written", {{"cause", back.error().text()}});
  };
  BundleRecord record = bundle.record;
  record.enrolled = enrolling != nullptr || enrollment_.root();
  // The floor first: whatever becomes of us, nothing older is put in force after any of this was.
  if (Status ok = bundles_.remember(std::move(record), node_.policy_digest()); !ok)
    return pass_on(ok);
  if (enrolling != nullptr)
    if (Status ok = enrollment_.offer(*enrolling); !ok) {
      take_back();
      return pass_on(ok);
    }
  const Policy* const policy_before = &node_.policy();
  Result<PushOutcome> pushed = node_.push_policy(std::move(policy), false);
  // A push may fail when it is in force already, over what comes after.
  if (&node_.policy() == policy_before) {
    if (enrolling != nullptr)
      if (Status back = enrollment_.take_back(); !back)
        log::error("enrollment_not_written", {{"cause", back.error().text()}});
    take_back();
    return pushed;
  }
  if (enrolling != nullptr) {
    // Where the policy would not survive a restart, the root must not either.
    enrollment_.accept(pushed.has_value(), wall_now_ns() / ns_per_s, peer.uid);
    tokens_.believe_root(enrollment_.root());
  }
  tokens_.use_bundle_anchors(enrollment_.anchors_of(bundles_, node_.policy_digest()));
  trust_changed();
  node_.journal().record(log::Level::notice, "policy.bundle",
                         {{"generation", bundle.record.generation},
                          {"bundle_signer", bundle.record.signer},
                          {"bundle", hex(bundle.record.digest)}});
  return pushed;
}

Verbs::Answer Verbs::push_signed(const wire::Peer& peer, const wire::Request& request,
                                 std::string_view file, bool dry_run) {
  const bool told = may_read_all(peer, request);
  if (dry_run && !told)
    return fail(ErrorKind::denied, "not_in_group",
                fmt::format("uid {} may not read what a push would change", peer.uid),
                "join group holdfast, or push it");
  Policy policy;
  Result<BelievedBundle> bundle = believe_bundle(peer, request, file, policy);
  if (!bundle) return std::unexpected(bundle.error());
  PushOutcome outcome;
  if (!bundle->is_in_force) {
    Result<PushOutcome> pushed = dry_run ? node_.push_policy(std::move(policy), true)
                                         : put_in_force(peer, *bundle, std::move(policy), nullptr);
    if (!pushed) {
      const Error& why = pushed.error();
      log::notice("push_failed", {{"reason", why.code}, {"detail", why.message}});
      if (!told)
        return std::unexpected(Error{why.kind, why.code, 0, "the bundle was not put in force whole",
                                     "an operator sees why in the log"});
      return std::unexpected(why);
    }
    outcome = std::move(*pushed);
  }
  if (!told) outcome.changes.clear(), outcome.dark.clear();
  Value reply = pushed(outcome, bundle->record.generation);
  reply.set("bundle", hex(bundle->record.digest));
  reply.set("signer", bundle->record.signer);
  return reply;
}

// Whose signatures count has changed: leases whose issuer's do not count any more end, and so do
// streams that were begun by such a signature.
size_t Verbs::trust_changed() {
  const size_t ended = end_orphans();
  end_bearers();
  const Error why{ErrorKind::denied, "trust_changed", 0,
                  "whose signatures count here has changed since this began", "ask again"};
  const auto is_over = [this](const wire::Principal* signer, std::string_view verb) {
    if (signer == nullptr || signer->is_bearer) return false;
    const auto anchor = tokens_.signer(signer->key, token::Purpose::request);
    if (!anchor) return true;
    wire::Principal now = *signer;
    now.verbs = (*anchor)->verbs;
    now.tenants = (*anchor)->tenants;
    return !now.may_ask(verb) || !now.covers_all();
  };
  std::erase_if(followers_, [&](const Follower& follower) {
    const bool over = is_over(follower.signer.get(), "drops.follow");
    if (over) follower.responder->fail(why);
    return over;
  });
  watch_.end_those([&](const wire::Principal* signer) { return is_over(signer, "watch"); }, why);
  return ended;
}

size_t Verbs::end_orphans() {
  if (enrollment_.has_left(node_.policy_digest())) {
    // What stood on a root that was revoked ends with it, also when that has been left.
    const BundleRecord* bundle = bundles_.of(node_.policy_digest());
    const bool revoked =
        tokens_.is_revoked(enrollment_.record().left) ||
        (bundle != nullptr && tokens_.is_revoked_before(bundle->signer, bundle->issued_s));
    if (!enrollment_.ends_leases() && !revoked) return 0;
    return node_.revoke_all([](const abi::lease_record&) { return true; });
  }
  const size_t ended =
      node_.revoke_issuers([this](uint64_t issuer) { return tokens_.is_orphan(issuer); });
  if (ended != 0) log::notice("issuer_not_live", {{"leases_ended", ended}});
  return ended;
}

// A large policy comes in pieces of whole lines: "next" is where the next one begins. Between two
// of them another policy may have come into force; the digest tells.
Verbs::Answer Verbs::bundle_show(const Value& args) const {
  if (Status ok = args.only_keys({"cursor"}); !ok) return pass_on(ok);
  const Result<uint64_t> cursor = args.get_u64_or("cursor", 0);
  if (!cursor) return std::unexpected(cursor.error());
  const BundleRecord* bundle = bundles_.of(node_.policy_digest());
  const std::string text = render_policy_json(node_.policy(), JsonLayout::indented);
  const size_t from = std::min<uint64_t>(*cursor, text.size());
  size_t to = text.size();
  if (to - from > piece_bytes_max) to = text.rfind('\n', from + piece_bytes_max) + 1;
  return Value::map({{"generation", node_.policy().generation},
                     {"digest", hex(node_.plane().banks.control().policy_digest)},
                     {"floor", bundles_.last().generation},
                     {"signed", bundle == nullptr ? Value()
                                                  : Value::map({{"generation", bundle->generation},
                                                                {"bundle", hex(bundle->digest)},
                                                                {"signer", bundle->signer},
                                                                {"key", hex(bundle->key)}})},
                     {"policy", text.substr(from, to - from)},
                     {"next", to < text.size() ? Value(to) : Value()}});
}

}  // namespace holdfast
