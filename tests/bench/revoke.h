/* SPDX-License-Identifier: Apache-2.0 OR BSD-2-Clause OR GPL-2.0 */
/* What the receiver's program and the tool of `scripts/bench revoke` share. */
#ifndef HOLDFAST_BENCH_REVOKE_H
#define HOLDFAST_BENCH_REVOKE_H

#include <linux/types.h>

enum { BENCH_CPUS_MAX = 64 };

/* What one CPU saw arrive; a cache line of its own. */
struct arrivals {
  __u64 last_boot_ns;
  __u64 packets;
  __u64 reserved[6]; /* zero */
};

#endif
