// watch: what happens on this node, as it happens, to many who want to know.
//
//   Journal::record -> encoded once -> ring -> every 20 ms one frame for all watchers of a filter
//
// A stream is event frames, each a map with a "type":
//
//   snapshot      begins a snapshot; whatever was known before is void. Then, in pages:
//   tenants, endpoints, leases
//   snapshot_end  the snapshot is whole; the cursor
//   resumed       instead of all that: the cursor that was asked for is still in the ring
//   events        in order, and the cursor behind the last of them
//   heartbeat     nothing has happened for a while; the cursor
//   signed        any of these, as a notice under the node's signature, numbered from 0: to whom
//                 asked for that, over its own challenge. The first says `asked`: for what
//                 ("args"), so that none can pass who left something out for all that there was
//
// Pages are read while things go on, and all stands in the order in which it was: events may come
// between pages, and a page says what is at its place of the stream. An event of a lease that no
// page has told yet may be ignored, unless it is its grant. A cursor is of use from snapshot_end
// on. A snapshot begins anew when another policy comes into force under it.
//
// What many leases share is one event with their number, "leases", for each tenant, instead of
// "lease": whoever needs them one by one reads lease.list.
//
// Nothing is buffered for a watcher but what its socket has not taken (unsent_max): one that falls
// behind is served from the ring, and when the ring has forgotten what it has not seen, it is told
// resync_required. Thread: the event loop's.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/daemon/journal.hpp"
#include "userspace/token/node_identity.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/server.hpp"

namespace holdfast {

struct WatchLimits {
  size_t watchers_max = 1024;    // of readers, and as many of operators
  size_t uid_watchers_max = 64;  // of one reader
  size_t signed_max = 16;        // of those whom the node signs for, of readers and of operators
  size_t uid_signed_max = 4;     // of these, of one reader
  size_t ring_bytes_max = 4U << 20;
  size_t unsent_max = 128U << 10;
  size_t frame_bytes_max = 64U << 10;
  uint64_t batch_ns = 20 * ns_per_ms;
};

// Where a watcher is: the last event it has seen, in this run of the daemon.
struct WatchCursor {
  std::string instance;
  uint64_t seq = 0;

  static Result<WatchCursor> read(const cbor::Value& value);
  cbor::Value value() const;
  bool operator==(const WatchCursor&) const = default;
};

// What a watcher wants: events of some nouns ("lease") or names ("lease.grant"), and of some
// tenants. What is of no tenant, or of many, is for everybody.
class WatchFilter {
 public:
  // Of "kinds" and "tenants". Errors: invalid / unknown_kind, watch_filter.
  static Result<WatchFilter> read(const cbor::Value& args);

  bool wants(std::string_view event, std::string_view tenant) const;
  bool wants_noun(std::string_view noun) const;  // some event of it
  bool wants_tenant(std::string_view tenant) const;
  // The one tenant it is about, or empty.
  std::string_view only_tenant() const {
    return tenants_.size() == 1 ? std::string_view(tenants_.front()) : std::string_view();
  }
  bool operator==(const WatchFilter&) const = default;

 private:
  std::vector<std::string> kinds_;    // ascending; none: all
  std::vector<std::string> tenants_;  // likewise
};

// The last events, encoded. Numbered from 1; the oldest are forgotten when it is full.
class EventRing {
 public:
  EventRing(std::string instance, size_t bytes_max)
      : instance_(std::move(instance)), bytes_max_(bytes_max) {}

  void push(std::string_view name, std::string tenant, const cbor::Value& event);  // sets "seq"

  uint64_t begin() const { return begin_; }  // the oldest that is there
  uint64_t end() const { return begin_ + events_.size(); }
  // Of the last event.
  WatchCursor cursor() const { return {instance_, end() - 1}; }
  // The event after this cursor, if nothing between is forgotten.
  std::optional<uint64_t> after(const WatchCursor& cursor) const;

  struct Batch {
    std::vector<uint8_t> frame;  // the body; empty if no event was wanted
    uint64_t next = 0;           // the first that is not in it
  };
  // As many from `from` on as fit. `from` is in the ring, or its end.
  Batch batch(uint64_t from, const WatchFilter& filter, size_t bytes_max) const;

 private:
  struct Event {
    std::string_view name;  // of journal_actions
    std::string tenant;
    std::vector<uint8_t> body;
    size_t bytes() const { return sizeof(Event) + tenant.size() + body.size(); }
  };

  std::string instance_;
  size_t bytes_max_;
  std::deque<Event> events_;
  uint64_t begin_ = 1;
  size_t bytes_ = 0;
};

// The pages of one snapshot, from its begin to its end.
class SnapshotPages {
 public:
  virtual ~SnapshotPages() = default;
  // False: what it was about is in force no more, and it has to begin anew.
  virtual bool is_current() const = 0;
  // The next page, or none after the last.
  virtual std::optional<cbor::Value> next() = 0;
};

class Watch {
 public:
  using NewSnapshot = std::function<std::unique_ptr<SnapshotPages>(const WatchFilter&)>;
  // A frame as a notice, under the node's signature.
  using Sign = std::function<Result<std::vector<uint8_t>>(const token::StatementFor&,
                                                          std::span<const uint8_t> frame)>;

  Watch(wire::EventLoop& loop, NewSnapshot new_snapshot, Sign sign, const WatchLimits& limits = {});

  // A Journal's listener.
  void tell(JournalAction action, std::span<const log::Field> fields);
  // The verb: {"from"?: cursor, "kinds"?: [text], "tenants"?: [text], "heartbeat_ns"?: number,
  // "sign"?: read_statement_for()}.
  // `signer`: by whose signature, or nullptr.
  void begin(const wire::Peer& peer, const cbor::Value& args,
             std::shared_ptr<const wire::Principal> signer, wire::Responder responder);
  void end_those(const std::function<bool(const wire::Principal*)>& is_over, const Error& why);
  cbor::Value status() const;

 private:
  struct Watcher {
    uid_t uid = 0;
    bool operates = false;
    std::shared_ptr<const wire::Principal> signer;
    std::optional<token::StatementFor> next_notice;  // whom the node signs for
    std::vector<uint8_t> asked;                      // the first frame of those, encoded
    wire::Responder responder;
    WatchFilter filter;
    uint64_t heartbeat_ns = 0;
    uint64_t next_seq = 0;
    uint64_t sent_boot_ns = 0;
    bool has_begun = false;
    bool resumes = false;
    std::unique_ptr<SnapshotPages> snapshot;  // while it is under way

    bool is_live() const { return has_begun && snapshot == nullptr; }
  };
  // Made for one watcher, and right for all that stand where it stood.
  struct Shared {
    WatchFilter filter;
    uint64_t from = 0;
    EventRing::Batch batch;
  };

  Status may_watch(const wire::Peer& peer, bool signs) const;
  void forget_gone();
  Status send(Watcher& watcher, std::span<const uint8_t> frame);
  const EventRing::Batch& batch_for(const Watcher& watcher);
  bool serve(Watcher& watcher);
  bool begin_events(Watcher& watcher, std::string_view type);
  void flush();
  void flush_soon();
  void page_turn();
  bool page(Watcher& watcher);
  void page_soon(uint64_t delay_ns);
  void beat();

  wire::EventLoop& loop_;
  NewSnapshot new_snapshot_;
  Sign sign_;
  WatchLimits limits_;
  EventRing ring_;
  std::vector<std::unique_ptr<Watcher>> watchers_;
  std::vector<Shared> shared_;  // of the flush under way, the last few
  size_t shared_next_ = 0;      // which is replaced next
  size_t flush_at_ = 0;         // who is served next, of the round under way
  size_t turn_ = 0;             // whose snapshot goes on next
  uint64_t resyncs_ = 0;
  wire::Timer flush_timer_;
  wire::Timer page_timer_;
  wire::Timer beat_timer_;
};

}  // namespace holdfast
