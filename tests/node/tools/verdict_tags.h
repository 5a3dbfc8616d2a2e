/* SPDX-License-Identifier: Apache-2.0 OR BSD-2-Clause OR GPL-2.0 */
/* What the program of verdict_tags and its userspace share. */
#ifndef HOLDFAST_NODE_VERDICT_TAGS_H
#define HOLDFAST_NODE_VERDICT_TAGS_H

#include <linux/types.h>

enum {
  QUESTIONS_MAX = 1024,
  QUESTION_BYTES = 96, /* of a frame: the longest has 90; what trails the IP packet is padding */
};

struct question {
  __u8 frame[QUESTION_BYTES];
};

struct verdict_tag {
  __u32 question;
  __u32 reason; /* from here as in struct verdict */
  __u32 bank;
  __u32 slot;
  __u32 incarnation; /* of the gate word */
  __u32 before;      /* the span before the verdict was begun */
  __u32 after;       /* the span when it had ended */
  __u32 reserved;    /* zero */
};

/* Verdicts on one question that followed each other with the same tag. */
struct alike {
  struct verdict_tag tag;
  __u64 count;
};

struct asking {
  __u32 span;  /* where the test is; userspace writes it at any time */
  __u32 hook;  /* the rest userspace writes between runs: hf_direction, */
  __u32 first; /* the questions to ask, */
  __u32 end;
  __u32 at;       /* the one asked last, */
  __u32 answered; /* whether the packet holds its answer */
  __u32 before;
  __u32 fence;
  __u64 asked;
  __u64 failed; /* `explain` was not there, or a tag found no room */
};

#endif
