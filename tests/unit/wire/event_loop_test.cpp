// EventLoop: what calls back, in which order, and what no longer does.
#include "userspace/wire/event_loop.hpp"

#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"

namespace holdfast::wire {
namespace {

class EventLoopTest : public ::testing::Test {
 protected:
  EventLoopTest() : loop_(*EventLoop::create()) {}

  static UniqueFd ready() { return UniqueFd(::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)); }

  std::unique_ptr<EventLoop> loop_;
};

TEST_F(EventLoopTest, StopBeforeRunReturnsAtOnceAndRunWorksAgain) {
  loop_->stop();
  EXPECT_TRUE(loop_->run());
  bool ran = false;
  loop_->defer([&] {
    ran = true;
    loop_->stop();
  });
  EXPECT_TRUE(loop_->run());
  EXPECT_TRUE(ran);
}

TEST_F(EventLoopTest, TimersFireInOrderOfTheirDeadlines) {
  std::vector<int> order;
  const Timer third = loop_->after(30 * ns_per_ms, [&] {
    order.push_back(3);
    loop_->stop();
  });
  const Timer first = loop_->after(10 * ns_per_ms, [&] { order.push_back(1); });
  const Timer second = loop_->after(20 * ns_per_ms, [&] { order.push_back(2); });
  const Timer past = loop_->at(0, [&] { order.push_back(0); });
  Timer never = loop_->after(5 * ns_per_ms, [&] { order.push_back(9); });
  never.reset();
  EXPECT_TRUE(loop_->run());
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_FALSE(first.is_pending());
}

TEST_F(EventLoopTest, ATimerIsNotEarly) {
  const uint64_t begin = boot_now_ns();
  uint64_t fired = 0;
  const Timer timer = loop_->after(20 * ns_per_ms, [&] {
    fired = boot_now_ns();
    loop_->stop();
  });
  EXPECT_TRUE(timer.is_pending());
  EXPECT_TRUE(loop_->run());
  EXPECT_GE(fired - begin, 20 * ns_per_ms);
}

TEST_F(EventLoopTest, PeriodicTimersRepeatUntilReset) {
  int count = 0;
  Timer timer = loop_->every(ns_per_ms, [&] {
    if (++count == 5) timer.reset();  // inside its own callback
  });
  const Timer end = loop_->after(30 * ns_per_ms, [&] { loop_->stop(); });
  EXPECT_TRUE(loop_->run());
  EXPECT_EQ(count, 5);
}

TEST_F(EventLoopTest, ATimerMaySetItselfAgainWithoutStarvingOthers) {
  int turns = 0;
  Timer again;
  std::function<void()> spin = [&] {
    ++turns;
    again = loop_->at(0, spin);
  };
  again = loop_->at(0, spin);
  const Timer end = loop_->after(5 * ns_per_ms, [&] { loop_->stop(); });
  EXPECT_TRUE(loop_->run());
  EXPECT_GT(turns, 1);
}

TEST_F(EventLoopTest, ManyTimersSetAndResetStayCheap) {
  Timer timer;
  for (int i = 0; i < 200000; ++i) timer = loop_->after(ns_per_s, [] {});
  timer = loop_->after(ns_per_ms, [&] { loop_->stop(); });
  EXPECT_TRUE(loop_->run());
}

TEST_F(EventLoopTest, AWatchMayBeDestroyedInsideItsOwnCallback) {
  const UniqueFd fd = ready();
  FdWatch watch;
  int calls = 0;
  watch = *loop_->watch(fd.get(), EPOLLIN, [&](uint32_t) {
    ++calls;
    watch.reset();
    loop_->defer([&] { loop_->stop(); });
  });
  EXPECT_TRUE(loop_->run());
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, AWatchDestroyedByAnotherCallbackOfTheSameTurnIsNotCalled) {
  const UniqueFd a = ready();
  const UniqueFd b = ready();
  FdWatch watch_a;
  FdWatch watch_b;
  int calls = 0;
  watch_a = *loop_->watch(a.get(), EPOLLIN, [&](uint32_t) {
    ++calls;
    watch_a.reset();
    watch_b.reset();
  });
  watch_b = *loop_->watch(b.get(), EPOLLIN, [&](uint32_t) {
    ++calls;
    watch_a.reset();
    watch_b.reset();
  });
  const Timer end = loop_->after(5 * ns_per_ms, [&] { loop_->stop(); });
  EXPECT_TRUE(loop_->run());
  EXPECT_EQ(calls, 1);
}

TEST_F(EventLoopTest, ANewWatchOnAReusedDescriptorGetsNoOldEvent) {
  UniqueFd fd = ready();
  const int number = fd.get();
  int old_calls = 0;
  int new_calls = 0;
  const UniqueFd trigger = ready();
  FdWatch old_watch;
  FdWatch new_watch;
  FdWatch trigger_watch;
  UniqueFd reused;
  const auto swap_them = [&] {
    old_watch.reset();
    fd.reset();
    reused.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ASSERT_EQ(reused.get(), number);
    new_watch = *loop_->watch(reused.get(), EPOLLIN, [&](uint32_t) { ++new_calls; });
    trigger_watch.reset();
  };
  trigger_watch = *loop_->watch(trigger.get(), EPOLLIN, [&](uint32_t) { swap_them(); });
  old_watch = *loop_->watch(fd.get(), EPOLLIN, [&](uint32_t) { ++old_calls; });
  const Timer end = loop_->after(5 * ns_per_ms, [&] { loop_->stop(); });
  EXPECT_TRUE(loop_->run());
  EXPECT_LE(old_calls, 1);  // epoll may report it before the trigger
  EXPECT_EQ(new_calls, 0);
}

TEST_F(EventLoopTest, ChangeSwitchesWhatIsWatched) {
  const UniqueFd fd = ready();
  int calls = 0;
  FdWatch watch = *loop_->watch(fd.get(), EPOLLIN, [&](uint32_t) {
    ++calls;
    EXPECT_TRUE(watch.change(0));
  });
  const Timer on = loop_->after(5 * ns_per_ms, [&] { EXPECT_TRUE(watch.change(EPOLLIN)); });
  const Timer end = loop_->after(15 * ns_per_ms, [&] { loop_->stop(); });
  EXPECT_TRUE(loop_->run());
  EXPECT_EQ(calls, 2);
}

TEST_F(EventLoopTest, OwnersMayOutliveTheLoop) {
  const UniqueFd fd = ready();
  FdWatch watch = *loop_->watch(fd.get(), EPOLLIN, [](uint32_t) {});
  Timer timer = loop_->every(ns_per_s, [] {});
  loop_.reset();
  EXPECT_FALSE(timer.is_pending());
  watch.reset();
  timer.reset();
}

TEST_F(EventLoopTest, SignalsComeAsCallbacksAndTheMaskIsRestored) {
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
  std::vector<int> seen;
  {
    Result<SignalWatch> watch = loop_->on_signals({SIGUSR1, SIGUSR2}, [&](int signal) {
      seen.push_back(signal);
      if (seen.size() == 2) loop_->stop();
    });
    ASSERT_TRUE(watch);
    ::raise(SIGUSR1);
    ::raise(SIGUSR2);
    EXPECT_TRUE(loop_->run());
  }
  EXPECT_EQ(seen, (std::vector<int>{SIGUSR1, SIGUSR2}));
  sigset_t after;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
  EXPECT_EQ(::sigismember(&before, SIGUSR1), ::sigismember(&after, SIGUSR1));
}

TEST_F(EventLoopTest, TasksDeferredInATaskRunInTheNextTurn) {
  std::vector<int> order;
  const UniqueFd fd = ready();
  FdWatch watch;
  loop_->defer([&] {
    order.push_back(1);
    watch = *loop_->watch(fd.get(), EPOLLIN, [&](uint32_t) {
      order.push_back(2);
      watch.reset();
    });
    loop_->defer([&] {
      order.push_back(3);
      loop_->stop();
    });
  });
  EXPECT_TRUE(loop_->run());
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST_F(EventLoopTest, OtherThreadsMayDeferAndStop) {
  int sum = 0;  // only the loop's thread writes it
  std::thread other([&] {
    for (int i = 0; i < 1000; ++i) loop_->defer([&] { ++sum; });
    loop_->defer([&] { loop_->stop(); });
  });
  EXPECT_TRUE(loop_->run());
  other.join();
  EXPECT_EQ(sum, 1000);
}

}  // namespace
}  // namespace holdfast::wire
