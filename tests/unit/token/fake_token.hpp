// A PKCS#11 module in miniature, as broken as a test wants it. The test and the module, which is
// loaded like any other, share one of these.
#pragma once

#include <array>
#include <cstdint>

#include <p11-kit/pkcs11.h>

namespace holdfast::token {

struct FakeToken {
  // What it has.
  unsigned tokens = 1;
  CK_FLAGS flags = CKF_TOKEN_INITIALIZED | CKF_LOGIN_REQUIRED;
  bool signs_ed25519 = true;
  CK_ULONG private_keys = 1;
  CK_ULONG public_keys = 1;
  bool asks_each_time = false;      // CKA_ALWAYS_AUTHENTICATE
  std::array<uint8_t, 64> point{};  // CKA_EC_POINT of the public key
  CK_ULONG point_size = 0;
  std::array<uint8_t, 64> secret{};  // as libsodium has it
  // What its calls answer.
  CK_RV initialize = CKR_OK;
  CK_RV login = CKR_OK;
  CK_RV sign = CKR_OK;
  bool wrong_signature = false;
  // What happened.
  unsigned logins = 0;
  unsigned sessions = 0;  // that are open
  std::array<char, 64> pin{};
};

}  // namespace holdfast::token
