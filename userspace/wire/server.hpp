// ControlServer: the listening side of control.sock, one thread on one EventLoop.
//
//   accept -> peer credentials -> guard -> hello
//   frames -> handler(peer, request, responder) -> reply
//
// It decides nothing about verbs. It guarantees the handler: a known peer, a well-formed request, a
// bounded number of them; and the peer: exactly one final answer per request, or a closed
// connection.
//
// Every bound is in ServerConfig. What is over a bound is refused by name where that costs nothing,
// or left unread in the kernel's socket buffer, so that the peer waits and nobody else does.
// Budgets go by uid, so that opening more connections buys nothing. A connection has one request
// handled in a turn of the loop, and a uid that is no operator a share of the loop's time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/event_loop.hpp"
#include "userspace/wire/frame.hpp"
#include "userspace/wire/peer.hpp"
#include "userspace/wire/rate_limit.hpp"

namespace holdfast::wire {

struct ServerConfig {
  std::string path;  // at most 107 bytes; PATH.lock is made beside it
  std::optional<gid_t>
      operator_gid;                 // of group holdfast-operator, none when there is no such group
  std::optional<gid_t> reader_gid;  // of group holdfast

  // Per connection. An answer is at most 1 MiB, so unsent bytes stay below unsent_bytes_max + 1 MiB
  // for a handler that answers at once.
  uint32_t unanswered_max = 64;
  size_t unsent_bytes_max = 4U << 20;
  // Per uid, over all its connections.
  uint32_t uid_connections_max = 64;
  uint32_t root_connections_max = 2048;
  uint32_t uid_unanswered_max = 2048;
  size_t uid_unsent_bytes_max = 16U << 20;
  // All together. The last ones are kept for operators, so that nobody else can lock them out.
  uint32_t connections_max = 4096;
  uint32_t connections_for_operators = 32;

  // Requests and new connections, per uid; per_second 0 is unlimited.
  Rate rate = {1000, 2000};
  Rate operator_rate = {};
  // Of the loop's time, spent on requests of one uid, in the long run; what is over waits. 0 is
  // unlimited.
  uint32_t busy_percent = 20;
  uint32_t operator_busy_percent = 0;

  uint64_t partial_frame_timeout_ns = 10 * ns_per_s;  // no byte of an unfinished frame for so long
  uint64_t stall_timeout_ns = 60 * ns_per_s;          // no byte taken by the peer for so long
};

struct ServerStats {
  uint64_t connections = 0;  // now
  uint64_t accepted = 0;
  uint64_t refused_connections = 0;
  uint64_t requests = 0;      // handed to the handler
  uint64_t malformed = 0;     // connections closed over what they sent
  uint64_t rate_limited = 0;  // requests refused
  uint64_t suspended = 0;     // of the connections refused, those that the guard refused
  uint64_t stalled = 0;       // connections closed by a timeout
};

// What the server is told of those who connect, and tells of them. On the loop's thread.
class PeerGuard {
 public:
  PeerGuard() = default;
  PeerGuard(const PeerGuard&) = delete;
  PeerGuard& operator=(const PeerGuard&) = delete;
  virtual ~PeerGuard() = default;

  // Asked of each new connection; what it answers is sent, and the connection closed.
  virtual Status may_connect(const Peer& peer) const = 0;
  virtual void on_offence(const Peer& peer, Offence offence) = 0;
};

// What a uid asks for, now.
struct UidView {
  uid_t uid = 0;
  uint32_t connections = 0;
  uint32_t requests_per_s = 0;  // in the last whole second, those that were refused too
};

// A request, decoded. `body` is the raw bytes the request carries (bulk items, a bundle), unparsed;
// it points into memory the Request owns and is valid as long as the Request is, moved or not.
struct Request {
  uint32_t id = 0;
  std::string verb;
  cbor::Value args;  // a map
  std::span<const uint8_t> body;
  bool has_body = false;

  // Whose signature it bears; none: nobody's, and the peer is who it is.
  std::shared_ptr<const Principal> signer;

  std::vector<uint8_t> frame;     // owns what `body` points into, when it came inline
  MappedBody mapping;             // or in a memfd
  std::vector<uint8_t> unpacked;  // or was made from one of these
};

// A signed request whose signature is good: what was signed, and by whom. `request` points into the
// sealed bytes, or into `unpacked`.
struct Unsealed {
  std::span<const uint8_t> request;
  std::vector<uint8_t> unpacked;
  std::shared_ptr<const Principal> signer;
};

namespace detail {
class Connection;
class ServerCore;
}  // namespace detail

// The right and the duty to answer one request, now or later, on the loop's thread. Move-only.
// Dropped unanswered, it answers internal / unanswered. After the peer has gone every call does
// nothing.
class Responder {
 public:
  Responder() = default;
  Responder(std::weak_ptr<detail::Connection> connection, uint32_t request_id)
      : connection_(std::move(connection)), request_id_(request_id) {}
  Responder(Responder&& other) noexcept
      : connection_(std::move(other.connection_)),
        request_id_(std::exchange(other.request_id_, 0)) {}
  Responder& operator=(Responder&& other) noexcept;
  ~Responder();

  // The final answer. More than 1 MiB becomes internal / reply_too_large: use pages.
  void answer(const cbor::Value& body);
  void answer_encoded(std::span<const uint8_t> body);
  void fail(const Error& error) { fail(error, default_retry(error)); }
  void fail(const Error& error, const Retry& retry);

  // A reply frame that others follow, or an event of a stream; a final answer must still come.
  // Errors: unavailable / peer_gone; exhausted / peer_slow, nothing was sent: wait for
  // on_writable().
  Status page(const cbor::Value& body);
  Status page_encoded(std::span<const uint8_t> body);
  Status event(const cbor::Value& body);
  // An event of a stream with many readers, encoded once for all. It is sent only to a peer that
  // has room for it, so that one of those that do not read costs the others nothing.
  Status event_encoded(std::span<const uint8_t> body, size_t unsent_max);
  // No more than `unsent_max` bytes of this connection wait to be taken; none at all once its uid
  // has used half of its budget.
  bool has_room(size_t unsent_max) const;

  // Calls back once, in a later turn, when there is room for more. When the peer goes first, the
  // callback is destroyed instead. One at a time for a request; a new one replaces it.
  void on_writable(std::function<void()> callback);

  // Unanswered, and the peer still connected.
  bool is_open() const;
  uint32_t request_id() const { return request_id_; }

 private:
  Status send_part(FrameType type, uint16_t flags, std::span<const uint8_t> body,
                   std::optional<size_t> unsent_max = {});
  void send_final(FrameType type, std::span<const uint8_t> body);

  std::weak_ptr<detail::Connection> connection_;
  uint32_t request_id_ = 0;  // 0: answered or moved from
};

class ControlServer {
 public:
  using Hello = std::function<cbor::Value(const Peer&)>;
  // Opens a signed request; the peer remembers how far it has come. What it refuses is answered,
  // and the connection goes on.
  using Unseal = std::function<Result<Unsealed>(Peer&, std::span<const uint8_t>)>;
  // The handler may write down what the peer proves of itself.
  using Handler = std::function<void(Peer&, Request, Responder)>;

  // Takes PATH.lock (flock) for its lifetime, refuses to run beside another daemon (conflict /
  // already_serving), removes a stale socket, listens with mode 0666: who may do what is decided by
  // credentials, and by signatures. The loop and the guard must outlive the server.
  static Result<std::unique_ptr<ControlServer>> open(EventLoop& loop, ServerConfig config,
                                                     PeerGuard& guard, Hello hello, Unseal unseal,
                                                     Handler handler);
  // Closes every connection and removes the socket.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  ServerStats stats() const;
  // Who is connected, in no order.
  void for_each_peer(const std::function<void(const Peer&)>& tell) const;
  // Who is connected, or was a moment ago, by uid and in no order.
  void for_each_uid(const std::function<void(const UidView&)>& tell) const;
  // Ends the connections of some peers in the next turn of the loop, telling them why.
  void end_peers(std::function<bool(const Peer&)> whom, Error why);

 private:
  explicit ControlServer(std::shared_ptr<detail::ServerCore> core) : core_(std::move(core)) {}
  std::shared_ptr<detail::ServerCore> core_;
};

}  // namespace holdfast::wire
