// The sets of our table: their names and key layouts, and how a lease becomes an element. Pure.
//
// Timed sets exist twice, `_a` and `_b`, and a packet asks both: a renewal deletes and adds in one
// of them while the other one's element is live, so no packet ever finds neither (re-adding an
// element does not refresh its timeout before Linux 6.12, and delete-and-add of the only one lets
// packets drop). A lease with a peer prefix lives in the `_peer` sets only, one without in the
// plain sets only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "policy/types.hpp"
#include "userspace/base/result.hpp"

namespace holdfast::nft {

enum class SetId : uint8_t {
  armed,
  tenants,
  owned4,
  owned6,
  // From here on timed, `_a` first: other_side() relies on it.
  lease4_a,
  lease4_b,
  lease6_a,
  lease6_b,
  echo4_a,
  echo4_b,
  echo6_a,
  echo6_b,
  egress_a,
  egress_b,
  lease4_peer_a,
  lease4_peer_b,
  lease6_peer_a,
  lease6_peer_b,
  echo4_peer_a,
  echo4_peer_b,
  echo6_peer_a,
  echo6_peer_b,
};
constexpr size_t sets_count = 22;

enum class Part : uint8_t { interface, ipv4, ipv6, protocol, service };
constexpr size_t parts_max = 5;

struct SetSchema {
  SetId id;
  const char* name;
  bool timed;
  bool interval;  // the last part is a prefix
  uint8_t parts_count;
  std::array<Part, parts_max> parts;
  uint8_t key_bytes;  // each part padded to four bytes, as a concatenation is in registers

  std::span<const Part> key() const { return {parts.data(), parts_count}; }
  uint32_t key_type() const;  // nft's type number, so that `nft list` prints values and not numbers
};

const SetSchema& schema(SetId set);
std::optional<SetId> find_set(std::string_view name);

constexpr uint8_t part_bytes(Part part) {
  switch (part) {
    case Part::interface:
    case Part::ipv4: return 4;
    case Part::ipv6: return 16;
    case Part::protocol: return 1;
    case Part::service: return 2;
  }
  return 0;
}

enum class Side : uint8_t { a, b };  // which of the two timed sets
constexpr Side other_side(Side side) {
  return side == Side::a ? Side::b : Side::a;
}

// What a lease opens in nftables: an endpoint behind a tenant port, or the port's egress.
struct LeaseElement {
  enum class Kind : uint8_t { endpoint, egress };

  Kind kind = Kind::endpoint;
  uint32_t ifindex = 0;
  Address address;                    // endpoint only, like the rest
  Protocol protocol = Protocol::tcp;  // icmp_echo: of the address's family
  uint16_t port = 0;                  // host order; 0 for icmp_echo
  std::optional<Prefix> peer;

  bool operator==(const LeaseElement&) const = default;
};

struct OwnedAddress {
  uint32_t ifindex = 0;
  Address address;

  bool operator==(const OwnedAddress&) const = default;
};

// One element as the kernel has it.
struct ElementKey {
  static constexpr size_t bytes_max = 44;  // interface . ipv6 . protocol . service . ipv6

  SetId set = SetId::armed;
  uint8_t length = 0;
  std::array<uint8_t, bytes_max> start{};
  std::array<uint8_t, bytes_max> end{};  // sets with intervals only

  std::span<const uint8_t> key() const { return {start.data(), length}; }
  std::span<const uint8_t> key_end() const { return {end.data(), length}; }
};

ElementKey interface_key(SetId set, uint32_t ifindex);
ElementKey owned_key(const OwnedAddress& owned);
SetId owned_set(const OwnedAddress& owned);
SetId lease_set(const LeaseElement& element, Side side);
// The element has passed check().
ElementKey lease_key(const LeaseElement& element, Side side);

// An element that no set can hold: no interface, a peer of another family, a port where there is
// none.
Status check(const LeaseElement& element);

// "lease4_a: interface 5, 10.0.0.2 tcp 443, peer 192.0.2.0/24"
std::string describe(const LeaseElement& element, Side side);
std::string describe(const OwnedAddress& owned);

}  // namespace holdfast::nft
