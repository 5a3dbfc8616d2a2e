/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* The verdicts: pure functions of a parsed packet, the policy tables, the slots and the clock. They change
 * nothing; commit.h does. `explain` runs these very functions. A verdict reads the bank once and the gate
 * word once.
 *
 * The predicate, per packet: the named lease is of the tenant that the tables name, its gate has this
 * incarnation and a deadline ahead (G2), its tenant's epoch is the one it was bound under (G5), and its peer
 * prefix, if it has one, covers the peer.
 *
 * The functions marked HF_GLOBAL are verified by themselves, once, whatever the parser did before (and can
 * be traced: fexit sees their arguments and their answer). The verifier knows their pointers only as
 * maybe-null memory, hence their first line. */
#ifndef HOLDFAST_DECIDE_H
#define HOLDFAST_DECIDE_H

#include "maps.h"
#include "parser.h"

#define HF_GLOBAL __attribute__((noinline))

#define HF_ANY_INCARNATION 0xffffffffu
#define HF_FRAGMENT_LIFETIME_NS 30000000000ULL /* the kernel's own reassembly time-out, ipfrag_time */

/* What a packet reads once, before anything else. */
static __always_inline void hf_begin(struct verdict* v) {
  __u32 zero = 0;
  const struct control* c = bpf_map_lookup_elem(&control, &zero);
  v->bank = c ? *(const volatile __u32*)&c->active_bank & 1 : 0;
}

/* The boot clock, at most one jiffy old while the deadline is far, true when it is near. tc and XDP run with
 * softirqs off, so a CPU's reading is written by one at a time; PROG_TEST_RUN may be interrupted between the
 * two stores, hence the order: jiffies vouch for a boot_ns that is already there. */
static __always_inline __u64 hf_now_boot_ns(__u64 deadline_boot_ns) {
  __u32 zero = 0;
  const struct control* c = bpf_map_lookup_elem(&control, &zero);
  struct clock_reading* r = bpf_map_lookup_elem(&clock_readings, &zero);
  if (!c || !r) return bpf_ktime_get_boot_ns();
  __u64 jiffies = bpf_jiffies64();
  __u32 epoch = *(const volatile __u32*)&c->clock_epoch;
  if (*(volatile __u64*)&r->jiffies == jiffies && *(volatile __u32*)&r->clock_epoch == epoch) {
    __u64 now = *(volatile __u64*)&r->boot_ns;
    if (now + HF_CLOCK_NEAR_NS < deadline_boot_ns) return now;
  }
  __u64 now = bpf_ktime_get_boot_ns();
  *(volatile __u64*)&r->boot_ns = now;
  *(volatile __u32*)&r->clock_epoch = epoch;
  *(volatile __u64*)&r->jiffies = jiffies;
  return now;
}

static __always_inline int hf_peer_covers(const struct lease_record* record, const __u32* peer) {
  __u32 bits = record->peer_prefix_bits;
  for (int i = 0; i < 4; i++) {
    __u32 mask = bits >= 32 ? 0xffffffff : bits ? __builtin_bswap32(0xffffffff << (32 - bits)) : 0;
    if ((peer[i] ^ record->peer[i]) & mask) return 0;
    bits = bits >= 32 ? bits - 32 : 0;
  }
  return 1;
}

/* Is the lease in `slot` live for `peer`? Returns `pass` or the reason why not. A flow names the
 * incarnation it began under; an endpoint does not. `v->tenant` is whose slot it is by the policy's tables:
 * another tenant's lease in it is no lease. */
static __always_inline __u32 hf_check_slot(struct verdict* v, __u32 slot, __u32 incarnation, const __u32* peer,
                                           __u32 pass, __u32 none) {
  const struct lease_slot* s = bpf_map_lookup_elem(&slots, &slot);
  if (!s) return none;
  __u64 gate = *(const volatile __u64*)&s->gate;
  v->slot = slot;
  v->gate = gate;
  if (incarnation != HF_ANY_INCARNATION && incarnation != hf_gate_incarnation(gate))
    return HF_REASON_lease_revoked;
  __u32 tenant = s->tenant;
  if (gate >> HF_GATE_INCARNATION_BITS == 0 || tenant != v->tenant) return none;
  const struct tenant_state* t = bpf_map_lookup_elem(&tenants, &tenant);
  if (!t || *(const volatile __u32*)&t->epoch != s->tenant_epoch) return HF_REASON_tenant_disabled;
  __u64 deadline_boot_ns = hf_gate_deadline_boot_ns(gate);
  v->now_boot_ns = hf_now_boot_ns(deadline_boot_ns);
  if (v->now_boot_ns >= deadline_boot_ns) return HF_REASON_lease_expired;
  if (s->flags & HF_SLOT_PEER) {
    const struct lease_record* record = bpf_map_lookup_elem(&records, &slot);
    if (!record || !hf_peer_covers(record, peer)) return HF_REASON_peer_not_leased;
  }
  return pass;
}

/* Whether the gate has any deadline, passed or not. */
static __always_inline int hf_slot_is_open(__u32 slot) {
  const struct lease_slot* s = bpf_map_lookup_elem(&slots, &slot);
  return s && *(const volatile __u64*)&s->gate >> HF_GATE_INCARNATION_BITS != 0;
}

static __always_inline int hf_slot_names_peer(__u32 slot) {
  const struct lease_slot* s = bpf_map_lookup_elem(&slots, &slot);
  return s && (s->flags & HF_SLOT_PEER);
}

static __always_inline int hf_is_endpoint(const struct endpoint_entry* e, const __u32* address, __u16 port,
                                          __u8 protocol) {
  return e->key.address[3] == address[3] && e->key.port == port && e->key.protocol == protocol &&
         e->key.address[0] == address[0] && e->key.address[1] == address[1] && e->key.address[2] == address[2];
}

enum hf_guess { HF_PROBABLY_THERE, HF_PROBABLY_ABSENT }; /* only the cost of a lookup depends on it */

/* Is the key of this hash certainly not in the bank's table? */
static __always_inline int hf_is_filtered_out(__u32 bank, const struct endpoint_hash* how, __u64 hash) {
  __u32 word = hf_filter_word(hash, bank, how);
  const __u64* present = bpf_map_lookup_elem(&endpoint_filter, &word);
  return present && (hf_filter_bits(hash) & ~*present);
}

static __always_inline const struct endpoint_entry* hf_find_endpoint(__u32 bank, const __u32* address,
                                                                     __u16 port, __u8 protocol,
                                                                     enum hf_guess guess) {
  __u32 zero = 0;
  const struct control* c = bpf_map_lookup_elem(&control, &zero);
  if (!c) return 0;
  const struct endpoint_hash* how = &c->endpoint_hash[bank & 1];
  __u64 lines = hf_endpoint_hash(address, port, protocol, how->seed);
  if (guess == HF_PROBABLY_ABSENT && hf_is_filtered_out(bank & 1, how, lines)) return 0;
  void* table = bpf_map_lookup_elem(&policy_endpoints, &bank);
  if (!table) return 0;
  for (int i = 0; i < 2; i++, lines >>= 32) {
    __u32 line = (__u32)lines & how->mask;
    const struct endpoint_line* l = bpf_map_lookup_elem(table, &line);
    if (!l) return 0;
    if (hf_is_endpoint(&l->entries[0], address, port, protocol)) return &l->entries[0];
    if (hf_is_endpoint(&l->entries[1], address, port, protocol)) return &l->entries[1];
  }
  return 0;
}

/* The entry of an address that is a tenant's, the node's or a metadata service's, else null. */
static __always_inline const struct endpoint_entry* hf_find_owner(__u32 bank, const __u32* address,
                                                                  enum hf_guess guess) {
  return hf_find_endpoint(bank, address, 0, HF_PROTO_ADDRESS, guess);
}

/* Does the address belong to the tenant port at `ifindex`? */
static __always_inline int hf_is_of_port(const struct endpoint_entry* owner, __u32 ifindex) {
  return owner && owner->tenant < HF_TENANTS_MAX && owner->ifindex == ifindex;
}

static __always_inline struct tenant_port* hf_find_port(__u32 bank, __u32 ifindex) {
  void* table = bpf_map_lookup_elem(&policy_ports, &bank);
  return table ? bpf_map_lookup_elem(table, &ifindex) : 0;
}

static __always_inline void hf_flow_key_from(struct flow_key* key, const struct packet* p, __u32 ifindex) {
  hf_copy_address(key->local, p->source);
  hf_copy_address(key->remote, p->destination);
  key->local_port = p->source_port;
  key->remote_port = p->destination_port;
  key->ifindex = ifindex;
  key->protocol = p->protocol;
}

static __always_inline void hf_flow_key_to(struct flow_key* key, const struct packet* p, __u32 ifindex) {
  hf_copy_address(key->local, p->destination);
  hf_copy_address(key->remote, p->source);
  key->local_port = p->destination_port;
  key->remote_port = p->source_port;
  key->ifindex = ifindex;
  key->protocol = p->protocol;
}

static __always_inline struct flow* hf_find_flow(__u32 tenant, const struct flow_key* key) {
  void* table = bpf_map_lookup_elem(&flows, &tenant);
  if (!table) return 0;
  struct flow* flow = bpf_map_lookup_elem(table, key);
  /* An LRU element may have been recycled for another key under us (TRAPS). */
  if (!flow || __builtin_memcmp(&flow->key, key, sizeof(*key)) != 0) return 0;
  return flow;
}

static __always_inline __u32 hf_no_flow(const struct packet* p) {
  return p->kind == HF_KIND_ICMP_ERROR ? HF_REASON_icmp_unrelated : HF_REASON_no_endpoint;
}

/* An ICMP error that passes, passes as that. */
static __always_inline __u32 hf_passed_as(const struct packet* p, __u32 reason) {
  return p->kind == HF_KIND_ICMP_ERROR && hf_reason_passes(reason) ? HF_REASON_icmp_error : reason;
}

/* An endpoint serves what comes to it, and answers: for TCP anything but opening a connection itself, for
 * echo only requests in and replies out. */
static __always_inline int hf_endpoint_serves(const struct packet* p, int to_endpoint) {
  if (p->kind == HF_KIND_ICMP_ERROR) return 1;
  if (p->protocol == HF_PROTO_TCP) return to_endpoint || !p->initiates;
  if (p->protocol == HF_PROTO_UDP) return 1;
  return to_endpoint ? p->initiates : !p->initiates;
}

static __always_inline void hf_fragment_key_of(struct fragment_key* key, const struct packet* p, __u32 ifindex,
                                               __u8 direction) {
  hf_copy_address(key->source, p->outer_source);
  hf_copy_address(key->destination, p->outer_destination);
  key->identification = p->fragment_id;
  key->ifindex = ifindex;
  /* IPv4 reassembles by protocol too; IPv6 only by addresses and identification. */
  key->protocol = p->outer_source[2] == HF_IP4_MAPPED && p->outer_source[0] == 0 ? p->protocol : 0;
  key->direction = direction;
}

static __always_inline struct fragment_state* hf_find_fragment(__u32 tenant, const struct fragment_key* key) {
  void* table = bpf_map_lookup_elem(&fragments, &tenant);
  if (!table) return 0;
  struct fragment_state* first = bpf_map_lookup_elem(table, key);
  /* Recycled, as in hf_find_flow. */
  if (!first || __builtin_memcmp(&first->key, key, sizeof(*key)) != 0) return 0;
  return first;
}

/* A later fragment from or to `v->tenant`, which the caller knows of the address; of one that is on its way to
 * a tenant port the address is looked up here. */
HF_GLOBAL int hf_decide_fragment(struct packet* p, struct verdict* v, __u32 ifindex, __u32 direction) {
  if (!p || !v) return HF_REASON_unclassified;
  if (direction == HF_TO_TENANT) {
    const struct endpoint_entry* owner = hf_find_owner(v->bank, p->outer_destination, HF_PROBABLY_THERE);
    if (!hf_is_of_port(owner, ifindex)) return HF_REASON_wrong_port;
    v->tenant = owner->tenant;
  }
  struct fragment_key key = {};
  hf_fragment_key_of(&key, p, ifindex, (__u8)direction);
  const struct fragment_state* first = hf_find_fragment(v->tenant, &key);
  if (!first) return HF_REASON_fragment_orphan;
  v->now_boot_ns = bpf_ktime_get_boot_ns();
  if (v->now_boot_ns - first->first_boot_ns > HF_FRAGMENT_LIFETIME_NS) return HF_REASON_fragment_orphan;
  if (p->fragment_offset < first->next_offset) return HF_REASON_fragment_overlap;
  const __u32* peer = direction == HF_FROM_TENANT ? p->outer_destination : p->outer_source;
  return hf_check_slot(v, first->slot, first->incarnation, peer, HF_REASON_fragment, HF_REASON_no_lease);
}

/* What is not to an endpoint: a reply to what the tenant began, or nothing. */
HF_GLOBAL int hf_decide_to_tenant_flow(struct packet* p, struct verdict* v, __u32 ifindex) {
  if (!p || !v) return HF_REASON_unclassified;
  __u32 bank = v->bank;
  const struct tenant_port* port = hf_find_port(bank, ifindex);
  if (!port) return HF_REASON_unknown_port;
  v->tenant = port->tenant;
  /* A flow outlives a push that moved its address to another port, or gave its port another egress slot. */
  const struct endpoint_entry* owner = hf_find_owner(bank, p->outer_destination, HF_PROBABLY_THERE);
  if (!hf_is_of_port(owner, ifindex)) return HF_REASON_wrong_port;
  struct flow_key key = {};
  hf_flow_key_to(&key, p, ifindex);
  const struct flow* flow = hf_find_flow(port->tenant, &key);
  if (!flow) return hf_no_flow(p);
  if (flow->slot != port->egress_slot) return HF_REASON_lease_revoked;
  __u32 reason =
      hf_check_slot(v, flow->slot, flow->incarnation, p->source, HF_REASON_flow, HF_REASON_lease_revoked);
  return hf_passed_as(p, reason);
}

/* To the tenant behind `ifindex`: tc egress of the port's host end. The shortest way is to a leased
 * endpoint: one hash lookup, the gate, the tenant, the clock, and without a peer prefix the filter's word for
 * the source, which may be another tenant's (G13). An endpoint's address and port belong to its lease alone:
 * while that is not live, no flow opens them either. */
static __always_inline __u32 hf_decide_to_tenant(struct packet* p, __u32 ifindex, struct verdict* v) {
  if (p->vlan_tags) return HF_REASON_vlan;
  if (p->kind == HF_KIND_NEIGHBOUR && p->icmp_type == 137) return HF_REASON_icmp_unrelated; /* a redirect */
  if (p->kind == HF_KIND_ARP || p->kind == HF_KIND_NEIGHBOUR)
    return hf_find_port(v->bank, ifindex) ? HF_REASON_neighbour : HF_REASON_unknown_port;
  if (p->fragment == HF_FRAGMENT_LATER) return hf_decide_fragment(p, v, ifindex, HF_TO_TENANT);

  const struct endpoint_entry* e =
      hf_find_endpoint(v->bank, p->destination, p->destination_port, p->protocol, HF_PROBABLY_THERE);
  if (!e || !hf_endpoint_serves(p, 1)) return hf_decide_to_tenant_flow(p, v, ifindex);
  v->tenant = e->tenant;
  if (e->ifindex != ifindex) return HF_REASON_wrong_port;
  __u32 reason =
      hf_check_slot(v, e->slot, HF_ANY_INCARNATION, p->source, HF_REASON_endpoint, HF_REASON_no_lease);
  if (reason == HF_REASON_endpoint && !hf_slot_names_peer(e->slot)) {
    const struct endpoint_entry* source = hf_find_owner(v->bank, p->outer_source, HF_PROBABLY_ABSENT);
    if (source && source->tenant < HF_TENANTS_MAX && source->tenant != e->tenant) return HF_REASON_lateral;
  }
  return hf_passed_as(p, reason);
}

/* Link-local, unicast or multicast. Hop limit 255 alone does not keep neighbour discovery on the link: the node
 * would forward it, and what a tenant puts into it would leave without a lease (G1). */
static __always_inline int hf_is_on_link(const __u32* a) {
  __u8 first = (__u8)(a[0] & 0xff), second = (__u8)(a[0] >> 8 & 0xff);
  return (first == 0xff && (second & 0xf) == 2) || (first == 0xfe && (second & 0xc0) == 0x80);
}

/* ARP and neighbour discovery from a tenant: for the port's own addresses, with the port's own MAC. */
static __always_inline __u32 hf_check_neighbour(const struct packet* p, __u32 bank, __u32 ifindex,
                                                const struct tenant_port* port) {
  const __u32* claimed = p->source;
  if (p->neighbour_has_mac && __builtin_memcmp(p->neighbour_mac, port->mac, 6) != 0)
    return HF_REASON_spoofed_neighbour;
  if (p->kind == HF_KIND_ARP) {
    /* A probe for duplicates (RFC 5227) has no sender yet: it asks for an address of its own. */
    if (p->source[3] == 0) claimed = p->destination;
  } else {
    if (p->icmp_type == 134 || p->icmp_type == 137) return HF_REASON_spoofed_neighbour;
    if (!hf_is_on_link(p->destination)) {
      const struct endpoint_entry* to = hf_find_owner(bank, p->destination, HF_PROBABLY_THERE);
      if (!to || to->tenant != HF_OWNER_NODE) return HF_REASON_destination_denied;
    }
    int unspecified = !(p->source[0] | p->source[1] | p->source[2] | p->source[3]);
    if (p->icmp_type == 136) {
      const struct endpoint_entry* target = hf_find_owner(bank, p->neighbour_target, HF_PROBABLY_THERE);
      if (!hf_is_of_port(target, ifindex)) return HF_REASON_spoofed_neighbour;
    }
    if (unspecified && p->icmp_type == 133) return HF_REASON_neighbour;
    if (unspecified) claimed = p->neighbour_target; /* duplicate address detection, RFC 4862 5.4 */
  }
  const struct endpoint_entry* owner = hf_find_owner(bank, claimed, HF_PROBABLY_THERE);
  return hf_is_of_port(owner, ifindex) ? HF_REASON_neighbour : HF_REASON_spoofed_neighbour;
}

/* Destinations no tenant sends to: multicast, broadcast, unspecified, loopback, link-local. */
static __always_inline int hf_destination_denied(const __u32* a) {
  if (a[0] == 0 && a[1] == 0 && a[2] == HF_IP4_MAPPED) {
    __u8 first = (__u8)(a[3] & 0xff), second = (__u8)(a[3] >> 8 & 0xff);
    return first == 0 || first == 127 || first >= 224 || (first == 169 && second == 254);
  }
  __u8 first = (__u8)(a[0] & 0xff), second = (__u8)(a[0] >> 8 & 0xff);
  if (first == 0xff || (first == 0xfe && (second & 0xc0) == 0x80)) return 1;
  return a[0] == 0 && a[1] == 0; /* ::, ::1, v4-compatible */
}

/* Across a tenant boundary a packet goes only to an endpoint whose live lease names this peer. */
HF_GLOBAL int hf_may_cross(struct packet* p, __u32 bank) {
  if (!p) return 0;
  struct verdict v = {};
  const struct endpoint_entry* to =
      hf_find_endpoint(bank & 1, p->destination, p->destination_port, p->protocol, HF_PROBABLY_THERE);
  if (!to) return 0;
  v.tenant = to->tenant;
  return hf_endpoint_serves(p, 1) && hf_slot_names_peer(to->slot) &&
         hf_check_slot(&v, to->slot, HF_ANY_INCARNATION, p->source, HF_REASON_endpoint, HF_REASON_no_lease) ==
             HF_REASON_endpoint;
}

/* From the tenant behind `ifindex`: tc ingress of the port's host end. */
HF_GLOBAL int hf_decide_from_tenant(struct packet* p, struct verdict* v, __u32 ifindex) {
  if (!p || !v) return HF_REASON_unclassified;
  __u32 bank = v->bank;
  const struct tenant_port* port = hf_find_port(bank, ifindex);
  if (!port) return HF_REASON_unknown_port;
  v->tenant = port->tenant;
  if (__builtin_memcmp(p->source_mac, port->mac, 6) != 0) return HF_REASON_spoofed_mac;
  if (p->vlan_tags) return HF_REASON_vlan;
  if (p->kind == HF_KIND_ARP || p->kind == HF_KIND_NEIGHBOUR) return hf_check_neighbour(p, bank, ifindex, port);

  const struct endpoint_entry* e = 0;
  if (p->fragment != HF_FRAGMENT_LATER)
    e = hf_find_endpoint(bank, p->source, p->source_port, p->protocol, HF_PROBABLY_THERE);
  /* An endpoint behind this port proves that the source is the port's own. */
  if (!e || e->ifindex != ifindex || p->kind == HF_KIND_ICMP_ERROR) {
    const struct endpoint_entry* source = hf_find_owner(bank, p->outer_source, HF_PROBABLY_THERE);
    if (!hf_is_of_port(source, ifindex)) return HF_REASON_spoofed_address;
  }

  /* A DHCP server speaks from these ports, whoever it speaks to. */
  if (p->protocol == HF_PROTO_UDP && p->kind == HF_KIND_IP &&
      (p->source_port == hf_be16(67) || p->source_port == hf_be16(547)))
    return HF_REASON_spoofed_neighbour;

  int lateral = 0;
  const struct endpoint_entry* owner = hf_find_owner(bank, p->outer_destination, HF_PROBABLY_ABSENT);
  if (owner) {
    if (owner->tenant == HF_OWNER_METADATA) return HF_REASON_metadata;
    if (owner->tenant == HF_OWNER_NODE) return HF_REASON_host;
    lateral = owner->tenant != port->tenant;
  } else if (hf_destination_denied(p->outer_destination)) {
    return HF_REASON_destination_denied;
  }
  if (p->fragment == HF_FRAGMENT_LATER) return hf_decide_fragment(p, v, ifindex, HF_FROM_TENANT);

  if (e && e->ifindex == ifindex && hf_endpoint_serves(p, 0)) {
    __u32 reason =
        hf_check_slot(v, e->slot, HF_ANY_INCARNATION, p->destination, HF_REASON_endpoint, HF_REASON_no_lease);
    if (reason == HF_REASON_endpoint && lateral && !hf_slot_names_peer(e->slot)) return HF_REASON_lateral;
    return hf_passed_as(p, reason);
  }

  struct flow_key key = {};
  hf_flow_key_from(&key, p, ifindex);
  const struct flow* flow = hf_find_flow(port->tenant, &key);
  if (p->kind == HF_KIND_ICMP_ERROR && !flow) return HF_REASON_icmp_unrelated;
  __u32 reason = hf_check_slot(v, port->egress_slot, HF_ANY_INCARNATION, p->destination, HF_REASON_egress,
                               HF_REASON_no_egress_lease);
  if (reason != HF_REASON_egress) return reason;
  if (lateral && !hf_may_cross(p, bank)) return HF_REASON_lateral;
  if (flow && flow->slot == port->egress_slot && flow->incarnation == hf_gate_incarnation(v->gate))
    return hf_passed_as(p, HF_REASON_flow);
  if (p->kind == HF_KIND_ICMP_ERROR) return HF_REASON_icmp_unrelated;
  /* Only what the tenant begins makes a flow. A connection that is older than this egress lease is not that: a
   * flow made of it would let the other side's packets in again (G5). */
  if (!p->initiates && p->protocol != HF_PROTO_UDP) return HF_REASON_lease_revoked;
  return HF_REASON_egress;
}

HF_GLOBAL int hf_decide_from_uplink_flow(struct packet* p, struct verdict* v, __u32 ifindex) {
  if (!p || !v) return HF_REASON_unclassified;
  struct flow_key key = {};
  hf_flow_key_to(&key, p, ifindex);
  const struct flow* flow = hf_find_flow(v->tenant, &key);
  if (!flow) return hf_no_flow(p);
  return hf_check_slot(v, flow->slot, flow->incarnation, p->source, HF_REASON_flow, HF_REASON_lease_revoked);
}

/* From outside, on an uplink: early drop only of what is addressed to tenant property without a lease or a
 * flow, and of what claims a tenant's source. All else is the stack's business. `parse_reason` is what the
 * parser had against the packet, if anything: it counts only against tenant property. */
static __always_inline __u32 hf_decide_from_uplink(struct packet* p, struct verdict* v, __u32 parse_reason) {
  __u32 bank = v->bank;
  if (p->kind != HF_KIND_IP && p->kind != HF_KIND_ICMP_ERROR) return HF_REASON_not_ours;
  const struct endpoint_entry* e = 0;
  if (!parse_reason && p->fragment != HF_FRAGMENT_LATER)
    e = hf_find_endpoint(bank, p->destination, p->destination_port, p->protocol, HF_PROBABLY_ABSENT);
  __u32 reason;
  if (e && hf_endpoint_serves(p, 1)) {
    v->tenant = e->tenant;
    reason = hf_check_slot(v, e->slot, HF_ANY_INCARNATION, p->source, HF_REASON_endpoint, HF_REASON_no_lease);
  } else {
    /* Of what an uplink carries, most may be the host's own or somebody else's. */
    const struct endpoint_entry* owner = hf_find_owner(bank, p->outer_destination, HF_PROBABLY_ABSENT);
    if (!owner || owner->tenant >= HF_TENANTS_MAX) {
      reason = HF_REASON_not_ours;
    } else {
      v->tenant = owner->tenant;
      if (parse_reason) return parse_reason;
      if (p->fragment == HF_FRAGMENT_LATER) {
        reason = hf_decide_fragment(p, v, 0, HF_FROM_UPLINK);
      } else if (hf_slot_is_open(owner->slot)) {
        reason = hf_decide_from_uplink_flow(p, v, owner->ifindex);
      } else { /* without an egress lease the port has no live flows: no need to look for one */
        reason = hf_no_flow(p);
      }
    }
  }
  /* Whoever is dropped anyway need not be asked who he claims to be. */
  if (!hf_reason_passes(reason)) return reason;
  const struct endpoint_entry* source = hf_find_owner(bank, p->outer_source, HF_PROBABLY_ABSENT);
  if (source && source->tenant < HF_TENANTS_MAX) return HF_REASON_spoofed_address;
  return hf_passed_as(p, reason);
}

#endif
