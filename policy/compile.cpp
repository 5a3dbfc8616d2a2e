#include "policy/compile.hpp"

#include <algorithm>
#include <cstring>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "policy/address.hpp"
#include "policy/metadata.hpp"
#include "userspace/base/check.hpp"

namespace holdfast {
namespace {

// IANA numbers, as the parser in bpf/ writes them into a packet's key.
constexpr uint8_t protocol_icmp = 1;
constexpr uint8_t protocol_icmpv6 = 58;

std::optional<uint32_t> index_of(const NodeFacts& facts, const std::string& interface) {
  const auto found = facts.ifindex.find(interface);
  if (found == facts.ifindex.end()) return std::nullopt;
  return found->second;
}

void add_address(PolicyTables& tables, const Address& address, abi::endpoint_entry owner) {
  owner.key = address_key(address);
  tables.addresses.push_back(owner);
}

// One owner for each address: a metadata service before a tenant, a tenant before the node.
void keep_one_owner(std::vector<abi::endpoint_entry>& addresses) {
  const auto words = [](const abi::endpoint_entry& entry) {
    return std::to_array(entry.key.address);
  };
  const auto claim = [&](const abi::endpoint_entry& entry) {
    const int rank = entry.tenant == abi::HF_OWNER_METADATA ? 0
                     : entry.tenant == abi::HF_OWNER_NODE   ? 2
                                                            : 1;
    return std::pair(words(entry), rank);
  };
  std::ranges::sort(addresses, {}, claim);
  const auto rest = std::ranges::unique(addresses, {}, words);
  addresses.erase(rest.begin(), rest.end());
}

class Compiler {
 public:
  Compiler(const Policy& policy, const NodeFacts& facts, SlotBook& slots)
      : policy_(policy), facts_(facts), slots_(slots) {}

  Result<CompiledPolicy> run() {
    for (const Tenant& tenant : policy_.tenants) {
      const uint32_t index = facts_.tenant_indexes.at(tenant.id);
      for (const TenantPort& port : tenant.ports)
        if (Status ok = add_port(tenant, index, port); !ok) return pass_on(ok);
      for (const Endpoint& endpoint : tenant.endpoints)
        if (Status ok = add_endpoint(tenant, index, endpoint); !ok) return pass_on(ok);
    }
    add_node_addresses();
    add_metadata_addresses();
    keep_one_owner(out_.tables.addresses);
    return std::move(out_);
  }

 private:
  Status no_slot() const {
    return fail(
        ErrorKind::exhausted, "slots_exhausted",
        "the policy names more endpoints and ports than the node has lease slots",
        "name fewer, or start holdfastd with a larger --leases-max after `holdfast node detach`");
  }

  Status add_port(const Tenant& tenant, uint32_t index, const TenantPort& port) {
    const PortName name{tenant.id, port.name};
    std::optional<uint32_t> slot = slots_.egress(name);
    if (!slot) slot = slots_.take();
    if (!slot) return no_slot();
    out_.egress_slots.emplace(name, *slot);

    // A missing interface leaves the port dark, but its addresses stay tenant property.
    const std::optional<uint32_t> ifindex = index_of(facts_, port.interface);
    abi::endpoint_entry owner{};
    owner.slot = *slot;
    owner.ifindex = ifindex.value_or(0);
    owner.tenant = index;
    for (const Address& address : port.addresses) add_address(out_.tables, address, owner);
    if (!ifindex) return {};
    abi::tenant_port value{};
    value.tenant = index;
    value.egress_slot = *slot;
    std::memcpy(value.mac, port.mac.bytes.data(), sizeof(value.mac));
    out_.tables.port_keys.push_back(*ifindex);
    out_.tables.ports.push_back(value);
    return {};
  }

  Status add_endpoint(const Tenant& tenant, uint32_t index, const Endpoint& endpoint) {
    abi::endpoint_entry value{};
    value.ifindex = index_of(facts_, tenant.ports[endpoint.port].interface).value_or(0);
    value.tenant = index;
    for (const Address& address : endpoint.addresses) {
      for (uint32_t port = endpoint.listen.first; port <= endpoint.listen.last; ++port) {
        value.key = endpoint_key(address, endpoint.protocol, static_cast<uint16_t>(port));
        std::optional<uint32_t> slot = slots_.endpoint(index, value.key);
        if (!slot) slot = slots_.take();
        if (!slot) return no_slot();
        value.slot = *slot;
        out_.tables.endpoints.push_back(value);
      }
    }
    return {};
  }

  // The facts hold no address that a tenant owns.
  void add_node_addresses() {
    abi::endpoint_entry node{};
    node.slot = abi::HF_NO_SLOT;
    node.tenant = abi::HF_OWNER_NODE;
    for (const Address& address : facts_.addresses) add_address(out_.tables, address, node);
  }

  // Nobody's, whatever a policy or the node's interfaces say.
  void add_metadata_addresses() {
    abi::endpoint_entry metadata{};
    metadata.slot = abi::HF_NO_SLOT;
    metadata.tenant = abi::HF_OWNER_METADATA;
    for (const std::string_view text : metadata_addresses) {
      const Result<Address> address = parse_address(text);
      CHECK(address);
      add_address(out_.tables, *address, metadata);
    }
  }

  const Policy& policy_;
  const NodeFacts& facts_;
  SlotBook& slots_;
  CompiledPolicy out_;
};

}  // namespace

Result<CompiledPolicy> compile(const Policy& policy, const NodeFacts& facts, SlotBook& slots) {
  return Compiler(policy, facts, slots).run();
}

abi::endpoint_key endpoint_key(const Address& address, Protocol protocol, uint16_t port) {
  abi::endpoint_key key{};
  store_address(key.address, address);
  key.port = htons(port);
  key.protocol = static_cast<uint8_t>(protocol);
  if (protocol == Protocol::icmp_echo)
    key.protocol = address.is_v4() ? protocol_icmp : protocol_icmpv6;
  return key;
}

abi::endpoint_key address_key(const Address& address) {
  abi::endpoint_key key{};
  store_address(key.address, address);
  key.protocol = abi::HF_PROTO_ADDRESS;
  return key;
}

Address address_of(const uint32_t (&words)[4]) {
  Address address;
  std::memcpy(address.bytes.data(), words, sizeof(words));
  return address;
}

void store_address(uint32_t (&words)[4], const Address& address) {
  std::memcpy(words, address.bytes.data(), sizeof(words));
}

Protocol protocol_of(const abi::endpoint_key& key) {
  return key.protocol == protocol_icmpv6 ? Protocol::icmp_echo
                                         : static_cast<Protocol>(key.protocol);
}

uint16_t port_of(const abi::endpoint_key& key) {
  return ntohs(key.port);
}

}  // namespace holdfast
