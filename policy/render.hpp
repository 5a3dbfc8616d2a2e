// A Policy as text: for the daemon's storage, for `bundle show` and for `bundle diff`.
#pragma once

#include <string>
#include <vector>

#include "policy/types.hpp"

namespace holdfast {

enum class JsonLayout {
  compact,   // one line: what is stored and hashed
  indented,  // for people
};

// The one canonical text of a policy: fixed key order, every default written out, addresses
// ascending and as the fewest prefixes. For every policy that parse_policy made, reading the text
// back (with rendered_bytes_max) gives an equal one, and equal policies have equal text.
std::string render_policy_json(const Policy& policy, JsonLayout layout = JsonLayout::compact);

// What a change from one policy to another means, a line each, for people: "+ " added, "- "
// removed,
// "~ " changed. Tenants are matched by id, ports and endpoints by name. The order in which a file
// lists things means nothing and makes no line.
std::vector<std::string> diff_policies(const Policy& from, const Policy& to);

}  // namespace holdfast
