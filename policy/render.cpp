#include "policy/render.hpp"

#include <algorithm>
#include <iterator>
#include <map>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "policy/address.hpp"
#include "policy/runs.hpp"

namespace holdfast {
namespace {

using Json = nlohmann::ordered_json;

// One address stands without its length.
std::string prefix_text(const Prefix& prefix) {
  return prefix.bits == address_bits ? format_address(prefix.address) : format_prefix(prefix);
}

std::vector<std::string> address_texts(const std::vector<Address>& addresses) {
  std::vector<std::string> out;
  for (const Prefix& prefix : collapse(addresses)) out.push_back(prefix_text(prefix));
  return out;
}

// ---- JSON
// ----------------------------------------------------------------------------------------------

Json listen_json(PortRange listen) {
  if (listen.first == listen.last) return listen.first;
  return fmt::format("{}-{}", listen.first, listen.last);
}

Json listener_json(const Listener& listener) {
  Json out = {{"protocol", name_of(listener.protocol)}, {"port", listener.port}};
  if (!listener.from.empty()) {
    Json& from = out["from"] = Json::array();
    for (const Prefix& prefix : listener.from) from.push_back(prefix_text(prefix));
  }
  return out;
}

Json port_json(const TenantPort& port) {
  return {{"name", port.name},
          {"interface", port.interface},
          {"mac", format_mac(port.mac)},
          {"addresses", address_texts(port.addresses)}};
}

// Whether the endpoint has the addresses it would have without naming any.
bool has_default_addresses(const Endpoint& endpoint, const TenantPort& port) {
  auto next = endpoint.addresses.begin();
  for (const Address& address : port.addresses) {
    if (is_link_local_v6(address)) continue;
    if (next == endpoint.addresses.end() || *next != address) return false;
    ++next;
  }
  return next == endpoint.addresses.end();
}

Json endpoint_json(const Endpoint& endpoint, const TenantPort& port) {
  Json out = {
      {"name", endpoint.name}, {"port", port.name}, {"protocol", name_of(endpoint.protocol)}};
  if (endpoint.protocol != Protocol::icmp_echo) out["listen"] = listen_json(endpoint.listen);
  if (!has_default_addresses(endpoint, port)) out["addresses"] = address_texts(endpoint.addresses);
  return out;
}

Json tenant_json(const Tenant& tenant) {
  Json out = {{"id", tenant.id},
              {"name", tenant.name},
              {"limits", {{"leases", tenant.leases_max}, {"flows", tenant.flows_max}}}};
  // Only then: policies of before have the digest that they had.
  if (tenant.admission_required) out["admission"] = "required";
  Json& ports = out["ports"] = Json::array();
  for (const TenantPort& port : tenant.ports) ports.push_back(port_json(port));
  Json& endpoints = out["endpoints"] = Json::array();
  for (const Endpoint& endpoint : tenant.endpoints) {
    endpoints.push_back(endpoint_json(endpoint, tenant.ports[endpoint.port]));
  }
  return out;
}

// ---- differences
// ---------------------------------------------------------------------------------------

class Diff {
 public:
  explicit Diff(std::vector<std::string>& lines) : lines_(lines) {}

  void added(std::string_view what) { lines_.push_back(fmt::format("+ {}", what)); }
  void removed(std::string_view what) { lines_.push_back(fmt::format("- {}", what)); }

  template <typename T>
  void changed(std::string_view what, const T& from, const T& to) {
    if (from != to) lines_.push_back(fmt::format("~ {} {} -> {}", what, from, to));
  }

  // Each item stands for itself: what only one side has was removed or added.
  template <typename T, typename Show>
  void items(std::vector<T> from, std::vector<T> to, Show show) {
    std::ranges::sort(from);
    std::ranges::sort(to);
    std::vector<T> gone;
    std::vector<T> fresh;
    std::ranges::set_difference(from, to, std::back_inserter(gone));
    std::ranges::set_difference(to, from, std::back_inserter(fresh));
    for (const T& item : gone) removed(show(item));
    for (const T& item : fresh) added(show(item));
  }

 private:
  std::vector<std::string>& lines_;
};

std::string listener_text(const Listener& listener) {
  std::string out = fmt::format("listener {} {}", name_of(listener.protocol), listener.port);
  if (listener.from.empty()) return out + " from anywhere";
  std::vector<Prefix> from = listener.from;
  std::ranges::sort(from);
  std::vector<std::string> texts;
  texts.reserve(from.size());
  for (const Prefix& prefix : from) texts.push_back(prefix_text(prefix));
  return out + fmt::format(" from {}", fmt::join(texts, ", "));
}

// "web tcp 10.1.0.2:443", "pool udp 10.1.4.0/28 ports 1024-2047", "ping icmp_echo 10.1.0.2"
std::string endpoint_text(const Endpoint& endpoint, const Prefix& prefix) {
  std::string out = fmt::format("endpoint {} {}", endpoint.name, name_of(endpoint.protocol));
  if (endpoint.protocol == Protocol::icmp_echo) return out + " " + prefix_text(prefix);
  if (endpoint.listen.first != endpoint.listen.last) {
    return out + fmt::format(" {} ports {}-{}", prefix_text(prefix), endpoint.listen.first,
                             endpoint.listen.last);
  }
  if (prefix.bits != address_bits) {
    return out + fmt::format(" {} port {}", prefix_text(prefix), endpoint.listen.first);
  }
  return out + " " + format_address_port({prefix.address, endpoint.listen.first});
}

// Addresses of `a` that `b` has not, as the fewest prefixes.
std::vector<Prefix> only_in(const std::vector<Address>& a, const std::vector<Address>& b) {
  std::vector<Address> out;
  std::ranges::set_difference(a, b, std::back_inserter(out));
  return collapse(out);
}

void diff_ports(const std::string& tenant, const TenantPort* from, const TenantPort* to,
                Diff& diff) {
  std::string label = fmt::format("tenant {} port {}", tenant, (to != nullptr ? to : from)->name);
  auto whole = [&](const TenantPort& port) {
    return fmt::format("{} interface {} mac {} addresses {}", label, port.interface,
                       format_mac(port.mac), fmt::join(address_texts(port.addresses), ", "));
  };
  if (from == nullptr) return diff.added(whole(*to));
  if (to == nullptr) return diff.removed(whole(*from));
  diff.changed(label + " interface", from->interface, to->interface);
  diff.changed(label + " mac", format_mac(from->mac), format_mac(to->mac));
  for (const Prefix& prefix : only_in(from->addresses, to->addresses)) {
    diff.removed(fmt::format("{} address {}", label, prefix_text(prefix)));
  }
  for (const Prefix& prefix : only_in(to->addresses, from->addresses)) {
    diff.added(fmt::format("{} address {}", label, prefix_text(prefix)));
  }
}

// What differs in an endpoint is what it listens on: a changed one is its old claims gone and new
// ones added, except those it keeps.
void diff_endpoints(const std::string& tenant, const Endpoint* from, const Endpoint* to,
                    Diff& diff) {
  bool comparable = from != nullptr && to != nullptr && from->protocol == to->protocol &&
                    from->listen == to->listen;
  static const std::vector<Address> none;
  if (from != nullptr) {
    for (const Prefix& prefix : only_in(from->addresses, comparable ? to->addresses : none)) {
      diff.removed(fmt::format("tenant {} {}", tenant, endpoint_text(*from, prefix)));
    }
  }
  if (to != nullptr) {
    for (const Prefix& prefix : only_in(to->addresses, comparable ? from->addresses : none)) {
      diff.added(fmt::format("tenant {} {}", tenant, endpoint_text(*to, prefix)));
    }
  }
}

template <typename T>
std::map<std::string_view, const T*> by_name(const std::vector<T>& items) {
  std::map<std::string_view, const T*> out;
  for (const T& item : items) out.emplace(item.name, &item);
  return out;
}

// Calls visit(from or null, to or null): first what is in both or gone, in name order, then what is
// new.
template <typename T, typename Visit>
void match_by_name(const std::vector<T>& from, const std::vector<T>& to, Visit visit) {
  auto old_items = by_name(from);
  auto new_items = by_name(to);
  for (const auto& [name, item] : old_items) {
    auto successor = new_items.find(name);
    visit(item, successor == new_items.end() ? nullptr : successor->second);
  }
  for (const auto& [name, item] : new_items) {
    if (!old_items.contains(name)) visit(nullptr, item);
  }
}

std::string admission_text(const Tenant& tenant) {
  return tenant.admission_required ? "required" : "none";
}

void diff_tenants(const Tenant* from, const Tenant* to, Diff& diff) {
  static const Tenant nobody;
  const std::string& name = (to != nullptr ? to : from)->name;
  auto whole = [&](const Tenant& tenant) {
    return fmt::format("tenant {} id {} leases {} flows {}{}", tenant.name, tenant.id,
                       tenant.leases_max, tenant.flows_max,
                       tenant.admission_required ? " admission required" : "");
  };
  if (from == nullptr) {
    diff.added(whole(*to));
  } else if (to == nullptr) {
    diff.removed(whole(*from));
  } else {
    diff.changed(fmt::format("tenant id {} name", to->id), from->name, to->name);
    diff.changed(fmt::format("tenant {} leases", name), from->leases_max, to->leases_max);
    diff.changed(fmt::format("tenant {} flows", name), from->flows_max, to->flows_max);
    diff.changed(fmt::format("tenant {} admission", name), admission_text(*from),
                 admission_text(*to));
  }
  const Tenant& before = from == nullptr ? nobody : *from;
  const Tenant& after = to == nullptr ? nobody : *to;
  match_by_name(before.ports, after.ports,
                [&](const TenantPort* a, const TenantPort* b) { diff_ports(name, a, b, diff); });
  match_by_name(before.endpoints, after.endpoints,
                [&](const Endpoint* a, const Endpoint* b) { diff_endpoints(name, a, b, diff); });
}

}  // namespace

std::string render_policy_json(const Policy& policy, JsonLayout layout) {
  Json out = {{"version", 1},
              {"generation", policy.generation},
              {"uplinks", policy.uplinks},
              {"failsafe_ports", policy.failsafe_ports}};
  Json& listeners = out["listeners"] = Json::array();
  for (const Listener& listener : policy.listeners) listeners.push_back(listener_json(listener));
  out["limits"] = {{"leases", policy.leases_max}};
  Json& tenants = out["tenants"] = Json::array();
  for (const Tenant& tenant : policy.tenants) tenants.push_back(tenant_json(tenant));
  return out.dump(layout == JsonLayout::indented ? 2 : -1) + "\n";
}

std::vector<std::string> diff_policies(const Policy& from, const Policy& to) {
  std::vector<std::string> lines;
  Diff diff(lines);
  auto identity = [](const std::string& text) { return text; };
  diff.changed("generation", from.generation, to.generation);
  diff.items(from.uplinks, to.uplinks, [](const std::string& name) { return "uplink " + name; });
  diff.items(from.failsafe_ports, to.failsafe_ports,
             [](uint16_t port) { return fmt::format("failsafe port {}", port); });
  auto listeners = [](const Policy& policy) {
    std::vector<std::string> texts;
    texts.reserve(policy.listeners.size());
    for (const Listener& listener : policy.listeners) texts.push_back(listener_text(listener));
    return texts;
  };
  diff.items(listeners(from), listeners(to), identity);
  diff.changed("limit of leases", from.leases_max, to.leases_max);

  std::map<uint64_t, std::pair<const Tenant*, const Tenant*>> tenants;
  for (const Tenant& tenant : from.tenants) tenants[tenant.id].first = &tenant;
  for (const Tenant& tenant : to.tenants) tenants[tenant.id].second = &tenant;
  for (const auto& [id, pair] : tenants) diff_tenants(pair.first, pair.second, diff);
  return lines;
}

}  // namespace holdfast
