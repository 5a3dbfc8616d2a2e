// The endpoint table that packets read (bpf/abi.h, endpoint_line): endpoints, and the addresses
// with their owners. Built here, whole. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "bpf/abi.h"

namespace holdfast {

struct EndpointTable {
  std::vector<abi::endpoint_line> lines;  // a power of two, hash.mask + 1
  abi::endpoint_hash hash{};              // filter_mask is fill_filter()'s to say
};

// Words of one bank's half of the filter on a node of so many lease slots: a power of two.
uint32_t filter_words(uint32_t leases_max);

// Keys must be distinct. `seed` is any random number; where an insertion does not succeed under it,
// its successors are tried: at half full, as here, that is all but unknown.
EndpointTable build_endpoint_table(std::span<const abi::endpoint_entry> entries, uint64_t seed);

// Makes `filter`, a bank's half of `endpoint_filter`, that of the entries under `hash`, whatever
// was in it before, and says its size in `hash`. Its size is a power of two.
void fill_filter(std::span<uint64_t> filter, std::span<const abi::endpoint_entry> entries,
                 abi::endpoint_hash& hash);

// The entry of `key` in `lines`, or null. What hf_find_endpoint() does in the kernel.
const abi::endpoint_entry* find_endpoint(const abi::endpoint_line* lines,
                                         const abi::endpoint_hash& hash,
                                         const abi::endpoint_key& key);

}  // namespace holdfast
