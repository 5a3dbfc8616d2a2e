// What a control plane asks an Issuer for, and what nodes believe of it.
#include "userspace/token/issuer.hpp"

#include <functional>
#include <set>

#include "tests/unit/token/fixture.hpp"
#include "userspace/token/ask.hpp"
#include "userspace/token/proof.hpp"

namespace holdfast::token {
namespace {

Batch batch(Kind kind = Kind::grant) {
  return {.kind = kind, .node = node(), .epoch = 4, .life_s = 120};
}

TokenRequest request(Kind kind = Kind::grant) {
  TokenRequest request;
  request.tenant = "acme/shop/prod";
  if (kind != Kind::renew) request.endpoints = {"web@10.1.0.2:443", "echo", "echo"};
  if (kind != Kind::grant) request.lease = LeaseAt{.id = {7, 7}, .generation = 3};
  request.operations = {"connect"};
  return request;
}

Issuer issuer() {
  return {std::make_shared<SecretKey>(key_of(1)), "cp.example"};
}

TEST(Issuer, MakesWhatNodesBelieve) {
  for (const Kind kind : {Kind::grant, Kind::renew, Kind::use}) {
    TokenRequest asked = request(kind);
    asked.peer = "192.0.2.0/24";
    asked.holder = "uid:1000";
    const auto tokens = issuer().issue(batch(kind), {&asked, 1}, now_s);
    ASSERT_TRUE(tokens) << tokens.error().text();
    const Checked<Verified> verified = verify(tokens->at(0).bytes, anchors(), place());
    ASSERT_TRUE(verified) << name_of(verified.error().why) << verified.error().detail;
    const Claims& claims = verified->claims;
    EXPECT_EQ(claims, tokens->at(0).claims);
    EXPECT_EQ(verified->head.kind, kind);
    EXPECT_EQ(verified->head.epoch, 4U);
    EXPECT_EQ(verified->expires_s, now_s + 120);
    EXPECT_EQ(claims.not_before, now_s - clock_skew_s);
    const std::vector<std::string> sorted{"echo", "web@10.1.0.2:443"};
    EXPECT_EQ(claims.endpoints, kind == Kind::renew ? std::vector<std::string>{} : sorted);
    EXPECT_EQ(claims.ttl_s, kind == Kind::use ? 0U : 60U);
    EXPECT_EQ(claims.lease, asked.lease);
    EXPECT_EQ(claims.peer, "192.0.2.0/24");
    EXPECT_EQ(claims.holder, "uid:1000");
  }
}

TEST(Issuer, OneHeadServesManyAndNoTwoTokensAreAlike) {
  std::vector<TokenRequest> asked(5, request());
  asked[3].endpoints = {"files"};
  const auto tokens = issuer().issue(batch(), asked, now_s);
  ASSERT_TRUE(tokens) << tokens.error().text();
  ASSERT_EQ(tokens->size(), asked.size());
  std::set<TokenId> ids;
  for (const IssuedToken& each : *tokens) {
    EXPECT_EQ(take_apart(each.bytes)->head.tree_size, asked.size());
    EXPECT_EQ(answer(each.bytes), "good");
    ids.insert(each.claims.id);
  }
  EXPECT_EQ(ids.size(), asked.size());
  EXPECT_EQ(tokens->at(3).claims.endpoints, std::vector<std::string>{"files"});
}

TEST(Issuer, NamesAKeyByItsThumbprint) {
  TokenRequest asked = request();
  asked.holder_key = key_of(3).public_key();
  const auto tokens = issuer().issue(batch(), {&asked, 1}, now_s);
  ASSERT_TRUE(tokens) << tokens.error().text();
  EXPECT_EQ(tokens->at(0).claims.holder_key, thumbprint(key_of(3).public_key()));
  EXPECT_EQ(answer(tokens->at(0).bytes), "good");
  asked.holder = "uid:1000";
  EXPECT_EQ(issuer().issue(batch(), {&asked, 1}, now_s).error().code, "bad_claims");
}

TEST(Issuer, WhatItRefuses) {
  using Change = std::function<void(Batch&, TokenRequest&)>;
  struct Row {
    const char* code;
    const char* said;
    Change change;
  };
  const Row rows[] = {
      {"bad_life", "0 s", [](Batch& b, TokenRequest&) { b.life_s = 0; }},
      {"bad_life", "301 s", [](Batch& b, TokenRequest&) { b.life_s = 301; }},
      {"bad_claims", "audience is empty", [](Batch& b, TokenRequest&) { b.node = ""; }},
      {"bad_claims", "a head of", [](Batch& b, TokenRequest&) { b.node = std::string(256, 'n'); }},
      {"bad_prefix", "token 2: the peer", [](Batch&, TokenRequest& r) { r.peer = "192.0.2.1/24"; }},
      {"bad_holder", "token 2: the holder", [](Batch&, TokenRequest& r) { r.holder = "bob"; }},
      {"bad_claims", "token 2: a term", [](Batch&, TokenRequest& r) { r.ttl_s = 301; }},
      {"bad_claims", "token 2: the tenant", [](Batch&, TokenRequest& r) { r.tenant = ""; }},
      {"bad_claims", "token 2: a grant token", [](Batch&, TokenRequest& r) { r.endpoints = {}; }},
      {"bad_claims", "token 2: a grant token",
       [](Batch&, TokenRequest& r) { r.lease = LeaseAt{}; }},
  };
  const Issuer long_name(std::make_shared<SecretKey>(key_of(1)), std::string(200, 'i'));
  for (const Row& row : rows) {
    Batch common = batch();
    std::vector<TokenRequest> asked(2, request());
    row.change(common, asked[1]);
    const auto tokens = long_name.issue(common, asked, now_s);
    ASSERT_FALSE(tokens) << row.said;
    EXPECT_EQ(tokens.error().code, row.code);
    EXPECT_NE(tokens.error().message.find(row.said), std::string::npos) << tokens.error().message;
  }
  EXPECT_TRUE(long_name.issue(batch(), std::vector(2, request()), now_s));
  EXPECT_EQ(issuer().issue(batch(), {}, now_s).error().code, "too_many_tokens");
}

TEST(Issuer, TakesPlainSignaturesOnly) {
  // As a key of OpenSSH's signs, which is good for other things.
  class Other : public Signer {
   public:
    const PublicKey& public_key() const override { return key_.public_key(); }
    Algorithm algorithm() const override { return Algorithm::ssh; }
    Result<std::vector<uint8_t>> sign(std::span<const uint8_t> message) const override {
      return key_.sign(message);
    }

   private:
    SecretKey key_ = key_of(1);
  };
  const Issuer other(std::make_shared<Other>(), "cp.example");
  const TokenRequest asked = request();
  const auto tokens = other.issue(batch(), {&asked, 1}, now_s);
  ASSERT_FALSE(tokens);
  EXPECT_EQ(tokens.error().code, "wrong_key");
  EXPECT_EQ(make_proof(Other(), {.node = node()}).error().code, "wrong_key");
}

TEST(Issuer, ItsTokensCanBeAskedAbout) {
  const auto tokens = issuer().issue(batch(), std::vector(3, request()), now_s);
  ASSERT_TRUE(tokens);
  wire::CheckFrame frame;
  ASSERT_TRUE(add_check(frame, tokens->at(1).bytes, "connect", "echo", "uid:7"));
  const auto none = add_check(frame, std::vector<uint8_t>{1, 2, 3}, "connect", "echo");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().why, Refusal::malformed);
  ASSERT_EQ(frame.checks(), 1U);

  const std::vector<uint8_t> bytes = frame.finish(1);
  const auto datagram = wire::read_datagram(bytes);
  ASSERT_TRUE(datagram);
  wire::CheckReader in(datagram->body);
  wire::CheckHead head;
  wire::Check check;
  ASSERT_TRUE(in.next_head(head));
  ASSERT_EQ(in.begin_checks(), 1U);
  ASSERT_TRUE(in.next(check));
  const Checked<Parts> parts = take_apart(tokens->at(1).bytes);
  EXPECT_TRUE(std::ranges::equal(head.header, parts->header));
  EXPECT_EQ(check.index, 1U);
  EXPECT_EQ(check.path.size(), parts->path().size() * sizeof(Digest));
  EXPECT_TRUE(std::ranges::equal(check.claims, parts->claims));
  EXPECT_EQ(check.operation, "connect");
  EXPECT_EQ(check.resource, "echo");
  EXPECT_EQ(check.presenter, "uid:7");
}

}  // namespace
}  // namespace holdfast::token
