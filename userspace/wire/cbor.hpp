// Deterministic CBOR (RFC 8949, 4.2.1), strict both ways: one value has one encoding, and every
// other one is refused. Unsigned and negative integers, byte strings, UTF-8 text, arrays, maps,
// false, true and null; no floats, no undefined, no indefinite lengths. Tags only through
// Reader::tag() and Writer::tag(). Map keys are integers, byte strings or text, strictly ascending
// by their encoded bytes.
//
// Reader pulls from bytes it does not own and allocates nothing: for bulk requests and for tokens.
// Writer appends to a vector it does not own. Value is a small tree for everything else; its maps
// have text keys only. Threads: none of these is shared.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/wire/utf8.hpp"

namespace holdfast::cbor {

// Every limit of this file. A caller may lower what is in Limits, never raise the depth.
constexpr uint32_t depth_limit = 32;  // fixed stacks in Reader and Writer

struct Limits {
  uint32_t depth_max = 16;      // arrays and maps inside one another
  size_t bytes_max = 1U << 20;  // of the whole input; an inline frame body
  size_t items_max = 1U << 18;  // Value only: a one-byte item costs about 40 bytes of memory
  bool operator==(const Limits&) const = default;
};

// Why a Reader refused, in the order in which one would look for it.
enum class Fault : uint8_t {
  none,
  truncated,       // the bytes end inside an item, or a count promises more than there are
  trailing,        // bytes follow the one item
  wrong_type,      // well formed, but not what was asked for
  not_shortest,    // an integer or length has a shorter form
  indefinite,      // indefinite length, or a break
  reserved,        // additional information 28 to 30
  float_refused,   // half, single or double
  simple_refused,  // undefined or any other simple value
  tag_refused,     // a tag where none was asked for
  bad_utf8,        // text that is not UTF-8
  key_type,        // a map key that is not an integer, bytes or text
  key_order,       // a key that is not greater than the one before
  duplicate_key,   // the same key again
  out_of_range,    // an integer outside what was asked for
  too_deep,        // more nesting than Limits::depth_max
  too_long,        // more bytes than Limits::bytes_max, or more items than Limits::items_max
  past_end,        // asked for an item where the array, the map or the input has no more
  items_left,      // end() or finish() while items are unread
};

std::string_view describe(Fault fault);

enum class Type : uint8_t {
  unsigned_integer,
  negative_integer,
  bytes,
  text,
  array,
  map,
  tag,
  boolean,
  null,
  end,  // nothing more here, or a fault
};

bool is_utf8(std::string_view text);

// A pull reader. Ask for the item that has to come next; the first thing that does not fit is kept
// as the fault, with its offset, and every later call returns zero, false or an empty view. So a
// caller reads a whole structure and looks at ok() once:
//
//   Reader in(bytes);
//   for (in.map(); in.more();) { const std::string_view key = in.text(); ... }
//   in.end();
//   if (!in.finish()) return std::unexpected(in.error());
//
// Views point into the input. Key order is checked as keys are read.
class Reader {
 public:
  // frames_ is left uninitialised on purpose: clearing a kilobyte would cost more than a small
  // request. NOLINTNEXTLINE(cppcoreguidelines-pro-type-member-init)
  explicit Reader(std::span<const uint8_t> bytes, const Limits& limits = {})
      : input_(bytes), depth_max_(std::min(limits.depth_max, depth_limit)) {
    if (bytes.size() > limits.bytes_max) set_fault(Fault::too_long, limits.bytes_max);
  }

  // The type of the next item, without taking it.
  Type peek();

  uint64_t u64();
  int64_t i64();
  // For a negative integer -1-n: n. It covers what does not fit an int64_t.
  uint64_t negative();
  std::span<const uint8_t> bytes();
  std::string_view text();
  bool boolean();
  void null();
  // The tag number; the tagged item comes next. Not for a map key.
  uint64_t tag();

  // Enters an array or map and returns how many items or pairs it has: never more than there are
  // bytes left, so that it may be reserved for. end() leaves it and insists that all were read.
  uint64_t array();
  uint64_t map();
  void array_of(uint64_t count);  // wrong_type unless it has exactly so many items
  bool more() const { return fault_ == Fault::none && depth_ > 0 && frames_[depth_ - 1].left > 0; }
  void end();

  // Skips one whole item, checking it as strictly as if it had been read; tags are refused. The
  // second form returns the item's encoding.
  void skip();
  std::span<const uint8_t> raw();

  // True when exactly one item was read and nothing follows it.
  bool finish();

  // Lets the caller refuse the item just read, with the same offset keeping.
  void refuse(Fault fault) { set_fault(fault, item_); }

  bool ok() const { return fault_ == Fault::none; }
  Fault fault() const { return fault_; }
  size_t fault_offset() const { return fault_offset_; }
  size_t offset() const { return position_; }
  // invalid / malformed_cbor, naming the reason and the offset. Only when !ok().
  Error error() const;

 private:
  struct Nesting {
    uint64_t left;  // items unread; in a map two a pair, so that an even number means a key is next
    bool is_map;
    const uint8_t* key;  // encoding of the last key
    size_t key_size;
  };
  struct Head {
    uint8_t major;
    uint8_t info;
    uint64_t argument;
  };

  // The major types (RFC 8949, 3.1) that the inlined part below knows.
  static constexpr uint8_t major_unsigned = 0, major_bytes = 2, major_text = 3, major_array = 4,
                           major_map = 5;
  static constexpr uint8_t one_byte_max = 23;  // the largest argument in an item's first byte

  [[gnu::cold]] void set_fault(Fault fault, size_t at);
  bool at_key() const {
    return depth_ > 0 && frames_[depth_ - 1].is_map && frames_[depth_ - 1].left % 2 == 0;
  }
  bool begin(Head& head);
  bool begin(Head& head, uint8_t major);
  bool begin_slowly(Head& head, uint8_t major);
  void complete();
  void complete_slowly();
  void end_slowly();
  int64_t i64_slowly();
  uint64_t enter(uint8_t major);
  std::span<const uint8_t> string(uint8_t major);

  std::span<const uint8_t> input_;
  size_t position_ = 0;
  size_t item_ = 0;  // where the current item starts
  uint32_t depth_ = 0;
  uint32_t depth_max_;
  bool root_taken_ = false;
  Fault fault_ = Fault::none;
  size_t fault_offset_ = 0;
  std::array<Nesting, depth_limit> frames_;  // only the first depth_ are meaningful
};

// What every item takes, in the callers: a call each would cost as much as reading it. The common
// case is decided here; everything else, and everything that is refused, is not.

inline bool Reader::begin(Head& head, uint8_t major) {
  const bool expected = depth_ > 0 ? frames_[depth_ - 1].left != 0 : !root_taken_;
  if (fault_ == Fault::none && expected && position_ + 1 < input_.size()) [[likely]] {
    const uint8_t first = input_[position_];
    const uint8_t info = first & 0x1f;
    const uint8_t next = input_[position_ + 1];
    const bool one_byte = info < 24;
    if (first >> 5 == major && (one_byte || (info == 24 && next >= 24))) [[likely]] {
      item_ = position_;
      head = {major, info, one_byte ? info : next};
      position_ += one_byte ? 1 : 2;
      return true;
    }
  }
  return begin_slowly(head, major);
}

inline void Reader::complete() {
  if (depth_ > 0) [[likely]] {
    Nesting& frame = frames_[depth_ - 1];
    if (!frame.is_map || frame.left % 2 != 0) {
      --frame.left;
      return;
    }
    // A key of one byte after another such one, or the first.
    const uint8_t* key = input_.data() + item_;
    if (position_ - item_ == 1 &&
        (frame.key == nullptr || (frame.key_size == 1 && *frame.key < *key))) {
      frame.key = key;
      frame.key_size = 1;
      --frame.left;
      return;
    }
  }
  complete_slowly();
}

inline uint64_t Reader::u64() {
  Head head;
  if (!begin(head, major_unsigned)) return 0;
  complete();
  return ok() ? head.argument : 0;
}

// Mostly a small label.
inline int64_t Reader::i64() {
  if (position_ < input_.size() && input_[position_] <= one_byte_max) [[likely]]
    return static_cast<int64_t>(u64());
  return i64_slowly();
}

inline std::span<const uint8_t> Reader::string(uint8_t major) {
  Head head;
  if (!begin(head, major)) return {};
  if (head.argument > input_.size() - position_) {
    set_fault(Fault::truncated, item_);
    return {};
  }
  const auto content = input_.subspan(position_, head.argument);
  position_ += head.argument;
  if (major == major_text) {
    const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
    if (!is_ascii(text) && !is_utf8(text)) {
      set_fault(Fault::bad_utf8, item_);
      return {};
    }
  }
  complete();
  return ok() ? content : std::span<const uint8_t>();
}

inline std::span<const uint8_t> Reader::bytes() {
  return string(major_bytes);
}

inline std::string_view Reader::text() {
  const auto content = string(major_text);
  return {reinterpret_cast<const char*>(content.data()), content.size()};
}

inline uint64_t Reader::enter(uint8_t major) {
  Head head;
  if (!begin(head, major)) return 0;
  if (at_key()) {
    set_fault(Fault::key_type, item_);
    return 0;
  }
  if (depth_ == depth_max_) {
    set_fault(Fault::too_deep, item_);
    return 0;
  }
  const uint64_t room = input_.size() - position_;
  const bool is_map = major == major_map;
  if (head.argument > (is_map ? room / 2 : room)) {
    set_fault(Fault::truncated, item_);
    return 0;
  }
  complete();
  frames_[depth_++] = Nesting{is_map ? head.argument * 2 : head.argument, is_map, nullptr, 0};
  return head.argument;
}

inline uint64_t Reader::array() {
  return enter(major_array);
}

inline uint64_t Reader::map() {
  return enter(major_map);
}

inline void Reader::array_of(uint64_t count) {
  if (array() != count) set_fault(Fault::wrong_type, item_);
}

inline void Reader::end() {
  if (fault_ == Fault::none && depth_ > 0 && frames_[depth_ - 1].left == 0) [[likely]] {
    --depth_;
    return;
  }
  end_slowly();
}

// Appends one item after another. Counts come first, so array() and map() take them, and end()
// closes. Wrong counts and keys out of order are bugs of the caller and abort (CHECK). Text that is
// not UTF-8 is written with U+FFFD for what is wrong: names from the kernel may hold any bytes, and
// a strict reader must not lose a whole reply over one of them.
class Writer {
 public:
  explicit Writer(std::vector<uint8_t>& out) : out_(out) {}

  Writer& u64(uint64_t value);
  Writer& i64(int64_t value);
  Writer& negative(uint64_t n);  // writes -1-n
  Writer& bytes(std::span<const uint8_t> value);
  Writer& text(std::string_view value);
  Writer& boolean(bool value);
  Writer& null();
  Writer& tag(uint64_t number);
  Writer& array(uint64_t count);
  Writer& map(uint64_t pairs);
  Writer& end();
  // An item that is already encoded, taken as it is; the caller vouches for it.
  Writer& raw(std::span<const uint8_t> item);
  // The head of a byte string whose bytes the caller sends from elsewhere, right after.
  Writer& bytes_head(uint64_t size);

 private:
  struct Nesting {
    uint64_t left;
    bool is_map;
    size_t key;  // offset of the last key in out_
    size_t key_size;
  };

  void head(uint8_t major, uint64_t argument);
  void begin(bool may_be_key);
  void complete();

  std::vector<uint8_t>& out_;
  size_t item_ = 0;
  uint32_t depth_ = 0;
  std::array<Nesting, depth_limit> frames_;
};

// A template only so that it may name Value before Value is complete.
template <typename V>
struct MapEntry {
  std::string key;
  V value;
  bool operator==(const MapEntry&) const = default;
};

// One CBOR item as a tree. Text in it is always UTF-8 (repaired on the way in, as in Writer), map
// keys are text, unique and in canonical order. Getters by key are for maps: each names the key in
// its error (invalid: missing_key, wrong_type, unknown_key, out_of_range). Views live as long as
// the Value.
class Value {
 public:
  using Bytes = std::vector<uint8_t>;
  using Array = std::vector<Value>;
  using Entry = MapEntry<Value>;
  using Map = std::vector<Entry>;

  Value() = default;  // null
  Value(std::nullptr_t) {}
  template <std::same_as<bool> T>
  Value(T value) : data_(value) {}
  template <std::integral T>
    requires(!std::same_as<T, bool> && !std::same_as<T, char>)
  Value(T value) : data_(uint64_t{0}) {
    if constexpr (std::signed_integral<T>) {
      if (value < 0) {
        data_ = Negative{static_cast<uint64_t>(-1 - static_cast<int64_t>(value))};
        return;
      }
    }
    data_ = static_cast<uint64_t>(value);
  }
  Value(const char* value) : Value(std::string_view(value)) {}
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(std::string value);
  Value(Bytes value);
  Value(Array value);
  Value(std::floating_point auto) = delete;

  static Value negative(uint64_t n);  // -1-n
  static Value bytes(std::span<const uint8_t> value);
  static Value array(std::initializer_list<Value> items = {});
  // Any order; the same key twice is a bug.
  static Value map(std::initializer_list<std::pair<std::string_view, Value>> entries = {});

  Type type() const;
  bool is_null() const { return type() == Type::null; }
  bool is_map() const { return type() == Type::map; }

  std::optional<uint64_t> as_u64() const;
  std::optional<int64_t> as_i64() const;  // none when it does not fit
  std::optional<bool> as_bool() const;
  const std::string* as_text() const { return std::get_if<std::string>(&data_); }
  const Bytes* as_bytes() const { return std::get_if<Bytes>(&data_); }
  const Array* as_array() const { return std::get_if<Array>(&data_); }
  const Map* as_map() const { return std::get_if<Map>(&data_); }
  // n when this is the negative integer -1-n.
  std::optional<uint64_t> as_negative() const;

  // The value at a key; null pointer when this is no map or has no such key.
  const Value* find(std::string_view key) const&;
  const Value* find(std::string_view key) const&& = delete;
  bool has(std::string_view key) const { return find(key) != nullptr; }

  Result<uint64_t> get_u64(std::string_view key) const;
  Result<uint64_t> get_u64(std::string_view key, uint64_t min, uint64_t max) const;
  Result<int64_t> get_i64(std::string_view key) const;
  Result<bool> get_bool(std::string_view key) const;
  Result<std::string_view> get_text(std::string_view key) const&;
  Result<std::string_view> get_text(std::string_view key) const&& = delete;
  Result<std::span<const uint8_t>> get_bytes(std::string_view key) const&;
  Result<std::span<const uint8_t>> get_bytes(std::string_view key) const&& = delete;
  // Bytes of exactly this length: ids, hashes.
  Result<std::span<const uint8_t>> get_bytes(std::string_view key, size_t size) const&;
  Result<std::span<const uint8_t>> get_bytes(std::string_view key, size_t size) const&& = delete;
  Result<const Array*> get_array(std::string_view key) const&;
  Result<const Array*> get_array(std::string_view key) const&& = delete;
  Result<const Value*> get_map(std::string_view key) const&;
  Result<const Value*> get_map(std::string_view key) const&& = delete;

  // A missing key gives the default; a wrong type or range is still an error.
  Result<uint64_t> get_u64_or(std::string_view key, uint64_t otherwise, uint64_t min = 0,
                              uint64_t max = UINT64_MAX) const;
  Result<bool> get_bool_or(std::string_view key, bool otherwise) const;
  Result<std::string_view> get_text_or(std::string_view key, std::string_view otherwise) const&;
  Result<std::string_view> get_text_or(std::string_view key,
                                       std::string_view otherwise) const&& = delete;

  // Fails on the first key that is not listed: a misspelt argument must not be ignored.
  Status only_keys(std::initializer_list<std::string_view> keys) const;

  // Sets or replaces. On a null value it makes a map first; on any other type it is a bug.
  Value& set(std::string_view key, Value value);
  // Appends. On a null value it makes an array first; on any other type it is a bug.
  Value& push(Value value);

  bool operator==(const Value& other) const;

 private:
  struct Negative {
    uint64_t n;
    bool operator==(const Negative&) const = default;
  };

  std::variant<std::monostate, bool, uint64_t, Negative, Bytes, std::string, Array, Map> data_;
};

// One whole item, nothing after it. Errors: invalid / malformed_cbor.
Result<Value> decode(std::span<const uint8_t> bytes, const Limits& limits = {});
// The one item that comes next in a Reader; at most items_max of them. The Reader keeps the fault.
Value read_value(Reader& in, size_t items_max);

void encode_into(Writer& out, const Value& value);
std::vector<uint8_t> encode(const Value& value);

// Compact JSON for people and scripts: byte strings as lower-case hex, integers exact, keys in
// canonical CBOR order (shorter first).
std::string to_json(const Value& value);

}  // namespace holdfast::cbor
