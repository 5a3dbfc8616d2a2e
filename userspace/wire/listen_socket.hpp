// The socket file of a daemon: exactly one daemon listens on it, and a file left by a dead one does
// not stop the next. Owns the listening socket, the lock beside it and the file itself.
#pragma once

#include <string>

#include <sys/types.h>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast::wire {

class ListenSocket {
 public:
  // Errors: conflict / already_serving, invalid / socket_path, or what the kernel said.
  // `type` is SOCK_STREAM or SOCK_SEQPACKET.
  static Result<ListenSocket> open(const std::string& path, int type);

  ListenSocket(ListenSocket&& other) noexcept = default;
  ListenSocket& operator=(ListenSocket&& other) = delete;
  ~ListenSocket();  // removes the file if it is still ours; the lock file stays, unlinking it would
                    // race

  int fd() const { return socket_.get(); }

 private:
  ListenSocket() = default;

  std::string path_;
  UniqueFd lock_;
  UniqueFd socket_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace holdfast::wire
