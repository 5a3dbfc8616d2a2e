#include "policy/address.hpp"

#include <algorithm>
#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "policy/text.hpp"
#include "userspace/base/check.hpp"

namespace holdfast {
namespace {

constexpr std::array<uint8_t, 12> v4_mapped_head = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr size_t text_max = 64;  // longer than any address

std::unexpected<Error> bad(std::string_view code, std::string_view text, std::string_view what,
                           std::string next_step) {
  return fail(ErrorKind::invalid, code, fmt::format("{} is not {}", quote_text(text), what),
              std::move(next_step));
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// A decimal number without sign or leading zeros.
std::optional<unsigned> canonical_number(std::string_view text, unsigned max) {
  if (text.empty() || text.size() > 5 || (text.size() > 1 && text.front() == '0')) return {};
  unsigned value = 0;
  for (char c : text) {
    if (!is_digit(c)) return {};
    value = value * 10 + static_cast<unsigned>(c - '0');
  }
  if (value > max) return {};
  return value;
}

// Fills four bytes; the answer is why the text is not a dotted quad, empty when it is one.
std::string_view parse_quad(std::string_view text, uint8_t* out) {
  for (int part = 0; part < 4; ++part) {
    size_t dot = text.find('.');
    if ((dot == std::string_view::npos) != (part == 3)) {
      return "write four numbers joined by dots, such as 10.0.0.2";
    }
    std::string_view number = text.substr(0, dot);
    if (number.size() > 1 && number.front() == '0' && std::ranges::all_of(number, is_digit)) {
      return "leave out leading zeros: some programs read them as octal";
    }
    std::optional<unsigned> value = canonical_number(number, 255);
    if (!value) return "each of the four parts is a number from 0 to 255";
    out[part] = static_cast<uint8_t>(*value);
    text = dot == std::string_view::npos ? std::string_view{} : text.substr(dot + 1);
  }
  return {};
}

constexpr std::string_view v6_hint =
    "write groups of one to four hex digits joined by ':', at most one '::', such as fd00::2";

std::string_view parse_v6(std::string_view text, Address* out) {
  std::array<uint8_t, 16> bytes{};
  size_t filled = 0;
  std::optional<size_t> gap;  // where '::' stands
  if (text.starts_with("::")) {
    gap = 0;
    text.remove_prefix(2);
  } else if (text.starts_with(':')) {
    return v6_hint;
  }
  while (!text.empty()) {
    size_t end = text.find(':');
    std::string_view group = text.substr(0, end);
    if (end == std::string_view::npos && group.find('.') != std::string_view::npos) {
      if (filled > 12) return v6_hint;
      if (std::string_view why = parse_quad(group, bytes.data() + filled); !why.empty()) return why;
      filled += 4;
      break;
    }
    if (group.empty() || group.size() > 4 || filled > 14) return v6_hint;
    unsigned value = 0;
    for (char c : group) {
      if (hex_value(c) < 0) return v6_hint;
      value = value << 4 | static_cast<unsigned>(hex_value(c));
    }
    bytes[filled++] = static_cast<uint8_t>(value >> 8);
    bytes[filled++] = static_cast<uint8_t>(value & 0xff);
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
    if (text.empty()) return v6_hint;  // a single ':' at the end
    if (text.front() == ':') {
      if (gap) return v6_hint;
      gap = filled;
      text.remove_prefix(1);
    }
  }
  if (gap) {
    if (filled > 14) return v6_hint;  // '::' stands for at least one group
    std::rotate(bytes.begin() + static_cast<std::ptrdiff_t>(*gap),
                bytes.begin() + static_cast<std::ptrdiff_t>(filled), bytes.end());
  } else if (filled != 16) {
    return v6_hint;
  }
  out->bytes = bytes;
  return {};
}

// Clears what lies behind the first `bits` bits.
Address masked(Address address, uint8_t bits) {
  for (unsigned i = 0; i < address.bytes.size(); ++i) {
    unsigned keep = bits > i * 8 ? std::min(8U, bits - i * 8U) : 0U;
    address.bytes[i] = static_cast<uint8_t>(address.bytes[i] & (0xff00U >> keep));
  }
  return address;
}

}  // namespace

bool Address::is_v4() const {
  return std::equal(v4_mapped_head.begin(), v4_mapped_head.end(), bytes.begin());
}

bool Prefix::contains(const Address& other) const {
  return address.is_v4() == other.is_v4() && masked(other, bits) == address;
}

Result<Address> parse_address(std::string_view text) {
  constexpr std::string_view code = "bad_address";
  constexpr std::string_view what = "an IP address";
  Address out;
  if (text.find('%') != std::string_view::npos) {
    return bad(code, text, what, "leave out the zone after '%'");
  }
  if (text.size() > text_max) return bad(code, text, what, "write 10.0.0.2 or fd00::2");
  if (text.find(':') == std::string_view::npos) {
    std::ranges::copy(v4_mapped_head, out.bytes.begin());
    if (std::string_view why = parse_quad(text, out.bytes.data() + 12); !why.empty()) {
      return bad(code, text, what, std::string(why));
    }
    return out;
  }
  if (std::string_view why = parse_v6(text, &out); !why.empty()) {
    return bad(code, text, what, std::string(why));
  }
  if (out.is_v4()) {
    return fail(ErrorKind::invalid, code,
                fmt::format("{} is an IPv4 address dressed as IPv6", quote_text(text)),
                fmt::format("write {}", format_address(out)));
  }
  return out;
}

std::string format_address(const Address& address) {
  const auto& b = address.bytes;
  if (address.is_v4()) return fmt::format("{}.{}.{}.{}", b[12], b[13], b[14], b[15]);

  std::array<unsigned, 8> groups{};
  for (size_t i = 0; i < groups.size(); ++i) {
    groups[i] = static_cast<unsigned>(b[2 * i]) << 8 | b[2 * i + 1];
  }
  // RFC 5952 4.2: the longest run of zero groups, the first of equals, never a run of one.
  size_t best = 8;
  size_t best_length = 1;
  for (size_t i = 0; i < groups.size();) {
    size_t end = i;
    while (end < groups.size() && groups[end] == 0) ++end;
    if (end - i > best_length) {
      best = i;
      best_length = end - i;
    }
    i = std::max(end, i + 1);
  }
  std::string out;
  for (size_t i = 0; i < groups.size();) {
    if (i == best) {
      out += "::";
      i += best_length;
      continue;
    }
    if (!out.empty() && out.back() != ':') out += ':';
    out += fmt::format("{:x}", groups[i]);
    ++i;
  }
  return out;
}

Result<Prefix> parse_prefix(std::string_view text) {
  size_t slash = text.find('/');
  Result<Address> address = parse_address(text.substr(0, slash));
  if (!address) {
    // The whole text is what the reader wrote; the reason is the same.
    if (slash != std::string_view::npos) {
      return bad("bad_prefix", text, "an address prefix", std::move(address.error().next_step));
    }
    return pass_on(address);
  }
  Prefix prefix{*address, address_bits};
  if (slash == std::string_view::npos) return prefix;

  bool v4 = address->is_v4();
  unsigned bits_max = v4 ? address_bits - v4_offset_bits : address_bits;
  std::optional<unsigned> bits = canonical_number(text.substr(slash + 1), bits_max);
  if (!bits) {
    return bad("bad_prefix", text, "an address prefix",
               fmt::format("its length is a number from 0 to {}, without leading zeros", bits_max));
  }
  prefix.bits = static_cast<uint8_t>(v4 ? *bits + v4_offset_bits : *bits);
  prefix.address = masked(*address, prefix.bits);
  if (prefix.address != *address) {
    return fail(ErrorKind::invalid, "bad_prefix",
                fmt::format("{} has bits set behind its length", quote_text(text)),
                fmt::format("write {}, or {} if one address is meant", format_prefix(prefix),
                            format_address(*address)));
  }
  return prefix;
}

std::string format_prefix(const Prefix& prefix) {
  int offset = prefix.address.is_v4() ? v4_offset_bits : 0;
  return fmt::format("{}/{}", format_address(prefix.address), prefix.bits - offset);
}

Result<MacAddress> parse_mac(std::string_view text) {
  MacAddress mac;
  bool good = text.size() == 17;
  for (size_t i = 0; good && i < mac.bytes.size(); ++i) {
    int high = hex_value(text[3 * i]);
    int low = hex_value(text[3 * i + 1]);
    good = high >= 0 && low >= 0 && (i == 5 || text[3 * i + 2] == ':');
    if (good) mac.bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  if (!good) {
    return bad("bad_mac", text, "a MAC address",
               "write six pairs of hex digits joined by ':', such as 02:00:00:00:00:0a");
  }
  return mac;
}

std::string format_mac(const MacAddress& mac) {
  const auto& b = mac.bytes;
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4],
                     b[5]);
}

Result<AddressPort> parse_address_port(std::string_view text) {
  constexpr std::string_view code = "bad_address_port";
  constexpr std::string_view what = "an address with a port";
  size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) {
    return bad(code, text, what, "write 10.0.0.2:443 or [fd00::2]:443");
  }
  std::string_view host = text.substr(0, colon);
  bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (bracketed != (host.find(':') != std::string_view::npos)) {
    return bad(code, text, what, "write 10.0.0.2:443 or [fd00::2]:443, brackets for IPv6 only");
  }
  Result<Address> address = parse_address(host);
  if (!address) return bad(code, text, what, std::move(address.error().next_step));
  std::optional<unsigned> port = canonical_number(text.substr(colon + 1), 65535);
  if (!port || *port == 0) {
    return bad(code, text, what, "its port is a number from 1 to 65535, without leading zeros");
  }
  return AddressPort{*address, static_cast<uint16_t>(*port)};
}

std::string format_address_port(const AddressPort& value) {
  std::string address = format_address(value.address);
  return value.address.is_v4() ? fmt::format("{}:{}", address, value.port)
                               : fmt::format("[{}]:{}", address, value.port);
}

Address last_address(const Prefix& prefix) {
  CHECK(prefix.bits <= address_bits);
  Address out = prefix.address;
  for (unsigned i = 0; i < out.bytes.size(); ++i) {
    unsigned keep = prefix.bits > i * 8 ? std::min(8U, prefix.bits - i * 8U) : 0U;
    out.bytes[i] = static_cast<uint8_t>(out.bytes[i] | (0xffU >> keep));
  }
  return out;
}

Address next_address(const Address& address) {
  Address out = address;
  for (size_t i = out.bytes.size(); i-- > 0;) {
    if (++out.bytes[i] != 0) break;
  }
  return out;
}

bool is_link_local_v6(const Address& address) {
  return address.bytes[0] == 0xfe && (address.bytes[1] & 0xc0) == 0x80;
}

}  // namespace holdfast
