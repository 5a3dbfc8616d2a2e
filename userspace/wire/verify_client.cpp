#include "userspace/wire/verify_client.hpp"

#include <cerrno>

#include <fmt/format.h>
#include <sys/socket.h>

#include "userspace/wire/client.hpp"
#include "userspace/wire/unix_address.hpp"

namespace holdfast::wire {
namespace {

std::unexpected<Error> closed(int sys) {
  return std::unexpected(Error{ErrorKind::unavailable, "connection_closed", sys,
                               "holdfastd closed the connection",
                               "connect again, and ask again: nothing was changed"});
}

}  // namespace

Result<VerifyClient> VerifyClient::connect(const std::string& path) {
  Result<sockaddr_un> address = unix_address(path);
  if (!address) return pass_on(address);
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return fail_sys(errno, "socket", "cannot create a socket");
  // Room for a few frames on their way; what the kernel allows at the most is enough.
  constexpr int send_bytes = 8 << 20;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(send_bytes));
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) !=
         0)
    if (errno != EINTR) return std::unexpected(connect_error(errno, path));
  VerifyClient client(std::move(socket));
  client.buffer_.resize(check_frame_bytes_max + 1);
  const Result<std::span<const uint8_t>> hello = client.receive();
  if (!hello) return std::unexpected(hello.error());
  Result<cbor::Value> value = cbor::decode(*hello);
  if (!value) return pass_on(value, path);
  client.hello_ = std::move(*value);
  return client;
}

std::string VerifyClient::reason(uint64_t number) const {
  const cbor::Value* reasons = hello_.find("reasons");
  const cbor::Value::Array* names = reasons != nullptr ? reasons->as_array() : nullptr;
  if (names != nullptr && number < names->size())
    if (const std::string* name = (*names)[number].as_text(); name != nullptr) return *name;
  return fmt::format("reason {}", number);
}

Status VerifyClient::send(std::span<const uint8_t> frame) {
  while (::send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0)
    if (errno != EINTR) return closed(errno);
  return {};
}

Result<std::span<const uint8_t>> VerifyClient::receive() {
  Result<Datagram> datagram = receive_datagram();
  if (!datagram) return pass_on(datagram);
  return datagram->body;
}

Result<Datagram> VerifyClient::receive_datagram() {
  ssize_t got = 0;
  do got = ::recv(socket_.get(), buffer_.data(), buffer_.size(), 0);
  while (got < 0 && errno == EINTR);
  if (got <= 0) return closed(got < 0 ? errno : 0);
  const Result<Datagram> datagram =
      read_datagram(std::span(buffer_).first(static_cast<size_t>(got)));
  if (!datagram || datagram->type != FrameType::error) return datagram;
  Result<WireError> error = decode_error(datagram->body);
  return std::unexpected(error ? std::move(error->error) : std::move(error.error()));
}

// Sends a frame with the last id, and takes its answer and no other.
Result<std::span<const uint8_t>> VerifyClient::exchange(std::span<const uint8_t> frame,
                                                        FrameType answer) {
  if (Status ok = send(frame); !ok) return pass_on(ok);
  const Result<Datagram> datagram = receive_datagram();
  if (!datagram) return std::unexpected(datagram.error());
  if (datagram->type != answer || datagram->request_id != last_id_)
    return fail(ErrorKind::internal, "malformed_answer", "the daemon answered something else",
                "take the answers of frames that were sent ahead first");
  return datagram->body;
}

Status VerifyClient::prove(std::span<const uint8_t> proof) {
  std::vector<uint8_t> frame;
  append_frame(frame, FrameType::prove, 0, ++last_id_, proof);
  const Result<std::span<const uint8_t>> proved = exchange(frame, FrameType::proved);
  if (!proved) return std::unexpected(proved.error());
  return {};
}

Result<std::vector<Verdict>> VerifyClient::ask(CheckFrame& frame) {
  const Result<std::span<const uint8_t>> body =
      exchange(frame.finish(++last_id_), FrameType::verdicts);
  if (!body) return std::unexpected(body.error());
  return read_verdicts(*body);
}

}  // namespace holdfast::wire
