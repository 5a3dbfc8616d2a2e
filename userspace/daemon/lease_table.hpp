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
#include <unordered_map>
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
  void reserve(size_t leases) { by_id_.reserve(by_id_.size() + leases); }

  std::optional<uint32_t> find(const LeaseId& id) const;
  size_t size() const { return by_id_.size(); }
  uint32_t of_tenant(uint32_t tenant) const {
    return tenant < by_tenant_.size() ? by_tenant_[tenant] : 0;
  }

  // The earliest deadline on the heap. It may be of a lease that was renewed or is gone: whoever
  // takes it looks at the slot's gate.
  std::optional<Expiry> earliest() const;
  void pop() { expiries_.pop(); }

 private:
  struct Hash {
    size_t operator()(const LeaseId& id) const { return id.words[0]; }  // ids are random
  };
  std::unordered_map<LeaseId, uint32_t, Hash> by_id_;
  std::vector<uint32_t> by_tenant_;
  std::priority_queue<Expiry, std::vector<Expiry>, std::greater<>> expiries_;
};

}  // namespace holdfast
