// Watch: who else touches our table. Subscribes to the kernel's notices of nf_tables changes
// (NFNLGRP_NFTABLES); those our own transactions cause are dropped by a socket filter in the
// kernel, so that loading a million leases neither floods this socket nor hides another program's
// change.
//
// Ownership: owns its socket, in the namespace it was opened in. Thread: one at a time. A Watch
// that overflowed says so (`overrun`): then read back, since changes were missed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast::nft {

enum class EventKind {
  table_removed,
  table_changed,  // made, or its flags changed (a dormant table enforces nothing)
  chain_removed,
  chain_changed,
  rule_removed,
  rule_added,
  set_removed,
  set_changed,
  elements_removed,
  elements_added,
  // In any table: offloaded flows pass none of our chains.
  flowtable_added,
  overrun,
};
const char* name_of(EventKind kind);

// One transaction's events of one kind on one object are one Event.
struct Event {
  EventKind kind;
  std::string object;  // the chain's or set's name; for a flowtable its table's and its own
  uint64_t count = 1;
  uint32_t process = 0;  // who did it, as the kernel says; 0 if not known
  std::string command;   // its name

  std::string text() const;  // "element removed from set lease4_a (3 times) by nft, process 4711"
};

class Watch {
 public:
  // `own_port_ids`: the sockets whose changes are ours (Table::port_id()).
  static Result<Watch> open(std::string table, std::span<const uint32_t> own_port_ids);

  // Beside Table::off(): there is nothing to watch, and fd() is -1.
  static Watch off() { return {}; }

  int fd() const { return fd_.get(); }  // readable when there is something to drain

  // Stops and resumes listening. While anybody listens, the kernel makes a notice for every element
  // of a transaction, ours too, only to have the filter drop it: a quarter of the time of a bulk
  // load. What others do meanwhile is missed; look at the table afterwards (Table::check_rules).
  Status pause();
  Status resume();

  // What happened since the last call, oldest first. Does not block.
  Result<std::vector<Event>> drain();

 private:
  Watch() = default;

  std::string table_;
  UniqueFd fd_;
  std::vector<char> buffer_;
};

}  // namespace holdfast::nft
