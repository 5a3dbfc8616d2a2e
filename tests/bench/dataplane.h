/* SPDX-License-Identifier: Apache-2.0 OR BSD-2-Clause OR GPL-2.0 */
/* What the programs and the tool of `scripts/bench dataplane` share. Key number k stands for
 * address BENCH_ADDRESS_FIRST + k % BENCH_ADDRESSES and UDP port BENCH_PORT_FIRST + k /
 * BENCH_ADDRESSES; dataplane.py numbers them alike. */
#ifndef HOLDFAST_BENCH_DATAPLANE_H
#define HOLDFAST_BENCH_DATAPLANE_H

#include <linux/types.h>

enum {
  BENCH_ADDRESS_FIRST = 0x0a5a0010, /* 10.90.0.16 */
  BENCH_ADDRESSES_SHIFT = 4,
  BENCH_ADDRESSES = 1 << BENCH_ADDRESSES_SHIFT,
  BENCH_PORT_FIRST = 1024, /* a million leases end at port 63523 */
};

struct floor_key {
  __u32 address; /* network order */
  __u16 port;    /* network order */
  __u8 protocol;
  __u8 reserved; /* zero */
};

/* Keys are drawn from [first, first + keys). */
struct draw_state {
  __u32 random;
  __u32 first;
  __u32 keys;
};

#endif
