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
  uint8_t tag;
};

Places places_of(const abi::endpoint_key& key, const abi::endpoint_hash& hash) {
  const uint64_t both = abi::hf_endpoint_hash(key.address, key.port, key.protocol, hash.seed);
  return {static_cast<uint32_t>(both) & hash.mask, static_cast<uint32_t>(both >> 32) & hash.mask,
          abi::hf_endpoint_tag(both)};
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

void append_tags(EndpointTable& table) {
  const uint32_t lines = table.hash.mask + 1;
  table.lines.resize(abi::hf_tag_line(lines, lines - 1) + 1);
  for (uint32_t line = 0; line < lines; ++line)
    for (size_t i = 0; i < abi::HF_LINE_ENTRIES; ++i) {
      const abi::endpoint_entry& entry = table.lines[line].entries[i];
      if (entry.key.protocol == 0) continue;
      auto* tags = reinterpret_cast<uint8_t*>(&table.lines[abi::hf_tag_line(lines, line)]);
      tags[abi::hf_tag_offset(line) + i] = places_of(entry.key, table.hash).tag;
    }
}

}  // namespace

EndpointTable build_endpoint_table(std::span<const abi::endpoint_entry> entries, uint64_t seed) {
  EndpointTable table;
  const size_t lines = std::bit_ceil(std::max<size_t>(entries.size(), 1));
  CHECK(lines <= size_t{1} << 24);  // hf_endpoint_tag's bits are of no line number
  table.hash.mask = static_cast<uint32_t>(lines - 1);
  for (int attempt = 0;; ++attempt) {
    CHECK(attempt < 64);  // only equal keys could bring us here
    table.hash.seed = seed + static_cast<uint64_t>(attempt);
    table.lines.assign(lines, {});
    if (std::all_of(entries.begin(), entries.end(),
                    [&](const abi::endpoint_entry& entry) { return insert(table, entry); })) {
      append_tags(table);
      return table;
    }
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
