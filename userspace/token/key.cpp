#include "userspace/token/key.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <sodium.h>
#include <sys/random.h>

#include "userspace/base/check.hpp"
#include "userspace/token/key_file.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

constexpr size_t public_key_max = 4096;  // bytes in PEM

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;
using Pkey = std::unique_ptr<EVP_PKEY, FreeKey>;

Bio memory_of(std::string_view text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// A key with a password is refused, not asked for.
int no_password(char*, int, int, void*) {
  return -1;
}

Pkey ed25519_only(EVP_PKEY* key) {
  Pkey owned(key);
  ERR_clear_error();
  if (owned && EVP_PKEY_get_base_id(owned.get()) != EVP_PKEY_ED25519) owned.reset();
  return owned;
}

}  // namespace

Digest thumbprint(const PublicKey& key) {
  std::vector<uint8_t> cose;
  cbor::Writer(cose).map(3).u64(1).u64(1).i64(-1).u64(6).i64(-2).bytes(key).end();  // OKP, Ed25519
  return sha256(cose);
}

bool verify_signature(const PublicKey& key, std::span<const uint8_t> message,
                      std::span<const uint8_t, 64> signature) {
  return crypto_sign_ed25519_verify_detached(signature.data(), message.data(), message.size(),
                                             key.data()) == 0;
}

Result<Signature> sign_plainly(const Signer& signer, std::span<const uint8_t> message) {
  if (signer.algorithm() != Algorithm::ed25519)
    return fail(ErrorKind::invalid, "wrong_key",
                "a key of OpenSSH's makes no plain Ed25519 signature, which this takes",
                "use a key in PEM or in PKCS#11");
  const Result<std::vector<uint8_t>> made = signer.sign(message);
  if (!made) return std::unexpected(made.error());
  Signature signature;
  CHECK(made->size() == signature.size());
  std::ranges::copy(*made, signature.begin());
  return signature;
}

Result<SecretKey> SecretKey::read(const std::string& path) {
  Result<Secret> pem = read_key_file(path, KeyFileMode::owner_only);
  if (!pem && pem.error().code == "key_missing")
    pem.error().next_step = "make one: openssl genpkey -algorithm ed25519 -out " + path;
  if (!pem) return pass_on(pem, "the key");
  Result<SecretKey> key = from_pem(pem->text());
  if (!key) return pass_on(key, path);
  return key;
}

Result<SecretKey> SecretKey::from_pem(std::string_view pem) {
  const Bio bio = memory_of(pem);
  const Pkey key = ed25519_only(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, nullptr));
  std::array<uint8_t, 32> seed{};
  size_t length = seed.size();
  if (!key || EVP_PKEY_get_raw_private_key(key.get(), seed.data(), &length) != 1 ||
      length != seed.size())
    return fail(ErrorKind::invalid, "key_syntax",
                "no Ed25519 private key in PEM without a password",
                "make one: openssl genpkey -algorithm ed25519 -out FILE");
  SecretKey made = from_seed(seed);
  sodium_memzero(seed.data(), seed.size());
  return made;
}

Result<SecretKey> SecretKey::make() {
  std::array<uint8_t, 32> seed{};
  if (::getrandom(seed.data(), seed.size(), 0) != static_cast<ssize_t>(seed.size()))
    return fail_sys(errno, "random", "asking the kernel for random bytes");
  SecretKey made = from_seed(seed);
  sodium_memzero(seed.data(), seed.size());
  return made;
}

SecretKey SecretKey::from_seed(std::span<const uint8_t, 32> seed) {
  SecretKey made;
  CHECK(crypto_sign_ed25519_seed_keypair(made.public_.data(), made.secret_.data(), seed.data()) ==
        0);
  return made;
}

SecretKey::SecretKey(SecretKey&& other) noexcept : secret_(other.secret_), public_(other.public_) {
  sodium_memzero(other.secret_.data(), other.secret_.size());
}

SecretKey::~SecretKey() {
  sodium_memzero(secret_.data(), secret_.size());
}

Result<std::vector<uint8_t>> SecretKey::sign(std::span<const uint8_t> message) const {
  std::vector<uint8_t> signature(sizeof(Signature));
  CHECK(crypto_sign_ed25519_detached(signature.data(), nullptr, message.data(), message.size(),
                                     secret_.data()) == 0);
  return signature;
}

Result<PublicKey> parse_public_key(std::string_view pem) {
  const Bio bio = memory_of(pem.substr(0, public_key_max));
  const Pkey key = ed25519_only(PEM_read_bio_PUBKEY(bio.get(), nullptr, no_password, nullptr));
  PublicKey raw{};
  size_t length = raw.size();
  if (!key || EVP_PKEY_get_raw_public_key(key.get(), raw.data(), &length) != 1 ||
      length != raw.size())
    return fail(ErrorKind::invalid, "key_syntax", "no Ed25519 public key in PEM",
                "write what `openssl pkey -in KEY -pubout` prints");
  return raw;
}

}  // namespace holdfast::token
