/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* The packet parser: bytes in, struct packet out. It fails closed: whatever it does not follow to the
 * transport header, it refuses with a reason. Plain C without helpers or maps, so that the same code runs
 * in the kernel, in the unit tests and in the fuzzer.
 *
 * Sources: RFC 791, 8200 (IPv6; fragment header is 8 bytes, 4.5), 4302 (AH length is (n+2)*4), 792, 4443,
 * 826, 4861, 9293, 768, 6946 (atomic fragments), 1858 and 3128 (tiny fragments). */
#ifndef HOLDFAST_PARSER_H
#define HOLDFAST_PARSER_H

#include <linux/if_ether.h>
#include <linux/types.h>

#include "abi.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#ifdef __cplusplus
extern "C++" {
namespace holdfast::abi {
#endif

enum {
  HF_PARSED = 0, /* = HF_REASON_unclassified: nothing wrong so far */
  /* Nothing is read beyond this many bytes, so that a verdict does not depend on how much of a packet
   * happens to be linear. */
  HF_HEADERS_MAX = 256,
  /* The transport header starts by here: 64 bytes hold a quoted IPv6 header and its ports, and a TCP header. */
  HF_TRANSPORT_OFFSET_MAX = HF_HEADERS_MAX - 64,
  HF_ND_OPTIONS_MAX = 4,
};

/* IANA protocol numbers; libc and UAPI each have half of them, in headers that do not mix. */
enum {
  HF_PROTO_HOP_BY_HOP = 0,
  HF_PROTO_ICMP = 1,
  HF_PROTO_TCP = 6,
  HF_PROTO_UDP = 17,
  HF_PROTO_ROUTING = 43,
  HF_PROTO_FRAGMENT = 44,
  HF_PROTO_ESP = 50,
  HF_PROTO_AH = 51,
  HF_PROTO_ICMPV6 = 58,
  HF_PROTO_NONE = 59,
  HF_PROTO_DESTINATION_OPTIONS = 60,
  HF_PROTO_MOBILITY = 135,
  HF_PROTO_HIP = 139,
  HF_PROTO_SHIM6 = 140,
};

enum hf_packet_kind {
  HF_KIND_NONE = 0,   /* no addresses were found */
  HF_KIND_IP,         /* TCP, UDP or ICMP echo */
  HF_KIND_ICMP_ERROR, /* source, destination, ports, protocol: of the quoted packet, turned round */
  HF_KIND_ARP,        /* source: sender address, destination: target address */
  HF_KIND_NEIGHBOUR,  /* ICMPv6 133 to 137 */
};

enum hf_fragment { HF_FRAGMENT_NONE = 0, HF_FRAGMENT_FIRST, HF_FRAGMENT_LATER };

struct packet {
  /* The tuple that leases are matched by. An ICMP error about a packet has the tuple that a reply to that
   * packet would have, so that one match serves both. */
  __u32 source[4];
  __u32 destination[4];
  __u16 source_port; /* network order; ICMP echo: identifier on the asking side, 0 on the answering side */
  __u16 destination_port;
  __u8 protocol;
  __u8 kind;      /* hf_packet_kind */
  __u8 initiates; /* TCP SYN without ACK, or an echo request */
  __u8 vlan_tags;
  /* What the IP header itself said; differs from the tuple only for an ICMP error. */
  __u32 outer_source[4];
  __u32 outer_destination[4];
  /* Fragments. */
  __u32 fragment_id;
  __u32 fragment_offset; /* bytes */
  __u32 fragment_end;    /* bytes, exclusive */
  __u8 fragment;         /* hf_fragment */
  __u8 icmp_type;        /* HF_KIND_NEIGHBOUR */
  __u8 neighbour_has_mac;
  __u8 reserved;
  __u32 neighbour_target[4]; /* neighbour solicitation and advertisement */
  __u8 neighbour_mac[6];     /* ARP sender, or the link-layer option */
  __u8 source_mac[6];
  __u16 header_length; /* bytes up to the payload: what each GSO segment repeats */
  __u16 reserved2;
};

/* Wire formats, byte-aligned. */
struct hf_ipv4 {
  __u8 version_ihl, tos;
  __u16 total_length, id, fragment;
  __u8 ttl, protocol;
  __u16 checksum;
  __u32 source, destination;
} __attribute__((packed));
struct hf_ipv6 {
  __u32 version_class_flow;
  __u16 payload_length;
  __u8 next_header, hop_limit;
  __u32 source[4], destination[4];
} __attribute__((packed));
struct hf_arp {
  __u16 hardware, protocol;
  __u8 hardware_length, protocol_length;
  __u16 operation;
  __u8 sender_mac[6];
  __u32 sender;
  __u8 target_mac[6];
  __u32 target;
} __attribute__((packed));
struct hf_tcp {
  __u16 source, destination;
  __u32 sequence, acknowledgement;
  __u8 offset, flags;
  __u16 window, checksum, urgent;
} __attribute__((packed));
struct hf_udp {
  __u16 source, destination, length, checksum;
} __attribute__((packed));
struct hf_icmp {
  __u8 type, code;
  __u16 checksum, identifier, sequence;
} __attribute__((packed));
struct hf_ipv6_fragment {
  __u8 next_header, reserved;
  __u16 offset;
  __u32 id;
} __attribute__((packed));

#define HF_TCP_FIN 0x01
#define HF_TCP_SYN 0x02
#define HF_TCP_RST 0x04
#define HF_TCP_ACK 0x10

#define HF_IP4_MAPPED 0xffff0000u /* third word of ::ffff:a.b.c.d, as loaded on a little-endian machine */
#define hf_be16(x) ((__u16)__builtin_bswap16((__u16)(x)))
/* The compiler may assume nothing about a value any more. */
#define hf_opaque(x) __asm__ volatile("" : "+r"(x))

/* The offset of `at` in the frame, below HF_HEADERS_MAX. The verifier does not know by which way it was
 * reached: any such offset is one and the same to it, and what follows is verified once. */
static __always_inline __u64 hf_offset_by_any_way(const void* frame, const void* at) {
  __u64 offset = (__u64)((const __u8*)at - (const __u8*)frame);
  hf_opaque(offset);
  return offset & (HF_HEADERS_MAX - 1);
}

static __always_inline void hf_map_ipv4(__u32* out, __u32 address) {
  out[0] = 0;
  out[1] = 0;
  out[2] = HF_IP4_MAPPED;
  out[3] = address;
}

static __always_inline void hf_copy_address(__u32* out, const __u32* in) {
  out[0] = in[0];
  out[1] = in[1];
  out[2] = in[2];
  out[3] = in[3];
}

static __always_inline int hf_same_address(const __u32* a, const __u32* b) {
  return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* The ports of a TCP, UDP or echo header of which at least the first 8 bytes are there, as they stand. */
static __always_inline __u32 hf_quoted_ports(struct packet* p, const void* l4, __u8 protocol, int v6) {
  if (protocol == HF_PROTO_TCP || protocol == HF_PROTO_UDP) {
    const struct hf_udp* ports = (const struct hf_udp*)l4;
    p->source_port = ports->destination;
    p->destination_port = ports->source;
    return HF_PARSED;
  }
  const struct hf_icmp* icmp = (const struct hf_icmp*)l4;
  if (protocol != (v6 ? HF_PROTO_ICMPV6 : HF_PROTO_ICMP)) return HF_REASON_icmp_unrelated;
  if (icmp->type == (v6 ? 128 : 8)) { /* it asked: the answer would come to its identifier */
    p->source_port = 0;
    p->destination_port = icmp->identifier;
    return HF_PARSED;
  }
  if (icmp->type == (v6 ? 129 : 0)) {
    p->source_port = icmp->identifier;
    p->destination_port = 0;
    return HF_PARSED;
  }
  return HF_REASON_icmp_unrelated;
}

/* ::ffff:a.b.c.d on the wire would alias an IPv4 entry of the tables (RFC 4038 4.2). */
static __always_inline int hf_is_mapped(const __u32* a) {
  return a[0] == 0 && a[1] == 0 && a[2] == HF_IP4_MAPPED;
}

/* An ICMP error: takes the quoted packet's tuple, turned round. `quoted` is where the quoted IP header is,
 * `length` how many bytes of quote the outer IP header promises: what trails it in the frame is no quote. */
static __always_inline __u32 hf_parse_quoted(struct packet* p, const void* quoted, const void* end,
                                             __u32 length, int v6) {
  const void* l4;
  __u8 protocol;

  if (length < (v6 ? sizeof(struct hf_ipv6) : sizeof(struct hf_ipv4)) + 8) return HF_REASON_truncated;
  if (v6) {
    const struct hf_ipv6* ip = (const struct hf_ipv6*)quoted;
    if ((const void*)(ip + 1) > end) return HF_REASON_truncated;
    if ((((const __u8*)ip)[0] >> 4) != 6) return HF_REASON_icmp_unrelated;
    for (int i = 0; i < 4; i++) {
      p->source[i] = ip->destination[i];
      p->destination[i] = ip->source[i];
    }
    if (hf_is_mapped(p->source)) return HF_REASON_icmp_unrelated;
    protocol = ip->next_header;
    l4 = ip + 1;
  } else {
    const struct hf_ipv4* ip = (const struct hf_ipv4*)quoted;
    if ((const void*)(ip + 1) > end) return HF_REASON_truncated;
    if (ip->version_ihl != 0x45) return HF_REASON_icmp_unrelated;
    if (hf_be16(ip->fragment) & 0x1fff) return HF_REASON_icmp_unrelated;
    hf_map_ipv4(p->source, ip->destination);
    hf_map_ipv4(p->destination, ip->source);
    protocol = ip->protocol;
    l4 = ip + 1;
  }
  if ((const char*)l4 + 8 > (const char*)end) return HF_REASON_truncated;
  /* The error goes to whoever sent the quoted packet. */
  if (!hf_same_address(p->destination, p->outer_destination)) return HF_REASON_icmp_unrelated;
  p->protocol = protocol;
  p->kind = HF_KIND_ICMP_ERROR;
  return hf_quoted_ports(p, l4, protocol, v6);
}

/* Neighbour discovery (RFC 4861): always with hop limit 255, never fragmented. */
static __always_inline __u32 hf_parse_neighbour(struct packet* p, const void* frame, const void* l4,
                                                const void* end, __u32 l4_length) {
  const __u8* bytes = (const __u8*)l4;
  const __u8* options;
  __u32 left;

  p->kind = HF_KIND_NEIGHBOUR;
  if (p->icmp_type == 133) { /* router solicitation */
    options = bytes + 8;
    if (l4_length < 8) return HF_REASON_truncated;
    left = l4_length - 8;
  } else if (p->icmp_type == 135 || p->icmp_type == 136) {
    if (l4_length < 24 || (const void*)(bytes + 24) > end) return HF_REASON_truncated;
    __builtin_memcpy(p->neighbour_target, bytes + 8, 16);
    options = bytes + 24;
    left = l4_length - 24;
  } else {
    return HF_PARSED; /* router advertisement, redirect: the gate knows what to think of them */
  }
  for (int i = 0; i < HF_ND_OPTIONS_MAX; i++) {
    if (left == 0) return HF_PARSED;
    if ((const char*)options - (const char*)frame > HF_HEADERS_MAX - 8) return HF_REASON_l4_header;
    if (left < 8 || (const void*)(options + 8) > end) return HF_REASON_truncated;
    __u32 length = (__u32)options[1] * 8;
    if (length == 0 || length > left) return HF_REASON_l4_header;
    if (options[0] == 1 || options[0] == 2) {
      /* A second link-layer address would be one that nobody checked. */
      if (length != 8 || p->neighbour_has_mac) return HF_REASON_l4_header;
      __builtin_memcpy(p->neighbour_mac, options + 2, 6);
      p->neighbour_has_mac = 1;
    }
    options += length;
    left -= length;
  }
  if (left == 0) return HF_PARSED;
  return HF_REASON_l4_header;
}

/* `l4_length`: bytes of L4 that the IP header promises; known to be in the frame, though maybe not in the
 * linear part that `end` bounds. */
static __always_inline __u32 hf_parse_l4(struct packet* p, const void* frame, const void* l4, const void* end,
                                         __u32 l4_length, int v6, __u8 hop_limit) {
  if (p->protocol == HF_PROTO_TCP) {
    const struct hf_tcp* tcp = (const struct hf_tcp*)l4;
    if (l4_length < sizeof(*tcp) || (const void*)(tcp + 1) > end)
      return p->fragment ? HF_REASON_fragment_overlap : HF_REASON_truncated;
    __u32 header = (__u32)(tcp->offset >> 4) * 4;
    if (header < sizeof(*tcp) || header > l4_length) return HF_REASON_l4_header;
    if ((tcp->flags & HF_TCP_SYN) && (tcp->flags & (HF_TCP_FIN | HF_TCP_RST))) return HF_REASON_l4_header;
    p->source_port = tcp->source;
    p->destination_port = tcp->destination;
    p->initiates = (tcp->flags & (HF_TCP_SYN | HF_TCP_ACK)) == HF_TCP_SYN;
    p->header_length = (__u16)((const char*)l4 - (const char*)frame + header);
    p->kind = HF_KIND_IP;
    return HF_PARSED;
  }
  if (p->protocol == HF_PROTO_UDP) {
    const struct hf_udp* udp = (const struct hf_udp*)l4;
    if (l4_length < sizeof(*udp) || (const void*)(udp + 1) > end)
      return p->fragment ? HF_REASON_fragment_overlap : HF_REASON_truncated;
    __u32 length = hf_be16(udp->length);
    /* A first fragment carries less than its UDP header promises. */
    if (length < sizeof(*udp) || (length > l4_length && !p->fragment)) return HF_REASON_l4_header;
    p->source_port = udp->source;
    p->destination_port = udp->destination;
    p->header_length = (__u16)((const char*)l4 - (const char*)frame + sizeof(*udp));
    p->kind = HF_KIND_IP;
    return HF_PARSED;
  }
  if (p->protocol != (v6 ? HF_PROTO_ICMPV6 : HF_PROTO_ICMP)) return HF_REASON_protocol;

  const struct hf_icmp* icmp = (const struct hf_icmp*)l4;
  if (l4_length < sizeof(*icmp) || (const void*)(icmp + 1) > end)
    return p->fragment ? HF_REASON_fragment_overlap : HF_REASON_truncated;
  p->icmp_type = icmp->type;
  p->header_length = (__u16)((const char*)l4 - (const char*)frame + sizeof(*icmp));
  if (icmp->type == (v6 ? 128 : 8)) {
    p->source_port = icmp->identifier;
    p->initiates = 1;
    p->kind = HF_KIND_IP;
    return HF_PARSED;
  }
  if (icmp->type == (v6 ? 129 : 0)) {
    p->destination_port = icmp->identifier;
    p->kind = HF_KIND_IP;
    return HF_PARSED;
  }
  /* Errors and neighbour discovery are never sent in pieces by anyone honest (RFC 6980). */
  if (p->fragment) return HF_REASON_protocol;
  if (v6) {
    if (icmp->type >= 1 && icmp->type <= 4)
      return hf_parse_quoted(p, icmp + 1, end, l4_length - (__u32)sizeof(*icmp), 1);
    if (icmp->type >= 133 && icmp->type <= 137) {
      if (hop_limit != 255 || icmp->code != 0) return HF_REASON_l4_header;
      return hf_parse_neighbour(p, frame, l4, end, l4_length);
    }
    return HF_REASON_protocol;
  }
  if (icmp->type == 3 || icmp->type == 11 || icmp->type == 12)
    return hf_parse_quoted(p, icmp + 1, end, l4_length - (__u32)sizeof(*icmp), 0);
  return icmp->type == 5 ? HF_REASON_icmp_unrelated : HF_REASON_protocol;
}

static __always_inline __u32 hf_parse_ipv4(struct packet* p, const void* frame, const void* l3, const void* end,
                                           __u32 l3_room) {
  const struct hf_ipv4* ip = (const struct hf_ipv4*)l3;
  if ((const void*)(ip + 1) > end || l3_room < sizeof(*ip)) return HF_REASON_truncated;
  hf_map_ipv4(p->outer_source, ip->source);
  hf_map_ipv4(p->outer_destination, ip->destination);
  hf_copy_address(p->source, p->outer_source);
  hf_copy_address(p->destination, p->outer_destination);
  p->kind = HF_KIND_IP;
  p->protocol = ip->protocol;
  if ((ip->version_ihl >> 4) != 4 || (ip->version_ihl & 0xf) < 5) return HF_REASON_ip_header;
  if ((ip->version_ihl & 0xf) > 5) return HF_REASON_ip_options;
  __u32 total = hf_be16(ip->total_length);
  if (total < sizeof(*ip)) return HF_REASON_ip_header;
  if (total > l3_room) return HF_REASON_truncated;
  __u32 l4_length = total - (__u32)sizeof(*ip);

  __u32 fragment = hf_be16(ip->fragment);
  if (fragment & 0x8000) return HF_REASON_ip_header; /* reserved, must be zero */
  if (fragment & 0x3fff) {
    p->fragment_id = hf_be16(ip->id);
    p->fragment_offset = (fragment & 0x1fff) * 8;
    p->fragment_end = p->fragment_offset + l4_length;
    if (l4_length == 0 || p->fragment_end > 65535 - sizeof(*ip)) return HF_REASON_ip_header;
    if ((fragment & 0x2000) && (l4_length & 7)) return HF_REASON_ip_header;
    p->fragment = p->fragment_offset ? HF_FRAGMENT_LATER : HF_FRAGMENT_FIRST;
    p->header_length = (__u16)((const char*)(ip + 1) - (const char*)frame);
    if (p->fragment == HF_FRAGMENT_LATER) return HF_PARSED;
  }
  return hf_parse_l4(p, frame, ip + 1, end, l4_length, 0, 0);
}

static __always_inline __u32 hf_parse_ipv6(struct packet* p, const void* frame, const void* l3, const void* end,
                                           __u32 l3_room) {
  const struct hf_ipv6* ip = (const struct hf_ipv6*)l3;
  if ((const void*)(ip + 1) > end || l3_room < sizeof(*ip)) return HF_REASON_truncated;
  for (int i = 0; i < 4; i++) {
    p->source[i] = p->outer_source[i] = ip->source[i];
    p->destination[i] = p->outer_destination[i] = ip->destination[i];
  }
  p->kind = HF_KIND_IP;
  if ((((const __u8*)ip)[0] >> 4) != 6) return HF_REASON_ip_header;
  if (hf_is_mapped(p->source) || hf_is_mapped(p->destination)) return HF_REASON_ip_header;
  __u32 left = hf_be16(ip->payload_length);
  if (left + sizeof(*ip) > l3_room) return HF_REASON_truncated;

  const __u8* header = (const __u8*)(ip + 1);
  __u8 next = ip->next_header;
  int fragmented = 0;
  for (int i = 0;; i++) {
    __u32 length;
    p->protocol = next;
    if (next == HF_PROTO_TCP || next == HF_PROTO_UDP || next == HF_PROTO_ICMPV6) break;
    if (i == HF_IPV6_EXTENSIONS_MAX) return HF_REASON_ip_extension;
    if (next == HF_PROTO_FRAGMENT) { /* 8 bytes, its second byte reserved */
      const struct hf_ipv6_fragment* f = (const struct hf_ipv6_fragment*)header;
      if (left < sizeof(*f) || (const void*)(f + 1) > end) return HF_REASON_truncated;
      __u32 offset = hf_be16(f->offset);
      if (fragmented) return HF_REASON_ip_extension; /* a fragment of a fragment */
      fragmented = 1;
      left -= (__u32)sizeof(*f);
      next = f->next_header;
      header += sizeof(*f);
      p->fragment_id = f->id;
      if (offset & 0xfff9) { /* else atomic: a whole datagram (RFC 6946) */
        p->fragment_offset = offset & 0xfff8;
        p->fragment_end = p->fragment_offset + left;
        /* The datagram put together again has the headers before this one too. */
        __u32 before = (__u32)(header - (const __u8*)(ip + 1)) - (__u32)sizeof(*f);
        if (left == 0 || before + p->fragment_end > 65535) return HF_REASON_ip_header;
        if ((offset & 1) && (left & 7)) return HF_REASON_ip_header;
        p->fragment = p->fragment_offset ? HF_FRAGMENT_LATER : HF_FRAGMENT_FIRST;
        p->protocol = next;
        p->header_length = (__u16)((const char*)header - (const char*)frame);
        if (p->fragment == HF_FRAGMENT_LATER) return HF_PARSED;
      }
      continue;
    }
    if (left < 8 || (const void*)(header + 8) > end) return HF_REASON_truncated;
    if (next == HF_PROTO_HOP_BY_HOP) { /* stands first or nowhere (RFC 8200 4.1) */
      if (i != 0) return HF_REASON_ip_extension;
      length = ((__u32)header[1] + 1) * 8;
    } else if (next == HF_PROTO_DESTINATION_OPTIONS) {
      length = ((__u32)header[1] + 1) * 8;
    } else if (next == HF_PROTO_AH) {
      length = ((__u32)header[1] + 2) * 4;
      if (length < 12) return HF_REASON_ip_extension; /* its fixed part */
    } else if (next == HF_PROTO_ROUTING) {            /* it would move the destination under us */
      return HF_REASON_ip_options;
    } else if (next == HF_PROTO_ESP || next == HF_PROTO_NONE) {
      return HF_REASON_protocol;
    } else {
      return next == HF_PROTO_MOBILITY || next == HF_PROTO_HIP || next == HF_PROTO_SHIM6
                 ? HF_REASON_ip_extension
                 : HF_REASON_protocol;
    }
    if (length > left) return HF_REASON_truncated;
    if (length > HF_HEADERS_MAX) return HF_REASON_ip_extension;
    next = header[0];
    header += length;
    left -= length;
    if (header - (const __u8*)frame > HF_TRANSPORT_OFFSET_MAX) return HF_REASON_ip_extension;
  }
  const __u8* l4 = (const __u8*)frame + hf_offset_by_any_way(frame, header);
  return hf_parse_l4(p, frame, l4, end, left, 1, ip->hop_limit);
}

static __always_inline __u32 hf_parse_arp(struct packet* p, const void* l3, const void* end) {
  const struct hf_arp* arp = (const struct hf_arp*)l3;
  if ((const void*)(arp + 1) > end) return HF_REASON_truncated;
  if (arp->hardware != hf_be16(1) || arp->protocol != hf_be16(ETH_P_IP) || arp->hardware_length != 6 ||
      arp->protocol_length != 4 || (arp->operation != hf_be16(1) && arp->operation != hf_be16(2)))
    return HF_REASON_l4_header;
  hf_map_ipv4(p->source, arp->sender);
  hf_map_ipv4(p->destination, arp->target);
  __builtin_memcpy(p->neighbour_mac, arp->sender_mac, 6);
  p->neighbour_has_mac = 1;
  p->kind = HF_KIND_ARP;
  return HF_PARSED;
}

/* Parses the frame at [data, end); `frame_length` is its whole length, of which [data, end) may be only the
 * linear part (at least min(frame_length, HF_HEADERS_MAX) bytes). *p must be zeroed by the caller. Returns
 * HF_PARSED or a drop reason; with a reason, p->kind tells whether the addresses were found before it. */
static __always_inline __u32 hf_parse(struct packet* p, const void* data, const void* end, __u32 frame_length) {
  const struct ethhdr* eth = (const struct ethhdr*)data;
  const __u8* l3 = (const __u8*)(eth + 1);
  /* The smallest packet that any of this is about; VLAN tags are within it, so that with and without them the
   * verifier knows the same bytes to be there. */
  if ((const void*)(l3 + sizeof(struct hf_ipv4)) > end) return HF_REASON_truncated;
  __builtin_memcpy(p->source_mac, eth->h_source, 6);
  __u16 type = eth->h_proto;

  for (int i = 0; i <= HF_VLAN_DEPTH_MAX; i++) {
    if (type != hf_be16(ETH_P_8021Q) && type != hf_be16(ETH_P_8021AD)) break;
    if (i == HF_VLAN_DEPTH_MAX) return HF_REASON_vlan;
    type = *(const __u16*)(l3 + 2);
    l3 += 4;
  }
  __u64 l2_length = hf_offset_by_any_way(data, l3);
  l3 = (const __u8*)data + l2_length;
  p->vlan_tags = (__u8)((l2_length - sizeof(*eth)) / 4);
  if (frame_length < l2_length) return HF_REASON_truncated;
  __u32 l3_room = frame_length - (__u32)l2_length;
  p->header_length = (__u16)l2_length;
  if (type == hf_be16(ETH_P_IP)) return hf_parse_ipv4(p, data, l3, end, l3_room);
  if (type == hf_be16(ETH_P_IPV6)) return hf_parse_ipv6(p, data, l3, end, l3_room);
  if (type == hf_be16(ETH_P_ARP)) return hf_parse_arp(p, l3, end);
  return HF_REASON_ethertype;
}

#ifdef __cplusplus
} /* namespace holdfast::abi */
}
#endif
#endif
