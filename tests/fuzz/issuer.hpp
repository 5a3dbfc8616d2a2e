// The issuer, node and time of tests/vectors/tokens.json, whose tokens are the seeds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "userspace/token/verify.hpp"

namespace holdfast::token {

inline bool same(std::span<const uint8_t> left, std::span<const uint8_t> right) {
  return std::ranges::equal(left, right);
}

inline SecretKey key_of(uint8_t number) {
  std::array<uint8_t, 32> seed{};
  seed.fill(number);
  return SecretKey::from_seed(seed);
}

inline const SecretKey& issuer_key() {
  static const SecretKey key = key_of(1);
  return key;
}

inline const Anchors& anchors() {
  static const Anchors made = [] {
    Anchor anchor;
    anchor.issuer = "cp.example";
    anchor.key = issuer_key().public_key();
    anchor.thumbprint = thumbprint(anchor.key);
    anchor.for_tokens = true;
    anchor.tenants = {"acme/shop/prod"};
    anchor.operations = {"connect"};
    Anchors one;
    one.add(std::move(anchor));
    return one;
  }();
  return made;
}

inline const Place& place() {
  static const std::string name = node_name(key_of(9).public_key());
  static const Revocations none;
  static const Place made{.node = name, .epoch = 4, .now_s = 1'800'000'000, .revoked = none};
  return made;
}

}  // namespace holdfast::token
