// Merkle trees as in RFC 9162, section 2.1, with SHA-256. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "userspace/token/sha256.hpp"

namespace holdfast::token {

Digest leaf_hash(std::span<const uint8_t> leaf);
// Of two leaves, which cost little more than one.
void leaf_hash_two(std::span<const uint8_t> a, Digest& a_digest, std::span<const uint8_t> b,
                   Digest& b_digest);
Digest node_hash(const Digest& left, const Digest& right);
struct Children {
  const Digest& left;
  const Digest& right;
};
void node_hash_two(const Children& a, Digest& a_digest, const Children& b, Digest& b_digest);

// How many nodes the proof of leaf `index` in a tree of `size` leaves has. index < size.
size_t path_length(uint64_t index, uint64_t size);

// The root that a leaf and its path lead to; nothing if the path has not exactly the length that
// belongs to (index, size), or the index is not in the tree.
std::optional<Digest> root_of_path(const Digest& leaf, uint64_t index, uint64_t size,
                                   std::span<const Digest> path);

// A whole tree, for who issues: all of its nodes stay in memory.
class Tree {
 public:
  explicit Tree(std::vector<Digest> leaves);  // at least one

  uint64_t size() const { return levels_.front().size(); }
  const Digest& root() const { return levels_.back().front(); }
  std::vector<Digest> path(uint64_t index) const;

 private:
  std::vector<std::vector<Digest>>
      levels_;  // from the leaves up; an odd last node moves up as it is
};

}  // namespace holdfast::token
