#include "userspace/token/merkle.hpp"

#include <bit>
#include <string>

#include <gtest/gtest.h>

namespace holdfast::token {
namespace {

Digest leaf_of(uint64_t number) {
  const std::string text = std::to_string(number);
  return leaf_hash({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::vector<Digest> leaves_of(uint64_t count) {
  std::vector<Digest> leaves;
  for (uint64_t i = 0; i < count; ++i) leaves.push_back(leaf_of(i));
  return leaves;
}

// RFC 9162, 2.1.1, word for word: split at the largest power of two below the size.
Digest root_by_the_rfc(std::span<const Digest> leaves) {
  if (leaves.size() == 1) return leaves.front();
  const size_t left = std::bit_floor(leaves.size() - 1);
  return node_hash(root_by_the_rfc(leaves.first(left)), root_by_the_rfc(leaves.subspan(left)));
}

TEST(Merkle, RootsAndPathsOfEverySizeUpTo70) {
  for (uint64_t size = 1; size <= 70; ++size) {
    const std::vector<Digest> leaves = leaves_of(size);
    const Tree tree(leaves);
    ASSERT_EQ(tree.root(), root_by_the_rfc(leaves)) << size;
    for (uint64_t index = 0; index < size; ++index) {
      const std::vector<Digest> path = tree.path(index);
      ASSERT_EQ(path.size(), path_length(index, size));
      ASSERT_EQ(root_of_path(leaves[index], index, size, path), tree.root())
          << size << ' ' << index;
    }
  }
}

TEST(Merkle, AWrongPlaceOrLengthLeadsNowhere) {
  const std::vector<Digest> leaves = leaves_of(21);
  const Tree tree(leaves);
  for (uint64_t index = 0; index < 21; ++index) {
    std::vector<Digest> path = tree.path(index);
    for (uint64_t other = 0; other <= 24; ++other) {
      for (uint64_t size = 0; size <= 40; ++size) {
        const std::optional<Digest> root = root_of_path(leaves[index], other, size, path);
        // Other sizes may take the same path; the size is signed, so that does not matter.
        if (size == 21) {
          EXPECT_EQ(root == tree.root(), other == index);
        } else if (other >= size) {
          EXPECT_EQ(root, std::nullopt);
        }
      }
    }
    path.push_back(path.back());
    EXPECT_EQ(root_of_path(leaves[index], index, 21, path), std::nullopt);
    path.resize(path.size() - 2);
    EXPECT_EQ(root_of_path(leaves[index], index, 21, path), std::nullopt);
  }
}

}  // namespace
}  // namespace holdfast::token
