// Peers of control.sock that misbehave, and those that are not served any more (H5).
//
// Whoever is over its rate, sends what is no request, or shows what is not believed, is refused,
// and that is all. Who goes on with it is suspended: at least `offences_per_window` offences in
// each of `windows` windows in a row. Its connections are closed, and new ones get one answer,
// until an operator resumes it. By uid: opening more connections buys nothing. Operators are not
// suspended by themselves, and root by nobody: what tightens must always be possible for somebody.
//
// STATE_DIR/peers has those that are suspended, replaced whole and fsynced. To suspend holds at
// once and is then written; to resume is written first. A file that is damaged may have named
// anybody, so it suspends everybody but operators, until an operator resumes all.
//
// Of the others only as much is known as `peers_max` allows: who has given offence least lately is
// forgotten first, and who is suspended never. Thread: the event loop's.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/daemon/journal.hpp"
#include "userspace/wire/server.hpp"

namespace holdfast {

struct PeerLimits {
  uint64_t window_ns = ns_per_s;
  uint32_t offences_per_window = 10;  // fewer are a mistake: a client that tries again now and then
  uint32_t windows = 20;              // in a row: longer than any burst
  size_t peers_max = 4096;            // uids that are suspended or have given offence
  // Of these: whoever has many uids does not take the places of those whom operators suspend.
  size_t peers_for_operators = 256;
};

struct Suspension {
  uint64_t since_wall_ms = 0;
  uint32_t by_uid = 0;     // of the operator
  std::string_view cause;  // an offence's name, or "operator"
  bool by_operator() const { return cause == "operator"; }
  bool operator==(const Suspension&) const = default;
};

struct PeerRecord {
  std::array<uint64_t, wire::offences> counts{};  // since the daemon began
  uint64_t last_boot_ns = 0;                      // of its last offence
  std::optional<Suspension> suspension;

  // The streak under way.
  uint64_t window = 0;
  uint32_t in_window = 0;
  uint32_t windows_before = 0;
};

class Peers final : public wire::PeerGuard {
 public:
  // Errors: those of reading a file.
  static Result<std::unique_ptr<Peers>> open(std::string state_dir, Journal& journal,
                                             const PeerLimits& limits = {});

  // Ends the connections of those that are suspended from then on.
  using End = std::function<void(std::function<bool(const wire::Peer&)> whom, const Error& why)>;
  void on_suspended(End end) { end_ = std::move(end); }

  Status may_connect(const wire::Peer& peer) const override;
  void on_offence(const wire::Peer& peer, wire::Offence offence) override;
  // The same, of a uid that is no operator. True: it is suspended from now on.
  bool offend(uid_t uid, wire::Offence offence, uint64_t now_boot_ns, uint64_t now_wall_ms);

  // Again: nothing changes, and what could not be written is. Errors: invalid / root_peer,
  // exhausted / peers_max; those of writing a file, and then it holds all the same.
  Status suspend(uid_t uid, uint32_t by_uid, uint64_t now_wall_ms);
  // Errors: not_found / not_suspended; those of writing a file, and then nothing has changed.
  Status resume(uid_t uid);
  // All of them; how many.
  Result<size_t> resume_all();

  bool is_suspended(uid_t uid) const;
  // The file was damaged.
  bool everybody() const { return everybody_; }
  size_t suspended() const;
  uint64_t offences(wire::Offence offence) const { return totals_[static_cast<size_t>(offence)]; }
  const std::map<uid_t, PeerRecord>& all() const { return peers_; }

 private:
  Peers(std::string state_dir, Journal& journal, const PeerLimits& limits)
      : state_dir_(std::move(state_dir)), journal_(journal), limits_(limits) {}
  Status read();
  Status write(const std::map<uid_t, Suspension>& suspended);
  std::map<uid_t, Suspension> suspensions() const;
  // None: all there is room for are suspended.
  PeerRecord* record_of(uid_t uid);
  bool is_out(const wire::Peer& peer) const;
  void put_out(uid_t uid, PeerRecord& record, const Suspension& suspension);

  std::string state_dir_;
  Journal& journal_;
  PeerLimits limits_;
  End end_;
  std::map<uid_t, PeerRecord> peers_;
  std::array<uint64_t, wire::offences> totals_{};
  bool everybody_ = false;
  bool durable_ = true;  // the file says what holds
};

// What a peer that is suspended is told.
Error suspended_error(uid_t uid);

}  // namespace holdfast
