#include "policy/holder.hpp"

#include <charconv>

#include <fmt/format.h>

namespace holdfast {

std::string holder_name(const Holder& holder) {
  if (holder.kind == Holder::Kind::key) return fmt::format("key:{:02x}", fmt::join(holder.key, ""));
  return fmt::format("{}:{}", holder.kind == Holder::Kind::uid ? "uid" : "cgroup", holder.id);
}

Result<Holder> parse_holder_name(std::string_view text) {
  Holder holder;
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view id = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  if (kind == "key") {
    holder.kind = Holder::Kind::key;
    for (size_t i = 0; i < holder.key.size() && id.size() == 2 * holder.key.size(); ++i)
      std::from_chars(&id[2 * i], &id[2 * i] + 2, holder.key[i], 16);
  } else {
    if (kind == "cgroup") holder.kind = Holder::Kind::cgroup;
    std::from_chars(id.data(), id.data() + id.size(), holder.id);
  }
  // One name for each: names are compared as text, too.
  if (holder_name(holder) == text && (kind != "uid" || holder.id <= UINT32_MAX)) return holder;
  return fail(ErrorKind::invalid, "bad_holder", fmt::format("\"{}\" is not a holder", text),
              "uid:NUMBER, cgroup:ID, or key: and the 64 lower hex digits of its thumbprint");
}

}  // namespace holdfast
