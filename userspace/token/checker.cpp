#include "userspace/token/checker.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <sys/mman.h>

#include "userspace/base/check.hpp"

namespace holdfast::token {
namespace {

uint64_t word_of(const Digest& digest) {
  uint64_t word = 0;
  std::memcpy(&word, digest.data(), sizeof(word));
  return word;
}

Digest digest_at(std::span<const uint8_t> path, size_t i) {
  Digest digest;
  std::memcpy(digest.data(), path.data() + i * sizeof(Digest), sizeof(Digest));
  return digest;
}

// A node of a tree, by its head's serial, its level (the leaves' is 0), and where it stands there.
constexpr int index_bits = path_nodes_max + 1;
constexpr int level_bits = 5;
uint64_t node_name_of(uint64_t serial, size_t level, uint64_t index) {
  return serial << (index_bits + level_bits) | uint64_t{level} << index_bits | index;
}

// Levels of a tree from its leaves up. Where there is no sibling a node moves up as it is.
struct Climb {
  uint64_t at;
  uint64_t last;
  size_t level = 0;

  Climb(uint64_t index, uint64_t size) : at(index), last(size - 1) {}
  bool below_root() const { return last > 0; }
  bool alone() const { return (at & 1) == 0 && at == last; }
  void up() {
    at >>= 1;
    last >>= 1;
    ++level;
  }
};

Digest parent_of(const Climb& climb, const Digest& node, const Digest& sibling) {
  return (climb.at & 1) != 0 ? node_hash(sibling, node) : node_hash(node, sibling);
}

}  // namespace

template <typename T>
SparseArray<T>::SparseArray(size_t count) : count_(count) {
  void* memory = ::mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED);
  data_ = static_cast<T*>(memory);
}
template <typename T>
SparseArray<T>::~SparseArray() {
  ::munmap(data_, count_ * sizeof(T));
}

Checker::Checker(size_t heads, size_t nodes)
    : heads_(heads), nodes_(nodes), head_sets_(heads / ways), node_mask_(nodes - 1) {
  CHECK(std::has_single_bit(heads) && heads >= ways && std::has_single_bit(nodes));
}

Checker::~Checker() = default;

// Fills in what can be said of a head before a token of it was proved.
void Checker::look_up(FramedHead& head, const Beliefs& beliefs, uint64_t now_s) {
  head.key = sha256({head.header, head.signature});
  const size_t set = word_of(head.key) % head_sets_ * ways;
  KnownHead* known = nullptr;
  for (size_t i = set; i < set + ways; ++i)
    if (heads_[i].serial != 0 && heads_[i].key == head.key) {
      known = &heads_[i];
      head.place = static_cast<uint32_t>(i);
    }
  if (known != nullptr && known->version == beliefs.version) {
    head.kind = known->kind;
    head.tree_size = known->tree_size;
    head.expires_s = known->expires_s;
    head.serial = known->serial;
    head.anchor = &beliefs.anchors.all()[known->anchor];
    head.state = FramedHead::State::known;
    if (head.expires_s <= now_s) {
      head.state = FramedHead::State::refused;
      head.refused = {Refusal::head_expired};
    }
    return;
  }
  const auto refuse = [&](Refused why) {
    head.state = FramedHead::State::refused;
    head.refused = std::move(why);
  };
  Checked<Head> decoded = decode_head(head.header);
  if (!decoded) return refuse(std::move(decoded.error()));
  Checked<const Anchor*> anchor = judge_head(
      *decoded, beliefs.anchors,
      {.node = beliefs.node, .epoch = beliefs.epoch, .now_s = now_s});
  if (!anchor) return refuse(std::move(anchor.error()));
  head.anchor = *anchor;
  head.kind = decoded->kind;
  head.tree_size = decoded->tree_size;
  head.expires_s = decoded->expires;
  if (known == nullptr) {
    head.state = FramedHead::State::unverified;
    return;
  }
  // Its signature was good under the same key, which is still believed: the rest was found anew.
  known->version = beliefs.version;
  known->anchor = static_cast<uint16_t>(*anchor - beliefs.anchors.all().data());
  head.serial = known->serial;
  head.state = FramedHead::State::known;
}

// A free place, else that of an expired head, else the oldest's.
uint32_t Checker::place_for(const Digest& key, uint64_t now_s) {
  const size_t set = word_of(key) % head_sets_ * ways;
  size_t best = set;
  for (size_t i = set; i < set + ways; ++i) {
    if (heads_[i].serial == 0 || heads_[i].expires_s <= now_s) return static_cast<uint32_t>(i);
    if (heads_[i].serial < heads_[best].serial) best = i;
  }
  return static_cast<uint32_t>(best);
}

Checker::KnownNode& Checker::node_at(uint64_t name) {
  uint64_t h = name * 0x9e3779b97f4a7c15ULL;  // Fibonacci hashing (Knuth): the high bits are mixed
  return nodes_[h >> 32 & node_mask_];
}

// From the leaf up, to the first node that is known, at the latest the root.
bool Checker::prove(const FramedHead& head, const Digest& leaf, uint64_t index,
                    std::span<const uint8_t> path) {
  Digest node = leaf;
  size_t used = 0;
  std::array<std::pair<uint64_t, Digest>, 2 * (path_nodes_max + 1)> fresh;
  size_t count = 0;
  for (Climb climb(index, head.tree_size); climb.below_root(); climb.up()) {
    const uint64_t name = node_name_of(head.serial, climb.level, climb.at);
    const KnownNode& known = node_at(name);
    if (known.name == name) {
      if (known.digest != node) return false;
      node = heads_[head.place].root;  // it leads there
      break;
    }
    fresh[count++] = {name, node};
    if (climb.alone()) continue;
    const Digest sibling = digest_at(path, used++);
    fresh[count++] = {node_name_of(head.serial, climb.level, climb.at ^ 1), sibling};
    node = parent_of(climb, node, sibling);
  }
  if (node != heads_[head.place].root) return false;
  for (size_t i = 0; i < count; ++i) node_at(fresh[i].first) = {fresh[i].first, fresh[i].second};
  return true;
}

Checked<Proved> Checker::check(FramedHead& head, uint64_t index, std::span<const uint8_t> path,
                               std::span<const uint8_t> claims, const Beliefs& beliefs,
                               uint64_t now_s) {
  if (head.state == FramedHead::State::fresh) look_up(head, beliefs, now_s);
  if (head.state == FramedHead::State::refused) return std::unexpected(head.refused);
  if (claims.size() > claims_bytes_max) return std::unexpected(Refused{Refusal::malformed});
  if (index >= head.tree_size ||
      path.size() != path_length(index, head.tree_size) * sizeof(Digest))
    return std::unexpected(Refused{Refusal::bad_proof});
  // Another head of the same frame may have taken its place.
  if (head.state == FramedHead::State::known && heads_[head.place].serial != head.serial)
    head.state = FramedHead::State::unverified;
  const Digest leaf = leaf_hash(claims);
  if (head.state == FramedHead::State::known) {
    if (!prove(head, leaf, index, path)) return std::unexpected(Refused{Refusal::bad_signature});
  } else {
    Digest root = leaf;
    size_t used = 0;
    for (Climb climb(index, head.tree_size); climb.below_root(); climb.up())
      if (!climb.alone()) root = parent_of(climb, root, digest_at(path, used++));
    ++signatures_;
    if (!verify_root(*head.anchor, head.kind, head.header, root, head.signature))
      return std::unexpected(Refused{Refusal::bad_signature});
    head.place = place_for(head.key, now_s);
    head.serial = next_serial_++;
    heads_[head.place] = {
        .key = head.key,
        .root = root,
        .serial = head.serial,
        .version = beliefs.version,
        .expires_s = head.expires_s,
        .tree_size = static_cast<uint32_t>(head.tree_size),
        .anchor = static_cast<uint16_t>(head.anchor - beliefs.anchors.all().data()),
        .kind = head.kind};
    head.state = FramedHead::State::known;
    prove(head, leaf, index, path);
  }
  Checked<ClaimsView> believed = judge_claims(
      claims, head.kind, *head.anchor,
      {.node = beliefs.node, .epoch = beliefs.epoch, .now_s = now_s});
  if (!believed) return std::unexpected(std::move(believed.error()));
  return Proved{.claims = *believed,
                .kind = head.kind,
                .expires_s = std::min(believed->expires, head.expires_s)};
}

}  // namespace holdfast::token
