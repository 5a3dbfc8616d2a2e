#include "nft/sets.hpp"

#include <cstring>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include "policy/address.hpp"
#include "userspace/base/check.hpp"

namespace holdfast::nft {
namespace {

using enum Part;

constexpr uint8_t padded(size_t bytes) {
  return static_cast<uint8_t>((bytes + 3) & ~size_t{3});
}

constexpr uint8_t key_bytes_of(const std::array<Part, parts_max>& parts, uint8_t count) {
  uint8_t bytes = 0;
  for (uint8_t i = 0; i < count; ++i)
    bytes = static_cast<uint8_t>(bytes + padded(part_bytes(parts[i])));
  return bytes;
}

constexpr SetSchema plain(SetId id, const char* name, std::array<Part, parts_max> parts,
                          uint8_t count) {
  return {id, name, false, false, count, parts, key_bytes_of(parts, count)};
}
constexpr SetSchema timed(SetId id, const char* name, std::array<Part, parts_max> parts,
                          uint8_t count) {
  return {id, name, true, false, count, parts, key_bytes_of(parts, count)};
}
constexpr SetSchema peers(SetId id, const char* name, std::array<Part, parts_max> parts,
                          uint8_t count) {
  return {id, name, true, true, count, parts, key_bytes_of(parts, count)};
}

constexpr std::array<Part, parts_max> lease4_parts = {interface, ipv4, protocol, service, ipv4};
constexpr std::array<Part, parts_max> lease6_parts = {interface, ipv6, protocol, service, ipv6};
constexpr std::array<Part, parts_max> echo4_parts = {interface, ipv4, ipv4};
constexpr std::array<Part, parts_max> echo6_parts = {interface, ipv6, ipv6};

// Without the peer, the keys are a prefix of those with it.
constexpr std::array<SetSchema, sets_count> schemas = {{
    plain(SetId::armed, "armed", {interface}, 1),
    plain(SetId::tenants, "tenants", {interface}, 1),
    plain(SetId::owned4, "owned4", {interface, ipv4}, 2),
    plain(SetId::owned6, "owned6", {interface, ipv6}, 2),
    timed(SetId::lease4_a, "lease4_a", lease4_parts, 4),
    timed(SetId::lease4_b, "lease4_b", lease4_parts, 4),
    timed(SetId::lease6_a, "lease6_a", lease6_parts, 4),
    timed(SetId::lease6_b, "lease6_b", lease6_parts, 4),
    timed(SetId::echo4_a, "echo4_a", echo4_parts, 2),
    timed(SetId::echo4_b, "echo4_b", echo4_parts, 2),
    timed(SetId::echo6_a, "echo6_a", echo6_parts, 2),
    timed(SetId::echo6_b, "echo6_b", echo6_parts, 2),
    timed(SetId::egress_a, "egress_a", {interface}, 1),
    timed(SetId::egress_b, "egress_b", {interface}, 1),
    peers(SetId::lease4_peer_a, "lease4_peer_a", lease4_parts, 5),
    peers(SetId::lease4_peer_b, "lease4_peer_b", lease4_parts, 5),
    peers(SetId::lease6_peer_a, "lease6_peer_a", lease6_parts, 5),
    peers(SetId::lease6_peer_b, "lease6_peer_b", lease6_parts, 5),
    peers(SetId::echo4_peer_a, "echo4_peer_a", echo4_parts, 3),
    peers(SetId::echo4_peer_b, "echo4_peer_b", echo4_parts, 3),
    peers(SetId::echo6_peer_a, "echo6_peer_a", echo6_parts, 3),
    peers(SetId::echo6_peer_b, "echo6_peer_b", echo6_parts, 3),
}};

constexpr bool in_order() {
  for (size_t i = 0; i < sets_count; ++i) {
    if (schemas[i].id != static_cast<SetId>(i)) return false;
  }
  return true;
}
static_assert(in_order(), "schemas are indexed by SetId");

// nft's own numbers (enum datatypes in its datatype.h), six bits each in a concatenation.
uint32_t nft_type(Part part) {
  switch (part) {
    case interface: return 20;
    case ipv4: return 7;
    case ipv6: return 8;
    case protocol: return 12;
    case service: return 13;
  }
  CHECK(false);
}

class KeyWriter {
 public:
  explicit KeyWriter(SetId set) : interval_(schema(set).interval) { key_.set = set; }

  void number(const void* bytes, size_t length) { range(bytes, bytes, length); }
  void interface_index(uint32_t ifindex) {
    // A set with intervals is ordered by bytes, so nft keeps host-order values there in network
    // order.
    uint32_t value = interval_ ? htonl(ifindex) : ifindex;
    number(&value, sizeof(value));
  }
  void address(const Address& value) { range_of(value, value); }
  void prefix(const Prefix& value) { range_of(value.address, last_address(value)); }
  ElementKey take() {
    CHECK(key_.length == schema(key_.set).key_bytes);
    return key_;
  }

 private:
  void range_of(const Address& first, const Address& last) {
    size_t skip = first.is_v4() ? 12 : 0;
    range(&first.bytes[skip], &last.bytes[skip], 16 - skip);
  }
  void range(const void* first, const void* last, size_t length) {
    CHECK(key_.length + padded(length) <= ElementKey::bytes_max);
    std::memcpy(&key_.start[key_.length], first, length);
    std::memcpy(&key_.end[key_.length], last, length);
    key_.length = static_cast<uint8_t>(key_.length + padded(length));
  }

  ElementKey key_;
  bool interval_;
};

bool is_v4_prefix(const Prefix& prefix) {
  return prefix.bits >= v4_offset_bits && prefix.address.is_v4();
}

}  // namespace

SetId owned_set(const OwnedAddress& owned) {
  return owned.address.is_v4() ? SetId::owned4 : SetId::owned6;
}

SetId lease_set(const LeaseElement& element, Side side) {
  SetId first = SetId::egress_a;
  if (element.kind == LeaseElement::Kind::endpoint) {
    bool v4 = element.address.is_v4();
    if (element.protocol == Protocol::icmp_echo) {
      first = element.peer ? (v4 ? SetId::echo4_peer_a : SetId::echo6_peer_a)
                           : (v4 ? SetId::echo4_a : SetId::echo6_a);
    } else {
      first = element.peer ? (v4 ? SetId::lease4_peer_a : SetId::lease6_peer_a)
                           : (v4 ? SetId::lease4_a : SetId::lease6_a);
    }
  }
  return static_cast<SetId>(static_cast<uint8_t>(first) + static_cast<uint8_t>(side));
}

const SetSchema& schema(SetId set) {
  return schemas[static_cast<size_t>(set)];
}

std::optional<SetId> find_set(std::string_view name) {
  for (const SetSchema& set : schemas) {
    if (name == set.name) return set.id;
  }
  return {};
}

uint32_t SetSchema::key_type() const {
  uint32_t type = 0;
  for (Part part : key()) type = type << 6 | nft_type(part);
  return type;
}

ElementKey interface_key(SetId set, uint32_t ifindex) {
  KeyWriter writer(set);
  writer.interface_index(ifindex);
  return writer.take();
}

ElementKey owned_key(const OwnedAddress& owned) {
  KeyWriter writer(owned_set(owned));
  writer.interface_index(owned.ifindex);
  writer.address(owned.address);
  return writer.take();
}

ElementKey lease_key(const LeaseElement& element, Side side) {
  KeyWriter writer(lease_set(element, side));
  writer.interface_index(element.ifindex);
  if (element.kind == LeaseElement::Kind::egress) return writer.take();
  writer.address(element.address);
  if (element.protocol != Protocol::icmp_echo) {
    auto number = static_cast<uint8_t>(element.protocol);
    uint16_t port = htons(element.port);
    writer.number(&number, sizeof(number));
    writer.number(&port, sizeof(port));
  }
  if (element.peer) writer.prefix(*element.peer);
  return writer.take();
}

Status check(const LeaseElement& element) {
  auto bad = [&](const char* what) {
    return fail(ErrorKind::invalid, "nft_element",
                fmt::format("{}: {}", describe(element, Side::a), what));
  };
  if (element.ifindex == 0) return bad("names no interface");
  if (element.kind == LeaseElement::Kind::egress) {
    if (element.peer) return bad("an egress lease has no peer prefix here");
    return {};
  }
  bool echo = element.protocol == Protocol::icmp_echo;
  if (!echo && element.protocol != Protocol::tcp && element.protocol != Protocol::udp) {
    return bad("neither TCP, UDP nor ICMP echo");
  }
  if (echo != (element.port == 0)) return bad(echo ? "ICMP echo has no port" : "port 0 is none");
  if (element.peer) {
    if (is_v4_prefix(*element.peer) != element.address.is_v4()) {
      return bad("the peer prefix is of another family than the address");
    }
    if (element.peer->bits > address_bits) return bad("the peer prefix is longer than an address");
  }
  return {};
}

std::string describe(const LeaseElement& element, Side side) {
  std::string out =
      fmt::format("{}: interface {}", schema(lease_set(element, side)).name, element.ifindex);
  if (element.kind == LeaseElement::Kind::egress) return out;
  out += ", " + format_address(element.address);
  switch (element.protocol) {
    case Protocol::icmp_echo: out += " echo"; break;
    case Protocol::tcp: out += fmt::format(" tcp {}", element.port); break;
    case Protocol::udp: out += fmt::format(" udp {}", element.port); break;
  }
  if (element.peer) out += ", peer " + format_prefix(*element.peer);
  return out;
}

std::string describe(const OwnedAddress& owned) {
  return fmt::format("{}: interface {}, {}", schema(owned_set(owned)).name, owned.ifindex,
                     format_address(owned.address));
}

}  // namespace holdfast::nft
