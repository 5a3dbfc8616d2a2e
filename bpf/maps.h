/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* Every map of the data plane. All are pinned by name under the ABI version's directory; sizes marked
 * "sized" are set by the loader before the maps are created. Who writes: the daemon writes control, slots,
 * tenants, records and the policy tables; programs write flows, fragments, counters and events. */
#ifndef HOLDFAST_MAPS_H
#define HOLDFAST_MAPS_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "abi.h"

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct control);
} control SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 65536); /* sized: --leases-max */
  __type(key, __u32);
  __type(value, struct lease_slot);
} slots SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 65536); /* sized: --leases-max */
  __type(key, __u32);
  __type(value, struct lease_record);
} records SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, HF_TENANTS_MAX);
  __type(key, __u32);
  __type(value, struct tenant_state);
} tenants SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct clock_reading);
} clock_readings SEC(".maps");

/* Policy tables. Each inner map is created at its exact size, filled, and published whole into the bank
 * that no packet reads; `control.active_bank` then turns to it. (Sizes, not types: clang leaves only a forward
 * declaration of a type that an inner map alone names.) */
struct endpoint_table {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE); /* each as large as it needs to be */
  __uint(max_entries, 1);
  __uint(key_size, sizeof(__u32));
  __uint(value_size, sizeof(struct endpoint_line));
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 2);
  __type(key, __u32);
  __array(values, struct endpoint_table);
} policy_endpoints SEC(".maps");

/* See hf_filter_word(). A bank's half is written only while no packet reads it. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 2 * HF_FILTER_WORDS_MIN); /* sized: by --leases-max */
  __type(key, __u32);
  __type(value, __u64);
} endpoint_filter SEC(".maps");

struct port_table {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1);
  __uint(key_size, sizeof(__u32)); /* ifindex */
  __uint(value_size, sizeof(struct tenant_port));
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 2);
  __type(key, __u32);
  __array(values, struct port_table);
} policy_ports SEC(".maps");

/* Index = tenant: a table each, so that one tenant's flood evicts nobody else's flows (G13). */
struct flow_table {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 1);
  __uint(key_size, sizeof(struct flow_key));
  __uint(value_size, sizeof(struct flow));
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, HF_TENANTS_MAX);
  __type(key, __u32);
  __array(values, struct flow_table);
} flows SEC(".maps");

/* Index = tenant, as with flows: of what it sends and of what is sent to it. */
struct fragment_table {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, HF_FRAGMENTS_MAX);
  __uint(key_size, sizeof(struct fragment_key));
  __uint(value_size, sizeof(struct fragment_state));
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, HF_TENANTS_MAX);
  __type(key, __u32);
  __array(values, struct fragment_table);
} fragments SEC(".maps");

/* Index: hf_reason_index(direction, reason). */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 3 * HF_REASON_COUNT);
  __type(key, __u32);
  __type(value, struct reason_counter);
} reason_counters SEC(".maps");

/* Index = tenant. */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, HF_TENANTS_MAX);
  __type(key, __u32);
  __type(value, struct tenant_counter);
} tenant_counters SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 1 << 18);
} drop_events SEC(".maps");

#endif
