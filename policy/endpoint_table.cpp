#include "policy/endpoint_table.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "userspace/base/check.hpp"

namespace holdfast {
namespace {

// More displacements than this for one key mean a cycle: start again under another seed.
constexpr int displacements_max = 500;

bool same_key(const abi::endpoint_key& a, const abi::endpoint_key& b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

struct Places {
  uint32_t first, second;  // lines
};

Places places_of(const abi::endpoint_key& key, const abi::endpoint_hash& hash) {
  const uint64_t both = abi::hf_endpoint_hash(key.address, key.port, key.protocol, hash.seed);
  return {static_cast<uint32_t>(both) & hash.mask, static_cast<uint32_t>(both >> 32) & hash.mask};
}

bool put_if_free(abi::endpoint_line& line, const abi::endpoint_entry& entry) {
  for (abi::endpoint_entry& place : line.entries) {
    if (place.key.protocol != 0) continue;
    place = entry;
    return true;
  }
  return false;
}

bool insert(EndpointTable& table, abi::endpoint_entry entry) {
  uint32_t avoid = UINT32_MAX;
  for (int moved = 0; moved < displacements_max; ++moved) {
    const Places pair = places_of(entry.key, table.hash);
    if (put_if_free(table.lines[pair.first], entry) || put_if_free(table.lines[pair.second], entry))
      return true;
    // Both lines are full: take an entry's place in the line it did not just come from.
    const uint32_t line = pair.first == avoid ? pair.second : pair.first;
    std::swap(entry, table.lines[line].entries[moved & 1]);
    avoid = line;
  }
  return false;
}

}  // namespace

EndpointTable build_endpoint_table(std::span<const abi::endpoint_entry> entries, uint64_t seed) {
  EndpointTable table;
  const size_t lines = std::bit_ceil(std::max<size_t>(entries.size(), 1));
  CHECK(lines <= size_t{1} << 31);  // the two line numbers are the halves of a 64-bit hash
  table.hash.mask = static_cast<uint32_t>(lines - 1);
  for (int attempt = 0;; ++attempt) {
    CHECK(attempt < 64);  // only equal keys could bring us here
    table.hash.seed = seed + static_cast<uint64_t>(attempt);
    table.lines.assign(lines, {});
    if (std::all_of(entries.begin(), entries.end(),
                    [&](const abi::endpoint_entry& entry) { return insert(table, entry); }))
      return table;
  }
}

uint32_t filter_words(uint32_t leases_max) {
  return std::max<uint32_t>(std::bit_ceil(leases_max) / abi::HF_FILTER_KEYS_PER_WORD,
                            abi::HF_FILTER_WORDS_MIN);
}

void fill_filter(std::span<uint64_t> filter, std::span<const abi::endpoint_entry> entries,
                 abi::endpoint_hash& hash) {
  CHECK(std::has_single_bit(filter.size()));
  std::ranges::fill(filter, 0);
  hash.filter_mask = static_cast<uint32_t>(filter.size() - 1);
  for (const abi::endpoint_entry& entry : entries) {
    const abi::endpoint_key& key = entry.key;
    const uint64_t h = abi::hf_endpoint_hash(key.address, key.port, key.protocol, hash.seed);
    filter[abi::hf_filter_word(h, 0, &hash)] |= abi::hf_filter_bits(h);
  }
}

const abi::endpoint_entry* find_endpoint(const abi::endpoint_line* lines,
                                         const abi::endpoint_hash& hash,
                                         const abi::endpoint_key& key) {
  const Places pair = places_of(key, hash);
  for (const uint32_t line : {pair.first, pair.second})
    for (const abi::endpoint_entry& entry : lines[line].entries)
      if (same_key(entry.key, key)) return &entry;
  return nullptr;
}

}  // namespace holdfast
