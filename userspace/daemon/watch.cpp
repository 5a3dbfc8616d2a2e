#include "userspace/daemon/watch.hpp"

#include <algorithm>
#include <charconv>
#include <utility>

#include <fmt/format.h>
#include <sys/random.h>

#include "userspace/base/check.hpp"
#include "userspace/daemon/statement_for.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr uint64_t heartbeat_default_ns = 10 * ns_per_s;
constexpr uint64_t heartbeat_min_ns = ns_per_s;
constexpr uint64_t heartbeat_max_ns = 300 * ns_per_s;
constexpr uint64_t beat_period_ns = 250 * ns_per_ms;  // how exact a heartbeat is
// A signature is worth many frames without one.
constexpr size_t watchers_per_turn = 128, one_that_signs = 16;
constexpr size_t filter_names_max = 64;
constexpr size_t filter_name_bytes_max = 256;
constexpr size_t instance_digits = 16;
// Frames kept to be shared within one flush: watchers of a filter mostly stand at the same event.
constexpr size_t shared_max = 64;
// Snapshots of readers take at most a fifth of the loop's time, as their requests do.
constexpr uint64_t reader_rest = 4;

std::string new_instance() {
  uint64_t random = 0;
  CHECK(::getrandom(&random, sizeof(random), 0) == sizeof(random));
  return fmt::format("{:016x}", random);
}

std::string_view noun_of(std::string_view event) {
  return event.substr(0, event.find('.'));
}

bool is_known(std::string_view kind) {
  return std::ranges::any_of(journal_actions, [&](std::string_view action) {
    return action == kind || noun_of(action) == kind;
  });
}

std::string known_nouns() {
  std::vector<std::string_view> nouns;
  for (const std::string_view action : journal_actions)
    if (nouns.empty() || nouns.back() != noun_of(action)) nouns.push_back(noun_of(action));
  return fmt::format("{}", fmt::join(nouns, ", "));
}

Result<std::vector<std::string>> names_of(const Value& args, std::string_view key) {
  std::vector<std::string> names;
  if (!args.has(key)) return names;
  const Result<const Value::Array*> list = args.get_array(key);
  if (!list) return std::unexpected(list.error());
  for (const Value& item : **list) {
    const std::string* name = item.as_text();
    if (name == nullptr || name->empty() || name->size() > filter_name_bytes_max ||
        names.size() == filter_names_max)
      return fail(ErrorKind::invalid, "watch_filter", fmt::format("{} is no list of names", key),
                  fmt::format("at most {} names of at most {} bytes; none for all",
                              filter_names_max, filter_name_bytes_max));
    names.push_back(*name);
  }
  std::ranges::sort(names);
  names.erase(std::ranges::unique(names).begin(), names.end());
  return names;
}

Value value_of(const log::Field& field) {
  if (!field.items.empty()) {
    Value list = Value::array();
    for (const std::string& item : field.items) list.push(item);
    return list;
  }
  uint64_t number = 0;
  const char* end = field.value.data() + field.value.size();
  if (!field.quoted && std::from_chars(field.value.data(), end, number).ptr == end) return number;
  return field.value;
}

}  // namespace

// ---- cursor and filter

Result<WatchCursor> WatchCursor::read(const Value& value) {
  if (!value.is_map())
    return fail(ErrorKind::invalid, "watch_cursor", "a cursor is a map of instance and seq",
                "leave it out to begin with a snapshot");
  if (Status ok = value.only_keys({"instance", "seq"}); !ok) return pass_on(ok);
  const Result<std::string_view> instance = value.get_text("instance");
  if (!instance) return std::unexpected(instance.error());
  const Result<uint64_t> seq = value.get_u64("seq");
  if (!seq) return std::unexpected(seq.error());
  if (instance->size() != instance_digits)
    return fail(ErrorKind::invalid, "watch_cursor",
                fmt::format("a cursor's instance has {} digits", instance_digits),
                "leave the cursor out to begin with a snapshot");
  return WatchCursor{std::string(*instance), *seq};
}

Value WatchCursor::value() const {
  return Value::map({{"instance", instance}, {"seq", seq}});
}

Result<WatchFilter> WatchFilter::read(const Value& args) {
  WatchFilter filter;
  Result<std::vector<std::string>> kinds = names_of(args, "kinds");
  if (!kinds) return pass_on(kinds);
  Result<std::vector<std::string>> tenants = names_of(args, "tenants");
  if (!tenants) return pass_on(tenants);
  for (const std::string& kind : *kinds)
    if (!is_known(kind))
      return fail(ErrorKind::invalid, "unknown_kind",
                  fmt::format("there are no events \"{}\"", kind),
                  fmt::format("{}, or one of their events, such as lease.grant", known_nouns()));
  filter.kinds_ = std::move(*kinds);
  filter.tenants_ = std::move(*tenants);
  return filter;
}

bool WatchFilter::wants(std::string_view event, std::string_view tenant) const {
  const auto has = [](const std::vector<std::string>& list, std::string_view name) {
    return std::ranges::binary_search(list, name, std::less<>());
  };
  if (!kinds_.empty() && !has(kinds_, event) && !has(kinds_, noun_of(event))) return false;
  return tenants_.empty() || tenant.empty() || has(tenants_, tenant);
}

bool WatchFilter::wants_noun(std::string_view noun) const {
  return kinds_.empty() || std::ranges::any_of(kinds_, [&](const std::string& kind) {
           return noun_of(kind) == noun;
         });
}

bool WatchFilter::wants_tenant(std::string_view tenant) const {
  return tenants_.empty() || std::ranges::binary_search(tenants_, tenant, std::less<>());
}

// ---- ring

void EventRing::push(std::string_view name, std::string tenant, const Value& event) {
  Value numbered = event;
  numbered.set("seq", end());
  events_.push_back({name, std::move(tenant), cbor::encode(numbered)});
  bytes_ += events_.back().bytes();
  while (bytes_ > bytes_max_ && events_.size() > 1) {
    bytes_ -= events_.front().bytes();
    events_.pop_front();
    ++begin_;
  }
}

std::optional<uint64_t> EventRing::after(const WatchCursor& cursor) const {
  if (cursor.instance != instance_ || cursor.seq >= end() || cursor.seq + 1 < begin_)
    return std::nullopt;
  return cursor.seq + 1;
}

EventRing::Batch EventRing::batch(uint64_t from, const WatchFilter& filter,
                                  size_t bytes_max) const {
  Batch batch{.frame = {}, .next = from};
  std::vector<const Event*> wanted;
  size_t bytes = 0;
  for (; batch.next < end(); ++batch.next) {
    const Event& event = events_[batch.next - begin_];
    if (!filter.wants(event.name, event.tenant)) continue;
    if (!wanted.empty() && bytes + event.body.size() > bytes_max) break;
    bytes += event.body.size();
    wanted.push_back(&event);
  }
  if (wanted.empty()) return batch;
  batch.frame.reserve(bytes + 128);
  cbor::Writer out(batch.frame);
  out.map(3).text("type").text("events").text("cursor");
  cbor::encode_into(out, WatchCursor{instance_, batch.next - 1}.value());
  out.text("events").array(wanted.size());
  for (const Event* event : wanted) out.raw(event->body);
  out.end().end();
  return batch;
}

// ---- watchers

Watch::Watch(wire::EventLoop& loop, NewSnapshot new_snapshot, Sign sign, const WatchLimits& limits)
    : loop_(loop),
      new_snapshot_(std::move(new_snapshot)),
      sign_(std::move(sign)),
      limits_(limits),
      ring_(new_instance(), limits.ring_bytes_max) {}

void Watch::tell(JournalAction action, std::span<const log::Field> fields) {
  Value event = Value::map({{"event", action.name}, {"time", rfc3339_utc(wall_now_ns())}});
  std::string tenant;
  for (const log::Field& field : fields) {
    if (field.key == "tenant") tenant = field.value;
    if (field.key == "tenant" && tenant.empty()) continue;  // of all
    event.set(field.key, value_of(field));
  }
  ring_.push(action.name, std::move(tenant), event);
  if (!watchers_.empty()) flush_soon();
}

Value Watch::status() const {
  return Value::map({{"watchers", watchers_.size()},
                     {"events", ring_.end() - 1},
                     {"resyncs", resyncs_},
                     {"cursor", ring_.cursor().value()}});
}

// Operators have places of their own, so that readers cannot take them all.
Status Watch::may_watch(const wire::Peer& peer, bool signs) const {
  const bool operates = peer.role == wire::Role::operates;
  size_t all = 0, own = 0, signed_for = 0, own_signed = 0;
  for (const auto& watcher : watchers_) {
    const bool is_own = watcher->uid == peer.uid;
    if (watcher->operates == operates) ++all;
    if (is_own) ++own;
    if (watcher->operates == operates && watcher->next_notice) ++signed_for;
    if (is_own && watcher->next_notice) ++own_signed;
  }
  if (signs && signed_for >= limits_.signed_max)
    return fail(ErrorKind::exhausted, "signed_watchers_max",
                fmt::format("the node signs for {} others already", signed_for),
                "watch without \"sign\", or try later");
  if (signs && !operates && own_signed >= limits_.uid_signed_max)
    return fail(ErrorKind::exhausted, "signed_watchers_max",
                fmt::format("the node signs for uid {} {} times already", peer.uid, own_signed),
                "end one of them, or watch without \"sign\"");
  if (all >= limits_.watchers_max)
    return fail(ErrorKind::exhausted, "watchers_max", fmt::format("{} others watch this node", all),
                "try later");
  if (!operates && own >= limits_.uid_watchers_max)
    return fail(ErrorKind::exhausted, "watchers_max",
                fmt::format("uid {} watches {} times already", peer.uid, own),
                "end one of them, or let one watch for several");
  return {};
}

void Watch::forget_gone() {
  std::erase_if(watchers_, [](const auto& watcher) { return !watcher->responder.is_open(); });
  if (watchers_.empty())
    for (wire::Timer* timer : {&flush_timer_, &page_timer_, &beat_timer_}) timer->reset();
}

// Not from inside a round: forget_gone() takes them out in the next one.
void Watch::end_those(const std::function<bool(const wire::Principal*)>& is_over,
                      const Error& why) {
  for (const std::unique_ptr<Watcher>& each : watchers_)
    if (is_over(each->signer.get())) each->responder.fail(why);
}

void Watch::begin(const wire::Peer& peer, const Value& args,
                  std::shared_ptr<const wire::Principal> signer, wire::Responder responder) {
  forget_gone();
  const Value* sign = args.find("sign");
  if (Status ok = may_watch(peer, sign != nullptr); !ok) return responder.fail(ok.error());
  if (Status ok = args.only_keys({"from", "kinds", "tenants", "heartbeat_ns", "sign"}); !ok)
    return responder.fail(ok.error());
  auto watcher = std::make_unique<Watcher>();
  watcher->uid = peer.uid;
  watcher->operates = peer.role == wire::Role::operates;
  watcher->signer = std::move(signer);
  Result<WatchFilter> filter = WatchFilter::read(args);
  if (!filter) return responder.fail(filter.error());
  watcher->filter = std::move(*filter);
  watcher->heartbeat_ns = heartbeat_default_ns;
  if (args.has("heartbeat_ns")) {
    const Result<uint64_t> given = args.get_u64("heartbeat_ns", heartbeat_min_ns, heartbeat_max_ns);
    if (!given) return responder.fail(given.error());
    watcher->heartbeat_ns = *given;
  }
  if (sign != nullptr) {
    Result<token::StatementFor> target = read_statement_for(*sign);
    if (!target) return responder.fail(Error(target.error()).in("\"sign\""));
    watcher->next_notice = std::move(*target);
    Value asked = Value::map();
    for (const auto& [key, value] : *args.as_map())
      if (key != "sign") asked.set(key, value);
    watcher->asked = cbor::encode(Value::map({{"type", "asked"}, {"args", std::move(asked)}}));
  }
  if (const Value* from = args.find("from"); from != nullptr && !from->is_null()) {
    const Result<WatchCursor> cursor = WatchCursor::read(*from);
    if (!cursor) return responder.fail(cursor.error());
    if (const std::optional<uint64_t> next = ring_.after(*cursor)) {
      watcher->resumes = true;
      watcher->next_seq = *next;
    }
  }
  watcher->responder = std::move(responder);
  watchers_.push_back(std::move(watcher));
  page_soon(0);  // all begin in a later turn: nothing is sent from inside a request
  if (!beat_timer_.is_pending()) beat_timer_ = loop_.every(beat_period_ns, [this] { beat(); });
}

// Whatever keeps a frame from being made or sent, but for want of room, ends the stream.
Status Watch::send(Watcher& watcher, std::span<const uint8_t> frame) {
  std::vector<uint8_t> notice;
  Status sent;
  if (watcher.next_notice) {
    Result<std::vector<uint8_t>> made = sign_(*watcher.next_notice, frame);
    if (made)
      notice = cbor::encode(Value::map({{"type", "signed"}, {"notice", Value(std::move(*made))}}));
    else
      sent = pass_on(made);
  }
  if (sent)
    sent =
        watcher.responder.event_encoded(watcher.next_notice ? notice : frame, limits_.unsent_max);
  if (!sent) {
    if (sent.error().kind != ErrorKind::exhausted) watcher.responder.fail(sent.error());
    return sent;
  }
  if (watcher.next_notice) ++watcher.next_notice->sequence;
  watcher.sent_boot_ns = boot_now_ns();
  return {};
}

// ---- snapshots: one page a turn of the loop, each watcher's in turn

void Watch::page_soon(uint64_t delay_ns) {
  if (!page_timer_.is_pending()) page_timer_ = loop_.after(delay_ns, [this] { page_turn(); });
}

// Operators' first: readers who begin all the time hold up only readers.
void Watch::page_turn() {
  bool waits = false;
  for (const bool operates : {true, false})
    for (size_t n = 0; n < watchers_.size(); ++n) {
      const size_t at = (turn_ + n) % watchers_.size();
      Watcher& watcher = *watchers_[at];
      if (watcher.operates != operates || watcher.is_live()) continue;
      waits = true;
      if (!watcher.responder.has_room(limits_.unsent_max)) continue;
      turn_ = at + 1;
      const uint64_t begin_ns = read_clock_ns(CLOCK_MONOTONIC);
      const bool stays = page(watcher);
      if (flush_at_ == 0) shared_.clear();  // else a round is under way, which ends with it
      if (stays && watcher.next_seq < ring_.end()) flush_soon();
      if (!stays) watchers_.erase(watchers_.begin() + static_cast<ptrdiff_t>(at));
      const uint64_t took_ns = read_clock_ns(CLOCK_MONOTONIC) - begin_ns;
      return page_soon(operates ? 0 : took_ns * reader_rest);
    }
  if (waits) page_soon(limits_.batch_ns);  // none has room now
}

// False: it was told to begin anew, and is a watcher no more.
bool Watch::page(Watcher& watcher) {
  if (!watcher.has_begun) {
    watcher.has_begun = true;
    if (watcher.next_notice && !send(watcher, watcher.asked)) return watcher.responder.is_open();
    if (watcher.resumes) return begin_events(watcher, "resumed");
    watcher.next_seq = ring_.end();
    watcher.snapshot = new_snapshot_(watcher.filter);
  }
  // What happened before the page was read stands before it. So the ring has to hold what happens
  // between two pages, and not what happens while a million leases go out.
  if (!serve(watcher)) return false;
  if (watcher.next_seq < ring_.end() || !watcher.responder.has_room(limits_.unsent_max))
    return watcher.responder.is_open();  // flush() goes on, and then this
  if (!watcher.snapshot->is_current()) watcher.snapshot = new_snapshot_(watcher.filter);
  if (const std::optional<Value> page = watcher.snapshot->next()) {
    (void)send(watcher, cbor::encode(*page));
    return watcher.responder.is_open();
  }
  watcher.snapshot.reset();
  return begin_events(watcher, "snapshot_end");
}

bool Watch::begin_events(Watcher& watcher, std::string_view type) {
  const WatchCursor cursor{ring_.cursor().instance, watcher.next_seq - 1};
  (void)send(watcher, cbor::encode(Value::map({{"type", type}, {"cursor", cursor.value()}})));
  return serve(watcher);
}

// ---- events

void Watch::flush_soon() {
  if (!flush_timer_.is_pending()) flush_timer_ = loop_.after(limits_.batch_ns, [this] { flush(); });
}

// A round over all watchers, so many in a turn of the loop: a send costs microseconds, and a
// revocation does not wait for a thousand of them.
void Watch::flush() {
  for (size_t n = 0; n < watchers_per_turn && flush_at_ < watchers_.size();) {
    Watcher& watcher = *watchers_[flush_at_];
    n += watcher.next_notice ? one_that_signs : 1;
    if (!watcher.has_begun || serve(watcher))
      ++flush_at_;
    else
      watchers_.erase(watchers_.begin() + static_cast<ptrdiff_t>(flush_at_));
  }
  if (flush_at_ < watchers_.size()) {
    flush_timer_ = loop_.after(0, [this] { flush(); });
    return;
  }
  flush_at_ = 0;
  shared_.clear();
  // Who has not taken all is looked at again: there is no buffer but the ring.
  const bool behind = std::ranges::any_of(watchers_, [&](const auto& watcher) {
    return watcher->has_begun && watcher->next_seq < ring_.end();
  });
  if (behind) flush_soon();
}

const EventRing::Batch& Watch::batch_for(const Watcher& watcher) {
  for (const Shared& shared : shared_)
    if (shared.from == watcher.next_seq && shared.filter == watcher.filter) return shared.batch;
  Shared made{watcher.filter, watcher.next_seq,
              ring_.batch(watcher.next_seq, watcher.filter, limits_.frame_bytes_max)};
  if (shared_.size() < shared_max) return shared_.emplace_back(std::move(made)).batch;
  shared_next_ = (shared_next_ + 1) % shared_max;
  return (shared_[shared_next_] = std::move(made)).batch;
}

// Everything that it has not seen, as far as it has room. False: it is gone, or was told to begin
// anew.
bool Watch::serve(Watcher& watcher) {
  while (watcher.next_seq < ring_.end()) {
    if (!watcher.responder.is_open()) return false;
    if (watcher.next_seq < ring_.begin()) {
      ++resyncs_;
      watcher.responder.fail(
          Error{ErrorKind::exhausted, "resync_required", 0,
                fmt::format("events {} to {} were forgotten before this watcher took them",
                            watcher.next_seq, ring_.begin() - 1),
                "watch again without a cursor: a snapshot comes first"});
      return false;
    }
    // Asked before anything is made for it: one that does not read costs nothing.
    if (!watcher.responder.has_room(limits_.unsent_max)) return true;
    const EventRing::Batch& batch = batch_for(watcher);
    if (!batch.frame.empty() && !send(watcher, batch.frame)) return watcher.responder.is_open();
    watcher.next_seq = batch.next;
  }
  return true;
}

void Watch::beat() {
  forget_gone();
  const uint64_t now = boot_now_ns();
  std::vector<uint8_t> frame;
  for (const auto& watcher : watchers_) {
    const bool idle = watcher->is_live() && watcher->next_seq == ring_.end() &&
                      watcher->responder.has_room(limits_.unsent_max);
    if (!idle || now - watcher->sent_boot_ns < watcher->heartbeat_ns) continue;
    if (frame.empty())
      frame = cbor::encode(Value::map({{"type", "heartbeat"},
                                       {"time", rfc3339_utc(wall_now_ns())},
                                       {"cursor", ring_.cursor().value()}}));
    (void)send(*watcher, frame);
  }
}

}  // namespace holdfast
