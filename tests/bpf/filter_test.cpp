// The filter before the endpoint table (bpf/abi.h): it saves lookups and never changes a verdict.
//
// On the uplink a source that is a tenant's is `spoofed_address`, any other `not_ours`, and the
// filter is asked first: so a packet's reason says whether an address was found.
#include <gtest/gtest.h>

#include "tests/bpf/node.hpp"

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

std::string address_of(std::uint32_t i) {
  return "10." + std::to_string(64 + i / 65536) + "." + std::to_string(i / 256 % 256) + "." +
         std::to_string(i % 256);
}

Packet from(const std::string& source) {
  return Ip4{.from = source, .to = "198.51.100.7"} / Udp{};
}

endpoint_entry owned(const std::string& address) {
  endpoint_entry entry = {};
  std::memcpy(entry.key.address, mapped_bytes(address).data(), 16);
  entry.key.protocol = HF_PROTO_ADDRESS;
  entry.tenant = kRed;
  return entry;
}

hf_reason said(Node& node, const std::string& source) {
  return static_cast<hf_reason>(
      node.explain(Hook::uplink_xdp, Node::uplink(), from(source)).reason);
}

TEST(Filter, AnAddressInItIsFoundAndOneOutOfItIsNot) {
  Node node;
  for (const Hook hook : {Hook::uplink_xdp, Hook::uplink_tc}) {
    expect(node, hook, Node::uplink(), from("10.0.0.1"), HF_REASON_spoofed_address);
    expect(node, hook, Node::uplink(), from("192.0.2.9"), HF_REASON_not_ours);
  }
}

TEST(Filter, EveryAddressOfAPolicyIsFound) {
  constexpr std::uint32_t kCount = 5000;  // more than the smallest filter is meant for
  Node node;
  std::vector<endpoint_entry> entries;
  for (std::uint32_t i = 0; i < kCount; i++) entries.push_back(owned(address_of(i)));
  node.publish_entries(entries);
  node.flip(0);
  std::uint32_t missed = 0, claimed = 0;
  for (std::uint32_t i = 0; i < kCount; i++) {
    missed += said(node, address_of(i)) != HF_REASON_spoofed_address;
    claimed += said(node, address_of(kCount + i)) != HF_REASON_not_ours;
  }
  EXPECT_EQ(missed, 0u);
  EXPECT_EQ(claimed, 0u) << "a false positive costs a lookup, not a verdict";
}

// Kernel and C++ agree about word and bits: with these alone an address is found, and without any
// one of them it is not, though it is in the table and every other bit is set.
TEST(Filter, HashesAsCppDoes) {
  Node node;
  std::vector<endpoint_entry> entries;
  for (std::uint32_t i = 0; i < 200; i++) entries.push_back(owned(address_of(i)));
  node.publish_entries(entries);
  node.flip(0);
  const endpoint_hash how = node.hash();
  for (std::uint32_t i = 0; i < entries.size(); i++) {
    const endpoint_key& key = entries[i].key;
    const std::uint64_t hash = hf_endpoint_hash(key.address, key.port, key.protocol, how.seed);
    std::uint64_t& word = node.filter()[hf_filter_word(hash, 0, &how)];
    const std::uint64_t bits = hf_filter_bits(hash);
    std::ranges::fill(node.filter(), 0);
    word = bits;
    EXPECT_EQ(said(node, address_of(i)), HF_REASON_spoofed_address);
    std::ranges::fill(node.filter(), ~0ULL);
    for (std::uint64_t left = bits; left != 0; left &= left - 1) {
      word = ~(left & -left);
      EXPECT_EQ(said(node, address_of(i)), HF_REASON_not_ours);
    }
  }
}

TEST(Filter, TurnsWithTheBank) {
  Node node;
  node.stage(1);
  node.address("10.9.9.9", kRed, Node::red0());
  expect(node, Hook::uplink_xdp, Node::uplink(), from("10.0.0.1"), HF_REASON_spoofed_address);
  expect(node, Hook::uplink_xdp, Node::uplink(), from("10.9.9.9"), HF_REASON_not_ours);
  node.flip(1);
  expect(node, Hook::uplink_xdp, Node::uplink(), from("10.0.0.1"), HF_REASON_not_ours);
  expect(node, Hook::uplink_xdp, Node::uplink(), from("10.9.9.9"), HF_REASON_spoofed_address);
  // The other bank's words do not matter.
  node.stage(0);
  std::ranges::fill(node.filter(), 0);
  expect(node, Hook::uplink_xdp, Node::uplink(), from("10.9.9.9"), HF_REASON_spoofed_address);
}

// All bits set is a filter that says nothing; the table decides.
TEST(Filter, ThatSaysMaybeOfEverythingChangesNoVerdict) {
  Node node;
  std::ranges::fill(node.filter(), ~0ULL);
  const Packet in = Ip4{.from = "192.0.2.9", .to = "10.0.0.1"} / Tcp{.dport = 443, .flags = "S"};
  const Packet across = Ip4{.from = "10.0.1.1", .to = "10.0.0.1"} / Tcp{.dport = 443, .flags = "S"};
  expect(node, Hook::to_tenant, Node::red0(), in, HF_REASON_endpoint);
  expect(node, Hook::to_tenant, Node::red0(), across, HF_REASON_lateral);
  expect(node, Hook::uplink_xdp, Node::uplink(), in, HF_REASON_endpoint);
  expect(node, Hook::uplink_xdp, Node::uplink(), from("192.0.2.9"), HF_REASON_not_ours);
}

}  // namespace
}  // namespace holdfast::test
