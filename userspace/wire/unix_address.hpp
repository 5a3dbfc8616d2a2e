// The address of a Unix socket's path.
#pragma once

#include <string>

#include <sys/un.h>

#include "userspace/base/result.hpp"

namespace holdfast::wire {

// Errors: invalid / socket_path (longer than 107 bytes, empty, or with a zero in it).
Result<sockaddr_un> unix_address(const std::string& path);

}  // namespace holdfast::wire
