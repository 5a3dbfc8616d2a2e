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

// A filter for so many entries at the size that a node of as many lease slots has.
struct Filter {
  std::vector<uint64_t> words;
  abi::endpoint_hash hash{.seed = 42, .mask = 0, .filter_mask = 0};

  explicit Filter(std::span<const abi::endpoint_entry> in)
      : words(filter_words(static_cast<uint32_t>(in.size())), ~uint64_t{0}) {  // a former policy's
    fill_filter(words, in, hash);
  }
  bool has(const abi::endpoint_key& key) const {
    const uint64_t h = abi::hf_endpoint_hash(key.address, key.port, key.protocol, hash.seed);
    const uint64_t bits = abi::hf_filter_bits(h);
    return (words[abi::hf_filter_word(h, 0, &hash)] & bits) == bits;
  }
};

TEST(EndpointFilter, HasEveryKeyAndFewOthers) {
  for (const size_t count : {0, 1, 1000, 4096, 65536, 100000}) {
    const std::vector<abi::endpoint_entry> in = entries(count);
    const Filter filter(in);
    for (const abi::endpoint_entry& entry : in) ASSERT_TRUE(filter.has(entry.key)) << count;
    size_t seem_there = 0;
    for (uint32_t i = 0; i < 100000; ++i)
      seem_there += filter.has(address_key(v4(0xc0000000 + i))) ? 1 : 0;
    EXPECT_LT(seem_there, 1000U) << count << ": of 100000 absent keys";
  }
}

TEST(EndpointFilter, IsAPowerOfTwoOfWords) {
  for (const auto& [leases_max, words] : {std::pair{1U, 1024U},
                                          {4096U, 1024U},
                                          {65536U, 16384U},
                                          {65537U, 32768U},
                                          {1U << 20, 1U << 18}})
    EXPECT_EQ(filter_words(leases_max), words);
}

// Banks share one array: a bank's words are its own half.
TEST(EndpointFilter, OfTheOtherBankIsTheOtherHalf) {
  const Filter filter(entries(100));
  for (uint64_t h = 1; h < 1000000; h = h * 3 + 1) {
    const uint32_t word = abi::hf_filter_word(h, 0, &filter.hash);
    EXPECT_LT(word, filter.words.size());
    EXPECT_EQ(abi::hf_filter_word(h, 1, &filter.hash), word + filter.words.size());
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
