// decide: may this lease be granted, and over exactly which resources? Pure: the policy in force
// and the request are all it reads. Whether the resources are free is the daemon's to say, from the
// slots.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "policy/types.hpp"
#include "userspace/base/result.hpp"

namespace holdfast {

constexpr uint64_t lease_term_min_ns = 10'000'000;       // 10 ms: ten ticks of the gate's clock
constexpr uint64_t lease_term_max_ns = 300'000'000'000;  // G3
constexpr size_t lease_resources_max = 64;               // slots of one lease

// Who uses a lease.
struct Holder {
  using KeyThumbprint = std::array<uint8_t, 32>;

  enum class Kind { uid, cgroup, key } kind = Kind::uid;
  uint64_t id = 0;      // uid, or cgroup id (the inode of its directory)
  KeyThumbprint key{};  // RFC 9679, SHA-256
  bool operator==(const Holder&) const = default;
};

std::string holder_name(const Holder& holder);  // "uid:1000", "cgroup:4711", "key:" and 64 hex
// Errors: invalid / bad_holder.
Result<Holder> parse_holder_name(std::string_view text);

// One thing that can be leased. An endpoint names its address and listen port, egress only its
// port.
struct Resource {
  enum class Kind { endpoint, egress } kind = Kind::endpoint;
  const TenantPort* port = nullptr;
  const Endpoint* endpoint = nullptr;  // null for egress
  Address address;
  uint16_t listen = 0;
};

// Views are the caller's: a million requests of one body copy no text.
struct GrantRequest {
  std::string_view tenant;                  // "org/app/env"
  std::vector<std::string_view> endpoints;  // NAME, NAME@ADDRESS, NAME@ADDRESS:PORT
  std::optional<Resource> selected;         // instead of names: one of select_members()
  std::vector<std::string_view> egress;     // port names
  std::optional<Prefix> peer;
  Holder holder;
  uint64_t ttl_ns = 0;
  uint64_t grace_ns = 0;
};

struct GrantPlan {
  const Tenant* tenant = nullptr;
  std::vector<Resource> resources;
};

// A policy with its names indexed. Refers into `policy`, which must stay where it is.
class PolicyIndex {
 public:
  explicit PolicyIndex(const Policy& policy);

  const Policy& policy() const { return policy_; }
  const Tenant* tenant(std::string_view name) const;
  const Tenant* tenant_by_id(uint64_t id) const;
  const Endpoint* endpoint(const Tenant& tenant, std::string_view name) const;
  const TenantPort* port(const Tenant& tenant, std::string_view name) const;
  // The endpoint that an (address, protocol, listen port) of this tenant belongs to.
  const Endpoint* endpoint_at(const Tenant& tenant, const Address& address, Protocol protocol,
                              uint16_t listen) const;

 private:
  const Policy& policy_;
  std::unordered_map<std::string_view, const Tenant*> by_name_;
  std::unordered_map<uint64_t, const Tenant*> by_id_;
};

// invalid: term, selector; not_found: tenant, endpoint, port; exhausted: too many resources.
Result<GrantPlan> decide_grant(const PolicyIndex& index, const GrantRequest& request);

// All members of the endpoints that a request selects, however many: for one lease on each of them.
// The request must name endpoints and no egress.
Result<std::vector<Resource>> select_members(const PolicyIndex& index, const GrantRequest& request);

// Checks a lease term by itself (grant and renew).
Status check_term(uint64_t ttl_ns);

// A holder renews once no more than three quarters of the term it asks for remain: every renewal
// costs the node a transaction. conflict / renewed_too_early, with the time to wait.
constexpr uint64_t renewal_quarters_max = 3;
Status check_renewal(uint64_t remaining_ns, uint64_t ttl_ns);

// "web@10.1.0.2:443", "ping@10.1.0.2", "egress:web0": how a resource is shown and asked for.
std::string resource_name(const Resource& resource);

}  // namespace holdfast
