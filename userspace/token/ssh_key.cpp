#include "userspace/token/ssh_key.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include <sodium.h>

namespace holdfast::token {
namespace {

constexpr std::string_view plain_type = "ssh-ed25519";
constexpr std::string_view security_type = "sk-ssh-ed25519@openssh.com";
constexpr std::string_view magic = "SSHSIG";
constexpr std::string_view begin_armour = "-----BEGIN SSH SIGNATURE-----";
constexpr std::string_view end_armour = "-----END SSH SIGNATURE-----";
constexpr uint32_t signature_version = 1;
constexpr uint8_t user_present = 1;
constexpr size_t decoded_bytes_max = 4096;

std::unexpected<Error> bad_key(std::string why) {
  return fail(ErrorKind::invalid, "key_syntax", std::move(why),
              "take the line of a .pub file of an Ed25519 key: ssh-keygen -t ed25519");
}

std::unexpected<Error> bad_signature(std::string why) {
  return fail(ErrorKind::invalid, "ssh_signature", std::move(why),
              "sign with an Ed25519 key: ssh-keygen -t ed25519, or -t ed25519-sk");
}

std::optional<std::vector<uint8_t>> from_base64(std::string_view text) {
  std::vector<uint8_t> bytes(decoded_bytes_max);
  size_t size = 0;
  const char* end = nullptr;
  if (sodium_base642bin(bytes.data(), bytes.size(), text.data(), text.size(), "\r\n", &size, &end,
                        sodium_base64_VARIANT_ORIGINAL) != 0 ||
      end != text.data() + text.size())
    return std::nullopt;
  bytes.resize(size);
  return bytes;
}

// SSH's wire format (RFC 4251, 5). After the first thing that is not there it yields nothing.
class Fields {
 public:
  explicit Fields(std::span<const uint8_t> bytes) : rest_(bytes) {}

  std::span<const uint8_t> take(size_t size) {
    if (size > rest_.size()) {
      good_ = false;
      rest_ = {};
      return {};
    }
    const auto taken = rest_.first(size);
    rest_ = rest_.subspan(size);
    return taken;
  }
  uint32_t u32() {
    uint32_t value = 0;
    for (const uint8_t byte : take(sizeof(value))) value = value << 8 | byte;
    return value;
  }
  std::span<const uint8_t> bytes() { return take(u32()); }
  std::string_view text() {
    const auto content = bytes();
    return {reinterpret_cast<const char*>(content.data()), content.size()};
  }
  bool finish() const { return good_ && rest_.empty(); }

 private:
  std::span<const uint8_t> rest_;
  bool good_ = true;
};

void append(std::vector<uint8_t>& out, std::string_view text) {
  out.insert(out.end(), text.begin(), text.end());
}
void append_string(std::vector<uint8_t>& out, std::span<const uint8_t> content) {
  const auto size = static_cast<uint32_t>(content.size());
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(size >> shift));
  out.insert(out.end(), content.begin(), content.end());
}
void append_string(std::vector<uint8_t>& out, std::string_view text) {
  append_string(out, std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
}

// What an SSH key signs instead of a message (PROTOCOL.sshsig, 3).
std::vector<uint8_t> wrapped(std::span<const uint8_t> message) {
  std::array<uint8_t, crypto_hash_sha512_BYTES> digest{};
  crypto_hash_sha512(digest.data(), message.data(), message.size());
  std::vector<uint8_t> bytes;
  append(bytes, magic);
  append_string(bytes, ssh_namespace);
  append_string(bytes, std::string_view());  // reserved
  append_string(bytes, "sha512");
  append_string(bytes, digest);
  return bytes;
}

// And what a security key signs instead of that (PROTOCOL.u2f).
std::vector<uint8_t> by_security_key(std::string_view application,
                                     std::span<const uint8_t> flags_and_counter,
                                     std::span<const uint8_t> bytes) {
  const Digest of_application =
      sha256({std::span(reinterpret_cast<const uint8_t*>(application.data()), application.size())});
  const Digest of_bytes = sha256({bytes});
  std::vector<uint8_t> out(of_application.begin(), of_application.end());
  out.insert(out.end(), flags_and_counter.begin(), flags_and_counter.end());
  out.insert(out.end(), of_bytes.begin(), of_bytes.end());
  return out;
}

}  // namespace

Result<SignerKey> parse_ssh_public_key(std::string_view line) {
  while (line.ends_with('\n') || line.ends_with('\r')) line.remove_suffix(1);
  const size_t space = line.find(' ');
  const std::string_view type = line.substr(0, space);
  if (space == std::string_view::npos || (type != plain_type && type != security_type))
    return bad_key("that is no Ed25519 key of OpenSSH's");
  const std::string_view rest = line.substr(space + 1);
  const auto blob = from_base64(rest.substr(0, rest.find(' ')));
  if (!blob) return bad_key("the key is not base64");
  Fields fields(*blob);
  SignerKey key;
  const bool same_type = fields.text() == type;
  const std::span<const uint8_t> point = fields.bytes();
  if (type == security_type) key.application = fields.text();
  if (!fields.finish() || !same_type || point.size() != key.key.size() ||
      (type == security_type && key.application.empty()))
    return bad_key("the key is cut short, or not of the type that it names");
  std::ranges::copy(point, key.key.begin());
  return key;
}

Result<std::vector<uint8_t>> parse_ssh_signature(std::string_view armoured) {
  const size_t begin = armoured.find(begin_armour);
  const size_t end = armoured.find(end_armour);
  if (begin == std::string_view::npos || end == std::string_view::npos || end < begin)
    return bad_signature("that is no signature of ssh-keygen's");
  const auto blob =
      from_base64(armoured.substr(begin + begin_armour.size(), end - begin - begin_armour.size()));
  if (!blob) return bad_signature("the signature is not base64");
  Fields fields(*blob);
  const auto start = fields.take(magic.size());
  const bool ours = std::ranges::equal(start, magic) && fields.u32() == signature_version;
  (void)fields.bytes();  // the public key
  const bool named = fields.text() == ssh_namespace;
  (void)fields.bytes();  // reserved
  const bool hashed = fields.text() == "sha512";
  Fields inner(fields.bytes());
  if (!fields.finish() || !ours || !named || !hashed)
    return bad_signature("the signature is not one by SHA-512 in the namespace \"holdfast\"");
  const std::string_view type = inner.text();
  const auto content = inner.bytes();
  std::vector<uint8_t> signature(content.begin(), content.end());
  if (type == security_type) {
    const auto tail = inner.take(ssh_security_signature_bytes - sizeof(Signature));
    signature.insert(signature.end(), tail.begin(), tail.end());
  }
  const size_t expected = type == security_type ? ssh_security_signature_bytes : sizeof(Signature);
  if (!inner.finish() || (type != plain_type && type != security_type) ||
      signature.size() != expected)
    return bad_signature("the signature is not by an Ed25519 key");
  return signature;
}

bool verify_ssh_signature(const SignerKey& key, std::span<const uint8_t> message,
                          std::span<const uint8_t> signature) {
  const bool security = !key.application.empty();
  if (signature.size() != (security ? ssh_security_signature_bytes : sizeof(Signature)))
    return false;
  std::vector<uint8_t> bytes = wrapped(message);
  if (security) {
    const auto tail = signature.subspan(sizeof(Signature));
    if ((tail[0] & user_present) == 0) return false;
    bytes = by_security_key(key.application, tail, bytes);
  }
  return verify_signature(key.key, bytes, signature.first<sizeof(Signature)>());
}

}  // namespace holdfast::token
