#include "userspace/token/key.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sodium.h>
#include <sys/random.h>

#include "userspace/base/check.hpp"
#include "userspace/token/key_file.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

constexpr size_t pem_max = 4096;  // bytes of a public key, or of a request

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;
using Pkey = std::unique_ptr<EVP_PKEY, FreeKey>;
struct FreeRequest {
  void operator()(X509_REQ* request) const { X509_REQ_free(request); }
};
using Request = std::unique_ptr<X509_REQ, FreeRequest>;

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

namespace {

// What `request` says, under a signature: OpenSSL has no part in who signs.
Status sign_request(X509_REQ* request, const Signer& signer) {
  X509_ALGOR* algorithm = X509_ALGOR_new();
  CHECK(algorithm != nullptr);
  CHECK(X509_ALGOR_set0(algorithm, OBJ_nid2obj(NID_ED25519), V_ASN1_UNDEF, nullptr) == 1);
  CHECK(X509_REQ_set1_signature_algo(request, algorithm) == 1);
  X509_ALGOR_free(algorithm);
  unsigned char* der = nullptr;
  const int size = i2d_re_X509_REQ_tbs(request, &der);
  CHECK(size > 0);
  const Result<Signature> signature = sign_plainly(signer, {der, static_cast<size_t>(size)});
  OPENSSL_free(der);
  if (!signature) return std::unexpected(signature.error());
  ASN1_BIT_STRING* bits = ASN1_BIT_STRING_new();
  CHECK(bits != nullptr);
  CHECK(ASN1_BIT_STRING_set(bits, const_cast<unsigned char*>(signature->data()),
                            static_cast<int>(signature->size())) == 1);
  // All bits of the last byte count, zeros too.
  bits->flags = (bits->flags & ~0x07L) | ASN1_STRING_FLAG_BITS_LEFT;
  X509_REQ_set0_signature(request, bits);
  return {};
}

}  // namespace

Result<std::string> certificate_request(const Signer& signer, const std::string& name,
                                        const std::string& password) {
  const PublicKey& raw = signer.public_key();
  const Pkey key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, raw.data(), raw.size()));
  const Request request(X509_REQ_new());
  const Bio bio(BIO_new(BIO_s_mem()));
  CHECK(key && request && bio);
  const auto bytes = [](const std::string& text) {
    return reinterpret_cast<const unsigned char*>(text.data());
  };
  CHECK(X509_REQ_set_version(request.get(), 0) == 1);
  CHECK(X509_NAME_add_entry_by_NID(X509_REQ_get_subject_name(request.get()), NID_commonName,
                                   MBSTRING_UTF8, bytes(name), static_cast<int>(name.size()), -1,
                                   0) == 1);
  CHECK(X509_REQ_set_pubkey(request.get(), key.get()) == 1);
  CHECK(X509_REQ_add1_attr_by_NID(request.get(), NID_pkcs9_challengePassword, MBSTRING_UTF8,
                                  bytes(password), static_cast<int>(password.size())) == 1);
  if (Status ok = sign_request(request.get(), signer); !ok) return pass_on(ok);
  CHECK(PEM_write_bio_X509_REQ(bio.get(), request.get()) == 1);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

namespace {

std::string text_of(const ASN1_STRING* string) {
  if (string == nullptr) return {};
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(string)),
          static_cast<size_t>(ASN1_STRING_length(string))};
}

}  // namespace

Result<CertificateRequest> parse_certificate_request(std::string_view pem) {
  const Bio bio = memory_of(pem.substr(0, pem_max));
  const Request request(PEM_read_bio_X509_REQ(bio.get(), nullptr, no_password, nullptr));
  const Pkey key = ed25519_only(request ? X509_REQ_get_pubkey(request.get()) : nullptr);
  CertificateRequest made;
  size_t length = made.key.size();
  const bool good = key && X509_REQ_verify(request.get(), key.get()) == 1 &&
                    EVP_PKEY_get_raw_public_key(key.get(), made.key.data(), &length) == 1 &&
                    length == made.key.size();
  ERR_clear_error();
  if (!good)
    return fail(ErrorKind::invalid, "csr_syntax", "no PKCS#10 request that its Ed25519 key signed",
                "write what `openssl req -new -key KEY` prints");
  X509_NAME* subject = X509_REQ_get_subject_name(request.get());
  if (const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1); at >= 0)
    made.name = text_of(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  if (const int at = X509_REQ_get_attr_by_NID(request.get(), NID_pkcs9_challengePassword, -1);
      at >= 0) {
    X509_ATTRIBUTE* attribute = X509_REQ_get_attr(request.get(), at);
    if (const ASN1_TYPE* type = X509_ATTRIBUTE_get0_type(attribute, 0);
        type != nullptr && ASN1_TYPE_get(type) == V_ASN1_UTF8STRING)
      made.password = text_of(type->value.utf8string);
  }
  return made;
}

Result<PublicKey> parse_public_key(std::string_view pem) {
  const Bio bio = memory_of(pem.substr(0, pem_max));
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
