// MappedArray<T>: a BPF array map of T mapped into this process, so that reading and writing an
// element is a load and a store. The mapping shares its pages with the kernel; it is unmapped on
// destruction, the map itself lives as long as its pin. T's size is a multiple of 8, which is the
// array's stride.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string_view>
#include <utility>

#include <bpf/bpf.h>
#include <sys/mman.h>
#include <unistd.h>

#include "userspace/base/check.hpp"
#include "userspace/base/result.hpp"

namespace holdfast {

template <typename T>
class MappedArray {
  static_assert(sizeof(T) % 8 == 0);

 public:
  // `fd` is only borrowed.
  static Result<MappedArray> map(int fd, std::string_view name) {
    bpf_map_info info{};
    uint32_t length = sizeof(info);
    if (const int err = ::bpf_obj_get_info_by_fd(fd, &info, &length); err != 0)
      return fail_sys(-err, "map_info", std::string("reading the size of map ").append(name));
    if (info.value_size != sizeof(T))
      return fail(ErrorKind::conflict, "abi_mismatch",
                  std::string("map ").append(name).append(" has values of another size"),
                  "it was made by another version: run that version's `holdfast node detach`");
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    const size_t bytes = (sizeof(T) * info.max_entries + page - 1) / page * page;
    void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
      return fail_sys(errno, "map_mmap", std::string("mapping map ").append(name));
    return MappedArray(static_cast<T*>(base), info.max_entries, bytes);
  }

  MappedArray(MappedArray&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), size_(other.size_), bytes_(other.bytes_) {}
  MappedArray& operator=(MappedArray&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(size_, other.size_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  MappedArray(const MappedArray&) = delete;
  MappedArray& operator=(const MappedArray&) = delete;
  ~MappedArray() {
    if (base_ != nullptr) ::munmap(base_, bytes_);
  }

  uint32_t size() const { return size_; }
  size_t mapped_bytes() const { return bytes_; }
  T& operator[](uint32_t index) {
    CHECK(index < size_);
    return base_[index];
  }
  const T& operator[](uint32_t index) const {
    CHECK(index < size_);
    return base_[index];
  }

 private:
  MappedArray(T* base, uint32_t size, size_t bytes) : base_(base), size_(size), bytes_(bytes) {}

  T* base_;
  uint32_t size_;
  size_t bytes_;
};

}  // namespace holdfast
