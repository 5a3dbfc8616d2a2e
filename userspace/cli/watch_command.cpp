// watch: a snapshot of the node, then what happens on it, until Ctrl-C; signed by the node, if that
// is asked for, and kept.
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <optional>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/base/write_all.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"
#include "userspace/cli/statements.hpp"

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

// Whole frames on the output.
class FramePrinter {
 public:
  explicit FramePrinter(Session& session) : session_(session) {}

  // Each at once: whoever reads this waits for it.
  Status take(const Value& frame) {
    const std::string type = text_of(frame, "type");
    if (type == "snapshot") in_snapshot_ = true;
    if (type == "snapshot_end") in_snapshot_ = false;
    // Within a snapshot a cursor is nothing to go on from.
    if (type != "asked") cursor_ = in_snapshot_ ? Value() : part_of(frame, "cursor");
    if (type != "events") {
      print(frame);
    } else {
      for (const Value& event : list_of(frame, "events")) print(with_cursor(event, cursor_));
    }
    return session_.flush();
  }
  // Behind the last frame; null, where there is nothing to go on from.
  const Value& cursor() const { return cursor_; }

 private:
  void print(const Value& item) {
    if (session_.json()) {
      session_.print_json(item);
    } else {
      session_.print(render_watch(item, session_.style()));
    }
  }

  Session& session_;
  Value cursor_;
  bool in_snapshot_ = false;
};

// Where notices are appended to as they come.
class Keeper {
 public:
  // Errors: file_write; unavailable / file_locked; invalid / not_notices.
  static Result<Keeper> open(const std::string& path) {
    Keeper made;
    made.path_ = path;
    made.fd_ = UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640));
    if (!made.fd_)
      return fail_sys(errno, "file_write", "opening " + path, "name another file with --keep");
    if (::flock(made.fd_.get(), LOCK_EX | LOCK_NB) != 0)
      return fail(ErrorKind::unavailable, "file_locked", path + ": another watch keeps into it",
                  "end that one, or name another file with --keep");
    // What stands behind something else than whole notices could not be read.
    Result<NoticeFile> before = NoticeFile::open(path);
    if (!before) return pass_on(before);
    for (;;) {
      const Result<std::span<const uint8_t>> notice = before->next();
      if (!notice)
        return fail(ErrorKind::invalid, "not_notices", notice.error().message,
                    "name another file with --keep");
      if (notice->empty()) return made;
    }
  }

  // The whole notice or nothing of it.
  Status keep(std::span<const uint8_t> notice) {
    const off_t end = ::lseek(fd_.get(), 0, SEEK_END);
    if (write_all(fd_.get(), notice)) return {};
    const int why = errno;
    [[maybe_unused]] const int cut = ::ftruncate(fd_.get(), end);
    return fail_sys(why, "file_write", "writing " + path_,
                    "make room for it, and watch anew; what is in it stays good");
  }

 private:
  std::string path_;
  UniqueFd fd_;
};

class Watcher {
 public:
  Watcher(Session& session, const WatchWords& words)
      : session_(session), words_(words), printer_(session) {}

  Outcome run() {
    args_ = Value::map();
    if (!words_.tenants.empty()) args_.set("tenants", names(words_.tenants));
    if (!words_.kinds.empty()) args_.set("kinds", names(words_.kinds));
    if (!words_.from.empty()) {
      Result<Value> cursor = parse_cursor(words_.from);
      if (!cursor) return pass_on(cursor);
      args_.set("from", std::move(*cursor));
    }
    if (Status ok = prepare_signed(); !ok) return pass_on(ok);
    end_on_signals();
    session_.note("watching; Ctrl-C ends it\n");
    for (;;) {
      const Status over = follow();
      if (!taken_) return std::unexpected(taken_.error());
      if (ended) return ExitCode::done;
      if (!words_.reconnect || !may_come_back(over.error())) return std::unexpected(over.error());
      session_.note(fmt::format("{}; trying again\n", printable(over.error().message)));
      if (over.error().code == "resync_required") args_.set("from", Value());
      pause_before_reconnect();
      if (ended) return ExitCode::done;
    }
  }

 private:
  Status prepare_signed() {
    if (words_.node.empty() &&
        (!words_.keep.empty() || !words_.audience.empty() || words_.epoch != 0))
      return usage("--keep, --for and --epoch are for what a node has signed",
                   "give --node, a name that you know: holdfast status on the node shows it");
    if (words_.node.empty()) return {};
    Result<std::string> node = read_node_name(words_.node);
    if (!node) return pass_on(node);
    Result<std::string> audience = audience_or_self(words_.audience);
    if (!audience) return pass_on(audience);
    audience_ = std::move(*audience);
    notices_.emplace(
        NoticesFrom{.node = std::move(*node), .audience = audience_, .epoch = words_.epoch});
    if (words_.keep.empty()) return {};
    Result<Keeper> keeper = Keeper::open(words_.keep);
    if (!keeper) return pass_on(keeper);
    keeper_ = std::move(*keeper);
    return {};
  }

  // A stream's own challenge, so that none of an earlier one is taken for one of this.
  Status begin_signed() {
    const Result<token::Challenge> challenge = drawn_challenge();
    if (!challenge) return std::unexpected(challenge.error());
    asked_ = Value::map();
    for (const auto& [key, value] : *args_.as_map())
      if (key != "sign") asked_.set(key, value);
    args_.set("sign", Value::map({{"challenge", Value::Bytes(challenge->begin(), challenge->end())},
                                  {"for", audience_}}));
    notices_->expect({.audience = audience_, .challenge = *challenge});
    return {};
  }

  // Never well: a stream ends by a signal or by an error.
  Status follow() {
    Result<wire::Client*> daemon = session_.daemon();
    if (!daemon) return pass_on(daemon);
    if (notices_)
      if (Status ok = begin_signed(); !ok) return ok;
    followed_fd = (*daemon)->fd();
    Status over;
    if (ended) {
      over = fail(ErrorKind::unavailable, "connection_closed", "ended");
    } else {
      const Result<Value> last = (*daemon)->follow("watch", args_, [this](const Value& frame) {
        taken_ = take(frame);
        return taken_.has_value();
      });
      over = last ? Status(fail(ErrorKind::unavailable, "connection_closed",
                                "the daemon ended the stream", "watch again"))
                  : Status(std::unexpected(last.error()));
    }
    followed_fd = -1;
    return over;
  }

  static bool may_come_back(const Error& error) {
    for (const std::string_view code :
         {"daemon_not_running", "stale_socket", "daemon_busy", "connection_closed", "timeout",
          "resync_required", "signed_watchers_max"})
      if (error.code == code) return true;
    return false;
  }

  Status take(const Value& frame) {
    if (!notices_) return print(frame);
    const Value::Bytes* notice = part_of(frame, "notice").as_bytes();
    if (notice == nullptr)
      return fail(ErrorKind::denied, "not_signed", "the daemon sent what it has not signed",
                  "whoever answers on this socket is not to be believed");
    const Result<Value> said = notices_->open(*notice);
    if (!said) return std::unexpected(said.error());
    if (text_of(*said, "type") == "asked" && part_of(*said, "args") != asked_)
      return fail(ErrorKind::denied, "not_asked", "the node was asked for something else than this",
                  "somebody between here and the node changed it");
    if (text_of(*said, "type") == "resumed" && part_of(*said, "cursor") != part_of(asked_, "from"))
      return fail(ErrorKind::denied, "not_asked", "the stream goes on from elsewhere",
                  "watch anew, without --from");
    if (keeper_)
      if (Status ok = keeper_->keep(*notice); !ok) return ok;
    return print(*said);
  }

  Status print(const Value& frame) {
    const Status printed = printer_.take(frame);
    args_.set("from", printer_.cursor());
    return printed;
  }

  Session& session_;
  const WatchWords& words_;
  FramePrinter printer_;
  Value args_;
  Value asked_;  // these, without what is for the signing
  std::string audience_;
  std::optional<Notices> notices_;
  std::optional<Keeper> keeper_;
  Status taken_;
};

// What was kept, as far as it is what the node has signed.
Outcome verify_kept(Session& session, const WatchWords& words) {
  if (words.node.empty())
    return usage("watch --verify: whose has it to be?",
                 "give --node, a name that you know: holdfast status on the node shows it");
  if (!words.keep.empty() || !words.from.empty() || words.reconnect || !words.kinds.empty() ||
      !words.tenants.empty())
    return usage("watch --verify takes --node, --for and --epoch, and nothing else",
                 "it reads the file as it is");
  Result<std::string> node = read_node_name(words.node);
  if (!node) return pass_on(node);
  Result<NoticeFile> file = NoticeFile::open(words.verify);
  if (!file) return pass_on(file);
  NoticesFrom from{.node = std::move(*node), .audience = {}, .epoch = words.epoch};
  if (!words.audience.empty()) from.audience = words.audience;
  Notices notices(std::move(from));
  FramePrinter printer(session);
  for (bool is_first = true;; is_first = false) {
    const Result<std::span<const uint8_t>> notice = file->next();
    if (!notice) return std::unexpected(notice.error());
    if (notice->empty() && is_first)
      return fail(ErrorKind::invalid, "no_notices", shown_name(words.verify) + " is empty",
                  "nothing was kept in it");
    if (notice->empty()) return ExitCode::done;
    const Result<Value> said = notices.open(*notice);
    if (!said) return std::unexpected(Error(said.error()).in(file->place()));
    // A stream that goes on where another ended shows whether that one is whole.
    const Value& goes_on_from = part_of(part_of(*said, "args"), "from");
    if (!is_first && !goes_on_from.is_null() && goes_on_from != printer.cursor())
      return fail(ErrorKind::denied, "notice_missing",
                  file->place() + ": it goes on from elsewhere than where the one before ends",
                  "something is left out between the two; what stands before this is good");
    if (Status ok = printer.take(*said); !ok) return pass_on(ok);
  }
}

}  // namespace

Outcome run_watch(Session& session, const WatchWords& words) {
  if (!words.verify.empty()) return verify_kept(session, words);
  return Watcher(session, words).run();
}

}  // namespace holdfast::cli
