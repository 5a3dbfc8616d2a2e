// Runs of consecutive addresses, and who claims them twice. Ranges are compared as ranges: a policy
// that says 10.0.0.0/16 costs one run here, not 65536 comparisons.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policy/types.hpp"

namespace holdfast {

// All of first..last, both of one family, claimed in the file's `line` by `owner` (an index that
// only the caller understands).
struct AddressRun {
  Address first;
  Address last;
  uint32_t owner = 0;
  uint32_t line = 0;
};

AddressRun run_of(const Prefix& prefix);

// How many addresses a run has; capped at 2^64 - 1.
uint64_t run_size(const AddressRun& run);

// A claim on every (address, protocol, port) of a run and a port range.
struct ListenRun {
  AddressRun addresses;
  Protocol protocol = Protocol::tcp;
  PortRange listen;
};

// Indices into what was searched, `earlier` having the lower line.
struct Overlap {
  size_t earlier = 0;
  size_t later = 0;
};

// Pairs of runs that share an address: at most one for each two owners, at most `overlaps_max`;
// none only if there is none. Sorts `runs` by family and first address.
std::vector<Overlap> find_overlaps(std::vector<AddressRun>& runs, size_t overlaps_max);

// The same for claims, whose runs must not reach from one family into the other (those of ports do
// not). Sorts `runs` by protocol, then by first address. Cost: n log n.
std::vector<Overlap> find_overlaps(std::vector<ListenRun>& runs, size_t overlaps_max);

// Joins neighbours of sorted runs that do not overlap; owners and lines are lost.
std::vector<AddressRun> joined(std::span<const AddressRun> sorted);

// Whether every address of `run` is in one of `sorted_joined`.
bool covers(std::span<const AddressRun> sorted_joined, const AddressRun& run);

// Appends each address of a run, which is at most port_addresses_max long (CHECKed).
void expand(const AddressRun& run, std::vector<Address>& out);

// The fewest prefixes that hold exactly these ascending, unique addresses.
std::vector<Prefix> collapse(std::span<const Address> addresses);

}  // namespace holdfast
