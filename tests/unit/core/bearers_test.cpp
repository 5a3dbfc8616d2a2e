// H11: tokens for reading, of which only the SHA-256 is kept; scoped, expiring, shown once.
#include "userspace/daemon/bearers.hpp"

#include <regex>

#include <sys/stat.h>

#include "tests/unit/core/directory.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/daemon/authority.hpp"

namespace holdfast {
namespace {

constexpr uint64_t now_ms = 1'800'000'000'000;
constexpr uint64_t hour_ms = 3600'000;

Bearer wanted(const std::string& name = "grafana") {
  return {.name = name,
          .environment = "prod",
          .scope = {"status", "lease.list"},
          .tenants = {"*"},
          .expires_wall_ms = now_ms + hour_ms,
          .by_uid = 7};
}

Bearers open(const Directory& state) {
  Result<Bearers> bearers = Bearers::open(state.path());
  EXPECT_TRUE(bearers) << bearers.error().text();
  return std::move(*bearers);
}

TEST(Bearers, ATokenIsToldOnceAndOnlyItsDigestKept) {
  const Directory state;
  Bearers bearers = open(state);
  const Result<std::string> token = bearers.create(wanted(), now_ms);
  ASSERT_TRUE(token) << token.error().text();
  EXPECT_TRUE(std::regex_match(*token, std::regex("hf_prod_[A-Za-z0-9_-]{43}"))) << *token;
  const std::string file = state.read("bearers");
  const token::Digest digest =
      token::sha256({reinterpret_cast<const uint8_t*>(token->data()), token->size()});
  EXPECT_NE(file.find(hex(digest)), std::string::npos);
  EXPECT_EQ(file.find(token->substr(8)), std::string::npos);
  struct stat status{};
  ASSERT_EQ(::stat((state.path() + "/bearers").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600U);
  const Result<std::string> other = bearers.create(wanted("other"), now_ms);
  ASSERT_TRUE(other);
  EXPECT_NE(*token, *other);
}

TEST(Bearers, OneIsGoodUntilItExpiresOrIsRevoked) {
  const Directory state;
  std::string token;
  {
    Bearers bearers = open(state);
    token = *bearers.create(wanted(), now_ms);
    EXPECT_TRUE(bearers.create(wanted("other"), now_ms));
  }
  Bearers bearers = open(state);  // of another run of the daemon
  const auto code = [&](std::string_view shown, uint64_t at_ms) {
    const Result<Bearer> found = bearers.judge(shown, at_ms);
    return found ? found->name : std::string(found.error().code);
  };
  EXPECT_EQ(code(token, now_ms), "grafana");
  EXPECT_EQ(code(token, now_ms + hour_ms - 1), "grafana");
  EXPECT_EQ(code(token, now_ms + hour_ms), "bearer_expired");
  EXPECT_EQ(code("", now_ms), "unknown_bearer");
  EXPECT_EQ(code("hf_prod_", now_ms), "unknown_bearer");
  EXPECT_EQ(code(token + "\n", now_ms), "unknown_bearer");
  EXPECT_EQ(code("hf_test" + token.substr(7), now_ms), "unknown_bearer") << "another environment";
  for (size_t at = 0; at < token.size(); ++at) {
    std::string wrong = token;
    wrong[at] = wrong[at] == 'A' ? 'B' : 'A';
    EXPECT_EQ(code(wrong, now_ms), "unknown_bearer") << at;
  }
  const token::Digest digest = bearers.judge(token, now_ms)->sha256;
  EXPECT_TRUE(bearers.judge_again(digest, now_ms));
  EXPECT_FALSE(bearers.judge_again(digest, now_ms + hour_ms));
  EXPECT_EQ(bearers.revoke("nobody").error().code, "no_such_bearer");
  ASSERT_TRUE(bearers.revoke("grafana"));
  ASSERT_TRUE(bearers.revoke("grafana")) << "again changes nothing";
  EXPECT_EQ(code(token, now_ms), "bearer_revoked");
  EXPECT_EQ(bearers.judge_again(digest, now_ms).error().code, "bearer_revoked");
  EXPECT_EQ(open(state).judge(token, now_ms).error().code, "bearer_revoked");
  EXPECT_EQ(open(state).all(), bearers.all());
}

TEST(Bearers, WhatIsWrongIsRefusedByName) {
  struct Case {
    const char* name;
    void (*change)(Bearer&);
    std::string_view code;  // empty: it is good
  };
  constexpr Case cases[] = {
      {"as it is", [](Bearer&) {}, ""},
      {"no name", [](Bearer& b) { b.name.clear(); }, "bearer_name"},
      {"a name of two words", [](Bearer& b) { b.name = "a b"; }, "bearer_name"},
      {"a name of two lines", [](Bearer& b) { b.name = "a\nb"; }, "bearer_name"},
      {"a long name", [](Bearer& b) { b.name = std::string(65, 'a'); }, "bearer_name"},
      {"a name as long as may be", [](Bearer& b) { b.name = std::string(64, 'a'); }, ""},
      {"no environment", [](Bearer& b) { b.environment.clear(); }, "bearer_environment"},
      {"one with a _", [](Bearer& b) { b.environment = "a_b"; }, "bearer_environment"},
      {"in capitals", [](Bearer& b) { b.environment = "PROD"; }, "bearer_environment"},
      {"for nothing", [](Bearer& b) { b.scope.clear(); }, "bearer_scope"},
      {"to change", [](Bearer& b) { b.scope = {"lease.revoke"}; }, "bearer_scope"},
      {"to make others", [](Bearer& b) { b.scope = {"bearer.create"}; }, "bearer_scope"},
      {"to say who asks", [](Bearer& b) { b.scope = {"session.bearer"}; }, "bearer_scope"},
      {"for all", [](Bearer& b) { b.scope = {"*"}; }, "bearer_scope"},
      {"for what is not there", [](Bearer& b) { b.scope = {"lease.read"}; }, "bearer_scope"},
      {"for one twice", [](Bearer& b) { b.scope = {"status", "status"}; }, "bearer_scope"},
      {"for a tenant", [](Bearer& b) { b.tenants = {"acme/shop/prod"}; }, ""},
      {"for no tenant", [](Bearer& b) { b.tenants.clear(); }, "bearer_tenants"},
      {"for one and all", [](Bearer& b) { b.tenants = {"a/b/c", "*"}; }, "bearer_tenants"},
      {"for a strange one", [](Bearer& b) { b.tenants = {"a,b"}; }, "bearer_tenants"},
      {"for many", [](Bearer& b) { b.tenants.assign(65, "a/b/c"); }, "bearer_tenants"},
      {"for 90 days", [](Bearer& b) { b.expires_wall_ms = now_ms + 90 * 24 * hour_ms; }, ""},
      {"for more", [](Bearer& b) { b.expires_wall_ms = now_ms + 90 * 24 * hour_ms + 1; },
       "bearer_life"},
      {"for no time", [](Bearer& b) { b.expires_wall_ms = now_ms; }, "bearer_life"},
      {"until before now", [](Bearer& b) { b.expires_wall_ms = now_ms - 1; }, "bearer_life"},
  };
  for (const Case& c : cases) {
    const Directory state;
    Bearers bearers = open(state);
    Bearer made = wanted();
    c.change(made);
    const Result<std::string> token = bearers.create(made, now_ms);
    EXPECT_EQ(token ? "" : token.error().code, c.code) << c.name;
    EXPECT_EQ(bearers.all().size(), token ? 1U : 0U) << c.name;
    EXPECT_EQ(open(state).all(), bearers.all()) << c.name;
  }
}

TEST(Bearers, EveryReadingVerbMayBeInAScope) {
  const Directory state;
  Bearers bearers = open(state);
  Bearer made = wanted();
  const std::vector<std::string_view> all = reading_verbs();
  made.scope.assign(all.begin(), all.end());
  made.by_key = token::Digest{1, 2, 3};
  ASSERT_TRUE(bearers.create(made, now_ms));
  EXPECT_EQ(open(state).all(), bearers.all());
  for (const std::string& verb : made.scope) EXPECT_EQ(reach_of(verb), Reach::reading) << verb;
}

TEST(Bearers, AConnectionThatHasShownOneAsksForNothingElseWhoeverItIs) {
  wire::Peer peer;
  peer.uid = 0;
  peer.role = wire::Role::operates;
  const auto may = [&](std::string_view verb, const cbor::Value& args = cbor::Value::map(),
                       std::shared_ptr<const wire::Principal> signer = {}) {
    wire::Request request;
    request.verb = verb;
    request.args = args;
    request.signer = std::move(signer);
    return may_ask(peer, request, reach_of(verb), false);
  };
  const std::string_view changes[] = {
      "lease.grant",   "lease.renew",  "lease.revoke",    "lease.release", "tenant.disable",
      "tenant.enable", "bundle.push",  "trust.revoke",    "trust.restore", "trust.rotate",
      "node.drain",    "node.disable", "node.quarantine", "node.resume",   "node.release",
      "node.detach",   "peer.suspend", "peer.resume",     "bearer.create", "bearer.revoke"};
  for (const std::string_view verb : changes) EXPECT_TRUE(may(verb)) << verb << ": the control";
  peer.bearer = std::make_shared<const wire::Principal>(
      wire::Principal{.name = "reader", .verbs = {"status"}, .tenants = {"*"}, .is_bearer = true});
  for (const std::string_view verb : changes)
    EXPECT_EQ(may(verb).error().code, "bearer_scope") << verb;
  for (const std::string_view verb : reading_verbs())
    EXPECT_EQ(may(verb).has_value(), verb == "status") << verb;
  EXPECT_FALSE(may("no.verb"));
  for (const std::string_view verb : {"session.challenge", "holder.prove", "operator.present"})
    EXPECT_TRUE(may(verb)) << verb;
  // What others have signed is not brought on it either; what is signed itself stands for itself.
  EXPECT_FALSE(may("lease.grant", cbor::Value::map({{"token", "x"}})));
  EXPECT_FALSE(may("bundle.push", cbor::Value::map({{"signed", true}})));
  const auto signer = std::make_shared<const wire::Principal>(
      wire::Principal{.name = "cp", .verbs = {"lease.revoke"}, .tenants = {"*"}});
  EXPECT_TRUE(may("lease.revoke", cbor::Value::map(), signer));
  EXPECT_FALSE(may("status", cbor::Value::map(), signer));
}

TEST(Bearers, NamesAreForThoseThatAreNotOver) {
  const Directory state;
  Bearers bearers = open(state);
  ASSERT_TRUE(bearers.create(wanted(), now_ms));
  EXPECT_EQ(bearers.create(wanted(), now_ms).error().code, "bearer_exists");
  ASSERT_TRUE(bearers.revoke("grafana"));
  ASSERT_TRUE(bearers.create(wanted(), now_ms));
  Bearer later = wanted();
  later.expires_wall_ms = now_ms + 3 * hour_ms;
  ASSERT_TRUE(bearers.create(later, now_ms + 2 * hour_ms));
  EXPECT_EQ(bearers.all().size(), 1U);
}

TEST(Bearers, ThereIsRoomForSoManyThatAreNotOver) {
  const Directory state;
  Bearers bearers = open(state);
  for (size_t i = 0; i < bearers_max; ++i)
    ASSERT_TRUE(bearers.create(wanted(fmt::format("b{}", i)), now_ms));
  EXPECT_EQ(bearers.create(wanted("one-more"), now_ms).error().code, "bearers_max");
  ASSERT_TRUE(bearers.revoke("b7"));
  ASSERT_TRUE(bearers.create(wanted("one-more"), now_ms));
  EXPECT_EQ(bearers.all().size(), bearers_max);
}

TEST(Bearers, WithADamagedFileNoneIsGood) {
  const Directory state;
  const std::string token = *open(state).create(wanted(), now_ms);
  const std::string good = state.read("bearers");
  const auto is_good = [&](const std::string& text) {
    state.write("bearers", text);
    return open(state).judge(token, now_ms).has_value();
  };
  EXPECT_TRUE(is_good(good));
  EXPECT_FALSE(is_good(good + "x"));
  for (size_t at = 0; at < good.size(); ++at) {
    EXPECT_FALSE(is_good(good.substr(0, at))) << at;
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1 << bit);
      EXPECT_FALSE(is_good(bad)) << at << " " << bit;
    }
  }
  Bearers bearers = open(state);
  ASSERT_TRUE(bearers.create(wanted(), now_ms)) << "a new one takes its place";
  EXPECT_EQ(open(state).all().size(), 1U);
}

TEST(Bearers, WhatCannotBeWrittenIsNotMadeAndIsRevoked) {
  const Directory state;
  Bearers bearers = open(state);
  const std::string token = *bearers.create(wanted(), now_ms);
  std::filesystem::remove_all(state.path());
  EXPECT_FALSE(bearers.create(wanted("other"), now_ms));
  EXPECT_EQ(bearers.all().size(), 1U);
  EXPECT_FALSE(bearers.revoke("grafana"));
  EXPECT_EQ(bearers.judge(token, now_ms).error().code, "bearer_revoked");
  std::filesystem::create_directory(state.path());
  EXPECT_TRUE(bearers.revoke("grafana")) << "asked again it is written";
  EXPECT_EQ(open(state).all(), bearers.all());
}

}  // namespace
}  // namespace holdfast
