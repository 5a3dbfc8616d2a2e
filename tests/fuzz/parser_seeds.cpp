// Writes the seed corpus of parser_fuzz: parser_seeds DIRECTORY. The same files every time; one a
// shape of packet, so that the fuzzer starts behind every branch.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/packet.hpp"

namespace holdfast::test {
namespace {

std::vector<std::pair<std::string, Packet>> seeds() {
  const Tcp syn{.flags = "S"};
  const Udp udp{};
  const std::string mac(kTenantMac);
  const Ip4 back{.from = "192.0.2.9", .to = "10.0.0.1"};
  const Ip6 back6{.from = "2001:db8::9", .to = "fd00::1"};
  const Packet large = Ip4{} / udp / zeros(64);
  const Packet large6 = Ip6{} / udp / zeros(64);
  return {
      {"v4_syn", Ip4{} / syn},
      {"v4_tcp_options", Ip4{} / Tcp{.options = {2, 4, 5, 180, 1, 1, 4, 2}} / zeros(8)},
      {"v4_syn_fin", Ip4{} / Tcp{.flags = "SF"}},
      {"v4_udp", Ip4{} / udp / zeros(4)},
      {"v4_echo", Ip4{} / Echo{}},
      {"v4_echo_reply", Ip4{} / Echo{.reply = true}},
      {"v4_options", Ip4{.options = {148, 4, 0, 0}} / syn},
      {"v4_sctp", Ip4{.protocol = 132} / zeros(20)},
      {"v4_first", fragment(large, 9, 0, 40)},
      {"v4_later", fragment(large, 9, 40, 72)},
      {"v4_tiny_first", Ip4{.more = true, .protocol = 6} / zeros(8)},
      {"v4_unreachable_udp", back / icmp_error(3, 3, Ip4{} / udp)},
      {"v4_unreachable_echo", back / icmp_error(3, 1, Ip4{} / Echo{})},
      {"v4_too_big_tcp", back / icmp_error(3, 4, Ip4{} / syn, 28)},
      {"v4_exceeded", back / icmp_error(11, 0, Ip4{} / syn)},
      {"v4_redirect", back / icmp_error(5, 1, Ip4{} / syn)},
      {"v4_padded", (Ip4{} / syn).cut(60)},
      {"v6_syn", Ip6{} / syn},
      {"v6_udp", Ip6{} / udp / zeros(4)},
      {"v6_echo", Ip6{} / Echo{}},
      {"v6_echo_reply", Ip6{} / Echo{.reply = true}},
      {"v6_hop_by_hop", Ip6{} / hop_by_hop() / syn},
      {"v6_destination_options", Ip6{} / destination_options(2) / syn},
      {"v6_ah", Ip6{} / Ah{} / syn},
      {"v6_routing", Ip6{} / routing() / syn},
      {"v6_atomic", Ip6{} / Fragment6{.reserved = 7} / syn},
      {"v6_six_extensions", Ip6{} / hop_by_hop() / destination_options() / Fragment6{} / Ah{} /
                                destination_options() / destination_options() / syn},
      {"v6_first", fragment(large6, 9, 0, 40)},
      {"v6_later", fragment(large6, 9, 40, 72)},
      {"v6_first_behind_options",
       Ip6{} / destination_options() / Fragment6{.more = true} / udp / zeros(8)},
      {"v6_esp", Ip6{.next = 50} / zeros(40)},
      {"v6_mapped", Ip6{.to = "::ffff:10.0.0.1"} / syn},
      {"v6_unreachable", back6 / icmp_error(1, 4, Ip6{} / udp)},
      {"v6_too_big", back6 / icmp_error(2, 0, Ip6{} / syn, 48)},
      {"v6_unreachable_echo", back6 / icmp_error(1, 0, Ip6{} / Echo{})},
      {"v6_listener_report", Ip6{.hop_limit = 1} / hop_by_hop() / Icmp{.type = 143}},
      {"nd_solicitation", nd("fd00::1", "ff02::1:ff00:fe", {.source_mac = mac})},
      {"nd_advertisement",
       nd("fd00::1", "fd00::fe", {.type = 136, .target = "fd00::1", .target_mac = mac})},
      {"nd_nonce",
       nd("fd00::1", "fd00::fe", {.source_mac = mac, .options = {14, 1, 1, 2, 3, 4, 5, 6}})},
      {"nd_router_solicitation", nd("fd00::1", "ff02::2", {.type = 133, .source_mac = mac})},
      {"nd_router_advertisement", nd("fd00::1", "ff02::1", {.type = 134, .source_mac = mac})},
      {"nd_redirect", nd("fd00::1", "fd00::fe", {.type = 137, .target = "fd00::1"})},
      {"arp_request", Arp{}},
      {"arp_reply", Arp{.operation = 2}},
      {"arp_probe", Arp{.sender = "0.0.0.0", .target = "10.0.0.1"}},
      {"vlan", Ether{} / Vlan{.id = 5} / Ip4{} / syn},
      {"vlan_zero", Ether{} / Vlan{} / Ip6{} / syn},
      {"qinq", Ether{} / Vlan{.id = 5, .tpid = 0x88a8} / Vlan{.id = 6} / Ip4{} / syn},
      {"three_tags", Ether{} / Vlan{} / Vlan{} / Vlan{} / Ip4{} / syn},
      {"unknown_ethertype", Ether{.type = 0x8847} / zeros(46)},
      {"unknown_ethertype_short", Ether{.type = 0x8847} / zeros(19)},
      {"three_tags_short", Ether{} / Vlan{} / Vlan{} / Vlan{} / zeros(7)},
      {"ethernet_only", Packet(Ip4{}).cut(14)},
  };
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: parser_seeds DIRECTORY\n");
    return 2;
  }
  const std::filesystem::path directory = argv[1];
  std::filesystem::create_directories(directory);
  for (const auto& [name, packet] : holdfast::test::seeds()) {
    const holdfast::test::Bytes frame = packet.bytes();
    std::ofstream file(directory / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(frame.data()),
               static_cast<std::streamsize>(frame.size()));
    if (!file.flush()) {
      std::fprintf(stderr, "parser_seeds: cannot write %s\n", (directory / name).c_str());
      return 1;
    }
  }
  return 0;
}
