// Where cgroup v2 is.
#pragma once

#include <string>

namespace holdfast {

// Its mount point, as the kernel tells it to this process; empty if it is mounted nowhere.
std::string cgroup2_mount();

}  // namespace holdfast
