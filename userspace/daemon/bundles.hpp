// Signed bundles at the daemon: whether one may be put in force, and which was last. What is
// believed of it is decided over its raw bytes, before any of its content is read.
//
// STATE_DIR/bundle holds two: the last that was to be put in force, whose generation is a floor
// that outlives crashes, and the one that was in force before it. Which of the two is in force, the
// policy's own digest says; so a crash between them leaves policy and anchors of one bundle.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/daemon/tokens.hpp"
#include "userspace/token/bundle.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast {

struct BundleRecord {
  uint64_t generation = 0;  // 0: there is none
  token::Digest digest{};   // of its signed bytes
  token::Digest key{};      // that signed it
  std::string signer;       // whose key that was
  uint64_t issued_s = 0;
  token::Digest policy_digest{};  // of its policy, as control.policy_digest
  std::string anchors;            // the anchors file that it brought
  bool enrolled = false;          // it came under an enrollment

  bool operator==(const BundleRecord&) const = default;
};

// A bundle whose signature is good.
struct BelievedBundle {
  BundleRecord record;      // its policy's digest is not known yet
  std::string_view policy;  // points into the signed bytes, or into `unpacked`
  std::vector<uint8_t> unpacked;
  bool is_in_force = false;  // the same, again: nothing of it has been read
};

class Bundles {
 public:
  // Errors: invalid / bundle_record_damaged.
  static Result<Bundles> open(const std::string& state_dir);

  // The floor.
  const BundleRecord& last() const { return last_; }
  // The one whose policy that is, or nullptr: then the policy in force came without a bundle.
  const BundleRecord* of(const token::Digest& policy_digest) const;
  // What the bundle of the policy in force brought.
  Tokens::BundleAnchors anchors_of(const token::Digest& policy_digest) const;

  struct InForce {
    uint64_t generation = 0;  // of the policy; beneath it none is taken, where only bundles are
    token::Digest policy_digest{};
  };
  // Errors: invalid or denied, with what is wrong as code; conflict / old_generation and
  // generation_used. `signature_held` says whether it may be told to whoever asks.
  Result<BelievedBundle> check(std::span<const uint8_t> bytes, const Tokens& tokens,
                               const InForce& now, bool& signature_held) const;
  // The same of an object whose signature by this signer is good.
  Result<BelievedBundle> read(const token::SignedObject& object, std::span<const uint8_t> bytes,
                              const token::Anchor& signer, const InForce& now) const;
  // Durably, before any of it is in force, with the one that is; and taken back, if it does not
  // come to that. A failed write leaves what was.
  Status remember(BundleRecord record, const token::Digest& policy_digest);
  Status take_back();

 private:
  explicit Bundles(std::string state_dir) : state_dir_(std::move(state_dir)) {}
  Status write() const;

  std::string state_dir_;
  BundleRecord last_;
  BundleRecord former_;  // was in force when the last one came
  std::optional<std::pair<BundleRecord, BundleRecord>> before_;  // both, for take_back()
};

}  // namespace holdfast
