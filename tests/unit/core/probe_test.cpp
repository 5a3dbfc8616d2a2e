// Frames the probe builds are what the kernel's parser takes for the packet they describe.
#include "userspace/dataplane/probe.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include "policy/address.hpp"
#include "tests/support/native_parser.hpp"

namespace holdfast {
namespace {

TEST(Probe, FramesParse) {
  for (const auto& [source, destination] :
       {std::pair{"192.0.2.1", "10.1.0.2"}, std::pair{"2001:db8::1", "fd00::2"}})
    for (const Protocol protocol : {Protocol::tcp, Protocol::udp, Protocol::icmp_echo}) {
      ProbePacket packet;
      packet.source = *parse_address(source);
      packet.destination = *parse_address(destination);
      packet.protocol = protocol;
      packet.source_port = 1234;
      packet.destination_port = protocol == Protocol::icmp_echo ? 0 : 443;
      const std::vector<uint8_t> frame = build_frame(packet);
      abi::packet parsed{};
      ASSERT_EQ(abi::hf_parse(&parsed, frame.data(), frame.data() + frame.size(),
                              static_cast<uint32_t>(frame.size())),
                0U);
      EXPECT_EQ(parsed.kind, abi::HF_KIND_IP);
      EXPECT_EQ(parsed.destination_port, htons(packet.destination_port));
      EXPECT_EQ(parsed.source_port, htons(1234));
      EXPECT_EQ(parsed.initiates, protocol == Protocol::udp ? 0 : 1);
    }
}

}  // namespace
}  // namespace holdfast
