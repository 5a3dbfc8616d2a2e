#include "userspace/wire/client.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <optional>

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include "userspace/base/check.hpp"
#include "userspace/wire/unix_address.hpp"

namespace holdfast::wire {
namespace {

constexpr size_t receive_bytes = 64U << 10;
// A reply is at most one inline body, so this only bounds memory against a daemon that is not ours.
constexpr size_t reply_items_max = 1U << 20;

// Waits until the socket is ready. 0 as a deadline waits for ever. False: the deadline has passed.
bool wait_ready(int fd, short events, uint64_t deadline_ns) {
  for (;;) {
    int timeout_ms = -1;
    if (deadline_ns != 0) {
      const uint64_t now_ns = boot_now_ns();
      if (now_ns >= deadline_ns) return false;
      const uint64_t left_ms = (deadline_ns - now_ns) / ns_per_ms + 1;
      timeout_ms = static_cast<int>(std::min<uint64_t>(left_ms, INT_MAX));
    }
    pollfd item{fd, events, 0};
    // Any other failure shows itself in the call that follows.
    if (::poll(&item, 1, timeout_ms) != 0 && errno != EINTR) return true;
    if (item.revents != 0) return true;
  }
}

std::unexpected<Error> timed_out(std::string what) {
  return fail(ErrorKind::unavailable, "timeout", std::move(what),
              "see whether the daemon is well: holdfast doctor; journalctl -u holdfastd");
}

}  // namespace

Error connect_error(int sys, const std::string& path) {
  switch (sys) {
    case ENOENT:
    case ENOTDIR:
      return {ErrorKind::unavailable, "daemon_not_running", 0,
              fmt::format("holdfastd is not running: there is no socket {}", path),
              "start it: systemctl start holdfastd"};
    case ECONNREFUSED:
      return {ErrorKind::unavailable, "stale_socket", 0,
              fmt::format("holdfastd is not running: {} was left by one that ended", path),
              "start it: systemctl start holdfastd"};
    case EACCES:
    case EPERM:
      return {ErrorKind::denied, "socket_permission", 0, fmt::format("you may not use {}", path),
              "become root, or a member of the group holdfast or holdfast-operator"};
    case EAGAIN:
      return {ErrorKind::unavailable, "daemon_busy", 0,
              fmt::format("holdfastd does not accept connections on {} fast enough", path),
              "try again in a second"};
    default:
      return {ErrorKind::unavailable,
              "connect_failed",
              sys,
              fmt::format("cannot connect to {}", path),
              {}};
  }
}

uint64_t Client::call_deadline() const {
  return options_.call_timeout_ns == 0 ? 0 : boot_now_ns() + options_.call_timeout_ns;
}

std::unexpected<Error> Client::closed(int sys) {
  socket_.reset();
  return std::unexpected(
      Error{ErrorKind::unavailable, "connection_closed", sys,
            fmt::format("holdfastd closed the connection on {}", path_),
            "look at the object's state, then repeat the request if it is needed"});
}

// The stream cannot be trusted any further.
std::unexpected<Error> Client::broken(Error error) {
  socket_.reset();
  return std::unexpected(std::move(error).in(path_));
}

Result<Client> Client::connect(const std::string& path, const ClientOptions& options) {
  Result<sockaddr_un> address = unix_address(path);
  if (!address) return pass_on(address);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_sys(errno, "socket", "cannot create a socket");
  const uint64_t deadline_ns = boot_now_ns() + options.connect_timeout_ns;
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) !=
         0) {
    const int sys = errno;
    if (sys == EINTR) continue;
    if (sys != EAGAIN || boot_now_ns() >= deadline_ns)
      return std::unexpected(connect_error(sys, path));
    // The listener's queue is full. The kernel offers nothing to wait on there.
    constexpr int queue_full_ms = 5;
    ::poll(nullptr, 0, queue_full_ms);
  }
  Client client(std::move(socket), path, options);
  if (Status greeted = client.read_hello(); !greeted) return pass_on(greeted);
  return client;
}

Status Client::read_hello() {
  Result<Frame> frame = read_frame(boot_now_ns() + options_.connect_timeout_ns);
  if (!frame) {
    if (frame.error().code == "bad_magic") {
      return broken({ErrorKind::unsupported, "not_holdfast", 0,
                     "what listens here is not holdfastd",
                     "give the path of holdfastd's control.sock"});
    }
    return pass_on(frame);
  }
  if (frame->type == FrameType::error) {
    auto error = take_error(*frame);
    socket_.reset();
    return error;
  }
  if (frame->type != FrameType::hello) {
    return broken({ErrorKind::unsupported, "not_holdfast", 0, "the daemon did not say hello first",
                   "use the client and the daemon of one release"});
  }
  Result<cbor::Value> body = decode_body(*frame);
  if (!body) return pass_on(body);
  hello_ = std::move(*body);
  return {};
}

Result<cbor::Value> Client::decode_body(const Frame& frame) {
  cbor::Limits limits;
  limits.items_max = reply_items_max;
  Result<cbor::Value> body = cbor::decode(frame.body, limits);
  if (!body) return broken(std::move(body.error()));
  return body;
}

std::unexpected<Error> Client::take_error(const Frame& frame) {
  Result<WireError> error = decode_error(frame.body);
  if (!error) return broken(std::move(error.error()));
  last_retry_ = error->retry;
  return std::unexpected(std::move(error->error));
}

Result<Frame> Client::read_frame(uint64_t deadline_ns) {
  std::array<uint8_t, receive_bytes> buffer;
  for (;;) {
    Result<std::optional<Frame>> frame = reader_.next();
    if (!frame) return broken(std::move(frame.error()));
    if (*frame) return std::move(**frame);
    if (!socket_) return closed(0);
    const ssize_t received = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (received > 0) {
      reader_.feed({buffer.data(), static_cast<size_t>(received)});
      continue;
    }
    if (received == 0) return closed(0);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return closed(errno);
    if (!wait_ready(socket_.get(), POLLIN, deadline_ns)) {
      return timed_out(fmt::format("holdfastd did not answer on {} in time", path_));
    }
  }
}

Result<Frame> Client::read_answer(uint32_t request_id, uint64_t deadline_ns) {
  for (;;) {
    Result<Frame> frame = read_frame(deadline_ns);
    if (!frame) return frame;
    // Id 0: the connection as a whole was refused.
    if (frame->type == FrameType::error && frame->request_id == 0) {
      auto error = take_error(*frame);
      socket_.reset();
      return error;
    }
    // A late answer to a request that timed out.
    if (frame->request_id != request_id) continue;
    if (frame->type == FrameType::error) return take_error(*frame);
    if (frame->type == FrameType::reply || frame->type == FrameType::event) return frame;
    return broken({ErrorKind::internal,
                   "unexpected_frame",
                   0,
                   "the daemon sent a frame that answers no request",
                   {}});
  }
}

Status Client::send_all(std::span<const uint8_t> bytes, int pass_fd, uint64_t deadline_ns) {
  alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int))] = {};
  while (!bytes.empty()) {
    iovec piece{const_cast<uint8_t*>(bytes.data()), bytes.size()};  // sendmsg only reads it
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (pass_fd >= 0) {
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* item = CMSG_FIRSTHDR(&message);
      item->cmsg_level = SOL_SOCKET;
      item->cmsg_type = SCM_RIGHTS;
      item->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(item), &pass_fd, sizeof pass_fd);
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
      pass_fd = -1;  // it went with the first byte
      continue;
    }
    if (errno == EINTR) continue;
    // The daemon may have said why it closes: the answer is read before this is reported.
    if (errno == EPIPE || errno == ECONNRESET) return {};
    if (errno != EAGAIN) return closed(errno);
    if (!wait_ready(socket_.get(), POLLOUT, deadline_ns)) {
      // A request that is half sent cannot be taken back.
      auto error = timed_out(fmt::format("holdfastd does not read requests on {}", path_));
      socket_.reset();
      return error;
    }
  }
  return {};
}

Result<uint32_t> Client::send_request(std::string_view verb, const cbor::Value& args,
                                      const std::span<const uint8_t>* body) {
  if (!socket_) return closed(0);
  last_retry_ = {};
  const std::optional<size_t> body_bytes =
      body != nullptr ? std::optional(body->size()) : std::nullopt;
  RequestParts parts = encode_request(verb, args, body_bytes);
  std::span<const uint8_t> content = body != nullptr ? *body : std::span<const uint8_t>();
  FrameType type = FrameType::request;
  if (seal_) {
    parts.before.insert(parts.before.end(), content.begin(), content.end());
    parts.before.insert(parts.before.end(), parts.after.begin(), parts.after.end());
    Result<std::vector<uint8_t>> sealed = seal_(hello_, socket_.get(), ++sequence_, parts.before);
    if (!sealed) return pass_on(sealed);
    parts = {.before = std::move(*sealed), .after = {}};
    content = {};
    type = FrameType::signed_request;
  }
  const uint64_t size = parts.before.size() + content.size() + parts.after.size();
  if (size > memfd_body_bytes_max) {
    return fail(
        ErrorKind::invalid, "request_too_large",
        fmt::format("a request of {} bytes is over the limit of {}", size, memfd_body_bytes_max),
        "send fewer items at a time");
  }
  // Ids start again after 2^32 requests; one request at a time, so none is in use.
  if (++last_id_ == 0) last_id_ = 1;
  std::vector<uint8_t> bytes;
  UniqueFd memfd;
  if (size < memfd_body_bytes_from) {
    append_frame_header(bytes, type, 0, last_id_, size);
    bytes.insert(bytes.end(), parts.before.begin(), parts.before.end());
    bytes.insert(bytes.end(), content.begin(), content.end());
    bytes.insert(bytes.end(), parts.after.begin(), parts.after.end());
  } else {
    Result<UniqueFd> sealed = sealed_memfd({parts.before, content, parts.after});
    if (!sealed) return pass_on(sealed);
    memfd = std::move(*sealed);
    append_frame_header(bytes, type, flag_memfd, last_id_, 0);
  }
  if (Status sent = send_all(bytes, memfd.get(), call_deadline()); !sent) return pass_on(sent);
  return last_id_;
}

Result<cbor::Value> Client::call(std::string_view verb, const cbor::Value& args) {
  return call_paged(verb, args, nullptr);
}

Result<cbor::Value> Client::call_with_body(std::string_view verb, const cbor::Value& args,
                                           std::span<const uint8_t> body) {
  Result<uint32_t> id = send_request(verb, args, &body);
  if (!id) return pass_on(id);
  Result<Frame> frame = read_answer(*id, call_deadline());
  if (!frame) return pass_on(frame);
  if (frame->type != FrameType::reply || frame->more()) {
    return broken({ErrorKind::internal,
                   "unexpected_frame",
                   0,
                   fmt::format("\"{}\" answers with a stream", verb),
                   {}});
  }
  return decode_body(*frame);
}

Result<cbor::Value> Client::call_paged(std::string_view verb, const cbor::Value& args,
                                       const std::function<Status(const cbor::Value&)>& page) {
  Result<uint32_t> id = send_request(verb, args, nullptr);
  if (!id) return pass_on(id);
  for (;;) {
    Result<Frame> frame = read_answer(*id, call_deadline());
    if (!frame) return pass_on(frame);
    if (frame->type != FrameType::reply || (frame->more() && page == nullptr)) {
      return broken({ErrorKind::internal,
                     "unexpected_frame",
                     0,
                     fmt::format("\"{}\" answers with a stream", verb),
                     {}});
    }
    Result<cbor::Value> body = decode_body(*frame);
    if (!body || !frame->more()) return body;
    if (Status taken = page(*body); !taken) {
      socket_.reset();
      return pass_on(taken);
    }
  }
}

Result<cbor::Value> Client::follow(std::string_view verb, const cbor::Value& args,
                                   const std::function<bool(const cbor::Value&)>& event) {
  Result<uint32_t> id = send_request(verb, args, nullptr);
  if (!id) return pass_on(id);
  for (;;) {
    Result<Frame> frame = read_answer(*id, 0);
    if (!frame) return pass_on(frame);
    Result<cbor::Value> body = decode_body(*frame);
    if (!body) return body;
    if (frame->type == FrameType::reply && !frame->more()) return body;
    if (!event(*body)) {
      socket_.reset();
      return cbor::Value();
    }
  }
}

}  // namespace holdfast::wire
