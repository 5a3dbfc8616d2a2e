// decide_grant(): valid and invalid requests side by side.
#include "policy/decide.hpp"

#include <gtest/gtest.h>

#include "policy/address.hpp"
#include "policy/parse.hpp"

namespace holdfast {
namespace {

constexpr uint64_t second = 1'000'000'000;

const char* const text = R"(
version: 1
generation: 1
uplinks: [up0]
tenants:
  - id: 1
    name: a/b/c
    ports: [{name: p, interface: va, mac: "02:00:00:00:00:0a", addresses: [10.1.0.2, 10.1.0.3, "fd00::2"]}]
    endpoints:
      - {name: web, port: p, protocol: tcp, listen: 443}
      - {name: pool, port: p, protocol: udp, listen: 2000-2999}
      - {name: ping, port: p, protocol: icmp_echo}
  - id: 2
    name: x/y/z
    ports: [{name: q, interface: vb, mac: "02:00:00:00:00:0b", addresses: [10.2.0.2]}]
    endpoints: [{name: web2, port: q, protocol: tcp, listen: 443}]
)";

struct Case {
  const char* name;
  GrantRequest request;
  std::vector<std::string> resources;  // expected, if granted
  const char* code = nullptr;          // expected, if refused
};

GrantRequest ask(std::vector<std::string_view> endpoints, std::vector<std::string_view> egress = {},
                 uint64_t ttl_ns = 60 * second, const char* tenant = "a/b/c") {
  GrantRequest request;
  request.tenant = tenant;
  request.endpoints = std::move(endpoints);
  request.egress = std::move(egress);
  request.ttl_ns = ttl_ns;
  return request;
}

TEST(Decide, Grants) {
  const Result<Policy> policy = parse_policy(text, "test");
  ASSERT_TRUE(policy) << policy.error().text();
  const PolicyIndex index(*policy);
  const Case cases[] = {
      {"every address",
       ask({"web"}),
       {"web@10.1.0.2:443", "web@10.1.0.3:443", "web@[fd00::2]:443"}},
      {"one address", ask({"web@10.1.0.3"}), {"web@10.1.0.3:443"}},
      {"one address and port", ask({"pool@10.1.0.2:2500"}), {"pool@10.1.0.2:2500"}},
      {"IPv6 with a port", ask({"pool@[fd00::2]:2000"}), {"pool@[fd00::2]:2000"}},
      {"IPv6 in brackets", ask({"web@[fd00::2]"}), {"web@[fd00::2]:443"}},
      {"IPv6 alone", ask({"web@fd00::2"}), {"web@[fd00::2]:443"}},
      {"echo has no port", ask({"ping@10.1.0.2"}), {"ping@10.1.0.2"}},
      {"egress", ask({}, {"p"}), {"egress:p"}},
      {"both", ask({"web@10.1.0.2"}, {"p"}), {"web@10.1.0.2:443", "egress:p"}},
      {"longest term", ask({}, {"p"}, 300 * second), {"egress:p"}},
      {"no tenant", ask({"web"}, {}, second, "no/such/tenant"), {}, "no_such_tenant"},
      {"another tenant's endpoint", ask({"web2"}), {}, "no_such_endpoint"},
      {"no endpoint", ask({"nope"}), {}, "no_such_endpoint"},
      {"address it does not have", ask({"web@10.2.0.2"}), {}, "no_such_endpoint"},
      {"port it does not listen on", ask({"web@10.1.0.2:444"}), {}, "no_such_endpoint"},
      {"not an address", ask({"web@10.1.0"}), {}, "bad_address"},
      {"another tenant's port", ask({}, {"q"}), {}, "no_such_port"},
      {"nothing", ask({}), {}, "no_resources"},
      {"term 0", ask({"web"}, {}, 0), {}, "ttl_out_of_range"},
      {"term 301 s", ask({"web"}, {}, 301 * second), {}, "ttl_out_of_range"},
      {"a nanosecond too long", ask({"web"}, {}, 300 * second + 1), {}, "ttl_out_of_range"},
      {"more than a lease holds", ask({"pool"}), {}, "too_many_resources"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const Result<GrantPlan> plan = decide_grant(index, c.request);
    if (c.code != nullptr) {
      ASSERT_FALSE(plan);
      EXPECT_EQ(plan.error().code, c.code) << plan.error().text();
      continue;
    }
    ASSERT_TRUE(plan) << plan.error().text();
    std::vector<std::string> names;
    for (const Resource& resource : plan->resources) names.push_back(resource_name(resource));
    EXPECT_EQ(names, c.resources);
  }
}

TEST(Decide, APeerTakesTheAddressesOfItsFamily) {
  const Result<Policy> policy = parse_policy(text, "test");
  ASSERT_TRUE(policy);
  const PolicyIndex index(*policy);
  GrantRequest request = ask({"web"});
  request.peer = *parse_prefix("2001:db8::/32");
  const Result<GrantPlan> plan = decide_grant(index, request);
  ASSERT_TRUE(plan);
  ASSERT_EQ(plan->resources.size(), 1U);
  EXPECT_EQ(resource_name(plan->resources[0]), "web@[fd00::2]:443");
  request.egress = {"p"};
  const Result<GrantPlan> refused = decide_grant(index, request);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, "peer_on_egress");
}

TEST(Decide, SelectsEveryMember) {
  const Result<Policy> policy = parse_policy(text, "test");
  ASSERT_TRUE(policy);
  const PolicyIndex index(*policy);
  const Result<std::vector<Resource>> members = select_members(index, ask({"pool"}));
  ASSERT_TRUE(members);
  EXPECT_EQ(members->size(), 3000U);
  EXPECT_EQ(resource_name(members->back()), "pool@[fd00::2]:2999");
  EXPECT_FALSE(select_members(index, ask({"pool"}, {"p"})));
}

TEST(Renewal, AHolderWaitsUntilAQuarterOfTheNewTermIsGone) {
  constexpr uint64_t s = 1'000'000'000;
  EXPECT_TRUE(check_renewal(0, 60 * s));
  EXPECT_TRUE(check_renewal(45 * s, 60 * s));
  EXPECT_TRUE(check_renewal(60 * s, 300 * s)) << "a longer term than the last";
  const Status early = check_renewal(50 * s, 60 * s);
  ASSERT_FALSE(early);
  EXPECT_EQ(early.error().code, "renewed_too_early");
  EXPECT_NE(early.error().next_step.find("in 5"), std::string::npos) << early.error().next_step;
  EXPECT_FALSE(check_renewal(50 * s, 10 * s)) << "a shorter one";
}

}  // namespace
}  // namespace holdfast
