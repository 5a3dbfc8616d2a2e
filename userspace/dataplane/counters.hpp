// Reading what packets left behind: counters summed over CPUs, flows, drop events. Changes nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <bpf/libbpf.h>

#include "bpf/abi.h"
#include "userspace/base/result.hpp"
#include "userspace/dataplane/object.hpp"

namespace holdfast {

struct ReasonCount {
  abi::hf_direction hook = abi::HF_TO_TENANT;
  uint32_t reason = 0;
  abi::reason_counter count{};  // summed; last_event_jiffy means nothing here
};

class Counters {
 public:
  explicit Counters(const KernelObject& object);

  // Every reason of every hook, those that never occurred too.
  Result<std::vector<ReasonCount>> reasons() const;
  Result<abi::tenant_counter> tenant(uint32_t index) const;
  // Up to `limit` flows of one tenant. The table lives while this reads: it is a sample, not a
  // snapshot.
  Result<std::vector<abi::flow>> flows(uint32_t tenant, size_t limit) const;

 private:
  int reasons_, tenants_, flows_;  // borrowed from the skeleton
  uint32_t cpus_;
};

// The ring of sampled drop events. One reader.
class DropEvents {
 public:
  using Handler = std::function<void(const abi::drop_event&)>;
  static Result<DropEvents> open(const KernelObject& object, Handler handler);

  int fd() const { return ::ring_buffer__epoll_fd(ring_.get()); }
  void consume() { ::ring_buffer__consume(ring_.get()); }

 private:
  struct Free {
    void operator()(ring_buffer* ring) const { ::ring_buffer__free(ring); }
  };
  DropEvents() = default;
  std::unique_ptr<Handler> handler_;
  std::unique_ptr<ring_buffer, Free> ring_;
};

// A reason's name and text as in reasons.def.
std::string_view reason_name(uint32_t reason);
std::string_view reason_text(uint32_t reason);
std::string_view hook_name(uint32_t direction);

}  // namespace holdfast
