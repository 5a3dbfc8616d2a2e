// Signed requests, the asking side: what a client sends from then on bears a key's signature.
#pragma once

#include <memory>

#include "userspace/token/signed.hpp"
#include "userspace/wire/client.hpp"

namespace holdfast::token {

// Errors come with the requests: those of place_of() and of the signer.
void sign_requests(wire::Client& node, std::shared_ptr<const Signer> signer);

}  // namespace holdfast::token
