// Where the lease of a resource stands, found by the resource's name: "TENANT" and
// "web@10.1.0.2:443". The daemon's loop writes, the verifying threads read, none waits for another
// longer than one change takes. What is found is only where to look: whoever reads the slot there
// compares the lease.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>

#include <sched.h>

#include "userspace/base/zeroed_array.hpp"

namespace holdfast {

class LeasedNames {
 public:
  explicit LeasedNames(uint32_t slots);

  // Keyed, so that nobody can choose names that collide.
  uint64_t hash(std::string_view tenant, std::string_view resource) const;

  // The writer's. A slot has one name at a time; 0 is none.
  void put(uint32_t slot, uint64_t hash);
  void remove(uint32_t slot);

  // Any thread's. Calls `is_it` with each slot that may have the name until it answers true;
  // whether it did. Two names may look alike here: who asks compares the lease.
  template <typename IsIt>
  bool find(uint64_t hash, IsIt is_it) const;
  // Has the memory that find() reads fetched.
  void ask_for(uint64_t hash) const { __builtin_prefetch(&places_[home_of(hash)]); }

 private:
  size_t home_of(uint64_t hash) const { return hash >> slot_bits & mask_; }
  size_t after(size_t place) const { return (place + 1) & mask_; }

  std::array<uint8_t, 16> key_;
  size_t mask_;
  // A name's place holds the upper bits of its hash and below them its slot plus one; 0 is free. It
  // stands at its home or in one of the taken places that follow (linear probing); half of them are
  // free at the least.
  static constexpr int slot_bits = 21;
  static constexpr uint64_t slot_mask = (uint64_t{1} << slot_bits) - 1;
  static uint64_t word_of(uint64_t hash, uint32_t slot) {
    return (hash & ~slot_mask) | (uint64_t{slot} + 1);
  }

  ZeroedArray<std::atomic<uint64_t>> places_;
  ZeroedArray<uint64_t> names_;        // by slot; the writer's
  std::atomic<uint64_t> changes_ = 0;  // odd while a place moves
};

template <typename IsIt>
bool LeasedNames::find(uint64_t hash, IsIt is_it) const {
  for (;; ::sched_yield()) {
    const uint64_t before = changes_.load(std::memory_order_acquire);
    for (size_t place = home_of(hash);; place = after(place)) {
      const uint64_t there = places_[place].load(std::memory_order_acquire);
      if (there == 0) break;
      if (((there ^ hash) & ~slot_mask) == 0 &&
          is_it(static_cast<uint32_t>((there & slot_mask) - 1)))
        return true;
    }
    // Not there, unless it was being moved.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (before % 2 == 0 && changes_.load(std::memory_order_relaxed) == before) return false;
  }
}

}  // namespace holdfast
