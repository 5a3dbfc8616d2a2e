#include "userspace/verifier/server.hpp"

#include <cerrno>
#include <cstring>

#include <sys/socket.h>

#include "policy/decide.hpp"
#include "userspace/base/log.hpp"

namespace holdfast::verifier {
namespace {

constexpr int accepts_per_turn = 16;

void send_frame(int fd, wire::FrameType type, const cbor::Value& body) {
  std::vector<uint8_t> frame;
  wire::append_frame(frame, type, 0, 0, cbor::encode(body));
  // A fresh socket has room for one small frame.
  [[maybe_unused]] const ssize_t sent =
      ::send(fd, frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

Result<std::unique_ptr<Server>> Server::open(wire::EventLoop& loop, const VerifierState& state,
                                             ServerOptions options, Hello hello) {
  Result<wire::ListenSocket> socket = wire::ListenSocket::open(options.path, SOCK_SEQPACKET);
  if (!socket) return pass_on(socket);
  WorkerOptions worker = options.worker;
  std::unique_ptr<Server> server(
      new Server(std::move(options), std::move(hello), std::move(*socket)));
  std::string why_not;
  while (server->workers_.size() < server->options_.workers) {
    Result<std::unique_ptr<Worker>> made = Worker::start(state, worker);
    if (!made && worker.uring) {
      why_not = made.error().text();
      worker.uring = false;
      made = Worker::start(state, worker);
    }
    if (!made) return pass_on(made, "verify.sock");
    server->workers_.push_back(std::move(*made));
  }
  log::notice("verify_ready", {{"socket", server->options_.path},
                               {"workers", server->workers_.size()},
                               {"by", server->transport()},
                               {"without_io_uring", why_not}});
  Result<wire::FdWatch> watch = loop.watch(server->socket_.fd(), EPOLLIN,
                                           [at = server.get()](uint32_t) { at->accept_some(); });
  if (!watch) return pass_on(watch);
  server->watch_ = std::move(*watch);
  return server;
}

void Server::accept_some() {
  for (int i = 0; i < accepts_per_turn; ++i) {
    UniqueFd fd(::accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd) return;
    const Result<wire::Peer> peer = wire::read_peer(fd.get(), options_.groups);
    if (!peer) {
      log::info("connection_refused",
                {{"code", peer.error().code}, {"detail", peer.error().text()}});
      send_frame(fd.get(), wire::FrameType::error,
                 wire::encode_error(peer.error(), wire::default_retry(peer.error())));
      continue;
    }
    send_frame(fd.get(), wire::FrameType::hello, hello_(*peer));
    Asker asker{.names = {holder_name({Holder::Kind::uid, peer->uid, {}})},
                .relying = peer->role != wire::Role::none,
                .challenge = peer->challenge};
    asker.cgroups_known = peer->cgroups.has_value();
    for (const uint64_t id : peer->cgroups.value_or(std::vector<uint64_t>()))
      asker.names.push_back(holder_name({Holder::Kind::cgroup, id, {}}));
    workers_[next_]->take(std::move(fd), peer->uid, std::move(asker));
    next_ = (next_ + 1) % workers_.size();
  }
}

WorkerCounts Server::counts() const {
  WorkerCounts sum;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    const WorkerCounts one = worker->counts();
    sum.connections += one.connections;
    sum.frames += one.frames;
    sum.malformed += one.malformed;
    sum.signatures += one.signatures;
    for (size_t i = 0; i < sum.verdicts.size(); ++i) sum.verdicts[i] += one.verdicts[i];
  }
  return sum;
}

}  // namespace holdfast::verifier
