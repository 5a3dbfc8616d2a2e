// LeaseIssuers: on whose key the lease of each slot stands, so that a revoked key's slots are found
// without a look at anybody's record. Like LeaseTable only an index over the records, rebuilt at
// start; the event loop's alone.
//
// Two bytes a slot, in memory only where leases stand on keys: finding all of one key's is reading
// them from one end to the other, 2 MiB for a million slots. Lists that lead from slot to slot
// would take four times that, and a cache miss for each.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "userspace/base/zeroed_array.hpp"

namespace holdfast {

class LeaseIssuers {
 public:
  explicit LeaseIssuers(uint32_t slots)
      : of_slot_((size_t{slots} + slots_read - 1) / slots_read * slots_read), entries_(1) {}

  // The slot of a live lease, or of none any more. `issuer` as in lease_record, so 0 if it stands
  // on no token. `leads`: the lease begins at this slot.
  void put(uint32_t slot, uint64_t issuer, bool leads);
  void remove(uint32_t slot);

  std::vector<uint64_t> issuers() const;  // that live leases stand on
  size_t slots(uint64_t issuer) const;
  size_t leases(uint64_t issuer) const;
  // The issuer's slots, in ascending order.
  void append_slots(uint64_t issuer, std::vector<uint32_t>& out) const;

 private:
  struct Entry {
    uint64_t issuer = 0;
    uint32_t slots = 0;
    uint32_t leases = 0;
  };
  // A slot's issuer as a number: its place in `entries_`. 0 is none. An issuer has one while leases
  // stand on it: a file of anchors holds fewer keys by far (anchors_bytes_max).
  static constexpr uint16_t leads_bit = 0x8000;
  static constexpr size_t numbers_max = leads_bit;
  static constexpr uint32_t slots_read = 64;  // at once; a bit of a word for each
  uint16_t number_for(uint64_t issuer);
  uint64_t where(uint16_t number, uint32_t begin) const;
  const Entry& entry_of(uint64_t issuer) const;

  ZeroedArray<uint16_t> of_slot_;
  std::vector<Entry> entries_;
  std::vector<uint16_t> unused_;  // numbers that were given back
  std::unordered_map<uint64_t, uint16_t> numbers_;
};

}  // namespace holdfast
