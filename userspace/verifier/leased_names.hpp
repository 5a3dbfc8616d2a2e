// Where the lease of a resource stands, found by the resource's name: "TENANT" and
// "web@10.1.0.2:443". The daemon's loop writes, the verifying threads read, none waits for another
// longer than one change takes. What is found is only where to look: whoever reads the slot there
// compares the lease.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

namespace holdfast {

class LeasedNames {
 public:
  explicit LeasedNames(uint32_t slots);

  // Keyed, so that nobody can choose names that collide.
  uint64_t hash(std::string_view tenant, std::string_view resource) const;

  // The writer's. A slot has one name at a time; 0 is none.
  void put(uint32_t slot, uint64_t hash);
  void remove(uint32_t slot);

  // Any thread's.
  std::optional<uint32_t> find(uint64_t hash) const;

 private:
  size_t home_of(uint64_t hash) const { return hash & mask_; }
  size_t after(size_t place) const { return (place + 1) & mask_; }

  struct Unmap {
    size_t bytes;
    void operator()(void* memory) const;
  };
  // Zeroed memory that is there only where it was touched.
  template <typename T>
  using Array = std::unique_ptr<T[], Unmap>;
  template <typename T>
  static Array<T> array_of(size_t count);

  std::array<uint8_t, 16> key_;
  size_t mask_;
  // A name's place holds its slot plus one; 0 is free. It stands at its home or in one of the taken
  // places that follow (linear probing); half of them are free at the least.
  Array<std::atomic<uint32_t>> places_;
  Array<std::atomic<uint64_t>> names_;  // by slot
  std::atomic<uint64_t> changes_ = 0;   // odd while a place moves
};

}  // namespace holdfast
