// Operator grants: for some hours a person's key may ask for some verbs about some tenants. Shown
// once on a connection; then that key's requests are taken from it. README.md has the format.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/signed.hpp"

namespace holdfast::token {

constexpr uint64_t operator_grant_life_max_s = uint64_t{24} * 3600;

struct OperatorGrant {
  std::string name;  // who it is
  SignerKey key;
  std::vector<std::string> verbs;    // exactly these; "*": every one of its signer's
  std::vector<std::string> tenants;  // likewise
};

// Errors: invalid / malformed_grant; those of the signer.
Result<std::vector<uint8_t>> sign_operator_grant(const Signer& signer, std::string_view node,
                                                 uint64_t life_s, const OperatorGrant& grant);
// The content of a signed object. Errors: invalid / malformed_grant.
Result<OperatorGrant> decode_operator_grant(std::span<const uint8_t> content);

}  // namespace holdfast::token
