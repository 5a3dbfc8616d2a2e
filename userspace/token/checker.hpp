// Tokens at a high rate: heads whose signature was good, and the nodes of their trees that were
// proved, are remembered within fixed bounds, so that most tokens cost a hash of their claims and
// about one more. What is remembered is only what a signature or a hash has shown. Everything that
// may change is judged anew at each token: key, epoch, end, issuer's rights.
//
// One Checker belongs to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "userspace/token/verify.hpp"

namespace holdfast::token {

// Memory that is there only where it was touched: a big table that is hardly used costs little.
template <typename T>
class SparseArray {
 public:
  explicit SparseArray(size_t count);
  ~SparseArray();
  SparseArray(const SparseArray&) = delete;
  SparseArray& operator=(const SparseArray&) = delete;
  T& operator[](size_t i) { return data_[i]; }

 private:
  T* data_;
  size_t count_;
};

// Whom the tokens have to convince: replaced as a whole, with a new version, when anything changes.
struct Beliefs {
  std::string node;
  uint64_t epoch = 0;
  Anchors anchors;
  uint64_t version = 1;  // never 0
};

// A head as it stands in a frame. What is known of it is found out at its first token.
struct FramedHead {
  std::span<const uint8_t> header;
  std::span<const uint8_t, 64> signature;

  enum class State : uint8_t { fresh, refused, unverified, known } state = State::fresh;
  Refused refused{Refusal::malformed};
  const Anchor* anchor = nullptr;
  Kind kind = Kind::grant;
  uint64_t tree_size = 0;
  uint64_t expires_s = 0;
  Digest key{};         // of the cache
  uint32_t place = 0;   // in the cache, when known
  uint64_t serial = 0;  // of what stood there
};

struct Proved {
  ClaimsView claims;  // points into the token's bytes
  Kind kind = Kind::grant;
  uint64_t expires_s = 0;
};

class Checker {
 public:
  // Powers of two.
  static constexpr size_t heads_default = size_t{1} << 18;
  static constexpr size_t nodes_default = size_t{1} << 18;
  explicit Checker(size_t heads = heads_default, size_t nodes = nodes_default);
  ~Checker();

  // Whether the claims at `index` of that head's tree are to be believed. `path` is whole digests.
  Checked<Proved> check(FramedHead& head, uint64_t index, std::span<const uint8_t> path,
                        std::span<const uint8_t> claims, const Beliefs& beliefs, uint64_t now_s);

  uint64_t signatures() const { return signatures_; }  // that were checked

 private:
  struct KnownHead {
    Digest key;  // SHA-256 of header and signature
    Digest root;
    uint64_t serial;  // 0: free; never used twice, so that nodes of a former head mean nothing
    uint64_t version;  // of the beliefs under which the rest was found out
    uint64_t expires_s;
    uint32_t tree_size;
    uint16_t anchor;
    Kind kind;
  };
  struct KnownNode {
    uint64_t name;  // serial, level and index; 0: free
    Digest digest;
  };
  static constexpr size_t ways = 8;

  void look_up(FramedHead& head, const Beliefs& beliefs, uint64_t now_s);
  uint32_t place_for(const Digest& key, uint64_t now_s);
  KnownNode& node_at(uint64_t name);
  bool prove(const FramedHead& head, const Digest& leaf, uint64_t index,
             std::span<const uint8_t> path);

  SparseArray<KnownHead> heads_;
  SparseArray<KnownNode> nodes_;
  size_t head_sets_;
  size_t node_mask_;
  uint64_t next_serial_ = 1;
  uint64_t signatures_ = 0;
};

}  // namespace holdfast::token
