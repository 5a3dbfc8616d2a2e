// Signed requests at the daemon: whether a key that may ask signed exactly this, for this
// connection, and only once. The checks go from cheap to dear, the first that fails is the answer,
// and of what was signed nothing is read before the signature is good.
//
// Nothing has to be remembered against replays: the connection's challenge is random, and its
// sequence only rises.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string_view>

#include "userspace/base/result.hpp"
#include "userspace/daemon/tokens.hpp"
#include "userspace/token/operator_grant.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/server.hpp"

namespace holdfast {

class SignedRequests {
 public:
  explicit SignedRequests(const Tokens& tokens) : tokens_(tokens) {}

  // Refusals are counted by code, and logged. Errors: invalid or denied, with what is wrong as
  // code; what was wrong before the signature held is told to operators only, others read `denied`.
  Result<wire::Unsealed> unseal(wire::Peer& peer, std::span<const uint8_t> sealed);

  // Whose the key is on this connection, and what it may ask for, now.
  Result<wire::Principal> principal(const wire::Peer& peer, const token::Digest& key) const;
  // operator.present: an operator grant, for requests by the key that it names, on this connection
  // and until it expires. What it grants is what both it and its signer list, at each request.
  Result<cbor::Value> present(wire::Peer& peer, std::span<const uint8_t> grant);

  // {"good": n, "refused": {code: n}}
  cbor::Value status() const;

 private:
  struct Signed {
    token::SignerKey key;
    wire::Principal principal;
  };
  // Who may sign requests with this key on this connection.
  Result<Signed> signer_of(const wire::Peer& peer, const token::Digest& key) const;
  // Nothing in these is believed yet. `before` becomes false once the signature held.
  Result<wire::Unsealed> check(wire::Peer& peer, std::span<const uint8_t> sealed, bool& before);
  Result<cbor::Value> check_grant(wire::Peer& peer, std::span<const uint8_t> grant, bool& before);
  std::unexpected<Error> refuse(const wire::Peer& peer, const Error& why, bool before);

  const Tokens& tokens_;
  uint64_t good_ = 0;
  std::map<std::string_view, uint64_t> refused_;  // by code, of which there are a few
};

}  // namespace holdfast
