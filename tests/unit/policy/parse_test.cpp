// What parse_policy makes of a good file, and its bounds; the refused files are in cases/bad.
#include "policy/parse.hpp"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "policy/address.hpp"

namespace holdfast {
namespace {

constexpr std::string_view head = "version: 1\ngeneration: 7\nuplinks: [uplink0]\n";

std::string one_tenant(std::string_view ports, std::string_view endpoints) {
  return fmt::format("{}tenants:\n- id: 1\n  name: a/b/c\n  ports:\n{}  endpoints:\n{}", head,
                     ports, endpoints);
}

std::vector<std::string> texts(const std::vector<Address>& addresses) {
  std::vector<std::string> out;
  for (const Address& address : addresses) out.push_back(format_address(address));
  return out;
}

TEST(ParsePolicy, EveryFieldArrives) {
  Result<Policy> parsed = parse_policy(R"(
version: 1
generation: 7
uplinks: [uplink0, uplink1]
failsafe_ports: [22, 2222]
listeners:
  - {protocol: tcp, port: 9100, from: [10.0.0.0/8, "fd00::/8"]}
  - {protocol: udp, port: 51820}
limits: {leases: 5000}
tenants:
  - id: 42
    name: acme/shop/prod
    limits: {leases: 1024, flows: 4096}
    admission: required
    ports:
      - {name: web0, interface: veth-a, mac: 02:00:00:00:00:0a, addresses: [10.1.4.0/30, "fe80::1", 10.1.0.2]}
      - {name: web1, interface: veth-b, mac: 02:00:00:00:00:0b, addresses: ["fd00:1::2"]}
    endpoints:
      - {name: web, port: web0, protocol: tcp, listen: 443}
      - {name: pool, port: web0, protocol: udp, listen: 1024-2047, addresses: [10.1.4.2/31]}
      - {name: ping, port: web1, protocol: icmp_echo}
)",
                                       "p.yaml");
  ASSERT_TRUE(parsed) << parsed.error().text();
  const Policy& policy = *parsed;
  EXPECT_EQ(policy.generation, 7U);
  EXPECT_EQ(policy.uplinks, (std::vector<std::string>{"uplink0", "uplink1"}));
  EXPECT_EQ(policy.failsafe_ports, (std::vector<uint16_t>{22, 2222}));
  ASSERT_EQ(policy.listeners.size(), 2U);
  EXPECT_EQ(policy.listeners[0].protocol, Protocol::tcp);
  EXPECT_EQ(policy.listeners[0].port, 9100);
  EXPECT_EQ(policy.listeners[0].from,
            (std::vector<Prefix>{*parse_prefix("10.0.0.0/8"), *parse_prefix("fd00::/8")}));
  EXPECT_TRUE(policy.listeners[1].from.empty());
  EXPECT_EQ(policy.leases_max, 5000U);
  ASSERT_EQ(policy.tenants.size(), 1U);
  const Tenant& tenant = policy.tenants[0];
  EXPECT_EQ(tenant.id, 42U);
  EXPECT_EQ(tenant.name, "acme/shop/prod");
  EXPECT_EQ(tenant.leases_max, 1024U);
  EXPECT_EQ(tenant.flows_max, 4096U);
  EXPECT_TRUE(tenant.admission_required);
  ASSERT_EQ(tenant.ports.size(), 2U);
  EXPECT_EQ(tenant.ports[0].name, "web0");
  EXPECT_EQ(tenant.ports[0].interface, "veth-a");
  EXPECT_EQ(format_mac(tenant.ports[0].mac), "02:00:00:00:00:0a");
  EXPECT_EQ(texts(tenant.ports[0].addresses),
            (std::vector<std::string>{"10.1.0.2", "10.1.4.0", "10.1.4.1", "10.1.4.2", "10.1.4.3",
                                      "fe80::1"}));
  EXPECT_TRUE(std::ranges::is_sorted(tenant.ports[0].addresses));
  ASSERT_EQ(tenant.endpoints.size(), 3U);
  EXPECT_EQ(tenant.endpoints[0].name, "web");
  EXPECT_EQ(tenant.endpoints[0].port, 0U);
  EXPECT_EQ(tenant.endpoints[0].listen, (PortRange{443, 443}));
  EXPECT_EQ(texts(tenant.endpoints[0].addresses),  // without the link-local one
            (std::vector<std::string>{"10.1.0.2", "10.1.4.0", "10.1.4.1", "10.1.4.2", "10.1.4.3"}));
  EXPECT_EQ(tenant.endpoints[1].protocol, Protocol::udp);
  EXPECT_EQ(tenant.endpoints[1].listen, (PortRange{1024, 2047}));
  EXPECT_EQ(texts(tenant.endpoints[1].addresses),
            (std::vector<std::string>{"10.1.4.2", "10.1.4.3"}));
  EXPECT_EQ(tenant.endpoints[2].port, 1U);
  EXPECT_EQ(tenant.endpoints[2].protocol, Protocol::icmp_echo);
  EXPECT_EQ(tenant.endpoints[2].listen, PortRange{});
}

TEST(ParsePolicy, Defaults) {
  Result<Policy> policy =
      parse_policy(fmt::format("{}tenants:\n- id: 1\n  name: a/b/c\n", head), "p.yaml");
  ASSERT_TRUE(policy) << policy.error().text();
  EXPECT_EQ(policy->failsafe_ports, std::vector<uint16_t>{22});
  EXPECT_EQ(policy->leases_max, 65536U);
  EXPECT_EQ(policy->tenants[0].leases_max, 65536U);
  EXPECT_EQ(policy->tenants[0].flows_max, 16384U);
  EXPECT_FALSE(policy->tenants[0].admission_required);
}

TEST(ParsePolicy, Admission) {
  const auto with = [](std::string_view word) {
    return parse_policy(
        fmt::format("{}tenants:\n- id: 1\n  name: a/b/c\n  admission: {}\n", head, word), "p.yaml");
  };
  EXPECT_TRUE(with("required")->tenants[0].admission_required);
  EXPECT_FALSE(with("none")->tenants[0].admission_required);
  for (const char* word : {"yes", "Required", "[]", "''"}) {
    const Result<Policy> policy = with(word);
    ASSERT_FALSE(policy) << word;
    EXPECT_NE(policy.error().message.find("tenants[0].admission"), std::string::npos)
        << policy.error().message;
  }
}

TEST(ParsePolicy, YamlAndJsonMeanTheSame) {
  Result<Policy> yaml =
      parse_policy(one_tenant("  - {name: p, interface: v, mac: 02:00:00:00:00:0a, addresses: "
                              "[10.0.0.1, \"fd00::1\"]}\n",
                              "  - {name: e, port: p, protocol: udp, listen: 1000-1001}\n"),
                   "p.yaml");
  Result<Policy> json = parse_policy(
      R"({"version":1,"generation":7,"uplinks":["uplink0"],"tenants":[{"id":1,"name":"a/b/c",
          "ports":[{"name":"p","interface":"v","mac":"02:00:00:00:00:0a","addresses":["10.0.0.1","fd00::1"]}],
          "endpoints":[{"name":"e","port":"p","protocol":"udp","listen":"1000-1001"}]}]})",
      "p.json");
  ASSERT_TRUE(yaml) << yaml.error().text();
  ASSERT_TRUE(json) << json.error().text();
  EXPECT_EQ(*yaml, *json);
}

TEST(ParsePolicy, AllErrorsInOneGoInLineOrder) {
  Result<Policy> policy = parse_policy(
      "version: 2\n"
      "generation: 010\n"
      "uplink: [a]\n"
      "tenants:\n"
      "- id: 0\n"
      "  name: A/b/c\n",
      "p.yaml");
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().code, "policy_invalid");
  EXPECT_EQ(
      policy.error().message,
      "p.yaml:1: the key uplinks is missing; add it, such as uplinks: [uplink0]\n"
      "p.yaml:1: version: 2 is out of range; write an integer from 1 to 1\n"
      "p.yaml:2: generation: 010 has a leading zero, which some programs read as octal; write the "
      "number without it\n"
      "p.yaml:3: unknown key \"uplink\"; did you mean uplinks?\n"
      "p.yaml:5: tenants[0].id: 0 is out of range; write an integer from 1 to 9223372036854775807\n"
      "p.yaml:6: tenants[0].name: \"A/b/c\" is not a tenant name; write org/app/env, each of 1 to "
      "63 "
      "of a-z 0-9 -, no '-' at its ends");
}

TEST(ParsePolicy, AtMostTwentyErrors) {
  std::string text(head);
  for (int i = 0; i < 1000; ++i) text += fmt::format("unknown{}: 1\n", i);
  Result<Policy> policy = parse_policy(text, "p.yaml");
  ASSERT_FALSE(policy);
  const std::string& message = policy.error().message;
  EXPECT_EQ(std::ranges::count(message, '\n'), 20);
  EXPECT_TRUE(message.ends_with("\np.yaml: and more; mend these first")) << message;
}

// The same text is refused with every limit, one byte at a time.
TEST(ParsePolicy, SizeIsBounded) {
  std::string text = fmt::format("{}tenants: []\n", head);
  EXPECT_TRUE(parse_policy(text, "p.yaml", text.size()));
  Result<Policy> policy = parse_policy(text, "p.yaml", text.size() - 1);
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().code, "policy_syntax");
  EXPECT_NE(policy.error().message.find(
                fmt::format("{} bytes, over the limit of {}", text.size(), text.size() - 1)),
            std::string::npos);
}

TEST(ParsePolicy, NodeCountIsBounded) {
  std::string json = "{\"tenants\":[";
  json.reserve(9 << 20);
  for (uint32_t i = 0; i < document_nodes_max; ++i) json += "0,";
  json += "0]}";
  Result<Policy> policy = parse_policy(json, "p.json");
  ASSERT_FALSE(policy);
  EXPECT_NE(policy.error().message.find("p.json:1: the file has more than 4194304 values"),
            std::string::npos)
      << policy.error().message;
}

std::string many_tenants(size_t count) {
  std::string text = fmt::format("{}tenants:\n", head);
  for (size_t i = 1; i <= count; ++i) text += fmt::format("- {{id: {}, name: a/b/c{}}}\n", i, i);
  return text;
}

TEST(ParsePolicy, TenantsAreBounded) {
  EXPECT_TRUE(parse_policy(many_tenants(tenants_max), "p.yaml"));
  Result<Policy> policy = parse_policy(many_tenants(tenants_max + 1), "p.yaml");
  ASSERT_FALSE(policy);
  EXPECT_EQ(policy.error().message,
            "p.yaml:5: tenants: 4097 items, over the limit of 4096; remove some");
}

std::string many_ports(size_t count, std::string_view prefix_length) {
  std::string ports;
  for (size_t i = 0; i < count; ++i) {
    ports += fmt::format(
        "  - {{name: p{}, interface: v{}, mac: 02:00:00:00:00:0a, addresses: "
        "[\"fd00:{:x}::{}\"]}}\n",
        i, i, i, prefix_length);
  }
  return one_tenant(ports, "  []\n");
}

TEST(ParsePolicy, PortsAreBounded) {
  EXPECT_TRUE(parse_policy(many_ports(tenant_ports_max, "/128"), "p.yaml"));
  Result<Policy> policy = parse_policy(many_ports(tenant_ports_max + 1, "/128"), "p.yaml");
  ASSERT_FALSE(policy);
  EXPECT_NE(policy.error().message.find("4097 ports over all tenants, over the limit of 4096"),
            std::string::npos)
      << policy.error().message;
}

TEST(ParsePolicy, AddressesAreBounded) {
  EXPECT_TRUE(parse_policy(many_ports(16, "/112"), "p.yaml"));
  Result<Policy> policy = parse_policy(many_ports(4096, "/112"), "p.yaml");
  ASSERT_FALSE(policy);
  EXPECT_NE(
      policy.error().message.find("268435456 addresses over all ports, over the limit of 1048576"),
      std::string::npos)
      << policy.error().message;
}

TEST(ParsePolicy, EndpointsAreCountedBeforeTheyAreExpanded) {
  std::string endpoints;
  for (int i = 0; i < 1000; ++i)
    endpoints += fmt::format("  - {{name: e{}, port: p, protocol: udp, listen: 1024-65535}}\n", i);
  Result<Policy> policy = parse_policy(
      one_tenant("  - {name: p, interface: v, mac: 02:00:00:00:00:0a, addresses: [10.0.0.0/16]}\n",
                 endpoints),
      "p.yaml");
  ASSERT_FALSE(policy);
  EXPECT_NE(
      policy.error().message.find(
          "4227858432000 endpoints (addresses times listen ports), over the limit of 1048576"),
      std::string::npos)
      << policy.error().message;
}

TEST(ParsePolicy, LargestPolicyIsAccepted) {
  std::string endpoints = "  - {name: a, port: p, protocol: udp, listen: 1024-1039}\n";
  Result<Policy> policy = parse_policy(
      one_tenant("  - {name: p, interface: v, mac: 02:00:00:00:00:0a, addresses: [10.0.0.0/16]}\n",
                 endpoints),
      "p.yaml");
  ASSERT_TRUE(policy) << policy.error().text();
  EXPECT_EQ(policy->tenants[0].endpoints[0].addresses.size(), 65536U);
}

// 4 MiB take well under a second in a release build; ten seconds leave room for sanitizers.
TEST(ParsePolicy, FourMebibytesAreQuick) {
  std::string yaml_ports;
  std::string yaml_endpoints;
  std::string json_ports;
  std::string json_endpoints;
  for (int p = 0; p < 16; ++p) {
    std::string list;
    for (int i = 0; i < 8600; ++i)
      list += fmt::format("{}\"fd00:{:x}::{:x}\"", i == 0 ? "" : ",", p, 2 * i);
    yaml_ports += fmt::format(
        "  - {{name: p{0}, interface: v{0}, mac: 02:00:00:00:00:0a, addresses: [{1}]}}\n", p, list);
    json_ports += fmt::format(
        R"({}{{"name":"p{}","interface":"v{}","mac":"02:00:00:00:00:0a","addresses":[{}]}})",
        p == 0 ? "" : ",", p, p, list);
    for (int i = 0; i < 1600; ++i) {
      yaml_endpoints += fmt::format(
          "  - {{name: e{0}.{1}, port: p{0}, protocol: udp, listen: {2}, addresses: "
          "[\"fd00:{0:x}::{3:x}\"]}}\n",
          p, i, 1024 + i, 2 * i);
      json_endpoints += fmt::format(
          R"({4}{{"name":"e{0}.{1}","port":"p{0}","protocol":"udp","listen":{2},"addresses":["fd00:{0:x}::{3:x}"]}})",
          p, i, 1024 + i, 2 * i, p + i == 0 ? "" : ",");
    }
  }
  std::string yaml = one_tenant(yaml_ports, yaml_endpoints);
  std::string json = fmt::format(
      R"({{"version":1,"generation":7,"uplinks":["uplink0"],"tenants":[{{"id":1,"name":"a/b/c","ports":[{}],"endpoints":[{}]}}]}})",
      json_ports, json_endpoints);
  ASSERT_GT(yaml.size(), 4U << 20);
  ASSERT_GT(json.size(), 4U << 20);
  auto begin = std::chrono::steady_clock::now();
  Result<Policy> from_yaml = parse_policy(yaml, "p.yaml");
  auto middle = std::chrono::steady_clock::now();
  Result<Policy> from_json = parse_policy(json, "p.json");
  auto end = std::chrono::steady_clock::now();
  ASSERT_TRUE(from_yaml) << from_yaml.error().text();
  ASSERT_TRUE(from_json) << from_json.error().text();
  EXPECT_EQ(*from_yaml, *from_json);
  EXPECT_LT(middle - begin, std::chrono::seconds(10));
  EXPECT_LT(end - middle, std::chrono::seconds(10));
  auto ms = [](auto duration) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
  };
  RecordProperty("yaml_ms", std::to_string(ms(middle - begin)));
  RecordProperty("json_ms", std::to_string(ms(end - middle)));
}

}  // namespace
}  // namespace holdfast
