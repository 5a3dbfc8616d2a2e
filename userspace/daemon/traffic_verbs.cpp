// drops.read, drops.follow, flows.list, explain: what becomes of packets.
#include <algorithm>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "policy/address.hpp"
#include "policy/render.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/daemon/explain.hpp"
#include "userspace/daemon/times.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t flows_per_reply = 1000;
constexpr size_t followers_max = 64;     // of readers, and as many of operators
constexpr size_t uid_followers_max = 8;  // of one reader

std::string address_port(const uint32_t (&address)[4], uint16_t port_be) {
  const Address a = address_of(address);
  return port_be == 0 ? format_address(a) : format_address_port({a, ntohs(port_be)});
}

std::string protocol_name(uint8_t protocol) {
  switch (protocol) {
    case 1:
    case 58: return "icmp_echo";
    case 6: return "tcp";
    case 17: return "udp";
    default: return fmt::format("{}", protocol);
  }
}

Result<Protocol> parse_protocol(std::string_view text) {
  for (const Protocol p : {Protocol::icmp_echo, Protocol::tcp, Protocol::udp})
    if (name_of(p) == text) return p;
  return fail(ErrorKind::invalid, "bad_protocol",
              fmt::format("\"{}\" is no protocol of ours", text), "tcp, udp or icmp_echo");
}

}  // namespace

Status Verbs::attach_drop_events(Verbs& verbs) {
  Result<DropEvents> events = DropEvents::open(
      verbs.node_.plane().object, [&verbs](const abi::drop_event& e) { verbs.on_drop(e); });
  if (!events) return pass_on(events);
  verbs.drop_events_ = std::move(*events);
  Result<wire::FdWatch> watch = verbs.loop_.watch(
      verbs.drop_events_->fd(), EPOLLIN, [&verbs](uint32_t) { verbs.drop_events_->consume(); });
  if (!watch) return pass_on(watch);
  verbs.drop_watch_ = std::move(*watch);
  return {};
}

Verbs::Answer Verbs::drops_read() const {
  const Result<std::vector<ReasonCount>> rows = counters_.reasons();
  if (!rows) return std::unexpected(rows.error());
  Value list = Value::array();
  uint64_t lost = 0, unsampled = 0;
  for (const ReasonCount& row : *rows) {
    lost += row.count.events_lost;
    unsampled += row.count.events_unsampled;
    list.push(Value::map({{"hook", hook_name(row.hook)},
                          {"reason", reason_name(row.reason)},
                          {"verdict", abi::hf_reason_passes(row.reason) ? "pass" : "drop"},
                          {"packets", row.count.total.packets},
                          {"bytes", row.count.total.bytes},
                          {"text", reason_text(row.reason)}}));
  }
  return Value::map(
      {{"reasons", std::move(list)}, {"events_lost", lost}, {"events_unsampled", unsampled}});
}

Value Verbs::event_value(const abi::drop_event& e) const {
  const LinkInfo* link = node_.network().find(e.ifindex);
  const std::optional<LeaseId> lease = node_.lease_of_slot(e.verdict.slot);
  return Value::map({{"time", wall_of(e.time_boot_ns)},
                     {"hook", hook_name(e.direction)},
                     {"reason", reason_name(e.verdict.reason)},
                     {"interface", link != nullptr ? link->name : fmt::format("{}", e.ifindex)},
                     {"source", address_port(e.source, e.source_port)},
                     {"destination", address_port(e.destination, e.destination_port)},
                     {"protocol", protocol_name(e.protocol)},
                     {"tenant", node_.tenant_name(e.verdict.tenant)},
                     {"lease", lease ? Value(format_lease_id(*lease)) : Value()},
                     {"length", e.length}});
}

// Operators have places of their own, so that readers cannot take them all.
Status Verbs::may_follow(const wire::Peer& peer) const {
  const bool operates = peer.role == wire::Role::operates;
  const auto same_role = [&](const Follower& f) { return f.operates == operates; };
  const auto same_uid = [&](const Follower& f) { return f.uid == peer.uid; };
  const auto all = std::count_if(followers_.begin(), followers_.end(), same_role);
  const auto own = std::count_if(followers_.begin(), followers_.end(), same_uid);
  if (static_cast<size_t>(all) >= followers_max)
    return fail(ErrorKind::exhausted, "followers_max",
                fmt::format("{} others follow drop events", all), "try later");
  if (!operates && static_cast<size_t>(own) >= uid_followers_max)
    return fail(ErrorKind::exhausted, "followers_max",
                fmt::format("uid {} follows drop events {} times already", peer.uid, own),
                "end one of them");
  return {};
}

void Verbs::drops_follow(const wire::Peer& peer, const wire::Request& request,
                         wire::Responder responder) {
  std::erase_if(followers_, [](const Follower& f) { return !f.responder->is_open(); });
  if (Status ok = may_follow(peer); !ok) return responder.fail(ok.error());
  followers_.push_back({peer.uid, peer.role == wire::Role::operates, request.signer,
                        std::make_shared<wire::Responder>(std::move(responder))});
}

void Verbs::on_drop(const abi::drop_event& event) {
  if (followers_.empty()) return;
  const Value value = event_value(event);
  // A follower that does not keep up misses events; the counters miss nothing.
  std::erase_if(followers_, [&](const Follower& follower) {
    const Status sent = follower.responder->event(value);
    return !sent && sent.error().code == "peer_gone";
  });
}

Verbs::Answer Verbs::flows_list(const Value& args) const {
  if (Status ok = args.only_keys({"tenant", "limit"}); !ok) return pass_on(ok);
  const Result<std::string_view> tenant = args.get_text_or("tenant", "");
  const Result<uint64_t> limit = args.get_u64_or("limit", flows_per_reply, 1);
  if (!tenant) return std::unexpected(tenant.error());
  if (!limit) return std::unexpected(limit.error());
  const size_t wanted = std::min<uint64_t>(*limit, flows_per_reply);
  const DataPlane& plane = node_.plane();
  Value list = Value::array();
  size_t listed = 0;
  for (const TenantView& view : node_.tenants()) {
    if (!tenant->empty() && view.tenant->name != *tenant) continue;
    const Result<std::vector<abi::flow>> flows = counters_.flows(view.index, wanted - listed);
    if (!flows) return std::unexpected(flows.error());
    for (const abi::flow& flow : *flows) {
      const bool live = flow.slot < plane.slots.size() && plane.slots.bound(flow.slot) &&
                        abi::hf_gate_incarnation(plane.slots.gate(flow.slot)) == flow.incarnation &&
                        abi::hf_gate_deadline_boot_ns(plane.slots.gate(flow.slot)) > boot_now_ns();
      const LinkInfo* link = node_.network().find(flow.key.ifindex);
      const std::optional<LeaseId> lease = live ? node_.lease_of_slot(flow.slot) : std::nullopt;
      list.push(Value::map(
          {{"tenant", view.tenant->name},
           {"protocol", protocol_name(flow.key.protocol)},
           {"local", address_port(flow.key.local, flow.key.local_port)},
           {"remote", address_port(flow.key.remote, flow.key.remote_port)},
           {"interface", link != nullptr ? link->name : fmt::format("{}", flow.key.ifindex)},
           {"lease", lease ? Value(format_lease_id(*lease)) : Value()},
           {"state", live ? "live" : "dead"}}));
      ++listed;
    }
  }
  return Value::map({{"flows", std::move(list)}, {"truncated", listed >= wanted}});
}

Verbs::Answer Verbs::explain(const Value& args) const {
  if (Status ok = args.only_keys({"from", "source", "destination", "protocol", "source_port",
                                  "destination_port", "flags", "source_mac"});
      !ok)
    return pass_on(ok);
  ProbePacket packet;
  const Result<std::string_view> from = args.get_text_or("from", "uplink");
  const Result<std::string_view> source = args.get_text("source");
  const Result<std::string_view> destination = args.get_text("destination");
  const Result<std::string_view> protocol = args.get_text("protocol");
  const Result<std::string_view> flags = args.get_text_or("flags", "S");
  const Result<uint64_t> source_port = args.get_u64_or("source_port", 0, 0, UINT16_MAX);
  const Result<uint64_t> destination_port = args.get_u64_or("destination_port", 0, 0, UINT16_MAX);
  for (const auto* text : {&from, &source, &destination, &protocol, &flags})
    if (!*text) return std::unexpected(text->error());
  for (const auto* number : {&source_port, &destination_port})
    if (!*number) return std::unexpected(number->error());
  const Result<Address> source_address = parse_address(*source);
  if (!source_address) return std::unexpected(source_address.error());
  const Result<Address> destination_address = parse_address(*destination);
  if (!destination_address) return std::unexpected(destination_address.error());
  const Result<Protocol> proto = parse_protocol(*protocol);
  if (!proto) return std::unexpected(proto.error());
  if (*flags != "S" && *flags != "A")
    return fail(ErrorKind::invalid, "bad_flags", fmt::format("flags \"{}\"", *flags),
                "S opens a connection or asks for an echo, A carries data or answers");
  std::optional<std::string> source_mac;
  if (args.has("source_mac")) {
    const Result<std::string_view> given = args.get_text("source_mac");
    if (!given) return std::unexpected(given.error());
    source_mac = *given;
  }
  packet.source = *source_address;
  packet.destination = *destination_address;
  packet.protocol = *proto;
  packet.source_port = static_cast<uint16_t>(*source_port);
  packet.destination_port = static_cast<uint16_t>(*destination_port);
  packet.tcp_syn = *flags == "S";
  packet.echo_reply = *flags == "A" && *proto == Protocol::icmp_echo;
  const Result<std::vector<ExplainStep>> steps =
      explain_packet(node_, *from, packet, source_mac ? &*source_mac : nullptr);
  if (!steps) return std::unexpected(steps.error());
  Value list = Value::array();
  bool passes = true;
  for (const ExplainStep& step : *steps) {
    const abi::verdict& v = step.verdict;
    const bool pass = abi::hf_reason_passes(v.reason) != 0;
    passes = passes && pass;
    const std::optional<LeaseId> lease = node_.lease_of_slot(v.slot);
    const uint64_t deadline = abi::hf_gate_deadline_boot_ns(v.gate);
    const uint64_t now = v.now_boot_ns != 0 ? v.now_boot_ns : boot_now_ns();
    const std::string tenant = node_.tenant_name(v.tenant);
    list.push(Value::map(
        {{"hook", hook_name(step.hook)},
         {"interface", step.interface},
         {"verdict", pass ? "pass" : "drop"},
         {"reason", reason_name(v.reason)},
         {"text", reason_text(v.reason)},
         {"tenant", tenant.empty() ? Value() : Value(tenant)},
         {"lease", lease ? Value(format_lease_id(*lease)) : Value()},
         {"remaining_ns", deadline > now ? Value(deadline - now) : Value()},
         {"ended_ns_ago", deadline != 0 && deadline <= now ? Value(now - deadline) : Value()},
         {"bank", v.bank}}));
  }
  return Value::map({{"verdict", passes ? "pass" : "drop"}, {"steps", std::move(list)}});
}

}  // namespace holdfast
