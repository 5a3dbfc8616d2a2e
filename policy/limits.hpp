// Every limit of a policy, with its reason. What does not fit is refused whole (G14).
#pragma once

#include <cstddef>
#include <cstdint>

#include "bpf/abi.h"

namespace holdfast {

// Text. The largest policy within the limits below, written without prefixes, is about half of
// this.
constexpr size_t policy_bytes_max = 16 << 20;
// What render_policy_json makes of it: quoting and defaults add to every word, at most this much.
constexpr size_t rendered_bytes_max = 4 * policy_bytes_max;
constexpr uint32_t document_depth_max = 16;       // the format itself needs 7
constexpr uint32_t document_nodes_max = 4 << 20;  // 28 bytes each: 112 MiB while parsing
constexpr size_t document_text_max = 4096;  // one key or value; the format's longest has 191 bytes
constexpr size_t policy_errors_max = 20;    // a screenful; the rest is found at the next try

// Tables the kernel programs were loaded with.
constexpr uint32_t tenants_max = abi::HF_TENANTS_MAX;
constexpr uint32_t tenant_ports_max = 4096;            // each has two attached programs
constexpr uint32_t endpoints_max = abi::HF_SLOTS_MAX;  // (address, port, protocol): one slot each
constexpr uint32_t addresses_max = abi::HF_SLOTS_MAX;  // over all ports: one table element each
constexpr uint32_t port_addresses_max = 65536;         // of one tenant port
constexpr uint32_t node_leases_max = abi::HF_SLOTS_MAX;
constexpr uint32_t tenant_flows_min = 64;  // an LRU table below this evicts at random
constexpr uint32_t tenant_flows_max = 1 << 20;

// Lists that become nft rules or attached programs.
constexpr uint32_t uplinks_max = 64;
constexpr uint32_t failsafe_ports_max = 8;
constexpr uint32_t listeners_max = 1024;
constexpr uint32_t listener_prefixes_max = 4096;  // `from` of one listener

constexpr size_t interface_name_max = 15;  // IFNAMSIZ - 1
constexpr size_t name_max = 63;            // a name, and each part of org/app/env

// What a file that does not say gets.
constexpr uint16_t failsafe_port_default = 22;
constexpr uint32_t node_leases_default = 65536;
constexpr uint32_t tenant_leases_default = 65536;  // or the node's, if that is less
constexpr uint32_t tenant_flows_default = 16384;

}  // namespace holdfast
