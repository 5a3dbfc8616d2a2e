// One thread, one epoll: descriptors, timers, signals and tasks call back in turn. The daemon's
// state belongs to this thread, so nothing else in it needs a lock.
//
// A watch or timer lives as long as its move-only owner. Owners may be destroyed at any time,
// inside any callback (their own too) and after the loop; a callback whose owner is gone is not
// called again, even when its event was already fetched. Only defer() and stop() may be called from
// other threads.
#pragma once

#include <csignal>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <utility>

#include <sys/epoll.h>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast::wire {

namespace detail {
struct LoopState;
}

// Watches a descriptor it does not own. Destroy it before the descriptor is closed: declare it
// after.
class FdWatch {
 public:
  FdWatch() = default;
  FdWatch(FdWatch&& other) noexcept
      : loop_(std::move(other.loop_)), id_(std::exchange(other.id_, 0)) {}
  FdWatch& operator=(FdWatch&& other) noexcept;
  ~FdWatch() { reset(); }

  // Level-triggered EPOLLIN / EPOLLOUT; EPOLLERR and EPOLLHUP always come.
  Status change(uint32_t events);
  void reset();

 private:
  friend class EventLoop;
  FdWatch(std::weak_ptr<detail::LoopState> loop, uint64_t id) : loop_(std::move(loop)), id_(id) {}

  std::weak_ptr<detail::LoopState> loop_;
  uint64_t id_ = 0;
};

class Timer {
 public:
  Timer() = default;
  Timer(Timer&& other) noexcept : loop_(std::move(other.loop_)), id_(std::exchange(other.id_, 0)) {}
  Timer& operator=(Timer&& other) noexcept;
  ~Timer() { reset(); }

  void reset();
  // Set and not yet fired (a periodic timer: not yet reset).
  bool is_pending() const;

 private:
  friend class EventLoop;
  Timer(std::weak_ptr<detail::LoopState> loop, uint64_t id) : loop_(std::move(loop)), id_(id) {}

  std::weak_ptr<detail::LoopState> loop_;
  uint64_t id_ = 0;
};

// Takes signals away from their default action and delivers them as callbacks. Restores the
// thread's signal mask when destroyed. Create it before any thread is started, so that all of them
// block these.
class SignalWatch {
 public:
  SignalWatch() = default;
  SignalWatch(SignalWatch&& other) noexcept;
  SignalWatch& operator=(SignalWatch&& other) noexcept;
  ~SignalWatch() { reset(); }
  void reset();

 private:
  friend class EventLoop;
  UniqueFd fd_;
  FdWatch watch_;
  bool active_ = false;
  sigset_t previous_{};
};

class EventLoop {
 public:
  static Result<std::unique_ptr<EventLoop>> create();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  Result<FdWatch> watch(int fd, uint32_t events, std::function<void(uint32_t events)> callback);

  // Deadlines are CLOCK_BOOTTIME: a timer that comes due during suspend fires at resume.
  Timer at(uint64_t deadline_boot_ns, std::function<void()> callback);
  Timer after(uint64_t delay_ns, std::function<void()> callback);
  // First after one period. Turns that were missed (suspend, a long callback) are not made up for.
  Timer every(uint64_t period_ns, std::function<void()> callback);

  Result<SignalWatch> on_signals(std::initializer_list<int> signals,
                                 std::function<void(int signal)> callback);

  // Runs the task on the loop's thread in its next turn, never inside this call. From any thread.
  void defer(std::function<void()> task);

  // Until stop(). A stop() before run() makes run() return at once. Fails only when epoll does.
  Status run();
  void stop();  // from any thread

 private:
  explicit EventLoop(std::shared_ptr<detail::LoopState> state) : state_(std::move(state)) {}
  Timer add_timer(uint64_t deadline_boot_ns, uint64_t period_ns, std::function<void()> callback);

  std::shared_ptr<detail::LoopState> state_;
};

}  // namespace holdfast::wire
