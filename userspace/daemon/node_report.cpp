// node.report: what this node has and is, under its signature, for whoever is not here to ask.
#include <fmt/format.h>

#include "userspace/base/check.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/statement_for.hpp"
#include "userspace/daemon/verbs.hpp"
#include "userspace/wire/frame.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t reply_room = 4096;  // for what stands around the report in its frame

// The pages of a snapshot, but for leases and endpoints: there may be a million, and what is signed
// is made in one turn of the loop.
Value inventory_of(const Node& node, const Tokens& tokens, const Enrollment& enrollment) {
  const Result<WatchFilter> filter =
      WatchFilter::read(Value::map({{"kinds", Value::array({"node"})}}));
  CHECK(filter.has_value());
  const std::unique_ptr<SnapshotPages> pages = new_inventory(node, tokens, enrollment, *filter);
  Value list = Value::array();
  while (std::optional<Value> page = pages->next()) list.push(std::move(*page));
  return list;
}

}  // namespace

Verbs::Answer Verbs::node_report(const wire::Peer& peer, const Value& args) const {
  const Result<token::StatementFor> target = read_statement_for(args);
  if (!target) return std::unexpected(target.error());
  const DataPlane& plane = node_.plane();
  Value unenforced = Value::array();
  for (const Unenforced& each : node_.unenforced()) {
    Value value = error_value(each.interface, each.cause);
    value.set("what", name_of(each.layer));
    unenforced.push(std::move(value));
  }
  const Value status =
      Value::map({{"policy", Value::map({{"generation", node_.policy().generation},
                                         {"digest", hex(plane.banks.control().policy_digest)}})},
                  {"bpf_digest", kernel_object_digest()},
                  {"unenforced", std::move(unenforced)},
                  {"tokens", tokens_.status()},
                  {"started_at", rfc3339_utc(started_wall_ns_)},
                  {"boot_ns", boot_now_ns()}});
  const std::vector<uint8_t> content = cbor::encode(
      Value::map({{"inventory", inventory_of(node_, tokens_, enrollment_)}, {"status", status}}));
  Result<std::vector<uint8_t>> report =
      tokens_.sign_statement(token::Purpose::report, *target, content);
  if (!report) return pass_on(report);
  if (report->size() > wire::inline_body_bytes_max - reply_room)
    return fail(ErrorKind::exhausted, "report_too_large",
                fmt::format("the report has {} bytes, and a reply at most {}", report->size(),
                            wire::inline_body_bytes_max),
                "read it unsigned: holdfast watch");
  log::info("report_signed", {{"for", target->audience}, {"uid", peer.uid}});
  return Value::map({{"report", Value(std::move(*report))}});
}

}  // namespace holdfast
