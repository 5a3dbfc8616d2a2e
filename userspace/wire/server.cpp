#include "userspace/wire/server.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/base/check.hpp"
#include "userspace/base/log.hpp"
#include "userspace/wire/listen_socket.hpp"

namespace holdfast::wire {
namespace detail {

constexpr size_t receive_bytes = 64U << 10;  // one recvmsg, into a buffer all connections share
constexpr int receives_per_turn = 4;         // then others get their turn
constexpr int accepts_per_turn = 16;
constexpr size_t output_bytes_kept = 16U << 10;        // capacity an idle connection may keep
constexpr uint64_t accept_pause_ns = 100 * ns_per_ms;  // when descriptors have run out
constexpr uint64_t rate_pause_ns = 10 * ns_per_ms;  // what a peer over its rate waits per refusal
constexpr size_t idle_uids_max = 4096;              // uids remembered only for their rate

struct UidState {
  uid_t uid = 0;
  uint32_t connections = 0;
  uint32_t unanswered = 0;
  size_t unsent = 0;
  RateLimiter limiter;
  RateMeter meter;
  TimeShare busy;
};

class ServerCore : public std::enable_shared_from_this<ServerCore> {
 public:
  ServerCore(EventLoop& event_loop, ServerConfig server_config, PeerGuard& peer_guard,
             ControlServer::Hello hello_body, ControlServer::Unseal unseal_request,
             ControlServer::Handler request_handler, ListenSocket socket)
      : loop(event_loop),
        config(std::move(server_config)),
        guard(peer_guard),
        hello(std::move(hello_body)),
        unseal(std::move(unseal_request)),
        handler(std::move(request_handler)),
        listen_socket(std::move(socket)) {}

  Status start();
  void shut_down();

  void accept_some();
  void admit(UniqueFd fd);
  void sweep();
  // Lets every connection of a uid go on that its shared budget had stopped.
  void resume_uid(uid_t uid);
  void for_each_peer(const std::function<void(const Peer&)>& tell) const;
  void for_each_uid(const std::function<void(const UidView&)>& tell) const;
  void end_peers(const std::function<bool(const Peer&)>& whom, const Error& why);
  void remove(uint64_t connection_id);

  const Rate& rate_of(Role role) const {
    return role == Role::operates ? config.operator_rate : config.rate;
  }

  uint32_t busy_percent_of(Role role) const {
    return role == Role::operates ? config.operator_busy_percent : config.busy_percent;
  }

  EventLoop& loop;
  ServerConfig config;
  PeerGuard& guard;
  ControlServer::Hello hello;
  ControlServer::Unseal unseal;
  ControlServer::Handler handler;
  ServerStats stats;
  std::array<uint8_t, receive_bytes> receive_buffer{};

 private:
  UidState& uid_state(uid_t uid);
  Status may_admit(const Peer& peer, UidState& uid);

  ListenSocket listen_socket;
  FdWatch listen_watch_;
  Timer accept_timer_;
  Timer sweep_timer_;
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<Connection>> connections_;
  std::unordered_map<uid_t, UidState> uids_;  // node-based: Connections keep references
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(ServerCore& server, uint64_t id, UniqueFd fd, Peer peer, UidState& uid)
      : server_(server), id_(id), peer_(std::move(peer)), uid_(uid), fd_(std::move(fd)) {}

  Status start();
  void drop();
  void end(const Error& why);
  void resume();
  void sweep(uint64_t now_ns);
  uid_t uid() const { return peer_.uid; }
  const Peer& peer() const { return peer_; }

  // For Responder.
  bool is_unanswered(uint32_t request_id) const {
    return !gone_ && unanswered_.contains(request_id);
  }
  bool is_writable() const;
  bool has_room(size_t unsent_max) const;
  void send_part(FrameType type, uint16_t flags, uint32_t request_id,
                 std::span<const uint8_t> body);
  void send_final(FrameType type, uint32_t request_id, std::span<const uint8_t> body);
  void on_writable(uint32_t request_id, std::function<void()> callback);

 private:
  void on_event(uint32_t events);
  void receive();
  void process();
  void take_one();
  bool must_wait_for_time();
  void dispatch(Frame frame);
  void refuse(const Error& error, uint32_t request_id);
  void queue(FrameType type, uint16_t flags, uint32_t request_id, std::span<const uint8_t> body);
  void queue_error(uint32_t request_id, const Error& error, const Retry& retry);
  void flush();
  void discard_output();
  void settle();
  void wake_writers();
  void release_unsent(size_t bytes);
  bool may_take() const;
  size_t unsent() const { return out_.size() - out_sent_; }

  ServerCore& server_;  // outlives this: shut_down() drops every connection, and gone_ ends all use
  const uint64_t id_;
  Peer peer_;
  UidState& uid_;
  UniqueFd fd_;
  FdWatch watch_;
  uint32_t watched_events_ = EPOLLIN;
  Timer rate_timer_;  // pending: over its rate, or over its share of the loop's time

  FrameReader reader_;
  std::vector<uint8_t> out_;
  size_t out_sent_ = 0;
  std::unordered_set<uint32_t> unanswered_;
  uint32_t mapped_request_ = 0;  // the unanswered request whose body is mapped: one at a time
  std::vector<std::pair<uint32_t, std::function<void()>>> writers_;

  bool processing_ = false;   // inside process(): answers wait for its flush
  bool turn_over_ = false;    // one request was handled in this turn of the loop; others come first
  bool hung_up_ = false;      // the peer is gone; what it sent may still be here
  bool read_closed_ = false;  // the peer sends no more
  bool write_dead_ = false;   // the peer takes no more
  bool closing_ = false;      // flush, then close
  bool gone_ = false;
  uint64_t partial_since_ns_ = 0;
  uint64_t stalled_since_ns_ = 0;
};

// ---- Connection ----

Status Connection::start() {
  Result<FdWatch> watched =
      server_.loop.watch(fd_.get(), EPOLLIN, [weak = weak_from_this()](uint32_t events) {
        if (const auto self = weak.lock()) self->on_event(events);
      });
  if (!watched) return pass_on(watched);
  watch_ = std::move(*watched);
  queue(FrameType::hello, 0, 0, cbor::encode(server_.hello(peer_)));
  flush();
  settle();
  return {};
}

void Connection::drop() {
  if (gone_) return;
  const auto self = shared_from_this();
  gone_ = true;
  watch_.reset();
  rate_timer_.reset();
  fd_.reset();
  discard_output();
  uid_.unanswered -= static_cast<uint32_t>(unanswered_.size());
  --uid_.connections;
  unanswered_.clear();
  // Destroying these may destroy Responders, which then find the connection gone.
  const auto writers = std::exchange(writers_, {});
  server_.remove(id_);
}

// Says why, if there is room for that, and closes whatever waits.
void Connection::end(const Error& why) {
  const auto self = shared_from_this();
  queue_error(0, why, default_retry(why));
  flush();
  drop();
}

bool Connection::may_take() const {
  const ServerConfig& config = server_.config;
  return !closing_ && mapped_request_ == 0 && !rate_timer_.is_pending() &&
         unanswered_.size() < config.unanswered_max && unsent() < config.unsent_bytes_max &&
         uid_.unanswered < config.uid_unanswered_max && uid_.unsent < config.uid_unsent_bytes_max;
}

bool Connection::is_writable() const {
  return unsent() < server_.config.unsent_bytes_max &&
         uid_.unsent < server_.config.uid_unsent_bytes_max;
}

bool Connection::has_room(size_t unsent_max) const {
  const bool uid_has_room = uid_.unsent < server_.config.uid_unsent_bytes_max / 2;
  return unsent() <= (uid_has_room ? unsent_max : 0);
}

void Connection::on_event(uint32_t events) {
  const auto self = shared_from_this();
  if ((events & EPOLLOUT) != 0) {
    flush();
    wake_writers();
  }
  if (!gone_ && (events & EPOLLIN) != 0) receive();
  if (!gone_ && (events & (EPOLLHUP | EPOLLERR)) != 0) {
    // Nobody reads answers any more. What was already sent to us is still read, unless it would
    // have to wait for room: then there is nobody to wait for it either.
    write_dead_ = true;
    hung_up_ = true;
    discard_output();
    if (!turn_over_ && (read_closed_ || !may_take())) drop();
  }
  // Output that went away may have been what kept requests waiting.
  if (!gone_) resume();
}

void Connection::receive() {
  // Descriptors are taken only from operators. From others the kernel discards them, so that
  // closing one that blocks (a file of a slow user-space filesystem) is never our business.
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int) * pending_fds_max)];
  for (int i = 0; i < receives_per_turn && !gone_ && !read_closed_ && !turn_over_ && may_take();
       ++i) {
    iovec piece{server_.receive_buffer.data(), server_.receive_buffer.size()};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (peer_.role == Role::operates) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
    }
    const ssize_t received = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (received < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return;
      return drop();  // reset by the peer: nothing to answer to
    }
    std::vector<UniqueFd> fds;
    for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr;
         item = CMSG_NXTHDR(&message, item)) {
      if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t k = 0; k < count; ++k) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(item) + k * sizeof fd, sizeof fd);
        fds.emplace_back(fd);
      }
    }
    if (received == 0) {
      read_closed_ = true;
    } else {
      reader_.feed({server_.receive_buffer.data(), static_cast<size_t>(received)}, std::move(fds));
    }
    process();
  }
}

// Takes one frame if the budgets allow it; the next one in the next turn of the loop, so that a
// pipeline of requests never comes before other peers, timers and packets' notices. Never runs
// inside itself: a handler that answers at once comes back here only from the loop.
void Connection::process() {
  if (processing_ || turn_over_ || gone_) return;
  const auto self = shared_from_this();
  processing_ = true;
  if (may_take() && !must_wait_for_time()) take_one();
  processing_ = false;
  if (gone_) return;
  // Only time that the peer takes counts, not time that we let it wait.
  partial_since_ns_ =
      !turn_over_ && reader_.has_pending() && may_take() ? boot_now_ns() : uint64_t{0};
  flush();
  if (hung_up_ && !turn_over_ && (read_closed_ || !may_take())) return drop();
  settle();
}

void Connection::take_one() {
  Result<std::optional<Frame>> frame = reader_.next();
  if (!frame) return refuse(frame.error(), reader_.pending_request_id());
  if (!*frame) {
    if (!read_closed_ || !reader_.has_pending()) return;
    return refuse(Error{ErrorKind::invalid,
                        "truncated_frame",
                        0,
                        "the peer stopped sending in the middle of a frame",
                        {}},
                  reader_.pending_request_id());
  }
  turn_over_ = true;
  server_.loop.defer([weak = weak_from_this()] {
    const auto connection = weak.lock();
    if (connection == nullptr) return;
    connection->turn_over_ = false;
    connection->resume();
  });
  dispatch(std::move(**frame));
}

// A uid that has used up its share of the loop's time waits; nothing is refused, and nothing is
// read from it meanwhile.
bool Connection::must_wait_for_time() {
  if (!reader_.has_pending()) return false;
  const uint64_t wait_ns = uid_.busy.wait_ns(read_clock_ns(CLOCK_MONOTONIC));
  if (wait_ns == 0) return false;
  rate_timer_ = server_.loop.after(wait_ns, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->resume();
  });
  return true;
}

void Connection::dispatch(Frame frame) {
  const uint32_t id = frame.request_id;
  const bool is_signed = frame.type == FrameType::signed_request;
  if ((frame.type != FrameType::request && !is_signed) || frame.more()) {
    return refuse(Error{ErrorKind::invalid,
                        "unexpected_frame",
                        0,
                        "a client sends request frames, one for each request",
                        {}},
                  id);
  }
  if (id == 0 || unanswered_.contains(id)) {
    return refuse(Error{ErrorKind::invalid, "request_id", 0,
                        id == 0 ? "a request's id must not be 0"
                                : fmt::format("request id {} is still unanswered", id),
                        "count request ids up from 1"},
                  id);
  }
  // Before any parsing: a refusal must cost less than what it refuses.
  const uint64_t now_ns = boot_now_ns();
  uid_.meter.count(now_ns);
  const uint64_t wait_ns = uid_.limiter.take(server_.rate_of(peer_.role), now_ns);
  if (wait_ns != 0) {
    ++server_.stats.rate_limited;
    server_.guard.on_offence(peer_, Offence::rate);
    const uint64_t pause_ns = std::max(wait_ns, rate_pause_ns);
    queue_error(id,
                Error{ErrorKind::exhausted, "rate_limited", 0,
                      fmt::format("uid {} sends more than {} requests a second", peer_.uid,
                                  server_.rate_of(peer_.role).per_second),
                      "send fewer requests with more items each"},
                Retry{Retry::When::after_ms, static_cast<uint32_t>(pause_ns / ns_per_ms + 1)});
    rate_timer_ = server_.loop.after(pause_ns, [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->resume();
    });
    return;
  }

  Request request;
  request.id = id;
  if (frame.memfd) {
    Result<MappedBody> mapping = MappedBody::map(std::move(frame.memfd));
    if (!mapping) return refuse(mapping.error(), id);
    request.mapping = std::move(*mapping);
  }
  request.frame = std::move(frame.body);
  // Time spent awake: a suspend is nobody's work.
  const uint64_t begin_ns = read_clock_ns(CLOCK_MONOTONIC);
  const auto server = server_.shared_from_this();  // the handler may end the server
  const auto charge = [&] {
    const uint64_t end_ns = read_clock_ns(CLOCK_MONOTONIC);
    uid_.busy.charge(server->busy_percent_of(peer_.role), end_ns - begin_ns, end_ns);
  };
  std::span<const uint8_t> bytes =
      request.mapping ? request.mapping.bytes() : std::span<const uint8_t>(request.frame);
  if (is_signed) {
    Result<Unsealed> unsealed = server->unseal(peer_, bytes);
    if (!unsealed) {
      queue_error(id, unsealed.error(), default_retry(unsealed.error()));
      server->guard.on_offence(peer_, Offence::signature);
      return charge();
    }
    request.unpacked = std::move(unsealed->unpacked);
    request.signer = std::move(unsealed->signer);
    bytes = unsealed->request;
  }
  Result<DecodedRequest> decoded = decode_request(bytes);
  if (!decoded) {
    charge();
    return refuse(decoded.error(), id);
  }
  request.verb = decoded->verb;
  request.args = std::move(decoded->args);
  request.body = decoded->body;
  request.has_body = decoded->has_body;

  unanswered_.insert(id);
  ++uid_.unanswered;
  if (request.mapping) mapped_request_ = id;
  ++server_.stats.requests;
  server->handler(peer_, std::move(request), Responder(weak_from_this(), id));
  if (!gone_) charge();
}

// Malformed input: say what was wrong, then end the connection.
void Connection::refuse(const Error& error, uint32_t request_id) {
  ++server_.stats.malformed;
  log::info(
      "peer_refused",
      {{"uid", peer_.uid}, {"pid", peer_.pid}, {"code", error.code}, {"detail", error.message}});
  queue_error(request_id, error, default_retry(error));
  closing_ = true;
  server_.guard.on_offence(peer_, Offence::frame);
}

void Connection::queue(FrameType type, uint16_t flags, uint32_t request_id,
                       std::span<const uint8_t> body) {
  if (write_dead_ || gone_ || closing_) return;
  const size_t before = out_.size();
  append_frame(out_, type, flags, request_id, body);
  uid_.unsent += out_.size() - before;
}

void Connection::queue_error(uint32_t request_id, const Error& error, const Retry& retry) {
  queue(FrameType::error, 0, request_id, cbor::encode(encode_error(error, retry)));
}

void Connection::release_unsent(size_t bytes) {
  const bool was_full = uid_.unsent >= server_.config.uid_unsent_bytes_max;
  uid_.unsent -= bytes;
  if (was_full && uid_.unsent < server_.config.uid_unsent_bytes_max) {
    server_.loop.defer([weak = server_.weak_from_this(), uid = peer_.uid] {
      if (const auto server = weak.lock()) server->resume_uid(uid);
    });
  }
}

void Connection::discard_output() {
  const size_t bytes = unsent();
  out_ = {};
  out_sent_ = 0;
  stalled_since_ns_ = 0;
  release_unsent(bytes);
}

void Connection::flush() {
  while (!gone_ && unsent() > 0) {
    const ssize_t sent =
        ::send(fd_.get(), out_.data() + out_sent_, unsent(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {
        if (stalled_since_ns_ == 0) stalled_since_ns_ = boot_now_ns();
        return;
      }
      // The peer reads no more. It may have sent requests before it left: those are still read, and
      // the hang-up that comes with it ends the connection.
      write_dead_ = true;
      return discard_output();
    }
    out_sent_ += static_cast<size_t>(sent);
    stalled_since_ns_ = 0;
    release_unsent(static_cast<size_t>(sent));
    // Moves what is left to the front once it is the smaller half: each byte is moved at most once.
    if (out_sent_ * 2 >= out_.size()) {
      out_.erase(out_.begin(), out_.begin() + static_cast<ptrdiff_t>(out_sent_));
      out_sent_ = 0;
    }
  }
  if (out_.empty() && out_.capacity() > output_bytes_kept) out_ = {};
}

// Closes what is finished, and watches for what can go on.
void Connection::settle() {
  if (gone_) return;
  const bool done = closing_ || (read_closed_ && unanswered_.empty() && !reader_.has_pending());
  if (done && unsent() == 0) return drop();
  const bool take = !read_closed_ && may_take();
  const uint32_t wanted = (take ? uint32_t{EPOLLIN} : 0) | (unsent() > 0 ? uint32_t{EPOLLOUT} : 0);
  if (wanted == watched_events_) return;
  watched_events_ = wanted;
  if (Status changed = watch_.change(wanted); !changed) {
    log::error("peer_unwatchable", {{"uid", peer_.uid}, {"detail", changed.error().text()}});
    drop();
  }
}

void Connection::resume() {
  process();
  if (!gone_) wake_writers();
}

void Connection::wake_writers() {
  if (gone_ || writers_.empty() || unsent() > server_.config.unsent_bytes_max / 2 ||
      !is_writable()) {
    return;
  }
  for (auto& [request_id, callback] : std::exchange(writers_, {})) {
    // The callback may use the connection in any way, so it runs from the loop, not from here.
    server_.loop.defer([weak = weak_from_this(), call = std::move(callback)] {
      const auto self = weak.lock();
      if (self != nullptr && !self->gone_) call();
    });
  }
}

void Connection::sweep(uint64_t now_ns) {
  if (stalled_since_ns_ != 0 && now_ns - stalled_since_ns_ >= server_.config.stall_timeout_ns) {
    ++server_.stats.stalled;
    log::info("peer_stalled", {{"uid", peer_.uid}, {"pid", peer_.pid}, {"unsent_bytes", unsent()}});
    return drop();
  }
  if (partial_since_ns_ != 0 &&
      now_ns - partial_since_ns_ >= server_.config.partial_frame_timeout_ns) {
    ++server_.stats.stalled;
    refuse(Error{ErrorKind::invalid, "frame_timeout", 0,
                 fmt::format("no byte of an unfinished frame came for {}",
                             human_duration(server_.config.partial_frame_timeout_ns)),
                 "send each frame without pausing"},
           reader_.pending_request_id());
    partial_since_ns_ = 0;
    flush();
    settle();
  }
}

void Connection::send_part(FrameType type, uint16_t flags, uint32_t request_id,
                           std::span<const uint8_t> body) {
  const auto self = shared_from_this();
  queue(type, flags, request_id, body);
  if (processing_) return;
  flush();
  settle();
}

void Connection::send_final(FrameType type, uint32_t request_id, std::span<const uint8_t> body) {
  const auto self = shared_from_this();
  const bool was_taking = may_take();
  const bool uid_was_full = uid_.unanswered >= server_.config.uid_unanswered_max;
  queue(type, 0, request_id, body);
  unanswered_.erase(request_id);
  --uid_.unanswered;
  if (mapped_request_ == request_id) mapped_request_ = 0;
  const auto same = [request_id](const auto& writer) { return writer.first == request_id; };
  std::erase_if(writers_, same);
  if (uid_was_full) {
    server_.loop.defer([weak = server_.weak_from_this(), uid = peer_.uid] {
      if (const auto server = weak.lock()) server->resume_uid(uid);
    });
  }
  if (processing_) return;
  flush();
  if (gone_) return;
  if (!was_taking) {
    // Requests wait in reader_. They are handled from the loop: whoever answered this one is not
    // called back from inside its own answer.
    server_.loop.defer([weak = weak_from_this()] {
      if (const auto connection = weak.lock()) connection->resume();
    });
  }
  settle();
}

void Connection::on_writable(uint32_t request_id, std::function<void()> callback) {
  for (auto& [id, existing] : writers_) {
    if (id != request_id) continue;
    existing = std::move(callback);
    return;
  }
  writers_.emplace_back(request_id, std::move(callback));
  wake_writers();
}

// ---- ServerCore ----

Status ServerCore::start() {
  Result<FdWatch> watched =
      loop.watch(listen_socket.fd(), EPOLLIN, [weak = weak_from_this()](uint32_t) {
        if (const auto self = weak.lock()) self->accept_some();
      });
  if (!watched) return pass_on(watched, config.path);
  listen_watch_ = std::move(*watched);
  const uint64_t shortest_ns = std::min(config.partial_frame_timeout_ns, config.stall_timeout_ns);
  sweep_timer_ = loop.every(std::clamp<uint64_t>(shortest_ns / 4, ns_per_ms, ns_per_s),
                            [weak = weak_from_this()] {
                              if (const auto self = weak.lock()) self->sweep();
                            });
  return {};
}

void ServerCore::shut_down() {
  listen_watch_.reset();
  accept_timer_.reset();
  sweep_timer_.reset();
  while (!connections_.empty()) {
    const std::shared_ptr<Connection> connection = connections_.begin()->second;
    connection->drop();
  }
}

void ServerCore::remove(uint64_t connection_id) {
  connections_.erase(connection_id);
  stats.connections = connections_.size();
}

void ServerCore::for_each_peer(const std::function<void(const Peer&)>& tell) const {
  for (const auto& [id, connection] : connections_) tell(connection->peer());
}

void ServerCore::for_each_uid(const std::function<void(const UidView&)>& tell) const {
  const uint64_t now_ns = boot_now_ns();
  for (const auto& [uid, state] : uids_)
    tell({uid, state.connections, state.meter.per_second(now_ns)});
}

void ServerCore::end_peers(const std::function<bool(const Peer&)>& whom, const Error& why) {
  std::vector<std::shared_ptr<Connection>> those;
  for (const auto& [id, connection] : connections_)
    if (whom(connection->peer())) those.push_back(connection);
  for (const auto& connection : those) connection->end(why);
}

void ServerCore::resume_uid(uid_t uid) {
  std::vector<std::shared_ptr<Connection>> same;
  for (const auto& [id, connection] : connections_) {
    if (connection->uid() == uid) same.push_back(connection);
  }
  for (const auto& connection : same) connection->resume();
}

void ServerCore::sweep() {
  const uint64_t now_ns = boot_now_ns();
  std::vector<std::shared_ptr<Connection>> all;
  all.reserve(connections_.size());
  for (const auto& [id, connection] : connections_) all.push_back(connection);
  for (const auto& connection : all) connection->sweep(now_ns);
}

void ServerCore::accept_some() {
  for (int i = 0; i < accepts_per_turn; ++i) {
    UniqueFd fd(::accept4(listen_socket.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd) {
      admit(std::move(fd));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN) return;
    // Out of descriptors or memory. The waiting peer would wake the loop again at once, for ever.
    log::warning("accept_paused", {{"path", config.path}, {"cause", std::strerror(errno)}});
    if (Status paused = listen_watch_.change(0); !paused) return;
    accept_timer_ = loop.after(accept_pause_ns, [weak = weak_from_this()] {
      const auto self = weak.lock();
      if (self == nullptr) return;
      if (Status resumed = self->listen_watch_.change(EPOLLIN); !resumed) {
        log::error("accept_stopped", {{"detail", resumed.error().text()}});
      }
    });
    return;
  }
}

UidState& ServerCore::uid_state(uid_t uid) {
  if (uids_.size() > idle_uids_max) {
    const uint64_t now_ns = boot_now_ns();
    std::erase_if(uids_, [now_ns](const auto& entry) {
      return entry.second.connections == 0 && entry.second.limiter.is_full(now_ns) &&
             entry.second.busy.wait_ns(read_clock_ns(CLOCK_MONOTONIC)) == 0;
    });
  }
  UidState& state = uids_[uid];
  state.uid = uid;
  return state;
}

Status ServerCore::may_admit(const Peer& peer, UidState& uid) {
  const uint32_t uid_max = peer.uid == 0 ? config.root_connections_max : config.uid_connections_max;
  if (uid.connections >= uid_max) {
    return fail(ErrorKind::exhausted, "too_many_connections",
                fmt::format("uid {} has {} connections already", peer.uid, uid.connections),
                "close one, or send several requests over one connection");
  }
  const uint32_t kept = peer.role == Role::operates ? 0 : config.connections_for_operators;
  if (connections_.size() + kept >= config.connections_max) {
    return fail(ErrorKind::exhausted, "too_many_connections",
                fmt::format("the daemon has {} connections already", connections_.size()),
                "try again later");
  }
  if (uid.limiter.take(rate_of(peer.role), boot_now_ns()) != 0) {
    guard.on_offence(peer, Offence::rate);
    return fail(ErrorKind::exhausted, "rate_limited",
                fmt::format("uid {} connects too often", peer.uid), "keep one connection open");
  }
  return {};
}

// Best effort: a fresh socket has room for one small frame, and one that has not is closed all the
// same.
void send_refusal(int fd, const Error& error) {
  std::vector<uint8_t> frame;
  append_frame(frame, FrameType::error, 0, 0,
               cbor::encode(encode_error(error, default_retry(error))));
  [[maybe_unused]] const ssize_t sent =
      ::send(fd, frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

void ServerCore::admit(UniqueFd fd) {
  Result<Peer> peer = read_peer(fd.get(), {config.operator_gid, config.reader_gid});
  UidState* uid = nullptr;
  Status allowed;
  if (!peer) {
    allowed = pass_on(peer);
  } else if (allowed = guard.may_connect(*peer); !allowed) {
    ++stats.suspended;
  } else {
    uid = &uid_state(peer->uid);
    allowed = may_admit(*peer, *uid);
  }
  if (!allowed) {
    ++stats.refused_connections;
    log::info("connection_refused",
              {{"code", allowed.error().code}, {"detail", allowed.error().text()}});
    send_refusal(fd.get(), allowed.error());
    return;
  }
  const uint64_t id = next_id_++;
  const auto connection =
      std::make_shared<Connection>(*this, id, std::move(fd), std::move(*peer), *uid);
  ++uid->connections;
  ++stats.accepted;
  connections_.emplace(id, connection);
  stats.connections = connections_.size();
  if (Status started = connection->start(); !started) {
    log::error("connection_failed", {{"detail", started.error().text()}});
    connection->drop();
  }
}

}  // namespace detail

// ---- Responder ----

Responder& Responder::operator=(Responder&& other) noexcept {
  if (this != &other) {
    const Responder dropped = std::move(*this);
    connection_ = std::move(other.connection_);
    request_id_ = std::exchange(other.request_id_, 0);
  }
  return *this;
}

Responder::~Responder() {
  if (!is_open()) return;
  fail(Error{ErrorKind::internal, "unanswered", 0,
             "the daemon dropped the request without an answer",
             "report this as a bug; look at the object's state before repeating the request"});
}

bool Responder::is_open() const {
  const auto connection = connection_.lock();
  return connection != nullptr && request_id_ != 0 && connection->is_unanswered(request_id_);
}

void Responder::send_final(FrameType type, std::span<const uint8_t> body) {
  const uint32_t request_id = std::exchange(request_id_, 0);
  const auto connection = std::exchange(connection_, {}).lock();
  if (connection == nullptr || request_id == 0 || !connection->is_unanswered(request_id)) return;
  connection->send_final(type, request_id, body);
}

void Responder::answer(const cbor::Value& body) {
  answer_encoded(cbor::encode(body));
}

void Responder::answer_encoded(std::span<const uint8_t> body) {
  if (body.size() > inline_body_bytes_max) {
    return fail(Error{
        ErrorKind::internal, "reply_too_large", 0,
        fmt::format("the reply has {} bytes, {} fit a frame", body.size(), inline_body_bytes_max),
        "ask for fewer items at a time"});
  }
  send_final(FrameType::reply, body);
}

void Responder::fail(const Error& error, const Retry& retry) {
  send_final(FrameType::error, cbor::encode(encode_error(error, retry)));
}

Status Responder::send_part(FrameType type, uint16_t flags, std::span<const uint8_t> body,
                            std::optional<size_t> unsent_max) {
  const auto connection = connection_.lock();
  if (connection == nullptr || request_id_ == 0 || !connection->is_unanswered(request_id_)) {
    return holdfast::fail(ErrorKind::unavailable, "peer_gone",
                          "the peer has closed its connection");
  }
  if (body.size() > inline_body_bytes_max) {
    return holdfast::fail(ErrorKind::internal, "reply_too_large",
                          fmt::format("{} bytes do not fit a frame", body.size()));
  }
  if (unsent_max ? !connection->has_room(*unsent_max) : !connection->is_writable()) {
    return holdfast::fail(ErrorKind::exhausted, "peer_slow",
                          "the peer does not read what it was sent");
  }
  connection->send_part(type, flags, request_id_, body);
  return {};
}

Status Responder::page(const cbor::Value& body) {
  return page_encoded(cbor::encode(body));
}

Status Responder::page_encoded(std::span<const uint8_t> body) {
  return send_part(FrameType::reply, flag_more, body);
}

Status Responder::event(const cbor::Value& body) {
  return send_part(FrameType::event, 0, cbor::encode(body));
}

Status Responder::event_encoded(std::span<const uint8_t> body, size_t unsent_max) {
  return send_part(FrameType::event, 0, body, unsent_max);
}

bool Responder::has_room(size_t unsent_max) const {
  const auto connection = connection_.lock();
  return connection != nullptr && connection->has_room(unsent_max);
}

void Responder::on_writable(std::function<void()> callback) {
  const auto connection = connection_.lock();
  if (connection == nullptr || request_id_ == 0 || !connection->is_unanswered(request_id_)) return;
  connection->on_writable(request_id_, std::move(callback));
}

// ---- ControlServer ----

Result<std::unique_ptr<ControlServer>> ControlServer::open(EventLoop& loop, ServerConfig config,
                                                           PeerGuard& guard, Hello hello,
                                                           Unseal unseal, Handler handler) {
  Result<ListenSocket> socket = ListenSocket::open(config.path, SOCK_STREAM);
  if (!socket) return pass_on(socket);
  auto core = std::make_shared<detail::ServerCore>(loop, std::move(config), guard, std::move(hello),
                                                   std::move(unseal), std::move(handler),
                                                   std::move(*socket));
  if (Status started = core->start(); !started) return pass_on(started);
  return std::unique_ptr<ControlServer>(new ControlServer(std::move(core)));
}

ControlServer::~ControlServer() {
  core_->shut_down();
}

void ControlServer::for_each_peer(const std::function<void(const Peer&)>& tell) const {
  core_->for_each_peer(tell);
}

void ControlServer::for_each_uid(const std::function<void(const UidView&)>& tell) const {
  core_->for_each_uid(tell);
}

void ControlServer::end_peers(std::function<bool(const Peer&)> whom, Error why) {
  core_->loop.defer([weak = std::weak_ptr(core_), whom = std::move(whom), why = std::move(why)] {
    if (const auto core = weak.lock()) core->end_peers(whom, why);
  });
}

ServerStats ControlServer::stats() const {
  return core_->stats;
}

}  // namespace holdfast::wire
