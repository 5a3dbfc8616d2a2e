// OpenSSH's Ed25519 keys and signatures: what `ssh-keygen -Y sign` makes (PROTOCOL.sshsig), by a
// key in a file, in ssh-agent, or in a FIDO security key (PROTOCOL.u2f). Pure.
//
// A signature travels without its wrapping, which says nothing that its checker does not know: 64
// bytes; of a security key 69, with its flags and its counter, big-endian.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"

namespace holdfast::token {

constexpr std::string_view ssh_namespace = "holdfast";
constexpr size_t ssh_security_signature_bytes = sizeof(Signature) + 5;

// A key that signs, as its checker knows it.
struct SignerKey {
  PublicKey key{};
  std::string application = {};  // of a security key: "ssh:..."; empty: it is none

  bool operator==(const SignerKey&) const = default;
};

// A line of a .pub file: ssh-ed25519 or sk-ssh-ed25519@openssh.com. Errors: invalid / key_syntax.
Result<SignerKey> parse_ssh_public_key(std::string_view line);

// What ssh-keygen prints, taken out of its armour. Errors: invalid / ssh_signature.
Result<std::vector<uint8_t>> parse_ssh_signature(std::string_view armoured);

// A security key has to have been touched.
bool verify_ssh_signature(const SignerKey& key, std::span<const uint8_t> message,
                          std::span<const uint8_t> signature);

}  // namespace holdfast::token
