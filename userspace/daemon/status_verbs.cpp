// status, route.list, tenant.list: what there is, and who is connected.
#include <ranges>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/times.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t peers_told_max = 32;  // by status, signers and operators first; of each
constexpr size_t names_told_max = 4;   // so many verbs and tenants

Value counter_value(const abi::counter& counter) {
  return Value::map({{"packets", counter.packets}, {"bytes", counter.bytes}});
}

Value verifier_value(const verifier::Server& server) {
  const verifier::WorkerCounts counts = server.counts();
  Value refused = Value::map();
  for (size_t i = 1; i < counts.verdicts.size(); ++i)
    if (counts.verdicts[i] != 0)
      refused.set(token::name_of(static_cast<token::Refusal>(i - 1)), counts.verdicts[i]);
  return Value::map({{"by", server.transport()},
                     {"workers", server.workers()},
                     {"connections", counts.connections},
                     {"frames", counts.frames},
                     {"malformed", counts.malformed},
                     {"signatures", counts.signatures},
                     {"good", counts.verdicts[0]},
                     {"refused", std::move(refused)}});
}

}  // namespace

Verbs::Answer Verbs::status(const wire::Peer& peer) const {
  const DataPlane& plane = node_.plane();
  const Policy& policy = node_.policy();
  uint64_t endpoints = 0;
  for (const Tenant& tenant : policy.tenants)
    for (const Endpoint& e : tenant.endpoints)
      endpoints += e.addresses.size() * (static_cast<uint64_t>(e.listen.last) - e.listen.first + 1);
  Value uplinks = Value::array();
  for (const std::string& name : policy.uplinks)
    if (const LinkInfo* link = node_.network().find(name); link != nullptr)
      uplinks.push(Value::map(
          {{"interface", name}, {"hook", plane.attachments.uplink_hook_of(link->ifindex)}}));
  Value dark = Value::array();
  for (const auto& [name, error] : node_.dark()) dark.push(error_value(name, error));
  Value unenforced = Value::array();
  for (const Unenforced& each : node_.unenforced()) {
    Value value = error_value(each.interface, each.cause);
    value.set("what", name_of(each.layer));
    unenforced.push(std::move(value));
  }
  const abi::control& control = plane.banks.control();
  return Value::map(
      {{"version", HOLDFAST_VERSION},
       {"node", tokens_.node()},
       {"epoch", tokens_.epoch()},
       {"state", standing_value(node_)},
       {"enrollment", enrollment_value(enrollment_, node_)},
       {"tokens", tokens_.status()},
       {"signed_requests", signed_requests_.status()},
       {"policy", Value::map({{"generation", policy.generation},
                              {"digest", hex(control.policy_digest)},
                              {"tenants", policy.tenants.size()},
                              {"endpoints", endpoints}})},
       {"leases", Value::map({{"live", node_.lease_count()}, {"max", plane.slots.size()}})},
       {"hooks", Value::map({{"tenant", plane.attachments.tenant_hook_in_use()},
                             {"uplinks", std::move(uplinks)}})},
       {"dark", std::move(dark)},
       {"unenforced", std::move(unenforced)},
       {"mapped_bytes", plane.slots.mapped_bytes() + plane.banks.mapped_bytes()},
       {"started_at", rfc3339_utc(started_wall_ns_)},
       {"uptime_ns", boot_now_ns() - started_boot_ns_},
       {"bpf_digest", kernel_object_digest()},
       {"pin_dir", plane.object.root()},
       {"table", plane.nft.name()},
       {"connections", server_ != nullptr ? server_->stats().connections : 0},
       {"peers", peers()},
       {"abuse", abuse_value()},
       {"bearers", bearers_status()},
       {"watch", watch_.status()},
       {"verifier", verifier_ != nullptr ? verifier_value(*verifier_) : Value()},
       {"peer", Value::map({{"uid", peer.uid}, {"role", wire::name_of(peer.role)}})}});
}

// Who is connected, and what they may ask for besides what their role lets them; the first so many.
Value Verbs::peers() const {
  Value list = Value::array();
  size_t told = 0;
  const auto names = [](const std::vector<std::string>& from) {
    Value out = Value::array();
    for (const std::string& each : from | std::views::take(names_told_max)) out.push(each);
    if (from.size() > names_told_max)
      out.push(fmt::format("and {} more", from.size() - names_told_max));
    return out;
  };
  const auto may = [&](const wire::Principal& principal) {
    return Value::map({{"name", principal.name},
                       {"key", hex(principal.key)},
                       {"verbs", names(principal.verbs)},
                       {"tenants", names(principal.tenants)}});
  };
  bool foremost = true;
  const auto tell = [&](const wire::Peer& peer) {
    const bool first =
        peer.signer != nullptr || !peer.delegations.empty() || peer.role == wire::Role::operates;
    if (first != foremost || ++told > peers_told_max) return;
    Value grants = Value::array();
    for (const wire::Delegation& each : peer.delegations) grants.push(may(each.principal));
    list.push(Value::map({{"uid", peer.uid},
                          {"pid", static_cast<uint64_t>(peer.pid)},
                          {"role", wire::name_of(peer.role)},
                          {"since", wall_of(peer.connected_boot_ns)},
                          {"signer", peer.signer ? may(*peer.signer) : Value()},
                          {"bearer", peer.bearer ? Value(peer.bearer->name) : Value()},
                          {"grants", std::move(grants)}}));
  };
  for (foremost = true; server_ != nullptr; foremost = false) {
    server_->for_each_peer(tell);
    if (!foremost) break;
  }
  return list;
}

Verbs::Answer Verbs::route_list() const {
  Value routes = Value::array();
  const DataPlane& plane = node_.plane();
  for (const Tenant& tenant : node_.policy().tenants)
    for (const Endpoint& e : tenant.endpoints) {
      Value addresses = Value::array();
      uint64_t leased = 0;
      for (const Address& address : e.addresses) {
        addresses.push(format_address(address));
        for (uint32_t port = e.listen.first; port <= e.listen.last; ++port)
          if (const auto entry = plane.banks.endpoint(
                  endpoint_key(address, e.protocol, static_cast<uint16_t>(port)));
              entry && plane.slots.bound(entry->slot))
            ++leased;
      }
      const TenantPort& port = tenant.ports[e.port];
      routes.push(
          Value::map({{"tenant", tenant.name},
                      {"endpoint", e.name},
                      {"protocol", name_of(e.protocol)},
                      {"addresses", std::move(addresses)},
                      {"listen", listen_text(e)},
                      {"port", port.name},
                      {"interface", port.interface},
                      {"members", e.addresses.size() *
                                      (static_cast<uint64_t>(e.listen.last) - e.listen.first + 1)},
                      {"leased", leased}}));
    }
  return Value::map({{"routes", std::move(routes)}});
}

Verbs::Answer Verbs::tenant_list(const wire::Principal* signer) const {
  Value list = Value::array();
  for (const TenantView& view : node_.tenants()) {
    if (signer != nullptr && !signer->covers(view.tenant->name)) continue;
    Value ports = Value::array();
    for (const TenantPort& port : view.tenant->ports) {
      Value addresses = Value::array();
      for (const Address& address : port.addresses) addresses.push(format_address(address));
      ports.push(Value::map({{"name", port.name},
                             {"interface", port.interface},
                             {"mac", format_mac(port.mac)},
                             {"addresses", std::move(addresses)},
                             {"present", node_.network().find(port.interface) != nullptr}}));
    }
    const Result<abi::tenant_counter> counted = counters_.tenant(view.index);
    if (!counted) return std::unexpected(counted.error());
    list.push(Value::map({{"name", view.tenant->name},
                          {"id", view.tenant->id},
                          {"state", view.disabled ? "disabled" : "enabled"},
                          {"epoch", view.epoch},
                          {"leases", view.leases},
                          {"leases_max", view.tenant->leases_max},
                          {"ports", std::move(ports)},
                          {"to_tenant", counter_value(counted->to_tenant)},
                          {"from_tenant", counter_value(counted->from_tenant)},
                          {"dropped", counter_value(counted->dropped)}}));
  }
  return Value::map({{"tenants", std::move(list)}});
}

}  // namespace holdfast
