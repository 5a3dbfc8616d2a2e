#include "nft/sets.hpp"

#include <gtest/gtest.h>

#include "policy/address.hpp"

namespace holdfast::nft {
namespace {

LeaseElement tcp(const char* address, uint16_t port, const char* peer = nullptr) {
  LeaseElement out{.ifindex = 5, .address = *parse_address(address), .port = port, .peer = {}};
  if (peer != nullptr) out.peer = *parse_prefix(peer);
  return out;
}
LeaseElement echo(const char* address, const char* peer = nullptr) {
  LeaseElement out = tcp(address, 0, peer);
  out.protocol = Protocol::icmp_echo;
  return out;
}

TEST(NftSets, EveryKindOfLeaseHasItsSetOnBothSides) {
  struct Case {
    LeaseElement element;
    SetId a, b;
  };
  LeaseElement egress{.kind = LeaseElement::Kind::egress, .ifindex = 5, .address = {}, .peer = {}};
  const Case cases[] = {
      {tcp("10.0.0.2", 443), SetId::lease4_a, SetId::lease4_b},
      {tcp("fd00::2", 443), SetId::lease6_a, SetId::lease6_b},
      {echo("10.0.0.2"), SetId::echo4_a, SetId::echo4_b},
      {echo("fd00::2"), SetId::echo6_a, SetId::echo6_b},
      {tcp("10.0.0.2", 443, "192.0.2.0/24"), SetId::lease4_peer_a, SetId::lease4_peer_b},
      {tcp("fd00::2", 443, "2001:db8::/32"), SetId::lease6_peer_a, SetId::lease6_peer_b},
      {echo("10.0.0.2", "192.0.2.0/24"), SetId::echo4_peer_a, SetId::echo4_peer_b},
      {echo("fd00::2", "2001:db8::/32"), SetId::echo6_peer_a, SetId::echo6_peer_b},
      {egress, SetId::egress_a, SetId::egress_b},
  };
  for (const Case& each : cases) {
    EXPECT_TRUE(check(each.element)) << describe(each.element, Side::a);
    EXPECT_EQ(lease_key(each.element, Side::a).set, each.a) << describe(each.element, Side::a);
    EXPECT_EQ(lease_key(each.element, Side::b).set, each.b) << describe(each.element, Side::b);
  }
}

TEST(NftSets, AKeyIsTheFieldsPaddedToFourBytes) {
  ElementKey key = lease_key(tcp("10.0.0.2", 443), Side::a);
  const std::array<uint8_t, 16> wanted = {5, 0, 0, 0, 10, 0, 0, 2, 6, 0, 0, 0, 1, 187, 0, 0};
  EXPECT_TRUE(std::ranges::equal(key.key(), wanted));
}

TEST(NftSets, APeerPrefixIsARangeAndTheInterfaceIsInNetworkOrderThere) {
  ElementKey key = lease_key(tcp("10.0.0.2", 443, "192.0.2.128/25"), Side::a);
  const std::array<uint8_t, 20> first = {0, 0, 0, 5,   10, 0, 0,   2, 6, 0,
                                         0, 0, 1, 187, 0,  0, 192, 0, 2, 128};
  std::array<uint8_t, 20> last = first;
  last[19] = 255;
  EXPECT_TRUE(std::ranges::equal(key.key(), first));
  EXPECT_TRUE(std::ranges::equal(key.key_end(), last));
}

TEST(NftSets, WhatNoSetCanHoldIsRefused) {
  LeaseElement no_interface = tcp("10.0.0.2", 443);
  no_interface.ifindex = 0;
  LeaseElement echo_with_port = echo("10.0.0.2");
  echo_with_port.port = 7;
  LeaseElement narrow_egress{.kind = LeaseElement::Kind::egress,
                             .ifindex = 5,
                             .address = {},
                             .peer = *parse_prefix("10.0.0.0/8")};
  for (const LeaseElement& each :
       {no_interface, echo_with_port, narrow_egress, tcp("10.0.0.2", 0),
        tcp("10.0.0.2", 443, "2001:db8::/32"), tcp("fd00::2", 443, "10.0.0.0/8")}) {
    auto refused = check(each);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::invalid);
  }
}

}  // namespace
}  // namespace holdfast::nft
