#include "userspace/daemon/lease_issuers.hpp"

#include <bit>
#include <cstring>

#include "userspace/base/check.hpp"

namespace holdfast {

uint16_t LeaseIssuers::number_for(uint64_t issuer) {
  const auto [at, is_new] = numbers_.try_emplace(issuer);
  if (!is_new) return at->second;
  if (unused_.empty()) {
    CHECK(entries_.size() < numbers_max);
    unused_.push_back(static_cast<uint16_t>(entries_.size()));
    entries_.emplace_back();
  }
  at->second = unused_.back();
  unused_.pop_back();
  entries_[at->second].issuer = issuer;
  return at->second;
}

void LeaseIssuers::put(uint32_t slot, uint64_t issuer, bool leads) {
  remove(slot);
  if (issuer == 0) return;
  const uint16_t number = number_for(issuer);
  of_slot_[slot] = number | (leads ? leads_bit : uint16_t{0});
  ++entries_[number].slots;
  entries_[number].leases += leads;
}

void LeaseIssuers::remove(uint32_t slot) {
  const uint16_t there = of_slot_[slot];
  if (there == 0) return;
  of_slot_[slot] = 0;
  const uint16_t number = there & ~leads_bit;
  Entry& entry = entries_[number];
  --entry.slots;
  entry.leases -= (there & leads_bit) != 0;
  if (entry.slots != 0) return;
  numbers_.erase(entry.issuer);
  entry = {};
  unused_.push_back(number);
}

std::vector<uint64_t> LeaseIssuers::issuers() const {
  std::vector<uint64_t> all;
  all.reserve(numbers_.size());
  for (const auto& [issuer, number] : numbers_) all.push_back(issuer);
  return all;
}

const LeaseIssuers::Entry& LeaseIssuers::entry_of(uint64_t issuer) const {
  const auto at = numbers_.find(issuer);
  return entries_[at == numbers_.end() ? 0 : at->second];
}

size_t LeaseIssuers::slots(uint64_t issuer) const {
  return entry_of(issuer).slots;
}

size_t LeaseIssuers::leases(uint64_t issuer) const {
  return entry_of(issuer).leases;
}

// Which of the 64 slots from `begin` on have that number: bit i stands for begin + i. Four are
// compared at once, in the lanes of a word (H. S. Warren, Hacker's Delight, 6-1: where is a zero).
uint64_t LeaseIssuers::where(uint16_t number, uint32_t begin) const {
  static_assert(std::endian::native == std::endian::little, "the first lane is the lowest");
  constexpr uint64_t ones = 0x0001000100010001;
  constexpr uint64_t number_bits = ones * (leads_bit - 1);
  // Brings the lowest bits of the four lanes together at the top; no two of its products meet.
  constexpr uint64_t together = 0x1000200040008000;
  uint64_t found = 0;
  for (uint32_t i = 0; i < slots_read; i += 4) {
    uint64_t lanes = 0;
    std::memcpy(&lanes, &of_slot_[begin + i], sizeof(lanes));
    const uint64_t differs = (lanes & number_bits) ^ (ones * number);
    // The sum's highest bit of a lane is set unless nothing differs there.
    const uint64_t same = ~(differs + number_bits) & ~number_bits;
    found |= ((same >> 15) * together) >> 60 << i;
  }
  return found;
}

void LeaseIssuers::append_slots(uint64_t issuer, std::vector<uint32_t>& out) const {
  const auto at = numbers_.find(issuer);
  if (at == numbers_.end()) return;
  size_t end = out.size();
  size_t left = entries_[at->second].slots;
  out.resize(end + left);
  for (uint32_t begin = 0; left != 0; begin += slots_read) {
    uint64_t found = where(at->second, begin);
    left -= static_cast<size_t>(std::popcount(found));
    for (; found != 0; found &= found - 1)
      out[end++] = begin + static_cast<uint32_t>(std::countr_zero(found));
  }
}

}  // namespace holdfast
