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

// Of a head's key, for the set's line; the set itself comes from other bits.
uint32_t tag_of(const Digest& key) {
  uint32_t tag = 0;
  std::memcpy(&tag, key.data() + 8, sizeof(tag));
  return tag | 1;
}

// A path as it stands in a frame; its length was checked.
std::span<const Digest> digests_of(std::span<const uint8_t> path) {
  static_assert(alignof(Digest) == 1);
  return {reinterpret_cast<const Digest*>(path.data()), path.size() / sizeof(Digest)};
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
    : head_tags_(heads),
      heads_(heads),
      nodes_(nodes / 2),
      head_sets_(heads / ways),
      node_mask_(nodes / 2 - 1) {
  CHECK(std::has_single_bit(heads) && heads >= ways && std::has_single_bit(nodes) && nodes >= 2);
}

Checker::~Checker() = default;

size_t Checker::set_of(const Digest& key) const {
  return word_of(key) % head_sets_ * ways;
}

// The leaf, and what the head is found by.
void Checker::hash(Item& item) {
  FramedHead& head = *item.head;
  if (head.state != FramedHead::State::fresh) {
    item.leaf = leaf_hash(item.claims);
    return;
  }
  leaf_hash_and(item.claims, item.leaf, {head.header, head.signature}, head.key);
  head.state = FramedHead::State::hashed;
  __builtin_prefetch(&head_tags_[set_of(head.key)]);
}

// Fills in what can be said of a head before a token of it was proved.
void Checker::look_up(FramedHead& head, const Beliefs& beliefs, uint64_t now_s) {
  const size_t set = set_of(head.key);
  const uint32_t tag = tag_of(head.key);
  KnownHead* known = nullptr;
  for (size_t i = set; i < set + ways; ++i)
    if (head_tags_[i] == tag && heads_[i].key == head.key) {
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
      {.node = beliefs.node, .epoch = beliefs.epoch, .now_s = now_s, .revoked = beliefs.revoked});
  if (!anchor) return refuse(std::move(anchor.error()));
  head.anchor = *anchor;
  head.kind = decoded->kind;
  head.tree_size = decoded->tree_size;
  head.expires_s = decoded->expires;
  head.state = FramedHead::State::unverified;
  if (known == nullptr) return;
  if (beliefs.revoked.has_head(head_id(head.kind, head.header, known->root))) {
    // Looked up anew each time.
    head.revoked = true;
    head.serial = known->serial;
    head.state = FramedHead::State::known;
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
  const size_t set = set_of(key);
  size_t best = set;
  for (size_t i = set; i < set + ways; ++i) {
    if (heads_[i].serial == 0 || heads_[i].expires_s <= now_s) return static_cast<uint32_t>(i);
    if (heads_[i].serial < heads_[best].serial) best = i;
  }
  return static_cast<uint32_t>(best);
}

Checker::NodeLine& Checker::line_of(uint64_t name) {
  const uint64_t h =
      name * 0x9e3779b97f4a7c15ULL;  // Fibonacci hashing (Knuth): high bits are mixed
  return nodes_[h >> 32 & node_mask_];
}

// The first nodes above the leaf: one of them is mostly known.
void Checker::ask_for_nodes(const Item& item) {
  constexpr size_t levels = 3;
  if (item.head->state != FramedHead::State::known) return;
  for (size_t level = 1; level <= levels && item.head->tree_size >> level != 0; ++level)
    __builtin_prefetch(&line_of(node_name_of(item.head->serial, level, item.index >> level)));
}

// From the leaf up, to the first node that is known, at the latest the root. Leaves are not
// remembered: each is shown seldom more than once, and its parent is as near.
bool Checker::climb(const Item& item) {
  const FramedHead& head = *item.head;
  const std::span<const Digest> path = digests_of(item.path);
  const auto tag_of_node = [](const Digest& digest) {
    NodeTag tag;
    std::memcpy(tag.data(), digest.data(), tag.size());
    return tag;
  };
  Digest node = item.leaf;
  size_t used = 0;
  struct Fresh {
    uint64_t name;
    NodeTag tag;
  };
  std::array<Fresh, 2 * path_nodes_max> fresh;  // only the first `count` are anything
  size_t count = 0;
  bool proved = false;
  for (Climb climb(item.index, head.tree_size); climb.below_root(); climb.up()) {
    if (climb.level > 0) {
      const uint64_t name = node_name_of(head.serial, climb.level, climb.at);
      const NodeLine& line = line_of(name);
      const size_t way = line.names[0] == name ? 0 : 1;
      if (line.names[way] == name) {
        if (line.tags[way] != tag_of_node(node)) return false;
        proved = true;
        break;
      }
      fresh[count++] = {name, tag_of_node(node)};
    }
    if (climb.alone()) continue;
    const Digest& sibling = path[used++];
    if (climb.level > 0)
      fresh[count++] = {node_name_of(head.serial, climb.level, climb.at ^ 1), tag_of_node(sibling)};
    node = parent_of(climb, node, sibling);
  }
  if (!proved && node != heads_[head.place].root) return false;
  for (size_t i = 0; i < count; ++i) {
    NodeLine& line = line_of(fresh[i].name);
    if (line.names[0] == fresh[i].name || line.names[1] == fresh[i].name) continue;
    line.names = {fresh[i].name, line.names[0]};
    line.tags = {fresh[i].tag, line.tags[0]};
  }
  return true;
}

Checked<void> Checker::prove_by_signature(Item& item, const Beliefs& beliefs, uint64_t now_s) {
  FramedHead& head = *item.head;
  const std::optional<Digest> root =
      root_of_path(item.leaf, item.index, head.tree_size, digests_of(item.path));
  ++signatures_;
  if (!root || !verify_root(*head.anchor, head.kind, head.header, *root, head.signature))
    return std::unexpected(Refused{Refusal::bad_signature});
  head.place = place_for(head.key, now_s);
  head.serial = next_serial_++;
  head.state = FramedHead::State::known;
  head_tags_[head.place] = tag_of(head.key);
  heads_[head.place] = {.key = head.key,
                        .root = *root,
                        .serial = head.serial,
                        .expires_s = head.expires_s,
                        .version = beliefs.version,
                        .tree_size = static_cast<uint32_t>(head.tree_size),
                        .anchor = static_cast<uint16_t>(head.anchor - beliefs.anchors.all().data()),
                        .kind = head.kind};
  climb(item);
  // Whoever finds it remembered takes it for one that is not.
  if (beliefs.revoked.has_head(head_id(head.kind, head.header, *root))) {
    heads_[head.place].version = 0;
    head.revoked = true;
    return std::unexpected(Refused{Refusal::revoked});
  }
  return {};
}

Checked<void> Checker::prove(Item& item, const Beliefs& beliefs, uint64_t now_s) {
  FramedHead& head = *item.head;
  if (head.state == FramedHead::State::refused) return std::unexpected(head.refused);
  if (item.claims.size() > token_bytes_max) return std::unexpected(Refused{Refusal::malformed});
  if (item.index >= head.tree_size ||
      item.path.size() != path_length(item.index, head.tree_size) * sizeof(Digest))
    return std::unexpected(Refused{Refusal::bad_proof});
  // Another head of the same batch may have taken its place.
  if (head.state == FramedHead::State::known && heads_[head.place].serial != head.serial)
    head.state = FramedHead::State::unverified;
  if (head.state != FramedHead::State::known) return prove_by_signature(item, beliefs, now_s);
  if (!climb(item)) return std::unexpected(Refused{Refusal::bad_signature});
  if (head.revoked) return std::unexpected(Refused{Refusal::revoked});
  return {};
}

void Checker::check(std::span<Item> batch, const Beliefs& beliefs, uint64_t now_s) {
  const Place place{
      .node = beliefs.node, .epoch = beliefs.epoch, .now_s = now_s, .revoked = beliefs.revoked};
  for (Item& item : batch) hash(item);
  for (const Item& item : batch) {
    if (item.head->state != FramedHead::State::hashed) continue;
    const size_t set = set_of(item.head->key);
    const uint32_t tag = tag_of(item.head->key);
    for (size_t i = set; i < set + ways; ++i)
      if (head_tags_[i] == tag) {
        const char* entry = reinterpret_cast<const char*>(&heads_[i]);
        __builtin_prefetch(entry);
        __builtin_prefetch(entry + 64);
      }
  }
  for (Item& item : batch) {
    if (item.head->state == FramedHead::State::hashed) look_up(*item.head, beliefs, now_s);
    ask_for_nodes(item);
  }
  for (Item& item : batch) {
    item.verdict = prove(item, beliefs, now_s);
    if (!item.verdict) continue;
    item.verdict =
        judge_claims(item.claims, item.leaf, item.head->kind, *item.head->anchor, place, item.said);
    item.expires_s = std::min(item.said.expires, item.head->expires_s);
  }
}

}  // namespace holdfast::token
