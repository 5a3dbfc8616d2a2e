// The fast way and the plain way say the same of every token, whatever is remembered.
#include "userspace/token/checker.hpp"

#include <algorithm>
#include <array>
#include <random>

#include "tests/unit/token/fixture.hpp"

namespace holdfast::token {
namespace {

struct Framed {
  std::vector<uint8_t> token;
  Parts parts;
  std::vector<uint8_t> path;

  explicit Framed(std::vector<uint8_t> bytes) : token(std::move(bytes)), parts(*take_apart(token)) {
    for (const Digest& node : parts.path()) path.insert(path.end(), node.begin(), node.end());
  }
  FramedHead head() const { return {.header = parts.header, .signature = parts.signature}; }
};

std::vector<Framed> tree_of(size_t size, uint8_t salt = 0, uint8_t key = 1,
                            uint64_t expires = now_s + 300) {
  std::vector<Claims> claims;
  for (size_t i = 0; i < size; ++i) {
    claims.push_back(claims_of(Kind::use, salt));
    claims.back().id[0] = static_cast<uint8_t>(i);
    claims.back().id[1] = static_cast<uint8_t>(i >> 8);
  }
  std::vector<Framed> framed;
  Head head = head_of(Kind::use);
  head.expires = expires;
  auto tokens = issue(key_of(key), head, claims);
  for (std::vector<uint8_t>& token : *tokens) framed.emplace_back(std::move(token));
  return framed;
}

// Moved, since its parts point into its bytes.
Framed single(uint8_t salt = 0, uint64_t expires = now_s + 300) {
  return std::move(tree_of(1, salt, 1, expires).front());
}

Beliefs beliefs() {
  Beliefs beliefs;
  beliefs.node = node();
  beliefs.epoch = head_of(Kind::use).epoch;
  beliefs.anchors.add(anchor_of(1));
  return beliefs;
}

// One token as a batch of its own.
Checked<ClaimsView> check_one(Checker& checker, FramedHead& head, uint64_t index,
                              std::span<const uint8_t> path, std::span<const uint8_t> claims,
                              const Beliefs& beliefs, uint64_t now) {
  std::array<Item, 1> batch;
  batch[0].head = &head;
  batch[0].index = index;
  batch[0].path = path;
  batch[0].claims = claims;
  checker.check(batch, beliefs, now);
  if (!batch[0].verdict) return std::unexpected(batch[0].verdict.error());
  return batch[0].said;
}

std::optional<Refusal> asked(Checker& checker, const Framed& framed, const Beliefs& beliefs,
                             uint64_t now = now_s) {
  FramedHead head = framed.head();
  const Checked<ClaimsView> proved =
      check_one(checker, head, framed.parts.index, framed.path, framed.parts.claims, beliefs, now);
  if (!proved) return proved.error().why;
  EXPECT_EQ(proved->id[0], static_cast<uint8_t>(framed.parts.index));
  return std::nullopt;
}

TEST(Checker, OneSignatureServesATreeOfAnySize) {
  for (const size_t size : {1U, 2U, 3U, 5U, 7U, 8U, 31U, 256U}) {
    Checker checker;
    std::vector<Framed> tree = tree_of(size);
    std::shuffle(tree.begin(), tree.end(), std::mt19937(size));
    const Beliefs believed = beliefs();
    for (const Framed& each : tree) EXPECT_EQ(asked(checker, each, believed), std::nullopt);
    for (const Framed& each : tree) EXPECT_EQ(asked(checker, each, believed), std::nullopt);
    EXPECT_EQ(checker.signatures(), 1U) << size;
  }
}

TEST(Checker, ASignatureOfAnotherTreeProvesNothing) {
  Checker checker;
  const std::vector<Framed> good = tree_of(8);
  const std::vector<Framed> other = tree_of(8, 9);
  const Beliefs believed = beliefs();
  for (const Framed& each : good) ASSERT_EQ(asked(checker, each, believed), std::nullopt);
  for (size_t i = 0; i < good.size(); ++i) {
    FramedHead head = good[0].head();
    // Claims of the other tree, under its path and under the good one's.
    for (const std::vector<uint8_t>& path : {other[i].path, good[i].path}) {
      const Checked<ClaimsView> proved =
          check_one(checker, head, i, path, other[i].parts.claims, believed, now_s);
      ASSERT_FALSE(proved);
      EXPECT_EQ(proved.error().why, Refusal::bad_signature);
    }
    // The good claims at a place that is not theirs.
    const Checked<ClaimsView> moved = check_one(checker, head, (i + 1) % good.size(), good[i].path,
                                                good[i].parts.claims, believed, now_s);
    ASSERT_FALSE(moved);
    EXPECT_EQ(moved.error().why, Refusal::bad_signature);
  }
  EXPECT_EQ(checker.signatures(), 1U) << "a known head's wrong tokens cost hashes only";
}

TEST(Checker, WhatIsRememberedIsJudgedAnew) {
  Checker checker;
  const std::vector<Framed> tree = tree_of(1);
  const Framed& token = tree.front();
  Beliefs believed = beliefs();
  ASSERT_EQ(asked(checker, token, believed), std::nullopt);
  EXPECT_EQ(asked(checker, token, believed, now_s + 120), Refusal::expired);
  EXPECT_EQ(asked(checker, token, believed, now_s + 300), Refusal::head_expired);
  EXPECT_EQ(asked(checker, token, believed, now_s - 60), Refusal::issued_in_future);
  const auto changed = [&](auto change) {
    Beliefs next = beliefs();
    next.version = ++believed.version;
    change(next);
    return asked(checker, token, next);
  };
  EXPECT_EQ(changed([](Beliefs& b) { ++b.epoch; }), Refusal::stale_epoch);
  EXPECT_EQ(changed([](Beliefs& b) { b.node = "ni:///sha-256;other"; }), Refusal::wrong_audience);
  EXPECT_EQ(changed([](Beliefs& b) { b.anchors = Anchors(); }), Refusal::unknown_key);
  for (const auto& [change, why] :
       std::vector<std::pair<void (*)(Anchor&), std::optional<Refusal>>>{
           {[](Anchor& a) { a.state = KeyState::revoked; }, Refusal::key_not_live},
           {[](Anchor& a) { a.for_tokens = false; }, Refusal::key_not_for_tokens},
           {[](Anchor& a) { a.issuer = "other"; }, Refusal::wrong_issuer},
           {[](Anchor& a) { a.tenants = {"globex/crm/prod"}; }, Refusal::tenant_not_allowed},
           {[](Anchor& a) { a.operations = {}; }, Refusal::operation_not_allowed},
           {[](Anchor& a) { a.state = KeyState::retiring; }, std::nullopt}}) {
    EXPECT_EQ(changed([&](Beliefs& b) {
                Anchor anchor = anchor_of(1);
                change(anchor);
                b.anchors = Anchors();
                b.anchors.add(anchor_of(2));  // at another place than before
                b.anchors.add(anchor);
              }),
              why);
  }
  EXPECT_EQ(checker.signatures(), 1U);
}

TEST(Checker, AHeadIsItsSignatureAndItsHeader) {
  Checker checker;
  const Beliefs believed = beliefs();
  const Framed token = single();
  const Framed later = single(0, now_s + 301);
  // The signature of the one with the header of the other, which is not known, then is.
  const auto mixed = [&](const Framed& header, const Framed& signature) {
    FramedHead head{.header = header.parts.header, .signature = signature.parts.signature};
    const Checked<ClaimsView> proved =
        check_one(checker, head, 0, {}, token.parts.claims, believed, now_s);
    ASSERT_FALSE(proved);
    EXPECT_EQ(proved.error().why, Refusal::bad_signature);
  };
  ASSERT_EQ(asked(checker, token, believed), std::nullopt);
  mixed(later, token);
  ASSERT_EQ(asked(checker, later, believed), std::nullopt);
  mixed(later, token);
  mixed(token, later);
  EXPECT_EQ(checker.signatures(), 5U);
  // Any other signature is none, wherever it differs.
  for (size_t at = 0; at < sizeof(Signature); ++at) {
    std::vector<uint8_t> signature(token.parts.signature.begin(), token.parts.signature.end());
    signature[at] ^= 1;
    FramedHead head{.header = token.parts.header,
                    .signature = std::span<const uint8_t, 64>(signature.data(), 64)};
    EXPECT_FALSE(check_one(checker, head, 0, {}, token.parts.claims, believed, now_s)) << at;
  }
  EXPECT_EQ(asked(checker, token, believed), std::nullopt);
  EXPECT_EQ(asked(checker, later, believed), std::nullopt);
  EXPECT_EQ(checker.signatures(), 5U + sizeof(Signature));
}

TEST(Checker, AHeaderIsJudgedForAllItsHeads) {
  Checker checker;
  Beliefs believed = beliefs();
  const Framed first = single();
  const Framed second = single(9);
  ASSERT_TRUE(std::ranges::equal(first.parts.header, second.parts.header));
  ASSERT_EQ(asked(checker, first, believed), std::nullopt);
  EXPECT_EQ(asked(checker, second, believed, now_s + 300), Refusal::head_expired);
  ++believed.version;
  ++believed.epoch;
  EXPECT_EQ(asked(checker, second, believed), Refusal::stale_epoch);
  EXPECT_EQ(asked(checker, first, believed), Refusal::stale_epoch);
  ++believed.version;
  --believed.epoch;
  EXPECT_EQ(asked(checker, second, believed), std::nullopt);
  EXPECT_EQ(asked(checker, first, believed), std::nullopt);
  EXPECT_EQ(checker.signatures(), 2U);
}

TEST(Checker, KnowsHeadsOfMoreHeadersThanItKeeps) {
  Checker checker;
  Beliefs believed = beliefs();
  std::vector<Framed> tokens;
  for (uint64_t i = 0; i < 5000; ++i) tokens.push_back(single(0, now_s + 300 + i));
  for (int round = 0; round < 2; ++round, ++believed.version)
    for (const Framed& each : tokens) ASSERT_EQ(asked(checker, each, believed), std::nullopt);
  EXPECT_EQ(checker.signatures(), tokens.size());
  for (const Framed& each : tokens)
    ASSERT_EQ(asked(checker, each, believed, now_s + 6000), Refusal::head_expired);
}

TEST(Checker, SaysWhatThePlainWaySaysOfEveryDamage) {
  const Beliefs believed = beliefs();
  const Place place{
      .node = believed.node, .epoch = believed.epoch, .now_s = now_s, .revoked = believed.revoked};
  const std::vector<Framed> tree = tree_of(5);
  for (const bool warm : {false, true}) {
    Checker checker;
    for (const Framed& each : tree) {
      if (!warm) break;
      ASSERT_EQ(asked(checker, each, believed), std::nullopt);
    }
    for (const Framed& each : {tree[1], tree[4]}) {
      for (size_t bit = 0; bit < 8 * each.token.size(); ++bit) {
        std::vector<uint8_t> bad = each.token;
        bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
        const Checked<Parts> parts = take_apart(bad);
        if (!parts) continue;
        const Framed framed(bad);
        const Checked<Verified> plain = verify(bad, believed.anchors, place);
        FramedHead head = framed.head();
        const Checked<ClaimsView> fast = check_one(checker, head, framed.parts.index, framed.path,
                                                   framed.parts.claims, believed, now_s);
        ASSERT_FALSE(plain) << bit;
        // A proof is not what a token is known by: under a known node it is not looked at.
        if (fast) {
          EXPECT_TRUE(warm);
          EXPECT_TRUE(std::ranges::equal(framed.parts.claims, each.parts.claims));
          EXPECT_EQ(framed.parts.index, each.parts.index);
          EXPECT_TRUE(std::ranges::equal(framed.parts.header, each.parts.header));
          EXPECT_TRUE(std::ranges::equal(framed.parts.signature, each.parts.signature));
        } else {
          EXPECT_EQ(fast.error().why, plain.error().why) << bit;
        }
      }
    }
  }
}

TEST(Checker, TheOldestHeadMakesRoom) {
  Checker checker(16, 16);
  const Beliefs believed = beliefs();
  std::vector<std::vector<Framed>> trees;
  for (uint8_t salt = 0; salt < 17; ++salt) trees.push_back(tree_of(3, salt));
  const auto signatures_for = [&](size_t tree) {
    const uint64_t before = checker.signatures();
    for (const Framed& each : trees[tree]) EXPECT_EQ(asked(checker, each, believed), std::nullopt);
    return checker.signatures() - before;
  };
  for (int round = 0; round < 2; ++round)
    for (size_t tree = 0; tree < 16; ++tree) EXPECT_EQ(signatures_for(tree), round == 0) << tree;
  EXPECT_EQ(signatures_for(16), 1U);
  for (size_t tree = 1; tree < 17; ++tree) EXPECT_EQ(signatures_for(tree), 0U) << tree;
  EXPECT_EQ(signatures_for(0), 1U);
  EXPECT_EQ(signatures_for(1), 1U) << "the oldest by now";
}

TEST(Checker, ForgetsWithinItsBoundsAndNeverMixesUp) {
  Checker checker(16, 16);
  const Beliefs believed = beliefs();
  std::vector<std::vector<Framed>> trees;
  for (uint8_t salt = 0; salt < 40; ++salt) trees.push_back(tree_of(9, salt));
  std::mt19937 random(1);
  for (int i = 0; i < 4000; ++i) {
    const size_t which = random() % trees.size();
    const Framed& right = trees[which][random() % 9];
    ASSERT_EQ(asked(checker, right, believed), std::nullopt);
    const Framed& wrong = trees[(which + 1) % trees.size()][right.parts.index];
    FramedHead head = right.head();
    ASSERT_FALSE(check_one(checker, head, right.parts.index, right.path, wrong.parts.claims,
                           believed, now_s));
  }
  EXPECT_GT(checker.signatures(), 1000U) << "more heads than there is room for";
}

}  // namespace
}  // namespace holdfast::token
