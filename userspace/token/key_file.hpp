// Files that hold a secret: a key, or the PIN of a token. Each is looked at before it is read,
// through the descriptor it is read from, and what does not hold is named: it is there and can be
// opened, is no link and no directory or pipe, belongs to whoever runs this, and is nobody else's
// to read. A second name (a hard link) is not looked for: it gives nobody what mode and owner deny.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"

namespace holdfast::token {

// Wiped when it goes.
class Secret {
 public:
  explicit Secret(size_t size) : bytes_(size) {}
  Secret(Secret&& other) noexcept = default;
  Secret& operator=(Secret&&) = delete;
  ~Secret();

  char* data() { return bytes_.data(); }
  std::string_view text() const { return {bytes_.data(), used_}; }
  void use(size_t size) { used_ = size; }  // how much of it there is

 private:
  std::vector<char> bytes_;
  size_t used_ = 0;
};

enum class KeyFileMode : uint8_t {
  owner_only,  // as people's keys are: group and others may do nothing with it
  read_only,   // 0400, as the daemon's own are
};

// Errors: not_found / key_missing; invalid / key_not_regular, also for a symbolic link; denied /
// key_owner; denied / key_exposed; invalid / key_too_large (4 KiB); internal / key_read.
Result<Secret> read_key_file(const std::string& path, KeyFileMode mode);

}  // namespace holdfast::token
