// ZeroedArray: zeros, with memory only where something was stored: for indexes that have room for
// every slot of a node and are mostly empty. Reading takes none. Fixed in size; its owner alone
// frees it.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

#include <sys/mman.h>

#include "userspace/base/check.hpp"

namespace holdfast {

template <typename T>
class ZeroedArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  explicit ZeroedArray(size_t count) : memory_(nullptr, Unmap{count * sizeof(T)}) {
    void* memory = ::mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    memory_.reset(static_cast<T*>(memory));
  }

  T& operator[](size_t at) { return memory_[at]; }
  const T& operator[](size_t at) const { return memory_[at]; }
  size_t size() const { return memory_.get_deleter().bytes / sizeof(T); }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(T* memory) const { ::munmap(memory, bytes); }
  };
  std::unique_ptr<T[], Unmap> memory_;
};

}  // namespace holdfast
