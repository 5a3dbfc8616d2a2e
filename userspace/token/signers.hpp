// Keys that sign, wherever they are.
#pragma once

#include <memory>
#include <string>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"

namespace holdfast::token {

// `name` is the path of an Ed25519 key in PEM; or of one of OpenSSH's, secret or .pub, with which
// ssh-keygen signs: so keys in ssh-agent and in security keys serve, and ssh-keygen asks on the
// terminal for a passphrase or a touch; or a "pkcs11:" URI (pkcs11.hpp). Errors: those of
// SecretKey::read and open_pkcs11_signer(); not_found / key_missing; invalid / key_syntax; those of
// running ssh-keygen come with each signature.
Result<std::unique_ptr<Signer>> open_signer(const std::string& name);

}  // namespace holdfast::token
