// Client: the calling side of control.sock, blocking, for the CLI, tests and control planes. One
// request at a time. Not for the daemon's loop, and not shared between threads.
//
// Errors of the daemon come back as they were (kind, code, message, next step); errors of the
// transport have codes of their own: daemon_not_running, stale_socket, socket_permission,
// not_holdfast, connection_closed, timeout. After connection_closed or timeout the outcome of a
// request is unknown: look at the object before repeating it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/frame.hpp"

namespace holdfast::wire {

struct ClientOptions {
  uint64_t connect_timeout_ns = 5 * ns_per_s;  // until the hello was read
  uint64_t call_timeout_ns =
      30 * ns_per_s;  // without any frame; a teardown may take its class's deadline
};

// What a failed connect(2) to a socket of the daemon's means, and what to do.
Error connect_error(int sys, const std::string& path);

class Client {
 public:
  static Result<Client> connect(const std::string& path, const ClientOptions& options = {});

  // What the daemon said first: versions, limits, node_id, the peer's role, the challenge.
  const cbor::Value& hello() const { return hello_; }

  Result<cbor::Value> call(std::string_view verb, const cbor::Value& args);
  // Raw bytes beside the arguments: bulk items, a bundle. From 512 KiB on they go in a sealed
  // memfd, which the daemon takes from operators only.
  Result<cbor::Value> call_with_body(std::string_view verb, const cbor::Value& args,
                                     std::span<const uint8_t> body);
  // A reply of several frames: `page` gets each but the last, which is returned. A page that fails
  // ends the connection.
  Result<cbor::Value> call_paged(std::string_view verb, const cbor::Value& args,
                                 const std::function<Status(const cbor::Value&)>& page);
  // A stream: `event` gets each event; returning false ends the stream and with it the connection,
  // and the result is null. Between events there is no timeout.
  Result<cbor::Value> follow(std::string_view verb, const cbor::Value& args,
                             const std::function<bool(const cbor::Value&)>& event);

  // Requests are sealed by this from here on: given the hello, the socket, a number that rises by
  // one with each, and a request, it makes what is sent instead.
  using Seal = std::function<Result<std::vector<uint8_t>>(
      const cbor::Value& hello, int socket, uint64_t sequence, std::span<const uint8_t> request)>;
  void seal_with(Seal seal) { seal_ = std::move(seal); }

  // What the daemon said about repeating the request that failed last.
  const Retry& last_retry() const { return last_retry_; }
  bool is_connected() const { return static_cast<bool>(socket_); }
  // For a caller that waits on several things, or ends a stream from a signal handler by
  // shutdown(2).
  int fd() const { return socket_.get(); }

 private:
  Client(UniqueFd socket, std::string path, const ClientOptions& options)
      : socket_(std::move(socket)), path_(std::move(path)), options_(options) {}

  Status read_hello();
  Result<uint32_t> send_request(std::string_view verb, const cbor::Value& args,
                                const std::span<const uint8_t>* body);
  Status send_all(std::span<const uint8_t> bytes, int pass_fd, uint64_t deadline_ns);
  // The next frame; deadline 0 waits for ever.
  Result<Frame> read_frame(uint64_t deadline_ns);
  // The next frame that answers this request.
  Result<Frame> read_answer(uint32_t request_id, uint64_t deadline_ns);
  Result<cbor::Value> decode_body(const Frame& frame);
  std::unexpected<Error> take_error(const Frame& frame);
  std::unexpected<Error> closed(int sys);
  std::unexpected<Error> broken(Error error);
  uint64_t call_deadline() const;

  UniqueFd socket_;
  std::string path_;
  ClientOptions options_;
  FrameReader reader_;
  cbor::Value hello_;
  Retry last_retry_;
  uint32_t last_id_ = 0;
  Seal seal_;
  uint64_t sequence_ = 0;
};

}  // namespace holdfast::wire
