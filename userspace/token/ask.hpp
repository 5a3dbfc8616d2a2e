// Asking a node about whole tokens, for services that are shown them: from a token's bytes to a
// frame for VerifyClient.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "userspace/token/token.hpp"
#include "userspace/wire/check_frame.hpp"

namespace holdfast::token {

// Adds to the frame: does this token allow the operation on the resource, shown by that presenter?
// Empty: by whoever asks. Each has a head of its own in the frame, so this is for few at a time.
// Refuses what is no token: malformed to bad_proof, as take_apart() does, and then adds nothing.
Checked<void> add_check(wire::CheckFrame& frame, std::span<const uint8_t> token,
                        std::string_view operation, std::string_view resource,
                        std::string_view presenter = {});

}  // namespace holdfast::token
