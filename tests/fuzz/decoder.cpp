#include "tests/fuzz/decoder.hpp"

#include <algorithm>

namespace holdfast::test {
namespace {

// What Holdfast does not follow although the RFCs allow it. Named limits, as in bpf/parser.h.
constexpr std::size_t kFrameMin = 34;  // Ethernet and the smallest IPv4 header
constexpr unsigned kTagsMax = 2;
constexpr unsigned kExtensionsMax = 6;
constexpr std::size_t kExtensionBytesMax = 256;
constexpr std::size_t kTransportOffsetMax = 192;
constexpr unsigned kOptionsMax = 4;
constexpr std::size_t kOptionOffsetMax = 248;

// A part of the frame that knows where it began, so that a header can say how far in it is.
class View {
 public:
  explicit View(std::span<const std::uint8_t> bytes, std::size_t offset = 0)
      : bytes_(bytes), offset_(offset) {}
  std::size_t size() const { return bytes_.size(); }
  std::size_t offset() const { return offset_; }
  unsigned u8(std::size_t at) const { return bytes_[at]; }
  unsigned u16(std::size_t at) const { return u8(at) << 8 | u8(at + 1); }
  std::uint32_t u32(std::size_t at) const {
    return static_cast<std::uint32_t>(u16(at)) << 16 | u16(at + 2);
  }
  View after(std::size_t count) const { return View(bytes_.subspan(count), offset_ + count); }
  View first(std::size_t count) const { return View(bytes_.first(count), offset_); }
  Address ip4(std::size_t at) const {
    Address out = {};
    out[10] = out[11] = 0xff;
    std::ranges::copy(bytes_.subspan(at, 4), out.begin() + 12);
    return out;
  }
  Address ip6(std::size_t at) const {
    Address out = {};
    std::ranges::copy(bytes_.subspan(at, 16), out.begin());
    return out;
  }
  std::array<std::uint8_t, 6> mac(std::size_t at) const {
    std::array<std::uint8_t, 6> out = {};
    std::ranges::copy(bytes_.subspan(at, 6), out.begin());
    return out;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t offset_;
};

bool is_mapped(const Address& a) {
  return std::all_of(a.begin(), a.begin() + 10, [](std::uint8_t b) { return b == 0; }) &&
         a[10] == 0xff && a[11] == 0xff;
}

enum class Family { v4, v6 };

// Every step either fills in more of `out` or returns why it goes no further.
class Decoder {
 public:
  Decoded out;

  Refusal ethernet(View frame) {
    if (frame.size() < kFrameMin) return Refusal::truncated;
    unsigned type = frame.u16(12);
    View rest = frame.after(14);
    while (type == 0x8100 || type == 0x88a8) {
      if (out.tags == kTagsMax) return Refusal::link;
      if (rest.size() < 4) return Refusal::truncated;
      out.tags++;
      type = rest.u16(2);
      rest = rest.after(4);
    }
    out.headers = rest.offset();
    switch (type) {
      case 0x0800: return ip4(rest);
      case 0x86dd: return ip6(rest);
      case 0x0806: return arp(rest);
      default: return Refusal::link;
    }
  }

 private:
  Refusal arp(View arp) {
    if (arp.size() < 28) return Refusal::truncated;
    const bool ethernet_ip4 =
        arp.u16(0) == 1 && arp.u16(2) == 0x0800 && arp.u8(4) == 6 && arp.u8(5) == 4;
    if (!ethernet_ip4) return Refusal::transport;
    const unsigned operation = arp.u16(6);
    if (operation != 1 && operation != 2) return Refusal::transport;
    out.meaning = Meaning::arp;
    out.mac = arp.mac(8);
    out.from = arp.ip4(14);
    out.to = arp.ip4(24);
    return Refusal::none;
  }

  void addresses(Address from, Address to) {
    out.addressed = true;
    out.outer_from = out.from = from;
    out.outer_to = out.to = to;
  }

  Refusal ip4(View ip) {
    if (ip.size() < 20) return Refusal::truncated;
    addresses(ip.ip4(12), ip.ip4(16));
    if (ip.u8(0) >> 4 != 4 || (ip.u8(0) & 15) != 5) return Refusal::network;
    const std::size_t total = ip.u16(2);
    if (total < 20) return Refusal::network;
    if (total > ip.size()) return Refusal::truncated;
    const View payload = ip.first(total).after(20);  // what follows the datagram is padding
    const unsigned flags = ip.u16(6) >> 13;
    const std::uint32_t begin = (ip.u16(6) & 0x1fff) * 8;
    if (flags & 4) return Refusal::network;
    out.protocol = static_cast<std::uint8_t>(ip.u8(9));
    const bool more = flags & 1;
    if (more || begin > 0) {
      const Refusal refusal = piece(payload, ip.u16(4), begin, more, 20);
      if (refusal != Refusal::none || begin > 0) return refusal;
    }
    return transport(payload, Family::v4, 64);
  }

  // A fragment carrying `payload`. `others`: bytes of the reassembled packet that count against its
  // length field besides the fragments' own.
  Refusal piece(View payload, std::uint32_t id, std::uint32_t begin, bool more,
                std::size_t others) {
    const auto end = begin + static_cast<std::uint32_t>(payload.size());
    if (payload.size() == 0) return Refusal::network;
    if (more && payload.size() % 8 != 0) return Refusal::network;
    if (end + others > 65535) return Refusal::network;
    out.fragment = {.first = begin == 0, .id = id, .begin = begin, .end = end};
    out.headers = payload.offset();
    if (begin > 0) out.meaning = Meaning::datagram;
    return Refusal::none;
  }

  Refusal ip6(View ip) {
    if (ip.size() < 40) return Refusal::truncated;
    addresses(ip.ip6(8), ip.ip6(24));
    out.v6 = true;
    if (ip.u8(0) >> 4 != 6) return Refusal::network;
    if (is_mapped(out.from) || is_mapped(out.to)) return Refusal::network;
    const std::size_t length = ip.u16(4);
    if (length > ip.size() - 40) return Refusal::truncated;
    View rest = ip.after(40).first(length);
    const std::size_t payload_begins = rest.offset();

    unsigned next = ip.u8(6);
    bool fragment_header_seen = false;
    for (unsigned extensions = 0;; extensions++) {
      out.protocol = static_cast<std::uint8_t>(next);
      if (next == 6 || next == 17 || next == 58) return transport(rest, Family::v6, ip.u8(7));
      if (extensions == kExtensionsMax) return Refusal::network;
      std::size_t size = 0;
      switch (next) {
        case 0:  // hop-by-hop options: immediately behind the IPv6 header only
          if (extensions != 0) return Refusal::network;
          [[fallthrough]];
        case 60:  // destination options: 8-octet units, not including the first
          if (rest.size() < 8) return Refusal::truncated;
          size = (rest.u8(1) + 1) * 8;
          break;
        case 51:  // AH: 4-octet units, minus 2; 12 octets and the ICV
          if (rest.size() < 8) return Refusal::truncated;
          size = (rest.u8(1) + 2) * 4;
          if (size < 12) return Refusal::network;
          break;
        case 44: {  // always 8 octets
          if (rest.size() < 8) return Refusal::truncated;
          if (fragment_header_seen) return Refusal::network;
          fragment_header_seen = true;
          const std::uint32_t begin = rest.u16(2) & 0xfff8;
          const bool more = rest.u16(2) & 1;
          const View payload = rest.after(8);
          next = rest.u8(0);
          if (begin > 0 || more) {
            const std::size_t unfragmentable = rest.offset() - payload_begins;
            const Refusal refusal = piece(payload, rest.u32(4), begin, more, unfragmentable);
            out.protocol = static_cast<std::uint8_t>(next);
            if (refusal != Refusal::none || begin > 0) return refusal;
          }
          rest = payload;
          continue;
        }
        case 43:   // routing
        case 135:  // mobility
        case 139:  // HIP
        case 140:  // Shim6
          return Refusal::network;
        default: return Refusal::transport;
      }
      if (size > rest.size()) return Refusal::truncated;
      if (size > kExtensionBytesMax) return Refusal::network;
      next = rest.u8(0);
      rest = rest.after(size);
      if (rest.offset() > kTransportOffsetMax) return Refusal::network;
    }
  }

  // Not all of the fixed header in the first fragment: RFC 1858, 7112.
  Refusal too_short() const { return out.fragment ? Refusal::fragment : Refusal::truncated; }

  Refusal transport(View l4, Family family, unsigned hop_limit) {
    switch (out.protocol) {
      case 6: {
        if (l4.size() < 20) return too_short();
        const std::size_t header = (l4.u8(12) >> 4) * 4;
        if (header < 20 || header > l4.size()) return Refusal::transport;
        const unsigned flags = l4.u8(13);
        const bool fin = flags & 1, syn = flags & 2, rst = flags & 4, ack = flags & 16;
        if (syn && (fin || rst)) return Refusal::transport;
        return datagram(l4.u16(0), l4.u16(2), syn && !ack, l4.offset() + header);
      }
      case 17: {
        if (l4.size() < 8) return too_short();
        const std::size_t length = l4.u16(4);
        if (length < 8) return Refusal::transport;
        if (length > l4.size() && !out.fragment) return Refusal::transport;
        return datagram(l4.u16(0), l4.u16(2), false, l4.offset() + 8);
      }
      case 1: return family == Family::v4 ? icmp(l4, family, hop_limit) : Refusal::transport;
      case 58: return family == Family::v6 ? icmp(l4, family, hop_limit) : Refusal::transport;
      default: return Refusal::transport;
    }
  }

  Refusal datagram(unsigned from_port, unsigned to_port, bool initiates, std::size_t headers) {
    out.meaning = Meaning::datagram;
    out.from_port = static_cast<std::uint16_t>(from_port);
    out.to_port = static_cast<std::uint16_t>(to_port);
    out.initiates = initiates;
    out.headers = headers;
    return Refusal::none;
  }

  Refusal icmp(View l4, Family family, unsigned hop_limit) {
    if (l4.size() < 8) return too_short();
    const unsigned type = l4.u8(0);
    const unsigned identifier = l4.u16(4);
    const std::size_t headers = l4.offset() + 8;
    const bool v6 = family == Family::v6;
    if (type == (v6 ? 128u : 8u)) return datagram(identifier, 0, true, headers);
    if (type == (v6 ? 129u : 0u)) return datagram(0, identifier, false, headers);
    if (out.fragment) return Refusal::transport;  // RFC 6980; and errors are short
    out.headers = headers;
    if (v6) {
      if (type >= 1 && type <= 4) return quoted6(l4.after(8));
      if (type >= 133 && type <= 137) return neighbour(l4, hop_limit);
      return Refusal::transport;
    }
    if (type == 3 || type == 11 || type == 12) return quoted4(l4.after(8));
    return type == 5 ? Refusal::icmp : Refusal::transport;
  }

  // RFC 792: the internet header and 64 bits of what followed it.
  Refusal quoted4(View ip) {
    if (ip.size() < 28) return Refusal::truncated;
    if (ip.u8(0) != 0x45 || (ip.u16(6) & 0x1fff) != 0) return Refusal::icmp;
    return quoted(ip.ip4(16), ip.ip4(12), ip.u8(9), ip.after(20), Family::v4);
  }

  // RFC 4443: as much of it as fits, so never less.
  Refusal quoted6(View ip) {
    if (ip.size() < 48) return Refusal::truncated;
    if (ip.u8(0) >> 4 != 6 || is_mapped(ip.ip6(24))) return Refusal::icmp;
    return quoted(ip.ip6(24), ip.ip6(8), ip.u8(6), ip.after(40), Family::v6);
  }

  Refusal quoted(Address sent_to, Address sent_from, unsigned protocol, View l4, Family family) {
    if (sent_from != out.outer_to)
      return Refusal::icmp;  // an error goes to whoever sent what it is about
    out.from = sent_to;
    out.to = sent_from;
    out.protocol = static_cast<std::uint8_t>(protocol);
    out.meaning = Meaning::icmp_error;
    if (protocol == 6 || protocol == 17) {
      out.from_port = static_cast<std::uint16_t>(l4.u16(2));
      out.to_port = static_cast<std::uint16_t>(l4.u16(0));
      return Refusal::none;
    }
    if (protocol != (family == Family::v6 ? 58u : 1u)) return Refusal::icmp;
    const auto identifier = static_cast<std::uint16_t>(l4.u16(4));
    if (l4.u8(0) == (family == Family::v6 ? 128u : 8u)) {
      out.to_port = identifier;
      return Refusal::none;
    }
    if (l4.u8(0) == (family == Family::v6 ? 129u : 0u)) {
      out.from_port = identifier;
      return Refusal::none;
    }
    return Refusal::icmp;
  }

  // RFC 4861 sections 4 and 6.1, 7.1: hop limit 255, code 0, options of a length that is not 0.
  Refusal neighbour(View message, unsigned hop_limit) {
    if (hop_limit != 255 || message.u8(1) != 0) return Refusal::transport;
    out.meaning = Meaning::neighbour;
    out.message = static_cast<std::uint8_t>(message.u8(0));
    View options = message.after(8);
    if (out.message == 134 || out.message == 137) return Refusal::none;  // refused or allowed whole
    if (out.message != 133) {
      if (options.size() < 16) return Refusal::truncated;
      out.target = options.ip6(0);
      options = options.after(16);
    }
    for (unsigned count = 0; options.size() > 0; count++) {
      if (count == kOptionsMax || options.offset() > kOptionOffsetMax) return Refusal::transport;
      if (options.size() < 8) return Refusal::truncated;
      const unsigned kind = options.u8(0);
      const std::size_t size = options.u8(1) * 8;
      if (size == 0 || size > options.size()) return Refusal::transport;
      if (kind == 1 || kind == 2) {  // a link-layer address: one, and it is an Ethernet address
        if (size != 8 || out.mac) return Refusal::transport;
        out.mac = options.mac(2);
      }
      options = options.after(size);
    }
    return Refusal::none;
  }
};

}  // namespace

Decoded decode(std::span<const std::uint8_t> frame) {
  Decoder decoder;
  decoder.out.refusal = decoder.ethernet(View(frame));
  return decoder.out;
}

}  // namespace holdfast::test
