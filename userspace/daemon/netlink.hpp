// What the node's network namespace looks like, through rtnetlink: interfaces and the node's own
// addresses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "policy/types.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast {

struct LinkInfo {
  uint32_t ifindex = 0;
  std::string name;
  std::string kind;       // IFLA_INFO_KIND: "veth", "tun", "macvlan", ...; empty for plain hardware
  bool ethernet = false;  // frames with Ethernet headers: a tap has them, a tun does not
  uint32_t master = 0;    // ifindex of the bridge or bond it belongs to
  std::string master_name;
};

struct NetworkFacts {
  std::vector<LinkInfo> links;
  std::vector<Address> addresses;  // the node's own, loopback left out

  const LinkInfo* find(const std::string& name) const;
  const LinkInfo* find(uint32_t ifindex) const;
};

Result<NetworkFacts> read_network();

// May this interface be a tenant port? The host must have a hook that only this tenant's packets
// pass.
Status check_tenant_interface(const LinkInfo& link);
// May it be an uplink?
Status check_uplink_interface(const LinkInfo& link);

// Tells when links or addresses change. The fd turns readable; drain() empties it.
class NetworkWatch {
 public:
  static Result<NetworkWatch> open();
  int fd() const { return fd_.get(); }
  void drain() const;

 private:
  explicit NetworkWatch(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace holdfast
