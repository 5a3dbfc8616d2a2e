// Keys that sign, wherever they are.
#pragma once

#include <memory>
#include <string>

#include "userspace/token/signed.hpp"

namespace holdfast::token {

// `path` is an Ed25519 key in PEM; or one of OpenSSH's, secret or .pub, with which ssh-keygen
// signs: so keys in ssh-agent and in security keys serve, and ssh-keygen asks on the terminal for a
// passphrase or a touch. Errors: those of SecretKey::read; not_found / key_missing; invalid /
// key_syntax; those of running ssh-keygen come with each signature.
Result<std::unique_ptr<Signer>> open_signer(const std::string& path);

}  // namespace holdfast::token
