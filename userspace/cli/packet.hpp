// The packet that `explain` is asked about, from words to the daemon's arguments. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "policy/types.hpp"
#include "userspace/base/result.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::cli {

struct PacketWords {
  std::string protocol = {};     // tcp, udp, icmp_echo (or icmp, ping)
  std::string source = {};       // ADDRESS:PORT, [V6]:PORT; ADDRESS alone for icmp_echo
  std::string destination = {};  // likewise
  std::string from = "uplink";   // or the interface it enters by
  bool syn = false;              // tcp: opens a connection (the default)
  bool ack = false;              // tcp: of an established one; icmp_echo: the reply
  std::string source_mac = {};   // matters from a tenant port; the port's own when empty
};

struct Packet {
  Protocol protocol = Protocol::tcp;
  Address source;
  Address destination;
  uint16_t source_port = 0;
  uint16_t destination_port = 0;
  std::string from;
  bool established = false;
  std::optional<MacAddress> source_mac;
};

// Errors: code `usage`, naming the word and how to write it.
Result<Packet> parse_packet(const PacketWords& words);

// The arguments of the verb `explain`.
cbor::Value explain_arguments(const Packet& packet);

// "tcp 198.51.100.7:40000 -> 10.1.0.2:443, from uplink"
std::string describe(const Packet& packet);

}  // namespace holdfast::cli
