// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* The receiver of `scripts/bench revoke`: at ingress of the tenant's own interface, behind
 * everything that enforces, it notes when each UDP packet arrived. It knows nothing of leases. */
#include "revoke.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct arrivals arrived[BENCH_CPUS_MAX] = {};

SEC("tc")
int receive(struct __sk_buff* skb) {
  struct ethhdr* eth = (void*)(long)skb->data;
  struct iphdr* ip = (void*)(eth + 1);
  if ((void*)(ip + 1) > (void*)(long)skb->data_end) return TC_ACT_UNSPEC;
  if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP) return TC_ACT_UNSPEC;
  struct arrivals* here = &arrived[bpf_get_smp_processor_id() & (BENCH_CPUS_MAX - 1)];
  here->last_boot_ns = bpf_ktime_get_boot_ns();
  here->packets++;
  /* Nobody listens: an answer would be ICMP. */
  return TC_ACT_SHOT;
}
