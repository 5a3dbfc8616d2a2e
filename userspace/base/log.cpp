#include "userspace/base/log.hpp"

#include <cstdlib>
#include <unordered_map>

#include <unistd.h>

#include "userspace/base/clock.hpp"

namespace holdfast::log {
namespace {

// An event may be logged this often a second; a flood of one event never hides the others.
constexpr uint32_t lines_per_event_and_second = 20;

struct Bucket {
  uint64_t second = 0;
  uint32_t written = 0;
  uint64_t suppressed = 0;
};

struct State {
  Format format = Format::text;
  Level max_level = Level::info;
  bool journald = std::getenv("JOURNAL_STREAM") != nullptr;
  std::unordered_map<std::string, Bucket> buckets;
};

State& state() {
  static State s;
  return s;
}

std::string_view name_of(Level level) {
  switch (level) {
    case Level::error: return "error";
    case Level::warning: return "warning";
    case Level::notice: return "notice";
    case Level::info: return "info";
    case Level::debug: return "debug";
  }
  return "?";
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  out += '"';
}

// Values with blanks or control characters are quoted, so that a line is never ambiguous or forged.
void append_text_value(std::string& out, std::string_view text) {
  bool plain = !text.empty();
  for (const char c : text) plain = plain && c > ' ' && c != '"' && c != 0x7f;
  if (plain) {
    out += text;
  } else {
    append_json_string(out, text);
  }
}

std::string text_line(Level level, std::string_view event, std::span<const Field> fields,
                      uint64_t suppressed) {
  std::string line;
  if (state().journald) line = fmt::format("<{}>", static_cast<int>(level));
  line += fmt::format("{:<7} {}", name_of(level), event);
  for (const Field& field : fields) {
    line += fmt::format(" {}=", field.key);
    append_text_value(line, field.value);
  }
  if (suppressed != 0) line += fmt::format(" suppressed={}", suppressed);
  return line += '\n';
}

std::string json_line(Level level, std::string_view event, std::span<const Field> fields,
                      uint64_t suppressed) {
  std::string line =
      fmt::format(R"({{"version":1,"time":"{}","level":"{}","priority":{},"event":)",
                  rfc3339_utc(wall_now_ns()), name_of(level), static_cast<int>(level));
  append_json_string(line, event);
  for (const Field& field : fields) {
    line += fmt::format(R"(,"{}":)", field.key);
    if (!field.items.empty()) {
      for (size_t i = 0; i < field.items.size(); ++i) {
        line += i == 0 ? '[' : ',';
        append_json_string(line, field.items[i]);
      }
      line += ']';
    } else if (field.quoted) {
      append_json_string(line, field.value);
    } else {
      line += field.value;
    }
  }
  if (suppressed != 0) line += fmt::format(R"(,"suppressed":{})", suppressed);
  return line += "}\n";
}

}  // namespace

void configure(Format format, Level max_level) {
  state().format = format;
  state().max_level = max_level;
}

void write(Level level, std::string_view event, std::span<const Field> fields) {
  State& s = state();
  if (level > s.max_level) return;
  Bucket& bucket = s.buckets[std::string(event)];
  const uint64_t second = boot_now_ns() / ns_per_s;
  if (bucket.second != second) bucket = Bucket{second, 0, bucket.suppressed};
  if (bucket.written >= lines_per_event_and_second) {
    ++bucket.suppressed;
    return;
  }
  ++bucket.written;
  const uint64_t suppressed = std::exchange(bucket.suppressed, 0);
  const std::string line = s.format == Format::json ? json_line(level, event, fields, suppressed)
                                                    : text_line(level, event, fields, suppressed);
  // A log that cannot be written must not stop enforcement.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace holdfast::log
