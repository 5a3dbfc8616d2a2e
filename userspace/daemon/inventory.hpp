// Inventory: what this node has and who has it, as pages of a snapshot: the node, its capacity and
// interfaces; tenants and their ports; endpoints, counted by state; leases, with what is fenced and
// what is being torn down. A resource that no lease names is free.
#pragma once

#include <memory>

#include "userspace/daemon/enrollment.hpp"
#include "userspace/daemon/node.hpp"
#include "userspace/daemon/tokens.hpp"
#include "userspace/daemon/watch.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast {

// How a lease, the node's state and whose node it is are shown, in replies and in snapshots.
cbor::Value lease_value(const LeaseView& lease);
cbor::Value standing_value(const Node& node);
cbor::Value enrollment_value(const Enrollment& enrollment, const Node& node);
cbor::Value names_value(const std::vector<std::string>& names);
// Of an interface that is dark, or a layer that is not enforced.
cbor::Value error_value(const std::string& interface, const Error& error);
// "443", "8000-8099", or empty for icmp_echo.
std::string listen_text(const Endpoint& endpoint);

// Leases and endpoints only for who wants events of leases. The node outlives it.
std::unique_ptr<SnapshotPages> new_inventory(const Node& node, const Tokens& tokens,
                                             const Enrollment& enrollment,
                                             const WatchFilter& filter);

}  // namespace holdfast
