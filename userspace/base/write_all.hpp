#pragma once

#include <cerrno>
#include <cstdint>
#include <span>

#include <unistd.h>

namespace holdfast {

// All of it to a file that blocks, whatever signals come between. When false, errno says why.
inline bool write_all(int fd, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace holdfast
