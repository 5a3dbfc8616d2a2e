// The immutable cuckoo table that packets read: every key is found, no other is, at every fill.
#include "policy/endpoint_table.hpp"

#include <random>
#include <set>
#include <span>

#include <gtest/gtest.h>

#include "policy/compile.hpp"

namespace holdfast {
namespace {

Address v4(uint32_t value) {
  Address address;
  address.bytes[10] = address.bytes[11] = 0xff;
  for (size_t i = 0; i < 4; ++i)
    address.bytes[12 + i] = static_cast<uint8_t>(value >> (24 - 8 * i));
  return address;
}

std::vector<abi::endpoint_entry> entries(size_t count) {
  std::vector<abi::endpoint_entry> out;
  for (size_t i = 0; i < count; ++i) {
    abi::endpoint_entry entry{};
    entry.key = endpoint_key(v4(0x0a010000 + static_cast<uint32_t>(i / 60000)), Protocol::tcp,
                             static_cast<uint16_t>(1024 + i % 60000));
    entry.slot = static_cast<uint32_t>(i);
    out.push_back(entry);
  }
  return out;
}

TEST(EndpointTable, FindsEveryKeyAndNoOther) {
  for (const size_t count : {0, 1, 2, 3, 4, 5, 63, 64, 65, 1000, 4096, 100000}) {
    const std::vector<abi::endpoint_entry> in = entries(count);
    const EndpointTable table = build_endpoint_table(in, 42);
    const size_t lines = table.hash.mask + size_t{1};
    EXPECT_EQ(lines & (lines - 1), 0U) << "lines are a power of two";
    for (const abi::endpoint_entry& entry : in) {
      const abi::endpoint_entry* found = find_endpoint(table.lines.data(), table.hash, entry.key);
      ASSERT_NE(found, nullptr) << count;
      EXPECT_EQ(found->slot, entry.slot);
    }
    for (const auto& absent : {endpoint_key(v4(0x0a0100ff), Protocol::tcp, 443),
                               endpoint_key(v4(0x0a010000), Protocol::udp, 1024)})
      EXPECT_EQ(find_endpoint(table.lines.data(), table.hash, absent), nullptr) << count;
  }
}

TEST(EndpointTable, BuildsUnderEverySeed) {
  const std::vector<abi::endpoint_entry> in = entries(4096);  // the fullest: half of all places
  std::mt19937_64 random(1);
  for (int i = 0; i < 200; ++i) {
    const EndpointTable table = build_endpoint_table(in, random());
    size_t stored = 0;
    for (const abi::endpoint_line& line : std::span(table.lines).first(table.hash.mask + size_t{1}))
      for (const abi::endpoint_entry& entry : line.entries)
        stored += entry.key.protocol != 0 ? 1 : 0;
    EXPECT_EQ(stored, in.size()) << "no key is lost and none stands twice";
  }
}

// What a lookup that expects nothing relies on: no entry without its tag, no tag without an entry.
TEST(EndpointTable, EveryEntryHasItsTag) {
  for (const size_t count : {0, 1, 31, 32, 33, 64, 1000, 4096}) {
    const EndpointTable table = build_endpoint_table(entries(count), 42);
    const uint32_t lines = table.hash.mask + 1;
    ASSERT_EQ(table.lines.size(), lines + (lines + 31) / 32);
    size_t wrong = 0;
    for (uint32_t line = 0; line < lines; ++line)
      for (uint32_t i = 0; i < abi::HF_LINE_ENTRIES; ++i) {
        const abi::endpoint_key& key = table.lines[line].entries[i].key;
        const uint64_t hash =
            abi::hf_endpoint_hash(key.address, key.port, key.protocol, table.hash.seed);
        const uint8_t tag = key.protocol == 0 ? 0 : abi::hf_endpoint_tag(hash);
        const auto* tags =
            reinterpret_cast<const uint8_t*>(&table.lines[abi::hf_tag_line(lines, line)]);
        wrong += tags[abi::hf_tag_offset(line) + i] != tag ? 1 : 0;
      }
    EXPECT_EQ(wrong, 0U) << count;
  }
}

TEST(EndpointTable, HashUsesEveryPartOfTheKey) {
  const abi::endpoint_key base = endpoint_key(v4(0x0a010002), Protocol::tcp, 443);
  const auto hash = [](const abi::endpoint_key& key) {
    return abi::hf_endpoint_hash(key.address, key.port, key.protocol, 7);
  };
  std::set<uint64_t> seen = {hash(base)};
  for (size_t word = 0; word < 4; ++word)
    for (uint32_t bit = 0; bit < 32; ++bit) {
      abi::endpoint_key other = base;
      other.address[word] ^= 1U << bit;
      EXPECT_TRUE(seen.insert(hash(other)).second) << word << ":" << bit;
    }
  for (uint32_t bit = 0; bit < 16; ++bit) {
    abi::endpoint_key other = base;
    other.port = static_cast<uint16_t>(other.port ^ (1U << bit));
    EXPECT_TRUE(seen.insert(hash(other)).second);
  }
}

}  // namespace
}  // namespace holdfast
