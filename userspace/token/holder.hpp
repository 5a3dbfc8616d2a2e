// A holder proves its key to the node, once for a connection: tokens bound to that key are then
// taken from this connection. Errors: those of the call; denied / not_the_node when neither root
// nor this user made the socket, since whoever does could pass the proof on and be taken for the
// holder.
#pragma once

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"
#include "userspace/token/proof.hpp"
#include "userspace/wire/client.hpp"
#include "userspace/wire/verify_client.hpp"

namespace holdfast::token {

// What the node said at the beginning of a connection, for signatures that are good on it alone.
// `node` points into the hello. Errors: denied / not_the_node when neither root nor this user
// serves the socket; unsupported / unknown_challenge.
Result<ProofPlace> place_of(const cbor::Value& hello, int socket);

Status prove_key(wire::Client& node, const Signer& signer);
Status prove_key(wire::VerifyClient& node, const Signer& signer);

}  // namespace holdfast::token
