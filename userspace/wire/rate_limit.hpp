// A token bucket in one number (the generic cell rate algorithm): `full_at_ns_` is when the bucket
// will be full again. Pure: `now_ns` is an argument.
#pragma once

#include <algorithm>
#include <cstdint>

#include "userspace/base/clock.hpp"

namespace holdfast::wire {

struct Rate {
  uint32_t per_second = 0;  // 0: unlimited
  uint32_t burst = 0;       // at least 1 when limited
  bool operator==(const Rate&) const = default;
};

class RateLimiter {
 public:
  // Takes one token and returns 0, or takes none and returns how long until there is one.
  uint64_t take(const Rate& rate, uint64_t now_ns) {
    if (rate.per_second == 0) return 0;
    const uint64_t token_ns = ns_per_s / rate.per_second;
    const uint64_t start_ns = std::max(full_at_ns_, now_ns);
    const uint64_t spent_ns = start_ns + token_ns - now_ns;
    const uint64_t room_ns = token_ns * std::max<uint64_t>(rate.burst, 1);
    if (spent_ns > room_ns) return spent_ns - room_ns;
    full_at_ns_ = start_ns + token_ns;
    return 0;
  }

  // Full again: nothing is remembered that a new one would not know.
  bool is_full(uint64_t now_ns) const { return full_at_ns_ <= now_ns; }

 private:
  uint64_t full_at_ns_ = 0;
};

// How many a second, over the last whole one.
class RateMeter {
 public:
  void count(uint64_t now_ns) {
    const uint64_t second = now_ns / ns_per_s;
    if (second != second_) {
      before_ = second == second_ + 1 ? counted_ : 0;
      counted_ = 0;
      second_ = second;
    }
    ++counted_;
  }

  uint32_t per_second(uint64_t now_ns) const {
    const uint64_t second = now_ns / ns_per_s;
    if (second == second_) return before_;
    return second == second_ + 1 ? counted_ : 0;
  }

 private:
  uint64_t second_ = 0;  // which is being counted
  uint32_t counted_ = 0;
  uint32_t before_ = 0;  // of the one before
};

// A share of the time, as a bucket of nanoseconds. What something costs is known only afterwards,
// so the bucket may go into debt, which is waited for: in the long run the share holds exactly.
class TimeShare {
 public:
  static constexpr uint64_t window_ns = ns_per_s;  // the bucket holds the share of so long

  // How long until something may be done; 0 is now.
  uint64_t wait_ns(uint64_t now_ns) const {
    return full_at_ns_ > now_ns + window_ns ? full_at_ns_ - now_ns - window_ns : 0;
  }

  // `percent` 0 is unlimited.
  void charge(uint32_t percent, uint64_t spent_ns, uint64_t now_ns) {
    if (percent == 0) return;
    full_at_ns_ = std::max(full_at_ns_, now_ns) + spent_ns * 100 / percent;
  }

 private:
  uint64_t full_at_ns_ = 0;
};

}  // namespace holdfast::wire
