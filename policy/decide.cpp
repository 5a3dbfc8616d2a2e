#include "policy/decide.hpp"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include "bpf/abi.h"
#include "policy/address.hpp"
#include "userspace/base/clock.hpp"

namespace holdfast {
namespace {

struct Selector {
  std::string_view name;
  std::optional<Address> address;
  std::optional<uint16_t> port;
};

// NAME[@ADDRESS[:PORT]]; an IPv6 address with a port stands in brackets.
Result<Selector> parse_selector(std::string_view text) {
  Selector out;
  const size_t at = text.find('@');
  out.name = text.substr(0, at);
  if (at == std::string_view::npos) return out;
  const std::string_view rest = text.substr(at + 1);
  if (rest.starts_with('[') && rest.ends_with(']')) {
    Result<Address> address = parse_address(rest.substr(1, rest.size() - 2));
    if (!address) return pass_on(address, text);
    out.address = *address;
    return out;
  }
  const bool bracketed = rest.starts_with('[');
  const bool has_port = bracketed || std::count(rest.begin(), rest.end(), ':') == 1;
  if (has_port) {
    Result<AddressPort> pair = parse_address_port(rest);
    if (!pair) return pass_on(pair, text);
    out.address = pair->address;
    out.port = pair->port;
  } else {
    Result<Address> address = parse_address(rest);
    if (!address) return pass_on(address, text);
    out.address = *address;
  }
  return out;
}

Status add_endpoint(const PolicyIndex& index, const Tenant& tenant, std::string_view text,
                    const std::optional<Prefix>& peer, size_t resources_max,
                    std::vector<Resource>& resources) {
  const Result<Selector> selector = parse_selector(text);
  if (!selector) return std::unexpected(selector.error());
  const Endpoint* endpoint = index.endpoint(tenant, selector->name);
  if (endpoint == nullptr)
    return fail(ErrorKind::not_found, "no_such_endpoint",
                fmt::format("tenant {} has no endpoint \"{}\"", tenant.name, selector->name),
                "`holdfast route ls` lists them");
  bool matched = false;
  for (const Address& address : endpoint->addresses) {
    if (selector->address && *selector->address != address) continue;
    if (peer && peer->address.is_v4() != address.is_v4()) continue;  // it could never be used
    const uint32_t first = selector->port.value_or(endpoint->listen.first);
    const uint32_t last = selector->port.value_or(endpoint->listen.last);
    if (first < endpoint->listen.first || last > endpoint->listen.last) continue;
    matched = true;
    for (uint32_t port = first; port <= last; ++port) {
      if (resources.size() == resources_max)
        return fail(ErrorKind::exhausted, "too_many_resources",
                    fmt::format("\"{}\" is more than {} addresses and ports in one lease", text,
                                resources_max),
                    "name single ones (NAME@ADDRESS:PORT), or grant several leases with --from");
      resources.push_back(Resource{Resource::Kind::endpoint, &tenant.ports[endpoint->port],
                                   endpoint, address, static_cast<uint16_t>(port)});
    }
  }
  if (!matched)
    return fail(ErrorKind::not_found, "no_such_endpoint",
                fmt::format("endpoint {} of tenant {} does not have {}", selector->name,
                            tenant.name, text.substr(selector->name.size() + 1)),
                "`holdfast route ls` lists its addresses and ports");
  return {};
}

}  // namespace

PolicyIndex::PolicyIndex(const Policy& policy) : policy_(policy) {
  for (const Tenant& tenant : policy.tenants) {
    by_name_.emplace(tenant.name, &tenant);
    by_id_.emplace(tenant.id, &tenant);
  }
}

const Tenant* PolicyIndex::tenant(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const Tenant* PolicyIndex::tenant_by_id(uint64_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

const Endpoint* PolicyIndex::endpoint(const Tenant& tenant, std::string_view name) const {
  for (const Endpoint& endpoint : tenant.endpoints)
    if (endpoint.name == name) return &endpoint;
  return nullptr;
}

const TenantPort* PolicyIndex::port(const Tenant& tenant, std::string_view name) const {
  for (const TenantPort& port : tenant.ports)
    if (port.name == name) return &port;
  return nullptr;
}

const Endpoint* PolicyIndex::endpoint_at(const Tenant& tenant, const Address& address,
                                         Protocol protocol, uint16_t listen) const {
  for (const Endpoint& endpoint : tenant.endpoints)
    if (endpoint.protocol == protocol && listen >= endpoint.listen.first &&
        listen <= endpoint.listen.last &&
        std::find(endpoint.addresses.begin(), endpoint.addresses.end(), address) !=
            endpoint.addresses.end())
      return &endpoint;
  return nullptr;
}

Status check_term(uint64_t ttl_ns) {
  if (ttl_ns >= lease_term_min_ns && ttl_ns <= lease_term_max_ns) return {};
  return fail(ErrorKind::invalid, "ttl_out_of_range",
              fmt::format("a term of {} is not between {} and {}", human_duration(ttl_ns),
                          human_duration(lease_term_min_ns), human_duration(lease_term_max_ns)),
              "ask for at most 300s and renew before it ends");
}

Status check_renewal(uint64_t remaining_ns, uint64_t ttl_ns) {
  const uint64_t most_ns = ttl_ns / 4 * renewal_quarters_max;
  if (remaining_ns <= most_ns) return {};
  return fail(
      ErrorKind::conflict, "renewed_too_early",
      fmt::format("{} of it remain; a term of {} is given once no more than {} do",
                  human_duration(remaining_ns), human_duration(ttl_ns), human_duration(most_ns)),
      fmt::format("renew it in {}", human_duration(remaining_ns - most_ns)));
}

namespace {

Result<const Tenant*> find_tenant(const PolicyIndex& index, std::string_view name) {
  if (const Tenant* tenant = index.tenant(name); tenant != nullptr) return tenant;
  return fail(ErrorKind::not_found, "no_such_tenant",
              fmt::format("the policy in force has no tenant \"{}\"", name),
              "`holdfast tenant ls` lists them");
}

}  // namespace

Result<std::vector<Resource>> select_members(const PolicyIndex& index,
                                             const GrantRequest& request) {
  const Result<const Tenant*> tenant = find_tenant(index, request.tenant);
  if (!tenant) return std::unexpected(tenant.error());
  if (request.endpoints.empty() || !request.egress.empty())
    return fail(ErrorKind::invalid, "each_of_what",
                "\"each\" makes one lease for each member of endpoints",
                "name endpoints, and egress in a lease of its own");
  std::vector<Resource> members;
  for (const std::string_view text : request.endpoints)
    if (Status ok = add_endpoint(index, **tenant, text, request.peer, abi::HF_SLOTS_MAX, members);
        !ok)
      return pass_on(ok);
  return members;
}

Result<GrantPlan> decide_grant(const PolicyIndex& index, const GrantRequest& request) {
  if (Status ok = check_term(request.ttl_ns); !ok) return pass_on(ok);
  if (request.grace_ns > lease_term_max_ns)
    return fail(ErrorKind::invalid, "grace_out_of_range", "a grace of more than 300s",
                "grace never passes the lease's end: ask for less");
  GrantPlan plan;
  const Result<const Tenant*> tenant = find_tenant(index, request.tenant);
  if (!tenant) return std::unexpected(tenant.error());
  plan.tenant = *tenant;
  if (request.selected) {
    plan.resources.push_back(*request.selected);
    return plan;
  }
  if (request.endpoints.empty() && request.egress.empty())
    return fail(ErrorKind::invalid, "no_resources", "the lease names no endpoint and no egress",
                "add --endpoint NAME or --egress PORT");
  for (const std::string_view text : request.endpoints)
    if (Status ok = add_endpoint(index, *plan.tenant, text, request.peer, lease_resources_max,
                                 plan.resources);
        !ok)
      return pass_on(ok);
  if (request.peer && !request.egress.empty())
    return fail(ErrorKind::invalid, "peer_on_egress", "an egress lease has no peer prefix",
                "grant it without --peer; name endpoints and egress in two leases");
  for (const std::string_view name : request.egress) {
    const TenantPort* port = index.port(*plan.tenant, name);
    if (port == nullptr)
      return fail(ErrorKind::not_found, "no_such_port",
                  fmt::format("tenant {} has no port \"{}\"", plan.tenant->name, name),
                  "`holdfast tenant ls` lists them");
    plan.resources.push_back(Resource{Resource::Kind::egress, port, nullptr, {}, 0});
  }
  if (plan.resources.size() > lease_resources_max)
    return fail(ErrorKind::exhausted, "too_many_resources",
                fmt::format("a lease holds at most {} resources", lease_resources_max));
  return plan;
}

std::string holder_name(const Holder& holder) {
  if (holder.kind == Holder::Kind::key) return fmt::format("key:{:02x}", fmt::join(holder.key, ""));
  return fmt::format("{}:{}", holder.kind == Holder::Kind::uid ? "uid" : "cgroup", holder.id);
}

Result<Holder> parse_holder_name(std::string_view text) {
  Holder holder;
  if (text.starts_with("key:")) {
    holder.kind = Holder::Kind::key;
    const std::string_view digits = text.substr(4);
    if (digits.size() == 2 * holder.key.size()) {
      for (size_t i = 0; i < holder.key.size(); ++i)
        std::from_chars(&digits[2 * i], &digits[2 * i] + 2, holder.key[i], 16);
      if (holder_name(holder) == text) return holder;
    }
  }
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view id = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const auto end = std::from_chars(id.data(), id.data() + id.size(), holder.id);
  const bool number = !id.empty() && end.ec == std::errc() && end.ptr == id.data() + id.size();
  if (number && kind == "uid" && holder.id <= UINT32_MAX) return holder;
  holder.kind = Holder::Kind::cgroup;
  if (number && kind == "cgroup") return holder;
  return fail(ErrorKind::invalid, "bad_holder", fmt::format("\"{}\" is not a holder", text),
              "uid:NUMBER, cgroup:ID, or key: and the 64 lower hex digits of its thumbprint");
}

std::string resource_name(const Resource& resource) {
  if (resource.kind == Resource::Kind::egress) return "egress:" + resource.port->name;
  if (resource.endpoint->protocol == Protocol::icmp_echo)
    return fmt::format("{}@{}", resource.endpoint->name, format_address(resource.address));
  return fmt::format("{}@{}", resource.endpoint->name,
                     format_address_port({resource.address, resource.listen}));
}

}  // namespace holdfast
