// The asking side of verify.sock. Frames may be sent ahead of their answers, which come in the
// order of the frames; a caller that leaves answers unread is not read either. Blocking; not shared
// between threads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/check_frame.hpp"

namespace holdfast::wire {

class VerifyClient {
 public:
  // Errors: those of connecting (client.hpp), and what the daemon said.
  static Result<VerifyClient> connect(const std::string& path);

  // Versions, the node's name and epoch, the reasons' names by number, the limits.
  const cbor::Value& hello() const { return hello_; }
  // A verdict's name: "good", "no_lease".
  std::string reason(uint64_t number) const;

  // A frame that CheckFrame::finish() made. Errors: unavailable / connection_closed.
  Status send(std::span<const uint8_t> frame);
  // The next answer's body. Errors: what the daemon refused; unavailable / connection_closed.
  Result<std::span<const uint8_t>> receive();
  // One frame and its answer, when none is under way. Errors also: internal / malformed_answer.
  Result<std::vector<Verdict>> ask(CheckFrame& frame);
  Status prove(std::span<const uint8_t> proof);  // token::prove_key() makes it

  int fd() const { return socket_.get(); }

 private:
  explicit VerifyClient(UniqueFd socket) : socket_(std::move(socket)) {}

  Result<Datagram> receive_datagram();
  Result<std::span<const uint8_t>> exchange(std::span<const uint8_t> frame, FrameType answer);

  UniqueFd socket_;
  cbor::Value hello_;
  std::vector<uint8_t> buffer_;
  uint32_t last_id_ = 0;
};

}  // namespace holdfast::wire
