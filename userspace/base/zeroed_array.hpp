// ZeroedArray: zeros, with memory only where something was stored: for tables that have room for
// all that may come and are mostly empty. Reading takes none. Fixed in size; its owner alone frees
// it.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include <sys/mman.h>

#include "userspace/base/check.hpp"
#include "userspace/base/result.hpp"

namespace holdfast {

// What its memory comes in. A huge page is there whole for the first thing stored in it, but a full
// table on huge ones costs fewer faults and TLB misses. A kernel without them has small ones.
enum class Pages : uint8_t { as_the_machine_is_set, small, huge };

template <typename T>
class ZeroedArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  explicit ZeroedArray(size_t count, Pages pages = Pages::as_the_machine_is_set)
      : memory_(mapped(count, pages)) {
    CHECK(memory_ != nullptr);
  }
  // Errors: memory.
  static Result<ZeroedArray> make(size_t count, Pages pages) {
    Memory memory = mapped(count, pages);
    if (memory == nullptr) return fail_sys(errno, "memory", "mapping a table");
    return ZeroedArray(std::move(memory));
  }

  T& operator[](size_t at) { return memory_[at]; }
  const T& operator[](size_t at) const { return memory_[at]; }
  T* data() { return memory_.get(); }
  size_t size() const { return memory_.get_deleter().bytes / sizeof(T); }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(T* memory) const { ::munmap(memory, bytes); }
  };
  using Memory = std::unique_ptr<T[], Unmap>;

  explicit ZeroedArray(Memory memory) : memory_(std::move(memory)) {}

  static Memory mapped(size_t count, Pages pages) {
    const size_t bytes = count * sizeof(T);
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return Memory(nullptr, Unmap{0});
    if (pages != Pages::as_the_machine_is_set)
      ::madvise(memory, bytes, pages == Pages::huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return Memory(static_cast<T*>(memory), Unmap{bytes});
  }

  Memory memory_;
};

}  // namespace holdfast
