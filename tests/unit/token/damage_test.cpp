// Every truncation and every flipped bit of tokens, and everything appended: refused, with a
// reason.
#include <map>

#include "tests/unit/token/fixture.hpp"

namespace holdfast::token {
namespace {

// One of a tree of one, and one from the middle of a tree.
std::vector<std::vector<uint8_t>> samples() {
  std::vector<Claims> five;
  for (uint8_t i = 0; i < 5; ++i) five.push_back(claims_of(Kind::use, i));
  const auto tokens = issue(key_of(1), head_of(Kind::use), five);
  return {token_of(Kind::grant), (*tokens)[2], (*tokens)[4]};
}

TEST(Damage, EveryTruncation) {
  for (const std::vector<uint8_t>& token : samples()) {
    ASSERT_EQ(answer(token), "good");
    for (size_t size = 0; size < token.size(); ++size)
      ASSERT_EQ(answer(std::span(token).first(size)), "malformed") << size;
  }
}

TEST(Damage, EveryBit) {
  for (const std::vector<uint8_t>& token : samples()) {
    std::map<std::string, int> reasons;
    for (size_t bit = 0; bit < 8 * token.size(); ++bit) {
      std::vector<uint8_t> damaged = token;
      damaged[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
      const std::string reason = answer(damaged);
      ASSERT_NE(reason, "good") << "bit " << bit;
      ++reasons[reason];
    }
    // Claims are not looked at before the signature holds: nothing about them may be said.
    for (const char* later :
         {"bad_claims", "claims_differ", "expired", "not_yet_valid", "tenant_not_allowed"})
      EXPECT_EQ(reasons.count(later), 0) << later;
    EXPECT_GT(reasons["bad_signature"], 100);
  }
}

TEST(Damage, SomethingBehind) {
  std::vector<uint8_t> token = token_of(Kind::grant);
  token.push_back(0xf6);
  EXPECT_EQ(answer(token), "malformed");
}

TEST(Damage, Text) {
  const std::string text = to_text(token_of(Kind::grant));
  EXPECT_TRUE(from_text(text));
  for (const std::string& bad : {std::string(), text + "=", text + "\n", " " + text,
                                 text.substr(1) + "+", std::string(20000, 'A')})
    EXPECT_FALSE(from_text(bad)) << bad.size();
}

}  // namespace
}  // namespace holdfast::token
