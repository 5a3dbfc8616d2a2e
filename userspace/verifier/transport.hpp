// How a verifying thread receives datagrams and sends answers: by io_uring, or by epoll where that
// is not to be had. Both keep the same bounds: a user's datagrams lie in that user's own buffers,
// so that nobody holds what another would need, and what finds no buffer waits in the kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/base/zeroed_array.hpp"

namespace holdfast::verifier {

constexpr uint32_t buffers_per_uid = 8;  // a power of two
// A datagram that is longer than it may be shows by not fitting the limit; its rest is lost.
constexpr size_t buffer_bytes = (64U << 10) + 4096;
// A huge page would lie under the buffers of several users and take the memory of all.
constexpr Pages buffer_pages = Pages::small;

// A connection. The transport keeps its `ring` state; everything else is the worker's.
struct Link {
  uint32_t id = 0;  // never 0, not used again while anything of it is under way
  UniqueFd fd;
  uint16_t group = 0;  // of buffers: its user's
};

class Events {
 public:
  virtual ~Events() = default;
  // A datagram, in a buffer of the link's group until that is given back.
  virtual void on_datagram(uint32_t link, uint16_t buffer, std::span<const uint8_t> bytes) = 0;
  virtual void on_closed(uint32_t link) = 0;  // by the peer, or by an error
  virtual void on_sent(uint32_t link) = 0;
  virtual void on_wake() = 0;  // the descriptor given to open() was written to
};

class Transport {
 public:
  virtual ~Transport() = default;

  // `wake` is an eventfd. Errors of uring: unsupported / io_uring, saying why.
  static Result<std::unique_ptr<Transport>> uring(int wake);
  static Result<std::unique_ptr<Transport>> epoll(int wake);

  virtual std::string_view name() const = 0;
  // Of buffers. There for good: a receive that is being ended may still be about to take one.
  virtual Status add_group(uint16_t group) = 0;
  virtual Status add(const Link& link) = 0;
  virtual void remove(const Link& link) = 0;  // before the descriptor is closed
  // Receive on from a link, or stop: a peer that does not read its answers is not read either.
  virtual void receive(const Link& link, bool on) = 0;
  // One at a time for a link; `bytes` stay until on_sent() or remove().
  virtual void send(const Link& link, std::span<const uint8_t> bytes) = 0;
  virtual void give_back(uint16_t group, uint16_t buffer) = 0;
  // Delivers what has happened; waits for that `wait_ms` at the most, or without end if it is -1.
  virtual void poll(int wait_ms, Events& events) = 0;
};

}  // namespace holdfast::verifier
