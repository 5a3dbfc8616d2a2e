// Tokens at a high rate: heads whose signature was good, and the nodes of their trees that were
// proved, are remembered within fixed bounds, so that most tokens cost a hash of their claims and
// about one more. What is remembered is only what a signature or a hash has shown. Everything that
// may change is judged anew at each token: key, epoch, end, issuer's rights.
//
// Tokens come in batches, because the time goes to waiting for memory: each step is taken for all
// of a batch before the next, and asks for what a later one reads.
//
// One Checker belongs to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "userspace/base/zeroed_array.hpp"
#include "userspace/token/verify.hpp"

namespace holdfast::token {

// Whom the tokens have to convince: replaced as a whole, with a new version, when anything changes.
struct Beliefs {
  std::string node;
  uint64_t epoch = 0;
  Anchors anchors;
  Revocations revoked;
  uint32_t version = 1;  // never 0
};

// Of a header its SHA-256 behind a secret, the first 128 bits: nobody finds two headers that have
// the same ones, since nobody knows what they are.
using HeaderTag = std::array<uint8_t, 16>;

// A head as it stands in a frame. What is known of it is found out at its first token.
struct FramedHead {
  std::span<const uint8_t> header;
  std::span<const uint8_t, 64> signature;

  enum class State : uint8_t { fresh, judged, refused, unverified, known } state = State::fresh;
  bool is_header_known = false;  // the cache has it
  Refused refused{Refusal::malformed};
  const Anchor* anchor = nullptr;
  Kind kind = Kind::grant;
  uint64_t tree_size = 0;
  uint64_t expires_s = 0;
  HeaderTag tag{};      // of a header that is known
  size_t place = 0;     // in the cache, when known
  uint64_t serial = 0;  // of what stood there
};

// One token of a batch: what stands in the frame, and what became of it.
struct Item {
  FramedHead* head = nullptr;
  uint64_t index = 0;
  std::span<const uint8_t> path;  // digests, one after the other
  std::span<const uint8_t> claims;

  Checked<void> verdict;
  ClaimsView said;  // points into `claims`; when the verdict is good
  uint64_t expires_s = 0;
  Digest leaf{};
  Digest parent{};  // the node above the leaf; when the proof has the right shape
};

class Checker {
 public:
  // Powers of two.
  static constexpr size_t heads_default = size_t{1} << 18;
  static constexpr size_t nodes_default = size_t{1} << 19;
  explicit Checker(size_t heads = heads_default, size_t nodes = nodes_default);

  // Tokens under this head are about to be checked: has the memory fetched that is read first.
  void expect(const FramedHead& head);

  // Whether each of them is to be believed.
  void check(std::span<Item> batch, const Beliefs& beliefs, uint64_t now_s);

  uint64_t signatures() const { return signatures_; }  // that were checked

 private:
  // A head whose signature was good. Its header is known by its tag, since many heads share one.
  // They stand in the order in which they came, and the oldest makes room.
  struct alignas(64) KnownHead {
    Signature signature;
    Digest root;
    HeaderTag header;
    uint64_t serial;  // 0: free; never used twice, so that nodes of a former head mean nothing
  };
  static_assert(sizeof(KnownHead) == 128);
  // A header of such a head, what it says, and how it was judged last.
  struct alignas(64) KnownHeader {
    HeaderTag tag;
    uint64_t expires_s;
    uint32_t version;  // of the beliefs by which it was judged
    uint32_t tree_size;
    uint16_t anchor;
    uint16_t size;  // 0: free
    Kind kind;
    std::array<uint8_t, header_bytes_max> bytes;
  };
  // Of a digest its first 224 bits: nobody finds another node that has the same ones.
  using NodeTag = std::array<uint8_t, 28>;
  // Two nodes that have the same parent: whoever proves one has proved the other.
  struct alignas(64) NodePair {
    uint64_t name;  // serial, level, and the parent's index; 0: free
    std::array<NodeTag, 2> tags;
  };
  static_assert(sizeof(NodePair) == 64);
  // Where a node's pair stands, and what it is called.
  struct PairPlace {
    uint64_t name;
    size_t at;
  };
  // Where the heads of so many signatures stand: a line. A word has a signature's bits above a
  // place in `heads_`; 0: free.
  static constexpr size_t ways = 16;
  static constexpr size_t headers = size_t{1} << 11;  // that are kept; a MiB

  HeaderTag tag_of_header(const FramedHead& head) const;
  std::span<uint32_t, ways> set_of(std::span<const uint8_t, 64> signature);
  uint32_t bits_of(std::span<const uint8_t, 64> signature) const;
  template <typename Function>
  void for_each_place(std::span<const uint8_t, 64> signature, Function&& function);
  void judge_header(FramedHead& head, const Beliefs& beliefs, uint64_t now_s);
  void look_up(FramedHead& head, const Beliefs& beliefs);
  void ask_for_nodes(const Item& item);
  static void hash_parents(std::span<Item> batch);
  Checked<void> prove(Item& item, const Beliefs& beliefs);
  Checked<void> prove_by_signature(Item& item, const Beliefs& beliefs);
  Checked<void> judge_revoked(const FramedHead& head, const Beliefs& beliefs);
  bool climb(const Item& item);
  void remember_head(FramedHead& head, const Digest& root, const Beliefs& beliefs);
  PairPlace pair_of(const FramedHead& head, size_t level, uint64_t index) const;
  KnownHeader* find(std::span<const uint8_t> header);
  void remember_header(FramedHead& head, const Beliefs& beliefs);

  const std::array<uint8_t, 32> secret_;
  const size_t head_mask_;
  const size_t set_mask_;
  const size_t pair_mask_;
  ZeroedArray<uint32_t> head_words_;
  ZeroedArray<KnownHead> heads_;
  ZeroedArray<KnownHeader> headers_;
  ZeroedArray<NodePair> pairs_;
  uint64_t next_serial_ = 1;
  uint64_t signatures_ = 0;
};

}  // namespace holdfast::token
