// Structured logs on stderr: one line an event, for people ("info  lease granted id=... ttl=60s")
// or as JSON, one object a line. Under journald (JOURNAL_STREAM) each text line starts with its
// "<N>" priority. Each event name is rate-limited; what was left out is counted and said when the
// event is next logged. Secrets never reach a log line (G16): nothing here prints a structure by
// itself, callers name fields. Thread: the daemon's event loop only.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

namespace holdfast::log {

enum class Level { error = 3, warning = 4, notice = 5, info = 6, debug = 7 };  // syslog priorities
enum class Format { text, json };

void configure(Format format, Level max_level);

struct Field {
  std::string_view key;
  std::string value;
  bool quoted = true;              // numbers are not quoted in JSON
  std::vector<std::string> items;  // of a list, which is an array in JSON; then `value` joins them

  Field(std::string_view k, std::string v) : key(k), value(std::move(v)) {}
  Field(std::string_view k, std::string_view v) : key(k), value(v) {}
  Field(std::string_view k, const char* v) : key(k), value(v) {}
  Field(std::string_view k, std::vector<std::string> v)
      : key(k), value(fmt::format("{}", fmt::join(v, ","))), items(std::move(v)) {}
  template <typename T>
    requires std::is_arithmetic_v<T>
  Field(std::string_view k, T v) : key(k), value(fmt::format("{}", v)), quoted(false) {}
};

void write(Level level, std::string_view event, std::span<const Field> fields);

inline void error(std::string_view event, std::initializer_list<Field> fields = {}) {
  write(Level::error, event, fields);
}
inline void warning(std::string_view event, std::initializer_list<Field> fields = {}) {
  write(Level::warning, event, fields);
}
inline void notice(std::string_view event, std::initializer_list<Field> fields = {}) {
  write(Level::notice, event, fields);
}
inline void info(std::string_view event, std::initializer_list<Field> fields = {}) {
  write(Level::info, event, fields);
}
inline void debug(std::string_view event, std::initializer_list<Field> fields = {}) {
  write(Level::debug, event, fields);
}

}  // namespace holdfast::log
