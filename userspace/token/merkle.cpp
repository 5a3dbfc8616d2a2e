#include "userspace/token/merkle.hpp"

#include <array>
#include <bit>

#include "userspace/base/check.hpp"

namespace holdfast::token {
namespace {

constexpr std::array<uint8_t, 1> leaf_prefix{0};
constexpr std::array<uint8_t, 1> node_prefix{1};

}  // namespace

Digest leaf_hash(std::span<const uint8_t> leaf) {
  return sha256({leaf_prefix, leaf});
}

void leaf_hash_two(std::span<const uint8_t> a, Digest& a_digest, std::span<const uint8_t> b,
                   Digest& b_digest) {
  sha256_two({leaf_prefix, a}, a_digest, {leaf_prefix, b}, b_digest);
}

Digest node_hash(const Digest& left, const Digest& right) {
  return sha256({node_prefix, left, right});
}

void node_hash_two(const Children& a, Digest& a_digest, const Children& b, Digest& b_digest) {
  sha256_two({node_prefix, a.left, a.right}, a_digest, {node_prefix, b.left, b.right}, b_digest);
}

size_t path_length(uint64_t index, uint64_t size) {
  // Below where its way meets the last leaf's there is always a sibling; from there up, only on the
  // left.
  const auto apart = std::bit_width(index ^ (size - 1));
  return apart + static_cast<size_t>(std::popcount(index >> apart));
}

std::optional<Digest> root_of_path(const Digest& leaf, uint64_t index, uint64_t size,
                                   std::span<const Digest> path) {
  if (index >= size || path.size() != path_length(index, size)) return std::nullopt;
  Digest root = leaf;
  auto sibling = path.begin();
  for (uint64_t at = index, last = size - 1; last > 0; at >>= 1, last >>= 1) {
    if ((at & 1) == 0 && at == last) continue;  // without a sibling: it moves up
    root = (at & 1) != 0 ? node_hash(*sibling, root) : node_hash(root, *sibling);
    ++sibling;
  }
  return root;
}

Tree::Tree(std::vector<Digest> leaves) {
  CHECK(!leaves.empty());
  levels_.push_back(std::move(leaves));
  while (levels_.back().size() > 1) {
    const std::vector<Digest>& below = levels_.back();
    std::vector<Digest> level;
    for (size_t i = 0; i + 1 < below.size(); i += 2)
      level.push_back(node_hash(below[i], below[i + 1]));
    if (below.size() % 2 != 0) level.push_back(below.back());
    levels_.push_back(std::move(level));
  }
}

std::vector<Digest> Tree::path(uint64_t index) const {
  CHECK(index < size());
  std::vector<Digest> path;
  for (const std::vector<Digest>& level : levels_) {
    const uint64_t sibling = index ^ 1;
    if (sibling < level.size()) path.push_back(level[sibling]);
    index >>= 1;
  }
  return path;
}

}  // namespace holdfast::token
