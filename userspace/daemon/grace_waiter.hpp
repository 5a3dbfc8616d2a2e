// GraceWaiter: waits for RCU grace periods off the event loop, so that revoking one lease never
// delays the next one's store. Requests that arrive while a grace period runs share the following
// one.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "userspace/dataplane/banks.hpp"
#include "userspace/wire/event_loop.hpp"

namespace holdfast {

class GraceWaiter {
 public:
  explicit GraceWaiter(wire::EventLoop& loop)
      : loop_(loop), thread_([this](const std::stop_token& stop) { run(stop); }) {}
  ~GraceWaiter() {
    thread_.request_stop();
    wake_.notify_all();
  }
  GraceWaiter(const GraceWaiter&) = delete;
  GraceWaiter& operator=(const GraceWaiter&) = delete;

  // Calls back on the loop, after a grace period that began after this call.
  void after_grace_period(std::function<void()> callback) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(callback));
    }
    wake_.notify_all();
  }

 private:
  void run(const std::stop_token& stop) {
    for (;;) {
      std::vector<std::function<void()>> group;
      {
        std::unique_lock lock(mutex_);
        if (!wake_.wait(lock, stop, [this] { return !waiting_.empty(); })) return;
        group.swap(waiting_);
      }
      wait_grace_period();
      loop_.defer([group = std::move(group)] {
        for (const auto& callback : group) callback();
      });
    }
  }

  wire::EventLoop& loop_;
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::vector<std::function<void()>> waiting_;
  std::jthread thread_;  // last: it uses what stands above
};

}  // namespace holdfast
