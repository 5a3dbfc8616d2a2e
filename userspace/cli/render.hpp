// Replies of the daemon as text for people. Pure but for the time zone: the same reply gives the
// same text. A key that is missing shows as "-", so that an older daemon is still readable.
#pragma once

#include <string>
#include <string_view>

#include "userspace/cli/table.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::cli {

// ---- reading a reply without a Result at each step ----
std::string text_of(const cbor::Value& map, std::string_view key);  // empty if there is none
uint64_t number_of(const cbor::Value& map, std::string_view key);   // 0 if there is none
bool truth_of(const cbor::Value& map, std::string_view key);
const cbor::Value::Array& list_of(const cbor::Value& map, std::string_view key);
const cbor::Value& part_of(const cbor::Value& map, std::string_view key);  // null if there is none

std::string render_status(const cbor::Value& reply, std::string_view socket, const Style& style);

// "in 42s"
std::string expires_in(const cbor::Value& lease);
Table lease_table();
void add_leases(Table& table, const cbor::Value& page);
std::string render_lease(const cbor::Value& lease, const Style& style);
// "granted 5f3a... to acme/shop/prod: web@10.1.0.2:443; expires in 60s, at 14:03:05"
std::string render_grant(const cbor::Value& reply, const Style& style);

std::string render_routes(const cbor::Value& reply, const Style& style);
std::string render_tenants(const cbor::Value& reply, const Style& style);
std::string render_push(const cbor::Value& reply, bool dry_run, const Style& style);
std::string render_drops(const cbor::Value& reply, const Style& style);
std::string render_drop_event(const cbor::Value& event, const Style& style);
std::string render_flows(const cbor::Value& reply, const Style& style);
// A frame of watch, or one event of it; several lines, or none.
std::string render_watch(const cbor::Value& item, const Style& style);
std::string render_node_state(const cbor::Value& reply, const Style& style);
std::string render_enrollment(const cbor::Value& enrollment, const Style& style);
std::string render_enroll_end(const cbor::Value& reply, const Style& style);
std::string render_explain(const cbor::Value& reply, std::string_view packet, const Style& style);

}  // namespace holdfast::cli
