#include "userspace/daemon/signed_requests.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/token/signed.hpp"

namespace holdfast {
namespace {

// Requests are made when they are sent, and the clock is the same for both, or nearly so.
constexpr uint64_t age_max_s = 300;

std::unexpected<Error> deny(std::string_view code, std::string what, std::string next_step) {
  return std::unexpected(
      Error{ErrorKind::denied, code, 0, std::move(what), std::move(next_step)});
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
  if (!tokens_.clock_in_doubt() && (header.issued_s > now_s + token::clock_skew_s ||
                                    header.issued_s + age_max_s < now_s))
    return deny("wrong_time", "the request is dated " + rfc3339_utc(header.issued_s * ns_per_s),
                "see whether this machine's clock is right");
  const Result<std::shared_ptr<const token::Anchor>> signer =
      tokens_.signer(header.key, token::Purpose::request);
  if (!signer) return std::unexpected(signer.error());
  const token::Anchor& anchor = **signer;
  if (!token::is_signed_by(anchor.key, token::Purpose::request, *object))
    return deny("bad_signature", "the signature is not the key's", "sign with the key that is named");

  before = false;
  peer.sequence = header.sequence;
  wire::Unsealed unsealed;
  const Result<std::span<const uint8_t>> content = token::content_of(*object, unsealed.unpacked);
  if (!content) return std::unexpected(content.error());
  unsealed.request = *content;
  unsealed.signer = std::make_shared<const wire::Principal>(wire::Principal{
      .name = anchor.issuer,
      .key = anchor.thumbprint,
      .verbs = anchor.verbs,
      .tenants = anchor.tenants,
  });
  return unsealed;
}

Result<wire::Unsealed> SignedRequests::unseal(wire::Peer& peer, std::span<const uint8_t> sealed) {
  bool before = true;
  Result<wire::Unsealed> unsealed = check(peer, sealed, before);
  if (unsealed) {
    ++good_;
    return unsealed;
  }
  const Error& why = unsealed.error();
  ++refused_[why.code];
  log::notice("signed_request_refused",
              {{"reason", why.code}, {"detail", why.message}, {"uid", peer.uid}});
  if (before && peer.role != wire::Role::operates)
    return deny("denied", "this node does not accept that request",
                "an operator sees why in the log, and in `holdfast status`");
  return unsealed;
}

cbor::Value SignedRequests::status() const {
  cbor::Value refused = cbor::Value::map();
  for (const auto& [code, count] : refused_) refused.set(code, count);
  return cbor::Value::map({{"good", good_}, {"refused", std::move(refused)}});
}

}  // namespace holdfast
