#include "userspace/daemon/peers.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/state_file.hpp"
#include "userspace/token/sha256.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "peers";
constexpr std::string_view by_operator = "operator";
constexpr wire::Offence all_offences[] = {wire::Offence::rate, wire::Offence::frame,
                                          wire::Offence::signature, wire::Offence::proof,
                                          wire::Offence::authority};
static_assert(std::size(all_offences) == wire::offences);

std::string render(const std::map<uid_t, Suspension>& suspended) {
  std::string text = "holdfast suspended peers 1\n";
  for (const auto& [uid, suspension] : suspended)
    text += fmt::format("uid {} since {} by {} cause {}\n", uid, suspension.since_wall_ms,
                        suspension.by_uid, suspension.cause);
  const token::Digest sum =
      token::sha256({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return text + fmt::format("sha256 {}\n", hex(sum));
}

std::string_view known_cause(std::string_view text) {
  for (const wire::Offence offence : all_offences)
    if (name_of(offence) == text) return name_of(offence);
  return text == by_operator ? by_operator : std::string_view();
}

// The text after `name` in a line, up to the next blank.
std::string_view word_after(std::string_view line, std::string_view name) {
  const size_t at = line.find(name);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = line.substr(at + name.size());
  return rest.substr(0, rest.find(' '));
}

// What render() wrote, to the byte.
std::optional<std::map<uid_t, Suspension>> parse(std::string_view text) {
  std::map<uid_t, Suspension> suspended;
  const auto number = [](std::string_view digits, auto& out) {
    std::from_chars(digits.data(), digits.data() + digits.size(), out);
  };
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (!line.starts_with("uid ")) continue;
    uid_t uid = 0;
    Suspension suspension;
    number(word_after(line, "uid "), uid);
    number(word_after(line, " since "), suspension.since_wall_ms);
    number(word_after(line, " by "), suspension.by_uid);
    suspension.cause = known_cause(word_after(line, " cause "));
    suspended.emplace(uid, suspension);
  }
  if (suspended.contains(0) || render(suspended) != text) return std::nullopt;
  return suspended;
}

}  // namespace

Error suspended_error(uid_t uid) {
  return {ErrorKind::denied, "suspended", 0,
          fmt::format(
              "uid {} is suspended: it went on with what was refused, or an operator said so", uid),
          fmt::format("mend what asks, then have an operator run: holdfast peer resume {}", uid)};
}

Result<std::unique_ptr<Peers>> Peers::open(std::string state_dir, Journal& journal,
                                           const PeerLimits& limits) {
  std::unique_ptr<Peers> peers(new Peers(std::move(state_dir), journal, limits));
  if (Status ok = peers->read(); !ok) return pass_on(ok);
  return peers;
}

Status Peers::read() {
  const std::string path = state_dir_ + "/" + std::string(file_name);
  const Result<std::string> text = read_state_file(path);
  if (!text && text.error().sys == ENOENT) return {};
  if (!text) return std::unexpected(text.error());
  const auto suspended = parse(*text);
  if (!suspended) {
    everybody_ = true;
    log::error("peers_damaged",
               {{"file", path},
                {"effect", "only operators are served"},
                {"next_step", "find out who wrote it, then: holdfast peer resume all"}});
    return {};
  }
  for (const auto& [uid, suspension] : *suspended) peers_[uid].suspension = suspension;
  if (!suspended->empty()) log::notice("peers_suspended", {{"peers", suspended->size()}});
  return {};
}

Status Peers::write(const std::map<uid_t, Suspension>& suspended) {
  return write_state_file(state_dir_, file_name, render(suspended));
}

std::map<uid_t, Suspension> Peers::suspensions() const {
  std::map<uid_t, Suspension> out;
  for (const auto& [uid, record] : peers_)
    if (record.suspension) out.emplace(uid, *record.suspension);
  return out;
}

bool Peers::is_suspended(uid_t uid) const {
  const auto found = peers_.find(uid);
  return found != peers_.end() && found->second.suspension;
}

// A uid's other processes may be operators: what suspends itself does not suspend these.
bool Peers::is_out(const wire::Peer& peer) const {
  const auto found = peers_.find(peer.uid);
  if (found == peers_.end() || !found->second.suspension) return false;
  return peer.role != wire::Role::operates || found->second.suspension->by_operator();
}

size_t Peers::suspended() const {
  return static_cast<size_t>(std::ranges::count_if(
      peers_, [](const auto& each) { return each.second.suspension.has_value(); }));
}

Status Peers::may_connect(const wire::Peer& peer) const {
  const bool damaged = everybody_ && peer.role != wire::Role::operates;
  if (!damaged && !is_out(peer)) return {};
  Error why = suspended_error(peer.uid);
  if (damaged)
    why = {ErrorKind::denied, "suspended", 0,
           "the list of suspended peers is damaged: only operators are served",
           "have an operator look into the log, then: holdfast peer resume all"};
  return std::unexpected(std::move(why));
}

PeerRecord* Peers::record_of(uid_t uid) {
  if (const auto found = peers_.find(uid); found != peers_.end()) return &found->second;
  if (peers_.size() >= limits_.peers_max) {
    const auto forgettable = [](const auto& each) { return !each.second.suspension.has_value(); };
    auto oldest = std::ranges::find_if(peers_, forgettable);
    if (oldest == peers_.end()) return nullptr;
    for (auto at = oldest; at != peers_.end(); ++at)
      if (forgettable(*at) && at->second.last_boot_ns < oldest->second.last_boot_ns) oldest = at;
    peers_.erase(oldest);
  }
  return &peers_[uid];
}

void Peers::on_offence(const wire::Peer& peer, wire::Offence offence) {
  ++totals_[static_cast<size_t>(offence)];
  if (peer.role == wire::Role::operates) return;
  offend(peer.uid, offence, boot_now_ns(), wall_now_ns() / ns_per_ms);
}

bool Peers::offend(uid_t uid, wire::Offence offence, uint64_t now_boot_ns, uint64_t now_wall_ms) {
  const auto no_room = [uid] {
    log::warning("peers_max", {{"uid", uid},
                               {"effect", "it is refused, but cannot be suspended by itself"},
                               {"next_step", "holdfast peer ls; resume those that are mended"}});
    return false;
  };
  PeerRecord* record = record_of(uid);
  if (record == nullptr) return no_room();
  ++record->counts[static_cast<size_t>(offence)];
  record->last_boot_ns = now_boot_ns;
  if (record->suspension) return false;  // what it sent before it was put out
  const uint64_t window = now_boot_ns / limits_.window_ns;
  if (window != record->window) {
    const bool goes_on =
        window == record->window + 1 && record->in_window >= limits_.offences_per_window;
    record->windows_before = goes_on ? record->windows_before + 1 : 0;
    record->window = window;
    record->in_window = 0;
  }
  ++record->in_window;
  const uint32_t streak =
      record->windows_before + (record->in_window >= limits_.offences_per_window ? 1 : 0);
  if (streak < limits_.windows) return false;
  if (suspended() + limits_.peers_for_operators >= limits_.peers_max) return no_room();
  put_out(uid, *record, {.since_wall_ms = now_wall_ms, .by_uid = 0, .cause = name_of(offence)});
  if (Status ok = write(suspensions()); !ok) {
    durable_ = false;
    log::error("peers_not_written", {{"uid", uid},
                                     {"cause", ok.error().text()},
                                     {"effect", "it would not be suspended after a restart"}});
  } else {
    durable_ = true;
  }
  return true;
}

void Peers::put_out(uid_t uid, PeerRecord& record, const Suspension& suspension) {
  record.suspension = suspension;
  record.windows_before = record.in_window = 0;
  journal_.record(log::Level::warning, "peer.suspend", {{"uid", uid}, {"cause", suspension.cause}});
  if (end_)
    end_([this, uid](const wire::Peer& peer) { return peer.uid == uid && is_out(peer); },
         suspended_error(uid));
}

Status Peers::suspend(uid_t uid, uint32_t by_uid, uint64_t now_wall_ms) {
  if (uid == 0)
    return fail(ErrorKind::invalid, "root_peer", "root is not suspended: nobody could resume it",
                "see which program of root's it is, and stop that");
  const auto is_done = [](const PeerRecord& record) {
    return record.suspension && record.suspension->by_operator();
  };
  const auto found = peers_.find(uid);
  if (found != peers_.end() && is_done(found->second) && durable_) return {};
  PeerRecord* record = record_of(uid);
  if (record == nullptr)
    return fail(ErrorKind::exhausted, "peers_max",
                fmt::format("{} peers are suspended already", peers_.size()),
                "resume those that are mended: holdfast peer ls");
  if (!is_done(*record))
    put_out(uid, *record, {.since_wall_ms = now_wall_ms, .by_uid = by_uid, .cause = by_operator});
  // In place of a damaged file nothing is written: it would suspend nobody else after a restart.
  if (everybody_)
    return fail(ErrorKind::conflict, "peers_damaged",
                fmt::format("uid {} is suspended, as everybody is, since the list is damaged", uid),
                "holdfast peer resume all, then suspend it again");
  durable_ = false;
  if (Status ok = write(suspensions()); !ok)
    return pass_on(ok, fmt::format("uid {} is suspended, but would not be after a restart", uid));
  durable_ = true;
  return {};
}

Status Peers::resume(uid_t uid) {
  if (everybody_)
    return fail(ErrorKind::conflict, "peers_damaged",
                "the list of suspended peers is damaged, so everybody is suspended",
                "holdfast peer resume all");
  if (!is_suspended(uid))
    return fail(ErrorKind::not_found, "not_suspended", fmt::format("uid {} is not suspended", uid),
                "holdfast peer ls shows who is");
  std::map<uid_t, Suspension> left = suspensions();
  left.erase(uid);
  if (Status ok = write(left); !ok) {
    // It may have come to stand there all the same.
    durable_ = write(suspensions()).has_value();
    return pass_on(ok, fmt::format("uid {} stays suspended", uid));
  }
  durable_ = true;
  peers_[uid].suspension.reset();
  journal_.record(log::Level::notice, "peer.resume", {{"uid", uid}});
  return {};
}

Result<size_t> Peers::resume_all() {
  if (Status ok = write({}); !ok) {
    durable_ = false;
    return pass_on(ok, "all stay suspended");
  }
  durable_ = true;
  size_t resumed = 0;
  for (auto& [uid, record] : peers_)
    if (std::exchange(record.suspension, std::nullopt)) ++resumed;
  if (std::exchange(everybody_, false) || resumed != 0)
    journal_.record(log::Level::notice, "peer.resume", {{"peers", resumed}});
  return resumed;
}

}  // namespace holdfast
