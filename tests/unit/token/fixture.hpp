// One issuer, one node, and tokens that are good.
#pragma once

#include <vector>

#include <gtest/gtest.h>

#include "userspace/token/verify.hpp"

namespace holdfast::token {

constexpr uint64_t now_s = 1'800'000'000;

inline SecretKey key_of(uint8_t number) {
  std::array<uint8_t, 32> seed{};
  seed.fill(number);
  return SecretKey::from_seed(seed);
}

inline const std::string& node() {
  static const std::string name = node_name(key_of(9).public_key());
  return name;
}

inline Claims claims_of(Kind kind, uint8_t number = 1) {
  Claims claims;
  claims.issuer = "cp.example";
  claims.audience = node();
  claims.expires = now_s + 120;
  claims.not_before = claims.issued_at = now_s - 5;
  claims.id.fill(number);
  claims.tenant = "acme/shop/prod";
  if (kind != Kind::renew) claims.endpoints = {"echo", "web@10.1.0.2:443"};
  if (kind != Kind::use) claims.ttl_s = 60;
  if (kind != Kind::grant) claims.lease = LeaseAt{.id = {7, 7}, .generation = 3};
  claims.operations = {"connect"};
  return claims;
}

inline Head head_of(Kind kind) {
  Head head;
  head.kind = kind;
  head.issuer = "cp.example";
  head.audience = node();
  head.expires = now_s + 300;
  head.epoch = 4;
  return head;
}

inline std::vector<uint8_t> token_of(const Claims& claims, const Head& head) {
  const auto tokens = issue(key_of(1), head, std::span(&claims, 1));
  EXPECT_TRUE(tokens) << tokens.error().text();
  return tokens->front();
}
inline std::vector<uint8_t> token_of(Kind kind) {
  return token_of(claims_of(kind), head_of(kind));
}

inline Anchor anchor_of(uint8_t number) {
  Anchor anchor;
  anchor.issuer = "cp.example";
  anchor.key = key_of(number).public_key();
  anchor.thumbprint = thumbprint(anchor.key);
  anchor.for_tokens = true;
  anchor.tenants = {"acme/shop/prod"};
  anchor.operations = {"connect"};
  return anchor;
}
inline Anchors anchors_of(const Anchor& anchor) {
  Anchors anchors;
  anchors.add(anchor);
  return anchors;
}
inline Anchors anchors() {
  return anchors_of(anchor_of(1));
}

inline Place place() {
  static const Revocations none;
  return {.node = node(), .epoch = 4, .now_s = now_s, .revoked = none};
}

inline std::string answer(std::span<const uint8_t> token, const Anchors& who = anchors(),
                          const Place& where = place()) {
  const Checked<Verified> verified = verify(token, who, where);
  return std::string(verified ? "good" : name_of(verified.error().why));
}

}  // namespace holdfast::token
