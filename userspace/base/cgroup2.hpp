// Where cgroup v2 is, and which of its groups a process is in. A group's id is the inode of its
// directory, as the kernel has it too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "userspace/base/result.hpp"

namespace holdfast {

// Its mount point, as the kernel tells it to this process; empty if it is mounted nowhere.
std::string cgroup2_mount();

// The groups that the process which connected to this Unix socket is in now: its own, then those
// around it, without the root. All of them, or an error: unsupported / no_peer_pidfd (before Linux
// 6.5 a process cannot be told from one that got its number later), no_cgroup2, outside (of what
// this process sees) or cgroups_max (deeper than 32); not_found / peer_gone or cgroup_gone.
Result<std::vector<uint64_t>> cgroups_of_peer(int socket);

}  // namespace holdfast
