#include "userspace/token/pkcs11_uri.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <span>

#include <fmt/format.h>

namespace holdfast::token {
namespace {

constexpr std::string_view scheme = "pkcs11:";
constexpr size_t uri_bytes_max = 4096;
// RFC 7512, section 2.3, beside letters and digits.
constexpr std::string_view path_characters = "-._~:[]@!$'()*+,=&";
constexpr std::string_view query_characters = "-._~:[]@!$'()*+,=/?|";

struct Attribute {
  std::string_view name;
  std::string Pkcs11Uri::* value;
};
constexpr std::array<Attribute, 6> path_attributes{{
    {"token", &Pkcs11Uri::token},
    {"manufacturer", &Pkcs11Uri::manufacturer},
    {"model", &Pkcs11Uri::model},
    {"serial", &Pkcs11Uri::serial},
    {"object", &Pkcs11Uri::object},
    {"id", &Pkcs11Uri::id},
}};
constexpr std::array<Attribute, 2> query_attributes{{
    {"module-path", &Pkcs11Uri::module_path},
    {"pin-source", &Pkcs11Uri::pin_source},
}};

std::unexpected<Error> refuse(std::string why, std::string next_step) {
  return fail(ErrorKind::invalid, "pkcs11_uri", "the PKCS#11 URI " + std::move(why),
              std::move(next_step));
}

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

Result<std::string> decode(std::string_view name, std::string_view text, std::string_view allowed) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      if (!is_plain(text[i]) && allowed.find(text[i]) == std::string_view::npos)
        return refuse(fmt::format("has a character in {} that may not stand for itself", name),
                      "write it as % and two hexadecimal digits (RFC 7512)");
      out.push_back(text[i]);
      continue;
    }
    uint8_t byte = 0;
    const char* digits = text.data() + i + 1;
    if (text.size() - i <= 2 || std::from_chars(digits, digits + 2, byte, 16).ptr != digits + 2)
      return refuse(fmt::format("has a % in {} without two hexadecimal digits", name),
                    "a % itself is %25");
    out.push_back(static_cast<char>(byte));
    i += 2;
  }
  if (out.empty())
    return refuse(fmt::format("has an empty {}", name), "give a value, or leave it out");
  if (name != "id" && out.find('\0') != std::string::npos)
    return refuse(fmt::format("has a zero byte in {}", name), "remove it");
  return out;
}

Status read_attributes(Pkcs11Uri& uri, std::string_view text, char separator,
                       std::span<const Attribute> known, std::string_view allowed) {
  while (!text.empty()) {
    const size_t end = text.find(separator);
    const std::string_view each = text.substr(0, end);
    text.remove_prefix(std::min(each.size() + 1, text.size()));
    const size_t equals = each.find('=');
    const std::string_view name = each.substr(0, equals);
    if (name == "pin-value")
      return refuse("has a PIN in it, which everybody sees who may list processes",
                    "write the PIN to a file of mode 0400: pin-source=file:/PATH");
    if (name == "type" && each == "type=private") continue;
    const auto attribute = std::ranges::find(known, name, &Attribute::name);
    if (equals == std::string_view::npos || attribute == known.end()) {
      std::string names;
      for (const Attribute& one : known) names.append(names.empty() ? "" : ", ").append(one.name);
      return refuse(fmt::format("has \"{}\", which has no meaning there", name.substr(0, 32)),
                    "what is known there: " + names);
    }
    std::string& value = uri.*attribute->value;
    if (!value.empty()) return refuse(fmt::format("has {} twice", name), "give it once");
    Result<std::string> decoded = decode(name, each.substr(equals + 1), allowed);
    if (!decoded) return pass_on(decoded);
    value = std::move(*decoded);
  }
  return {};
}

}  // namespace

bool is_pkcs11_uri(std::string_view text) {
  return text.starts_with(scheme);
}

Result<Pkcs11Uri> parse_pkcs11_uri(std::string_view text) {
  if (!is_pkcs11_uri(text) || text.size() > uri_bytes_max)
    return refuse(
        fmt::format("does not begin with {}, or has more than {} bytes", scheme, uri_bytes_max),
        "write it as RFC 7512 says");
  text.remove_prefix(scheme.size());
  const size_t mark = std::min(text.find('?'), text.size());
  Pkcs11Uri uri;
  if (Status ok = read_attributes(uri, text.substr(0, mark), ';', path_attributes, path_characters);
      !ok)
    return pass_on(ok);
  if (Status ok = read_attributes(uri, text.substr(std::min(mark + 1, text.size())), '&',
                                  query_attributes, query_characters);
      !ok)
    return pass_on(ok);
  if (uri.object.empty() && uri.id.empty())
    return refuse("names no key", "add object=LABEL, or id=, such as id=%01");
  if (!uri.module_path.starts_with('/'))
    return refuse("names no module by an absolute path",
                  "add ?module-path=/PATH/OF/THE/MODULE.so, which comes with the token");
  if (uri.pin_source.starts_with("file:")) uri.pin_source.erase(0, 5);
  if (!uri.pin_source.empty() && !uri.pin_source.starts_with('/'))
    return refuse("takes its PIN from what is no file with an absolute path",
                  "write pin-source=file:/PATH");
  return uri;
}

}  // namespace holdfast::token
