#include "userspace/daemon/node_key.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string_view>

#include <fmt/format.h>

#include "userspace/daemon/state_file.hpp"
#include "userspace/token/key_file.hpp"
#include "userspace/token/sha256.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "node.key";
constexpr std::string_view magic = "HFNODE1\n";
constexpr std::string_view pem_begin = "-----BEGIN ";
constexpr size_t seed_size = 32;
constexpr size_t sum_size = 24;
constexpr size_t file_size = seed_size + magic.size() + sum_size;

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string_view sum_of(const token::Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), sum_size};
}

std::string what_to_do(const std::string& path) {
  return fmt::format("put a copy of {} back, or remove it to be another node", path);
}

}  // namespace

Result<NodeKey> read_node_key(const std::string& state_dir) {
  const std::string path = state_dir + "/" + std::string(file_name);
  const Result<token::Secret> secret = token::read_key_file(path, token::KeyFileMode::read_only);
  if (!secret) return std::unexpected(Error(secret.error()).in("the node's key"));
  const std::string_view text = secret->text();
  if (text.starts_with(pem_begin)) {
    Result<token::SecretKey> key = token::SecretKey::from_pem(text);
    if (!key)
      return fail(ErrorKind::invalid, "key_damaged",
                  fmt::format("the node's key: {} is damaged: its PEM holds no Ed25519 key", path),
                  what_to_do(path));
    return NodeKey{std::move(*key), true};
  }
  if (text.size() != file_size)
    return fail(ErrorKind::invalid, "key_length",
                fmt::format("the node's key: {} has {} bytes, and must have {}", path, text.size(),
                            file_size),
                what_to_do(path));
  const std::string_view summed = text.substr(0, seed_size + magic.size());
  if (summed.substr(seed_size) != magic ||
      text.substr(summed.size()) != sum_of(token::sha256(bytes_of(summed))))
    return fail(
        ErrorKind::invalid, "key_damaged",
        fmt::format("the node's key: {} is damaged: its trailer is not that of its key", path),
        what_to_do(path));
  return NodeKey{token::SecretKey::from_seed(bytes_of(text).first<seed_size>()), false};
}

Status write_node_key(const std::string& state_dir, const token::SecretKey& key) {
  std::array<char, file_size> file{};
  const std::span<const uint8_t, seed_size> seed = key.seed();
  std::ranges::copy(seed, file.begin());
  std::ranges::copy(magic, file.begin() + seed_size);
  const std::string_view text(file.data(), file.size());
  const token::Digest digest = token::sha256(bytes_of(text.substr(0, seed_size + magic.size())));
  std::ranges::copy(sum_of(digest), file.begin() + seed_size + magic.size());
  Status ok = write_state_file(state_dir, file_name, text, 0400);
  ::explicit_bzero(file.data(), file.size());
  return ok;
}

}  // namespace holdfast
