// compile(): policy and facts in, tables out. Slots stay with their resource (G4: a push leaves
// live leases alone), a missing interface leaves its port dark, one tenant's slot never becomes
// another's (G13).
#include "policy/compile.hpp"

#include <algorithm>
#include <map>

#include <gtest/gtest.h>

#include "policy/address.hpp"
#include "policy/parse.hpp"

namespace holdfast {
namespace {

class MapBook final : public SlotBook {
 public:
  std::optional<uint32_t> endpoint(uint32_t tenant, const abi::endpoint_key& key) const override {
    const auto found = endpoints.find({tenant, text(key)});
    if (found == endpoints.end()) return std::nullopt;
    return found->second;
  }
  std::optional<uint32_t> egress(const PortName& port) const override {
    const auto found = ports.find(port);
    if (found == ports.end()) return std::nullopt;
    return found->second;
  }
  std::optional<uint32_t> take() override {
    if (next >= limit) return std::nullopt;
    return next++;
  }
  void remember(const CompiledPolicy& compiled) {
    endpoints.clear();
    for (const abi::endpoint_entry& entry : compiled.tables.endpoints)
      endpoints[{entry.tenant, text(entry.key)}] = entry.slot;
    ports = compiled.egress_slots;
  }

  std::map<std::pair<uint32_t, std::string>, uint32_t> endpoints;
  std::map<PortName, uint32_t> ports;
  uint32_t next = 0;
  uint32_t limit = 1000;

 private:
  static std::string text(const abi::endpoint_key& key) {
    return format_address(address_of(key.address)) + " " + std::to_string(port_of(key)) + " " +
           std::to_string(key.protocol);
  }
};

Policy policy(const std::string& endpoints, const std::string& name = "a/b/c", int id = 1) {
  const std::string text =
      "version: 1\ngeneration: 1\nuplinks: [up0]\ntenants:\n  - id: " + std::to_string(id) +
      "\n    name: " + name +
      "\n    ports: [{name: p, interface: va, mac: \"02:00:00:00:00:0a\", addresses: "
      "[10.1.0.2, 10.1.0.3]}]\n    endpoints: [" +
      endpoints + "]\n";
  Result<Policy> parsed = parse_policy(text, "test");
  EXPECT_TRUE(parsed) << parsed.error().text();
  return std::move(*parsed);
}

NodeFacts facts(std::optional<uint32_t> port = 7) {
  NodeFacts out;
  out.ifindex["up0"] = 3;
  if (port) out.ifindex["va"] = *port;
  out.tenant_indexes = {{1, 0}, {2, 1}};
  out.addresses = {*parse_address("198.51.100.1")};
  return out;
}

const char* const web = "{name: web, port: p, protocol: tcp, listen: 80}";
const char* const web_and_dns =
    "{name: dns, port: p, protocol: udp, listen: 53}, {name: web, port: p, protocol: tcp, listen: "
    "80}";

TEST(Compile, NamesEveryResourceOnce) {
  MapBook book;
  const Result<CompiledPolicy> out = compile(policy(web_and_dns), facts(), book);
  ASSERT_TRUE(out);
  EXPECT_EQ(out->tables.endpoints.size(), 4U);  // two addresses, two listen ports
  EXPECT_EQ(book.next, 5U);                     // and the port's egress
  for (const abi::endpoint_entry& entry : out->tables.endpoints) EXPECT_EQ(entry.ifindex, 7U);
  ASSERT_EQ(out->tables.ports.size(), 1U);
  EXPECT_EQ(out->tables.ports[0].egress_slot, out->egress_slots.at({1, "p"}));
  std::map<uint32_t, int> owners;
  for (const abi::endpoint_entry& owner : out->tables.addresses) ++owners[owner.tenant];
  EXPECT_EQ(owners[0], 2);
  EXPECT_EQ(owners[abi::HF_OWNER_NODE], 1);
  EXPECT_EQ(owners[abi::HF_OWNER_METADATA], 8);
}

TEST(Compile, SlotsStayWithTheirResource) {
  MapBook book;
  const Result<CompiledPolicy> before = compile(policy(web), facts(), book);
  ASSERT_TRUE(before);
  book.remember(*before);
  const Result<CompiledPolicy> after = compile(policy(web_and_dns), facts(9), book);
  ASSERT_TRUE(after);
  for (const abi::endpoint_entry& old : before->tables.endpoints) {
    const auto same =
        std::find_if(after->tables.endpoints.begin(), after->tables.endpoints.end(),
                     [&](const abi::endpoint_entry& e) { return e.slot == old.slot; });
    ASSERT_NE(same, after->tables.endpoints.end());
    EXPECT_EQ(port_of(same->key), port_of(old.key));
    EXPECT_EQ(same->ifindex, 9U) << "the interface may have come back under another index";
  }
  EXPECT_EQ(after->egress_slots, before->egress_slots);
}

TEST(Compile, AnotherTenantGetsAnotherSlot) {
  MapBook book;
  const Result<CompiledPolicy> before = compile(policy(web), facts(), book);
  ASSERT_TRUE(before);
  book.remember(*before);
  const Result<CompiledPolicy> after = compile(policy(web, "x/y/z", 2), facts(), book);
  ASSERT_TRUE(after);
  for (const abi::endpoint_entry& entry : after->tables.endpoints)
    for (const abi::endpoint_entry& old : before->tables.endpoints) EXPECT_NE(entry.slot, old.slot);
}

TEST(Compile, MissingInterfaceLeavesThePortDark) {
  MapBook book;
  const Result<CompiledPolicy> out = compile(policy(web), facts(std::nullopt), book);
  ASSERT_TRUE(out);
  EXPECT_TRUE(out->tables.ports.empty());
  for (const abi::endpoint_entry& entry : out->tables.endpoints) EXPECT_EQ(entry.ifindex, 0U);
  EXPECT_TRUE(std::any_of(out->tables.addresses.begin(), out->tables.addresses.end(),
                          [](const abi::endpoint_entry& owner) { return owner.tenant == 0; }))
      << "its addresses stay tenant property";
}

// The same address on two of the node's interfaces, or a metadata service on the node itself.
TEST(Compile, EveryAddressHasOneOwner) {
  MapBook book;
  NodeFacts known = facts();
  known.addresses.push_back(known.addresses.front());
  known.addresses.push_back(*parse_address("169.254.169.254"));
  const Result<CompiledPolicy> out = compile(policy(web), known, book);
  ASSERT_TRUE(out);
  std::map<std::string, uint32_t> owners;
  for (const abi::endpoint_entry& owner : out->tables.addresses) {
    const std::string text = format_address(address_of(owner.key.address));
    EXPECT_TRUE(owners.emplace(text, owner.tenant).second) << text;
  }
  EXPECT_EQ(owners.size(), 11U);
  for (const char* text : {"169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "168.63.129.16",
                           "100.100.100.200", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"}) {
    ASSERT_TRUE(owners.contains(text)) << text;
    EXPECT_EQ(owners.at(text), static_cast<uint32_t>(abi::HF_OWNER_METADATA)) << text;
  }
}

TEST(Compile, TooFewSlotsIsRefusedWhole) {  // G14
  MapBook book;
  book.limit = 2;
  const Result<CompiledPolicy> out = compile(policy(web), facts(), book);
  ASSERT_FALSE(out);
  EXPECT_EQ(out.error().kind, ErrorKind::exhausted);
  EXPECT_EQ(out.error().code, "slots_exhausted");
}

}  // namespace
}  // namespace holdfast
