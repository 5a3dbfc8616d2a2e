// Bundles: the desired state of one node, signed, to be delivered by anybody. README.md has the
// format.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/signed.hpp"

namespace holdfast::token {

constexpr uint64_t bundle_life_max_s = uint64_t{30} * 24 * 3600;

// Both are files as an operator would write them; without anchors those of the bundle before go.
struct Bundle {
  std::string_view policy;
  std::string_view anchors = {};
};

struct BundleFor {
  std::string_view node;
  uint64_t generation = 0;                      // that of the policy
  uint64_t life_s = 0;                          // how long it may be put in force
  std::optional<Digest> enrollment_nonce = {};  // then it is for `enroll finish`, and nothing else
};

Result<std::vector<uint8_t>> sign_bundle(const Signer& signer, const BundleFor& target,
                                         const Bundle& bundle);
// The content of a signed object; views of it. Errors: invalid / malformed_bundle.
Result<Bundle> decode_bundle(std::span<const uint8_t> content);

}  // namespace holdfast::token
