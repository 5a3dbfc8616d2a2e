// Journal: the place in the path where what happened is put on record, before the reply. It is the
// one source of events: what watchers are told is what is recorded here.
//
// This one writes structured log lines and is neither durable nor hash-linked: the chained
// write-ahead log takes its place behind the same interface. Until then what survives a crash are
// the pinned maps, and nothing else is claimed.
#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "userspace/base/log.hpp"

namespace holdfast {

// Everything that is recorded: a noun and what happened to it. The list is the vocabulary of
// `watch`.
constexpr std::string_view journal_actions[] = {
    "lease.grant",         "lease.renew",           "lease.revoke_warning",
    "lease.grace_running", "lease.preempted",       "lease.checkpoint_reported",
    "lease.expired",       "lease.forced_teardown", "lease.torndown",
    "lease.failed_closed", "lease.fenced",          "policy.apply",
    "policy.bundle",       "tenant.disable",        "tenant.enable",
    "node.drain",          "node.disable",          "node.quarantine",
    "node.resume",         "node.release",          "interface.dark",
    "interface.back",      "trust.anchors",         "trust.revoke",
    "trust.restore",       "trust.rotate",          "trust.retired",
    "peer.suspend",        "peer.resume",           "bearer.create",
    "bearer.revoke",       "enroll.begin",          "enroll.finish",
    "enroll.end",
};

// One of these; another one does not compile.
struct JournalAction {
  std::string_view name;

  consteval JournalAction(const char* text) : name(text) {
    if (std::ranges::find(journal_actions, name) == std::end(journal_actions))
      throw "journal_actions does not have this action";
  }
};

class Journal {
 public:
  using Listener = std::function<void(JournalAction, std::span<const log::Field>)>;

  // An action that changed, or was to change, something.
  void record(JournalAction action, std::initializer_list<log::Field> fields) {
    record(log::Level::info, action, fields);
  }
  void record(log::Level level, JournalAction action, std::vector<log::Field> all) {
    all.insert(all.end(), asked_by_.begin(), asked_by_.end());
    log::write(level, action.name, all);
    if (listener_) listener_(action, all);
  }

  // Says, for as long as it lives, at whose request happens what is recorded: the uid that handed
  // the request in, and who signed it, "" for nobody.
  class [[nodiscard]] AskedBy {
   public:
    AskedBy(Journal& journal, uint32_t uid, std::string_view signer) : journal_(journal) {
      journal_.asked_by_.emplace_back("actor_uid", uid);
      if (!signer.empty()) journal_.asked_by_.emplace_back("signer", signer);
    }
    ~AskedBy() { journal_.asked_by_.clear(); }
    AskedBy(const AskedBy&) = delete;
    AskedBy& operator=(const AskedBy&) = delete;

   private:
    Journal& journal_;
  };

  // Who hears of it, too; it must not act on it before its next turn. At most one.
  void listen(Listener listener) { listener_ = std::move(listener); }

 private:
  std::vector<log::Field> asked_by_;
  Listener listener_;
};

}  // namespace holdfast
