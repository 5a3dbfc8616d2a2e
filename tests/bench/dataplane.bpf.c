// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* The programs of `scripts/bench dataplane`. `draw` is the harness: it puts a key drawn uniformly
 * from all leases into the packet and tail-calls one variant: the gate, `floor_gate` or `nothing`.
 * `flood` makes the frames of the veth comparison. */
#include "dataplane.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
  __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u32);
} variant SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1); /* sized: as many as there are leases */
  __type(key, struct floor_key);
  __type(value, __u64);
} floor_keys SEC(".maps");

struct draw_state drawn = {.random = 2463534242U, .keys = 1};

struct frame {
  struct ethhdr eth;
  struct iphdr ip;
  struct udphdr udp;
} __attribute__((packed));

/* Xorshift (Marsaglia 2003): a helper call would cost as much as what is measured. */
static __always_inline void draw_key(struct frame* frame) {
  __u32 x = drawn.random;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  drawn.random = x;
  __u32 key = drawn.first + (__u32)((__u64)x * drawn.keys >> 32);
  frame->ip.daddr = bpf_htonl(BENCH_ADDRESS_FIRST + (key & (BENCH_ADDRESSES - 1)));
  frame->udp.dest = bpf_htons((__u16)(BENCH_PORT_FIRST + (key >> BENCH_ADDRESSES_SHIFT)));
}

SEC("tc")
int draw(struct __sk_buff* skb) {
  struct frame* frame = (void*)(long)skb->data;
  if ((void*)(frame + 1) > (void*)(long)skb->data_end) return TC_ACT_SHOT;
  draw_key(frame);
  bpf_tail_call(skb, &variant, 0);
  return TC_ACT_SHOT;
}

SEC("tc")
int nothing(struct __sk_buff* skb) {
  (void)skb;
  return TC_ACT_UNSPEC;
}

/* The least that a packet filter by (address, port) can do: parse at fixed offsets, look up once.
 */
SEC("tc")
int floor_gate(struct __sk_buff* skb) {
  struct frame* frame = (void*)(long)skb->data;
  if ((void*)(frame + 1) > (void*)(long)skb->data_end) return TC_ACT_SHOT;
  if (frame->eth.h_proto != bpf_htons(ETH_P_IP) || frame->ip.protocol != IPPROTO_UDP)
    return TC_ACT_SHOT;
  struct floor_key key = {
      .address = frame->ip.daddr, .port = frame->udp.dest, .protocol = frame->ip.protocol};
  return bpf_map_lookup_elem(&floor_keys, &key) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

__u32 flood_ifindex = 0;

SEC("xdp")
int flood(struct xdp_md* xdp) {
  struct frame* frame = (void*)(long)xdp->data;
  if ((void*)(frame + 1) > (void*)(long)xdp->data_end) return XDP_ABORTED;
  draw_key(frame);
  return (int)bpf_redirect(flood_ifindex, 0);
}
