// Files in the state directory: read whole, replaced whole. A reader sees the old content or the
// new one, also after a power loss: written beside, fsynced, renamed over, the directory fsynced.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/result.hpp"

namespace holdfast {

Result<std::string> read_state_file(
    const std::string& path);  // Error::sys is ENOENT if there is none
Status write_state_file(const std::string& directory, std::string_view name,
                        std::string_view content, unsigned mode = 0600);

}  // namespace holdfast
