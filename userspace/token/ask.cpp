#include "userspace/token/ask.hpp"

#include <utility>
#include <vector>

namespace holdfast::token {

Checked<void> add_check(wire::CheckFrame& frame, std::span<const uint8_t> token,
                        std::string_view operation, std::string_view resource,
                        std::string_view presenter) {
  Checked<Parts> parts = take_apart(token);
  if (!parts) return std::unexpected(std::move(parts.error()));
  std::vector<uint8_t> path;
  for (const Digest& node : parts->path()) path.insert(path.end(), node.begin(), node.end());
  frame.add({.head = frame.add_head(parts->header, parts->signature),
             .index = parts->index,
             .path = path,
             .claims = parts->claims,
             .operation = operation,
             .resource = resource,
             .presenter = presenter});
  return {};
}

}  // namespace holdfast::token
