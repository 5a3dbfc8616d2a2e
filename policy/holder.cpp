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
  if (text.starts_with("key:")) {
    holder.kind = Holder::Kind::key;
    const std::string_view digits = text.substr(4);
    if (digits.size() == 2 * holder.key.size()) {
      for (size_t i = 0; i < holder.key.size(); ++i)
        std::from_chars(&digits[2 * i], &digits[2 * i] + 2, holder.key[i], 16);
      if (holder_name(holder) == text) return holder;
    }
  }
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view id = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const auto end = std::from_chars(id.data(), id.data() + id.size(), holder.id);
  const bool number = !id.empty() && end.ec == std::errc() && end.ptr == id.data() + id.size();
  if (number && kind == "uid" && holder.id <= UINT32_MAX) return holder;
  holder.kind = Holder::Kind::cgroup;
  if (number && kind == "cgroup") return holder;
  return fail(ErrorKind::invalid, "bad_holder", fmt::format("\"{}\" is not a holder", text),
              "uid:NUMBER, cgroup:ID, or key: and the 64 lower hex digits of its thumbprint");
}

}  // namespace holdfast
