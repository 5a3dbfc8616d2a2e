#include "userspace/wire/event_loop.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <unordered_map>
#include <vector>

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "userspace/base/check.hpp"
#include "userspace/base/clock.hpp"

namespace holdfast::wire {
namespace detail {

// Ids are never reused, so an event that was fetched before its watch went away finds nothing.
constexpr uint64_t id_timer = 1;
constexpr uint64_t id_wake = 2;
constexpr uint64_t id_first = 3;
constexpr int events_per_turn = 64;

struct FdEntry {
  int fd;
  std::function<void(uint32_t)> callback;
};

struct TimerEntry {
  uint64_t deadline_ns;
  uint64_t period_ns;  // 0: once
  std::function<void()> callback;
};

struct HeapItem {
  uint64_t deadline_ns;
  uint64_t id;
  // std::push_heap keeps the greatest in front; the earliest deadline has to be there.
  bool operator<(const HeapItem& other) const {
    return deadline_ns != other.deadline_ns ? deadline_ns > other.deadline_ns : id > other.id;
  }
};

struct LoopState {
  UniqueFd epoll;
  UniqueFd timer;
  UniqueFd wake;
  uint64_t next_id = id_first;
  std::unordered_map<uint64_t, std::shared_ptr<FdEntry>> watches;
  std::unordered_map<uint64_t, std::shared_ptr<TimerEntry>> timers;
  std::vector<HeapItem> heap;  // also holds timers that were reset, until they come up or are swept
  uint64_t armed_ns = 0;       // what the timerfd is set to, 0: nothing

  std::mutex mutex;  // guards tasks; everything else is the loop's thread only
  std::vector<std::function<void()>> tasks;
  std::atomic<bool> stopping = false;

  void push(uint64_t deadline_ns, uint64_t id) {
    heap.push_back({deadline_ns, id});
    std::push_heap(heap.begin(), heap.end());
  }

  // Keeps the heap within twice the live timers, however often they are set and reset.
  void sweep() {
    if (heap.size() < 64 || heap.size() < 2 * timers.size()) return;
    std::erase_if(heap, [this](const HeapItem& item) { return !timers.contains(item.id); });
    std::make_heap(heap.begin(), heap.end());
  }

  void wake_up() const {
    const uint64_t one = 1;
    // It fails only when the counter is full, and then the loop is awake anyway.
    [[maybe_unused]] const ssize_t written = ::write(wake.get(), &one, sizeof one);
  }

  void arm() {
    while (!heap.empty() && !timers.contains(heap.front().id)) {
      std::pop_heap(heap.begin(), heap.end());
      heap.pop_back();
    }
    // A deadline of 0 would disarm the timerfd; 1 ns is just as past.
    const uint64_t next_ns = heap.empty() ? 0 : std::max<uint64_t>(heap.front().deadline_ns, 1);
    if (next_ns == armed_ns) return;
    itimerspec when{};
    when.it_value.tv_sec = static_cast<time_t>(next_ns / ns_per_s);
    when.it_value.tv_nsec = static_cast<long>(next_ns % ns_per_s);
    CHECK(::timerfd_settime(timer.get(), TFD_TIMER_ABSTIME, &when, nullptr) == 0);
    armed_ns = next_ns;
  }

  void run_timers() {
    if (heap.empty()) return;
    const uint64_t now_ns = boot_now_ns();
    // Only what is due now: a timer that sets itself to now again waits for the next turn.
    std::vector<HeapItem> due;
    while (!heap.empty() && heap.front().deadline_ns <= now_ns) {
      due.push_back(heap.front());
      std::pop_heap(heap.begin(), heap.end());
      heap.pop_back();
    }
    for (const HeapItem& item : due) {
      const auto at = timers.find(item.id);
      if (at == timers.end()) continue;
      const std::shared_ptr<TimerEntry> entry = at->second;
      if (entry->period_ns == 0) {
        timers.erase(at);
      } else {
        entry->deadline_ns += entry->period_ns;
        if (entry->deadline_ns <= now_ns) entry->deadline_ns = now_ns + entry->period_ns;
        push(entry->deadline_ns, item.id);
      }
      entry->callback();
    }
  }

  void run_tasks() {
    std::vector<std::function<void()>> now;
    {
      const std::lock_guard lock(mutex);
      now.swap(tasks);
    }
    for (const auto& task : now) task();
  }

  void drain(int fd) const {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t taken = ::read(fd, &count, sizeof count);
  }
};

}  // namespace detail

using detail::LoopState;

// ---- owners ----

FdWatch& FdWatch::operator=(FdWatch&& other) noexcept {
  if (this != &other) {
    reset();
    loop_ = std::move(other.loop_);
    id_ = std::exchange(other.id_, 0);
  }
  return *this;
}

Status FdWatch::change(uint32_t events) {
  const auto loop = loop_.lock();
  CHECK(loop != nullptr);
  const auto at = loop->watches.find(id_);
  CHECK(at != loop->watches.end());
  epoll_event event{};
  event.events = events;
  event.data.u64 = id_;
  if (::epoll_ctl(loop->epoll.get(), EPOLL_CTL_MOD, at->second->fd, &event) != 0) {
    return fail_sys(errno, "epoll", "cannot change what is watched on a descriptor");
  }
  return {};
}

void FdWatch::reset() {
  const uint64_t id = std::exchange(id_, 0);
  const auto loop = std::exchange(loop_, {}).lock();
  if (loop == nullptr || id == 0) return;
  const auto at = loop->watches.find(id);
  if (at == loop->watches.end()) return;
  // Kept until the end of this scope: destroying the callback may destroy what else is watched.
  const std::shared_ptr<detail::FdEntry> entry = std::move(at->second);
  loop->watches.erase(at);
  ::epoll_ctl(loop->epoll.get(), EPOLL_CTL_DEL, entry->fd, nullptr);
}

Timer& Timer::operator=(Timer&& other) noexcept {
  if (this != &other) {
    reset();
    loop_ = std::move(other.loop_);
    id_ = std::exchange(other.id_, 0);
  }
  return *this;
}

void Timer::reset() {
  const uint64_t id = std::exchange(id_, 0);
  const auto loop = std::exchange(loop_, {}).lock();
  if (loop == nullptr || id == 0) return;
  const auto at = loop->timers.find(id);
  if (at == loop->timers.end()) return;
  const std::shared_ptr<detail::TimerEntry> entry = std::move(at->second);
  loop->timers.erase(at);
  loop->sweep();
}

bool Timer::is_pending() const {
  const auto loop = loop_.lock();
  return loop != nullptr && loop->timers.contains(id_);
}

SignalWatch::SignalWatch(SignalWatch&& other) noexcept
    : fd_(std::move(other.fd_)),
      watch_(std::move(other.watch_)),
      active_(std::exchange(other.active_, false)),
      previous_(other.previous_) {}

SignalWatch& SignalWatch::operator=(SignalWatch&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = std::move(other.fd_);
    watch_ = std::move(other.watch_);
    active_ = std::exchange(other.active_, false);
    previous_ = other.previous_;
  }
  return *this;
}

void SignalWatch::reset() {
  watch_.reset();
  fd_.reset();
  if (std::exchange(active_, false)) ::pthread_sigmask(SIG_SETMASK, &previous_, nullptr);
}

// ---- EventLoop ----

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
  auto state = std::make_shared<LoopState>();
  state->epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!state->epoll) return fail_sys(errno, "epoll", "cannot create the event loop's epoll");
  state->timer.reset(::timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!state->timer) return fail_sys(errno, "timerfd", "cannot create the event loop's timer");
  state->wake.reset(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!state->wake) return fail_sys(errno, "eventfd", "cannot create the event loop's wake-up");
  for (const auto& [fd, id] : {std::pair(state->timer.get(), detail::id_timer),
                               std::pair(state->wake.get(), detail::id_wake)}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = id;
    if (::epoll_ctl(state->epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return fail_sys(errno, "epoll", "cannot watch the event loop's own descriptors");
    }
  }
  return std::unique_ptr<EventLoop>(new EventLoop(std::move(state)));
}

EventLoop::~EventLoop() {
  // Callbacks may own watches and timers. Owners that look back see an empty loop.
  const auto watches = std::exchange(state_->watches, {});
  const auto timers = std::exchange(state_->timers, {});
  const auto tasks = std::exchange(state_->tasks, {});
}

Result<FdWatch> EventLoop::watch(int fd, uint32_t events, std::function<void(uint32_t)> callback) {
  const uint64_t id = state_->next_id++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  if (::epoll_ctl(state_->epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return fail_sys(errno, "epoll", "cannot watch a descriptor");
  }
  state_->watches.emplace(id, std::make_shared<detail::FdEntry>(fd, std::move(callback)));
  return FdWatch(state_, id);
}

Timer EventLoop::add_timer(uint64_t deadline_boot_ns, uint64_t period_ns,
                           std::function<void()> callback) {
  const uint64_t id = state_->next_id++;
  state_->timers.emplace(
      id, std::make_shared<detail::TimerEntry>(deadline_boot_ns, period_ns, std::move(callback)));
  state_->push(deadline_boot_ns, id);
  return {state_, id};
}

Timer EventLoop::at(uint64_t deadline_boot_ns, std::function<void()> callback) {
  return add_timer(deadline_boot_ns, 0, std::move(callback));
}

Timer EventLoop::after(uint64_t delay_ns, std::function<void()> callback) {
  return add_timer(boot_now_ns() + delay_ns, 0, std::move(callback));
}

Timer EventLoop::every(uint64_t period_ns, std::function<void()> callback) {
  CHECK(period_ns > 0);
  return add_timer(boot_now_ns() + period_ns, period_ns, std::move(callback));
}

Result<SignalWatch> EventLoop::on_signals(std::initializer_list<int> signals,
                                          std::function<void(int)> callback) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : signals) ::sigaddset(&set, signal);
  SignalWatch out;
  out.fd_.reset(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!out.fd_) return fail_sys(errno, "signalfd", "cannot take signals by descriptor");
  const int blocked = ::pthread_sigmask(SIG_BLOCK, &set, &out.previous_);
  if (blocked != 0) return fail_sys(blocked, "sigmask", "cannot block signals");
  out.active_ = true;
  const int fd = out.fd_.get();
  Result<FdWatch> watched = watch(fd, EPOLLIN, [fd, callback = std::move(callback)](uint32_t) {
    // One a turn; what is left wakes the loop again. So the callback may destroy its owner.
    signalfd_siginfo info{};
    if (::read(fd, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      callback(static_cast<int>(info.ssi_signo));
    }
  });
  if (!watched) return pass_on(watched);
  out.watch_ = std::move(*watched);
  return out;
}

void EventLoop::defer(std::function<void()> task) {
  bool first = false;
  {
    const std::lock_guard lock(state_->mutex);
    first = state_->tasks.empty();
    state_->tasks.push_back(std::move(task));
  }
  if (first) state_->wake_up();
}

void EventLoop::stop() {
  state_->stopping = true;
  state_->wake_up();
}

Status EventLoop::run() {
  const std::shared_ptr<LoopState> state = state_;
  std::array<epoll_event, detail::events_per_turn> events{};
  while (!state->stopping) {
    state->arm();
    const int count = ::epoll_wait(state->epoll.get(), events.data(), detail::events_per_turn, -1);
    if (count < 0) {
      if (errno == EINTR) continue;
      return fail_sys(errno, "epoll", "the event loop cannot wait");
    }
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      const uint64_t id = event.data.u64;  // which is packed: nothing may refer to it
      if (id == detail::id_timer) {
        state->drain(state->timer.get());
        state->armed_ns = 0;
      } else if (id == detail::id_wake) {
        state->drain(state->wake.get());
      } else if (const auto at = state->watches.find(id); at != state->watches.end()) {
        const std::shared_ptr<detail::FdEntry> entry = at->second;
        entry->callback(event.events);
      }
    }
    state->run_timers();
    state->run_tasks();
  }
  state->stopping = false;
  return {};
}

}  // namespace holdfast::wire
