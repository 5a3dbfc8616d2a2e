#include "userspace/cli/packet.hpp"

#include <fmt/format.h>

#include "policy/address.hpp"
#include "policy/limits.hpp"
#include "userspace/cli/session.hpp"

namespace holdfast::cli {
namespace {

struct Side {
  Address address;
  uint16_t port = 0;
};

Result<Side> parse_side(std::string_view which, const std::string& text, Protocol protocol) {
  // `a -> b` without quotes: the shell takes the '>' and leaves the '-'.
  if (text == "-") {
    return usage("the shell took the \"->\" for itself",
                 "leave it out: holdfast explain tcp SOURCE DESTINATION");
  }
  const Result<AddressPort> both = parse_address_port(text);
  if (protocol == Protocol::icmp_echo) {
    if (both) {
      return usage(fmt::format("{} {}: icmp_echo has no ports", which, text),
                   "give the address alone: " + format_address(both->address));
    }
    const Result<Address> alone = parse_address(text);
    if (!alone)
      return usage(fmt::format("{}: {}", which, alone.error().message), alone.error().next_step);
    return Side{*alone, 0};
  }
  if (both) return Side{both->address, both->port};
  const Result<Address> alone = parse_address(text);
  if (alone) {
    const Side example{*alone, static_cast<uint16_t>(which == "source" ? 40000 : 443)};
    return usage(
        fmt::format("{} {}: {} needs a port", which, text, name_of(protocol)),
        "write it behind the address: " + format_address_port({example.address, example.port}));
  }
  return usage(fmt::format("{}: {}", which, both.error().message), both.error().next_step);
}

std::string format_side(const Packet& packet, const Address& address, uint16_t port) {
  if (packet.protocol == Protocol::icmp_echo) return format_address(address);
  return format_address_port({address, port});
}

}  // namespace

Result<Packet> parse_packet(const PacketWords& words) {
  Packet packet;
  if (words.protocol == "tcp") {
    packet.protocol = Protocol::tcp;
  } else if (words.protocol == "udp") {
    packet.protocol = Protocol::udp;
  } else if (words.protocol == "icmp_echo" || words.protocol == "icmp" ||
             words.protocol == "ping") {
    packet.protocol = Protocol::icmp_echo;
  } else {
    return usage(fmt::format("\"{}\" is not a protocol", words.protocol),
                 "write tcp, udp or icmp_echo; see holdfast explain --help");
  }
  const Result<Side> source = parse_side("source", words.source, packet.protocol);
  if (!source) return std::unexpected(source.error());
  const Result<Side> destination = parse_side("destination", words.destination, packet.protocol);
  if (!destination) return std::unexpected(destination.error());
  if (source->address.is_v4() != destination->address.is_v4()) {
    return usage(fmt::format("{} and {} are of two families", words.source, words.destination),
                 "give two IPv4 or two IPv6 addresses");
  }
  packet.source = source->address;
  packet.source_port = source->port;
  packet.destination = destination->address;
  packet.destination_port = destination->port;

  if (words.from.empty() || words.from.size() > interface_name_max) {
    return usage(fmt::format("--from \"{}\" is not an interface", words.from),
                 "write --from uplink, or the interface of a tenant port");
  }
  packet.from = words.from;
  if (words.syn && words.ack)
    return usage("--syn and --ack are two different packets", "give one of them");
  if (words.syn && packet.protocol != Protocol::tcp)
    return usage("--syn is for tcp alone", "leave it out");
  if (words.ack && packet.protocol == Protocol::udp)
    return usage("--ack: udp has neither", "leave it out");
  packet.established = words.ack;
  if (!words.source_mac.empty()) {
    const Result<MacAddress> mac = parse_mac(words.source_mac);
    if (!mac) return usage("--source-mac: " + mac.error().message, mac.error().next_step);
    packet.source_mac = *mac;
  }
  return packet;
}

cbor::Value explain_arguments(const Packet& packet) {
  cbor::Value args = cbor::Value::map({{"from", packet.from},
                                       {"source", format_address(packet.source)},
                                       {"protocol", name_of(packet.protocol)},
                                       {"destination", format_address(packet.destination)}});
  if (packet.protocol != Protocol::icmp_echo) {
    args.set("source_port", packet.source_port);
    args.set("destination_port", packet.destination_port);
  }
  if (packet.protocol != Protocol::udp) args.set("flags", packet.established ? "A" : "S");
  if (packet.source_mac) args.set("source_mac", format_mac(*packet.source_mac));
  return args;
}

std::string describe(const Packet& packet) {
  std::string_view kind;
  if (packet.established)
    kind = packet.protocol == Protocol::tcp ? ", of an established connection" : ", the reply";
  return fmt::format("{} {} -> {}, from {}{}", name_of(packet.protocol),
                     format_side(packet, packet.source, packet.source_port),
                     format_side(packet, packet.destination, packet.destination_port), packet.from,
                     kind);
}

}  // namespace holdfast::cli
