#include "policy/document.hpp"

#include <iterator>
#include <memory>
#include <optional>

#include <fmt/format.h>
#include <libfyaml.h>
#include <nlohmann/json.hpp>

#include "userspace/base/check.hpp"

namespace holdfast {
namespace {

static_assert(document_text_max == 4096, "said in the message");
constexpr std::string_view text_too_long =
    "a key or value of more than 4096 bytes; nothing in a policy is that long";

std::unexpected<Error> syntax_error(std::string_view file_name, uint32_t line,
                                    std::string_view what) {
  return fail(ErrorKind::invalid, "policy_syntax", fmt::format("{}:{}: {}", file_name, line, what));
}

// ---- bytes
// ---------------------------------------------------------------------------------------------

// How many bytes the well-formed UTF-8 character at `at` has (Unicode table 3-7), or 0.
size_t utf8_length(std::string_view bytes, size_t at) {
  auto byte = [&](size_t i) -> unsigned {
    return at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0U;
  };
  auto follows = [&](size_t i) { return (byte(i) & 0xc0U) == 0x80U; };
  unsigned head = byte(0);
  unsigned second = byte(1);
  if (head < 0x80) return 1;
  if (head < 0xc2) return 0;
  if (head < 0xe0) return follows(1) ? 2 : 0;
  if (head < 0xf0) {
    bool overlong = head == 0xe0 && second < 0xa0;
    bool surrogate = head == 0xed && second >= 0xa0;
    return follows(1) && follows(2) && !overlong && !surrogate ? 3 : 0;
  }
  bool overlong = head == 0xf0 && second < 0x90;
  bool beyond = head > 0xf4 || (head == 0xf4 && second >= 0x90);
  return follows(1) && follows(2) && follows(3) && !overlong && !beyond ? 4 : 0;
}

Status check_bytes(std::string_view bytes, std::string_view file_name, size_t bytes_max) {
  if (bytes.size() > bytes_max) {
    return syntax_error(file_name, 1,
                        fmt::format("the policy has {} bytes, over the limit of {}; write runs of "
                                    "addresses as prefixes and runs of ports as ranges",
                                    bytes.size(), bytes_max));
  }
  if (bytes.starts_with("\xef\xbb\xbf")) {
    return syntax_error(file_name, 1, "a byte order mark; save the file as UTF-8 without one");
  }
  uint32_t line = 1;
  for (size_t at = 0; at < bytes.size();) {
    auto c = static_cast<unsigned char>(bytes[at]);
    if (c == '\n') {
      ++line;
    } else if (c == 0) {
      return syntax_error(file_name, line, "a NUL byte; the policy is a text file, remove it");
    } else if (c == '\r' && (at + 1 == bytes.size() || bytes[at + 1] != '\n')) {
      return syntax_error(file_name, line, "a carriage return alone; end lines with a line feed");
    } else if ((c < 0x20 && c != '\t' && c != '\r') || c == 0x7f) {
      return syntax_error(file_name, line, fmt::format("a control byte 0x{:02x}; remove it", c));
    }
    size_t length = utf8_length(bytes, at);
    if (length == 0) {
      return syntax_error(
          file_name, line,
          fmt::format("byte 0x{:02x} does not belong to UTF-8 text; save the file as UTF-8", c));
    }
    at += length;
  }
  return {};
}

// ---- JSON
// ----------------------------------------------------------------------------------------------

// The parser tells no positions, but it reads one byte at a time: the furthest byte read tells.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at;
  const char** furthest;

  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    *furthest = ++at;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
};

// Walks the text beside the parser: between two tokens stand only blanks, commas and colons, so a
// token begins at the first other byte after the end of the token before it.
class JsonReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonReader(std::string_view bytes, std::string_view file_name)
      : bytes_(bytes), file_name_(file_name), furthest_(bytes.data()) {}

  Result<Document> read() {
    // `last` ends the text, not a terminator.
    // NOLINTNEXTLINE(bugprone-suspicious-stringview-data-usage)
    CountingIterator first{bytes_.data(), &furthest_};
    CountingIterator last{bytes_.data() + bytes_.size(), &furthest_};
    bool whole = nlohmann::json::sax_parse(first, last, this, nlohmann::json::input_format_t::json,
                                           /*strict=*/true);
    if (!whole) {
      CHECK(!why_.empty());
      return syntax_error(file_name_, line_, why_);
    }
    CHECK(builder_.complete());
    return builder_.take();
  }

  bool null() override { return word(); }
  bool boolean(bool) override { return word(); }
  bool number_integer(number_integer_t) override { return number(); }
  bool number_unsigned(number_unsigned_t) override { return number(); }
  bool number_float(number_float_t, const string_t&) override { return number(); }
  bool string(string_t& text) override { return add(consumed(), text, true); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(NodeKind::map); }
  bool key(string_t& text) override { return add(consumed(), text, true); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(NodeKind::list); }
  bool end_array() override { return close(); }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& e) override {
    constexpr int number_overflow = 406;
    constexpr size_t what_max = 160;  // it quotes the text that it stopped at, however long
    // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while ..."
    std::string_view what = e.what();
    size_t after = what.find(": ");
    if (after != std::string_view::npos) what.remove_prefix(after + 2);
    if (e.id == number_overflow) what = "number out of every range";
    std::string_view cut = what.size() > what_max ? "..." : "";
    what = what.substr(0, what_max);
    size_t end = std::max<size_t>(consumed(), 1);
    // The byte that was the last straw may be a line feed; it belongs to the line it ends.
    go_to(end - 1);
    bool after_document = builder_.complete();
    why_ =
        after_document
            ? std::string("text after the end of the document; remove it, a file holds one policy")
            : fmt::format(
                  "JSON {}{}; mend the syntax (a file that begins with '{{' is read as JSON)", what,
                  cut);
    return false;
  }

 private:
  size_t consumed() const { return static_cast<size_t>(furthest_ - bytes_.data()); }

  void go_to(size_t offset) {
    for (; at_ < offset; ++at_) {
      if (bytes_[at_] == '\n') {
        ++line_;
        line_start_ = at_ + 1;
      }
    }
  }

  void go_to_token() {
    size_t start = at_;
    while (start < bytes_.size() && std::string_view(" \t\r\n,:").contains(bytes_[start])) ++start;
    go_to(start);
  }

  uint32_t column() const { return static_cast<uint32_t>(at_ - line_start_) + 1; }

  bool judged(std::string_view why, size_t token_end) {
    if (!why.empty()) {
      why_ = why;
      return false;
    }
    go_to(token_end);
    return true;
  }

  bool add(size_t token_end, std::string_view text, bool quoted) {
    go_to_token();
    return judged(builder_.scalar(line_, column(), text, quoted), token_end);
  }

  bool word() {
    go_to_token();
    return add(consumed(), bytes_.substr(at_, consumed() - at_), false);
  }

  // A number ends where the parser has looked one byte further, except at the end of the text.
  bool number() {
    go_to_token();
    size_t end = consumed();
    while (end > at_ && !std::string_view("0123456789").contains(bytes_[end - 1])) --end;
    return add(end, bytes_.substr(at_, end - at_), false);
  }

  bool open(NodeKind kind) {
    go_to_token();
    return judged(builder_.open(line_, column(), kind), consumed());
  }

  bool close() {
    go_to_token();
    return judged(builder_.close(), consumed());
  }

  std::string_view bytes_;
  std::string_view file_name_;
  const char* furthest_;
  size_t at_ = 0;  // everything before it was turned into nodes
  size_t line_start_ = 0;
  uint32_t line_ = 1;
  std::string why_;
  DocumentBuilder builder_;
};

// ---- YAML
// ----------------------------------------------------------------------------------------------

struct ParserDeleter {
  void operator()(fy_parser* parser) const { fy_parser_destroy(parser); }
};
struct DiagDeleter {
  void operator()(fy_diag* diag) const { fy_diag_destroy(diag); }
};

class YamlReader {
 public:
  YamlReader(std::string_view bytes, std::string_view file_name)
      : bytes_(bytes), file_name_(file_name) {}

  Result<Document> read() {
    fy_diag_cfg diag_config{};
    fy_diag_cfg_default(&diag_config);
    diag_config.fp = nullptr;
    diag_config.output_fn = [](fy_diag*, void*, const char*, size_t) {};
    diag_config.level = FYET_ERROR;
    std::unique_ptr<fy_diag, DiagDeleter> diag(fy_diag_create(&diag_config));
    CHECK(diag != nullptr);
    fy_diag_set_collect_errors(diag.get(), true);

    fy_parse_cfg config{};
    config.flags = static_cast<fy_parse_cfg_flags>(FYPCF_JSON_NONE | FYPCF_DEFAULT_VERSION_1_2);
    config.diag = diag.get();
    std::unique_ptr<fy_parser, ParserDeleter> parser(fy_parser_create(&config));
    CHECK(parser != nullptr);
    if (fy_parser_set_string(parser.get(), bytes_.data(), bytes_.size()) != 0) {
      return syntax_error(file_name_, 1, "the YAML parser refuses the text");
    }

    bool ended = false;
    while (fy_event* event = fy_parser_parse(parser.get())) {
      ended = event->type == FYET_STREAM_END;
      std::string why = take(*event);
      fy_parser_event_free(parser.get(), event);
      if (!why.empty()) return syntax_error(file_name_, line_, why);
    }
    void* previous = nullptr;
    if (const fy_diag_error* error = fy_diag_errors_iterate(diag.get(), &previous)) {
      return syntax_error(file_name_, static_cast<uint32_t>(std::max(error->line, 1)),
                          fmt::format("YAML syntax: {}; mend the syntax", error->msg));
    }
    if (!ended)
      return syntax_error(file_name_, line_, "YAML syntax the parser cannot read; mend it");
    if (!builder_.complete()) return syntax_error(file_name_, 1, "no document; write a policy");
    return builder_.take();
  }

 private:
  void go_to(fy_token* token) {
    const fy_mark* mark = token == nullptr ? nullptr : fy_token_start_mark(token);
    if (mark == nullptr) return;
    line_ = static_cast<uint32_t>(mark->line) + 1;
    column_ = static_cast<uint32_t>(mark->column) + 1;
  }

  // Everything that makes a value depend on something else than what stands there.
  std::string refuse_properties(fy_token* anchor, fy_token* tag) {
    if (anchor != nullptr) {
      go_to(anchor);
      return "an anchor (&); policies have none, write the value where it is used";
    }
    if (tag != nullptr) {
      go_to(tag);
      return "a tag (!); policies have none, remove it";
    }
    return {};
  }

  std::string take(const fy_event& event) {
    switch (event.type) {
      case FYET_NONE:
      case FYET_STREAM_START:
      case FYET_STREAM_END:
      case FYET_DOCUMENT_END: return {};
      case FYET_DOCUMENT_START: return take_document_start(event.document_start);
      case FYET_ALIAS:
        go_to(event.alias.anchor);
        return "an alias (*); policies have none, write the value out";
      case FYET_SCALAR: return take_scalar(event.scalar);
      case FYET_SEQUENCE_START:
        return open(event.sequence_start.anchor, event.sequence_start.tag,
                    event.sequence_start.sequence_start, NodeKind::list);
      case FYET_MAPPING_START:
        return open(event.mapping_start.anchor, event.mapping_start.tag,
                    event.mapping_start.mapping_start, NodeKind::map);
      case FYET_SEQUENCE_END:
      case FYET_MAPPING_END: return std::string(builder_.close());
    }
    return "a YAML construct that policies have none of; remove it";
  }

  std::string take_document_start(const fy_event_document_start_data& start) {
    go_to(start.document_start);
    if (seen_document_) return "a second YAML document; a file holds one policy, remove it";
    seen_document_ = true;
    if (start.document_state != nullptr &&
        (fy_document_state_version_explicit(start.document_state) ||
         fy_document_state_tags_explicit(start.document_state))) {
      return "a YAML directive (%) before '---'; policies have none, remove it";
    }
    return {};
  }

  std::string take_scalar(const fy_event_scalar_data& scalar) {
    if (std::string why = refuse_properties(scalar.anchor, scalar.tag); !why.empty()) return why;
    go_to(scalar.value);
    std::string_view text;
    bool quoted = false;
    if (scalar.value != nullptr) {
      // libfyaml takes quadratic time to fold blank lines: long text is refused before it is asked
      // for.
      const fy_mark* begin = fy_token_start_mark(scalar.value);
      const fy_mark* end = fy_token_end_mark(scalar.value);
      if (begin != nullptr && end != nullptr &&
          end->input_pos - begin->input_pos > document_text_max) {
        return std::string(text_too_long);
      }
      fy_scalar_style style = fy_token_scalar_style(scalar.value);
      if (style == FYSS_LITERAL || style == FYSS_FOLDED) {
        return "a block of text (| or >); policies have none, write it on one line";
      }
      quoted = style != FYSS_PLAIN;
      size_t size = 0;
      const char* data = fy_token_get_text(scalar.value, &size);
      if (data != nullptr) text = {data, size};
    }
    if (!quoted && text == "<<") {
      return "a merge key (<<); policies have none, write the keys out";
    }
    return std::string(builder_.scalar(line_, column_, text, quoted));
  }

  std::string open(fy_token* anchor, fy_token* tag, fy_token* start, NodeKind kind) {
    if (std::string why = refuse_properties(anchor, tag); !why.empty()) return why;
    go_to(start);
    return std::string(builder_.open(line_, column_, kind));
  }

  std::string_view bytes_;
  std::string_view file_name_;
  bool seen_document_ = false;
  uint32_t line_ = 1;
  uint32_t column_ = 1;
  DocumentBuilder builder_;
};

}  // namespace

// ---- tree
// ----------------------------------------------------------------------------------------------

std::string_view DocumentBuilder::add(const Node& node) {
  auto& nodes = document_.nodes_;
  if (nodes.size() >= document_nodes_max) {
    return "the file has more than 4194304 values; write runs of addresses as prefixes";
  }
  auto index = static_cast<uint32_t>(nodes.size());
  nodes.push_back(node);
  if (open_.empty()) {
    CHECK(index == 0);
    return {};
  }
  Open& parent = open_.back();
  if (nodes[parent.node].kind == NodeKind::map && parent.pending_key != 0) {
    nodes[parent.pending_key].first_child = index;
    parent.pending_key = 0;
    return {};
  }
  if (nodes[parent.node].kind == NodeKind::map) {
    if (node.kind != NodeKind::scalar) return "a key that is a list or a map; keys are plain words";
    parent.pending_key = index;
  }
  (parent.last_child == 0 ? nodes[parent.node].first_child : nodes[parent.last_child].next) = index;
  parent.last_child = index;
  return {};
}

std::string_view DocumentBuilder::scalar(uint32_t line, uint32_t column, std::string_view text,
                                         bool quoted) {
  if (text.size() > document_text_max) return text_too_long;
  Node node{.line = line, .column = column, .kind = NodeKind::scalar, .quoted = quoted};
  node.text_at = static_cast<uint32_t>(document_.texts_.size());
  node.text_size = static_cast<uint32_t>(text.size());
  document_.texts_ += text;
  return add(node);
}

std::string_view DocumentBuilder::open(uint32_t line, uint32_t column, NodeKind kind) {
  static_assert(document_depth_max == 16, "said in the message");
  if (open_.size() >= document_depth_max) {
    return "lists and maps nested more than 16 deep; a policy needs 7";
  }
  if (std::string_view why = add({.line = line, .column = column, .kind = kind}); !why.empty())
    return why;
  open_.push_back({static_cast<uint32_t>(document_.nodes_.size() - 1), 0, 0});
  return {};
}

std::string_view DocumentBuilder::close() {
  CHECK(!open_.empty());
  CHECK(open_.back().pending_key == 0);
  open_.pop_back();
  return {};
}

Result<Document> read_document(std::string_view bytes, std::string_view file_name,
                               size_t bytes_max) {
  if (Status status = check_bytes(bytes, file_name, bytes_max); !status) return pass_on(status);
  size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) {
    return syntax_error(file_name, 1, "the file is empty; write a policy");
  }
  if (bytes[first] == '{') return JsonReader(bytes, file_name).read();
  return YamlReader(bytes, file_name).read();
}

}  // namespace holdfast
