#include "userspace/daemon/signed_requests.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/token/signed.hpp"

namespace holdfast {
namespace {

// Requests are made when they are sent, and the clock is the same for both, or nearly so.
constexpr uint64_t age_max_s = 300;

// What a packed request may become: it is kept whole while it is handled.
constexpr uint64_t unpacked_request_bytes_max = 16ULL << 20;

// Of one connection: a person and, say, a colleague's review.
constexpr size_t delegations_max = 4;

// What both lists name; "*" is every name.
std::vector<std::string> both(const std::vector<std::string>& some,
                              const std::vector<std::string>& others) {
  const auto names = [](const std::vector<std::string>& list, std::string_view name) {
    return std::ranges::find(list, name) != list.end();
  };
  if (names(some, "*")) return others;
  if (names(others, "*")) return some;
  std::vector<std::string> out;
  std::ranges::copy_if(some, std::back_inserter(out),
                       [&](const std::string& each) { return names(others, each); });
  return out;
}

std::unexpected<Error> deny(std::string_view code, std::string what, std::string next_step) {
  return std::unexpected(Error{ErrorKind::denied, code, 0, std::move(what), std::move(next_step)});
}

}  // namespace

Result<wire::Unsealed> SignedRequests::check(wire::Peer& peer, std::span<const uint8_t> sealed,
                                             bool& before) {
  const Result<token::SignedObject> object =
      token::take_apart_signed(sealed, token::Purpose::request);
  if (!object) return std::unexpected(object.error());
  const token::SignedHeader& header = object->header;
  if (header.audience != tokens_.node())
    return deny("wrong_audience", fmt::format("the request is for {}", header.audience),
                "sign for the node of this connection's hello");
  if (header.epoch != tokens_.epoch())
    return deny("stale_epoch",
                fmt::format("it was signed in epoch {}, and the node's is {}", header.epoch,
                            tokens_.epoch()),
                "connect anew");
  if (header.challenge != peer.challenge)
    return deny("wrong_challenge", "the request was signed for another connection",
                "sign the challenge of this connection's hello");
  if (header.sequence <= peer.sequence)
    return deny("old_sequence",
                fmt::format("its sequence is {}, and {} has been", header.sequence, peer.sequence),
                "count up from 1, one for each request");
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  // With a clock in doubt its date says nothing, and the connection says it all.
  if (!tokens_.clock_in_doubt() &&
      (header.issued_s > now_s + token::clock_skew_s || header.issued_s + age_max_s < now_s))
    return deny("wrong_time", "the request is dated " + rfc3339_utc(header.issued_s * ns_per_s),
                "see whether this machine's clock is right");
  Result<Signed> signer = signer_of(peer, header.key);
  if (!signer) return pass_on(signer);
  if (!token::is_signed_by(signer->key, token::Purpose::request, *object))
    return deny("bad_signature", "the signature is not the key's",
                "sign with the key that is named");

  before = false;
  peer.sequence = header.sequence;
  wire::Unsealed unsealed;
  const Result<std::span<const uint8_t>> content =
      token::content_of(*object, unsealed.unpacked, unpacked_request_bytes_max);
  if (!content) return std::unexpected(content.error());
  unsealed.request = *content;
  unsealed.signer = std::make_shared<const wire::Principal>(std::move(signer->principal));
  peer.signer = unsealed.signer;
  tokens_.note_use(unsealed.signer->by.value_or(unsealed.signer->key));
  return unsealed;
}

Result<SignedRequests::Signed> SignedRequests::signer_of(const wire::Peer& peer,
                                                         const token::Digest& key) const {
  if (tokens_.is_revoked(key) || tokens_.is_dead(key))
    return deny("key_not_live", "the key that signed may sign no more", "holdfast trust show");
  for (const wire::Delegation& each : peer.delegations) {
    if (each.principal.key != key || each.expires_boot_ns <= boot_now_ns()) continue;
    const auto by = tokens_.signer(*each.principal.by, token::Purpose::operator_grant);
    if (!by) return std::unexpected(by.error());
    if (tokens_.is_revoked_before((*by)->issuer, each.issued_s))
      return deny("revoked", "what its signer had granted by then is revoked",
                  "holdfast trust show");
    Signed found{.key = {each.public_key, each.application}, .principal = each.principal};
    found.principal.verbs = both(each.principal.verbs, (*by)->verbs);
    found.principal.tenants = both(each.principal.tenants, (*by)->tenants);
    found.principal.life_max_ns = (*by)->life_max_s * ns_per_s;
    return found;
  }
  const auto anchor = tokens_.signer(key, token::Purpose::request);
  if (!anchor) return std::unexpected(anchor.error());
  return Signed{.key = signer_key(**anchor),
                .principal = {.name = (*anchor)->issuer,
                              .key = key,
                              .verbs = (*anchor)->verbs,
                              .tenants = (*anchor)->tenants,
                              .life_max_ns = (*anchor)->life_max_s * ns_per_s}};
}

Result<wire::Principal> SignedRequests::principal(const wire::Peer& peer,
                                                  const token::Digest& key) const {
  Result<Signed> signer = signer_of(peer, key);
  if (!signer) return pass_on(signer);
  return std::move(signer->principal);
}

Result<cbor::Value> SignedRequests::check_grant(wire::Peer& peer, std::span<const uint8_t> grant,
                                                bool& before) {
  constexpr auto purpose = token::Purpose::operator_grant;
  const Result<token::SignedObject> object = token::take_apart_signed(grant, purpose);
  if (!object) return std::unexpected(object.error());
  const auto signer = tokens_.judge_kept(*object, purpose, token::operator_grant_life_max_s);
  if (!signer) return std::unexpected(signer.error());
  before = false;
  std::vector<uint8_t> storage;
  const auto content = token::content_of(*object, storage);
  if (!content) return std::unexpected(content.error());
  Result<token::OperatorGrant> said = token::decode_operator_grant(*content);
  if (!said) return pass_on(said);
  const token::Digest key = token::thumbprint(said->key.key);
  const uint64_t now_ns = boot_now_ns();
  std::erase_if(peer.delegations, [&](const wire::Delegation& each) {
    return each.principal.key == key || each.expires_boot_ns <= now_ns;
  });
  if (peer.delegations.size() >= delegations_max)
    return fail(ErrorKind::exhausted, "delegations_max",
                fmt::format("this connection has {} operator grants already", delegations_max),
                "connect once for each");
  const token::SignedHeader& header = object->header;
  const std::string expires = rfc3339_utc(header.expires_s * ns_per_s);
  log::notice("operator_grant", {{"operator", said->name},
                                 {"by", (*signer)->issuer},
                                 {"expires", expires},
                                 {"uid", peer.uid}});
  peer.delegations.push_back(
      {.principal = {.name = said->name,
                     .key = key,
                     .verbs = std::move(said->verbs),
                     .tenants = std::move(said->tenants),
                     .by = header.key},
       .public_key = said->key.key,
       .application = said->key.application,
       .issued_s = header.issued_s,
       .expires_boot_ns = now_ns + (header.expires_s * ns_per_s - wall_now_ns())});
  return cbor::Value::map({{"operator", said->name}, {"expires", expires}});
}

Result<cbor::Value> SignedRequests::present(wire::Peer& peer, std::span<const uint8_t> grant) {
  bool before = true;
  Result<cbor::Value> told = check_grant(peer, grant, before);
  if (told) return told;
  return refuse(peer, told.error(), before);
}

std::unexpected<Error> SignedRequests::refuse(const wire::Peer& peer, const Error& why,
                                              bool before) {
  ++refused_[why.code];
  log::notice("signed_request_refused",
              {{"reason", why.code}, {"detail", why.message}, {"uid", peer.uid}});
  if (before && peer.role != wire::Role::operates)
    return deny("denied", "this node does not accept that signature",
                "an operator sees why in the log, and in `holdfast status`");
  return std::unexpected(why);
}

Result<wire::Unsealed> SignedRequests::unseal(wire::Peer& peer, std::span<const uint8_t> sealed) {
  bool before = true;
  Result<wire::Unsealed> unsealed = check(peer, sealed, before);
  if (!unsealed) return refuse(peer, unsealed.error(), before);
  ++good_;
  return unsealed;
}

cbor::Value SignedRequests::status() const {
  cbor::Value refused = cbor::Value::map();
  for (const auto& [code, count] : refused_) refused.set(code, count);
  return cbor::Value::map({{"good", good_}, {"refused", std::move(refused)}});
}

}  // namespace holdfast
