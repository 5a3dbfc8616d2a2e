// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* The programs. Each hook: linearize, parse, decide, commit. `explain` runs the same parse and decide for
 * whichever hook it is asked about, and writes the verdict over the head of the test packet instead. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#include "commit.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* tcx reads TC_ACT_UNSPEC as TCX_NEXT: allow, and let others still run. Never OK. */
#define HF_TC_PASS TC_ACT_UNSPEC
#define HF_TC_DROP TC_ACT_SHOT

#define HF_NEW_VERDICT {.slot = HF_NO_SLOT, .tenant = HF_TENANTS_MAX}

/* Makes the headers linear, then parses. A tag that the NIC or veth took out of band counts like one in band.
 */
static __always_inline __u32 hf_parse_skb(struct __sk_buff* skb, struct packet* p) {
  __u32 wanted = skb->len < HF_HEADERS_MAX ? skb->len : HF_HEADERS_MAX;
  if ((void*)(long)skb->data + wanted > (void*)(long)skb->data_end) bpf_skb_pull_data(skb, wanted);
  __u32 wrong = hf_parse(p, (void*)(long)skb->data, (void*)(long)skb->data_end, skb->len);
  if (skb->vlan_present) p->vlan_tags++;
  return wrong;
}

static __always_inline int hf_commit_skb(struct __sk_buff* skb, struct packet* p, struct verdict* v,
                                         __u32 direction) {
  struct hook at = {
      .ifindex = skb->ifindex, .direction = direction, .length = skb->len, .gso_size = skb->gso_size};
  return hf_commit(p, v, &at) ? HF_TC_PASS : HF_TC_DROP;
}

SEC("tc")
int to_tenant(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_begin(&v);
  v.reason = hf_parse_skb(skb, &p);
  if (!v.reason) v.reason = hf_decide_to_tenant(&p, skb->ifindex, &v);
  return hf_commit_skb(skb, &p, &v, HF_TO_TENANT);
}

SEC("tc")
int from_tenant(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_begin(&v);
  v.reason = hf_parse_skb(skb, &p);
  if (!v.reason) v.reason = hf_decide_from_tenant(&p, &v, skb->ifindex);
  return hf_commit_skb(skb, &p, &v, HF_FROM_TENANT);
}

SEC("xdp")
int uplink_xdp(struct xdp_md* xdp) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_begin(&v);
  __u32 length = xdp->data_end - xdp->data;
  __u32 wrong = hf_parse(&p, (void*)(long)xdp->data, (void*)(long)xdp->data_end, length);
  v.reason = hf_decide_from_uplink(&p, &v, wrong);
  struct hook at = {.ifindex = xdp->ingress_ifindex, .direction = HF_FROM_UPLINK, .length = length};
  return hf_commit(&p, &v, &at) ? XDP_PASS : XDP_DROP;
}

/* Where the driver has no native XDP: the same early drop at tc ingress. */
SEC("tc")
int uplink_tc(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_begin(&v);
  v.reason = hf_decide_from_uplink(&p, &v, hf_parse_skb(skb, &p));
  return hf_commit_skb(skb, &p, &v, HF_FROM_UPLINK);
}

/* Suspend and resume: boot time leaps while jiffies stand still, so every cached reading is void. Fires with
 * other CPUs offline and before any packet of after. */
SEC("raw_tp/suspend_resume")
int clock_leap(void* context) {
  (void)context;
  __u32 zero = 0;
  struct control* c = bpf_map_lookup_elem(&control, &zero);
  if (c) __sync_fetch_and_add(&c->clock_epoch, 1);
  return 0;
}

/* Verified by itself, as in decide.h. The hooks inline the same: a call would cost each packet. */
HF_GLOBAL int hf_explain_parse(struct __sk_buff* skb, struct packet* p) {
  if (!p) return HF_REASON_unclassified;
  return (int)hf_parse_skb(skb, p);
}

/* BPF_PROG_TEST_RUN only. `mark`: the direction to ask about. */
SEC("tc")
int explain(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  __u32 direction = skb->mark;
  hf_begin(&v);
  __u32 wrong = hf_explain_parse(skb, &p);
  if (direction == HF_FROM_UPLINK)
    v.reason = hf_decide_from_uplink(&p, &v, wrong);
  else if (wrong)
    v.reason = wrong;
  else if (direction == HF_TO_TENANT)
    v.reason = hf_decide_to_tenant(&p, skb->ifindex, &v);
  else if (direction == HF_FROM_TENANT)
    v.reason = hf_decide_from_tenant(&p, &v, skb->ifindex);

  void* data = (void*)(long)skb->data;
  if (data + sizeof(v) > (void*)(long)skb->data_end) return HF_TC_DROP;
  __builtin_memcpy(data, &v, sizeof(v));
  return HF_TC_PASS;
}
