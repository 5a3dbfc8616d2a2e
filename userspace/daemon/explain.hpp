// explain: which hooks a packet meets on its way through this node, and what each loaded program
// says to it on the live maps. Leaves no trace.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/daemon/node.hpp"

namespace holdfast {

struct ExplainStep {
  abi::hf_direction hook = abi::HF_TO_TENANT;
  std::string interface;
  abi::verdict verdict{};
};

// `from`: "uplink", or the name of a tenant port's interface. `source_mac`: by default the port's
// own. The way ends at the first drop.
Result<std::vector<ExplainStep>> explain_packet(const Node& node, std::string_view from,
                                                ProbePacket packet, const std::string* source_mac);

}  // namespace holdfast
