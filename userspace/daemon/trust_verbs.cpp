// holder.prove, operator.present, session.challenge, trust.revoke, trust.restore and trust.rotate:
// which key is at the other end, and whose signatures count.
#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/verbs.hpp"
#include "userspace/token/proof.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t tenant_name_bytes_max = 256;

Result<token::Digest> read_key(const Value& args, std::string_view which) {
  const Result<std::string_view> text = args.get_text(which);
  if (!text) return std::unexpected(text.error());
  const auto key = from_hex<sizeof(token::Digest)>(*text);
  if (!key)
    return fail(ErrorKind::invalid, "bad_key",
                fmt::format("\"{}\" is a key's thumbprint: 64 lower hex digits", which),
                "holdfast trust show has them");
  return *key;
}

}  // namespace

Verbs::Answer Verbs::prove_key(wire::Peer& peer, const Value& args) const {
  if (Status ok = args.only_keys({"proof"}); !ok) return pass_on(ok);
  const Result<std::span<const uint8_t>> proof = args.get_bytes("proof");
  if (!proof) return std::unexpected(proof.error());
  const Result<token::Digest> key = token::prove_once(
      peer.proved_key, *proof,
      {.node = tokens_.node(), .epoch = tokens_.epoch(), .challenge = peer.challenge});
  if (!key) return std::unexpected(key.error());
  return Value::map({{"holder", holder_name({Holder::Kind::key, 0, *key})}});
}

Verbs::Answer Verbs::present_grant(wire::Peer& peer, const Value& args) {
  if (Status ok = args.only_keys({"grant"}); !ok) return pass_on(ok);
  const Result<std::span<const uint8_t>> grant = args.get_bytes("grant");
  if (!grant) return std::unexpected(grant.error());
  return signed_requests_.present(peer, *grant);
}

Verbs::Answer Verbs::renew_challenge(wire::Peer& peer) {
  if (Status ok = wire::renew_challenge(peer); !ok) return pass_on(ok);
  return Value::map({{"challenge", Value::Bytes(peer.challenge.begin(), peer.challenge.end())}});
}

// What trust.revoke and trust.restore are about.
Result<token::Revocation> Verbs::read_revocation(const Value& args) {
  if (Status ok = args.only_keys({"what", "tenant", "issued_before_s"}); !ok) return pass_on(ok);
  const Result<std::string_view> what = args.get_text("what");
  if (!what) return std::unexpected(what.error());
  Result<token::Revocation> revocation = token::parse_revocation(*what);
  if (!revocation) return revocation;
  const bool of_issuer = revocation->kind == token::Revocation::Kind::issuer;
  if (!of_issuer && (args.has("tenant") || args.has("issued_before_s")))
    return fail(ErrorKind::invalid, "bad_revocation",
                "a tenant or a time narrows what of an issuer is revoked, and nothing else",
                "leave it out, or name issuer:NAME");
  const Result<std::string_view> tenant = args.get_text_or("tenant", "");
  if (!tenant) return std::unexpected(tenant.error());
  if (tenant->size() > tenant_name_bytes_max)
    return fail(ErrorKind::invalid, "bad_revocation", "no tenant has a name that long",
                "holdfast tenant ls shows them");
  revocation->tenant = *tenant;
  // Of this second, too, since it is not over.
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  const Result<uint64_t> before = args.get_u64_or("issued_before_s", now_s + 1);
  if (!before) return std::unexpected(before.error());
  if (*before > now_s + token::life_max_s)
    return fail(ErrorKind::invalid, "bad_revocation", "that time is more than 5m ahead",
                "revoke the issuer's key: it stays revoked until it is restored");
  if (of_issuer) revocation->issued_before_s = *before;
  return revocation;
}

Verbs::Answer Verbs::trust_revoke(const Value& args) {
  const Result<token::Revocation> revocation = read_revocation(args);
  if (!revocation) return std::unexpected(revocation.error());
  if (revocation->kind == token::Revocation::Kind::retire)
    return fail(ErrorKind::invalid, "bad_revocation",
                "a key retires when another one takes its place, and is not revoked by that",
                "holdfast trust rotate OLD NEW; or revoke the key: key:THUMBPRINT");
  std::optional<uint64_t> tenant_id;
  if (!revocation->tenant.empty()) {
    const Tenant* tenant = node_.index().tenant(revocation->tenant);
    tenant_id = tenant != nullptr ? tenant->id : 0;  // no tenant has that
  }
  // Of a node that left, the leases that run out stand on keys of the bundle that is left, too.
  token::Anchors left;
  if (enrollment_.has_left(node_.policy_digest()))
    left = bundles_.anchors_of(node_.policy_digest()).anchors;
  size_t ended = 0;
  const Status ok = tokens_.revoke(*revocation, [&] {
    if (revocation->kind == token::Revocation::Kind::key) {
      const uint64_t key = Tokens::issuer_of(revocation->digest);
      ended = node_.revoke_issuers([key](uint64_t issuer) { return issuer == key; });
      // What it asked for by the grace of another key stands on that one.
      ended += node_.revoke_all(tokens_.meant_by(*revocation, tenant_id, left));
    } else {
      ended = node_.revoke_all(tokens_.meant_by(*revocation, tenant_id, left));
    }
  });
  ended += trust_changed();
  const std::string what = token::text_of(*revocation);
  node_.journal().record(log::Level::notice, "trust.revoke",
                         {{"what", what}, {"tenant", revocation->tenant}, {"leases_ended", ended}});
  if (!ok) return std::unexpected(ok.error());
  return Value::map({{"what", what}, {"leases_ended", ended}});
}

Verbs::Answer Verbs::trust_restore(const Value& args) {
  const Result<token::Revocation> revocation = read_revocation(args);
  if (!revocation) return std::unexpected(revocation.error());
  if (Status ok = tokens_.restore(*revocation); !ok) return pass_on(ok);
  const std::string what = token::text_of(*revocation);
  node_.journal().record(log::Level::notice, "trust.restore",
                         {{"what", what}, {"tenant", revocation->tenant}});
  return Value::map({{"what", what}});
}

// A key's last minutes: until then it is believed as it was, and what it signed before has ended by
// itself or stands on its successor. So nothing is torn down that was renewed.
Verbs::Answer Verbs::trust_rotate(const Value& args) {
  if (Status ok = args.only_keys({"old", "new", "after_s", "dry_run"}); !ok) return pass_on(ok);
  const Result<token::Digest> old_key = read_key(args, "old");
  if (!old_key) return std::unexpected(old_key.error());
  const Result<token::Digest> new_key = read_key(args, "new");
  if (!new_key) return std::unexpected(new_key.error());
  const Result<uint64_t> after_s = args.has("after_s")
                                       ? args.get_u64("after_s", 1, token::retiring_max_s)
                                       : token::retiring_max_s;
  if (!after_s) return std::unexpected(after_s.error());
  const Result<bool> dry_run = args.get_bool_or("dry_run", false);
  if (!dry_run) return std::unexpected(dry_run.error());
  const Result<uint64_t> end_s = tokens_.rotate(*old_key, *new_key, *after_s, *dry_run);
  if (!end_s) return std::unexpected(end_s.error());
  const std::string until = rfc3339_utc(*end_s * ns_per_s);
  if (!*dry_run)
    node_.journal().record(log::Level::notice, "trust.rotate",
                           {{"old", hex(*old_key)}, {"new", hex(*new_key)}, {"until", until}});
  return Value::map(
      {{"old", hex(*old_key)}, {"new", hex(*new_key)}, {"until", until}, {"dry_run", *dry_run}});
}

void Verbs::end_retired() {
  const std::vector<token::Anchor> retired = tokens_.retire_due();
  if (retired.empty()) return;
  const size_t ended = trust_changed();
  for (const token::Anchor& each : retired)
    node_.journal().record(
        log::Level::notice, "trust.retired",
        {{"issuer", each.issuer}, {"key", hex(each.thumbprint)}, {"leases_ended", ended}});
}

}  // namespace holdfast
