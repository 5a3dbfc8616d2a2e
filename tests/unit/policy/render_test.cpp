// Policies as text: the canonical form reads back as itself, and differences are told in words.
#include "policy/render.hpp"

#include <algorithm>
#include <random>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "policy/address.hpp"
#include "policy/parse.hpp"
#include "policy/runs.hpp"

namespace holdfast {
namespace {

using Lines = std::vector<std::string>;

// A valid policy, another for each seed.
class RandomPolicy {
 public:
  explicit RandomPolicy(uint32_t seed) : random_(seed) {}

  Policy make() {
    Policy policy;
    policy.generation = 1 + below(1000);
    for (uint32_t i = 0; i < 1 + below(3); ++i)
      policy.uplinks.push_back(fmt::format("up{}\"\\", i));
    for (uint32_t i = 0; i < 1 + below(8); ++i)
      policy.failsafe_ports.push_back(static_cast<uint16_t>(20 + i));
    for (uint32_t i = 0; i < below(4); ++i) {
      Listener listener{
          below(2) == 0 ? Protocol::tcp : Protocol::udp, static_cast<uint16_t>(9000 + i), {}};
      for (uint32_t j = 0; j < below(3); ++j) {
        listener.from.push_back(*parse_prefix(below(2) == 0 ? fmt::format("10.{}.0.0/16", j)
                                                            : fmt::format("fd{:02}::/16", j)));
      }
      policy.listeners.push_back(listener);
    }
    policy.leases_max = 1000 + below(1000);
    uint32_t tenants = below(4);
    for (uint32_t i = 0; i < tenants; ++i) policy.tenants.push_back(make_tenant(i));
    return policy;
  }

 private:
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }

  Tenant make_tenant(uint32_t index) {
    Tenant tenant;
    tenant.id = 1 + index + (below(2) == 0 ? 0 : uint64_t{1} << 62);
    tenant.name = fmt::format("org/app-{}/e{}", below(10), index);
    tenant.leases_max = 1 + below(1000);
    tenant.flows_max = 64 + below(1000);
    uint32_t ports = below(4);
    for (uint32_t i = 0; i < ports; ++i) tenant.ports.push_back(make_port(index, i));
    if (ports == 0) return tenant;
    uint32_t endpoints = below(6);
    for (uint32_t i = 0; i < endpoints; ++i) {
      Endpoint endpoint;
      endpoint.name = fmt::format("e_{}.x", i);
      endpoint.port = below(ports);
      const std::vector<Address>& addresses = tenant.ports[endpoint.port].addresses;
      for (const Address& address : addresses) {
        if (below(2) == 0) endpoint.addresses.push_back(address);
      }
      if (below(2) == 0 || endpoint.addresses.empty()) {
        endpoint.addresses = addresses;
        std::erase_if(endpoint.addresses, is_link_local_v6);
      }
      endpoint.protocol = i == 0          ? Protocol::icmp_echo
                          : below(2) == 0 ? Protocol::tcp
                                          : Protocol::udp;
      if (i > 0) {
        auto first = static_cast<uint16_t>(1000 * i);
        endpoint.listen = {first, static_cast<uint16_t>(first + below(3) * 20)};
      }
      tenant.endpoints.push_back(endpoint);
    }
    return tenant;
  }

  TenantPort make_port(uint32_t tenant, uint32_t index) {
    TenantPort port;
    port.name = fmt::format("p{}", index);
    port.interface = fmt::format("veth{}-{}", tenant, index);
    port.mac = *parse_mac(fmt::format("02:00:00:00:{:02x}:{:02x}", tenant, index));
    port.addresses.push_back(*parse_address(fmt::format("10.{}.{}.255", tenant, index)));
    for (uint32_t i = 0; i < below(40); ++i) {
      if (below(3) > 0)
        port.addresses.push_back(*parse_address(fmt::format("10.{}.{}.{}", tenant, index, 10 + i)));
      if (below(3) == 0)
        port.addresses.push_back(*parse_address(fmt::format("fd00:{}:{}::{:x}", tenant, index, i)));
    }
    if (below(2) == 0)
      port.addresses.push_back(*parse_address(fmt::format("fe80::{}:{}", tenant + 1, index)));
    std::ranges::sort(port.addresses);
    return port;
  }

  std::mt19937 random_;
};

TEST(RenderPolicy, ReadsBackAsItself) {
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    Policy policy = RandomPolicy(seed).make();
    std::string text =
        render_policy_json(policy, seed % 2 == 0 ? JsonLayout::compact : JsonLayout::indented);
    Result<Policy> again = parse_policy(text, "rendered");
    ASSERT_TRUE(again) << seed << ": " << again.error().text() << "\n" << text;
    ASSERT_EQ(*again, policy) << seed << "\n" << text;
    EXPECT_EQ(diff_policies(policy, *again), Lines{});
  }
}

TEST(RenderPolicy, Canonical) {
  Result<Policy> policy = parse_policy(R"(
tenants:
- name: a/b/c
  id: 1
  endpoints:
  - {name: some, port: p, protocol: udp, listen: 1000-1001, addresses: [10.0.0.3, 10.0.0.2]}
  - {name: all, port: p, protocol: tcp, listen: 443}
  ports:
  - {name: p, interface: v, mac: 02:00:00:00:00:0A, addresses: [10.0.0.3, 10.0.0.2, 10.0.0.1, 10.0.0.0]}
uplinks: [uplink0]
generation: 7
version: 1
)",
                                       "p.yaml");
  ASSERT_TRUE(policy) << policy.error().text();
  EXPECT_EQ(
      render_policy_json(*policy),
      R"({"version":1,"generation":7,"uplinks":["uplink0"],"failsafe_ports":[22],"listeners":[],)"
      R"("limits":{"leases":65536},"tenants":[{"id":1,"name":"a/b/c","limits":{"leases":65536,"flows":16384},)"
      R"("ports":[{"name":"p","interface":"v","mac":"02:00:00:00:00:0a","addresses":["10.0.0.0/30"]}],)"
      R"("endpoints":[{"name":"some","port":"p","protocol":"udp","listen":"1000-1001","addresses":["10.0.0.2/31"]},)"
      R"({"name":"all","port":"p","protocol":"tcp","listen":443}]}]})"
      "\n");
}

Policy sample() {
  Result<Policy> policy = parse_policy(R"(
version: 1
generation: 7
uplinks: [uplink0]
listeners: [{protocol: tcp, port: 9100, from: [10.0.0.0/8]}]
tenants:
- id: 1
  name: acme/shop/prod
  ports:
  - {name: web0, interface: veth-a, mac: 02:00:00:00:00:0a, addresses: [10.1.0.2, "fd00:1::2", 10.1.4.0/28]}
  endpoints:
  - {name: web, port: web0, protocol: tcp, listen: 443, addresses: [10.1.0.2, "fd00:1::2"]}
  - {name: pool, port: web0, protocol: udp, listen: 1024-2047, addresses: [10.1.4.0/28]}
  - {name: ping, port: web0, protocol: icmp_echo, addresses: [10.1.0.2]}
)",
                                       "sample");
  EXPECT_TRUE(policy) << policy.error().text();
  return *policy;
}

TEST(DiffPolicies, TellsEachChange) {
  struct Row {
    const char* name;
    void (*change)(Policy&);
    Lines lines;
  };
  const Row table[] = {
      {"nothing", [](Policy&) {}, {}},
      {"generation", [](Policy& p) { p.generation = 8; }, {"~ generation 7 -> 8"}},
      {"uplink",
       [](Policy& p) { p.uplinks = {"uplink1"}; },
       {"- uplink uplink0", "+ uplink uplink1"}},
      {"failsafe", [](Policy& p) { p.failsafe_ports.push_back(2222); }, {"+ failsafe port 2222"}},
      {"listener sources",
       [](Policy& p) { p.listeners[0].from.clear(); },
       {"- listener tcp 9100 from 10.0.0.0/8", "+ listener tcp 9100 from anywhere"}},
      {"node leases", [](Policy& p) { p.leases_max = 9; }, {"~ limit of leases 65536 -> 9"}},
      {"tenant limits",
       [](Policy& p) {
         p.tenants[0].leases_max = 5;
         p.tenants[0].flows_max = 64;
       },
       {"~ tenant acme/shop/prod leases 65536 -> 5", "~ tenant acme/shop/prod flows 16384 -> 64"}},
      {"tenant admission",
       [](Policy& p) { p.tenants[0].admission_required = true; },
       {"~ tenant acme/shop/prod admission none -> required"}},
      {"tenant renamed",
       [](Policy& p) { p.tenants[0].name = "acme/shop/test"; },
       {"~ tenant id 1 name acme/shop/prod -> acme/shop/test"}},
      {"tenant gone",
       [](Policy& p) { p.tenants.clear(); },
       {"- tenant acme/shop/prod id 1 leases 65536 flows 16384",
        "- tenant acme/shop/prod port web0 interface veth-a mac 02:00:00:00:00:0a addresses "
        "10.1.0.2, "
        "10.1.4.0/28, fd00:1::2",
        "- tenant acme/shop/prod endpoint ping icmp_echo 10.1.0.2",
        "- tenant acme/shop/prod endpoint pool udp 10.1.4.0/28 ports 1024-2047",
        "- tenant acme/shop/prod endpoint web tcp 10.1.0.2:443",
        "- tenant acme/shop/prod endpoint web tcp [fd00:1::2]:443"}},
      {"port address",
       [](Policy& p) { p.tenants[0].ports[0].addresses.push_back(*parse_address("fd00:1::3")); },
       {"+ tenant acme/shop/prod port web0 address fd00:1::3"}},
      {"port mac and interface",
       [](Policy& p) {
         p.tenants[0].ports[0].interface = "veth-b";
         p.tenants[0].ports[0].mac = *parse_mac("02:00:00:00:00:0b");
       },
       {"~ tenant acme/shop/prod port web0 interface veth-a -> veth-b",
        "~ tenant acme/shop/prod port web0 mac 02:00:00:00:00:0a -> 02:00:00:00:00:0b"}},
      {"endpoint address",
       [](Policy& p) { p.tenants[0].endpoints[0].addresses.pop_back(); },
       {"- tenant acme/shop/prod endpoint web tcp [fd00:1::2]:443"}},
      {"endpoint listen",
       [](Policy& p) { p.tenants[0].endpoints[2].name = "echo"; },
       {"- tenant acme/shop/prod endpoint ping icmp_echo 10.1.0.2",
        "+ tenant acme/shop/prod endpoint echo icmp_echo 10.1.0.2"}},
      {"part of a pool",
       [](Policy& p) { p.tenants[0].endpoints[1].addresses.resize(8); },
       {"- tenant acme/shop/prod endpoint pool udp 10.1.4.8/29 ports 1024-2047"}},
      {"pool of another width",
       [](Policy& p) { p.tenants[0].endpoints[1].listen = {1024, 1024}; },
       {"- tenant acme/shop/prod endpoint pool udp 10.1.4.0/28 ports 1024-2047",
        "+ tenant acme/shop/prod endpoint pool udp 10.1.4.0/28 port 1024"}},
      {"order means nothing", [](Policy& p) { std::ranges::reverse(p.tenants[0].endpoints); }, {}},
  };
  for (const Row& row : table) {
    Policy to = sample();
    row.change(to);
    EXPECT_EQ(diff_policies(sample(), to), row.lines) << row.name;
    // The way back has as many lines.
    EXPECT_EQ(diff_policies(to, sample()).size(), row.lines.size()) << row.name;
  }
}

}  // namespace
}  // namespace holdfast
