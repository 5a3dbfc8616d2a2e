// Signed bundles at the daemon: whether one may be put in force, and which was last. What is
// believed of it is decided over its raw bytes, before any of its content is read.
//
// STATE_DIR/bundle says which one was put in force last. Its generation is a floor that outlives
// crashes: nothing older is taken, and of the same generation only the same bundle.
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

// The last bundle that was put in force.
struct BundleRecord {
  uint64_t generation = 0;  // 0: there was none
  token::Digest digest{};   // of its signed bytes
  token::Digest key{};      // that signed it
  std::string signer;       // whose key that was
  std::string anchors;      // the anchors file that it brought
};

// A bundle whose signature is good.
struct BelievedBundle {
  BundleRecord record;
  std::shared_ptr<const token::Anchor> signer;
  std::string_view policy;         // points into the signed bytes, or into `unpacked`
  token::Anchors anchors;          // none wider than its signer
  std::vector<uint8_t> unpacked;
};

class Bundles {
 public:
  // Errors: invalid / bundle_record_damaged.
  static Result<Bundles> open(const std::string& state_dir);

  const BundleRecord& last() const { return last_; }

  // Errors: invalid or denied, with what is wrong as code; conflict / old_generation and
  // generation_used. `signature_held` says whether it may be told to whoever asks.
  Result<BelievedBundle> check(std::span<const uint8_t> bytes, const Tokens& tokens,
                               bool& signature_held) const;
  // Durably, before any of it is in force.
  Status remember(BundleRecord record);

 private:
  Bundles(std::string state_dir, BundleRecord last)
      : state_dir_(std::move(state_dir)), last_(std::move(last)) {}

  std::string state_dir_;
  BundleRecord last_;
};

}  // namespace holdfast
