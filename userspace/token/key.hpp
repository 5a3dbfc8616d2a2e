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
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/sha256.hpp"

namespace holdfast::token {

using PublicKey = std::array<uint8_t, 32>;
using Signature = std::array<uint8_t, 64>;

// The thumbprint of the COSE key (RFC 9679): what `kid` names.
Digest thumbprint(const PublicKey& key);

bool verify_signature(const PublicKey& key, std::span<const uint8_t> message,
                      std::span<const uint8_t, 64> signature);

enum class Algorithm : uint8_t {
  ed25519,  // -19 (RFC 9864)
  ssh,      // an SSHSIG by an Ed25519 key, which may live in a security key
};

// Who signs: a key whose bytes are here, or one that never leaves where it is.
class Signer {
 public:
  virtual ~Signer() = default;
  virtual const PublicKey& public_key() const = 0;
  // Of a security key, what it signs for ("ssh:"); empty of all others.
  virtual std::string_view application() const { return {}; }
  virtual Algorithm algorithm() const { return Algorithm::ed25519; }
  virtual Result<std::vector<uint8_t>> sign(std::span<const uint8_t> message) const = 0;

  Digest key() const { return thumbprint(public_key()); }
};

// A plain Ed25519 signature, for what takes no other. Errors: invalid / wrong_key of one of
// OpenSSH's; the signer's.
Result<Signature> sign_plainly(const Signer& signer, std::span<const uint8_t> message);

// A key whose bytes are here; they are wiped when it goes.
class SecretKey : public Signer {
 public:
  // PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it, in a file that is its owner's
  // alone. Errors: those of read_key_file(); invalid / key_syntax.
  static Result<SecretKey> read(const std::string& path);
  static Result<SecretKey> from_pem(std::string_view pem);  // invalid / key_syntax
  static SecretKey from_seed(std::span<const uint8_t, 32> seed);
  static Result<SecretKey> make();  // internal / random

  SecretKey(SecretKey&& other) noexcept;
  SecretKey& operator=(SecretKey&&) = delete;
  ~SecretKey() override;

  const PublicKey& public_key() const override { return public_; }
  Result<std::vector<uint8_t>> sign(std::span<const uint8_t> message) const override;
  // The key itself, for whoever keeps it.
  std::span<const uint8_t, 32> seed() const { return std::span(secret_).first<32>(); }

 private:
  SecretKey() = default;
  std::array<uint8_t, 64> secret_{};  // as libsodium has it: the seed, then the public key
  PublicKey public_{};
};

// SubjectPublicKeyInfo in PEM, as `openssl pkey -pubout` writes it. Errors: invalid / key_syntax.
Result<PublicKey> parse_public_key(std::string_view pem);

// PKCS#10 (RFC 2986), in PEM: what has a certificate made of a key. Subject CN=`name`; `password`
// is its challengePassword, so that it belongs to one request only. Errors: those of
// sign_plainly().
Result<std::string> certificate_request(const Signer& signer, const std::string& name,
                                        const std::string& password);

struct CertificateRequest {
  PublicKey key{};
  std::string name;
  std::string password;
};
// One that its own Ed25519 key has signed. Errors: invalid / csr_syntax.
Result<CertificateRequest> parse_certificate_request(std::string_view pem);

}  // namespace holdfast::token
