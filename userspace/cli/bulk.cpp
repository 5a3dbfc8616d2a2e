#include "userspace/cli/bulk.hpp"

#include <algorithm>
#include <array>
#include <cerrno>

#include <fcntl.h>
#include <fmt/format.h>
#include <rapidjson/error/en.h>
#include <rapidjson/reader.h>
#include <sys/stat.h>
#include <unistd.h>

#include "policy/address.hpp"
#include "policy/decide.hpp"
#include "userspace/base/check.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/base/write_all.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::cli {
namespace {

constexpr size_t array_head_max = 9;  // a count of 64 bits

enum Key : uint8_t { tenant, endpoints, egress, peer, holder, ttl, grace, each, keys_count };
constexpr std::array<std::string_view, keys_count> key_names{
    "tenant", "endpoints", "egress", "peer", "holder", "ttl", "grace", "each"};

// A value that is judged once for as long as the file repeats it.
template <typename T>
struct Remembered {
  std::string text;
  T value{};
  bool known = false;
};

// Takes the reader's events. One object at a time: its texts stand in `arena_` until it ends.
class Handler : public rapidjson::BaseReaderHandler<rapidjson::UTF8<>, Handler> {
 public:
  Handler(GrantBody& body, const BulkDefaults& defaults) : body_(body), defaults_(defaults) {
    arena_.reserve(1024);
  }

  // True for the array form: objects stand one level deeper.
  void expect_array(bool array) { array_ = array; }
  const std::optional<Error>& error() const { return error_; }

  bool StartArray() {
    if (!in_object_ && array_ && !in_array_) return in_array_ = true;
    if (!in_object_) return refuse("a lease is an object", "write {\"tenant\": ...}");
    if (in_list_ || (key_ != endpoints && key_ != egress)) return wrong_type();
    return in_list_ = true;
  }
  bool EndArray(rapidjson::SizeType) {
    if (in_list_) in_list_ = false;
    return true;
  }

  bool StartObject() {
    if (in_object_) return wrong_type();
    in_object_ = true;
    seen_ = 0;
    each_ = false;
    arena_.clear();
    for (auto& text : texts_) text = {};
    lists_[0].clear();
    lists_[1].clear();
    return true;
  }

  bool Key(const char* text, rapidjson::SizeType length, bool) {
    const std::string_view name(text, length);
    const auto found = std::ranges::find(key_names, name);
    if (found == key_names.end()) {
      return refuse(fmt::format("a lease has no \"{}\"", name),
                    fmt::format("its keys are {}", fmt::join(key_names, ", ")));
    }
    key_ = static_cast<enum Key>(found - key_names.begin());
    if ((seen_ >> key_ & 1) != 0)
      return refuse(fmt::format("\"{}\" is given twice", name), "keep one of them");
    seen_ |= 1U << key_;
    return true;
  }

  bool String(const char* text, rapidjson::SizeType length, bool) {
    if (!in_object_) return refuse("a lease is an object", "write {\"tenant\": ...}");
    const bool is_list = key_ == endpoints || key_ == egress;
    if (is_list != in_list_ || key_ == each) return wrong_type();
    if (length == 0)
      return refuse(fmt::format("\"{}\" is empty", key_names[key_]), "leave it out, or say which");
    const Piece piece{arena_.size(), length};
    arena_.append(text, length);
    if (is_list) {
      lists_[key_ == egress].push_back(piece);
    } else {
      texts_[key_] = piece;
    }
    return true;
  }

  bool Bool(bool value) {
    if (!in_object_ || in_list_ || key_ != each) return wrong_type();
    each_ = value;
    return true;
  }
  bool Null() { return wrong_type(); }
  bool Default() { return wrong_type(); }
  bool Int(int value) { return number(value); }
  bool Uint(unsigned value) { return number(value); }
  bool Int64(int64_t value) { return number(value); }
  bool Uint64(uint64_t value) { return number(value); }

  bool EndObject(rapidjson::SizeType) {
    in_object_ = false;
    return finish_entry();
  }

 private:
  struct Piece {
    size_t begin = 0;
    size_t size = 0;
  };

  std::string_view view(const Piece& piece) const {
    return std::string_view(arena_).substr(piece.begin, piece.size);
  }
  bool seen(enum Key key) const { return (seen_ >> key & 1) != 0; }

  bool refuse(std::string what, std::string mend) {
    error_ = Error{ErrorKind::invalid, "bulk_entry", 0, std::move(what), std::move(mend)};
    return false;
  }
  bool refuse(Error error, enum Key key) {
    error.code = "bulk_entry";
    error_ = std::move(error).in(key_names[key]);
    return false;
  }

  bool wrong_type() {
    if (!in_object_) return refuse("a lease is an object", "write {\"tenant\": ...}");
    if (key_ == each) return refuse("\"each\" is true or false", "write it without quotes");
    if (key_ == endpoints || key_ == egress) {
      return refuse(fmt::format("\"{}\" is a list of names", key_names[key_]),
                    fmt::format("write \"{}\": [\"NAME\"]", key_names[key_]));
    }
    return refuse(fmt::format("\"{}\" is text", key_names[key_]), "write it in quotes");
  }

  template <typename T>
  bool number(T value) {
    if (in_object_ && !in_list_ && (key_ == ttl || key_ == grace)) {
      return refuse(fmt::format("\"{}\": {} has no unit", key_names[key_], value),
                    fmt::format("write it as text with its unit, such as \"{}s\"", value));
    }
    return wrong_type();
  }

  // Files repeat few values a million times: each is judged when it changes.
  template <typename T, typename Parse>
  bool judge(enum Key key, Remembered<T>& last, Parse parse) {
    const std::string_view text = view(texts_[key]);
    if (last.known && last.text == text) return true;
    Result<T> value = parse(text);
    if (!value) return refuse(std::move(value.error()), key);
    last = {std::string(text), std::move(*value), true};
    return true;
  }

  bool finish_entry() {
    if (!seen(tenant)) return refuse("a lease without \"tenant\"", "say whose it is");
    if (lists_[0].empty() && lists_[1].empty()) {
      return refuse("a lease that opens nothing",
                    "name at least one of \"endpoints\" and \"egress\"");
    }
    if (each_ && (lists_[0].empty() || !lists_[1].empty())) {
      return refuse("\"each\" stands for every member of \"endpoints\", and of nothing else",
                    "name endpoints, and egress in a lease of its own");
    }
    LeaseEntry entry;
    entry.tenant = view(texts_[tenant]);
    entry.each = each_;
    for (size_t i = 0; i < lists_.size(); ++i) {
      views_[i].clear();
      for (const Piece& piece : lists_[i]) views_[i].push_back(view(piece));
    }
    entry.endpoints = views_[0];
    entry.egress = views_[1];
    if (seen(peer)) {
      if (!judge(peer, peer_, parse_prefix)) return false;
      entry.peer = view(texts_[peer]);
    }
    entry.holder = defaults_.holder;
    if (seen(holder)) {
      if (!judge(holder, holder_, parse_holder)) return false;
      entry.holder = holder_.value;
    }
    entry.ttl_ns = defaults_.ttl_ns;
    if (seen(ttl)) {
      const auto term = [](std::string_view text) -> Result<uint64_t> {
        Result<uint64_t> ns = parse_duration(text);
        if (!ns) return ns;
        if (Status fits = check_term(*ns); !fits) return pass_on(fits);
        return ns;
      };
      if (!judge(ttl, ttl_, term)) return false;
      entry.ttl_ns = ttl_.value;
    }
    entry.grace_ns = defaults_.grace_ns;
    if (seen(grace)) {
      if (!judge(grace, grace_, parse_duration)) return false;
      entry.grace_ns = grace_.value;
    }
    body_.add(entry);
    return true;
  }

  GrantBody& body_;
  const BulkDefaults& defaults_;
  bool array_ = false;
  bool in_array_ = false;
  bool in_object_ = false;
  bool in_list_ = false;
  enum Key key_ = tenant;
  uint32_t seen_ = 0;
  bool each_ = false;
  std::string arena_;
  std::array<Piece, keys_count> texts_{};
  std::array<std::vector<Piece>, 2> lists_;             // endpoints, egress
  std::array<std::vector<std::string_view>, 2> views_;  // the same, once the arena stands still
  Remembered<Prefix> peer_;
  Remembered<std::string> holder_;
  Remembered<uint64_t> ttl_;
  Remembered<uint64_t> grace_;
  std::optional<Error> error_;
};

size_t line_of(std::string_view text, size_t offset) {
  const auto end = text.begin() + static_cast<ptrdiff_t>(std::min(offset, text.size()));
  return 1 + static_cast<size_t>(std::count(text.begin(), end, '\n'));
}

std::unexpected<Error> syntax_error(std::string_view text, std::string_view file, size_t offset,
                                    std::string_view what) {
  std::string reason(what);
  if (!reason.empty() && reason.back() == '.') reason.pop_back();
  return fail(ErrorKind::invalid, "bulk_syntax",
              fmt::format("{}:{}: not JSON: {}", file, line_of(text, offset), reason),
              "write one object a line, or one array of objects");
}

}  // namespace

GrantBody::GrantBody() {
  bytes_.resize(array_head_max);
}

void GrantBody::add(const LeaseEntry& entry) {
  cbor::Writer out(bytes_);
  const uint64_t pairs = 2 + (entry.each ? 1 : 0) + (entry.peer.empty() ? 0 : 1) +
                         (entry.egress.empty() ? 0 : 1) + (entry.holder.empty() ? 0 : 1) +
                         (entry.grace_ns ? 1 : 0) + (entry.endpoints.empty() ? 0 : 1);
  const auto list = [&out](std::string_view key, std::span<const std::string_view> names) {
    if (names.empty()) return;
    out.text(key).array(names.size());
    for (const std::string_view name : names) out.text(name);
    out.end();
  };
  // In canonical order: the shorter key first.
  out.map(pairs);
  if (entry.each) out.text("each").boolean(true);
  if (!entry.peer.empty()) out.text("peer").text(entry.peer);
  list("egress", entry.egress);
  if (!entry.holder.empty()) out.text("holder").text(entry.holder);
  out.text("tenant").text(entry.tenant);
  out.text("ttl_ns").u64(entry.ttl_ns);
  if (entry.grace_ns) out.text("grace_ns").u64(*entry.grace_ns);
  list("endpoints", entry.endpoints);
  out.end();
  ++count_;
}

std::span<const uint8_t> GrantBody::finish() {
  // The array's head goes right before its items, into the end of the room left for it.
  std::vector<uint8_t> head;
  constexpr uint8_t array_major = 4 << 5;
  const auto append = [&](uint8_t info, size_t size) {
    head.push_back(array_major | info);
    for (size_t i = size; i-- > 0;) head.push_back(static_cast<uint8_t>(count_ >> (8 * i)));
  };
  if (count_ < 24) {
    append(static_cast<uint8_t>(count_), 0);
  } else if (count_ <= UINT8_MAX) {
    append(24, 1);
  } else if (count_ <= UINT16_MAX) {
    append(25, 2);
  } else if (count_ <= UINT32_MAX) {
    append(26, 4);
  } else {
    append(27, 8);
  }
  CHECK(head.size() <= array_head_max);
  const size_t begin = array_head_max - head.size();
  std::ranges::copy(head, bytes_.begin() + static_cast<ptrdiff_t>(begin));
  return std::span<const uint8_t>(bytes_).subspan(begin);
}

Result<GrantBody> parse_bulk(const std::string& text, std::string_view file,
                             const BulkDefaults& defaults) {
  // The reader ends at a zero byte, and takes text for UTF-8 that it does not check.
  if (const size_t zero = text.find('\0'); zero != text.npos)
    return syntax_error(text, file, zero, "a zero byte");
  if (!cbor::is_utf8(text)) {
    size_t begin = 0;
    while (begin < text.size()) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      if (!cbor::is_utf8(std::string_view(text).substr(begin, end - begin))) break;
      begin = end + 1;
    }
    return syntax_error(text, file, begin, "the text is not UTF-8");
  }

  GrantBody body;
  body.reserve(text.size() + text.size() / 8 + 64);
  Handler handler(body, defaults);
  rapidjson::StringStream stream(text.c_str());
  rapidjson::Reader reader;
  rapidjson::SkipWhitespace(stream);
  const bool array = stream.Peek() == '[';
  handler.expect_array(array);
  for (bool first = true; stream.Peek() != '\0' && (first || !array); first = false) {
    // The reader recurses, but the handler refuses what stands deeper than a name in a lease's
    // list.
    reader.Parse<rapidjson::kParseStopWhenDoneFlag>(stream, handler);
    if (handler.error()) {
      Error error = *handler.error();
      return std::unexpected(
          std::move(error).in(fmt::format("{}:{}", file, line_of(text, stream.Tell()))));
    }
    if (reader.HasParseError()) {
      return syntax_error(text, file, reader.GetErrorOffset(),
                          rapidjson::GetParseError_En(reader.GetParseErrorCode()));
    }
    rapidjson::SkipWhitespace(stream);
  }
  if (stream.Peek() != '\0')
    return syntax_error(text, file, stream.Tell(), "text follows the array");
  if (body.count() == 0) {
    return fail(
        ErrorKind::invalid, "bulk_empty", fmt::format("{}: no leases in it", file),
        "write one object a line: {\"tenant\": \"acme/shop/prod\", \"endpoints\": [\"web\"]}");
  }
  return body;
}

std::string shown_name(const std::string& path) {
  return path == "-" ? "standard input" : path;
}

Status write_file(const std::string& path, std::span<const uint8_t> bytes) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd) return fail_sys(errno, "file_write", "opening " + path);
  if (!write_all(fd.get(), bytes)) return fail_sys(errno, "file_write", "writing " + path);
  return {};
}

Result<std::string> read_file(const std::string& path, size_t bytes_max) {
  const bool is_input = path == "-";
  UniqueFd opened;
  if (!is_input) {
    opened = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!opened) {
      return std::unexpected(Error{errno == ENOENT ? ErrorKind::not_found : ErrorKind::internal,
                                   "file_missing", errno, path, "check the path"});
    }
  }
  const int fd = is_input ? STDIN_FILENO : opened.get();
  const std::string name = shown_name(path);
  std::string content;
  constexpr size_t piece = size_t{1} << 20;
  struct stat info{};
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode))
    content.reserve(std::min(static_cast<size_t>(info.st_size), bytes_max) + piece);
  for (;;) {
    const size_t have = content.size();
    if (have > bytes_max) {
      return fail(ErrorKind::invalid, "file_too_large",
                  fmt::format("{} is longer than {}", name, human_bytes(bytes_max)), "split it");
    }
    ssize_t got = 0;
    content.resize_and_overwrite(have + piece, [&](char* data, size_t) {
      got = ::read(fd, data + have, piece);
      return have + static_cast<size_t>(std::max<ssize_t>(got, 0));
    });
    if (got == 0) return content;
    if (got < 0 && errno != EINTR) return fail_sys(errno, "file_read", "reading " + name);
  }
}

}  // namespace holdfast::cli
