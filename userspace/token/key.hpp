// Ed25519 keys (RFC 8032): files as OpenSSL writes them, names as RFC 9679 makes them, and
// verification that accepts exactly one encoding of each signature: S below the group order, R and
// A canonical and of no small order, as libsodium checks. libsodium is twice as fast as OpenSSL 3.0
// here (TRAPS.md).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "userspace/base/result.hpp"
#include "userspace/token/sha256.hpp"

namespace holdfast::token {

using PublicKey = std::array<uint8_t, 32>;
using Signature = std::array<uint8_t, 64>;

// The thumbprint of the COSE key (RFC 9679): what `kid` names.
Digest thumbprint(const PublicKey& key);

bool verify_signature(const PublicKey& key, std::span<const uint8_t> message,
                      std::span<const uint8_t, 64> signature);

// A key that signs; its bytes are wiped when it goes.
class SecretKey {
 public:
  // PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it. A regular file that nobody
  // but its owner can read. Errors: not_found / key_missing; denied / key_exposed; invalid /
  // key_syntax.
  static Result<SecretKey> read(const std::string& path);
  static SecretKey from_seed(std::span<const uint8_t, 32> seed);
  // A new key, as such a file's content. The caller wipes it.
  static std::string new_pem();

  SecretKey(SecretKey&& other) noexcept;
  SecretKey& operator=(SecretKey&&) = delete;
  ~SecretKey();

  const PublicKey& public_key() const { return public_; }
  Signature sign(std::span<const uint8_t> message) const;
  // PKCS#10 (RFC 2986), in PEM: what has a certificate made of it. Subject CN=`name`; `password` is
  // its challengePassword, so that it belongs to one request only.
  std::string certificate_request(const std::string& name, const std::string& password) const;

 private:
  SecretKey() = default;
  std::array<uint8_t, 64> secret_{};
  PublicKey public_{};
};

// SubjectPublicKeyInfo in PEM, as `openssl pkey -pubout` writes it. Errors: invalid / key_syntax.
Result<PublicKey> parse_public_key(std::string_view pem);

struct CertificateRequest {
  PublicKey key{};
  std::string name;
  std::string password;
};
// One that its own Ed25519 key has signed. Errors: invalid / csr_syntax.
Result<CertificateRequest> parse_certificate_request(std::string_view pem);

}  // namespace holdfast::token
