// The state a person has put the node into, and how it is kept. Each is narrower than the one
// before:
//
//   active       everything
//   draining     no new leases; running ones go on and may be renewed
//   disabled     no grant, no renewal, no lease
//   quarantined  the same, and no push or verb opens anything until the quarantine is released
//
// STATE_DIR/node_state holds it, replaced whole and fsynced. No file: active. A file that is
// damaged may have said anything, so it is read as quarantined.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "userspace/base/result.hpp"

namespace holdfast {

enum class NodeState : uint8_t { active, draining, disabled, quarantined };
std::string_view name_of(NodeState state);

struct NodeStanding {
  NodeState state = NodeState::active;
  uint64_t since_wall_ms = 0;  // 0: it was never another
  uint32_t by_uid = 0;

  bool operator==(const NodeStanding&) const = default;
};

// Errors: those of reading a file.
Result<NodeStanding> read_standing(const std::string& state_dir);
Status write_standing(const std::string& state_dir, const NodeStanding& standing);

}  // namespace holdfast
