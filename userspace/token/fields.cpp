#include "userspace/token/fields.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "policy/text.hpp"

namespace holdfast::token {

std::unexpected<Error> FileReader::refuse(const Node& at, std::string what,
                                          std::string mend) const {
  return fail(ErrorKind::invalid, code_, fmt::format("{}:{}: {}", file_, at.line, what),
              std::move(mend));
}

Result<FileReader::Fields> FileReader::fields(const Node& node, Names known, Names needed) const {
  const std::string all = fmt::format("{}", fmt::join(known, ", "));
  if (node.kind != NodeKind::map)
    return refuse(node, "a map is expected here", "its keys are " + all);
  Fields found;
  for (const Node& key : document_.children(node)) {
    const std::string_view name = document_.text(key);
    if (std::ranges::find(known, name) == known.end())
      return refuse(key, fmt::format("there is no {} here", quote_text(name)),
                    "the keys are " + all);
    if (!found.emplace(name, &document_.value_of(key)).second)
      return refuse(key, fmt::format("\"{}\" is given twice", name), "keep one of them");
  }
  for (const std::string_view name : needed)
    if (!found.contains(name))
      return refuse(node, fmt::format("\"{}\" is missing", name), "add it");
  return found;
}

Result<std::string> FileReader::text(const Node& node, std::string_view name) const {
  if (node.kind != NodeKind::scalar || document_.text(node).empty())
    return refuse(node, fmt::format("\"{}\" is text", name), "write one word, or quote it");
  return std::string(document_.text(node));
}

Result<std::vector<std::string>> FileReader::texts(const Node& node, std::string_view name) const {
  if (node.kind != NodeKind::list)
    return refuse(node, fmt::format("\"{}\" is a list", name),
                  fmt::format("write {}: [NAME, ...]", name));
  std::vector<std::string> list;
  for (const Node& each : document_.children(node)) {
    Result<std::string> one = text(each, name);
    if (!one) return pass_on(one);
    list.push_back(std::move(*one));
  }
  return list;
}

Result<PublicKey> FileReader::public_key(const Node& node) const {
  Result<PublicKey> key = parse_public_key(fmt::format(
      "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", document_.text(node)));
  if (!key)
    return refuse(node, "no Ed25519 public key",
                  "write the line between BEGIN and END of `openssl pkey -in KEY -pubout`");
  return key;
}

}  // namespace holdfast::token
