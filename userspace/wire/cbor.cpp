#include "userspace/wire/cbor.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include "userspace/base/check.hpp"
#include "userspace/wire/utf8.hpp"

namespace holdfast::cbor {
namespace {

// Major types, RFC 8949 3.1.
constexpr uint8_t major_unsigned = 0;
constexpr uint8_t major_negative = 1;
constexpr uint8_t major_bytes = 2;
constexpr uint8_t major_text = 3;
constexpr uint8_t major_array = 4;
constexpr uint8_t major_map = 5;
constexpr uint8_t major_tag = 6;
constexpr uint8_t major_simple = 7;

constexpr uint8_t simple_false = 20;
constexpr uint8_t simple_true = 21;
constexpr uint8_t simple_null = 22;

uint64_t read_big_endian(const uint8_t* at, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) value = value << 8 | at[i];
  return value;
}

// Bytewise order of two encodings. They delimit themselves, so neither is a prefix of the other
// unless they are equal.
int compare_encodings(const uint8_t* a, size_t a_size, const uint8_t* b, size_t b_size) {
  const int order = std::memcmp(a, b, std::min(a_size, b_size));
  if (order != 0 || a_size == b_size) return order;
  return a_size < b_size ? -1 : 1;
}

}  // namespace

std::string_view describe(Fault fault) {
  switch (fault) {
    case Fault::none: return "nothing is wrong";
    case Fault::truncated: return "the bytes end inside an item";
    case Fault::trailing: return "bytes follow the item";
    case Fault::wrong_type: return "another type than expected";
    case Fault::not_shortest: return "an integer or length is not in its shortest form";
    case Fault::indefinite: return "indefinite length";
    case Fault::reserved: return "reserved additional information";
    case Fault::float_refused: return "floating point is not used here";
    case Fault::simple_refused: return "a simple value other than false, true and null";
    case Fault::tag_refused: return "a tag is not allowed here";
    case Fault::bad_utf8: return "text is not UTF-8";
    case Fault::key_type: return "a map key of this type is not allowed";
    case Fault::key_order: return "map keys are not in ascending order";
    case Fault::duplicate_key: return "a map key is repeated";
    case Fault::out_of_range: return "an integer is out of range";
    case Fault::too_deep: return "nested too deeply";
    case Fault::too_long: return "more bytes or items than allowed";
    case Fault::past_end: return "fewer items than expected";
    case Fault::items_left: return "more items than expected";
  }
  return "unknown fault";
}

bool is_utf8(std::string_view text) {
  return utf8_valid_prefix(text) == text.size();
}

// ---- Reader ----

void Reader::set_fault(Fault fault, size_t at) {
  if (fault_ != Fault::none) return;
  fault_ = fault;
  fault_offset_ = at;
}

Error Reader::error() const {
  CHECK(fault_ != Fault::none);
  return Error{ErrorKind::invalid,
               "malformed_cbor",
               0,
               fmt::format("CBOR at byte {}: {}", fault_offset_, describe(fault_)),
               {}};
}

// Takes the head of the next item. The item counts as read only at complete().
bool Reader::begin(Head& head) {
  if (fault_ != Fault::none) return false;
  item_ = position_;
  if (depth_ > 0 ? frames_[depth_ - 1].left == 0 : root_taken_) {
    set_fault(Fault::past_end, item_);
    return false;
  }
  if (position_ == input_.size()) {
    set_fault(Fault::truncated, item_);
    return false;
  }
  const uint8_t first = input_[position_];
  head.major = first >> 5;
  head.info = first & 0x1f;
  head.argument = head.info;
  if (head.info < 24) {
    position_ += 1;
    return true;
  }
  // The order matters for the reason only: what no length could mend is named first.
  if (head.info == 31) {
    set_fault(Fault::indefinite, item_);
    return false;
  }
  if (head.info > 27) {
    set_fault(Fault::reserved, item_);
    return false;
  }
  if (head.major == major_simple) {
    set_fault(head.info == 24 ? Fault::simple_refused : Fault::float_refused, item_);
    return false;
  }
  const size_t size = size_t{1} << (head.info - 24);
  if (input_.size() - position_ - 1 < size) {
    set_fault(Fault::truncated, item_);
    return false;
  }
  head.argument = read_big_endian(input_.data() + position_ + 1, size);
  const bool shorter = size == 1 ? head.argument < 24 : head.argument >> (size * 4) == 0;
  if (shorter) {
    set_fault(Fault::not_shortest, item_);
    return false;
  }
  position_ += 1 + size;
  return true;
}

bool Reader::begin_slowly(Head& head, uint8_t major) {
  if (!begin(head)) return false;
  if (head.major != major) {
    set_fault(head.major == major_tag ? Fault::tag_refused : Fault::wrong_type, item_);
    return false;
  }
  return true;
}

// The current item, a scalar, is read. If it was a map key, its order is checked here.
void Reader::complete_slowly() {
  if (depth_ == 0) {
    root_taken_ = true;
    return;
  }
  Nesting& frame = frames_[depth_ - 1];
  if (frame.is_map && frame.left % 2 == 0) {
    const uint8_t* key = input_.data() + item_;
    const size_t key_size = position_ - item_;
    if (frame.key != nullptr) {
      const int order = compare_encodings(frame.key, frame.key_size, key, key_size);
      if (order >= 0) {
        set_fault(order == 0 ? Fault::duplicate_key : Fault::key_order, item_);
        return;
      }
    }
    frame.key = key;
    frame.key_size = key_size;
  }
  --frame.left;
}

Type Reader::peek() {
  if (fault_ != Fault::none) return Type::end;
  if (depth_ > 0 ? frames_[depth_ - 1].left == 0 : root_taken_) return Type::end;
  if (position_ == input_.size()) {
    set_fault(Fault::truncated, position_);
    return Type::end;
  }
  const uint8_t first = input_[position_];
  switch (first >> 5) {
    case major_unsigned: return Type::unsigned_integer;
    case major_negative: return Type::negative_integer;
    case major_bytes: return Type::bytes;
    case major_text: return Type::text;
    case major_array: return Type::array;
    case major_map: return Type::map;
    case major_tag: return Type::tag;
    default: break;
  }
  switch (first & 0x1f) {
    case simple_false:
    case simple_true: return Type::boolean;
    case simple_null: return Type::null;
    case 25:
    case 26:
    case 27: set_fault(Fault::float_refused, position_); break;
    case 28:
    case 29:
    case 30: set_fault(Fault::reserved, position_); break;
    case 31: set_fault(Fault::indefinite, position_); break;
    default: set_fault(Fault::simple_refused, position_); break;
  }
  return Type::end;
}

uint64_t Reader::negative() {
  Head head;
  if (!begin(head, major_negative)) return 0;
  complete();
  return ok() ? head.argument : 0;
}

int64_t Reader::i64_slowly() {
  Head head;
  if (!begin(head)) return 0;
  if (head.major > major_negative) {
    set_fault(head.major == major_tag ? Fault::tag_refused : Fault::wrong_type, item_);
    return 0;
  }
  if (head.argument > INT64_MAX) {
    set_fault(Fault::out_of_range, item_);
    return 0;
  }
  complete();
  if (!ok()) return 0;
  const auto magnitude = static_cast<int64_t>(head.argument);
  return head.major == major_unsigned ? magnitude : -1 - magnitude;
}

bool Reader::boolean() {
  Head head;
  if (!begin(head, major_simple)) return false;
  if (at_key()) {
    set_fault(Fault::key_type, item_);
    return false;
  }
  if (head.info != simple_false && head.info != simple_true) {
    set_fault(head.info == simple_null ? Fault::wrong_type : Fault::simple_refused, item_);
    return false;
  }
  complete();
  return head.info == simple_true;
}

void Reader::null() {
  Head head;
  if (!begin(head, major_simple)) return;
  if (at_key()) return set_fault(Fault::key_type, item_);
  if (head.info != simple_null) {
    const bool is_boolean = head.info == simple_false || head.info == simple_true;
    return set_fault(is_boolean ? Fault::wrong_type : Fault::simple_refused, item_);
  }
  complete();
}

uint64_t Reader::tag() {
  Head head;
  if (!begin(head, major_tag)) return 0;
  if (at_key()) {
    set_fault(Fault::key_type, item_);
    return 0;
  }
  return head.argument;
}

void Reader::end_slowly() {
  if (fault_ != Fault::none) return;
  CHECK(depth_ > 0);
  if (frames_[depth_ - 1].left != 0) return set_fault(Fault::items_left, position_);
  --depth_;
}

void Reader::skip() {
  const uint32_t base = depth_;
  do {
    switch (peek()) {
      case Type::unsigned_integer: u64(); break;
      case Type::negative_integer: negative(); break;
      case Type::bytes: bytes(); break;
      case Type::text: text(); break;
      case Type::array: array(); break;
      case Type::map: map(); break;
      case Type::tag: set_fault(Fault::tag_refused, position_); break;
      case Type::boolean: boolean(); break;
      case Type::null: null(); break;
      case Type::end: set_fault(Fault::past_end, position_); break;
    }
    while (ok() && depth_ > base && frames_[depth_ - 1].left == 0) end();
  } while (ok() && depth_ > base);
}

std::span<const uint8_t> Reader::raw() {
  const size_t start = position_;
  skip();
  return ok() ? input_.subspan(start, position_ - start) : std::span<const uint8_t>();
}

bool Reader::finish() {
  if (fault_ != Fault::none) return false;
  if (depth_ > 0) {
    set_fault(Fault::items_left, position_);
  } else if (!root_taken_) {
    set_fault(position_ == input_.size() ? Fault::truncated : Fault::items_left, position_);
  } else if (position_ != input_.size()) {
    set_fault(Fault::trailing, position_);
  }
  return ok();
}

// ---- Writer ----

void Writer::head(uint8_t major, uint64_t argument) {
  const auto initial = static_cast<uint8_t>(major << 5);
  if (argument < 24) {
    out_.push_back(static_cast<uint8_t>(initial | argument));
    return;
  }
  // 1, 2, 4 or 8 bytes: the shortest that holds it.
  const unsigned power = argument <= 0xff         ? 0
                         : argument <= 0xffff     ? 1
                         : argument <= 0xffffffff ? 2
                                                  : 3;
  const unsigned size = 1U << power;
  uint8_t buffer[9];
  buffer[0] = static_cast<uint8_t>(initial | (24 + power));
  for (unsigned i = 0; i < size; ++i) {
    buffer[1 + i] = static_cast<uint8_t>(argument >> (8 * (size - 1 - i)));
  }
  out_.insert(out_.end(), buffer, buffer + 1 + size);
}

void Writer::begin(bool may_be_key) {
  item_ = out_.size();
  if (depth_ == 0) return;
  const Nesting& frame = frames_[depth_ - 1];
  CHECK(frame.left > 0);
  CHECK(may_be_key || !frame.is_map || frame.left % 2 == 1);
}

void Writer::complete() {
  if (depth_ == 0) return;
  Nesting& frame = frames_[depth_ - 1];
  if (frame.is_map && frame.left % 2 == 0) {
    const size_t key_size = out_.size() - item_;
    if (frame.key_size != 0) {
      CHECK(compare_encodings(out_.data() + frame.key, frame.key_size, out_.data() + item_,
                              key_size) < 0);
    }
    frame.key = item_;
    frame.key_size = key_size;
  }
  --frame.left;
}

Writer& Writer::u64(uint64_t value) {
  begin(true);
  head(major_unsigned, value);
  complete();
  return *this;
}

Writer& Writer::i64(int64_t value) {
  return value >= 0 ? u64(static_cast<uint64_t>(value))
                    : negative(static_cast<uint64_t>(-1 - value));
}

Writer& Writer::negative(uint64_t n) {
  begin(true);
  head(major_negative, n);
  complete();
  return *this;
}

Writer& Writer::bytes(std::span<const uint8_t> value) {
  begin(true);
  head(major_bytes, value.size());
  out_.insert(out_.end(), value.begin(), value.end());
  complete();
  return *this;
}

Writer& Writer::bytes_head(uint64_t size) {
  begin(false);
  head(major_bytes, size);
  complete();
  return *this;
}

Writer& Writer::text(std::string_view value) {
  if (!is_utf8(value)) return text(repaired_utf8(value));
  begin(true);
  head(major_text, value.size());
  out_.insert(out_.end(), value.begin(), value.end());
  complete();
  return *this;
}

Writer& Writer::boolean(bool value) {
  begin(false);
  head(major_simple, value ? simple_true : simple_false);
  complete();
  return *this;
}

Writer& Writer::null() {
  begin(false);
  head(major_simple, simple_null);
  complete();
  return *this;
}

Writer& Writer::tag(uint64_t number) {
  begin(false);
  head(major_tag, number);
  return *this;
}

Writer& Writer::array(uint64_t count) {
  begin(false);
  CHECK(depth_ < depth_limit);
  head(major_array, count);
  complete();
  frames_[depth_++] = Nesting{count, false, 0, 0};
  return *this;
}

Writer& Writer::map(uint64_t pairs) {
  begin(false);
  CHECK(depth_ < depth_limit);
  head(major_map, pairs);
  complete();
  frames_[depth_++] = Nesting{pairs * 2, true, 0, 0};
  return *this;
}

Writer& Writer::end() {
  CHECK(depth_ > 0);
  CHECK(frames_[depth_ - 1].left == 0);
  --depth_;
  return *this;
}

Writer& Writer::raw(std::span<const uint8_t> item) {
  begin(false);
  out_.insert(out_.end(), item.begin(), item.end());
  complete();
  return *this;
}

}  // namespace holdfast::cbor
