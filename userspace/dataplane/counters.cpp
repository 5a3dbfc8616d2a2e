#include "userspace/dataplane/counters.hpp"

#include <algorithm>
#include <array>

#include <bpf/bpf.h>

#include "holdfast.skel.h"

namespace holdfast {
namespace {

constexpr std::array<std::string_view, abi::HF_REASON_COUNT> names = {
#define HF_REASON(name, verdict, text) #name,
#include "bpf/reasons.def"
#undef HF_REASON
};
constexpr std::array<std::string_view, abi::HF_REASON_COUNT> texts = {
#define HF_REASON(name, verdict, text) text,
#include "bpf/reasons.def"
#undef HF_REASON
};

void add(abi::counter& sum, const abi::counter& part) {
  sum.packets += part.packets;
  sum.bytes += part.bytes;
}

}  // namespace

std::string_view reason_name(uint32_t reason) {
  return reason < names.size() ? names[reason] : "unknown";
}
std::string_view reason_text(uint32_t reason) {
  return reason < texts.size() ? texts[reason] : "";
}

std::string_view hook_name(uint32_t direction) {
  switch (direction) {
    case abi::HF_FROM_TENANT: return "from_tenant";
    case abi::HF_TO_TENANT: return "to_tenant";
    case abi::HF_FROM_UPLINK: return "from_uplink";
    default: return "unknown";
  }
}

Counters::Counters(const KernelObject& object)
    : reasons_(::bpf_map__fd(object->maps.reason_counters)),
      tenants_(::bpf_map__fd(object->maps.tenant_counters)),
      flows_(::bpf_map__fd(object->maps.flows)),
      cpus_(static_cast<uint32_t>(std::max(1, ::libbpf_num_possible_cpus()))) {}

Result<std::vector<ReasonCount>> Counters::reasons() const {
  std::vector<ReasonCount> out;
  std::vector<abi::reason_counter> parts(cpus_);
  for (const auto hook : {abi::HF_FROM_TENANT, abi::HF_TO_TENANT, abi::HF_FROM_UPLINK})
    for (uint32_t reason = 0; reason < abi::HF_REASON_COUNT; ++reason) {
      const uint32_t index = abi::hf_reason_index(hook, reason);
      if (const int err = ::bpf_map_lookup_elem(reasons_, &index, parts.data()); err != 0)
        return fail_sys(-err, "counters_read", "reading the reason counters");
      ReasonCount row{hook, reason, {}};
      for (const abi::reason_counter& part : parts) {
        add(row.count.total, part.total);
        row.count.events_lost += part.events_lost;
        row.count.events_unsampled += part.events_unsampled;
      }
      out.push_back(row);
    }
  return out;
}

Result<abi::tenant_counter> Counters::tenant(uint32_t index) const {
  std::vector<abi::tenant_counter> parts(cpus_);
  if (const int err = ::bpf_map_lookup_elem(tenants_, &index, parts.data()); err != 0)
    return fail_sys(-err, "counters_read", "reading a tenant's counters");
  abi::tenant_counter sum{};
  for (const abi::tenant_counter& part : parts) {
    add(sum.to_tenant, part.to_tenant);
    add(sum.from_tenant, part.from_tenant);
    add(sum.dropped, part.dropped);
  }
  return sum;
}

Result<std::vector<abi::flow>> Counters::flows(uint32_t tenant, size_t limit) const {
  std::vector<abi::flow> out;
  uint32_t id = 0;
  if (::bpf_map_lookup_elem(flows_, &tenant, &id) != 0) return out;
  const UniqueFd table(::bpf_map_get_fd_by_id(id));
  if (!table) return fail_sys(errno, "flows_read", "opening a tenant's flow table");
  abi::flow_key key{};
  const abi::flow_key* before = nullptr;
  abi::flow_key next{};
  while (out.size() < limit && ::bpf_map_get_next_key(table.get(), before, &next) == 0) {
    abi::flow value{};
    if (::bpf_map_lookup_elem(table.get(), &next, &value) == 0) out.push_back(value);
    key = next;
    before = &key;
  }
  return out;
}

Result<DropEvents> DropEvents::open(const KernelObject& object, Handler handler) {
  DropEvents events;
  events.handler_ = std::make_unique<Handler>(std::move(handler));
  const auto forward = [](void* context, void* data, size_t size) {
    if (size >= sizeof(abi::drop_event))
      (*static_cast<Handler*>(context))(*static_cast<const abi::drop_event*>(data));
    return 0;
  };
  events.ring_.reset(::ring_buffer__new(::bpf_map__fd(object->maps.drop_events), forward,
                                        events.handler_.get(), nullptr));
  if (!events.ring_) return fail_sys(errno, "drop_events", "opening the ring of drop events");
  return events;
}

}  // namespace holdfast
