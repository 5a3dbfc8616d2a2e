// Packets in words, for every test that needs frames:
//
//   Ip4{.from = "10.0.0.1", .to = "10.1.0.2"} / Tcp{.sport = 40000, .dport = 443, .flags = "S"}
//
// Each layer fills in its own lengths, next-header numbers and checksums when the packet is
// rendered; a field that a test sets by hand (the std::optional ones) stays as it is, however
// wrong. A packet without an Ether layer gets one. Ports, ids and lengths are in host order here;
// bytes() is what the wire carries.
//
// Malformed addresses abort: they are bugs of the test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace holdfast::test {

using Bytes = std::vector<std::uint8_t>;

// The addresses that packets have unless they say otherwise: a tenant speaking to the outside
// world.
inline constexpr std::string_view kTenantMac = "02:00:00:00:00:01";
inline constexpr std::string_view kHostMac = "02:00:00:00:00:fe";

// "02:00:00:00:00:01" to 6 bytes; "10.0.0.1" to 4; "fd00::1" to 16.
Bytes mac_bytes(std::string_view text);
Bytes ip4_bytes(std::string_view text);
Bytes ip6_bytes(std::string_view text);
// An address of either family as 16 bytes, IPv4 as ::ffff:a.b.c.d: the form abi.h keys tables by.
Bytes mapped_bytes(std::string_view text);

struct Ether {
  std::string from = std::string(kTenantMac);
  std::string to = std::string(kHostMac);
  std::optional<std::uint16_t> type = {};  // else by the next layer
};

// One tag; several in a row make QinQ. `tpid` 0x8100 or 0x88a8.
struct Vlan {
  std::uint16_t id = 0;
  std::uint16_t tpid = 0x8100;
  std::optional<std::uint16_t> type = {};
};

struct Ip4 {
  std::string from = "10.0.0.1";
  std::string to = "192.0.2.9";
  std::uint8_t ttl = 64;
  std::uint16_t id = 0;
  bool dont_fragment = false;
  bool more = false;           // more fragments
  bool reserved_flag = false;  // the bit that must be zero
  unsigned offset = 0;         // of a fragment, in bytes
  Bytes options = {};          // padded to 4 by the test
  std::optional<std::uint8_t> protocol = {};
  std::optional<std::uint8_t> version = {};
  std::optional<std::uint8_t> header_words = {};
  std::optional<std::uint16_t> total_length = {};
};

struct Ip6 {
  std::string from = "fd00::1";
  std::string to = "2001:db8::9";
  std::uint8_t hop_limit = 64;
  std::optional<std::uint8_t> next = {};
  std::optional<std::uint8_t> version = {};
  std::optional<std::uint16_t> payload_length = {};
};

// Hop-by-hop, destination options or another header of the same shape. `words` counts 8-octet units
// beyond the first, as the length byte does.
struct Extension {
  std::uint8_t number = 60;
  std::uint8_t words = 0;
  std::optional<std::uint8_t> next = {};
  std::optional<std::uint8_t> length = {};  // the length byte, if it shall lie
};
inline Extension hop_by_hop(std::uint8_t words = 0) {
  return {.number = 0, .words = words};
}
inline Extension destination_options(std::uint8_t words = 0) {
  return {.number = 60, .words = words};
}
inline Extension routing(std::uint8_t words = 2) {
  return {.number = 43, .words = words};
}

// RFC 4302: (icv_words + 1 + 2) * 4 bytes; 12 of them are fixed.
struct Ah {
  std::uint8_t icv_words = 3;
  std::optional<std::uint8_t> next = {};
  std::optional<std::uint8_t> length = {};
};

// RFC 8200 4.5. offset 0 without `more` is an atomic fragment (RFC 6946).
struct Fragment6 {
  unsigned offset = 0;  // bytes
  bool more = false;
  std::uint32_t id = 1;
  std::uint8_t reserved = 0;
  std::optional<std::uint8_t> next = {};
};

struct Tcp {
  std::uint16_t sport = 40000;
  std::uint16_t dport = 443;
  std::string flags = "A";  // letters of FSRPAU
  Bytes options = {};
  std::optional<std::uint8_t> header_words = {};
};

struct Udp {
  std::uint16_t sport = 40000;
  std::uint16_t dport = 53;
  std::optional<std::uint16_t> length = {};
};

// ICMP or ICMPv6, by the IP layer before it; `type` 8 and 0 are the IPv4 numbers, translated for
// IPv6.
struct Echo {
  std::uint16_t id = 7;
  std::uint16_t sequence = 1;
  bool reply = false;
};

// Any ICMP message: type, code, then 4 bytes, then the next layers. Numbers of the family in use.
struct Icmp {
  std::uint8_t type = 0;
  std::uint8_t code = 0;
  std::uint32_t rest = 0;
};

struct Raw {
  Bytes bytes = {};
};
inline Raw zeros(std::size_t count) {
  return {.bytes = Bytes(count, 0)};
}

struct Arp {
  std::uint16_t operation = 1;  // 1 request, 2 reply
  std::string sender_mac = std::string(kTenantMac);
  std::string sender = "10.0.0.1";
  std::string target_mac = "00:00:00:00:00:00";
  std::string target = "10.0.0.254";
  std::uint16_t hardware = 1;
  std::uint16_t protocol = 0x0800;
  std::uint8_t hardware_length = 6;
  std::uint8_t protocol_length = 4;
};

// RFC 4861 messages: 133 RS, 134 RA, 135 NS, 136 NA, 137 redirect. Needs hop limit 255: see nd().
struct Nd {
  std::uint8_t type = 135;
  std::string target = "fd00::fe";             // NS, NA; also the redirect's
  std::optional<std::string> source_mac = {};  // option 1
  std::optional<std::string> target_mac = {};  // option 2
  Bytes options = {};                          // further ones, as they stand
  std::uint8_t code = 0;
};

using Layer = std::variant<Ether, Vlan, Ip4, Ip6, Extension, Ah, Fragment6, Tcp, Udp, Echo, Icmp,
                           Raw, Arp, Nd>;

class Packet {
 public:
  Packet() = default;
  template <typename L>
    requires std::is_constructible_v<Layer, L> && (!std::is_same_v<std::remove_cvref_t<L>, Packet>)
  Packet(L layer) : layers_{Layer(std::move(layer))} {}  // NOLINT: a layer is a packet

  // The frame, Ethernet included.
  Bytes bytes() const;
  // From the first IP layer on: what an ICMP error quotes.
  Bytes ip_bytes() const;

  // The same packet with its frame cut to, or padded with zeros to, `length` bytes.
  Packet cut(std::size_t length) const;
  // The same packet with bytes of its frame overwritten from `offset` on.
  Packet with(std::size_t offset, Bytes bytes) const;

  const std::vector<Layer>& layers() const { return layers_; }
  friend Packet operator/(Packet left, const Packet& right);  // stacks right inside left

 private:
  struct Damage {
    std::size_t offset;
    Bytes bytes;
    bool resize;  // to `offset`
  };
  std::vector<Layer> layers_;
  std::vector<Damage> damage_;
};

Packet operator/(Packet left, const Packet& right);

// `quoted` (from its IP header on) inside an ICMP error of the family of the IP layer before it,
// cut to `bytes_max`. v4 type 3 is destination unreachable, 11 time exceeded, 12 parameter problem,
// 5 redirect; v6 types are 1 to 4.
Packet icmp_error(std::uint8_t type, std::uint8_t code, const Packet& quoted,
                  std::size_t bytes_max = 128);

// Neighbour discovery from `from` to `to`, with the hop limit it needs.
Packet nd(std::string from, std::string to, Nd message);

// Bytes [begin, end) of the IP payload of `whole`, as one fragment of it with identification `id`.
// `end` past the payload makes it the last one. Works for Ip4 and for Ip6 without extension
// headers.
Packet fragment(const Packet& whole, unsigned id, std::size_t begin, std::size_t end);

}  // namespace holdfast::test
