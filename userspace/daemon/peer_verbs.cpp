// peer.list, peer.suspend, peer.resume: who is served on control.sock.
#include <algorithm>

#include "userspace/base/clock.hpp"
#include "userspace/daemon/peers.hpp"
#include "userspace/daemon/times.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t peers_per_page = 1000;

// The last uid is the kernel's "none".
Result<uid_t> read_uid(const Value& args) {
  const Result<uint64_t> uid = args.get_u64("uid", 0, UINT32_MAX - 1);
  if (!uid) return std::unexpected(uid.error());
  return static_cast<uid_t>(*uid);
}

Value offences_value(const std::array<uint64_t, wire::offences>& counts) {
  Value out = Value::map();
  for (size_t i = 0; i < counts.size(); ++i)
    if (counts[i] != 0) out.set(name_of(static_cast<wire::Offence>(i)), counts[i]);
  return out;
}

}  // namespace

// Those that are suspended or have given offence, and those that are connected; by uid.
Verbs::Answer Verbs::peer_list(const Value& args) const {
  if (Status ok = args.only_keys({"cursor"}); !ok) return pass_on(ok);
  const Result<uint64_t> cursor = args.get_u64_or("cursor", 0);
  if (!cursor) return std::unexpected(cursor.error());
  std::map<uid_t, wire::UidView> connected;
  if (server_ != nullptr)
    server_->for_each_uid([&](const wire::UidView& view) {
      if (view.uid >= *cursor && (view.connections != 0 || view.requests_per_s != 0))
        connected.emplace(view.uid, view);
    });
  for (const auto& [uid, record] : peers_.all())
    if (uid >= *cursor) connected.try_emplace(uid, wire::UidView{.uid = uid});
  Value list = Value::array();
  Value next;
  size_t told = 0;
  for (const auto& [uid, view] : connected) {
    if (++told > peers_per_page) {
      next = uid;
      break;
    }
    const auto found = peers_.all().find(uid);
    const PeerRecord record = found != peers_.all().end() ? found->second : PeerRecord();
    const std::optional<Suspension>& suspension = record.suspension;
    list.push(Value::map(
        {{"uid", uid},
         {"state", suspension ? "suspended" : "served"},
         {"connections", view.connections},
         {"requests_per_s", view.requests_per_s},
         {"offences", offences_value(record.counts)},
         {"last_offence", record.last_boot_ns != 0 ? wall_of(record.last_boot_ns) : Value()},
         {"since",
          suspension ? Value(rfc3339_utc(suspension->since_wall_ms * ns_per_ms)) : Value()},
         {"cause", suspension ? Value(suspension->cause) : Value()},
         {"by_uid",
          suspension && suspension->by_operator() ? Value(suspension->by_uid) : Value()}}));
  }
  return Value::map({{"peers", std::move(list)},
                     {"suspended", peers_.suspended()},
                     {"everybody", peers_.everybody()},
                     {"next", std::move(next)}});
}

Verbs::Answer Verbs::peer_change(const wire::Peer& peer, const wire::Request& request) {
  const Value& args = request.args;
  if (request.verb == "peer.resume" && args.has("all")) {
    if (Status ok = args.only_keys({"all"}); !ok) return pass_on(ok);
    if (const Result<bool> all = args.get_bool("all"); !all || !*all)
      return fail(ErrorKind::invalid, "peer_all", "\"all\" is true, or is left out",
                  "name one: {\"uid\": N}");
    const Result<size_t> resumed = peers_.resume_all();
    if (!resumed) return std::unexpected(resumed.error());
    return Value::map({{"resumed", *resumed}});
  }
  if (Status ok = args.only_keys({"uid"}); !ok) return pass_on(ok);
  const Result<uid_t> uid = read_uid(args);
  if (!uid) return std::unexpected(uid.error());
  const bool suspend = request.verb == "peer.suspend";
  const Status ok =
      suspend ? peers_.suspend(*uid, peer.uid, wall_now_ns() / ns_per_ms) : peers_.resume(*uid);
  if (!ok) return std::unexpected(ok.error());
  return Value::map({{"uid", *uid}, {"state", suspend ? "suspended" : "served"}});
}

// How many are suspended, and what was refused since the daemon began.
Value Verbs::abuse_value() const {
  std::array<uint64_t, wire::offences> totals{};
  for (size_t i = 0; i < totals.size(); ++i)
    totals[i] = peers_.offences(static_cast<wire::Offence>(i));
  const wire::ServerStats stats = server_ != nullptr ? server_->stats() : wire::ServerStats();
  return Value::map({{"suspended", peers_.suspended()},
                     {"everybody", peers_.everybody()},
                     {"refused_requests", stats.rate_limited},
                     {"refused_connections", stats.refused_connections},
                     {"refused_suspended", stats.suspended},
                     {"malformed", stats.malformed},
                     {"offences", offences_value(totals)}});
}

}  // namespace holdfast
