// Attachments: which program sits on which interface, and the proof that it does (TRAPS: a link is
// not enforcement; a query is).
//
// Tenant ports: from_tenant at tc ingress and to_tenant at tc egress, first in order, by tcx links
// (6.6+) or clsact filters. Uplinks: uplink_xdp in native mode, or uplink_tc at tc ingress where
// the driver has none. tcx and XDP links are pinned under links/; a clsact filter lives as long as
// its interface. Foreign programs are never replaced: a refusal names their owner.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/dataplane/object.hpp"

namespace holdfast {

enum class TenantHook { automatic, tcx, clsact };
enum class UplinkHook { automatic, xdp, tc };

struct Interface {
  uint32_t ifindex = 0;
  std::string name;
};

class Attachments {
 public:
  Attachments(const KernelObject& object, TenantHook tenant_hook, UplinkHook uplink_hook);

  // Idempotent: attaches, or puts this object's programs in the place of a former daemon's without
  // a gap. Then verifies. On failure the interface must stay out of nft's `armed` set.
  Status attach_tenant_port(const Interface& port);
  Status attach_uplink(const Interface& uplink);

  // Voids cached clock readings at suspend and resume. Pinned like the rest.
  Status attach_clock();

  // Asks the kernel, not our own links, whether our programs are in place and first.
  Status verify_tenant_port(const Interface& port) const;
  Status verify_uplink(const Interface& uplink) const;

  // Removes our programs from an interface that the policy no longer names. Missing is not an
  // error.
  Status detach(uint32_t ifindex);

  // Interfaces that have a pinned link of ours, alive or not.
  std::vector<uint32_t> pinned_interfaces() const;

  // Did this or a former daemon guard the interface as a tenant port, and not let go of it?
  bool carries_gate(uint32_t ifindex) const;

  // What is in use, for status: "tcx", "clsact"; "xdp", "tc".
  std::string_view tenant_hook_in_use() const {
    return tenant_hook_ == TenantHook::clsact ? "clsact" : "tcx";
  }
  std::string_view uplink_hook_of(uint32_t ifindex) const;

 private:
  Status attach_tc(const Interface& at, bool ingress, int program_fd, std::string_view program);
  Status attach_tcx(const Interface& at, bool ingress, int program_fd, std::string_view program);
  Status attach_clsact(const Interface& at, bool ingress, int program_fd, std::string_view program);
  Status attach_xdp(const Interface& at);
  Status verify_tc(const Interface& at, bool ingress, int program_fd,
                   std::string_view program) const;
  static Status verify_no_xdp(const Interface& at);
  std::string link_path(std::string_view program, uint32_t ifindex) const;

  std::string links_;  // directory of pinned links
  TenantHook tenant_hook_;
  UplinkHook uplink_hook_;
  int from_tenant_, to_tenant_, uplink_xdp_, uplink_tc_,
      clock_leap_;  // program fds, borrowed from the object
};

}  // namespace holdfast
