// detach: the end of enforcement on this node, on purpose. The only thing that opens.
#pragma once

#include <string>
#include <vector>

#include "userspace/daemon/node.hpp"

namespace holdfast {

// Removes our hooks, our pins, our nftables table and the stored policy, in this order, and says
// what was removed. Goes on after a failure, so that as much as possible is gone; the error names
// what is left.
Result<std::vector<std::string>> detach_node(Node& node, const NodeOptions& options);

}  // namespace holdfast
