// compile(): a valid policy and the facts of this node become the tables that packets read. Pure.
//
// Slots: a resource (an endpoint address and port, or a port's egress) keeps its slot for as long
// as every policy in force names it under the same tenant; so a push leaves live leases alone. A
// new resource gets a free slot.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bpf/abi.h"
#include "policy/types.hpp"
#include "userspace/base/result.hpp"

namespace holdfast {

// Endpoints and addresses become one table. Keys and values of the port table stand side by side,
// as the kernel's batch call takes them.
struct PolicyTables {
  std::vector<abi::endpoint_entry> endpoints;
  std::vector<abi::endpoint_entry> addresses;  // distinct
  std::vector<uint32_t> port_keys;             // ifindex
  std::vector<abi::tenant_port> ports;
};

using PortName = std::pair<uint64_t, std::string>;  // tenant id, port name

struct CompiledPolicy {
  PolicyTables tables;
  std::map<PortName, uint32_t> egress_slots;
};

struct NodeFacts {
  std::map<std::string, uint32_t>
      ifindex;  // by interface name; absent: not there, its port stays dark
  std::map<uint64_t, uint32_t> tenant_indexes;  // by tenant id; complete
  std::vector<Address> addresses;               // the node's own
};

// Which slots resources hold under the policy in force, and which are free.
class SlotBook {
 public:
  virtual ~SlotBook() = default;
  virtual std::optional<uint32_t> endpoint(uint32_t tenant, const abi::endpoint_key& key) const = 0;
  virtual std::optional<uint32_t> egress(const PortName& port) const = 0;
  virtual std::optional<uint32_t> take() = 0;
};

// exhausted: the policy needs more slots than the node has. Nothing outside `slots` is changed.
Result<CompiledPolicy> compile(const Policy& policy, const NodeFacts& facts, SlotBook& slots);

// The contract's form of things.
abi::endpoint_key endpoint_key(const Address& address, Protocol protocol, uint16_t port);
abi::endpoint_key address_key(const Address& address);
Address address_of(const uint32_t (&words)[4]);
void store_address(uint32_t (&words)[4], const Address& address);
Protocol protocol_of(const abi::endpoint_key& key);
uint16_t port_of(const abi::endpoint_key& key);

}  // namespace holdfast
