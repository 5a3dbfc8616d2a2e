#include "policy/opens.hpp"

#include <algorithm>
#include <set>
#include <string_view>

#include <fmt/format.h>

#include "policy/address.hpp"

namespace holdfast {
namespace {

std::set<std::string> guarded(const Policy& policy) {
  std::set<std::string> names(policy.uplinks.begin(), policy.uplinks.end());
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports) names.insert(port.interface);
  return names;
}

bool covers(const Prefix& wide, const Prefix& narrow) {
  return narrow.bits >= wide.bits && wide.contains(narrow.address);
}

// Whoever `next` lets reach it, one of `now` does, too. Prefixes that only together cover one are
// not put together: then it counts as opened.
bool is_open_already(const Policy& now, const Listener& next, const Prefix* from) {
  return std::ranges::any_of(now.listeners, [&](const Listener& has) {
    if (has.protocol != next.protocol || has.port != next.port) return false;
    if (has.from.empty()) return true;
    return from != nullptr &&
           std::ranges::any_of(has.from, [&](const Prefix& wide) { return covers(wide, *from); });
  });
}

}  // namespace

std::vector<std::string> what_opens(const Policy& now, const Policy& next) {
  std::vector<std::string> out;
  const auto failsafe = [&](uint16_t port) {
    return std::ranges::find(now.failsafe_ports, port) != now.failsafe_ports.end();
  };
  for (const uint16_t port : next.failsafe_ports)
    if (!failsafe(port)) out.push_back(fmt::format("failsafe port {}", port));
  for (const Listener& listener : next.listeners) {
    if (listener.protocol == Protocol::tcp && failsafe(listener.port)) continue;
    const std::string name = fmt::format("{} port {}", name_of(listener.protocol), listener.port);
    if (listener.from.empty() && !is_open_already(now, listener, nullptr))
      out.push_back(name + " from anywhere");
    for (const Prefix& from : listener.from)
      if (!is_open_already(now, listener, &from))
        out.push_back(fmt::format("{} from {}", name, format_prefix(from)));
  }
  const std::set<std::string> stay = guarded(next);
  for (const std::string& name : guarded(now))
    if (!stay.contains(name)) out.push_back(fmt::format("interface {} is let go", name));
  return out;
}

}  // namespace holdfast
