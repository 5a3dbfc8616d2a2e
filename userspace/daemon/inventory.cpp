#include "userspace/daemon/inventory.hpp"

#include <array>
#include <utility>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "policy/holder.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/daemon/times.hpp"

namespace holdfast {
namespace {

using cbor::Value;
using State = Node::ResourceState;

// Of one page, so that it fits a frame and takes the loop a moment: a lease may have 64 names.
constexpr size_t snapshot_leases_per_page = 100;
constexpr size_t ports_per_page = 500;
constexpr size_t endpoints_per_page = 500;
constexpr size_t members_per_page = 8192;  // looked at, to count them

std::string_view name_of(State state) {
  switch (state) {
    case State::free: return "free";
    case State::leased: return "leased";
    case State::draining: return "draining";
    case State::fenced: return "fenced";
  }
  return "?";
}

class Inventory final : public SnapshotPages {
 public:
  Inventory(const Node& node, const Tokens& tokens, const Enrollment& enrollment,
            WatchFilter filter)
      : node_(node),
        tokens_(tokens),
        enrollment_(enrollment),
        filter_(std::move(filter)),
        policy_(node.policy_in_force()) {}

  bool is_current() const override { return node_.policy_in_force() == policy_; }

  std::optional<Value> next() override {
    switch (part_) {
      case Part::node: part_ = Part::tenants; return node_page();
      case Part::tenants:
        if (tenant_ < policy_->tenants.size()) return tenants_page();
        tenant_ = 0;
        part_ = filter_.wants_noun("lease") ? Part::endpoints : Part::end;
        return next();
      case Part::endpoints:
        if (tenant_ < policy_->tenants.size()) return endpoints_page();
        part_ = Part::leases;
        return next();
      case Part::leases:
        if (slot_ < node_.plane().slots.size()) return leases_page();
        part_ = Part::end;
        return std::nullopt;
      case Part::end: break;
    }
    return std::nullopt;
  }

 private:
  enum class Part { node, tenants, endpoints, leases, end };

  Value node_page() const;
  Value tenants_page();
  Value endpoints_page();
  Value leases_page();

  const Node& node_;
  const Tokens& tokens_;
  const Enrollment& enrollment_;
  WatchFilter filter_;
  std::shared_ptr<const Policy> policy_;
  Part part_ = Part::node;
  size_t tenant_ = 0;
  size_t endpoint_ = 0;
  uint64_t member_ = 0;
  std::array<uint64_t, 4> counts_{};  // of the endpoint under way, by state
  uint32_t slot_ = 0;
};

Value Inventory::node_page() const {
  Value uplinks = Value::array();
  for (const std::string& name : policy_->uplinks)
    uplinks.push(
        Value::map({{"interface", name}, {"present", node_.network().find(name) != nullptr}}));
  Value dark = Value::array();
  for (const auto& [name, error] : node_.dark()) dark.push(error_value(name, error));
  return Value::map({{"type", "snapshot"},
                     {"version", HOLDFAST_VERSION},
                     {"node", tokens_.node()},
                     {"epoch", tokens_.epoch()},
                     {"state", standing_value(node_)},
                     {"enrollment", enrollment_value(enrollment_, node_)},
                     {"generation", policy_->generation},
                     {"leases", node_.lease_count()},
                     {"leases_max", policy_->leases_max},
                     {"slots", node_.plane().slots.size()},
                     {"slots_used", node_.slots_used()},
                     {"uplinks", std::move(uplinks)},
                     {"dark", std::move(dark)}});
}

Value Inventory::tenants_page() {
  Value list = Value::array();
  size_t ports = 0;
  for (; tenant_ < policy_->tenants.size() && ports < ports_per_page; ++tenant_) {
    const Tenant& tenant = policy_->tenants[tenant_];
    ++ports;
    if (!filter_.wants_tenant(tenant.name)) continue;
    const TenantView view = node_.tenant_view(tenant);
    Value port_list = Value::array();
    for (const TenantPort& port : tenant.ports)
      port_list.push(Value::map({{"name", port.name},
                                 {"interface", port.interface},
                                 {"present", node_.network().find(port.interface) != nullptr},
                                 {"egress", name_of(node_.egress_state(tenant, port))}}));
    ports += tenant.ports.size();
    list.push(Value::map({{"name", tenant.name},
                          {"id", tenant.id},
                          {"state", view.disabled ? "disabled" : "enabled"},
                          {"leases", view.leases},
                          {"leases_max", tenant.leases_max},
                          {"ports", std::move(port_list)}}));
  }
  return Value::map({{"type", "tenants"}, {"tenants", std::move(list)}});
}

// An endpoint may have a million members, so it may take several pages to count them.
Value Inventory::endpoints_page() {
  Value list = Value::array();
  size_t looked = 0, listed = 0;
  while (tenant_ < policy_->tenants.size() && looked < members_per_page &&
         listed < endpoints_per_page) {
    const Tenant& tenant = policy_->tenants[tenant_];
    if (endpoint_ == tenant.endpoints.size() || !filter_.wants_tenant(tenant.name)) {
      endpoint_ = 0;
      ++tenant_;
      ++looked;
      continue;
    }
    const Endpoint& e = tenant.endpoints[endpoint_];
    const uint64_t ports = uint64_t{e.listen.last} - e.listen.first + 1;
    const uint64_t members = e.addresses.size() * ports;
    for (; member_ < members && looked < members_per_page; ++member_, ++looked) {
      const auto port = static_cast<uint16_t>(e.listen.first + member_ % ports);
      ++counts_[static_cast<size_t>(
          node_.resource_state(endpoint_key(e.addresses[member_ / ports], e.protocol, port)))];
    }
    if (member_ < members) break;
    Value value = Value::map({{"tenant", tenant.name},
                              {"endpoint", e.name},
                              {"protocol", name_of(e.protocol)},
                              {"listen", listen_text(e)},
                              {"port", tenant.ports[e.port].name},
                              {"interface", tenant.ports[e.port].interface},
                              {"members", members}});
    for (const State state : {State::free, State::leased, State::draining, State::fenced})
      value.set(name_of(state), std::exchange(counts_[static_cast<size_t>(state)], 0));
    list.push(std::move(value));
    ++listed;
    ++endpoint_;
    member_ = 0;
  }
  return Value::map({{"type", "endpoints"}, {"endpoints", std::move(list)}});
}

Value Inventory::leases_page() {
  Value list = Value::array();
  for (const LeaseView& lease :
       node_.leases(slot_, snapshot_leases_per_page, filter_.only_tenant(), true))
    if (filter_.wants_tenant(lease.tenant)) list.push(lease_value(lease));
  return Value::map({{"type", "leases"}, {"leases", std::move(list)}});
}

}  // namespace

Value lease_value(const LeaseView& lease) {
  Value resources = Value::array();
  for (const std::string& name : lease.resources) resources.push(name);
  const uint64_t now = boot_now_ns();
  const std::string expires = wall_of(lease.deadline_boot_ns);
  const bool in_grace =
      lease.state == LeaseState::grace_running || lease.state == LeaseState::checkpoint_reported;
  return Value::map(
      {{"id", format_lease_id(lease.id)},
       {"state", name_of(lease.state)},
       {"tenant", lease.tenant},
       {"resources", std::move(resources)},
       {"holder", holder_name(lease.holder)},
       {"peer", lease.peer ? Value(format_prefix(*lease.peer)) : Value()},
       {"granted_at", wall_of(lease.granted_boot_ns)},
       {"expires_at", expires},
       {"remaining_ns", lease.deadline_boot_ns > now ? lease.deadline_boot_ns - now : 0},
       {"grace_ends_at", in_grace ? Value(expires) : Value()},
       {"generation", lease.generation}});
}

Value standing_value(const Node& node) {
  const NodeStanding& standing = node.standing();
  const bool was_another = standing.since_wall_ms != 0;
  return Value::map(
      {{"name", name_of(standing.state)},
       {"since", was_another ? Value(rfc3339_utc(standing.since_wall_ms * ns_per_ms)) : Value()},
       {"by_uid", was_another ? Value(standing.by_uid) : Value()},
       {"refused", node.refused_by_state()}});
}

Value names_value(const std::vector<std::string>& names) {
  Value list = Value::array();
  for (const std::string& each : names) list.push(each);
  return list;
}

Value enrollment_value(const Enrollment& enrollment, const Node& node) {
  const EnrollmentRecord& record = enrollment.record();
  const EnrollmentState state = enrollment.state(node.policy_digest());
  if (state == EnrollmentState::unenrolled)
    return Value::map({{"state", name_of(state)},
                       {"since", Value()},
                       {"by_uid", Value()},
                       {"root", Value()},
                       {"tenants", Value::array()},
                       {"expires", Value()},
                       {"expired", false}});
  const bool pending = state == EnrollmentState::pending;
  return Value::map(
      {{"state", name_of(state)},
       {"since", rfc3339_utc(record.since_s * ns_per_s)},
       {"by_uid", record.by_uid},
       {"root", hex(record.anchor)},
       {"tenants", names_value(record.tenants)},
       {"expires", pending ? Value(rfc3339_utc(record.expires_s * ns_per_s)) : Value()},
       {"expired", pending && wall_now_ns() / ns_per_s >= record.expires_s}});
}

Value error_value(const std::string& interface, const Error& error) {
  return Value::map({{"interface", interface}, {"code", error.code}, {"cause", error.text()}});
}

std::string listen_text(const Endpoint& endpoint) {
  if (endpoint.protocol == Protocol::icmp_echo) return "";
  return endpoint.listen.first == endpoint.listen.last
             ? fmt::format("{}", endpoint.listen.first)
             : fmt::format("{}-{}", endpoint.listen.first, endpoint.listen.last);
}

std::unique_ptr<SnapshotPages> new_inventory(const Node& node, const Tokens& tokens,
                                             const Enrollment& enrollment,
                                             const WatchFilter& filter) {
  return std::make_unique<Inventory>(node, tokens, enrollment, filter);
}

}  // namespace holdfast
