// apply: the order of effects, and nothing else (DESIGN.md sections 3 and 4). Every change of the
// kernel's state that a lease or a policy causes is one of these functions; each undoes in reverse
// what it did when a later step fails. Deciding is done before, journaling and replying around it.
//
//   open      element in nft -> read back -> gate opens           (allow last)
//   move      element on nft's other side -> read back -> gate moves -> a later element goes
//   close     gate denies: one store                              (deny first)
//   teardown  (closed, a grace period ago) elements out of nft -> read back -> negative probe
//   swap      attach -> stage -> nft narrowed -> flip, grace period -> nft widened -> read back
//
// Owned by the daemon's event loop.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bpf/abi.h"
#include "nft/table.hpp"
#include "nft/watch.hpp"
#include "policy/compile.hpp"
#include "userspace/base/result.hpp"
#include "userspace/dataplane/attach.hpp"
#include "userspace/dataplane/banks.hpp"
#include "userspace/dataplane/object.hpp"
#include "userspace/dataplane/probe.hpp"
#include "userspace/dataplane/slots.hpp"

namespace holdfast {

// What enforces beside the tenant ports' own hooks, and what a node can go on without if its
// operator says so. Without consent a missing one keeps the daemon from starting, or an uplink
// dark.
enum class Layer : uint8_t {
  nftables,  // the second opinion on everything
  uplinks,   // early drop; what comes in is judged at the tenants' ports all the same
  suspend,   // without the tracepoint a lease may outlast its deadline by a tick after resume
};
std::string_view name_of(Layer layer);

struct Unenforced {
  Layer layer;
  std::string interface;  // of uplinks
  Error cause;
};

struct DataPlaneOptions {
  KernelObjectOptions kernel;
  std::string table = "holdfast";
  TenantHook tenant_hook = TenantHook::automatic;
  UplinkHook uplink_hook = UplinkHook::automatic;
  std::set<Layer> may_go_unenforced;
};

// Everything of ours in the kernel.
struct DataPlane {
  static Result<std::unique_ptr<DataPlane>> open(const DataPlaneOptions& options);

  KernelObject object;
  Slots slots;
  MappedArray<abi::tenant_state> tenants;
  Banks banks;
  Attachments attachments;
  Probe probe;
  nft::Table nft;
  nft::Table nft_reader;  // reads back what `nft` writes, in a bulk beside it
  nft::Watch nft_watch;
  std::set<Layer> may_go_unenforced;
  std::vector<Unenforced> unenforced;  // since the start: nftables, suspend
};

// What an open slot's lease is in nft.
nft::LeaseElement lease_element(const abi::lease_record& record, bool has_peer);

// A slot and when it ends.
struct Term {
  uint32_t slot;
  uint64_t deadline_boot_ns;
};

// Opens slots that were bound (Slots::bind). All or none: on failure every one of them is closed
// again and gone from nft. Adds the time that nftables took to `nft_ns`.
Status open_leases(DataPlane& plane, std::span<const Term> terms, uint64_t& nft_ns);

// Moves the deadline of the slots of one lease further away: nft first, then the gates. Fails with
// conflict / lease_closed if one of them was closed or has ended; others may have moved then, so
// the lease has to be torn down.
constexpr std::string_view lease_closed_code = "lease_closed";
Status move_deadline(DataPlane& plane, std::span<const Term> terms);

// The other way, in two steps, the gates first: from there on the kernel ends the lease at its new
// deadline, although nft's elements would let it go on until the second.
Status draw_gates_nearer(DataPlane& plane, std::span<const Term> terms);
Status draw_elements_nearer(DataPlane& plane, std::span<const Term> terms);

// Writes what is missing of what nft should hold for slots that are open: after a restart, or when
// an interface came back. What is there is left alone.
Status restore_elements(DataPlane& plane, std::span<const Term> terms);

// A tenant's tables of flows and of fragments, made where there are none: before the flip that
// needs them.
Status ensure_tenant_tables(DataPlane& plane, uint32_t tenant, uint32_t flows_max);
// The flow table in another size, with the flows that it holds; those begun meanwhile are lost.
Status resize_flow_table(DataPlane& plane, uint32_t tenant, uint32_t flows_max);

// The rest of a teardown; the caller closed the slots and let a grace period pass. On failure the
// error names what is still up, and the slots have to be fenced (G7).
Status finish_teardown(DataPlane& plane, std::span<const uint32_t> slots);

// A policy change as nft sees it: what has to go before the flip, what may come after it.
struct PolicyChange {
  const PolicyTables* tables = nullptr;
  uint64_t generation = 0;
  uint8_t digest[32] = {};
  std::vector<Interface> tenant_ports;  // all that the new policy names and that are there
  std::vector<Interface> shut_ports;    // guarded too, but no port of the new tables: all is denied
  std::vector<Interface> uplinks;
  nft::Changes narrow;
  nft::Changes widen;
  nft::HostRules host;
  bool insist = false;
};

struct SwapOutcome {
  std::vector<std::pair<std::string, Error>> dark;  // interface, and why it stays dark
  std::vector<Unenforced> unenforced;               // uplinks that are armed without their hook
  Status widened;  // whether nft followed; if not, it denies what only the new policy allows
};

// The swap. An error means that it did not reach the flip: the old policy is in force, and nft no
// wider than it. After the flip the new one is, whatever becomes of nft. Interfaces whose hooks
// cannot be attached or verified are left out of `widen.arm`; with `insist`, the first of them
// fails the swap instead.
Result<SwapOutcome> swap_policy(DataPlane& plane, PolicyChange& change);

}  // namespace holdfast
