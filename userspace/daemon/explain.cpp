#include "userspace/daemon/explain.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "policy/address.hpp"

namespace holdfast {
namespace {

struct PortAt {
  const Tenant* tenant;
  const TenantPort* port;
};

std::optional<PortAt> port_of_interface(const Policy& policy, std::string_view interface) {
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports)
      if (port.interface == interface) return PortAt{&tenant, &port};
  return std::nullopt;
}

std::optional<PortAt> port_of_address(const Policy& policy, const Address& address) {
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports)
      if (std::binary_search(port.addresses.begin(), port.addresses.end(), address))
        return PortAt{&tenant, &port};
  return std::nullopt;
}

}  // namespace

Result<std::vector<ExplainStep>> explain_packet(const Node& node, std::string_view from,
                                                ProbePacket packet, const std::string* source_mac) {
  if (packet.source.is_v4() != packet.destination.is_v4())
    return fail(ErrorKind::invalid, "family_mismatch",
                "source and destination are of different families",
                "give two IPv4 or two IPv6 addresses");
  const Policy& policy = node.policy();
  std::vector<ExplainStep> steps;
  const auto meet = [&](abi::hf_direction hook, const std::string& interface) -> Result<bool> {
    const LinkInfo* link = node.network().find(interface);
    if (link == nullptr)
      return fail(ErrorKind::unavailable, "interface_missing",
                  fmt::format("interface {} is not there", interface),
                  "its traffic is denied until it is back");
    const Result<abi::verdict> verdict =
        node.plane().probe.run(hook, link->ifindex, build_frame(packet));
    if (!verdict) return std::unexpected(verdict.error());
    steps.push_back({hook, interface, *verdict});
    return abi::hf_reason_passes(verdict->reason) != 0;
  };

  if (from == "uplink") {
    if (policy.uplinks.empty())
      return fail(ErrorKind::not_found, "no_uplink", "the policy names no uplink",
                  "say --from INTERFACE");
    const Result<bool> passes = meet(abi::HF_FROM_UPLINK, policy.uplinks.front());
    if (!passes) return std::unexpected(passes.error());
    if (!*passes) return steps;
  } else {
    const std::optional<PortAt> at = port_of_interface(policy, from);
    if (!at)
      return fail(ErrorKind::not_found, "no_such_port",
                  fmt::format("no tenant port is on interface {}", from),
                  "`holdfast tenant ls` shows them; uplink is the other choice");
    packet.source_mac = at->port->mac;
    if (source_mac != nullptr) {
      const Result<MacAddress> mac = parse_mac(*source_mac);
      if (!mac) return std::unexpected(mac.error());
      packet.source_mac = *mac;
    }
    const Result<bool> passes = meet(abi::HF_FROM_TENANT, std::string(from));
    if (!passes) return std::unexpected(passes.error());
    if (!*passes) return steps;
  }
  if (const std::optional<PortAt> to = port_of_address(policy, packet.destination); to) {
    const Result<bool> passes = meet(abi::HF_TO_TENANT, to->port->interface);
    if (!passes) return std::unexpected(passes.error());
  }
  return steps;
}

}  // namespace holdfast
