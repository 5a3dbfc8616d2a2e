// A holder's proof: made as independent.py makes it, good on its own connection and nowhere else.
#include "userspace/token/proof.hpp"

#include <charconv>

#include "tests/unit/token/fixture.hpp"

namespace holdfast::token {
namespace {

// By make_proof() of independent.py, with the seed of key_of(3).
constexpr std::string_view golden =
    "84582ba201321078256170706c69636174696f6e2f686f6c64666173742d686f6c6465722d70726f6f662b63"
    "7774a0586ba403726e693a2f2f2f7368612d3235363b6e6f646508a101a301012006215820ed4928c628d1c2"
    "c6eae90338905995612959273a5c63f93636c14614ac8737d10a5820000102030405060708090a0b0c0d0e0f"
    "101112131415161718191a1b1c1d1e1f3a00010000a10104584041203097bd4e31950116d3a3d8d44f5f1f14"
    "8da2471339d950137654ae04e793fa5499960ecb544636e248099493e6e979e076a470b3dff23545aee77434"
    "0e0b";

std::vector<uint8_t> bytes_of(std::string_view hex) {
  std::vector<uint8_t> bytes(hex.size() / 2);
  for (size_t i = 0; i < bytes.size(); ++i)
    std::from_chars(&hex[2 * i], &hex[2 * i] + 2, bytes[i], 16);
  return bytes;
}

ProofPlace here() {
  ProofPlace place{.node = "ni:///sha-256;node", .epoch = 4};
  for (uint8_t i = 0; i < place.challenge.size(); ++i) place.challenge[i] = i;
  return place;
}

std::string_view code_of(const Result<Digest>& result) {
  return result ? "good" : result.error().code;
}

TEST(Proof, IsWhatTheOtherImplementationMakes) {
  EXPECT_EQ(*make_proof(key_of(3), here()), bytes_of(golden));
  const Result<Digest> key = check_proof(bytes_of(golden), here());
  ASSERT_TRUE(key) << key.error().text();
  EXPECT_EQ(*key, thumbprint(key_of(3).public_key()));
}

TEST(Proof, IsGoodOnItsOwnConnectionOnly) {
  const std::vector<uint8_t> proof = *make_proof(key_of(3), here());
  ProofPlace other = here();
  other.challenge[31] ^= 1;
  EXPECT_EQ(code_of(check_proof(proof, other)), "wrong_challenge");
  other = here();
  other.node = "ni:///sha-256;other";
  EXPECT_EQ(code_of(check_proof(proof, other)), "wrong_challenge");
  other = here();
  other.epoch = 5;
  EXPECT_EQ(code_of(check_proof(proof, other)), "wrong_challenge");
}

TEST(Proof, EveryTruncationAndEveryBit) {
  const std::vector<uint8_t> proof = *make_proof(key_of(3), here());
  for (size_t size = 0; size < proof.size(); ++size)
    ASSERT_EQ(code_of(check_proof(std::span(proof).first(size), here())), "malformed_proof");
  std::vector<uint8_t> longer = proof;
  longer.push_back(0);
  EXPECT_EQ(code_of(check_proof(longer, here())), "malformed_proof");
  size_t by_signature = 0;
  for (size_t bit = 0; bit < 8 * proof.size(); ++bit) {
    std::vector<uint8_t> damaged = proof;
    damaged[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
    const std::string_view code = code_of(check_proof(damaged, here()));
    ASSERT_TRUE(code == "malformed_proof" || code == "bad_signature") << "bit " << bit << code;
    by_signature += code == "bad_signature" ? 1 : 0;
  }
  EXPECT_GT(by_signature, 8 * (64 + 32 + 32)) << "signature, challenge and key are looked at";
}

// What a holder's key signs as a token is no proof, and a proof is no token.
TEST(Proof, ServesNoOtherPurpose) {
  EXPECT_EQ(code_of(check_proof(token_of(Kind::use), here())), "malformed_proof");
  EXPECT_EQ(answer(*make_proof(key_of(1), here())), "malformed");
}

}  // namespace
}  // namespace holdfast::token
