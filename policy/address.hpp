// Addresses as text, both ways. Strict: one value has few spellings in and exactly one out, so that
// two readers of a policy never disagree about whose address it is. Errors are of kind `invalid`,
// name the text and say how to mend it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "policy/types.hpp"
#include "userspace/base/result.hpp"

namespace holdfast {

constexpr uint8_t address_bits = 128;
constexpr uint8_t v4_offset_bits = 96;  // where the IPv4 address begins in the 128-bit form

// "10.0.0.2" or "fd00::2". Refused: parts with leading zeros (some readers take them for octal),
// zone ids, IPv4-mapped text (::ffff:10.0.0.2: write the IPv4 address), fewer than four parts.
Result<Address> parse_address(std::string_view text);

// IPv4 as dotted quad, IPv6 as RFC 5952 section 4 has it.
std::string format_address(const Address& address);

// "10.0.0.0/8", "fd00::/64", or an address alone, which is a prefix of its full length. Host bits
// that are set are refused, and the message names the prefix without them.
Result<Prefix> parse_prefix(std::string_view text);

// Always with its length, which for IPv4 counts over 32 bits.
std::string format_prefix(const Prefix& prefix);

// Six pairs of hex digits joined by ':'; either case in, lower case out. Says nothing about which
// addresses are usable: 00:00:00:00:00:00 parses.
Result<MacAddress> parse_mac(std::string_view text);
std::string format_mac(const MacAddress& mac);

struct AddressPort {
  Address address;
  uint16_t port = 0;  // host order, never 0
  auto operator<=>(const AddressPort&) const = default;
};

// "10.0.0.2:443" or "[::1]:443".
Result<AddressPort> parse_address_port(std::string_view text);
std::string format_address_port(const AddressPort& value);

// The highest address of a prefix; the lowest is prefix.address.
Address last_address(const Prefix& prefix);

// address + 1; the all-ones address wraps to zero.
Address next_address(const Address& address);

// fe80::/10. (The IPv4 kind, 169.254.0.0/16, never enters a policy.)
bool is_link_local_v6(const Address& address);

}  // namespace holdfast
