#include "policy/holder.hpp"

#include <charconv>

#include <fmt/format.h>

namespace holdfast {

std::string holder_name(const Holder& holder) {
  return fmt::format("{}:{}", holder.kind == Holder::Kind::uid ? "uid" : "cgroup", holder.id);
}

Result<Holder> parse_holder_name(std::string_view text) {
  Holder holder;
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view id = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const auto end = std::from_chars(id.data(), id.data() + id.size(), holder.id);
  const bool number = !id.empty() && end.ec == std::errc() && end.ptr == id.data() + id.size();
  if (number && kind == "uid" && holder.id <= UINT32_MAX) return holder;
  holder.kind = Holder::Kind::cgroup;
  if (number && kind == "cgroup") return holder;
  return fail(ErrorKind::invalid, "bad_holder", fmt::format("\"{}\" is not a holder", text),
              "uid:NUMBER or cgroup:ID");
}

}  // namespace holdfast
