// Which filter a packet meets first at a clsact hook: rtnetlink's own answer, since libbpf can only
// ask for the filter of one priority and handle.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "userspace/base/result.hpp"

namespace holdfast {

struct TcFilter {
  std::string kind;      // "bpf", "flower", "matchall", ...
  uint32_t program = 0;  // the BPF program's id, if it is one
  uint32_t priority = 0;
  uint32_t handle = 0;  // within the priority, where the newest stands first
};

// The first one of chain 0, by the kernel's order; nothing: there is none, or no clsact qdisc.
Result<std::optional<TcFilter>> first_filter(uint32_t ifindex, bool ingress);

}  // namespace holdfast
