// Who uses a lease, and how that is written. Pure.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "userspace/base/result.hpp"

namespace holdfast {

struct Holder {
  using KeyThumbprint = std::array<uint8_t, 32>;

  enum class Kind { uid, cgroup, key } kind = Kind::uid;
  uint64_t id = 0;      // uid, or cgroup id (the inode of its directory)
  KeyThumbprint key{};  // RFC 9679, SHA-256
  bool operator==(const Holder&) const = default;
};

std::string holder_name(const Holder& holder);  // "uid:1000", "cgroup:4711", "key:" and 64 hex
// Errors: invalid / bad_holder.
Result<Holder> parse_holder_name(std::string_view text);

}  // namespace holdfast
