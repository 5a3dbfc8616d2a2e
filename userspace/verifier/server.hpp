// verify.sock: takes connections on the daemon's loop, says hello, and hands each to the worker
// whose turn it is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "userspace/verifier/worker.hpp"
#include "userspace/wire/event_loop.hpp"
#include "userspace/wire/listen_socket.hpp"
#include "userspace/wire/peer.hpp"

namespace holdfast::verifier {

struct ServerOptions {
  std::string path;
  wire::RoleGroups groups;
  uint32_t workers = 1;
  WorkerOptions worker;
};

class Server {
 public:
  using Hello = std::function<cbor::Value(const wire::Peer&)>;

  // io_uring where that is to be had, else epoll; the log says which, and why. The loop and `state`
  // must outlive it.
  static Result<std::unique_ptr<Server>> open(wire::EventLoop& loop, const VerifierState& state,
                                              ServerOptions options, Hello hello);

  // Summed over the workers; each hands its counts over when it has nothing to do, and every 20 ms.
  WorkerCounts counts() const;
  std::string_view transport() const { return workers_.front()->transport(); }
  size_t workers() const { return workers_.size(); }

 private:
  Server(ServerOptions options, Hello hello, wire::ListenSocket socket)
      : options_(std::move(options)), hello_(std::move(hello)), socket_(std::move(socket)) {}
  void accept_some();

  ServerOptions options_;
  Hello hello_;
  wire::ListenSocket socket_;
  std::vector<std::unique_ptr<Worker>> workers_;
  size_t next_ = 0;
  wire::FdWatch watch_;
};

}  // namespace holdfast::verifier
