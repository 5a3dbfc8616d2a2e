// For whom the node signs what it says, and over whose challenge, as it is asked for:
// {"challenge": bytes, "for": text}.
#pragma once

#include "userspace/base/result.hpp"
#include "userspace/token/node_identity.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast {

// Errors: invalid / missing_key, unknown_key, wrong_type, out_of_range,
// bad_audience.
Result<token::StatementFor> read_statement_for(const cbor::Value& args);

}  // namespace holdfast
