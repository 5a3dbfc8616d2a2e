// Whether a token is to be believed. The checks go from cheap to dear, the first that fails is the
// answer, and of what a token claims nothing is read before its signature is good: only the
// size-bounded header, and whether the proof has the shape that belongs to it.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "userspace/token/revocations.hpp"
#include "userspace/token/ssh_key.hpp"
#include "userspace/token/token.hpp"

namespace holdfast::token {

enum class KeyState : uint8_t {
  current,
  retiring,     // still accepted, until it is verify_only
  verify_only,  // for history, and for no live decision
  revoked,
};
std::string_view name_of(KeyState state);

// Whose key may sign what.
struct Anchor {
  std::string issuer;
  PublicKey key{};
  std::string application = {};  // of a security key (ssh_key.hpp)
  Digest thumbprint{};
  KeyState state = KeyState::current;
  bool for_tokens = false;
  bool for_requests = false;   // signed frames on control.sock, of these verbs
  bool for_bundles = false;    // the node's desired state
  bool for_operators = false;  // grants of some of its verbs to persons' keys
  bool for_schedules = false;  // which leases have to end, and which grant tokens may be used
  bool own = false;  // the node's key: it signs use tokens, of leases it has, and no others
  std::vector<std::string> tenants;         // exactly these; "*": every one
  std::vector<std::string> operations;      // likewise
  std::vector<std::string> verbs;           // likewise
  uint64_t life_max_s = token::life_max_s;  // of a token, and of the term it gives a lease
  std::optional<uint64_t> retires_s = {};   // when it is verify_only; of one that retires by then
  // When its signature last decided something; one for all copies, of which verifying threads have
  // some. Nothing where nobody asks.
  std::shared_ptr<std::atomic<uint64_t>> used_s = {};
};

// That its signature decided something.
inline void note_use(const Anchor& anchor, uint64_t now_s) {
  // Written once a second, so that the threads that read it do not wait for one another.
  if (anchor.used_s && anchor.used_s->load(std::memory_order_relaxed) < now_s)
    anchor.used_s->store(now_s, std::memory_order_relaxed);
}

// What of an anchor goes beyond that of who hands it on, as a word, or nullptr: a signer of bundles
// hands on what it has, and no right to sign bundles or operator grants.
const char* what_goes_beyond(const Anchor& anchor, const Anchor& signer);

// What of an anchor another one does not have, in words, the first of each kind: "the use bundle",
// "tenant acme/shop/prod". Where there is nothing, that one may sign all that this one may, in the
// same name.
std::vector<std::string> what_is_missing(const Anchor& anchor, const Anchor& in);

inline SignerKey signer_key(const Anchor& anchor) {
  return {anchor.key, anchor.application};
}

class Anchors {
 public:
  // A YAML or JSON file, as README.md describes it. Errors: invalid / anchors_syntax, naming
  // file:line.
  static Result<Anchors> parse(std::string_view text, std::string_view file);

  void add(Anchor anchor);
  const Anchor* find(const Digest& thumbprint) const;
  const std::vector<Anchor>& all() const { return anchors_; }

  // What widens has to be signed by whoever asks for it, root too.
  bool signatures_needed = false;

 private:
  std::vector<Anchor> anchors_;
};

// Whether a key may sign for live decisions now.
inline bool is_live(const Anchor& anchor) {
  return anchor.state == KeyState::current || anchor.state == KeyState::retiring;
}

// Who checks, and when.
struct Place {
  std::string_view node;  // node_name() of its key
  uint64_t epoch = 0;
  uint64_t now_s = 0;
  const Revocations& revoked;
};

struct Verified {
  Head head;
  Claims claims;
  Digest id{};  // the leaf's hash: what a token is known by
  Digest head_id{};
  uint64_t expires_s = 0;  // the earlier of its own end and its head's
};

Checked<Verified> verify(std::span<const uint8_t> token, const Anchors& anchors,
                         const Place& place);

// Its parts, for who proves the path between them in another way (checker.hpp).
// What a head says by itself: its node and epoch, its key, its end. The key's anchor.
Checked<const Anchor*> judge_head(const Head& head, const Anchors& anchors, const Place& place);
bool verify_root(const Anchor& anchor, Kind kind, std::span<const uint8_t> header,
                 const Digest& root, std::span<const uint8_t, 64> signature);
// Claims under a head that judge_head() let through and whose signature was good. `leaf` is their
// hash.
Checked<void> judge_claims(std::span<const uint8_t> bytes, const Digest& leaf, Kind kind,
                           const Anchor& anchor, const Place& place, ClaimsView& claims);

}  // namespace holdfast::token
