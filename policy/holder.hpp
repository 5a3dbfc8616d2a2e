// Who uses a lease, and how that is written. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "userspace/base/result.hpp"

namespace holdfast {

struct Holder {
  enum class Kind { uid, cgroup } kind = Kind::uid;
  uint64_t id = 0;  // uid, or cgroup id (the inode of its directory)
  bool operator==(const Holder&) const = default;
};

std::string holder_name(const Holder& holder);  // "uid:1000", "cgroup:4711"
// Errors: invalid / bad_holder.
Result<Holder> parse_holder_name(std::string_view text);

}  // namespace holdfast
