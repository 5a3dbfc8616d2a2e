#include "userspace/token/checker.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include <sys/random.h>

#include "userspace/base/check.hpp"

namespace holdfast::token {
namespace {

template <typename T>
T word_at(const uint8_t* at) {
  T word;
  std::memcpy(&word, at, sizeof(word));
  return word;
}

std::array<uint8_t, 32> random_secret() {
  std::array<uint8_t, 32> secret{};
  CHECK(::getrandom(secret.data(), secret.size(), 0) == static_cast<ssize_t>(secret.size()));
  return secret;
}

// To have it near when it is read. Functions that do no more than that are, for g++, functions that
// do nothing, and their calls are left out: so this does something that it does not look into.
void ask_for(const void* line) {
  __builtin_prefetch(line);
  asm volatile("");
}

// Where a header is looked for, and no more: all of its bytes are compared. Each word has a factor
// of its own (multilinear hashing, Carter and Wegman), so none waits for another. At least 8 bytes.
uint64_t hash_of_header(std::span<const uint8_t> header) {
  constexpr uint64_t step = 0x9e3779b97f4a7c15ULL;
  const uint8_t* const last = header.data() + header.size() - sizeof(uint64_t);
  uint64_t factor = step;
  uint64_t hash = word_at<uint64_t>(last) * factor;
  for (const uint8_t* at = header.data(); at < last; at += sizeof(uint64_t))
    hash += word_at<uint64_t>(at) * (factor += 2 * step);
  return hash >> 32;
}

uint16_t anchor_index(const Anchor* anchor, const Beliefs& beliefs) {
  return static_cast<uint16_t>(anchor - beliefs.anchors.all().data());
}

// A path as it stands in a frame; its length was checked.
std::span<const Digest> digests_of(std::span<const uint8_t> path) {
  static_assert(alignof(Digest) == 1);
  return {reinterpret_cast<const Digest*>(path.data()), path.size() / sizeof(Digest)};
}

// Of a pair's name: where it stands in its level, the level, and above them its head's serial.
constexpr int index_bits = path_nodes_max;
constexpr int level_bits = 5;

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

Digest parent_of(uint64_t at, const Digest& node, const Digest& sibling) {
  return (at & 1) != 0 ? node_hash(sibling, node) : node_hash(node, sibling);
}

bool has_shape(const Item& item) {
  const uint64_t size = item.head->tree_size;
  return item.index < size && item.path.size() == path_length(item.index, size) * sizeof(Digest);
}

}  // namespace

Checker::Checker(size_t heads, size_t nodes)
    : secret_(random_secret()),
      head_mask_(heads - 1),
      set_mask_(2 * heads / ways - 1),  // half full, so that hardly a set is ever too small
      pair_mask_(nodes / 2 - 1),
      head_words_(2 * heads, Pages::huge),
      heads_(heads, Pages::huge),
      headers_(headers, Pages::small),
      pairs_(nodes / 2, Pages::huge) {
  CHECK(std::has_single_bit(heads) && heads >= ways && std::has_single_bit(nodes) && nodes >= 4);
}

HeaderTag Checker::tag_of_header(const FramedHead& head) const {
  if (head.is_header_known) return head.tag;
  const Digest digest = sha256({secret_, head.header});
  HeaderTag tag;
  std::copy_n(digest.begin(), tag.size(), tag.begin());
  return tag;
}

std::span<uint32_t, Checker::ways> Checker::set_of(std::span<const uint8_t, 64> signature) {
  const size_t set = word_at<uint64_t>(signature.data()) & set_mask_;
  return std::span<uint32_t, ways>(&head_words_[set * ways], ways);
}

// The set comes from other bytes of the signature. Of these bits the lowest is always one.
uint32_t Checker::bits_of(std::span<const uint8_t, 64> signature) const {
  const auto places = static_cast<uint32_t>(head_mask_);
  return (word_at<uint32_t>(signature.data() + 8) & ~places) | (places + 1);
}

// Where a head of this signature may stand; most words of other signatures have other bits.
template <typename Function>
void Checker::for_each_place(std::span<const uint8_t, 64> signature, Function&& function) {
  const auto places = static_cast<uint32_t>(head_mask_);
  const uint32_t bits = bits_of(signature);
  for (const uint32_t word : set_of(signature))
    if ((word & ~places) == bits && function(word & places)) return;
}

// A header stands in one of two places.
Checker::KnownHeader* Checker::find(std::span<const uint8_t> header) {
  if (header.size() < sizeof(uint64_t) || header.size() > header_bytes_max) return nullptr;
  const size_t place = hash_of_header(header) % headers;
  for (KnownHeader* each : {&headers_[place], &headers_[place ^ 1]})
    if (each->size == header.size() &&
        std::memcmp(each->bytes.data(), header.data(), header.size()) == 0)
      return each;
  return nullptr;
}

// Of a head that is known.
void Checker::remember_header(FramedHead& head, const Beliefs& beliefs) {
  if (head.is_header_known) return;
  head.is_header_known = true;
  if (find(head.header) != nullptr) return;  // through another head of the batch
  const size_t place = hash_of_header(head.header) % headers;
  const bool second = headers_[place ^ 1].expires_s < headers_[place].expires_s;
  KnownHeader& there = headers_[second ? place ^ 1 : place];
  there.tag = head.tag;
  there.expires_s = head.expires_s;
  there.version = beliefs.version;
  there.tree_size = static_cast<uint32_t>(head.tree_size);
  there.anchor = anchor_index(head.anchor, beliefs);
  there.size = static_cast<uint16_t>(head.header.size());
  there.kind = head.kind;
  std::ranges::copy(head.header, there.bytes.begin());
}

// What the header says, and whether it may be said: as it was found under the same beliefs, else
// anew.
void Checker::judge_header(FramedHead& head, const Beliefs& beliefs, uint64_t now_s) {
  const auto refuse = [&](Refused why) {
    head.state = FramedHead::State::refused;
    head.refused = std::move(why);
  };
  KnownHeader* const known = find(head.header);
  if (known != nullptr) {
    head.tag = known->tag;
    head.is_header_known = true;
  }
  head.state = FramedHead::State::judged;
  if (known != nullptr && known->version == beliefs.version) {
    head.kind = known->kind;
    head.tree_size = known->tree_size;
    head.expires_s = known->expires_s;
    head.anchor = &beliefs.anchors.all()[known->anchor];
    if (head.expires_s <= now_s) refuse({Refusal::head_expired});
    return;
  }
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
  if (known == nullptr) return;
  known->version = beliefs.version;
  known->anchor = anchor_index(*anchor, beliefs);
}

// Whether its signature was good before, under this header: then under the same key, which the
// header names, and which is still believed.
void Checker::look_up(FramedHead& head, const Beliefs& beliefs) {
  head.state = FramedHead::State::unverified;
  for_each_place(head.signature, [&](size_t place) {
    const KnownHead& known = heads_[place];
    if (!std::ranges::equal(known.signature, head.signature) || known.header != tag_of_header(head))
      return false;
    head.tag = known.header;
    head.place = place;
    head.serial = known.serial;
    head.state = FramedHead::State::known;
    remember_header(head, beliefs);
    return true;
  });
}

// Once its proof was good: of a revoked head nothing is told before.
Checked<void> Checker::judge_revoked(const FramedHead& head, const Beliefs& beliefs) {
  if (!beliefs.revoked.has_heads()) return {};
  if (beliefs.revoked.has_head(head_id(head.kind, head.header, heads_[head.place].root)))
    return std::unexpected(Refused{Refusal::revoked});
  return {};
}

// A head whose signature was good: in the place of the oldest, and in its set's free word, else in
// that of the set's oldest.
void Checker::remember_head(FramedHead& head, const Digest& root, const Beliefs& beliefs) {
  head.serial = next_serial_++;
  head.place = head.serial & head_mask_;
  const auto place = static_cast<uint32_t>(head.place);
  head.state = FramedHead::State::known;
  head.tag = tag_of_header(head);
  KnownHead& there = heads_[head.place];
  if (there.serial != 0)
    std::ranges::replace(set_of(there.signature), bits_of(there.signature) | place, 0U);
  std::ranges::copy(head.signature, there.signature.begin());
  there.root = root;
  there.header = head.tag;
  there.serial = head.serial;
  const auto age = [&](uint32_t word) {
    return word == 0 ? SIZE_MAX : (head.serial - word) & head_mask_;
  };
  *std::ranges::max_element(set_of(head.signature), {}, age) = bits_of(head.signature) | place;
  remember_header(head, beliefs);
}

// A pair of nodes of a tree, by its level (the leaves' is 0), and where one of them stands there.
// The pairs of a tree stand together, its root's children first, and those of the trees that came
// one after the other as far from each other as can be (Fibonacci hashing, Knuth).
Checker::PairPlace Checker::pair_of(const FramedHead& head, size_t level, uint64_t index) const {
  const auto height = static_cast<size_t>(std::bit_width(head.tree_size - 1));
  const uint64_t pair = index >> 1;
  const uint64_t begin = head.serial * 0x9e3779b97f4a7c15ULL >> std::countl_zero(pair_mask_);
  return {.name = head.serial << (index_bits + level_bits) | uint64_t{level} << index_bits | pair,
          .at = (begin + (uint64_t{1} << (height - level - 1)) + pair) & pair_mask_};
}

// The pair that the leaf's parent is one of: mostly it is known.
void Checker::ask_for_nodes(const Item& item) {
  const FramedHead& head = *item.head;
  if (head.state == FramedHead::State::known && head.tree_size > 2 && item.index < head.tree_size)
    ask_for(&pairs_[pair_of(head, 1, item.index >> 1).at]);
}

// From the leaf's parent up, to the first node that is known, at the latest the root. Leaves are
// not remembered: each is shown seldom more than once, and its parent is as near.
bool Checker::climb(const Item& item) {
  const FramedHead& head = *item.head;
  std::span<const Digest> path = digests_of(item.path);
  Climb climb(item.index, head.tree_size);
  if (!climb.below_root()) return item.leaf == heads_[head.place].root;
  if (!climb.alone()) path = path.subspan(1);
  climb.up();
  Digest node = item.parent;
  struct Fresh {
    PairPlace place;
    std::array<NodeTag, 2> tags;
  };
  std::array<Fresh, path_nodes_max> fresh;  // only the first `count` are anything
  size_t count = 0;
  const auto tag_of_node = [](const Digest& digest) {
    NodeTag tag;
    std::memcpy(tag.data(), digest.data(), tag.size());
    return tag;
  };
  bool proved = false;
  for (; climb.below_root(); climb.up()) {
    const PairPlace place = pair_of(head, climb.level, climb.at);
    const size_t side = climb.at & 1;
    const NodePair& known = pairs_[place.at];
    if (known.name == place.name) {
      if (known.tags[side] != tag_of_node(node)) return false;
      proved = true;
      break;
    }
    Fresh& pair = fresh[count++];
    pair.place = place;
    pair.tags[side] = tag_of_node(node);
    pair.tags[side ^ 1] = {};
    if (climb.alone()) continue;
    const Digest& sibling = path.front();
    path = path.subspan(1);
    pair.tags[side ^ 1] = tag_of_node(sibling);
    node = parent_of(climb.at, node, sibling);
  }
  if (!proved && node != heads_[head.place].root) return false;
  for (const Fresh& each : std::span(fresh).first(count))
    pairs_[each.place.at] = {each.place.name, each.tags};
  return true;
}

Checked<void> Checker::prove_by_signature(Item& item, const Beliefs& beliefs) {
  FramedHead& head = *item.head;
  const std::optional<Digest> root =
      root_of_path(item.leaf, item.index, head.tree_size, digests_of(item.path));
  ++signatures_;
  if (!root || !verify_root(*head.anchor, head.kind, head.header, *root, head.signature))
    return std::unexpected(Refused{Refusal::bad_signature});
  remember_head(head, *root, beliefs);
  climb(item);
  return {};
}

Checked<void> Checker::prove(Item& item, const Beliefs& beliefs) {
  FramedHead& head = *item.head;
  if (head.state == FramedHead::State::refused) return std::unexpected(head.refused);
  if (item.claims.size() > token_bytes_max) return std::unexpected(Refused{Refusal::malformed});
  if (!has_shape(item)) return std::unexpected(Refused{Refusal::bad_proof});
  // Another head of the same batch may have taken its place.
  if (head.state == FramedHead::State::known && heads_[head.place].serial != head.serial)
    head.state = FramedHead::State::unverified;
  // Or the same head stood in it more than once.
  if (head.state != FramedHead::State::known) look_up(head, beliefs);
  if (head.state != FramedHead::State::known) return prove_by_signature(item, beliefs);
  if (!climb(item)) return std::unexpected(Refused{Refusal::bad_signature});
  return {};
}

void Checker::expect(const FramedHead& head) {
  ask_for(set_of(head.signature).data());
}

// The first step of every climb, for two at once.
void Checker::hash_parents(std::span<Item> batch) {
  const auto children_of = [](const Item& item) {
    const Digest& sibling = digests_of(item.path).front();
    return (item.index & 1) != 0 ? Children{sibling, item.leaf} : Children{item.leaf, sibling};
  };
  Item* waiting = nullptr;
  for (Item& item : batch) {
    if (!has_shape(item)) continue;
    if (Climb(item.index, item.head->tree_size).alone()) {
      item.parent = item.leaf;
    } else if (waiting == nullptr) {
      waiting = &item;
    } else {
      node_hash_two(children_of(*waiting), waiting->parent, children_of(item), item.parent);
      waiting = nullptr;
    }
  }
  if (waiting != nullptr) {
    const Children children = children_of(*waiting);
    waiting->parent = node_hash(children.left, children.right);
  }
}

void Checker::check(std::span<Item> batch, const Beliefs& beliefs, uint64_t now_s) {
  const Place place{
      .node = beliefs.node, .epoch = beliefs.epoch, .now_s = now_s, .revoked = beliefs.revoked};
  for (size_t i = 0; i + 1 < batch.size(); i += 2)
    leaf_hash_two(batch[i].claims, batch[i].leaf, batch[i + 1].claims, batch[i + 1].leaf);
  if (batch.size() % 2 != 0) batch.back().leaf = leaf_hash(batch.back().claims);
  for (Item& item : batch)
    if (item.head->state == FramedHead::State::fresh) judge_header(*item.head, beliefs, now_s);
  for (Item& item : batch)
    if (item.head->state == FramedHead::State::judged) look_up(*item.head, beliefs);
  for (const Item& item : batch) ask_for_nodes(item);
  hash_parents(batch);
  for (Item& item : batch) {
    item.verdict = prove(item, beliefs);
    if (item.verdict) item.verdict = judge_revoked(*item.head, beliefs);
    if (!item.verdict) continue;
    item.verdict =
        judge_claims(item.claims, item.leaf, item.head->kind, *item.head->anchor, place, item.said);
    item.expires_s = std::min(item.said.expires, item.head->expires_s);
    if (item.verdict) note_use(*item.head->anchor, now_s);
  }
}

}  // namespace holdfast::token
