#include "userspace/base/cgroup2.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string_view>

#include <fmt/format.h>
#include <linux/magic.h>
#include <mntent.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "userspace/base/unique_fd.hpp"

namespace holdfast {
namespace {

constexpr std::ptrdiff_t levels_max = 32;
constexpr int so_peerpidfd = 77;  // Linux 6.5; Debian 12's headers do not have it

std::unexpected<Error> peer_gone() {
  return fail(ErrorKind::not_found, "peer_gone", "the process that connected has ended");
}

// What follows `name` at the beginning of a line of a file; empty if there is none.
std::string line_of(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(name)) return line.substr(name.size());
  return {};
}

}  // namespace

std::string cgroup2_mount() {
  const std::unique_ptr<FILE, int (*)(FILE*)> mounts(::setmntent("/proc/self/mounts", "re"),
                                                     ::endmntent);
  if (!mounts) return {};
  mntent entry{};
  std::array<char, 4096> text{};
  while (::getmntent_r(mounts.get(), &entry, text.data(), text.size()) != nullptr) {
    // Another file system may be mounted over it, such as a tmpfs with cgroups of both versions.
    struct statfs there{};
    if (std::string_view(entry.mnt_type) == "cgroup2" && ::statfs(entry.mnt_dir, &there) == 0 &&
        static_cast<unsigned long>(there.f_type) == CGROUP2_SUPER_MAGIC)
      return entry.mnt_dir;
  }
  return {};
}

Result<std::vector<uint64_t>> cgroups_of_peer(int socket) {
  int fd = -1;
  socklen_t size = sizeof(fd);
  if (::getsockopt(socket, SOL_SOCKET, so_peerpidfd, &fd, &size) != 0) {
    if (errno == ESRCH) return peer_gone();
    return fail(ErrorKind::unsupported, "no_peer_pidfd",
                "this kernel does not hold on to the process that connected",
                "it takes Linux 6.5; name holders by uid or by key");
  }
  const UniqueFd process(fd);
  static const std::string mount = cgroup2_mount();
  if (mount.empty())
    return fail(ErrorKind::unsupported, "no_cgroup2", "cgroup v2 is not mounted",
                "mount -t cgroup2 none /sys/fs/cgroup, and restart holdfastd");
  const std::string pid = line_of(fmt::format("/proc/self/fdinfo/{}", process.get()), "Pid:\t");
  std::string path = line_of(fmt::format("/proc/{}/cgroup", pid), "0::");
  // Only if it lives still was it the one that had this number all along.
  pollfd ended{process.get(), POLLIN, 0};
  if (path.empty() || ::poll(&ended, 1, 0) != 0) return peer_gone();
  if (path.starts_with("/.."))
    return fail(ErrorKind::unsupported, "outside",
                "its cgroup is outside of this cgroup namespace");
  // Each level costs a walk from the top: who may make groups must not make us walk for long.
  if (std::ranges::count(path, '/') > levels_max)
    return fail(ErrorKind::unsupported, "cgroups_max",
                fmt::format("its cgroup is deeper than {} levels", levels_max));
  std::vector<uint64_t> ids;
  for (; path.size() > 1; path.resize(path.rfind('/'))) {
    struct stat info{};
    if (::stat((mount + path).c_str(), &info) != 0)
      return std::unexpected(
          Error{ErrorKind::not_found, "cgroup_gone", errno, "cgroup " + path, {}});
    ids.push_back(info.st_ino);
  }
  return ids;
}

}  // namespace holdfast
