#include "userspace/wire/unix_address.hpp"

#include <cstring>

#include <fmt/format.h>
#include <sys/socket.h>

namespace holdfast::wire {

Result<sockaddr_un> unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path ||
      path.find('\0') != std::string::npos) {
    return fail(ErrorKind::invalid, "socket_path",
                fmt::format("a socket path has 1 to {} bytes, \"{}\" has {}",
                            sizeof address.sun_path - 1, path, path.size()),
                "choose a shorter path");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

}  // namespace holdfast::wire
