// A second opinion on every frame: a decoder written from the RFCs alone, sharing no line and no
// header with bpf/parser.h, which the fuzzer and the tables hold against the parser. It is slow and
// plain on purpose: it narrows its view to what each header says it holds, so nothing outside can
// be read by mistake.
//
// RFC 791, 792, 768, 9293 (IPv4, ICMP, UDP, TCP), 826 (ARP), 8200 and 6946 (IPv6, extension
// headers, fragments), 4302 (AH), 4443 (ICMPv6), 4861 (neighbour discovery), 4038 (mapped
// addresses), IEEE 802.1Q.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace holdfast::test {

// IPv4 as ::ffff:a.b.c.d.
using Address = std::array<std::uint8_t, 16>;

// Roughly why a frame is refused. A frame with several faults may be refused for either.
enum class Refusal { none, truncated, link, network, transport, icmp, fragment };

enum class Meaning { nothing, datagram, icmp_error, arp, neighbour };

struct Decoded {
  Refusal refusal = Refusal::none;
  Meaning meaning = Meaning::nothing;
  unsigned tags = 0;

  // What the IP header says: known as soon as one is there, even if the frame is refused for
  // something later.
  bool addressed = false;
  bool v6 = false;
  Address outer_from = {};
  Address outer_to = {};

  // The tuple: of an error, that of an answer to what it quotes. Echo: the identifier is the port
  // of the side that asks, the other's is 0. Host order.
  Address from = {};
  Address to = {};
  std::uint16_t from_port = 0;
  std::uint16_t to_port = 0;
  std::uint8_t protocol = 0;
  bool initiates = false;
  std::size_t headers = 0;  // bytes of the frame before the payload

  struct Fragment {
    bool first = false;
    std::uint32_t id = 0;  // host order
    std::uint32_t begin = 0;
    std::uint32_t end = 0;
  };
  std::optional<Fragment> fragment = {};

  std::uint8_t message = 0;  // ICMPv6 type of neighbour discovery
  std::optional<std::array<std::uint8_t, 6>> mac = {};
  std::optional<Address> target = {};

  bool accepted() const { return refusal == Refusal::none; }
};

Decoded decode(std::span<const std::uint8_t> frame);

}  // namespace holdfast::test
