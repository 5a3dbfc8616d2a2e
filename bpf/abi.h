/* SPDX-License-Identifier: Apache-2.0 OR BSD-2-Clause OR GPL-2.0 */
/* The contract between Holdfast's kernel programs and its daemon: every struct that both sides see is
 * declared here and nowhere else. Compiles as BPF C and as C++. Addresses are in network order, IPv4 as
 * IPv4-mapped IPv6 (::ffff:a.b.c.d); L4 ports are in network order; everything else is in host order.
 * Change a layout or a meaning: raise HF_ABI_VERSION, which names the pin directory (G12: an old pin is
 * refused, never reused). */
#ifndef HOLDFAST_ABI_H
#define HOLDFAST_ABI_H

#include <linux/types.h>

#ifdef __cplusplus
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wold-style-cast" /* this is C as well */
#define HF_ABI_ASSERT(cond, why) static_assert(cond, why)
extern "C++" {
namespace holdfast::abi {
#else
#define HF_ABI_ASSERT(cond, why) _Static_assert(cond, why)
#endif

enum {
  HF_ABI_VERSION = 5,
  HF_TENANTS_MAX = 4096,   /* index into `tenants`; a flow and a fragment table each */
  HF_FRAGMENTS_MAX = 1024, /* datagrams in pieces, of one tenant: its LRU table takes 180 KiB */
  HF_SLOTS_MAX = 1 << 20,  /* the largest --leases-max: 32 MiB of slots, 192 MiB of records, 4 MiB of filter */
  HF_NO_SLOT = 0xffffffff, /* "no lease slot": a verdict that no lease decided */
  HF_VLAN_DEPTH_MAX = 2,   /* QinQ; a third tag is malformed */
  HF_IPV6_EXTENSIONS_MAX = 6, /* RFC 8200 lists six kinds, each at most once except one */
  HF_LEASE_TERM_MAX_S = 300,  /* G3 */
};

/* ---- the gate word ---------------------------------------------------------------------------------
 * The first u64 of a slot decides: incarnation in the low 24 bits, deadline in the high 40, in units of
 * 2^20 ns of CLOCK_BOOTTIME, rounded down. Deadline 0 is deny. One load decides, one store revokes, a
 * renewal is a compare-and-exchange, so that it never undoes a revocation. */
enum { HF_GATE_INCARNATION_BITS = 24, HF_GATE_TICK_SHIFT = 20 };
#define HF_GATE_INCARNATION_MASK 0xffffffULL

static inline __u64 hf_gate(__u64 deadline_boot_ns, __u32 incarnation) {
  return (deadline_boot_ns >> HF_GATE_TICK_SHIFT << HF_GATE_INCARNATION_BITS) |
         (incarnation & HF_GATE_INCARNATION_MASK);
}
static inline __u32 hf_gate_incarnation(__u64 gate) {
  return (__u32)(gate & HF_GATE_INCARNATION_MASK);
}
static inline __u64 hf_gate_deadline_boot_ns(__u64 gate) {
  return gate >> HF_GATE_INCARNATION_BITS << HF_GATE_TICK_SHIFT;
}

enum hf_slot_flags {
  HF_SLOT_PEER = 1, /* the lease names a peer prefix: see its lease_record */
};

/* Hot: what a packet reads of a lease. Index = slot. A slot belongs to one resource (an endpoint, or the
 * egress of a port) for as long as the policy in force names that resource. */
struct lease_slot {
  __u64 gate;
  __u32 tenant;       /* index into `tenants` */
  __u32 tenant_epoch; /* the tenant's epoch when the lease was bound */
  __u32 flags;        /* hf_slot_flags */
  __u32 reserved[3];  /* zero */
};
HF_ABI_ASSERT(sizeof(struct lease_slot) == 32, "lease_slot is ABI");

/* Index = tenant. Revoking all of a tenant is one store to `epoch`, which never goes back. */
struct tenant_state {
  __u32 epoch;
  __u32 flags; /* hf_tenant_flags */
  __u64 id;    /* the policy's immutable tenant id; 0 = unused entry */
};
enum hf_tenant_flags { HF_TENANT_DISABLED = 1 };
HF_ABI_ASSERT(sizeof(struct tenant_state) == 16, "tenant_state is ABI");

/* How a bank's endpoint table and its filter are addressed; written before the bank is turned to. */
struct endpoint_hash {
  __u64 seed;
  __u32 mask;        /* lines - 1; lines is a power of two */
  __u32 filter_mask; /* words of the bank's part of `endpoint_filter` - 1; likewise */
};
HF_ABI_ASSERT(sizeof(struct endpoint_hash) == 16, "endpoint_hash is ABI");

/* One element. The word every packet reads once, first. */
struct control {
  __u32 active_bank; /* 0 or 1: index into the policy_* outer maps */
  __u32 clock_epoch; /* grows when the machine suspends or resumes: voids every cached clock reading */
  __u64 generation;  /* of the policy in the active bank */
  __u8 policy_digest[32];
  struct endpoint_hash endpoint_hash[2]; /* by bank */
};
HF_ABI_ASSERT(sizeof(struct control) == 80, "control is ABI");

/* A CPU's last reading of CLOCK_BOOTTIME, good for as long as `jiffies` and `clock_epoch` stay what they
 * were. Reading the clock costs half of a verdict; this costs a load. */
struct clock_reading {
  __u64 boot_ns;
  __u64 jiffies;
  __u32 clock_epoch;
  __u32 reserved; /* zero */
};
HF_ABI_ASSERT(sizeof(struct clock_reading) == 24, "clock_reading is ABI");

enum {
  /* Nearer to its deadline than this, a lease is judged by the true clock. Jiffies may stand still while
   * the CPU that advances them is held up; after 5 ticks without progress another takes over (tick_sched_
   * do_timer), at the longest 50 ms with HZ=100. */
  HF_CLOCK_NEAR_NS = 64000000,
};

/* ---- policy tables: inner maps, published whole, immutable while a packet can see them --------------- */

/* Names an endpoint, or with HF_PROTO_ADDRESS an address itself, whose entry says whose it is. */
struct endpoint_key {
  __u32 address[4];
  __u16 port;    /* network order; 0 for ICMP echo and HF_PROTO_ADDRESS */
  __u8 protocol; /* IPPROTO_TCP, _UDP, _ICMP (echo over v4), _ICMPV6 (echo over v6), or HF_PROTO_ADDRESS */
  __u8 reserved; /* zero */
};
HF_ABI_ASSERT(sizeof(struct endpoint_key) == 20, "endpoint_key is ABI");

enum {
  HF_PROTO_ADDRESS = 255, /* reserved by IANA: the parser refuses a packet of that protocol */
  /* In place of a tenant: an address that tenants do not reach. */
  HF_OWNER_NODE = HF_TENANTS_MAX,         /* one of the node's own */
  HF_OWNER_METADATA = HF_TENANTS_MAX + 1, /* a metadata service's */
};

/* The endpoint table is an immutable cuckoo hash (Pagh and Rodler 2001; buckets of two, as Dietzfelbinger and
 * Weidling 2007): an array of cache lines with two entries each. A key stands in one of two lines, so a
 * lookup costs one cache miss, seldom two, where the kernel's own hash map costs at least two; and since the
 * table is never written while a packet can see it, no element is ever recycled under a reader.
 */
struct endpoint_entry {
  struct endpoint_key key; /* protocol 0: empty */
  __u32 slot;              /* of an address: its port's egress slot, without a lease there no flow can match */
  __u32 ifindex;           /* the tenant port behind which it lives; 0 while that is not there */
  __u32 tenant;            /* index; of an address also HF_OWNER_NODE or HF_OWNER_METADATA */
};
HF_ABI_ASSERT(sizeof(struct endpoint_entry) == 32, "endpoint_entry is ABI");

enum { HF_LINE_ENTRIES = 2 };

struct endpoint_line {
  struct endpoint_entry entries[HF_LINE_ENTRIES];
};
HF_ABI_ASSERT(sizeof(struct endpoint_line) == 64, "endpoint_line is a cache line");

/* Both line numbers of a key, in the low and the high half. Multiply-xorshift after the finalizer of
 * MurmurHash3 (Appleby); the seed is drawn for each table. */
static inline __u64 hf_endpoint_hash(const __u32* address, __u16 port, __u8 protocol, __u64 seed) {
  __u64 a = (__u64)address[0] << 32 | address[1];
  __u64 b = (__u64)address[2] << 32 | address[3];
  __u64 c = (__u64)port << 8 | protocol;
  __u64 h = (a ^ seed) * 0x9e3779b97f4a7c15ULL;
  h ^= h >> 32;
  h = (h ^ b) * 0xff51afd7ed558ccdULL;
  h ^= h >> 29;
  h = (h ^ c) * 0xc4ceb9fe1a85ec53ULL;
  return h ^ h >> 32;
}

/* The filter says of most keys that are not in the table that they are certainly not: a Bloom filter whose
 * bits of one key stand in one word (blocked: Putze, Sanders and Singler 2007). A lookup in the table, an
 * inner map of any size, is a call; one in the filter, a plain array, is inlined and reads one cache line. So
 * it is asked first where a key is probably absent: the source of a packet, or what a flood is addressed to.
 *
 * Each bank has half of it, written whole before the bank is turned to. Of every key in the table all bits
 * are set; a key that seems to be there is looked up. */
enum {
  HF_FILTER_KEYS_PER_WORD = 4, /* with 4 bits each: about one absent key in 200 seems to be there */
  HF_FILTER_WORDS_MIN = 1024,  /* of a bank: room for the addresses where leases are few */
};

/* The word comes from the upper half of the hash, the bits in it from the lower. */
static inline __u32 hf_filter_word(__u64 hash, __u32 bank, const struct endpoint_hash* how) {
  return bank * (how->filter_mask + 1) + ((__u32)(hash >> 32) & how->filter_mask);
}
static inline __u64 hf_filter_bits(__u64 hash) {
  return 1ULL << (hash >> 26 & 63) | 1ULL << (hash >> 20 & 63) | 1ULL << (hash >> 14 & 63) |
         1ULL << (hash >> 8 & 63);
}

/* Key: interface index (u32). */
struct tenant_port {
  __u32 tenant;
  __u32 egress_slot;
  __u8 mac[6];
  __u16 reserved; /* zero */
};
HF_ABI_ASSERT(sizeof(struct tenant_port) == 16, "tenant_port is ABI");

/* ---- flows, and datagrams in pieces: an LRU table of each a tenant ------------------------------------ */

struct flow_key {
  __u32 local[4];
  __u32 remote[4];
  __u16 local_port;  /* ICMP echo: the identifier */
  __u16 remote_port; /* ICMP echo: 0 */
  __u32 ifindex;
  __u8 protocol;
  __u8 reserved[3]; /* zero */
};
HF_ABI_ASSERT(sizeof(struct flow_key) == 44, "flow_key is ABI");

/* LRU tables recycle elements under a reader, so the value carries its key and is compared after the load. */
struct flow {
  struct flow_key key;
  __u32 slot;
  __u32 incarnation; /* of the slot's gate when the flow began: a revoked lease's flows never revive */
  __u32 reserved;    /* zero */
};
HF_ABI_ASSERT(sizeof(struct flow) == 56, "flow is ABI");

/* A fragmented datagram whose first fragment was allowed: later ones share its fate while its lease lives. */
struct fragment_key {
  __u32 source[4];
  __u32 destination[4];
  __u32 identification;
  __u32 ifindex;
  __u8 protocol;
  __u8 direction;   /* hf_direction */
  __u8 reserved[2]; /* zero */
};
HF_ABI_ASSERT(sizeof(struct fragment_key) == 44, "fragment_key is ABI");

struct fragment_state {
  struct fragment_key key;
  __u32 slot;
  __u32 incarnation;
  __u32 next_offset; /* bytes; a fragment that starts below it overlaps */
  __u64 first_boot_ns;
};
HF_ABI_ASSERT(sizeof(struct fragment_state) == 64, "fragment_state is ABI");

/* ---- verdicts, counters, events ---------------------------------------------------------------------- */

enum hf_reason {
#define HF_REASON(name, verdict, text) HF_REASON_##name,
#include "reasons.def"
#undef HF_REASON
  HF_REASON_COUNT,
};

enum hf_direction {
  HF_FROM_TENANT = 1, /* tc ingress of a tenant port */
  HF_TO_TENANT = 2,   /* tc egress of a tenant port */
  HF_FROM_UPLINK = 3, /* XDP, or tc ingress, of an uplink */
};

/* Whether a reason is a pass: one bit a reason, from the list. */
#define HF_CLASS_pass 1ULL
#define HF_CLASS_drop 0ULL
static inline int hf_reason_passes(__u32 reason) {
  const __u64 passes = 0
#define HF_REASON(name, verdict, text) | (HF_CLASS_##verdict << HF_REASON_##name)
#include "reasons.def"
#undef HF_REASON
      ;
  return (int)(passes >> (reason & 63) & 1);
}
HF_ABI_ASSERT(HF_REASON_COUNT <= 64, "hf_reason_passes holds one bit a reason");

/* Index into `reason_counters`: each hook counts for itself, so that a packet that two hooks see is exact
 * in both. */
static inline __u32 hf_reason_index(__u32 direction, __u32 reason) {
  return (direction - 1) * HF_REASON_COUNT + reason;
}

/* What a verdict function answers: pure, nothing is changed by making one. */
struct verdict {
  __u32 reason;      /* hf_reason; its class in reasons.def says pass or drop */
  __u32 slot;        /* of the lease that decided, or HF_NO_SLOT */
  __u32 tenant;      /* HF_TENANTS_MAX if none is known */
  __u32 bank;        /* the policy bank it was made under */
  __u64 gate;        /* the gate word that decided, 0 if none */
  __u64 now_boot_ns; /* 0 if no clock was needed */
};
HF_ABI_ASSERT(sizeof(struct verdict) == 32, "verdict is ABI");

/* Per-CPU, exact. Packets count GSO segments, bytes count what the wire would carry. */
struct counter {
  __u64 packets;
  __u64 bytes;
};

struct reason_counter {
  struct counter total;
  __u64 events_lost;      /* a drop event was due, the ring was full */
  __u64 events_unsampled; /* drops beyond one event a reason, CPU and jiffy */
  __u64 last_event_jiffy;
};
HF_ABI_ASSERT(sizeof(struct reason_counter) == 40, "reason_counter is ABI");

struct tenant_counter {
  struct counter to_tenant;   /* passed */
  struct counter from_tenant; /* passed: metered egress */
  struct counter dropped;
};
HF_ABI_ASSERT(sizeof(struct tenant_counter) == 48, "tenant_counter is ABI");

struct drop_event {
  __u64 time_boot_ns;
  struct verdict verdict;
  __u32 source[4];
  __u32 destination[4];
  __u16 source_port;
  __u16 destination_port;
  __u32 ifindex;
  __u32 length; /* bytes on the wire */
  __u8 protocol;
  __u8 direction;   /* hf_direction */
  __u8 reserved[2]; /* zero */
};
HF_ABI_ASSERT(sizeof(struct drop_event) == 88, "drop_event is ABI");

/* ---- lease records: cold, index = slot ---------------------------------------------------------------- */

enum hf_holder_kind { HF_HOLDER_UID = 1, HF_HOLDER_CGROUP = 2, HF_HOLDER_KEY = 3 };
enum hf_lease_phase { HF_PHASE_ACTIVE = 1, HF_PHASE_GRACE = 2, HF_PHASE_FENCED = 3, HF_PHASE_CHECKPOINT = 4 };
enum hf_resource_kind { HF_RESOURCE_ENDPOINT = 1, HF_RESOURCE_EGRESS = 2 };

/* All that adopting a lease after a crash needs, and its peer prefix, which the data plane reads. Written
 * before the gate opens; `incarnation` is stored last and must equal the gate's, else the bind was not
 * finished and is undone. */
struct lease_record {
  __u64 lease_id[2];
  __u64 granted_boot_ns;
  __u64 generation; /* grows at bind, renew, revoke, teardown */
  __u64 tenant_id;
  __u64 holder;      /* uid, or cgroup id; 0 of a key */
  __u32 holder_kind; /* hf_holder_kind */
  __u32 incarnation;
  __u32 next_slot;  /* further slots of the same lease, or HF_NO_SLOT */
  __u32 first_slot; /* the slot that leads the lease */
  __u32 grace_ms;
  __u32 resource_kind;          /* hf_resource_kind */
  __u32 ifindex;                /* of the port, when bound */
  __u32 peer_prefix_bits;       /* 0..128 over `peer`, valid with HF_SLOT_PEER */
  struct endpoint_key endpoint; /* HF_RESOURCE_ENDPOINT */
  __u32 peer[4];
  __u32 phase; /* hf_lease_phase */
  /* The token by which the lease was granted or last renewed; 0 when there is none. */
  __u64 issuer;        /* how the thumbprint of its issuer's key begins */
  __u64 head;          /* how the digest of its head begins */
  __u64 token;         /* how its own digest, its leaf, begins */
  __u64 issued_s;      /* since 1970, as it says */
  __u8 holder_key[32]; /* HF_HOLDER_KEY: the key's thumbprint */
  __u64 reserved;      /* zero */
};
HF_ABI_ASSERT(sizeof(struct lease_record) == 192, "lease_record is ABI");

#ifdef __cplusplus
} /* namespace holdfast::abi */
}
#pragma GCC diagnostic pop
#endif
#endif
