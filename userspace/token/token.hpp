// Capability tokens: claims (CWT, RFC 8392) as the leaf of a Merkle tree whose head an issuer
// signed, so that one signature serves many tokens. README.md beside this file has the format.
// Everything here is pure; times are Unix seconds.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"
#include "userspace/token/merkle.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {

constexpr uint64_t life_max_s = 300;   // G3: of a token and of a lease's term
constexpr uint64_t clock_skew_s = 30;  // how far an issuer's clock may be ahead of the node's
constexpr size_t token_bytes_max = 4096;
constexpr size_t claims_bytes_max = 2048;
constexpr size_t header_bytes_max = 512;
constexpr size_t path_nodes_max = 20;
constexpr uint64_t tree_size_max = uint64_t{1} << path_nodes_max;
constexpr size_t names_max = 64;  // endpoints, egress ports and operations, each

// What a token is for. Each has a signed type of its own, so none passes for another.
enum class Kind : uint8_t {
  grant,  // makes one lease
  renew,  // prolongs it
  use,    // proves it, to a service that asks the node
};
std::string_view name_of(Kind kind);

using TokenId = std::array<uint8_t, 16>;  // `cti`: random, and the salt of the leaf
using LeaseId = std::array<uint8_t, 16>;

struct LeaseAt {
  LeaseId id{};
  uint64_t generation = 0;
  bool operator==(const LeaseAt&) const = default;
};

struct Claims {
  std::string issuer;
  std::string audience;  // the node, "ni:///sha-256;..." (RFC 6920)
  uint64_t expires = 0;
  uint64_t not_before = 0;
  uint64_t issued_at = 0;
  TokenId id{};
  std::optional<Digest> holder_key;  // `cnf`: the thumbprint of a key that its holder proves
  std::string tenant;
  std::vector<std::string> endpoints;
  std::vector<std::string> egress;
  std::vector<std::string> operations;
  std::string peer;    // a prefix; empty: any
  std::string holder;  // "uid:1000" and the like; with neither it is whoever presents it
  uint64_t ttl_s = 0;  // of the lease; none in a use token
  std::optional<LeaseAt> lease;
  bool operator==(const Claims&) const = default;
};

// Names as they stand in claims: ascending, each once.
struct NamesView {
  std::span<const uint8_t> array;  // their encoding; nothing: no names
  bool sound = false;              // each as long as it may be, and in that order

  // Calls `each` with every name until it answers false; whether it never did.
  template <typename Each>
  bool all(Each each) const {
    if (array.empty()) return true;
    cbor::Reader in(array, {.depth_max = 1, .bytes_max = claims_bytes_max});
    for (in.array(); in.more();)
      if (!each(in.text())) return false;
    return true;
  }
  // Whether one of them is `name`.
  bool has(std::string_view name) const {
    return !all([&](std::string_view each) { return each != name; });
  }
};

// Claims as they stand in a token's bytes, which it points into: nothing is copied or allocated.
struct ClaimsView {
  std::string_view issuer;
  std::string_view audience;
  uint64_t expires = 0;
  uint64_t not_before = 0;
  uint64_t issued_at = 0;
  TokenId id{};
  std::optional<Digest> holder_key;
  std::string_view tenant;
  NamesView endpoints;
  NamesView egress;
  NamesView operations;
  std::string_view peer;
  std::string_view holder;
  uint64_t ttl_s = 0;
  std::optional<LeaseAt> lease;

  Claims copy() const;
};

// Deterministic CBOR. The claims must be what `kind` asks for, else they are refused: invalid /
// bad_claims, saying which.
Result<std::vector<uint8_t>> encode_claims(const Claims& claims, Kind kind);
Result<ClaimsView> decode_claims(std::span<const uint8_t> bytes, Kind kind);
// The same, without a copy of the view: nothing is promised of `out` when it fails.
Status decode_claims(std::span<const uint8_t> bytes, Kind kind, ClaimsView& out);

// What the issuer signs once for all tokens of a tree: the protected header of the receipt.
struct Head {
  Kind kind = Kind::grant;
  Digest key{};  // `kid`: the thumbprint of the issuer's key
  std::string issuer;
  std::string audience;
  uint64_t expires = 0;
  uint64_t tree_size = 0;
  uint64_t epoch = 0;  // the node's, for which the tokens were made
  bool operator==(const Head&) const = default;
};

// Why a token is refused. The order is the order of the checks; the first that fails is the answer.
#define HF_TOKEN_REFUSALS(X)                                                                 \
  X(malformed, "not a token: the bytes are not what the format says")                        \
  X(unknown_critical, "its header marks something as critical that this node does not know") \
  X(unknown_header, "its header holds a parameter that has no place there")                  \
  X(wrong_algorithm, "it is not signed with Ed25519, or not a tree of RFC 9162")             \
  X(wrong_type, "its type is none of a token's")                                             \
  X(wrong_audience, "it is for another node")                                                \
  X(stale_epoch, "it was made for another epoch of this node")                               \
  X(unknown_key, "nobody with that key may sign for this node")                              \
  X(key_not_live, "its key is not in use: revoked, or kept only to read history")            \
  X(key_not_for_tokens, "its key may sign other things, and no tokens")                      \
  X(wrong_issuer, "its key belongs to another issuer")                                       \
  X(head_expired, "the head of its tree has expired")                                        \
  X(bad_proof, "its proof does not fit the tree")                                            \
  X(bad_signature, "the signature is wrong")                                                 \
  X(bad_claims, "its claims are not what its type asks for")                                 \
  X(claims_differ, "its claims name another issuer or node than its head")                   \
  X(issued_in_future, "it was issued in the future")                                         \
  X(not_yet_valid, "it is not valid yet")                                                    \
  X(expired, "it has expired")                                                               \
  X(life_too_long, "it lives longer than 300 s")                                             \
  X(tenant_not_allowed, "its issuer may not speak for that tenant")                          \
  X(operation_not_allowed, "its issuer may not allow that operation")                        \
  X(revoked, "it was revoked: by itself, with its head or holder, or by when it was issued")

// Why a token that holds by itself does not serve here and now: these follow, in this order.
#define HF_USE_REFUSALS(X)                                                                  \
  X(wrong_kind, "it is good, but for another use: to be granted, to renew, or to show")     \
  X(not_relying, "who asks may not check for others")                                       \
  X(wrong_holder, "it belongs to another holder")                                           \
  X(operation_not_named, "it does not allow that operation")                                \
  X(resource_not_named, "it does not cover that resource")                                  \
  X(clock_suspect, "this node's wall clock cannot be relied on, so no token can be judged") \
  X(already_used, "it has made its lease already, and that has ended")                      \
  X(no_lease, "its lease is not in force")                                                  \
  X(old_generation, "its lease has been renewed since")                                     \
  X(denied, "this node does not accept it, and tells only those who may read why")

enum class Refusal : uint8_t {
#define X(name, text) name,
  HF_TOKEN_REFUSALS(X) HF_USE_REFUSALS(X)
#undef X
};
#define X(name, text) Refusal::name,
constexpr size_t refusals =
    std::initializer_list<Refusal>{HF_TOKEN_REFUSALS(X) HF_USE_REFUSALS(X)}.size();
#undef X
std::string_view name_of(Refusal refusal);
std::string_view describe(Refusal refusal);

// Found before the signature held: told to nobody but those who may read (G10, PROTOCOL.md 1).
constexpr bool is_before_signature(Refusal why) {
  return why <= Refusal::bad_signature;
}

struct Refused {
  Refusal why;
  std::string detail = {};  // more than describe() says, for whoever may know
};
template <typename T>
using Checked = std::expected<T, Refused>;

std::vector<uint8_t> encode_head(const Head& head);
// Refuses for what the header itself shows: malformed to wrong_type, in the order above.
Checked<Head> decode_head(std::span<const uint8_t> header);

// A token's parts; the spans point into its bytes. What it says is not believed yet.
struct Parts {
  std::span<const Digest> path() const {
    return std::span(nodes).first(path_length(index, head.tree_size));
  }

  std::span<const uint8_t> header;  // the protected header's bytes, as signed
  Head head;
  std::span<const uint8_t, 64> signature;
  uint64_t index;
  std::span<const uint8_t> claims;
  std::array<Digest, path_nodes_max> nodes;  // as many as path() has
};
Checked<Parts> take_apart(std::span<const uint8_t> token);

// The bytes that the head's signature is over (RFC 9052, section 4.4): header and root, in the
// context of its kind.
std::vector<uint8_t> signed_bytes(Kind kind, std::span<const uint8_t> header, const Digest& root);

// What names a head: the digest of what was signed.
Digest head_id(Kind kind, std::span<const uint8_t> header, const Digest& root);

// One head for all of `claims`, in that order: a token for each. `head` needs no tree size and no
// key; they follow. Errors: invalid / bad_claims, naming the token, or of a head whose names are
// too long; invalid / too_many_tokens; those of sign_plainly().
Result<std::vector<std::vector<uint8_t>>> issue(const Signer& signer, Head head,
                                                std::span<const Claims> claims);

// Tokens as text: base64url without padding (RFC 4648, section 5).
std::string to_text(std::span<const uint8_t> token);
// Errors: invalid / token_text.
Result<std::vector<uint8_t>> from_text(std::string_view text);

// "ni:///sha-256;..." (RFC 6920) of a key: how tokens name the node that has it.
std::string node_name(const PublicKey& key);
// The same, of its thumbprint: both have 32 bytes, so each has a name of its own.
std::string node_name_of(const Digest& thumbprint);

}  // namespace holdfast::token
