// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* The programs. Each hook: linearize, parse, decide, commit. Each has an explain twin that runs the same
 * parse and decide and writes the verdict over the head of the test packet instead of committing. */
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
static __always_inline __u32 hf_parse_skb(struct packet* p, struct __sk_buff* skb) {
  __u32 wanted = skb->len < HF_HEADERS_MAX ? skb->len : HF_HEADERS_MAX;
  if ((void*)(long)skb->data + wanted > (void*)(long)skb->data_end) bpf_skb_pull_data(skb, wanted);
  if (skb->vlan_present) p->vlan_tags++;
  return hf_parse(p, (void*)(long)skb->data, (void*)(long)skb->data_end, skb->len);
}

static __always_inline int hf_commit_skb(struct __sk_buff* skb, struct packet* p, struct verdict* v,
                                         __u32 direction) {
  struct hook at = {
      .ifindex = skb->ifindex, .direction = direction, .length = skb->len, .gso_size = skb->gso_size};
  return hf_commit(p, v, &at) ? HF_TC_PASS : HF_TC_DROP;
}

static __always_inline void hf_verdict_to_tenant(struct __sk_buff* skb, struct packet* p, struct verdict* v) {
  hf_begin(v);
  v->reason = hf_parse_skb(p, skb);
  if (!v->reason) v->reason = hf_decide_to_tenant(p, skb->ifindex, v);
}

static __always_inline void hf_verdict_from_tenant(struct __sk_buff* skb, struct packet* p, struct verdict* v) {
  hf_begin(v);
  v->reason = hf_parse_skb(p, skb);
  if (!v->reason) v->reason = hf_decide_from_tenant(p, v, skb->ifindex);
}

SEC("tc")
int to_tenant(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_verdict_to_tenant(skb, &p, &v);
  return hf_commit_skb(skb, &p, &v, HF_TO_TENANT);
}

SEC("tc")
int from_tenant(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_verdict_from_tenant(skb, &p, &v);
  return hf_commit_skb(skb, &p, &v, HF_FROM_TENANT);
}

SEC("xdp")
int uplink_xdp(struct xdp_md* xdp) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  __u32 length = xdp->data_end - xdp->data;
  hf_begin(&v);
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
  __u32 wrong = hf_parse_skb(&p, skb);
  v.reason = hf_decide_from_uplink(&p, &v, wrong);
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

static __always_inline int hf_answer(struct __sk_buff* skb, const struct verdict* v) {
  void* data = (void*)(long)skb->data;
  if (data + sizeof(*v) > (void*)(long)skb->data_end) return HF_TC_DROP;
  __builtin_memcpy(data, v, sizeof(*v));
  return HF_TC_PASS;
}

SEC("tc")
int explain_to_tenant(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_verdict_to_tenant(skb, &p, &v);
  return hf_answer(skb, &v);
}

SEC("tc")
int explain_from_tenant(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_verdict_from_tenant(skb, &p, &v);
  return hf_answer(skb, &v);
}

SEC("tc")
int explain_from_uplink(struct __sk_buff* skb) {
  struct packet p = {};
  struct verdict v = HF_NEW_VERDICT;
  hf_begin(&v);
  __u32 wrong = hf_parse_skb(&p, skb);
  v.reason = hf_decide_from_uplink(&p, &v, wrong);
  return hf_answer(skb, &v);
}
