// Revocations: what each kind means, by the plain way and the fast one; what is kept, and for how
// long.
#include "userspace/token/revocations.hpp"

#include <functional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tests/unit/token/fixture.hpp"
#include "userspace/token/checker.hpp"

namespace holdfast::token {
namespace {

std::string hex(const Digest& digest) {
  return fmt::format("{:02x}", fmt::join(digest, ""));
}

Revocation parsed(const std::string& text) {
  Result<Revocation> revocation = parse_revocation(text);
  EXPECT_TRUE(revocation) << text << revocation.error().text();
  revocation->since_s = now_s;
  return *revocation;
}

Revocation of_issuer(uint64_t before_s, const std::string& tenant = {}) {
  Revocation revocation = parsed("issuer:cp.example");
  revocation.issued_before_s = before_s;
  revocation.tenant = tenant;
  return revocation;
}

Revocations only(const Revocation& one) {
  Revocations revocations;
  EXPECT_TRUE(revocations.add(one));
  return revocations;
}

// Both ways' answer, which has to be one.
std::string verdict(std::span<const uint8_t> token, const Revocations& revoked, Checker& checker,
                    uint32_t version) {
  Place where = {.node = node(), .epoch = 4, .now_s = now_s, .revoked = revoked};
  const std::string plain = answer(token, anchors(), where);
  const Checked<Parts> parts = take_apart(token);
  std::vector<uint8_t> path;
  for (const Digest& each : parts->path()) path.insert(path.end(), each.begin(), each.end());
  Beliefs beliefs;
  beliefs.node = node();
  beliefs.epoch = 4;
  beliefs.anchors = anchors();
  beliefs.revoked = revoked;
  beliefs.version = version;
  FramedHead head{.header = parts->header, .signature = parts->signature};
  std::array<Item, 1> batch;
  batch[0].head = &head;
  batch[0].index = parts->index;
  batch[0].path = path;
  batch[0].claims = parts->claims;
  checker.check(batch, beliefs, now_s);
  EXPECT_EQ(plain, batch[0].verdict ? "good" : name_of(batch[0].verdict.error().why));
  return plain;
}

TEST(Revocations, EachKindMeansItsOwn) {
  std::vector<Claims> five;
  for (uint8_t i = 0; i < 5; ++i) five.push_back(claims_of(Kind::use, i));
  five[2].holder = "uid:1000";
  five[3].holder_key = thumbprint(key_of(3).public_key());
  const auto tokens = *issue(key_of(1), head_of(Kind::use), five);
  std::vector<Verified> verified;
  for (const auto& token : tokens) verified.push_back(*verify(token, anchors(), place()));
  const std::string key = hex(verified[0].head.key);
  const std::string head = hex(verified[0].head_id);

  const struct {
    Revocation revocation;
    std::vector<std::string> answers;
  } rows[] = {
      {parsed("token:" + hex(verified[1].id)), {"good", "revoked", "good", "good", "good"}},
      {parsed("head:" + hex(verified[1].id)), std::vector<std::string>(5, "good")},
      {parsed("token:" + head), std::vector<std::string>(5, "good")},
      {parsed("head:" + head), std::vector<std::string>(5, "revoked")},
      {parsed("key:" + key), std::vector<std::string>(5, "key_not_live")},
      {parsed("key:" + head), std::vector<std::string>(5, "good")},
      {parsed("retire:" + key), std::vector<std::string>(5, "good")},  // that is its anchor's state
      {parsed("holder:uid:1000"), {"good", "good", "revoked", "good", "good"}},
      {parsed("holder:uid:100"), std::vector<std::string>(5, "good")},
      {parsed("holder:key:" + hex(*five[3].holder_key)),
       {"good", "good", "good", "revoked", "good"}},
      {of_issuer(now_s - 5), std::vector<std::string>(5, "good")},
      {of_issuer(now_s - 4), std::vector<std::string>(5, "revoked")},
      {of_issuer(now_s, "acme/shop/prod"), std::vector<std::string>(5, "revoked")},
      {of_issuer(now_s, "globex/crm/prod"), std::vector<std::string>(5, "good")},
      {parsed("issuer:other.example"), std::vector<std::string>(5, "good")},
  };
  Checker warm;  // remembers the head from before, revoked or not
  uint32_t version = 1;
  for (const auto& token : tokens) ASSERT_EQ(verdict(token, Revocations(), warm, version), "good");
  for (const auto& row : rows) {
    const Revocations revoked = only(row.revocation);
    ++version;
    Checker cold;
    for (int again = 0; again < 2; ++again)
      for (size_t i = 0; i < tokens.size(); ++i) {
        EXPECT_EQ(verdict(tokens[i], revoked, warm, version), row.answers[i])
            << text_of(row.revocation) << " token " << i;
        EXPECT_EQ(verdict(tokens[i], revoked, cold, version), row.answers[i]);
      }
    ++version;
    for (const auto& token : tokens)
      EXPECT_EQ(verdict(token, Revocations(), cold, version), "good") << "restored";
  }
}

// Of a revoked head nothing is told before the proof was good.
TEST(Revocations, OfAHeadComeBehindTheSignature) {
  const std::vector<uint8_t> token = token_of(Kind::use);
  const Verified good = *verify(token, anchors(), place());
  const Revocations revoked = only(parsed("head:" + hex(good.head_id)));
  Checker checker;
  ASSERT_EQ(verdict(token, revoked, checker, 1), "revoked");
  const Checked<Parts> parts = take_apart(token);
  std::vector<uint8_t> wrong = token;
  wrong[static_cast<size_t>(parts->claims.data() - token.data()) + 20] ^= 1;
  EXPECT_EQ(verdict(wrong, revoked, checker, 1), "bad_signature");
}

TEST(Revocations, LapseWhenNothingThatIsMeantIsLeft) {
  Revocations revocations;
  const std::string digest = hex(Digest{});
  for (const std::string& each :
       {"token:" + digest, "head:" + digest, "key:" + digest, std::string("holder:uid:1")})
    ASSERT_TRUE(revocations.add(parsed(each)));
  ASSERT_TRUE(revocations.add(of_issuer(now_s)));
  Revocation of_tenant = of_issuer(now_s);
  of_tenant.tenant = "acme/shop/prod";
  ASSERT_TRUE(revocations.add(of_tenant));
  EXPECT_EQ(revocations.all().size(), 6U);
  // The longest life, and the farthest that an issuer's clock may be ahead.
  EXPECT_EQ(revocations.drop_lapsed(now_s + 329), 0U);
  EXPECT_EQ(revocations.drop_lapsed(now_s + 330), 3U);
  EXPECT_EQ(revocations.all().size(), 3U);
  EXPECT_TRUE(revocations.has_key(Digest{}));
  EXPECT_FALSE(revocations.has_token(Digest{}));
  // Of what an issuer signs bundles live longest.
  constexpr uint64_t month_s = 30 * 24 * 3600 + 30;
  EXPECT_EQ(revocations.drop_lapsed(now_s + month_s - 1), 0U);
  EXPECT_EQ(revocations.drop_lapsed(now_s + month_s), 1U);
  EXPECT_EQ(revocations.issued_before_s("cp.example", "any"), 0U);
}

TEST(Revocations, OfAllTimesStand) {
  Revocations revocations;
  ASSERT_TRUE(revocations.add(of_issuer(UINT64_MAX)));
  EXPECT_EQ(revocations.drop_lapsed(UINT64_MAX - 1), 0U);
}

TEST(Revocations, KnowWhetherACgroupIsAmongThem) {
  Revocations revocations;
  ASSERT_TRUE(revocations.add(parsed("holder:uid:1")));
  EXPECT_FALSE(revocations.has_cgroups());
  ASSERT_TRUE(revocations.add(parsed("holder:cgroup:1")));
  EXPECT_TRUE(revocations.has_cgroups());
  ASSERT_TRUE(revocations.lift(parsed("holder:cgroup:1")));
  EXPECT_FALSE(revocations.has_cgroups());
}

TEST(Revocations, SayEachThingOnceAndAreLifted) {
  Revocations revocations;
  ASSERT_TRUE(revocations.add(of_issuer(now_s)));
  ASSERT_TRUE(revocations.add(of_issuer(now_s - 10)));
  EXPECT_EQ(revocations.all().size(), 1U);
  EXPECT_EQ(revocations.issued_before_s("cp.example", "any"), now_s) << "it does not go back";
  ASSERT_TRUE(revocations.add(of_issuer(now_s + 1, "acme/shop/prod")));
  EXPECT_EQ(revocations.issued_before_s("cp.example", "acme/shop/prod"), now_s + 1);
  EXPECT_EQ(revocations.issued_before_s("cp.example", "any"), now_s);
  EXPECT_TRUE(revocations.lift(of_issuer(0, "acme/shop/prod")));
  EXPECT_EQ(revocations.issued_before_s("cp.example", "acme/shop/prod"), now_s);
  const Status again = revocations.lift(of_issuer(0, "acme/shop/prod"));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, "not_revoked");
}

TEST(Revocations, KeysThatRetireDoSoByTheEarliestTime) {
  const auto retire = [](uint64_t end_s) {
    Revocation revocation = parsed("retire:" + hex(leaf_hash({})));
    revocation.issued_before_s = end_s;
    return revocation;
  };
  Revocations revocations;
  EXPECT_FALSE(revocations.retires_s(leaf_hash({})));
  const struct {
    uint64_t asked_s, stands_s;
  } rows[] = {{300, 300}, {400, 300}, {200, 200}, {300, 200}};
  for (const auto& row : rows) {
    ASSERT_TRUE(revocations.add(retire(row.asked_s)));
    EXPECT_EQ(revocations.retires_s(leaf_hash({})), row.stands_s);
  }
  EXPECT_EQ(revocations.all().size(), 1U);
  EXPECT_FALSE(revocations.retires_s(Digest{}));
  EXPECT_FALSE(revocations.has_key(leaf_hash({}))) << "it is believed until then";
  EXPECT_EQ(revocations.drop_lapsed(UINT64_MAX), 0U) << "and afterwards it does not come back";
  ASSERT_TRUE(revocations.add(parsed("key:" + hex(leaf_hash({})))));
  ASSERT_TRUE(revocations.lift(parsed("key:" + hex(leaf_hash({})))));
  EXPECT_TRUE(revocations.retires_s(leaf_hash({})));
  ASSERT_TRUE(revocations.lift(retire(0)));
  EXPECT_FALSE(revocations.retires_s(leaf_hash({})));
  EXPECT_TRUE(revocations.retiring().empty());
}

TEST(Revocations, AreBounded) {
  Revocations revocations;
  std::vector<Revocation> many;
  for (size_t i = 0; i < revocations_max - revocations_kept_for_keys; ++i)
    many.push_back(parsed(fmt::format("holder:uid:{}", i + 2)));
  std::vector<uint8_t> file;
  {
    cbor::Writer list(file);
    list.array(many.size());
    for (const Revocation& each : many)
      list.array(4).text(text_of(each)).text("").u64(now_s).u64(now_s).end();
    list.end();
  }
  std::vector<uint8_t> whole;
  cbor::Writer(whole).array(2).bytes(sha256(file)).bytes(file).end();
  Result<Revocations> full = Revocations::decode(whole);
  ASSERT_TRUE(full) << full.error().text();
  const Status one_more = full->add(parsed("holder:uid:1"));
  ASSERT_FALSE(one_more);
  EXPECT_EQ(one_more.error().code, "revocations_max");
  // What closes the most at once has places of its own.
  EXPECT_TRUE(full->add(parsed("key:" + hex(leaf_hash({})))));
  EXPECT_TRUE(full->add(parsed("issuer:cp.example")));
  EXPECT_TRUE(full->add(parsed("retire:" + hex(leaf_hash({})))));
  EXPECT_FALSE(full->add(parsed("token:" + hex(leaf_hash({})))));
  EXPECT_EQ(full->all().size(), many.size() + 3);
}

TEST(Revocations, ComeBackFromTheirFileAndDamageIsNoticed) {
  Revocations revocations;
  ASSERT_TRUE(revocations.add(parsed("key:" + hex(leaf_hash({})))));
  ASSERT_TRUE(revocations.add(parsed("holder:cgroup:4711")));
  ASSERT_TRUE(revocations.add(of_issuer(now_s - 3, "acme/shop/prod")));
  ASSERT_TRUE(revocations.add(parsed("retire:" + hex(Digest{1}))));
  const std::vector<uint8_t> file = revocations.encode();
  const Result<Revocations> back = Revocations::decode(file);
  ASSERT_TRUE(back) << back.error().text();
  EXPECT_EQ(back->encode(), file);
  EXPECT_TRUE(back->has_key(leaf_hash({})));
  EXPECT_TRUE(back->has_holder("cgroup:4711"));
  EXPECT_EQ(back->issued_before_s("cp.example", "acme/shop/prod"), now_s - 3);
  for (size_t size = 0; size < file.size(); ++size)
    ASSERT_FALSE(Revocations::decode(std::span(file).first(size))) << size;
  for (size_t bit = 0; bit < 8 * file.size(); ++bit) {
    std::vector<uint8_t> damaged = file;
    damaged[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
    ASSERT_FALSE(Revocations::decode(damaged)) << "bit " << bit;
  }
}

TEST(Revocations, WordsThatMeanNothingAreRefused) {
  for (const char* text : {"", "key", "key:", "key:00", "lease:1", "token:xyz",
                           "holder:", "holder:root", "holder:uid:-1", "issuer:",
                           "key:0000000000000000000000000000000000000000000000000000000000000G00",
                           "key:000000000000000000000000000000000000000000000000000000000000000A"})
    EXPECT_FALSE(parse_revocation(text)) << text;
  for (const char* text : {"key:000000000000000000000000000000000000000000000000000000000000000a",
                           "holder:uid:0", "issuer:cp.example"}) {
    const Result<Revocation> parsed = parse_revocation(text);
    ASSERT_TRUE(parsed) << text;
    EXPECT_EQ(text_of(*parsed), text);
  }
}

// Which key may take whose place: of each kind what is missing first.
TEST(Anchor, WhatAnotherOneLacks) {
  Anchor wide = anchor_of(1);
  wide.for_requests = wide.for_bundles = wide.for_operators = true;
  wide.tenants = wide.operations = wide.verbs = {"*"};
  const Anchor narrow = anchor_of(2);
  using Lacks = std::vector<std::string>;
  EXPECT_EQ(what_is_missing(narrow, wide), Lacks());
  EXPECT_EQ(what_is_missing(wide, wide), Lacks());
  EXPECT_EQ(what_is_missing(wide, narrow),
            (Lacks{"the use request", "the use bundle", "the use operator", "tenant *",
                   "operation *", "verb *"}));
  Anchor named = narrow;
  named.operations = {"read", "connect", "write"};
  EXPECT_EQ(what_is_missing(named, narrow), Lacks{"operation read"});
  EXPECT_EQ(what_is_missing(narrow, named), Lacks());
  named = narrow;
  named.life_max_s = 60;
  EXPECT_EQ(what_is_missing(narrow, named), Lacks{"a life of 5m"});
  named.issuer = "other.example";
  EXPECT_EQ(what_is_missing(narrow, named), (Lacks{"the issuer cp.example", "a life of 5m"}));
  named = narrow;
  named.for_tokens = false;
  EXPECT_EQ(what_is_missing(narrow, named), Lacks{"the use token"});
}

// A key's tokens may live only as long as its anchor says.
TEST(Anchor, TheLongestLifeOfAKeysTokens) {
  Anchor anchor = anchor_of(1);
  anchor.life_max_s = 125;  // as long as they live
  EXPECT_EQ(answer(token_of(Kind::use), anchors_of(anchor)), "good");
  anchor.life_max_s = 124;
  EXPECT_EQ(answer(token_of(Kind::use), anchors_of(anchor)), "life_too_long");
  Claims claims = claims_of(Kind::grant);
  claims.ttl_s = 126;
  anchor.life_max_s = 125;
  EXPECT_EQ(answer(token_of(claims, head_of(Kind::grant)), anchors_of(anchor)), "life_too_long")
      << "nor may a lease of theirs";
}

}  // namespace
}  // namespace holdfast::token
