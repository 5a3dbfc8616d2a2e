// The domain's words as types (DESIGN.md section 1). Pure values: no syscalls, no clock.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace holdfast {

// An IPv6 address in network order; IPv4 is held as IPv4-mapped (::ffff:a.b.c.d).
struct Address {
  std::array<uint8_t, 16> bytes{};

  bool is_v4() const;
  auto operator<=>(const Address&) const = default;
};

// bits counts over the 128-bit form: 10.0.0.0/8 is ::ffff:10.0.0.0/104. Host bits are zero. The
// families are strangers: ::/0 contains no IPv4 address, although IPv4 is held inside that space.
struct Prefix {
  Address address;
  uint8_t bits = 0;

  bool contains(const Address& other) const;
  auto operator<=>(const Prefix&) const = default;
};

struct MacAddress {
  std::array<uint8_t, 6> bytes{};
  auto operator<=>(const MacAddress&) const = default;
};

enum class Protocol : uint8_t { icmp_echo = 1, tcp = 6, udp = 17 };

constexpr std::string_view name_of(Protocol protocol) {
  switch (protocol) {
    case Protocol::icmp_echo: return "icmp_echo";
    case Protocol::tcp: return "tcp";
    case Protocol::udp: return "udp";
  }
  return "?";
}

struct PortRange {  // inclusive; {0, 0} for icmp_echo
  uint16_t first = 0;
  uint16_t last = 0;
  auto operator<=>(const PortRange&) const = default;
};

// A tenant port: the host end of a veth, or a tap.
struct TenantPort {
  std::string name;
  std::string interface;
  MacAddress mac;
  std::vector<Address> addresses;  // ascending, unique; prefixes in the file are expanded
  bool operator==(const TenantPort&) const = default;
};

// One named endpoint: every (address, listen port) pair of it is a resource that can be leased.
struct Endpoint {
  std::string name;
  uint32_t port = 0;  // index into Tenant::ports
  Protocol protocol = Protocol::tcp;
  // Ascending: a subset of the port's; when the file names none, all of them but link-local ones.
  std::vector<Address> addresses;
  PortRange listen;
  bool operator==(const Endpoint&) const = default;
};

struct Tenant {
  uint64_t id = 0;   // immutable; never 0
  std::string name;  // "org/app/env"
  uint32_t leases_max = 0;
  uint32_t flows_max = 0;
  bool admission_required = false;  // of a grant token, by a scheduler
  std::vector<TenantPort> ports;
  std::vector<Endpoint> endpoints;
  bool operator==(const Tenant&) const = default;
};

// A port of the node itself that may be reached; no `from` means from anywhere.
struct Listener {
  Protocol protocol = Protocol::tcp;
  uint16_t port = 0;
  std::vector<Prefix> from;  // none overlaps another
  bool operator==(const Listener&) const = default;
};

struct Policy {
  uint64_t generation = 0;
  std::vector<std::string> uplinks;      // interface names
  std::vector<uint16_t> failsafe_ports;  // TCP, always reachable on the node (G15)
  std::vector<Listener> listeners;
  uint32_t leases_max = 0;
  std::vector<Tenant> tenants;
  bool operator==(const Policy&) const = default;
};

}  // namespace holdfast
