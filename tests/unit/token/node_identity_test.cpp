// With what a node signs: believed by who knows its name, and by nobody for another node, key or
// epoch.
#include "userspace/token/node_identity.hpp"

#include <map>

#include "tests/unit/token/fixture.hpp"

namespace holdfast::token {
namespace {

constexpr uint64_t epoch = 4;

std::vector<uint8_t> certificate() {
  const auto made = certify(key_of(9), epoch, key_of(6).public_key(), now_s);
  EXPECT_TRUE(made) << made.error().text();
  return *made;
}

// What becomes of it, for the node of the fixture.
std::string checked(std::span<const uint8_t> bytes) {
  const Result<EpochKey> read = check_certificate(bytes, node());
  return read ? "good" : std::string(read.error().code);
}

TEST(NodeIdentity, SaysWithWhatANodeSigns) {
  const Result<EpochKey> read = check_certificate(certificate(), node());
  ASSERT_TRUE(read) << read.error().text();
  EXPECT_EQ(
      *read,
      (EpochKey{.node = node(), .epoch = epoch, .key = key_of(6).public_key(), .issued_s = now_s}));
}

TEST(NodeIdentity, OnlyANodesOwnKeySaysIt) {
  const PublicKey key = key_of(6).public_key();
  EXPECT_EQ(checked(*certify(key_of(8), epoch, key, now_s)), "wrong_node");
  // In the node's name, by another key, or by its own and in another's name.
  SignedHeader header{.audience = node(), .issued_s = now_s};
  header.epoch = epoch;
  EXPECT_EQ(checked(*make_signed(key_of(8), Purpose::epoch_key, header, key)), "wrong_node");
  header.audience = node_name(key_of(8).public_key());
  EXPECT_EQ(checked(*make_signed(key_of(9), Purpose::epoch_key, header, key)), "wrong_node");
  // No key at all.
  header.audience = node();
  EXPECT_EQ(checked(*make_signed(key_of(9), Purpose::epoch_key, header, key)), "good");
  EXPECT_EQ(checked(*make_signed(key_of(9), Purpose::epoch_key, header, std::span(key).first(31))),
            "malformed_signed");
  EXPECT_EQ(check_certificate(certificate(), "").error().code, "wrong_node");
}

TEST(NodeIdentity, EveryTruncationAndEveryBit) {
  const std::vector<uint8_t> bytes = certificate();
  for (size_t size = 0; size < bytes.size(); ++size)
    ASSERT_EQ(checked(std::span(bytes).first(size)), "malformed_signed") << size;
  std::map<std::string, size_t> codes;
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::vector<uint8_t> damaged = bytes;
    damaged[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
    ++codes[checked(damaged)];
  }
  EXPECT_EQ(codes["good"], 0U);
  EXPECT_GT(codes["bad_signature"], 8 * (64 + 32));  // signature and epoch key
  EXPECT_GT(codes["wrong_node"], 8 * 64);            // the key and its thumbprint
}

TEST(NodeIdentity, ItsKeySignsUseTokensOnly) {
  const Revocations none;
  const Place place{.node = node(), .epoch = epoch, .now_s = now_s, .revoked = none};
  Anchors own;
  own.add(own_anchor(node(), key_of(6).public_key()));
  for (const Kind kind : {Kind::grant, Kind::renew, Kind::use}) {
    Claims claims = claims_of(kind);
    Head head = head_of(kind);
    claims.issuer = head.issuer = node();
    const auto answered = [&](uint8_t key) -> std::string_view {
      const auto tokens = issue(key_of(key), head, std::span(&claims, 1));
      const Checked<Verified> verified = verify(tokens->front(), own, place);
      return verified ? "good" : name_of(verified.error().why);
    };
    EXPECT_EQ(answered(6), kind == Kind::use ? "good" : "key_not_for_tokens");
    EXPECT_EQ(answered(5), "unknown_key");  // of an earlier start
    EXPECT_EQ(answered(9), "unknown_key");  // its own key signs certificates
  }
}

// ---- reports

constexpr std::string_view content = "what it has and is";

std::vector<uint8_t> said_by(Purpose purpose, uint8_t key, std::span<const uint8_t> by,
                             uint64_t of = epoch) {
  StatementFor target{.audience = "cp.example", .challenge = {}};
  target.challenge.fill(7);
  if (purpose == Purpose::notice) target.sequence = 300;
  const auto made =
      sign_statement(purpose, key_of(key), of, by, target, now_s,
                     {reinterpret_cast<const uint8_t*>(content.data()), content.size()});
  EXPECT_TRUE(made) << made.error().text();
  return *made;
}

std::vector<uint8_t> report_by(uint8_t key, std::span<const uint8_t> by, uint64_t of = epoch) {
  return said_by(Purpose::report, key, by, of);
}

std::string report_checked(std::span<const uint8_t> bytes, std::string_view whose = node()) {
  const Result<Statement> read = check_statement(Purpose::report, bytes, whose);
  return read ? "good" : std::string(read.error().code);
}

TEST(NodeStatement, IsBelievedByTheNodesNameAlone) {
  for (const Purpose purpose : {Purpose::report, Purpose::notice}) {
    const Result<Statement> read =
        check_statement(purpose, said_by(purpose, 6, certificate()), node());
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_EQ(read->by.node, node());
    EXPECT_EQ(read->by.epoch, epoch);
    EXPECT_EQ(read->target.audience, "cp.example");
    EXPECT_EQ(read->target.challenge[31], 7);
    EXPECT_EQ(read->target.sequence, purpose == Purpose::notice ? 300 : 0);
    EXPECT_EQ(read->issued_s, now_s);
    EXPECT_EQ(std::string(read->content.begin(), read->content.end()), content);
  }
}

TEST(NodeStatement, OneIsNotTheOther) {
  const auto notice = said_by(Purpose::notice, 6, certificate());
  const auto report = report_by(6, certificate());
  EXPECT_EQ(report_checked(notice), "wrong_purpose");
  EXPECT_EQ(check_statement(Purpose::notice, report, node()).error().code, "wrong_purpose");
}

TEST(NodeReport, IsOfThatNodeKeyAndEpoch) {
  EXPECT_EQ(report_checked(report_by(6, certificate()), node_name(key_of(8).public_key())),
            "wrong_node");
  EXPECT_EQ(report_checked(report_by(5, certificate())), "wrong_key");
  EXPECT_EQ(report_checked(report_by(9, certificate())), "wrong_key");  // its own, uncertified
  EXPECT_EQ(report_checked(report_by(6, certificate(), epoch + 1)), "wrong_key");
  // Another's certificate, one that is damaged, none, and something else that the node signed.
  EXPECT_EQ(report_checked(report_by(6, *certify(key_of(8), epoch, key_of(6).public_key(), now_s))),
            "wrong_node");
  std::vector<uint8_t> damaged = certificate();
  damaged.back() ^= 1;
  EXPECT_EQ(report_checked(report_by(6, damaged)), "bad_signature");
  EXPECT_EQ(report_checked(report_by(6, {})), "malformed_signed");
  EXPECT_EQ(report_checked(report_by(6, report_by(6, {}))), "wrong_purpose");
  EXPECT_EQ(report_checked(certificate()), "wrong_purpose");
  // A node whose key signs by itself.
  const auto own = certify(key_of(9), epoch, key_of(9).public_key(), now_s);
  EXPECT_EQ(report_checked(report_by(9, *own)), "good");
}

TEST(NodeReport, EveryTruncationAndEveryBit) {
  const std::vector<uint8_t> bytes = report_by(6, certificate());
  for (size_t size = 0; size < bytes.size(); ++size)
    ASSERT_EQ(report_checked(std::span(bytes).first(size)), "malformed_signed") << size;
  std::map<std::string, size_t> codes;
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::vector<uint8_t> bad = bytes;
    bad[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
    ++codes[report_checked(bad)];
  }
  EXPECT_EQ(codes["good"], 0U);
  EXPECT_GT(codes["bad_signature"], 8 * (64 + 32 + content.size()));
}

}  // namespace
}  // namespace holdfast::token
