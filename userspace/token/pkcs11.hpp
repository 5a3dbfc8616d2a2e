// Keys on PKCS#11 tokens: the module is called directly, with CKM_EDDSA (PKCS#11 3.0). The key
// never leaves the token. A signer holds a session, logged in; calls are made one after the other,
// from whatever thread.
//
// A module is loaded once, and stays initialized and loaded until the process ends: another signer
// may use it, and modules are known to crash when they are unloaded.
#pragma once

#include <memory>
#include <string_view>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"
#include "userspace/token/pkcs11_uri.hpp"

namespace holdfast::token {

// A PIN is tried once, and not at all when it is the last that the token would take: a wrong one
// locks tokens. Each signature is checked before it is given out. Errors: invalid / pkcs11_uri;
// unavailable / pkcs11_module; not_found / pkcs11_token_missing; invalid / pkcs11_token_ambiguous;
// unsupported / pkcs11_mechanism; those of read_key_file() about the PIN's; invalid /
// pkcs11_pin_missing; denied / pkcs11_pin_wrong, pkcs11_pin_locked; not_found / pkcs11_key_missing,
// pkcs11_public_key_missing; invalid / pkcs11_key_ambiguous; unsupported / pkcs11_key_asks;
// unavailable / pkcs11_failed, also of signing; invalid / pkcs11_wrong_pair of signing.
Result<std::unique_ptr<Signer>> open_pkcs11_signer(std::string_view uri);

}  // namespace holdfast::token
