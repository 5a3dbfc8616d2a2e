// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/* Asks the data plane's `explain` one question after another, within one BPF_PROG_TEST_RUN: puts
 * the next frame into the packet and tail-calls it; it leaves its verdict at the packet's head,
 * where the next run finds it. A system call for each would leave a verdict a hundredth of the
 * time. */
#include "verdict_tags.h"

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "abi.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct {
  __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u32);
} explain SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, QUESTIONS_MAX);
  __type(key, __u32);
  __type(value, struct question);
} questions SEC(".maps");

/* By question: the tag it was answered with last. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, QUESTIONS_MAX);
  __type(key, __u32);
  __type(value, struct alike);
} latest SEC(".maps");

/* The tags before that, and how often. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 1 << 21);
  __type(key, struct verdict_tag);
  __type(value, __u64);
} tags SEC(".maps");

struct asking asking = {};

static __always_inline void keep(const struct alike* alike) {
  __u64* count = bpf_map_lookup_elem(&tags, &alike->tag);
  if (count)
    *count += alike->count;
  else if (bpf_map_update_elem(&tags, &alike->tag, &alike->count, BPF_NOEXIST))
    asking.failed++;
}

static __always_inline void note(const struct verdict* v, __u32 after) {
  __u32 question = asking.at;
  struct alike* alike = bpf_map_lookup_elem(&latest, &question);
  if (!alike) return;
  const struct verdict_tag tag = {.question = question,
                                  .reason = v->reason,
                                  .bank = v->bank,
                                  .slot = v->slot,
                                  .incarnation = hf_gate_incarnation(v->gate),
                                  .before = asking.before,
                                  .after = after};
  asking.asked++;
  if (alike->count && __builtin_memcmp(&alike->tag, &tag, sizeof(tag)) == 0) {
    alike->count++;
    return;
  }
  if (alike->count) keep(alike);
  alike->tag = tag;
  alike->count = 1;
}

SEC("tc")
int ask(struct __sk_buff* skb) {
  /* A full barrier, twice: the span is read when the last verdict had read everything, and before
   * the next one reads anything. */
  __sync_fetch_and_add(&asking.fence, 1);
  const __u32 span = *(const volatile __u32*)&asking.span;
  __sync_fetch_and_add(&asking.fence, 1);
  void* data = (void*)(long)skb->data;
  if (data + QUESTION_BYTES > (void*)(long)skb->data_end) return TC_ACT_SHOT;
  if (asking.answered) note(data, span);
  __u32 next = asking.answered ? asking.at + 1 : asking.first;
  if (next >= asking.end) next = asking.first;
  const struct question* question = bpf_map_lookup_elem(&questions, &next);
  if (!question) return TC_ACT_SHOT;
  __builtin_memcpy(data, question->frame, QUESTION_BYTES);
  asking.at = next;
  asking.before = span;
  asking.answered = 1;
  skb->mark = asking.hook;
  bpf_tail_call(skb, &explain, 0);
  asking.failed++;
  return TC_ACT_SHOT;
}
