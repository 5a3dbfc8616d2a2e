#include "policy/runs.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <optional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "policy/address.hpp"
#include "policy/limits.hpp"
#include "userspace/base/check.hpp"

namespace holdfast {
namespace {

// Collects overlaps, once for each two owners: a pool that lies over another would otherwise be
// named once for every address.
class OverlapList {
 public:
  explicit OverlapList(size_t overlaps_max) : overlaps_max_(overlaps_max) {}

  bool full() const { return found_.size() >= overlaps_max_; }

  void add(size_t a_index, const AddressRun& a, size_t b_index, const AddressRun& b) {
    if (full() || !owners_.insert(std::minmax(a.owner, b.owner)).second) return;
    bool a_earlier = std::tie(a.line, a_index) < std::tie(b.line, b_index);
    found_.push_back(a_earlier ? Overlap{a_index, b_index} : Overlap{b_index, a_index});
  }

  std::vector<Overlap> take() { return std::move(found_); }

 private:
  size_t overlaps_max_;
  std::set<std::pair<uint32_t, uint32_t>> owners_;
  std::vector<Overlap> found_;
};

uint32_t low_word(const Address& address) {
  const auto& b = address.bytes;
  return static_cast<uint32_t>(b[12]) << 24 | static_cast<uint32_t>(b[13]) << 16 |
         static_cast<uint32_t>(b[14]) << 8 | b[15];
}

}  // namespace

AddressRun run_of(const Prefix& prefix) {
  return {.first = prefix.address, .last = last_address(prefix), .owner = 0, .line = 0};
}

uint64_t run_size(const AddressRun& run) {
  // 128-bit subtraction on two words.
  auto word = [](const Address& address, size_t at) {
    uint64_t value = 0;
    for (size_t i = at; i < at + 8; ++i) value = value << 8 | address.bytes[i];
    return value;
  };
  uint64_t low = word(run.last, 8) - word(run.first, 8);
  uint64_t borrow = word(run.last, 8) < word(run.first, 8) ? 1 : 0;
  uint64_t high = word(run.last, 0) - word(run.first, 0) - borrow;
  return high != 0 || low == UINT64_MAX ? UINT64_MAX : low + 1;
}

std::vector<Overlap> find_overlaps(std::vector<AddressRun>& runs, size_t overlaps_max) {
  std::ranges::sort(runs, [](const AddressRun& a, const AddressRun& b) {
    return std::tie(a.first, a.line, a.owner) < std::tie(b.first, b.line, b.owner);
  });
  OverlapList found(overlaps_max);
  // The run so far that reaches furthest. Families apart: IPv4 lies inside the IPv6 space as held,
  // but
  // ::/0 does not mean it.
  std::array<std::optional<size_t>, 2> reaching_of_family;
  for (size_t i = 0; i < runs.size() && !found.full(); ++i) {
    std::optional<size_t>& reaching = reaching_of_family[runs[i].first.is_v4() ? 1 : 0];
    if (reaching && runs[i].first <= runs[*reaching].last) {
      found.add(*reaching, runs[*reaching], i, runs[i]);
    }
    if (!reaching || runs[i].last > runs[*reaching].last) reaching = i;
  }
  return found.take();
}

std::vector<Overlap> find_overlaps(std::vector<ListenRun>& runs, size_t overlaps_max) {
  std::ranges::sort(runs, [](const ListenRun& a, const ListenRun& b) {
    return std::tie(a.protocol, a.addresses.first, a.addresses.line, a.addresses.owner) <
           std::tie(b.protocol, b.addresses.first, b.addresses.line, b.addresses.owner);
  });
  OverlapList found(overlaps_max);
  // A line sweeps over the addresses. `open` holds the runs it crosses, by their lowest port; they
  // do not overlap each other, since one that would is reported and left out.
  std::map<uint16_t, size_t> open;
  auto ends_later = [&](size_t a, size_t b) {
    return runs[a].addresses.last > runs[b].addresses.last;
  };
  std::priority_queue<size_t, std::vector<size_t>, decltype(ends_later)> ends(ends_later);
  for (size_t i = 0; i < runs.size() && !found.full(); ++i) {
    const ListenRun& run = runs[i];
    bool new_space = i > 0 && runs[i - 1].protocol != run.protocol;
    while (!ends.empty() && (new_space || runs[ends.top()].addresses.last < run.addresses.first)) {
      open.erase(runs[ends.top()].listen.first);
      ends.pop();
    }
    auto above = open.lower_bound(run.listen.first);
    bool free = true;
    if (above != open.end() && above->first <= run.listen.last) {
      found.add(above->second, runs[above->second].addresses, i, run.addresses);
      free = false;
    }
    if (above != open.begin()) {
      size_t below = std::prev(above)->second;
      if (runs[below].listen.last >= run.listen.first) {
        found.add(below, runs[below].addresses, i, run.addresses);
        free = false;
      }
    }
    if (free) {
      open.emplace(run.listen.first, i);
      ends.push(i);
    }
  }
  return found.take();
}

std::vector<AddressRun> joined(std::span<const AddressRun> sorted) {
  std::vector<AddressRun> out;
  for (const AddressRun& run : sorted) {
    bool same_family = !out.empty() && out.back().first.is_v4() == run.first.is_v4();
    if (same_family && next_address(out.back().last) == run.first) {
      out.back().last = run.last;
    } else {
      out.push_back(run);
    }
  }
  return out;
}

bool covers(std::span<const AddressRun> sorted_joined, const AddressRun& run) {
  auto after = std::ranges::upper_bound(sorted_joined, run.first, {}, &AddressRun::first);
  if (after == sorted_joined.begin()) return false;
  const AddressRun& candidate = *std::prev(after);
  return candidate.first.is_v4() == run.first.is_v4() && run.last <= candidate.last;
}

void expand(const AddressRun& run, std::vector<Address>& out) {
  CHECK(run_size(run) <= port_addresses_max);
  for (Address address = run.first;; address = next_address(address)) {
    out.push_back(address);
    if (address == run.last) return;
  }
}

std::vector<Prefix> collapse(std::span<const Address> addresses) {
  std::vector<Prefix> out;
  for (size_t begin = 0; begin < addresses.size();) {
    size_t end = begin + 1;
    while (end < addresses.size() && next_address(addresses[end - 1]) == addresses[end]) ++end;
    while (begin < end) {
      // The largest block that is aligned here and not longer than what is left.
      uint32_t low = low_word(addresses[begin]) | port_addresses_max;
      auto block = std::min<size_t>(low & -low, std::bit_floor(end - begin));
      out.push_back(
          {addresses[begin], static_cast<uint8_t>(address_bits - std::countr_zero(block))});
      begin += block;
    }
  }
  return out;
}

}  // namespace holdfast
