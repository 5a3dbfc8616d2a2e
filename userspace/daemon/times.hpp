// Boot time, by which leases end, as people read it.
#pragma once

#include <string>

#include "userspace/base/clock.hpp"

namespace holdfast {

inline std::string wall_of(uint64_t boot_ns) {
  return rfc3339_utc(wall_now_ns() + boot_ns - boot_now_ns());
}

}  // namespace holdfast
