// The endpoint table that packets read (bpf/abi.h, endpoint_line): endpoints, and the addresses
// with their owners. Built here, whole. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "bpf/abi.h"

namespace holdfast {

struct EndpointTable {
  std::vector<abi::endpoint_line> lines;  // a power of two, hash.mask + 1, and then their tags
  abi::endpoint_hash hash{};
};

// Keys must be distinct. `seed` is any random number; where an insertion does not succeed under it,
// its successors are tried: at half full, as here, that is all but unknown.
EndpointTable build_endpoint_table(std::span<const abi::endpoint_entry> entries, uint64_t seed);

// The entry of `key` in `lines`, or null. What hf_find_endpoint() does in the kernel.
const abi::endpoint_entry* find_endpoint(const abi::endpoint_line* lines,
                                         const abi::endpoint_hash& hash,
                                         const abi::endpoint_key& key);

}  // namespace holdfast
