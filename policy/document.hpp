// A policy file's text as a tree, before anyone knows what it means. YAML and JSON both become
// this, so that one validator serves both and every message can name a line. A Document holds
// copies of all text and depends on nothing else; nodes are indices, so a hostile file cannot make
// freeing it recurse.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "policy/limits.hpp"
#include "userspace/base/result.hpp"

namespace holdfast {

enum class NodeKind : uint8_t {
  scalar,
  list,  // children: items
  map,   // children: keys, which are scalars; each key's one child is its value
};

struct Node {
  uint32_t line = 0;    // from 1
  uint32_t column = 0;  // from 1, in characters
  uint32_t text_at = 0;
  uint32_t text_size = 0;
  uint32_t first_child = 0;  // 0: none, since node 0 is the root and nobody's child
  uint32_t next = 0;         // sibling; 0: the last
  NodeKind kind = NodeKind::scalar;
  bool quoted =
      false;  // a scalar that can only be text: quoted or a block in YAML, a string in JSON
};
static_assert(sizeof(Node) == 28, "document_nodes_max counts on it");

class Document {
 public:
  const Node& root() const { return nodes_.front(); }
  const Node& at(uint32_t index) const { return nodes_[index]; }
  std::string_view text(const Node& node) const {
    return std::string_view(texts_).substr(node.text_at, node.text_size);
  }
  const Node& value_of(const Node& key) const { return nodes_[key.first_child]; }

  // The children of a list or map, in file order.
  class Children {
   public:
    class Iterator {
     public:
      Iterator(const Document* document, uint32_t index) : document_(document), index_(index) {}
      const Node& operator*() const { return document_->at(index_); }
      Iterator& operator++() {
        index_ = document_->at(index_).next;
        return *this;
      }
      bool operator!=(const Iterator& other) const { return index_ != other.index_; }

     private:
      const Document* document_;
      uint32_t index_;
    };
    Children(const Document* document, uint32_t first) : document_(document), first_(first) {}
    Iterator begin() const { return {document_, first_}; }
    Iterator end() const { return {document_, 0}; }

   private:
    const Document* document_;
    uint32_t first_;
  };
  Children children(const Node& node) const { return {this, node.first_child}; }

 private:
  friend class DocumentBuilder;
  std::vector<Node> nodes_;
  std::string texts_;
};

// What both readers feed. Each call answers an empty text, or why it cannot go on; the reader adds
// the line. After the first refusal the builder is of no further use.
class DocumentBuilder {
 public:
  std::string_view scalar(uint32_t line, uint32_t column, std::string_view text, bool quoted);
  std::string_view open(uint32_t line, uint32_t column, NodeKind kind);
  std::string_view close();

  bool complete() const { return !document_.nodes_.empty() && open_.empty(); }
  Document take() { return std::move(document_); }

 private:
  struct Open {
    uint32_t node;
    uint32_t last_child;   // 0: none yet
    uint32_t pending_key;  // of a map: a key that waits for its value; 0: none
  };
  std::string_view add(const Node& node);

  Document document_;
  std::vector<Open> open_;
};

// Text to tree. `file_name` is only for messages: "file:line: what is wrong; how to mend it", one
// error of kind invalid and code policy_syntax. Refused besides bad syntax: more than bytes_max,
// text that is not UTF-8, control bytes, a byte order mark, no document, a second document, YAML
// anchors, aliases, merge keys, tags and directives, keys that are not plain words, and depth or
// node count beyond limits.hpp. Duplicate keys are kept: the validator reports them with both
// lines.
Result<Document> read_document(std::string_view bytes, std::string_view file_name,
                               size_t bytes_max);

}  // namespace holdfast
