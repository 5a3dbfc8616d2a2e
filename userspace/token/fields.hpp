// Reading a YAML or JSON file of maps, with errors that name file:line.
#pragma once

#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "policy/document.hpp"
#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"

namespace holdfast::token {

class FileReader {
 public:
  // `code` is that of every error; it has static storage.
  FileReader(const Document& document, std::string_view file, std::string_view code)
      : document_(document), file_(file), code_(code) {}

  using Fields = std::map<std::string_view, const Node*>;
  using Names = std::initializer_list<std::string_view>;

  const Document& document() const { return document_; }
  std::unexpected<Error> refuse(const Node& at, std::string what, std::string mend) const;
  // The values of a map by key; each key is known and there once, and those needed are there.
  Result<Fields> fields(const Node& node, Names known, Names needed) const;
  Result<std::string> text(const Node& node, std::string_view name) const;
  Result<std::vector<std::string>> texts(const Node& node, std::string_view name) const;
  // The line between BEGIN and END of an Ed25519 public key in PEM.
  Result<PublicKey> public_key(const Node& node) const;

 private:
  const Document& document_;
  std::string_view file_;
  std::string_view code_;
};

}  // namespace holdfast::token
