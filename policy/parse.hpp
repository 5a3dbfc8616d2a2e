// A policy file's bytes to a Policy, all or nothing. The format is in README.md and
// policy.schema.json; every rule and every limit (limits.hpp) is checked here, before anything is
// changed anywhere (G14).
#pragma once

#include <cstddef>
#include <string_view>

#include "policy/limits.hpp"
#include "policy/types.hpp"
#include "userspace/base/result.hpp"

namespace holdfast {

// YAML, or JSON when the first byte that is not blank is '{'. `file_name` is only for messages.
//
// Errors are of kind `invalid`. policy_syntax: the text cannot be read, one error. policy_invalid:
// up to policy_errors_max errors, ordered by line and joined by line feeds. Each reads "file:line:
// where: what is wrong; how to mend it".
//
// What render_policy_json made may be longer than what it was made from: whoever reads that back
// gives rendered_bytes_max.
Result<Policy> parse_policy(std::string_view bytes, std::string_view file_name,
                            size_t bytes_max = policy_bytes_max);

}  // namespace holdfast
