/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* What follows from a verdict: the flow or fragment it begins, the exact counters, a sampled event. The only
 * code of the data plane that writes. */
#ifndef HOLDFAST_COMMIT_H
#define HOLDFAST_COMMIT_H

#include "decide.h"

/* Where a packet was met. */
struct hook {
  __u32 ifindex;
  __u32 direction; /* hf_direction */
  __u32 length;    /* bytes of the frame as the hook sees it */
  __u32 gso_size;  /* payload bytes of each segment of a GSO super-packet, else 0 */
};

/* Of one packet as the wire would carry it. A GSO super-packet counts as its segments. */
struct wire_size {
  __u32 packets;
  __u32 bytes;
};

static __always_inline struct wire_size hf_wire_size(const struct hook* at, __u32 header_length) {
  struct wire_size size = {.packets = 1, .bytes = at->length};
  if (at->gso_size && at->length > header_length) {
    size.packets = (at->length - header_length + at->gso_size - 1) / at->gso_size;
    size.bytes = at->length + (size.packets - 1) * header_length;
  }
  return size;
}

HF_GLOBAL int hf_commit_flow(struct packet* p, struct verdict* v, __u32 ifindex) {
  if (!p || !v) return 0;
  struct flow flow = {.slot = v->slot, .incarnation = hf_gate_incarnation(v->gate)};
  hf_flow_key_from(&flow.key, p, ifindex);
  __u32 tenant = v->tenant;
  void* table = bpf_map_lookup_elem(&flows, &tenant);
  /* A table that is full evicts; an update that fails leaves the reply unmatched, which denies. */
  return table ? bpf_map_update_elem(table, &flow.key, &flow, BPF_ANY) : 0;
}

HF_GLOBAL int hf_commit_fragment(struct packet* p, struct verdict* v, struct hook* at) {
  if (!p || !v || !at) return 0;
  struct fragment_state state = {.slot = v->slot,
                                 .incarnation = hf_gate_incarnation(v->gate),
                                 .next_offset = p->fragment_end,
                                 .first_boot_ns = v->now_boot_ns};
  hf_fragment_key_of(&state.key, p, at->direction == HF_FROM_UPLINK ? 0 : at->ifindex, (__u8)at->direction);
  __u32 tenant = v->tenant;
  if (p->fragment == HF_FRAGMENT_FIRST) {
    void* table = bpf_map_lookup_elem(&fragments, &tenant);
    /* As in hf_commit_flow: what is not remembered makes orphans. */
    return table ? bpf_map_update_elem(table, &state.key, &state, BPF_ANY) : 0;
  }
  struct fragment_state* first = hf_find_fragment(tenant, &state.key);
  if (first) first->next_offset = p->fragment_end;
  return 0;
}

HF_GLOBAL int hf_commit_event(struct packet* p, struct verdict* v, struct hook* at,
                              struct reason_counter* counter) {
  if (!p || !v || !at || !counter) return 0;
  __u64 jiffy = bpf_jiffies64();
  if (counter->last_event_jiffy == jiffy) {
    counter->events_unsampled++;
    return 0;
  }
  counter->last_event_jiffy = jiffy; /* a full ring is not asked again before the next jiffy either */
  struct drop_event* event = bpf_ringbuf_reserve(&drop_events, sizeof(*event), 0);
  if (!event) {
    counter->events_lost++;
    return 0;
  }
  __builtin_memset(event, 0, sizeof(*event));
  event->time_boot_ns = bpf_ktime_get_boot_ns();
  event->verdict = *v;
  hf_copy_address(event->source, p->kind == HF_KIND_ARP ? p->source : p->outer_source);
  hf_copy_address(event->destination, p->kind == HF_KIND_ARP ? p->destination : p->outer_destination);
  event->source_port = p->source_port;
  event->destination_port = p->destination_port;
  event->ifindex = at->ifindex;
  event->length = at->length;
  event->protocol = p->protocol;
  event->direction = (__u8)at->direction;
  bpf_ringbuf_submit(event, 0);
  return 0;
}

/* Commits `v`; returns whether the packet passes. */
static __always_inline int hf_commit(struct packet* p, struct verdict* v, struct hook* at) {
  struct wire_size size = hf_wire_size(at, p->header_length);
  __u32 reason = v->reason;
  __u32 direction = at->direction;
  int passes = hf_reason_passes(reason);

  if (passes && v->slot != HF_NO_SLOT) {
    if (reason == HF_REASON_egress) hf_commit_flow(p, v, at->ifindex);
    if (p->fragment) hf_commit_fragment(p, v, at);
  }
  __u32 index = hf_reason_index(direction, reason);
  struct reason_counter* counter = bpf_map_lookup_elem(&reason_counters, &index);
  if (counter) {
    counter->total.packets += size.packets;
    counter->total.bytes += size.bytes;
    if (!passes) hf_commit_event(p, v, at, counter);
  }
  __u32 tenant = v->tenant;
  struct tenant_counter* metered = bpf_map_lookup_elem(&tenant_counters, &tenant);
  if (metered) {
    struct counter* c = &metered->dropped;
    if (passes && direction == HF_TO_TENANT) c = &metered->to_tenant;
    if (passes && direction == HF_FROM_TENANT) c = &metered->from_tenant;
    if (!passes || direction != HF_FROM_UPLINK) {
      c->packets += size.packets;
      c->bytes += size.bytes;
    }
  }
  return passes;
}

#endif
