// What verification believes and what not: a row for each reason, beside the token that is good.
#include <functional>
#include <set>

#include "tests/unit/token/fixture.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

constexpr std::array kinds{Kind::grant, Kind::renew, Kind::use};

TEST(Token, SaysWhatItsIssuerSaid) {
  for (const Kind kind : kinds)
    for (const bool by_key : {false, true}) {
      Claims claims = claims_of(kind);
      claims.peer = "192.0.2.0/24";
      if (by_key)
        claims.holder_key = thumbprint(key_of(3).public_key());
      else
        claims.holder = "uid:1000";
      const std::vector<uint8_t> token = token_of(claims, head_of(kind));
      const Checked<Verified> verified = verify(token, anchors(), place());
      ASSERT_TRUE(verified) << name_of(verified.error().why) << verified.error().detail;
      EXPECT_EQ(verified->claims, claims);
      EXPECT_EQ(verified->head.kind, kind);
      EXPECT_EQ(verified->expires_s, claims.expires);
      EXPECT_EQ(from_text(to_text(token)), token);
    }
}

TEST(Token, OneSignatureServesMany) {
  std::vector<Claims> all;
  for (int i = 0; i < 300; ++i) {
    all.push_back(claims_of(Kind::grant));
    all.back().id[0] = static_cast<uint8_t>(i);
    all.back().id[1] = static_cast<uint8_t>(i >> 8);
  }
  const auto tokens = issue(key_of(1), head_of(Kind::grant), all);
  ASSERT_TRUE(tokens);
  std::set<Digest> ids;
  for (size_t i = 0; i < all.size(); ++i) {
    const Checked<Verified> verified = verify((*tokens)[i], anchors(), place());
    ASSERT_TRUE(verified) << i;
    EXPECT_EQ(verified->claims, all[i]);
    EXPECT_EQ(verified->head.tree_size, 300);
    ids.insert(verified->id);
  }
  EXPECT_EQ(ids.size(), 300);
}

TEST(Token, EndsWithItsHead) {
  Head head = head_of(Kind::grant);
  head.expires = now_s + 10;
  const Checked<Verified> verified =
      verify(token_of(claims_of(Kind::grant), head), anchors(), place());
  ASSERT_TRUE(verified);
  EXPECT_EQ(verified->expires_s, now_s + 10);
}

struct ClaimsRow {
  const char* reason;
  std::function<void(Claims&)> change;
};
TEST(Token, ClaimsThatAreRefused) {
  const ClaimsRow rows[] = {
      {"good", [](Claims&) {}},
      {"good",
       [](Claims& c) {
         c.issued_at = c.not_before = now_s;
         c.expires = now_s + 300;
       }},
      {"life_too_long",
       [](Claims& c) {
         c.issued_at = now_s;
         c.expires = now_s + 301;
       }},
      {"good", [](Claims& c) { c.issued_at = now_s + 30; }},
      {"issued_in_future", [](Claims& c) { c.issued_at = now_s + 31; }},
      {"good", [](Claims& c) { c.not_before = now_s; }},
      {"not_yet_valid", [](Claims& c) { c.not_before = now_s + 1; }},
      {"good", [](Claims& c) { c.expires = now_s + 1; }},
      {"expired", [](Claims& c) { c.expires = now_s; }},
      {"claims_differ", [](Claims& c) { c.issuer = "other.example"; }},
      {"claims_differ", [](Claims& c) { c.audience = node_name(key_of(8).public_key()); }},
      {"tenant_not_allowed", [](Claims& c) { c.tenant = "globex/crm/prod"; }},
      {"operation_not_allowed", [](Claims& c) { c.operations = {"connect", "exec"}; }},
      {"good", [](Claims& c) { c.operations.clear(); }},
  };
  for (const ClaimsRow& row : rows) {
    Claims claims = claims_of(Kind::grant);
    row.change(claims);
    EXPECT_EQ(answer(token_of(claims, head_of(Kind::grant))), row.reason) << &row - rows;
  }
}

struct HeadRow {
  const char* reason;
  std::function<void(Head&)> change;
};
TEST(Token, HeadsThatAreRefused) {
  const HeadRow rows[] = {
      {"good", [](Head&) {}},
      {"wrong_audience", [](Head& h) { h.audience = node_name(key_of(8).public_key()); }},
      {"stale_epoch", [](Head& h) { h.epoch = 3; }},
      {"stale_epoch", [](Head& h) { h.epoch = 5; }},
      {"wrong_issuer", [](Head& h) { h.issuer = "other.example"; }},
      {"good", [](Head& h) { h.expires = now_s + 1; }},
      {"head_expired", [](Head& h) { h.expires = now_s; }},
  };
  for (const HeadRow& row : rows) {
    Head head = head_of(Kind::grant);
    row.change(head);
    EXPECT_EQ(answer(token_of(claims_of(Kind::grant), head)), row.reason) << &row - rows;
  }
}

struct AnchorRow {
  const char* reason;
  std::function<void(Anchor&)> change;
};
TEST(Token, KeysThatAreRefused) {
  const AnchorRow rows[] = {
      {"good", [](Anchor&) {}},
      {"good", [](Anchor& a) { a.state = KeyState::retiring; }},
      {"key_not_live", [](Anchor& a) { a.state = KeyState::verify_only; }},
      {"key_not_live", [](Anchor& a) { a.state = KeyState::revoked; }},
      {"key_not_for_tokens", [](Anchor& a) { a.for_tokens = false; }},
      {"wrong_issuer", [](Anchor& a) { a.issuer = "other.example"; }},
      {"unknown_key", [](Anchor& a) { a.thumbprint[0] ^= 1; }},
      {"bad_signature", [](Anchor& a) { a.key = key_of(2).public_key(); }},
      {"good", [](Anchor& a) { a.tenants = {"*"}; }},
      {"tenant_not_allowed", [](Anchor& a) { a.tenants = {}; }},
      {"tenant_not_allowed", [](Anchor& a) { a.tenants = {"acme/shop", "acme/shop/*"}; }},
      {"operation_not_allowed", [](Anchor& a) { a.operations = {}; }},
  };
  for (const AnchorRow& row : rows) {
    Anchor anchor = anchor_of(1);
    row.change(anchor);
    EXPECT_EQ(answer(token_of(Kind::grant), anchors_of(anchor)), row.reason) << &row - rows;
  }
}

// A signature for one kind is none for another, even if everything else agrees.
TEST(Token, AKindDoesNotPassForAnother) {
  for (const Kind made : kinds)
    for (const Kind said : kinds) {
      Head head = head_of(said);
      head.key = thumbprint(key_of(1).public_key());
      head.tree_size = 1;
      const std::vector<uint8_t> header = encode_head(head);
      const std::vector<uint8_t> claims = *encode_claims(claims_of(said), said);
      const Signature signature =
          *sign_plainly(key_of(1), signed_bytes(made, header, leaf_hash(claims)));
      std::vector<uint8_t> proof;
      cbor::Writer(proof).array(3).u64(1).u64(0).array(0).end().end();
      std::vector<uint8_t> token;
      cbor::Writer out(token);
      out.array(2).array(4).bytes(header).map(1).u64(396).map(1).i64(-1).array(1).bytes(proof);
      out.end().end().end().null().bytes(signature).end().bytes(claims).end();
      EXPECT_EQ(answer(token), made == said ? "good" : "bad_signature");
    }
}

TEST(Token, ClaimsThatCannotBeIssued) {
  const std::pair<const char*, std::function<void(Claims&)>> rows[] = {
      {"neither endpoints nor egress", [](Claims& c) { c.endpoints.clear(); }},
      {"a term of 0 s", [](Claims& c) { c.ttl_s = 0; }},
      {"a term of 301 s", [](Claims& c) { c.ttl_s = 301; }},
      {"names a lease", [](Claims& c) { c.lease = LeaseAt{}; }},
      {"the tenant is empty", [](Claims& c) { c.tenant.clear(); }},
      {"UTF-8", [](Claims& c) { c.holder = "\xff"; }},
      {"a holder and a holder's key",
       [](Claims& c) {
         c.holder = "uid:1000";
         c.holder_key = Digest{};
       }},
      {"behind", [](Claims& c) { c.endpoints = {"web", "echo"}; }},
      {"behind", [](Claims& c) { c.endpoints = {"web", "web"}; }},
      {"expires before", [](Claims& c) { c.expires = c.issued_at; }},
  };
  for (const auto& [said, change] : rows) {
    Claims claims = claims_of(Kind::grant);
    change(claims);
    const auto tokens = issue(key_of(1), head_of(Kind::grant), std::span(&claims, 1));
    ASSERT_FALSE(tokens) << said;
    EXPECT_NE(tokens.error().message.find(said), std::string::npos) << tokens.error().message;
  }
}

// Points of small order and other encodings of a good signature, which a lax verifier takes.
TEST(Token, SignaturesThatOnlyALaxVerifierTakes) {
  const std::array<uint8_t, 3> message{1, 2, 3};
  const SecretKey key = key_of(1);
  const Signature good = *sign_plainly(key, message);
  ASSERT_TRUE(verify_signature(key.public_key(), message, good));
  // S + L, which is the same scalar.
  constexpr std::array<uint8_t, 32> order{0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58,
                                          0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
                                          0,    0,    0,    0,    0,    0,    0,    0,
                                          0,    0,    0,    0,    0,    0,    0,    0x10};
  Signature more = good;
  unsigned carry = 0;
  for (size_t i = 0; i < 32; ++i) {
    carry += more[32 + i] + order[i];
    more[32 + i] = static_cast<uint8_t>(carry);
    carry >>= 8;
  }
  EXPECT_FALSE(verify_signature(key.public_key(), message, more));
  // The neutral element as key and R, S = 0: good for every message where small orders are let in.
  PublicKey neutral{1};
  Signature nothing{1};
  EXPECT_FALSE(verify_signature(neutral, message, nothing));
  // The same point, not reduced: y = p + 1.
  PublicKey unreduced;
  unreduced.fill(0xff);
  unreduced[0] = 0xee;
  unreduced[31] = 0x7f;
  EXPECT_FALSE(verify_signature(unreduced, message, nothing));
}

}  // namespace
}  // namespace holdfast::token
