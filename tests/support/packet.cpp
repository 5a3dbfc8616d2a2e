#include "tests/support/packet.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include <arpa/inet.h>

#include "userspace/base/check.hpp"

namespace holdfast::test {
namespace {

void put8(Bytes& out, unsigned value) {
  out.push_back(static_cast<std::uint8_t>(value & 0xff));
}
void put16(Bytes& out, unsigned value) {
  put8(out, value >> 8);
  put8(out, value);
}
void put32(Bytes& out, std::uint32_t value) {
  put16(out, value >> 16);
  put16(out, value & 0xffff);
}
void put(Bytes& out, const Bytes& bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}
void set16(Bytes& out, std::size_t offset, unsigned value) {
  out[offset] = static_cast<std::uint8_t>(value >> 8);
  out[offset + 1] = static_cast<std::uint8_t>(value & 0xff);
}

// RFC 1071, over `bytes` after `sum` bits already added.
std::uint16_t checksum(const Bytes& bytes, std::uint32_t sum = 0) {
  for (std::size_t i = 0; i < bytes.size(); i++)
    sum += i % 2 == 0 ? static_cast<std::uint32_t>(bytes[i]) << 8 : bytes[i];
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum & 0xffff);
}

// The IP layer that a transport layer is rendered under.
struct Around {
  const Ip4* v4 = nullptr;
  const Ip6* v6 = nullptr;
};

std::uint16_t transport_checksum(const Around& around, unsigned protocol, const Bytes& segment) {
  Bytes pseudo;
  if (around.v6) {
    put(pseudo, ip6_bytes(around.v6->from));
    put(pseudo, ip6_bytes(around.v6->to));
    put32(pseudo, static_cast<std::uint32_t>(segment.size()));
    put32(pseudo, protocol);
  } else if (around.v4) {
    put(pseudo, ip4_bytes(around.v4->from));
    put(pseudo, ip4_bytes(around.v4->to));
    put16(pseudo, protocol);
    put16(pseudo, static_cast<unsigned>(segment.size()));
  }
  put(pseudo, segment);
  return checksum(pseudo);
}

// Renders one layer in front of `inner`, which is what follows it; `number` is what the layer
// before must say comes next: an EtherType or an IP protocol, left as it is where the layer has
// neither.
struct Renderer {
  Around around;
  Bytes inner;
  unsigned number = 0;

  void front(Bytes header) {
    put(header, inner);
    inner = std::move(header);
  }

  void operator()(const Ether& l) {
    Bytes h;
    put(h, mac_bytes(l.to));
    put(h, mac_bytes(l.from));
    put16(h, l.type.value_or(static_cast<std::uint16_t>(number)));
    front(h);
  }
  void operator()(const Vlan& l) {
    Bytes h;
    put16(h, l.id);
    put16(h, l.type.value_or(static_cast<std::uint16_t>(number)));
    front(h);
    number = l.tpid;
  }
  void operator()(const Ip4& l) {
    Bytes h;
    const std::size_t length = 20 + l.options.size();
    put8(h, static_cast<unsigned>(l.version.value_or(4) << 4) |
                l.header_words.value_or(static_cast<std::uint8_t>(length / 4)));
    put8(h, 0);
    put16(h, l.total_length.value_or(static_cast<std::uint16_t>(length + inner.size())));
    put16(h, l.id);
    put16(h, (l.reserved_flag ? 0x8000u : 0u) | (l.dont_fragment ? 0x4000u : 0u) |
                 (l.more ? 0x2000u : 0u) | l.offset / 8);
    put8(h, l.ttl);
    put8(h, l.protocol.value_or(static_cast<std::uint8_t>(number)));
    put16(h, 0);
    put(h, ip4_bytes(l.from));
    put(h, ip4_bytes(l.to));
    put(h, l.options);
    set16(h, 10, checksum(h));
    front(h);
    number = 0x0800;
  }
  void operator()(const Ip6& l) {
    Bytes h;
    put32(h, static_cast<std::uint32_t>(l.version.value_or(6)) << 28);
    put16(h, l.payload_length.value_or(static_cast<std::uint16_t>(inner.size())));
    put8(h, l.next.value_or(static_cast<std::uint8_t>(number)));
    put8(h, l.hop_limit);
    put(h, ip6_bytes(l.from));
    put(h, ip6_bytes(l.to));
    front(h);
    number = 0x86dd;
  }
  void operator()(const Extension& l) {
    Bytes h;
    put8(h, l.next.value_or(static_cast<std::uint8_t>(number)));
    put8(h, l.length.value_or(l.words));
    const std::size_t body = 8 * (static_cast<std::size_t>(l.words) + 1) - 2;
    if (l.number == 43) {  // routing type 0, segments left 1
      h.resize(2 + body, 0);
      h[3] = 1;
    } else {  // one PadN option fills it
      for (std::size_t left = body; left > 0;) {
        const std::size_t pad = std::min<std::size_t>(left, 257);
        if (pad == 1) {
          put8(h, 0);
        } else {
          put8(h, 1);
          put8(h, static_cast<unsigned>(pad - 2));
          h.resize(h.size() + pad - 2, 0);
        }
        left -= pad;
      }
    }
    front(h);
    number = l.number;
  }
  void operator()(const Ah& l) {
    Bytes h;
    put8(h, l.next.value_or(static_cast<std::uint8_t>(number)));
    put8(h, l.length.value_or(static_cast<std::uint8_t>(l.icv_words + 1)));
    h.resize(12 + 4 * static_cast<std::size_t>(l.icv_words), 0);
    front(h);
    number = 51;
  }
  void operator()(const Fragment6& l) {
    Bytes h;
    put8(h, l.next.value_or(static_cast<std::uint8_t>(number)));
    put8(h, l.reserved);
    put16(h, (l.offset & 0xfff8) | (l.more ? 1 : 0));
    put32(h, l.id);
    front(h);
    number = 44;
  }
  void operator()(const Tcp& l) {
    Bytes h;
    put16(h, l.sport);
    put16(h, l.dport);
    put32(h, 1000);
    put32(h, l.flags.find('A') == std::string::npos ? 0 : 2000);  // the acknowledgement
    put8(h, static_cast<unsigned>(
                l.header_words.value_or(static_cast<std::uint8_t>(5 + l.options.size() / 4)))
                << 4);
    unsigned flags = 0;
    for (const char c : l.flags) {
      const std::size_t bit = std::string_view("FSRPAU").find(c);
      CHECK(bit != std::string_view::npos);
      flags |= 1u << bit;
    }
    put8(h, flags);
    put16(h, 65535);
    put16(h, 0);
    put16(h, 0);
    put(h, l.options);
    front(h);
    set16(inner, 16, transport_checksum(around, 6, inner));
    number = 6;
  }
  void operator()(const Udp& l) {
    Bytes h;
    put16(h, l.sport);
    put16(h, l.dport);
    put16(h, l.length.value_or(static_cast<std::uint16_t>(8 + inner.size())));
    put16(h, 0);
    front(h);
    set16(inner, 6, transport_checksum(around, 17, inner));
    number = 17;
  }
  void operator()(const Echo& l) {
    const std::uint8_t request = around.v6 ? 128 : 8;
    const std::uint8_t reply = around.v6 ? 129 : 0;
    (*this)(Icmp{.type = l.reply ? reply : request,
                 .rest = static_cast<std::uint32_t>(l.id) << 16 | l.sequence});
  }
  void operator()(const Icmp& l) {
    Bytes h;
    put8(h, l.type);
    put8(h, l.code);
    put16(h, 0);
    put32(h, l.rest);
    front(h);
    set16(inner, 2, around.v6 ? transport_checksum(around, 58, inner) : checksum(inner));
    number = around.v6 ? 58 : 1;
  }
  void operator()(const Raw& l) { front(l.bytes); }
  void operator()(const Arp& l) {
    Bytes h;
    put16(h, l.hardware);
    put16(h, l.protocol);
    put8(h, l.hardware_length);
    put8(h, l.protocol_length);
    put16(h, l.operation);
    put(h, mac_bytes(l.sender_mac));
    put(h, ip4_bytes(l.sender));
    put(h, mac_bytes(l.target_mac));
    put(h, ip4_bytes(l.target));
    front(h);
    number = 0x0806;
  }
  void operator()(const Nd& l) {
    Bytes body;
    if (l.type == 134) {  // 8 bytes here, 4 in Icmp::rest: lifetimes
      body.resize(8, 0);
    } else if (l.type != 133) {
      put(body, ip6_bytes(l.target));
      if (l.type == 137) put(body, ip6_bytes("2001:db8::9"));  // the destination that is redirected
    }
    const auto link_layer = [&body](unsigned kind, const std::string& mac) {
      put8(body, kind);
      put8(body, 1);
      put(body, mac_bytes(mac));
    };
    if (l.source_mac) link_layer(1, *l.source_mac);
    if (l.target_mac) link_layer(2, *l.target_mac);
    put(body, l.options);
    front(body);
    (*this)(Icmp{.type = l.type, .code = l.code, .rest = l.type == 136 ? 0x60000000u : 0u});
  }
};

// Renders layers [first, end) of `layers`.
Renderer render(const std::vector<Layer>& layers, std::size_t first) {
  Renderer renderer;
  for (std::size_t i = layers.size(); i-- > first;) {
    renderer.around = {};
    for (std::size_t outer = i; outer-- > 0;) {
      renderer.around.v4 = std::get_if<Ip4>(&layers[outer]);
      renderer.around.v6 = std::get_if<Ip6>(&layers[outer]);
      if (renderer.around.v4 || renderer.around.v6) break;
    }
    std::visit(renderer, layers[i]);
  }
  return renderer;
}

bool is_ip(const Layer& layer) {
  return std::holds_alternative<Ip4>(layer) || std::holds_alternative<Ip6>(layer);
}

std::size_t find_ip(const std::vector<Layer>& layers) {
  const auto found = std::ranges::find_if(layers, is_ip);
  CHECK(found != layers.end());
  return static_cast<std::size_t>(found - layers.begin());
}

Bytes parse_address(int family, std::string_view text, std::size_t size) {
  Bytes out(size);
  const std::string terminated(text);
  if (::inet_pton(family, terminated.c_str(), out.data()) != 1) {
    std::fprintf(stderr, "not an address: %s\n", terminated.c_str());
    std::abort();
  }
  return out;
}

}  // namespace

Bytes mac_bytes(std::string_view text) {
  std::array<unsigned, 6> part{};
  const std::string terminated(text);
  CHECK(std::sscanf(terminated.c_str(), "%x:%x:%x:%x:%x:%x", &part[0], &part[1], &part[2], &part[3],
                    &part[4], &part[5]) == 6);
  Bytes out;
  for (const unsigned byte : part) put8(out, byte);
  return out;
}

Bytes ip4_bytes(std::string_view text) {
  return parse_address(AF_INET, text, 4);
}

Bytes ip6_bytes(std::string_view text) {
  return parse_address(AF_INET6, text, 16);
}

Bytes mapped_bytes(std::string_view text) {
  if (text.find(':') != std::string_view::npos) return ip6_bytes(text);
  Bytes out(10, 0);
  put16(out, 0xffff);
  put(out, ip4_bytes(text));
  return out;
}

Bytes Packet::bytes() const {
  CHECK(!layers_.empty());
  Renderer renderer = render(layers_, 0);
  if (!std::holds_alternative<Ether>(layers_.front())) renderer(Ether{});
  Bytes out = std::move(renderer.inner);
  for (const Damage& d : damage_) {
    if (d.resize) {
      out.resize(d.offset, 0);
      continue;
    }
    CHECK(d.offset + d.bytes.size() <= out.size());
    std::ranges::copy(d.bytes, out.begin() + static_cast<std::ptrdiff_t>(d.offset));
  }
  return out;
}

Bytes Packet::ip_bytes() const {
  return render(layers_, find_ip(layers_)).inner;
}

Packet Packet::cut(std::size_t length) const {
  Packet out = *this;
  out.damage_.push_back({.offset = length, .bytes = {}, .resize = true});
  return out;
}

Packet Packet::with(std::size_t offset, Bytes bytes) const {
  Packet out = *this;
  out.damage_.push_back({.offset = offset, .bytes = std::move(bytes), .resize = false});
  return out;
}

Packet operator/(Packet left, const Packet& right) {
  // Damage is to a finished frame; what is stacked is not one.
  CHECK(left.damage_.empty() && right.damage_.empty());
  left.layers_.insert(left.layers_.end(), right.layers_.begin(), right.layers_.end());
  return left;
}

Packet icmp_error(std::uint8_t type, std::uint8_t code, const Packet& quoted,
                  std::size_t bytes_max) {
  Bytes quote = quoted.ip_bytes();
  quote.resize(std::min(quote.size(), bytes_max));
  return Icmp{.type = type, .code = code} / Packet(Raw{std::move(quote)});
}

Packet nd(std::string from, std::string to, Nd message) {
  return Ip6{.from = std::move(from), .to = std::move(to), .hop_limit = 255} /
         Packet(std::move(message));
}

Packet fragment(const Packet& whole, unsigned id, std::size_t begin, std::size_t end) {
  const std::size_t at = find_ip(whole.layers());
  const Renderer payload = render(whole.layers(), at + 1);
  const bool more = end < payload.inner.size();
  end = std::min(end, payload.inner.size());
  CHECK(begin <= end && begin % 8 == 0);
  const Raw piece{Bytes(payload.inner.begin() + static_cast<std::ptrdiff_t>(begin),
                        payload.inner.begin() + static_cast<std::ptrdiff_t>(end))};
  Packet out;
  for (std::size_t i = 0; i < at; i++)
    out = out / std::visit([](const auto& l) { return Packet(l); }, whole.layers()[i]);
  if (const Ip4* v4 = std::get_if<Ip4>(&whole.layers()[at])) {
    Ip4 header = *v4;
    header.id = static_cast<std::uint16_t>(id);
    header.more = more;
    header.offset = static_cast<unsigned>(begin);
    if (!header.protocol) header.protocol = static_cast<std::uint8_t>(payload.number);
    return out / header / piece;
  }
  return out / std::get<Ip6>(whole.layers()[at]) /
         Fragment6{.offset = static_cast<unsigned>(begin),
                   .more = more,
                   .id = id,
                   .next = static_cast<std::uint8_t>(payload.number)} /
         piece;
}

}  // namespace holdfast::test
