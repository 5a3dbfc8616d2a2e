// LeaseTable: which slots lead a live lease, found by lease id, and when the next one ends. The
// leases themselves are the records in the kernel's maps; this is only an index over them, rebuilt
// at start.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

#include "bpf/abi.h"
#include "userspace/base/result.hpp"

namespace holdfast {

struct LeaseId {
  std::array<uint64_t, 2> words{};

  static LeaseId random();
  static LeaseId of(const abi::lease_record& record) {
    return {{record.lease_id[0], record.lease_id[1]}};
  }
  // As tokens have it: the words' bytes, the highest first.
  static LeaseId of(const std::array<uint8_t, 16>& bytes);
  std::array<uint8_t, 16> bytes() const;

  bool operator==(const LeaseId&) const = default;
  auto operator<=>(const LeaseId&) const = default;
};

std::string format_lease_id(const LeaseId& id);  // 32 lower hex digits
Result<LeaseId> parse_lease_id(std::string_view text);

class LeaseTable {
 public:
  struct Expiry {
    uint64_t deadline_boot_ns;
    uint32_t slot;
    uint32_t incarnation;
    bool operator>(const Expiry& other) const { return deadline_boot_ns > other.deadline_boot_ns; }
  };

  void add(const LeaseId& id, uint32_t first_slot, uint32_t incarnation, uint64_t deadline_boot_ns,
           uint32_t tenant);
  void remove(const LeaseId& id, uint32_t tenant);
  void moved(uint32_t first_slot, uint32_t incarnation, uint64_t deadline_boot_ns);
  void reserve(size_t leases);  // so many more

  std::optional<uint32_t> find(const LeaseId& id) const;
  size_t size() const { return size_; }
  uint32_t of_tenant(uint32_t tenant) const {
    return tenant < by_tenant_.size() ? by_tenant_[tenant] : 0;
  }

  // The earliest deadline on the heap. It may be of a lease that was renewed or is gone: whoever
  // takes it looks at the slot's gate.
  std::optional<Expiry> earliest() const;
  void pop() { expiries_.pop(); }

 private:
  struct Place {
    LeaseId id;
    uint32_t first_slot = abi::HF_NO_SLOT;  // that: the place is free
    bool free() const { return first_slot == abi::HF_NO_SLOT; }
  };
  size_t home_of(const LeaseId& id) const { return id.words[0] & (places_.size() - 1); }
  size_t after(size_t place) const { return (place + 1) & (places_.size() - 1); }
  size_t place_of(const LeaseId& id) const;  // where it is, or the free place where it would be
  void rebuild(size_t places);

  // By id: a hash table without nodes, since a bulk grant would make a million of them. A power of
  // two, at least a quarter of it free; an id is random, so its first word says where it belongs,
  // and it stands there or in one of the taken places that follow.
  std::vector<Place> places_;
  size_t size_ = 0;
  std::vector<uint32_t> by_tenant_;
  std::priority_queue<Expiry, std::vector<Expiry>, std::greater<>> expiries_;
};

}  // namespace holdfast
