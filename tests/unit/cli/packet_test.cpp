// The words of `explain` and the packet they mean.
#include "userspace/cli/packet.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace holdfast::cli {
namespace {

using ::testing::HasSubstr;

struct Good {
  PacketWords words;
  const char* arguments;
  const char* description;
};

TEST(Packet, Good) {
  for (
      const Good& each : {
          Good{{.protocol = "tcp", .source = "198.51.100.7:40000", .destination = "10.1.0.2:443"},
               R"({"from":"uplink","flags":"S","source":"198.51.100.7","protocol":"tcp",)"
               R"("destination":"10.1.0.2","source_port":40000,"destination_port":443})",
               "tcp 198.51.100.7:40000 -> 10.1.0.2:443, from uplink"},
          {{.protocol = "tcp",
            .source = "10.1.0.2:443",
            .destination = "198.51.100.7:40000",
            .from = "veth0",
            .ack = true,
            .source_mac = "02:00:00:00:00:0A"},
           R"({"from":"veth0","flags":"A","source":"10.1.0.2","protocol":"tcp","source_mac":"02:00:00:00:00:0a",)"
           R"("destination":"198.51.100.7","source_port":443,"destination_port":40000})",
           "tcp 10.1.0.2:443 -> 198.51.100.7:40000, from veth0, of an established connection"},
          {{.protocol = "udp", .source = "[2001:db8::7]:5353", .destination = "[fd00:1::2]:53"},
           R"({"from":"uplink","source":"2001:db8::7","protocol":"udp","destination":"fd00:1::2",)"
           R"("source_port":5353,"destination_port":53})",
           "udp [2001:db8::7]:5353 -> [fd00:1::2]:53, from uplink"},
          {{.protocol = "ping", .source = "198.51.100.7", .destination = "10.1.0.2"},
           R"({"from":"uplink","flags":"S","source":"198.51.100.7","protocol":"icmp_echo","destination":"10.1.0.2"})",
           "icmp_echo 198.51.100.7 -> 10.1.0.2, from uplink"},
          {{.protocol = "icmp_echo", .source = "fd00::1", .destination = "fd00::2", .ack = true},
           R"({"from":"uplink","flags":"A","source":"fd00::1","protocol":"icmp_echo","destination":"fd00::2"})",
           "icmp_echo fd00::1 -> fd00::2, from uplink, the reply"},
      }) {
    const Result<Packet> packet = parse_packet(each.words);
    ASSERT_TRUE(packet) << each.description << ": " << packet.error().text();
    EXPECT_EQ(cbor::to_json(explain_arguments(*packet)), each.arguments);
    EXPECT_EQ(describe(*packet), each.description);
  }
}

struct Bad {
  PacketWords words;
  const char* says;
};

TEST(Packet, Bad) {
  for (const Bad& each : {
           Bad{{.protocol = "sctp", .source = "10.0.0.1:1", .destination = "10.0.0.2:2"},
               "not a protocol"},
           {{.protocol = "TCP", .source = "10.0.0.1:1", .destination = "10.0.0.2:2"},
            "not a protocol"},
           {{.protocol = "tcp", .source = "10.0.0.1", .destination = "10.0.0.2:2"}, "needs a port"},
           {{.protocol = "tcp", .source = "10.0.0.1:1", .destination = "fd00::2"}, "needs a port"},
           {{.protocol = "tcp", .source = "10.0.0.1:0", .destination = "10.0.0.2:2"}, "source"},
           {{.protocol = "tcp", .source = "10.0.0.1:65536", .destination = "10.0.0.2:2"}, "source"},
           {{.protocol = "tcp", .source = "fd00::1:1", .destination = "10.0.0.2:2"},
            "needs a port"},
           {{.protocol = "tcp", .source = "host:1", .destination = "10.0.0.2:2"}, "source"},
           {{.protocol = "tcp", .source = "10.0.0.1:1", .destination = "-"}, "the shell took"},
           {{.protocol = "icmp_echo", .source = "10.0.0.1:1", .destination = "10.0.0.2"},
            "no ports"},
           {{.protocol = "udp", .source = "10.0.0.1:1", .destination = "[fd00::2]:2"},
            "two families"},
           {{.protocol = "udp", .source = "10.0.0.1:1", .destination = "10.0.0.2:2", .ack = true},
            "--ack"},
           {{.protocol = "udp", .source = "10.0.0.1:1", .destination = "10.0.0.2:2", .syn = true},
            "--syn"},
           {{.protocol = "tcp",
             .source = "10.0.0.1:1",
             .destination = "10.0.0.2:2",
             .syn = true,
             .ack = true},
            "two different"},
           {{.protocol = "tcp", .source = "10.0.0.1:1", .destination = "10.0.0.2:2", .from = ""},
            "--from"},
           {{.protocol = "tcp",
             .source = "10.0.0.1:1",
             .destination = "10.0.0.2:2",
             .from = "sixteen-letters-"},
            "--from"},
           {{.protocol = "tcp",
             .source = "10.0.0.1:1",
             .destination = "10.0.0.2:2",
             .source_mac = "02:00"},
            "--source-mac"},
       }) {
    const Result<Packet> packet = parse_packet(each.words);
    ASSERT_FALSE(packet) << each.says;
    EXPECT_EQ(packet.error().code, "usage");
    EXPECT_THAT(packet.error().message, HasSubstr(each.says));
    EXPECT_FALSE(packet.error().next_step.empty()) << each.says;
  }
}

}  // namespace
}  // namespace holdfast::cli
