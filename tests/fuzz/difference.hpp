// Holds what the data plane's parser made of a frame against what the independent decoder made of
// it.
#pragma once

#include <cstring>
#include <string>

#include <fmt/format.h>

#include "tests/fuzz/decoder.hpp"
#include "tests/support/native_parser.hpp"

namespace holdfast::test {

inline Address address_of(const __u32* words) {
  Address out;
  std::memcpy(out.data(), words, out.size());
  return out;
}

inline Meaning meaning_of(const abi::packet& p) {
  switch (p.kind) {
    case abi::HF_KIND_IP: return Meaning::datagram;
    case abi::HF_KIND_ICMP_ERROR: return Meaning::icmp_error;
    case abi::HF_KIND_ARP: return Meaning::arp;
    case abi::HF_KIND_NEIGHBOUR: return Meaning::neighbour;
    default: return Meaning::nothing;
  }
}

// The first field they disagree on, or "" where they agree.
inline std::string difference(const Parsed& parsed, const Decoded& decoded) {
  const abi::packet& p = parsed.packet;
  const auto differ = [](std::string_view what, auto ours, auto theirs) {
    return fmt::format("{}: parser {}, decoder {}", what, ours, theirs);
  };
  const bool accepted = static_cast<int>(parsed.reason) == abi::HF_PARSED;
  if (accepted != decoded.accepted())
    return differ("refusal", static_cast<int>(parsed.reason), static_cast<int>(decoded.refusal));

  const bool addressed = p.kind != abi::HF_KIND_NONE && p.kind != abi::HF_KIND_ARP;
  if (addressed != decoded.addressed)
    return differ("addresses found", addressed, decoded.addressed);
  if (addressed && (address_of(p.outer_source) != decoded.outer_from ||
                    address_of(p.outer_destination) != decoded.outer_to))
    return "outer addresses";
  if (!accepted) {
    const bool link =
        parsed.reason == abi::HF_REASON_vlan || parsed.reason == abi::HF_REASON_ethertype;
    if (link != (decoded.refusal == Refusal::link))
      return differ("refused at the link layer", link, !link);
    return "";
  }

  if (meaning_of(p) != decoded.meaning)
    return differ("kind", static_cast<int>(p.kind), static_cast<int>(decoded.meaning));
  if (p.vlan_tags != decoded.tags) return differ("tags", p.vlan_tags, decoded.tags);
  if (p.header_length != decoded.headers)
    return differ("header length", p.header_length, decoded.headers);
  if (address_of(p.source) != decoded.from) return "source";
  if (address_of(p.destination) != decoded.to) return "destination";
  if (__builtin_bswap16(p.source_port) != decoded.from_port)
    return differ("source port", __builtin_bswap16(p.source_port), decoded.from_port);
  if (__builtin_bswap16(p.destination_port) != decoded.to_port)
    return differ("destination port", __builtin_bswap16(p.destination_port), decoded.to_port);
  if (p.protocol != decoded.protocol) return differ("protocol", p.protocol, decoded.protocol);
  if ((p.initiates != 0) != decoded.initiates)
    return differ("initiates", p.initiates, decoded.initiates);

  if ((p.fragment != abi::HF_FRAGMENT_NONE) != decoded.fragment.has_value())
    return "fragment or not";
  if (decoded.fragment) {
    if ((p.fragment == abi::HF_FRAGMENT_FIRST) != decoded.fragment->first) return "first fragment";
    // The parser keeps IPv6 identifications as they stand: they are only compared.
    const std::uint32_t id = decoded.v6 ? __builtin_bswap32(p.fragment_id) : p.fragment_id;
    if (id != decoded.fragment->id) return differ("fragment id", id, decoded.fragment->id);
    if (p.fragment_offset != decoded.fragment->begin || p.fragment_end != decoded.fragment->end)
      return "fragment extent";
  }
  if (decoded.meaning == Meaning::neighbour && p.icmp_type != decoded.message)
    return differ("message", p.icmp_type, decoded.message);
  if ((p.neighbour_has_mac != 0) != decoded.mac.has_value()) return "link-layer address or not";
  if (decoded.mac && std::memcmp(p.neighbour_mac, decoded.mac->data(), 6) != 0)
    return "link-layer address";
  if (decoded.target && address_of(p.neighbour_target) != *decoded.target) return "target";
  return "";
}

}  // namespace holdfast::test
