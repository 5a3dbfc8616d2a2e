// The chains and rules of our table: the whole tenancy predicate, default deny, as nft bytecode.
// What changes with leases is in the sets; what changes with policy is HostRules, all of it in
// chain `input`. Pure: renders, sends nothing.
//
// A drop rule carries a counter and, as its comment, the reason's name in bpf/reasons.def.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "policy/types.hpp"

struct nftnl_rule;

namespace holdfast::nft {

// The node's own firewall, from the policy. Failsafe ports are TCP and open whatever else is said
// (G15).
struct HostRules {
  std::vector<uint16_t> failsafe_ports;
  std::vector<Listener> listeners;
};

struct Chain {
  const char* name;
  int hook;  // NF_INET_*, or -1: reached by jumps only
};
constexpr int chain_priority =
    -10;  // before other tables' filter chains; a drop in any chain is final

// In an order in which each may be created.
std::vector<Chain> chains();

struct RuleDelete {
  void operator()(nftnl_rule* rule) const;
};
using RulePointer = std::unique_ptr<nftnl_rule, RuleDelete>;

std::vector<RulePointer> render(const std::string& table, const HostRules& host);

// A rule as text that is equal for what we render and what the kernel gives back; counters left
// out.
std::string canonical_text(nftnl_rule* rule);

}  // namespace holdfast::nft
