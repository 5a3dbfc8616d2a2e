#include "userspace/wire/listen_socket.hpp"

#include <cerrno>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "userspace/wire/unix_address.hpp"

namespace holdfast::wire {
namespace {

// Connections that wait for accept; more of them wait in connect() or get EAGAIN.
constexpr int backlog = 128;

std::unexpected<Error> already_serving(const std::string& path) {
  return fail(ErrorKind::conflict, "already_serving",
              fmt::format("another holdfastd is serving {}", path),
              "stop it first: systemctl stop holdfastd");
}

Result<UniqueFd> take_lock(const std::string& path) {
  const std::string lock_path = path + ".lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock) {
    return fail_sys(errno, "socket_lock", fmt::format("cannot open {}", lock_path),
                    "make its directory, writable by the daemon only");
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return already_serving(path);
    return fail_sys(errno, "socket_lock", fmt::format("cannot lock {}", lock_path));
  }
  return lock;
}

// Unlinks a socket that nobody listens on. Anything else at the path is left alone and refused.
Status clear_stale(const std::string& path, const sockaddr_un& address, int type) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return fail_sys(errno, "socket_path", fmt::format("cannot look at {}", path));
  }
  if (!S_ISSOCK(status.st_mode)) {
    return fail(ErrorKind::conflict, "socket_path",
                fmt::format("{} exists and is not a socket", path),
                "remove it, or choose another path");
  }
  const UniqueFd probe(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return fail_sys(errno, "socket", "cannot create a socket");
  const int connected =
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  // EAGAIN: somebody listens, and its queue is full.
  if (connected == 0 || errno == EAGAIN) return already_serving(path);
  if (errno != ECONNREFUSED)
    return fail_sys(errno, "socket_path", fmt::format("cannot probe {}", path));
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return fail_sys(errno, "socket_path", fmt::format("cannot remove the stale socket {}", path));
  }
  return {};
}

}  // namespace

Result<ListenSocket> ListenSocket::open(const std::string& path, int type) {
  Result<sockaddr_un> address = unix_address(path);
  if (!address) return pass_on(address);
  Result<UniqueFd> lock = take_lock(path);
  if (!lock) return pass_on(lock);
  // The lock settles it between daemons of ours; the probe also sees one whose lock file was
  // removed.
  if (Status cleared = clear_stale(path, *address, type); !cleared) return pass_on(cleared);

  UniqueFd socket(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_sys(errno, "socket", "cannot create a socket");
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0) {
    return fail_sys(errno, "socket_path", fmt::format("cannot bind {}", path));
  }
  ListenSocket out;
  out.path_ = path;
  out.lock_ = std::move(*lock);
  out.socket_ = std::move(socket);
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) {
    return fail_sys(errno, "socket_path", fmt::format("cannot look at {}", path));
  }
  out.device_ = status.st_dev;
  out.inode_ = status.st_ino;
  // Everyone may connect; credentials decide the rest. Before listen(), so that no early peer is
  // denied.
  if (::chmod(path.c_str(), 0666) != 0) {
    return fail_sys(errno, "socket_path", fmt::format("cannot set the mode of {}", path));
  }
  if (::listen(out.socket_.get(), backlog) != 0) {
    return fail_sys(errno, "socket_path", fmt::format("cannot listen on {}", path));
  }
  return out;
}

ListenSocket::~ListenSocket() {
  if (!socket_) return;
  struct stat status{};
  if (::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
}

}  // namespace holdfast::wire
