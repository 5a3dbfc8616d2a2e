// The tree form of CBOR: Value, decode, encode, to_json. The strictness is Reader's and Writer's.
#include <algorithm>

#include <fmt/format.h>

#include "userspace/base/check.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/utf8.hpp"

namespace holdfast::cbor {
namespace {

// Canonical order of text keys: the head carries the length, so the shorter key comes first.
bool key_less(std::string_view a, std::string_view b) {
  return a.size() != b.size() ? a.size() < b.size() : a < b;
}

std::string_view name_of(Type type) {
  switch (type) {
    case Type::unsigned_integer: return "an unsigned integer";
    case Type::negative_integer: return "a negative integer";
    case Type::bytes: return "bytes";
    case Type::text: return "text";
    case Type::array: return "an array";
    case Type::map: return "a map";
    case Type::tag: return "a tag";
    case Type::boolean: return "a boolean";
    case Type::null: return "null";
    case Type::end: return "nothing";
  }
  return "nothing";
}

std::unexpected<Error> missing(std::string_view key) {
  return fail(ErrorKind::invalid, "missing_key", fmt::format("\"{}\" is missing", key));
}

std::unexpected<Error> wrong_type(std::string_view key, std::string_view wanted, Type found) {
  return fail(ErrorKind::invalid, "wrong_type",
              fmt::format("\"{}\" must be {}, it is {}", key, wanted, name_of(found)));
}

// Finds a key and lets `take` see whether the value has the right type.
template <typename T, typename Take>
Result<T> get(const Value& map, std::string_view key, std::string_view wanted, Take take) {
  const Value* value = map.find(key);
  if (value == nullptr) return missing(key);
  std::optional<T> taken = take(*value);
  if (!taken) return wrong_type(key, wanted, value->type());
  return *taken;
}

template <typename T>
std::optional<T> if_set(T pointer) {
  if (pointer == nullptr) return std::nullopt;
  return pointer;
}

Value read_item(Reader& in, size_t& items_left) {
  if (items_left == 0) {
    in.refuse(Fault::too_long);
    return {};
  }
  --items_left;
  switch (in.peek()) {
    case Type::unsigned_integer: return in.u64();
    case Type::negative_integer: return Value::negative(in.negative());
    case Type::bytes: return Value::bytes(in.bytes());
    case Type::text: return in.text();
    case Type::boolean: return in.boolean();
    case Type::null: in.null(); return {};
    case Type::array: {
      Value::Array items;
      items.reserve(std::min(in.array(), items_left));
      while (in.more()) items.push_back(read_item(in, items_left));
      in.end();
      return items;
    }
    case Type::map: {
      Value out = Value::map();
      in.map();
      while (in.more()) {
        const std::string_view key = in.text();
        Value value = read_item(in, items_left);
        // Keys ascend, the Reader has seen to that, so each is set at the end.
        if (in.ok()) out.set(key, std::move(value));
      }
      in.end();
      return out;
    }
    case Type::tag:  // skip() refuses both, with their offset
    case Type::end: in.skip(); return {};
  }
  return {};
}

void append_json_text(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        // DEL is legal in JSON, but a terminal should not get it.
        if (byte < 0x20 || byte == 0x7f) {
          fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(byte));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

void append_json(std::string& out, const Value& value) {
  switch (value.type()) {
    case Type::unsigned_integer: out += fmt::format("{}", *value.as_u64()); break;
    case Type::negative_integer: {
      const uint64_t n = *value.as_negative();
      // -1-n is one below what a 64-bit magnitude holds when n is the largest.
      out += n == UINT64_MAX ? "-18446744073709551616" : fmt::format("-{}", n + 1);
      break;
    }
    case Type::bytes:
      out += '"';
      for (const uint8_t byte : *value.as_bytes()) {
        out += "0123456789abcdef"[byte >> 4];
        out += "0123456789abcdef"[byte & 0xf];
      }
      out += '"';
      break;
    case Type::text: append_json_text(out, *value.as_text()); break;
    case Type::boolean: out += *value.as_bool() ? "true" : "false"; break;
    case Type::array: {
      out += '[';
      bool first = true;
      for (const Value& item : *value.as_array()) {
        if (!first) out += ',';
        first = false;
        append_json(out, item);
      }
      out += ']';
      break;
    }
    case Type::map: {
      out += '{';
      bool first = true;
      for (const Value::Entry& entry : *value.as_map()) {
        if (!first) out += ',';
        first = false;
        append_json_text(out, entry.key);
        out += ':';
        append_json(out, entry.value);
      }
      out += '}';
      break;
    }
    case Type::null:
    case Type::tag:
    case Type::end: out += "null"; break;
  }
}

}  // namespace

Value::Value(std::string value) : data_(is_utf8(value) ? std::move(value) : repaired_utf8(value)) {}

Value::Value(Bytes value) : data_(std::move(value)) {}
Value::Value(Array value) : data_(std::move(value)) {}

Value Value::bytes(std::span<const uint8_t> value) {
  return Bytes(value.begin(), value.end());
}
Value Value::array(std::initializer_list<Value> items) {
  return Array(items);
}

Value Value::negative(uint64_t n) {
  Value value;
  value.data_ = Negative{n};
  return value;
}

Value Value::map(std::initializer_list<std::pair<std::string_view, Value>> entries) {
  Value value;
  value.data_ = Map();
  for (const auto& [key, item] : entries) {
    CHECK(value.find(key) == nullptr);
    value.set(key, item);
  }
  return value;
}

Type Value::type() const {
  constexpr Type types[] = {Type::null,
                            Type::boolean,
                            Type::unsigned_integer,
                            Type::negative_integer,
                            Type::bytes,
                            Type::text,
                            Type::array,
                            Type::map};
  return types[data_.index()];
}

std::optional<uint64_t> Value::as_u64() const {
  const auto* value = std::get_if<uint64_t>(&data_);
  return value != nullptr ? std::optional(*value) : std::nullopt;
}

std::optional<uint64_t> Value::as_negative() const {
  const auto* value = std::get_if<Negative>(&data_);
  return value != nullptr ? std::optional(value->n) : std::nullopt;
}

std::optional<int64_t> Value::as_i64() const {
  const auto positive = as_u64();
  const auto negative_n = as_negative();
  const std::optional<uint64_t> magnitude = positive ? positive : negative_n;
  if (!magnitude || *magnitude > INT64_MAX) return std::nullopt;
  const auto number = static_cast<int64_t>(*magnitude);
  return positive ? number : -1 - number;
}

std::optional<bool> Value::as_bool() const {
  const auto* value = std::get_if<bool>(&data_);
  return value != nullptr ? std::optional(*value) : std::nullopt;
}

const Value* Value::find(std::string_view key) const& {
  const Map* entries = as_map();
  if (entries == nullptr) return nullptr;
  const auto at =
      std::lower_bound(entries->begin(), entries->end(), key,
                       [](const Entry& e, std::string_view k) { return key_less(e.key, k); });
  return at != entries->end() && at->key == key ? &at->value : nullptr;
}

Value& Value::set(std::string_view key, Value value) {
  if (is_null()) data_ = Map();
  Map* entries = std::get_if<Map>(&data_);
  CHECK(entries != nullptr);
  std::string name = is_utf8(key) ? std::string(key) : repaired_utf8(key);
  if (entries->empty() || key_less(entries->back().key, name)) {
    entries->push_back(Entry{std::move(name), std::move(value)});
    return *this;
  }
  const auto at =
      std::lower_bound(entries->begin(), entries->end(), name,
                       [](const Entry& e, const std::string& k) { return key_less(e.key, k); });
  if (at != entries->end() && at->key == name) {
    at->value = std::move(value);
  } else {
    entries->insert(at, Entry{std::move(name), std::move(value)});
  }
  return *this;
}

Value& Value::push(Value value) {
  if (is_null()) data_ = Array();
  Array* items = std::get_if<Array>(&data_);
  CHECK(items != nullptr);
  items->push_back(std::move(value));
  return *this;
}

bool Value::operator==(const Value& other) const {
  return data_ == other.data_;
}

Result<uint64_t> Value::get_u64(std::string_view key) const {
  return get<uint64_t>(*this, key, "an unsigned integer",
                       [](const Value& v) { return v.as_u64(); });
}

Result<uint64_t> Value::get_u64(std::string_view key, uint64_t min, uint64_t max) const {
  Result<uint64_t> value = get_u64(key);
  if (value && (*value < min || *value > max)) {
    return fail(ErrorKind::invalid, "out_of_range",
                fmt::format("\"{}\" is {}, it must be from {} to {}", key, *value, min, max));
  }
  return value;
}

Result<int64_t> Value::get_i64(std::string_view key) const {
  return get<int64_t>(*this, key, "an integer of 64 bits",
                      [](const Value& v) { return v.as_i64(); });
}

Result<bool> Value::get_bool(std::string_view key) const {
  return get<bool>(*this, key, "a boolean", [](const Value& v) { return v.as_bool(); });
}

Result<std::string_view> Value::get_text(std::string_view key) const& {
  return get<std::string_view>(*this, key, "text", [](const Value& v) {
    return v.as_text() != nullptr ? std::optional<std::string_view>(*v.as_text()) : std::nullopt;
  });
}

Result<std::span<const uint8_t>> Value::get_bytes(std::string_view key) const& {
  return get<std::span<const uint8_t>>(*this, key, "bytes", [](const Value& v) {
    return v.as_bytes() != nullptr ? std::optional<std::span<const uint8_t>>(*v.as_bytes())
                                   : std::nullopt;
  });
}

Result<std::span<const uint8_t>> Value::get_bytes(std::string_view key, size_t size) const& {
  Result<std::span<const uint8_t>> value = get_bytes(key);
  if (value && value->size() != size) {
    return fail(ErrorKind::invalid, "out_of_range",
                fmt::format("\"{}\" has {} bytes, it must have {}", key, value->size(), size));
  }
  return value;
}

Result<const Value::Array*> Value::get_array(std::string_view key) const& {
  return get<const Array*>(*this, key, "an array",
                           [](const Value& v) { return if_set(v.as_array()); });
}

Result<const Value*> Value::get_map(std::string_view key) const& {
  return get<const Value*>(*this, key, "a map",
                           [](const Value& v) { return if_set(v.is_map() ? &v : nullptr); });
}

Result<uint64_t> Value::get_u64_or(std::string_view key, uint64_t otherwise, uint64_t min,
                                   uint64_t max) const {
  return has(key) ? get_u64(key, min, max) : otherwise;
}

Result<bool> Value::get_bool_or(std::string_view key, bool otherwise) const {
  return has(key) ? get_bool(key) : otherwise;
}

Result<std::string_view> Value::get_text_or(std::string_view key,
                                            std::string_view otherwise) const& {
  return has(key) ? get_text(key) : otherwise;
}

Status Value::only_keys(std::initializer_list<std::string_view> keys) const {
  const Map* entries = as_map();
  if (entries == nullptr) {
    return fail(ErrorKind::invalid, "wrong_type",
                fmt::format("a map is expected here, not {}", name_of(type())));
  }
  for (const Entry& entry : *entries) {
    if (std::find(keys.begin(), keys.end(), entry.key) == keys.end()) {
      return fail(ErrorKind::invalid, "unknown_key",
                  fmt::format("\"{}\" is not a known key", entry.key),
                  fmt::format("known are: {}", fmt::join(keys, ", ")));
    }
  }
  return {};
}

Value read_value(Reader& in, size_t items_max) {
  return read_item(in, items_max);
}

Result<Value> decode(std::span<const uint8_t> bytes, const Limits& limits) {
  Reader in(bytes, limits);
  Value value = read_value(in, limits.items_max);
  if (!in.finish()) return std::unexpected(in.error());
  return value;
}

void encode_into(Writer& out, const Value& value) {
  switch (value.type()) {
    case Type::unsigned_integer: out.u64(*value.as_u64()); break;
    case Type::negative_integer: out.negative(*value.as_negative()); break;
    case Type::bytes: out.bytes(*value.as_bytes()); break;
    case Type::text: out.text(*value.as_text()); break;
    case Type::boolean: out.boolean(*value.as_bool()); break;
    case Type::array:
      out.array(value.as_array()->size());
      for (const Value& item : *value.as_array()) encode_into(out, item);
      out.end();
      break;
    case Type::map:
      out.map(value.as_map()->size());
      for (const Value::Entry& entry : *value.as_map()) {
        out.text(entry.key);
        encode_into(out, entry.value);
      }
      out.end();
      break;
    case Type::null:
    case Type::tag:
    case Type::end: out.null(); break;
  }
}

std::vector<uint8_t> encode(const Value& value) {
  std::vector<uint8_t> out;
  Writer writer(out);
  encode_into(writer, value);
  return out;
}

std::string to_json(const Value& value) {
  std::string out;
  append_json(out, value);
  return out;
}

}  // namespace holdfast::cbor
