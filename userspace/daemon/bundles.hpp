// Signed bundles at the daemon: whether one may be put in force, and which was last. What is
// believed of it is decided over its raw bytes, before any of its content is read.
//
// STATE_DIR/bundle holds two: the last that was to be put in force, whose generation is a floor
// that outlives crashes, and the one that was in force before it. Which of the two is in force, the
// policy's own digest says; so a crash between them leaves policy and anchors of one bundle.
#pragma once

#include <cstdint>
#include <span>
#include <string>
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

  bool operator==(const BundleRecord&) const = default;
};

// A bundle whose signature is good.
struct BelievedBundle {
  BundleRecord record;      // its policy's digest is not known yet
  std::string_view policy;  // points into the signed bytes, or into `unpacked`
  token::Anchors anchors;   // none wider than its signer
  std::vector<uint8_t> unpacked;
  bool is_in_force = false;  // the same, again: nothing of it has been read
};

class Bundles {
 public:
  // Errors: invalid / bundle_record_damaged.
  static Result<Bundles> open(const std::string& state_dir);

  // The floor.
  const BundleRecord& last() const { return last_; }
  // The one whose policy is in force, if one's is.
  const BundleRecord& in_force() const { return in_force_; }
  // At the start: which of them is in force, by the policy that is.
  void recognise(const token::Digest& policy_digest);
  Tokens::BundleAnchors anchors() const;  // of the one in force

  // Errors: invalid or denied, with what is wrong as code; conflict / old_generation and
  // generation_used. `signature_held` says whether it may be told to whoever asks. `generation`:
  // of the policy in force, beneath which none is taken, either.
  Result<BelievedBundle> check(std::span<const uint8_t> bytes, const Tokens& tokens,
                               uint64_t generation, bool& signature_held) const;
  // Durably, before any of it is in force; and taken back, if it does not come to that. A failed
  // write leaves what was.
  Status remember(BundleRecord record);
  Status take_back();
  void is_in_force_now() { in_force_ = last_; }

 private:
  explicit Bundles(std::string state_dir) : state_dir_(std::move(state_dir)) {}
  Status write(const BundleRecord& last) const;

  std::string state_dir_;
  BundleRecord last_;
  BundleRecord before_;  // was the last one before
  BundleRecord in_force_;
};

}  // namespace holdfast
