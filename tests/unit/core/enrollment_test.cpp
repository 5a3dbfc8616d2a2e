// P6, G11, G12: one answer to one request, in time; and after a crash at any moment it is the
// former state or the new one.
#include "userspace/daemon/enrollment.hpp"

#include "tests/unit/core/directory.hpp"
#include "userspace/token/signed.hpp"

namespace holdfast {
namespace {

constexpr uint64_t now_s = 1'800'000'000;

token::Digest digest_of(uint8_t number) {
  token::Digest digest{};
  digest.fill(number);
  return digest;
}

token::SignerKey key_of(uint8_t number) {
  token::Digest seed{};
  seed.fill(number);
  return {.key = token::SecretKey::from_seed(seed).public_key()};
}

token::Digest name_of(const token::SignerKey& key) {
  return token::thumbprint(key.key);
}

const token::SignerKey root = key_of(3);
const token::Digest node_key = digest_of(40);
const token::Digest nonce = digest_of(1);
const token::Digest before = digest_of(50);  // policies
const token::Digest after = digest_of(51);

token::SignedHeader header_of(const token::SignerKey& key = root,
                              const token::Digest& answered = nonce) {
  token::SignedHeader header;
  header.key = name_of(key);
  header.generation = 5;
  header.nonce = answered;
  header.root = key;
  return header;
}

BundleRecord bundle_of(const token::SignerKey& key, uint64_t generation) {
  BundleRecord record;
  record.generation = generation;
  record.key = name_of(key);
  return record;
}

Enrollment open_in(const Directory& state) {
  Result<Enrollment> opened = Enrollment::open(state.path(), node_key);
  EXPECT_TRUE(opened) << opened.error().text();
  return std::move(*opened);
}

Enrollment pending_in(const Directory& state) {
  Enrollment made = open_in(state);
  EXPECT_TRUE(made.begin(name_of(root), nonce, {"*"}, 3600, now_s, 0));
  return made;
}

template <typename T>
std::string code_of(const Result<T>& result) {
  return result ? "" : std::string(result.error().code);
}

TEST(Enrollment, FollowsTheLifeOfANode) {
  const Directory state;
  Enrollment made = open_in(state);
  EXPECT_EQ(made.state(before), EnrollmentState::unenrolled);
  EXPECT_TRUE(made.may_lease(nullptr, before));
  EXPECT_TRUE(made.may_push());
  EXPECT_EQ(code_of(made.end(before, false, now_s, 0)), "not_enrolled");
  EXPECT_EQ(code_of(made.judge(header_of(), now_s)), "not_pending");

  ASSERT_TRUE(made.begin(name_of(root), nonce, {"a", "b"}, 3600, now_s, 7));
  EXPECT_EQ(open_in(state).record(), made.record());
  EXPECT_EQ(made.state(before), EnrollmentState::pending);
  EXPECT_EQ(code_of(made.may_lease(nullptr, before)), "enrollment_pending");
  EXPECT_EQ(code_of(made.may_push()), "enrollment_pending");
  EXPECT_FALSE(made.root());

  const Result<token::Anchor> anchor = made.judge(header_of(), now_s + 3599);
  ASSERT_TRUE(anchor) << anchor.error().text();
  EXPECT_TRUE(anchor->for_bundles);
  EXPECT_EQ(anchor->tenants, (std::vector<std::string>{"a", "b"}));
  ASSERT_TRUE(made.offer(header_of()));
  EXPECT_EQ(made.state(after), EnrollmentState::pending);
  made.accept(true, now_s + 9, 0);
  EXPECT_EQ(open_in(state).record(), made.record());
  EXPECT_EQ(made.state(after), EnrollmentState::enrolled);
  EXPECT_EQ(made.root()->thumbprint, name_of(root));
  const BundleRecord own = bundle_of(root, 6);
  const BundleRecord others = bundle_of(key_of(4), 6);
  EXPECT_TRUE(made.may_lease(&own, after));
  EXPECT_EQ(code_of(made.may_lease(&others, after)), "policy_not_of_root");
  EXPECT_EQ(code_of(made.may_lease(nullptr, after)), "policy_not_of_root");
  EXPECT_EQ(code_of(made.begin(name_of(root), nonce, {"*"}, 1, now_s, 0)), "already_enrolled");
  EXPECT_EQ(code_of(made.judge(header_of(), now_s)), "enroll_spent");
  EXPECT_EQ(code_of(made.judge(header_of(root, digest_of(2)), now_s)), "already_enrolled");

  ASSERT_TRUE(made.end(after, true, now_s + 10, 0));
  EXPECT_EQ(made.state(after), EnrollmentState::left);
  EXPECT_TRUE(open_in(state).ends_leases());
  EXPECT_EQ(code_of(made.end(after, true, now_s, 0)), "not_enrolled");
  EXPECT_FALSE(made.root());
  EXPECT_EQ(code_of(made.may_lease(&own, after)), "enrollment_ended");
  EXPECT_EQ(code_of(made.judge(header_of(), now_s)), "enroll_spent");
  // Asked again and given up, it has left as before; with another policy it is its own again.
  ASSERT_TRUE(made.begin(name_of(root), digest_of(2), {"*"}, 1, now_s, 0));
  EXPECT_EQ(code_of(made.judge(header_of(), now_s)), "enroll_spent");
  ASSERT_TRUE(made.end(after, false, now_s + 11, 0));
  EXPECT_EQ(made.state(after), EnrollmentState::left);
  EXPECT_EQ(made.state(before), EnrollmentState::unenrolled);
  EXPECT_TRUE(made.may_lease(nullptr, before));
}

TEST(Enrollment, GivenUpItIsAsBefore) {
  const Directory state;
  Enrollment made = pending_in(state);
  ASSERT_TRUE(made.end(before, false, now_s, 0));
  EXPECT_EQ(made.state(before), EnrollmentState::unenrolled);
  EXPECT_EQ(code_of(made.judge(header_of(), now_s)), "not_pending");
}

TEST(Enrollment, TakesOneAnswerByThePinnedKeyInTime) {
  const Directory state;
  Enrollment made = pending_in(state);
  token::SignedHeader forged = header_of();
  forged.root = key_of(4);  // under the right name
  const std::vector<std::pair<token::SignedHeader, std::string>> wrong{
      {header_of(key_of(4)), "wrong_root"},
      {forged, "wrong_root"},
      {header_of(root, digest_of(2)), "wrong_nonce"},
      {header_of(root, token::Digest()), "wrong_nonce"},
  };
  for (const auto& [header, code] : wrong) EXPECT_EQ(code_of(made.judge(header, now_s)), code);
  EXPECT_TRUE(made.judge(header_of(), now_s + 3599));
  EXPECT_EQ(code_of(made.judge(header_of(), now_s + 3600)), "enroll_expired");
  EXPECT_TRUE(made.is_pending());
  // The later request is the one that counts.
  ASSERT_TRUE(made.begin(name_of(root), digest_of(2), {"*"}, 60, now_s, 0));
  EXPECT_EQ(code_of(made.judge(header_of(), now_s)), "wrong_nonce");
  EXPECT_TRUE(made.judge(header_of(root, digest_of(2)), now_s));
}

TEST(Enrollment, OnlyAHashOfTheNonceIsKept) {
  const Directory state;
  pending_in(state);
  const std::string secret(nonce.begin(), nonce.end());
  EXPECT_EQ(state.read("enrollment").find(secret), std::string::npos);
}

// What was killed between the offer and its end is decided by the bundle that is in force.
TEST(Enrollment, AnOfferIsTakenOrTakenBack) {
  const BundleRecord answer = bundle_of(root, 5);
  const BundleRecord later = bundle_of(root, 6);
  const BundleRecord earlier = bundle_of(root, 4);
  const BundleRecord others = bundle_of(key_of(4), 5);
  const std::vector<std::pair<const BundleRecord*, bool>> cases{
      {nullptr, false}, {&others, false}, {&earlier, false}, {&answer, true}, {&later, true}};
  for (const auto& [in_force, taken] : cases) {
    const Directory state;
    {
      Enrollment made = pending_in(state);
      ASSERT_TRUE(made.offer(header_of()));
    }
    Enrollment again = open_in(state);
    ASSERT_TRUE(again.settle(in_force, after, now_s + 5));
    EXPECT_EQ(again.root().has_value(), taken);
    EXPECT_EQ(code_of(again.judge(header_of(), now_s)), taken ? "enroll_spent" : "");
    EXPECT_EQ(open_in(state).record(), again.record());
  }
  // Without an offer nothing is taken, whatever is in force.
  const Directory state;
  Enrollment made = pending_in(state);
  ASSERT_TRUE(made.settle(&answer, after, now_s));
  EXPECT_TRUE(made.is_pending());
  ASSERT_TRUE(made.offer(header_of()));
  ASSERT_TRUE(made.take_back());
  EXPECT_EQ(made.record(), pending_in(Directory()).record());
}

TEST(Enrollment, TakenOnlyInMemoryItIsStillAnOffer) {
  const Directory state;
  Enrollment made = pending_in(state);
  ASSERT_TRUE(made.offer(header_of()));
  made.accept(false, now_s, 0);
  EXPECT_EQ(made.state(after), EnrollmentState::enrolled);
  Enrollment again = open_in(state);
  EXPECT_TRUE(again.is_pending());
  ASSERT_TRUE(again.settle(nullptr, before, now_s));
  EXPECT_TRUE(again.judge(header_of(), now_s));
}

TEST(Enrollment, LeavesAtTermAndThenAtOnce) {
  const Directory state;
  Enrollment made = pending_in(state);
  ASSERT_TRUE(made.offer(header_of()));
  made.accept(true, now_s, 0);
  ASSERT_TRUE(made.end(after, false, now_s + 1, 0));
  EXPECT_FALSE(made.ends_leases());
  EXPECT_EQ(code_of(made.end(after, false, now_s + 2, 0)), "not_enrolled");
  EXPECT_EQ(code_of(made.end(before, true, now_s + 2, 0)), "not_enrolled");
  ASSERT_TRUE(made.end(after, true, now_s + 2, 0));
  EXPECT_TRUE(made.ends_leases());
  EXPECT_EQ(made.state(after), EnrollmentState::left);
  // Once another policy was in force, the one that was left is not so again.
  Enrollment again = open_in(state);
  ASSERT_TRUE(again.settle(nullptr, after, now_s));
  EXPECT_EQ(again.state(after), EnrollmentState::left);
  ASSERT_TRUE(again.settle(nullptr, before, now_s));
  EXPECT_EQ(again.state(after), EnrollmentState::unenrolled);
  EXPECT_EQ(code_of(open_in(state).judge(header_of(), now_s)), "enroll_spent");
}

// A node that has lost its key is another one, and was never enrolled.
TEST(Enrollment, ARecordOfAnotherNodeIsOneThatLeft) {
  const BundleRecord own = bundle_of(root, 5);
  const Directory state;
  Enrollment made = pending_in(state);
  ASSERT_TRUE(made.offer(header_of()));
  made.accept(true, now_s, 0);
  EXPECT_EQ(made.record().node, node_key);
  const std::string enrolled = state.read("enrollment");
  Enrollment same = open_in(state);
  ASSERT_TRUE(same.settle(&own, after, now_s + 5));
  EXPECT_EQ(same.state(after), EnrollmentState::enrolled);
  EXPECT_TRUE(same.root());

  Result<Enrollment> other = Enrollment::open(state.path(), digest_of(41));
  ASSERT_TRUE(other);
  EXPECT_FALSE(other->root());  // not even until it is settled
  ASSERT_TRUE(other->settle(&own, after, now_s + 5));
  EXPECT_EQ(other->state(after), EnrollmentState::left);
  EXPECT_TRUE(other->has_left(after));
  EXPECT_FALSE(other->ends_leases());
  EXPECT_EQ(code_of(other->may_lease(&own, after)), "enrollment_ended");
  EXPECT_EQ(code_of(other->judge(header_of(), now_s)), "enroll_spent");
  EXPECT_EQ(other->record().node, digest_of(41));
  // With its key back it has left all the same; with the record of then, it is enrolled.
  Enrollment back = open_in(state);
  ASSERT_TRUE(back.settle(&own, after, now_s + 6));
  EXPECT_EQ(back.state(after), EnrollmentState::left);
  state.write("enrollment", enrolled);
  EXPECT_TRUE(open_in(state).root());

  // A request by another's key is as good as an enrollment under it: nothing opens by itself.
  const Directory asked;
  pending_in(asked);
  Result<Enrollment> next = Enrollment::open(asked.path(), digest_of(41));
  ASSERT_TRUE(next);
  ASSERT_TRUE(next->settle(nullptr, before, now_s));
  EXPECT_EQ(next->state(before), EnrollmentState::left);
  EXPECT_EQ(code_of(next->judge(header_of(), now_s)), "not_pending");
  EXPECT_EQ(next->state(after), EnrollmentState::unenrolled);
}

TEST(Enrollment, WhatCannotBeWrittenIsNotSo) {
  const Directory state;
  Enrollment made = pending_in(state);
  const EnrollmentRecord was = made.record();
  // A directory in the place of the file that is written beside.
  std::filesystem::create_directory(state.path() + "/enrollment.new");
  EXPECT_FALSE(made.offer(header_of()));
  EXPECT_FALSE(made.begin(name_of(key_of(4)), digest_of(2), {"*"}, 60, now_s, 0));
  EXPECT_FALSE(made.end(before, true, now_s, 0));
  EXPECT_EQ(made.record(), was);
  EXPECT_EQ(open_in(state).record(), was);
}

TEST(Enrollment, TenantsAreThoseOfTheEnrollment) {
  const Directory state;
  Enrollment made = open_in(state);
  ASSERT_TRUE(made.begin(name_of(root), nonce, {"a"}, 60, now_s, 0));
  Policy policy;
  EXPECT_TRUE(made.covers(policy));
  policy.tenants.resize(1);
  policy.tenants[0].name = "a";
  EXPECT_TRUE(made.covers(policy));
  policy.tenants.resize(2);
  policy.tenants[1].name = "b";
  EXPECT_EQ(code_of(made.covers(policy)), "tenant_not_enrolled");
  ASSERT_TRUE(made.begin(name_of(root), nonce, {"*"}, 60, now_s, 0));
  EXPECT_TRUE(made.covers(policy));
}

TEST(Enrollment, EveryDamageIsFound) {
  const Directory state;
  Enrollment made = pending_in(state);
  ASSERT_TRUE(made.offer(header_of({root.key, "ssh:"})));
  const std::string good = state.read("enrollment");
  EXPECT_EQ(open_in(state).record(), made.record());
  const auto opened = [&](const std::string& text) {
    state.write("enrollment", text);
    return code_of(Enrollment::open(state.path(), node_key));
  };
  EXPECT_EQ(opened(good + "x"), "enrollment_damaged");
  for (size_t at = 0; at < good.size(); ++at) {
    EXPECT_EQ(opened(good.substr(0, at)), "enrollment_damaged") << at;
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1 << bit);
      EXPECT_EQ(opened(bad), "enrollment_damaged") << at << " " << bit;
    }
  }
}

}  // namespace
}  // namespace holdfast
