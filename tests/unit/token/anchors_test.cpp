#include "tests/unit/token/fixture.hpp"

namespace holdfast::token {
namespace {

// The key of key_of(1), as `openssl pkey -pubout` prints it.
std::string anchor_text(std::string_view rest) {
  return "version: 1\nanchors:\n  - issuer: cp.example\n"
         "    key: MCowBQYDK2VwAyEAiojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=\n" +
         std::string(rest);
}

TEST(AnchorsFile, SaysWhoMaySignWhat) {
  const auto anchors = Anchors::parse(
      anchor_text("    state: retiring\n    uses: [token, operator, schedule]\n    tenants: "
                  "[a/b/c]\n    operations: ['*']\n    life: 2m\n"),
      "f");
  ASSERT_TRUE(anchors) << anchors.error().text();
  const Anchor* anchor = anchors->find(thumbprint(key_of(1).public_key()));
  ASSERT_NE(anchor, nullptr);
  EXPECT_EQ(anchor->issuer, "cp.example");
  EXPECT_EQ(anchor->state, KeyState::retiring);
  EXPECT_TRUE(anchor->for_tokens);
  EXPECT_EQ(anchor->tenants, std::vector<std::string>{"a/b/c"});
  EXPECT_EQ(anchor->operations, std::vector<std::string>{"*"});
  EXPECT_EQ(anchor->life_max_s, 120U);
  EXPECT_TRUE(anchor->for_operators);
  EXPECT_TRUE(anchor->for_schedules);
  EXPECT_FALSE(anchor->for_requests);
  EXPECT_FALSE(anchors->signatures_needed);
}

TEST(AnchorsFile, SaysWhoMayAsk) {
  const auto anchors = Anchors::parse(
      "version: 1\nunsigned: tighten\nanchors:\n"
      "  - {issuer: ann, ssh_key: ssh-ed25519 "
      "AAAAC3NzaC1lZDI1NTE5AAAAIIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c ann@laptop, "
      "uses: [request], verbs: [lease.grant], tenants: [a/b/c]}\n"
      "  - {issuer: bob, ssh_key: sk-ssh-ed25519@openssh.com "
      "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIO1JKMYo0cLG6ukDOJBZlWEpWSc6XGP5NjbBRhSshzfRAAAA"
      "BHN"
      "zaDo= bob, uses: [request, bundle], verbs: ['*'], tenants: ['*']}\n",
      "f");
  ASSERT_TRUE(anchors) << anchors.error().text();
  EXPECT_TRUE(anchors->signatures_needed);
  const Anchor* ann = anchors->find(thumbprint(key_of(1).public_key()));
  ASSERT_NE(ann, nullptr) << "an SSH key is known by the key that it is";
  EXPECT_EQ(ann->verbs, std::vector<std::string>{"lease.grant"});
  EXPECT_EQ(ann->application, "");
  const Anchor* bob = anchors->find(thumbprint(key_of(3).public_key()));
  ASSERT_NE(bob, nullptr);
  EXPECT_EQ(bob->application, "ssh:");
  EXPECT_TRUE(bob->for_bundles && bob->for_requests);
}

TEST(AnchorsFile, WhatIsRefusedSaysWhere) {
  const std::string good = "    uses: [token]\n    tenants: ['*']\n";
  ASSERT_TRUE(Anchors::parse(anchor_text(good), "f"));
  const std::pair<std::string, std::string> rows[] = {
      {"version: 2\nanchors: []\n", "f:1: the only version is 1"},
      {"version: 1\n", "\"anchors\" is missing"},
      {"version: 1\nanchors: {}\n", "f:2: anchors is a list"},
      {"version: 1\nanchors: []\nmore: 1\n", "f:3: there is no \"more\" here"},
      {anchor_text(""), "\"uses\" is missing"},
      {anchor_text(good + "    state: old\n"), "f:7: no such state"},
      {anchor_text(good + "    life: 301s\n"), "f:7: 301s is not 1 to 300 whole seconds"},
      {anchor_text(good + "    life: 60\n"), "f:7: 60 is not 1 to 300 whole seconds"},
      {anchor_text("    uses: [signing]\n    tenants: []\n"), "f:5: a key has no use \"signing\""},
      {anchor_text("    uses: token\n    tenants: []\n"), "f:5: \"uses\" is a list"},
      {anchor_text(good + "    uses: [token]\n"), "f:7: \"uses\" is given twice"},
      {"version: 1\nanchors:\n  - {issuer: a, key: abc, uses: [token], tenants: []}\n",
       "f:3: no Ed25519 public key"},
      {anchor_text(good) + anchor_text(good).substr(20), "stands here twice"},
      {"version: 1\nunsigned: read\nanchors: []\n", "f:2: no such right of who does not sign"},
      {anchor_text("    uses: [request]\n    tenants: ['*']\n"), "f:5: a key that signs requests"},
      {anchor_text("    uses: [bundle]\n    tenants: [a/b/c]\n"),
       "f:5: a bundle is the policy of all"},
      {anchor_text(good + "    ssh_key: ssh-ed25519 AAAA\n"), "an anchor has a key, or an ssh_key"},
      {"version: 1\nanchors:\n  - {issuer: a, ssh_key: ssh-rsa AAAA, uses: [request], verbs: [], "
       "tenants: []}\n",
       "f:3: that is no Ed25519 key of OpenSSH's"},
  };
  for (const auto& [text, said] : rows) {
    const auto anchors = Anchors::parse(text, "f");
    ASSERT_FALSE(anchors) << text;
    EXPECT_NE(anchors.error().message.find(said), std::string::npos)
        << anchors.error().message << "\n"
        << text;
  }
}

}  // namespace
}  // namespace holdfast::token
