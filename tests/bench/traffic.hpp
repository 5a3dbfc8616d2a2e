// The packets of `scripts/bench revoke` and `control`: a child that sends to leased keys as fast as
// its core can, a program that notes when they arrive behind everything that enforces, and what one
// revocation between the two took.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <sched.h>
#include <sys/types.h>

#include "tests/bench/revoke.h"  // before the skeleton, which names its types
#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"

struct revoke_bpf;

namespace holdfast::bench {

constexpr uint64_t ns_per_us = 1000;

void pause_ns(uint64_t ns);
// Of times in ascending order, the nearest rank.
double percentile_us(const std::vector<uint64_t>& sorted, size_t percent);

struct Route {
  std::string sender;  // a network namespace, and what goes out of it through `out` to MAC `to`
  std::string out, to;
  std::vector<uint32_t> keys;     // as in dataplane.h; drawn at random,
  std::vector<uint32_t> in_turn;  // and every second packet to one of these, if there are any
};

// The last core sends. Whoever asks and whoever answers stay off it: were they to run there, no
// packet would be on its way while they revoke, and the figure would flatter. Keeps this process
// and that one to the other cores; the sender's core.
Result<int> keep_off_senders_core(pid_t daemon);
// A process with all its threads on one core.
Status keep_on_core(pid_t process, int core);

constexpr size_t sent_times = 1 << 20;

// Shared with the sender, which alone writes it.
struct Sender {
  std::atomic<uint64_t> sent{0};
  std::atomic<int> failed{0};
  std::array<std::atomic<uint64_t>, sent_times> boot_ns{};  // of packet i, at i % sent_times
};

class SenderProcess {
 public:
  static Result<SenderProcess> start(const Route& route, int core);
  SenderProcess(SenderProcess&& other) noexcept
      : child_(std::exchange(other.child_, -1)), shared_(other.shared_) {}
  SenderProcess& operator=(SenderProcess&&) = delete;
  ~SenderProcess();

  bool has_failed() const { return shared_->failed != 0; }
  // Between runs it leaves its core to others.
  void stop() const;
  void go_on() const;
  // When the first packet after `boot_ns` was sent; 0 if that is not known (any more).
  uint64_t sent_after(uint64_t boot_ns) const;

 private:
  SenderProcess(pid_t child, Sender* shared) : child_(child), shared_(shared) {}
  pid_t child_;
  Sender* shared_;
};

class Receiver {
 public:
  static Result<Receiver> attach(const std::string& interface);
  uint64_t last_boot_ns() const;
  uint64_t packets() const;

 private:
  struct Destroy {
    void operator()(revoke_bpf* skeleton) const;
  };
  std::unique_ptr<revoke_bpf, Destroy> skeleton_;
};

// What revocations took, from the request to the last packet that arrived.
struct Latencies {
  std::vector<uint64_t> ns;         // of the runs that count
  std::vector<uint64_t> answer_ns;  // until the answer, of the same
  uint64_t packets = 0, flowed_ns = 0;
  uint64_t discarded = 0, paused = 0;

  // {"runs": ..., "p99_us": ...}; `more` goes before the closing brace.
  std::string json(const std::string& more = "") const;
};

// One run: lets packets flow, calls `revoke`, and waits a little longer for the last of them. It
// counts if a packet arrived within 50 us before, and one that did not was sent within 50 us after
// the last that did. The sender is stopped when this returns. Errors: that of `revoke`; internal /
// passed: packets arrived after its answer.
Status measure_once(const SenderProcess& sender, const Receiver& receiver,
                    const std::function<Status()>& revoke, Latencies& out);

}  // namespace holdfast::bench
