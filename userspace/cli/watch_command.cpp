// watch: a snapshot of the node, then what happens on it, until Ctrl-C.
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <optional>

#include <fmt/format.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

constexpr uint64_t reconnect_period_ns = 500 * ns_per_ms;

// What the signal handler touches.
std::atomic<bool> ended{false};
std::atomic<int> followed_fd{-1};

void on_end(int) {
  const int saved = errno;
  ended = true;
  if (const int fd = followed_fd; fd >= 0) ::shutdown(fd, SHUT_RDWR);
  errno = saved;
}

// Ctrl-C and SIGTERM end the stream, and with it the command, as the end of a file would.
void end_on_signals() {
  struct sigaction action{};
  action.sa_handler = on_end;
  for (const int signal : {SIGINT, SIGTERM}) ::sigaction(signal, &action, nullptr);
}

void pause_before_reconnect() {
  const timespec pause{.tv_sec = 0, .tv_nsec = reconnect_period_ns};
  ::nanosleep(&pause, nullptr);  // a signal ends it early, and is looked at next
}

// "INSTANCE:SEQ", as --json shows the two.
Result<Value> parse_cursor(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view digits = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  uint64_t seq = 0;
  const auto [end, wrong] = std::from_chars(digits.data(), digits.data() + digits.size(), seq);
  if (colon == 0 || digits.empty() || wrong != std::errc() || end != digits.data() + digits.size())
    return usage(fmt::format("--from: \"{}\" is no cursor", text),
                 "INSTANCE:SEQ, as watch shows it; leave it out to begin with a snapshot");
  return Value::map({{"instance", text.substr(0, colon)}, {"seq", seq}});
}

Value names(const std::vector<std::string>& from) {
  Value list = Value::array();
  for (const std::string& name : from) list.push(name);
  return list;
}

// An event with the cursor behind it, so that every line says where to go on.
Value with_cursor(const Value& event, const Value& cursor) {
  Value out = event;
  out.set("type", "event");
  if (!cursor.is_map()) return out;
  Value own = cursor;
  own.set("seq", number_of(event, "seq"));
  out.set("cursor", own);
  return out;
}

class Watcher {
 public:
  Watcher(Session& session, const WatchWords& words) : session_(session), words_(words) {}

  Outcome run() {
    args_ = Value::map();
    if (!words_.tenants.empty()) args_.set("tenants", names(words_.tenants));
    if (!words_.kinds.empty()) args_.set("kinds", names(words_.kinds));
    if (!words_.from.empty()) {
      Result<Value> cursor = parse_cursor(words_.from);
      if (!cursor) return pass_on(cursor);
      args_.set("from", std::move(*cursor));
    }
    end_on_signals();
    session_.note("watching; Ctrl-C ends it\n");
    for (;;) {
      const Status over = follow();
      if (!written_) return std::unexpected(written_.error());
      if (ended) return ExitCode::done;
      if (!words_.reconnect || !may_come_back(over.error())) return std::unexpected(over.error());
      session_.note(fmt::format("{}; trying again\n", printable(over.error().message)));
      if (over.error().code == "resync_required") args_.set("from", Value());
      pause_before_reconnect();
      if (ended) return ExitCode::done;
    }
  }

 private:
  // Never well: a stream ends by a signal or by an error.
  Status follow() {
    Result<wire::Client*> daemon = session_.daemon();
    if (!daemon) return pass_on(daemon);
    followed_fd = (*daemon)->fd();
    Status over;
    if (ended) {
      over = fail(ErrorKind::unavailable, "connection_closed", "ended");
    } else {
      const Result<Value> last =
          (*daemon)->follow("watch", args_, [this](const Value& frame) { return take(frame); });
      over = last ? Status(fail(ErrorKind::unavailable, "connection_closed",
                                "the daemon ended the stream", "watch again"))
                  : Status(std::unexpected(last.error()));
    }
    followed_fd = -1;
    return over;
  }

  static bool may_come_back(const Error& error) {
    for (const std::string_view code : {"daemon_not_running", "stale_socket", "daemon_busy",
                                        "connection_closed", "timeout", "resync_required"})
      if (error.code == code) return true;
    return false;
  }

  // Each frame at once: whoever reads this waits for it.
  bool take(const Value& frame) {
    const std::string type = text_of(frame, "type");
    if (type == "snapshot") in_snapshot_ = true;
    if (type == "snapshot_end") in_snapshot_ = false;
    // Within a snapshot a cursor is nothing to go on from.
    const Value cursor = in_snapshot_ ? Value() : part_of(frame, "cursor");
    args_.set("from", cursor);
    if (type != "events") {
      print(frame);
    } else {
      for (const Value& event : list_of(frame, "events")) print(with_cursor(event, cursor));
    }
    written_ = session_.flush();
    return written_.has_value();
  }

  void print(const Value& item) {
    if (session_.json()) {
      session_.print_json(item);
    } else {
      session_.print(render_watch(item, session_.style()));
    }
  }

  Session& session_;
  const WatchWords& words_;
  Value args_;
  bool in_snapshot_ = false;
  Status written_;
};

}  // namespace

Outcome run_watch(Session& session, const WatchWords& words) {
  return Watcher(session, words).run();
}

}  // namespace holdfast::cli
