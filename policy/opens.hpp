// opens: what of the node another policy would open by itself, without any lease. Pure.
#pragma once

#include <string>
#include <vector>

#include "policy/types.hpp"

namespace holdfast {

// A line for each: "tcp port 22 from 10.0.0.0/8", "interface veth-a is let go". None: `next` is as
// tight as `now` or tighter.
std::vector<std::string> what_opens(const Policy& now, const Policy& next);

}  // namespace holdfast
