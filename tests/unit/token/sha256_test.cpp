#include "userspace/token/sha256.hpp"

#include <random>
#include <vector>

#include <gtest/gtest.h>
#include <openssl/evp.h>

namespace holdfast::token {
namespace {

Digest by_openssl(std::span<const uint8_t> bytes) {
  Digest digest;
  unsigned size = 0;
  EXPECT_EQ(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr), 1);
  return digest;
}

std::vector<uint8_t> random_bytes(size_t size) {
  static std::mt19937 generator(1);
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  return bytes;
}

TEST(Sha256, EveryLengthAroundTheBlocks) {
  for (size_t size = 0; size <= 1300; ++size) {
    const std::vector<uint8_t> bytes = random_bytes(size);
    EXPECT_EQ(sha256(bytes), by_openssl(bytes)) << size;
  }
}

TEST(Sha256, PartsAreOneMessage) {
  const std::vector<uint8_t> bytes = random_bytes(200);
  const std::span<const uint8_t> all(bytes);
  for (size_t first = 0; first <= 200; ++first)
    for (const size_t second : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}}) {
      if (first + second > 200) continue;
      EXPECT_EQ(sha256({all.first(first), all.subspan(first, second), all.subspan(first + second)}),
                by_openssl(bytes));
    }
}

TEST(Sha256, TwoAtOnceAreAsEachByItself) {
  const std::vector<uint8_t> bytes = random_bytes(1300);
  const std::span<const uint8_t> all(bytes);
  for (size_t a = 0; a <= 700; a += 7)
    for (const size_t b : {0U, 1U, 55U, 56U, 64U, 119U, 239U, 500U, 566U, 567U, 568U, 600U}) {
      Digest first{};
      Digest second{};
      sha256_two({all.first(a)}, first,
                 {all.subspan(700, b / 2), all.subspan(700 + b / 2, b - b / 2)}, second);
      ASSERT_EQ(first, by_openssl(all.first(a))) << a << ", " << b;
      ASSERT_EQ(second, by_openssl(all.subspan(700, b))) << a << ", " << b;
    }
}

TEST(Sha256, PortableCodeGivesTheSame) {
  // One block with its padding, by hand: 55 bytes are the most that fit.
  for (size_t size = 0; size <= 55; ++size) {
    std::vector<uint8_t> block = random_bytes(size);
    const Digest wanted = by_openssl(block);
    block.push_back(0x80);
    block.resize(62);
    block.push_back(static_cast<uint8_t>(8 * size >> 8));
    block.push_back(static_cast<uint8_t>(8 * size));
    Sha256State state{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    sha256_portable(state, block);
    Digest digest;
    for (size_t i = 0; i < digest.size(); ++i)
      digest[i] = static_cast<uint8_t>(state[i / 4] >> (24 - 8 * (i % 4)));
    EXPECT_EQ(digest, wanted) << size;
  }
}

}  // namespace
}  // namespace holdfast::token
