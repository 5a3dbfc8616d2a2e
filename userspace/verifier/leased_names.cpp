#include "userspace/verifier/leased_names.hpp"

#include <algorithm>
#include <bit>
#include <span>

#include <sodium.h>

namespace holdfast {

LeasedNames::LeasedNames(uint32_t slots)
    : mask_(std::bit_ceil(size_t{2} * slots) - 1), places_(mask_ + 1), names_(slots) {
  randombytes_buf(key_.data(), key_.size());
}

uint64_t LeasedNames::hash(std::string_view tenant, std::string_view resource) const {
  std::array<char, 520> text;  // two names of at most 256 bytes; what is longer names nothing
  if (tenant.size() + resource.size() + 1 > text.size()) return 1;
  char* end = std::ranges::copy(tenant, text.data()).out;
  *end++ = '\0';
  end = std::ranges::copy(resource, end).out;
  uint64_t hash = 0;
  crypto_shorthash(reinterpret_cast<uint8_t*>(&hash), reinterpret_cast<const uint8_t*>(text.data()),
                   static_cast<size_t>(end - text.data()), key_.data());
  return hash | 1;  // never 0
}

void LeasedNames::put(uint32_t slot, uint64_t hash) {
  remove(slot);
  names_[slot] = hash;
  size_t place = home_of(hash);
  while (places_[place].load(std::memory_order_relaxed) != 0) place = after(place);
  places_[place].store(word_of(hash, slot), std::memory_order_release);
}

// Closes the gap by moving back what stands behind it and may.
void LeasedNames::remove(uint32_t slot) {
  const uint64_t hash = names_[slot];
  if (hash == 0) return;
  size_t gap = home_of(hash);
  while (places_[gap].load(std::memory_order_relaxed) != word_of(hash, slot)) gap = after(gap);
  changes_.fetch_add(1, std::memory_order_acq_rel);
  for (size_t next = after(gap);; next = after(next)) {
    const uint64_t moved = places_[next].load(std::memory_order_relaxed);
    if (moved == 0) break;
    const size_t home = home_of(moved);
    if (((next - home) & mask_) < ((next - gap) & mask_)) continue;  // it would be before its home
    places_[gap].store(moved, std::memory_order_release);
    gap = next;
  }
  places_[gap].store(0, std::memory_order_release);
  names_[slot] = 0;
  changes_.fetch_add(1, std::memory_order_release);
}

}  // namespace holdfast
