// The node's own state: kept in a file, and what it forbids (claims P16, P18).
#include "userspace/daemon/node_state.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "policy/opens.hpp"
#include "userspace/base/check.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/node.hpp"
#include "userspace/daemon/state_file.hpp"
#include "userspace/token/sha256.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "node_state";
constexpr NodeState all_states[] = {NodeState::active, NodeState::draining, NodeState::disabled,
                                    NodeState::quarantined};

std::string render(const NodeStanding& standing) {
  const std::string text =
      fmt::format("holdfast node state 1\nstate {}\nsince {}\nby {}\n", name_of(standing.state),
                  standing.since_wall_ms, standing.by_uid);
  const token::Digest sum =
      token::sha256({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return text + fmt::format("sha256 {:02x}\n", fmt::join(sum, ""));
}

// What render() wrote, to the byte.
std::optional<NodeStanding> parse(std::string_view text) {
  NodeStanding standing;
  const auto value = [&](std::string_view name) {
    const size_t at = text.find(name);
    if (at == std::string_view::npos) return std::string_view();
    const std::string_view rest = text.substr(at + name.size());
    return rest.substr(0, rest.find('\n'));
  };
  const auto number = [](std::string_view digits, auto& out) {
    std::from_chars(digits.data(), digits.data() + digits.size(), out);
  };
  for (const NodeState state : all_states)
    if (value("\nstate ") == name_of(state)) standing.state = state;
  number(value("\nsince "), standing.since_wall_ms);
  number(value("\nby "), standing.by_uid);
  if (render(standing) != text) return std::nullopt;
  return standing;
}

JournalAction action_of(NodeState narrower) {
  switch (narrower) {
    case NodeState::draining: return "node.drain";
    case NodeState::disabled: return "node.disable";
    case NodeState::quarantined: return "node.quarantine";
    case NodeState::active: break;
  }
  CHECK(narrower != NodeState::active);  // that is no narrower one
  return "node.quarantine";
}

}  // namespace

std::string_view name_of(NodeState state) {
  switch (state) {
    case NodeState::active: return "active";
    case NodeState::draining: return "draining";
    case NodeState::disabled: return "disabled";
    case NodeState::quarantined: return "quarantined";
  }
  return "?";
}

Result<NodeStanding> read_standing(const std::string& state_dir) {
  const std::string path = state_dir + "/" + std::string(file_name);
  const Result<std::string> text = read_state_file(path);
  if (!text && text.error().sys == ENOENT) return NodeStanding();
  if (!text) return std::unexpected(text.error());
  if (const std::optional<NodeStanding> standing = parse(*text)) return *standing;
  log::error("node_state_damaged",
             {{"file", path},
              {"effect", "the node is quarantined: no lease, and nothing opens"},
              {"next_step", "find out who wrote it, then: holdfast node release"}});
  return NodeStanding{NodeState::quarantined, wall_now_ns() / ns_per_ms, 0};
}

Status write_standing(const std::string& state_dir, const NodeStanding& standing) {
  return write_state_file(state_dir, file_name, render(standing));
}

Status Node::read_state() {
  const Result<NodeStanding> standing = read_standing(options_.state_dir);
  if (!standing) return std::unexpected(standing.error());
  standing_ = *standing;
  if (standing_.state != NodeState::active)
    log::notice("node_state", {{"state", name_of(standing_.state)}});
  return {};
}

// In force before it is written, as with every revocation: what is closed stays so, whatever
// becomes of the daemon. A daemon that dies in between has closed and not answered.
Result<size_t> Node::narrow(NodeState to, uint32_t uid) {
  if (standing_.state >= to && standing_is_durable_) return 0;
  size_t ended = 0;
  if (standing_.state < to) {
    standing_ = {to, wall_now_ns() / ns_per_ms, uid};
    standing_is_durable_ = false;
    if (!leases_may_live()) ended = revoke_all([](const abi::lease_record&) { return true; });
    journal_.record(log::Level::notice, action_of(to),
                    {{"state", name_of(to)}, {"leases_ended", ended}});
  }
  if (Status ok = write_standing(options_.state_dir, standing_); !ok)
    return pass_on(ok, fmt::format("the node is {}, but would not be after a restart",
                                   name_of(standing_.state)));
  standing_is_durable_ = true;
  return ended;
}

Status Node::resume(uint32_t uid) {
  if (Status ok = may_widen("node.resume"); !ok) return ok;
  return widen("node.resume", uid);
}

Status Node::release_quarantine(uint32_t uid) {
  if (standing_.state != NodeState::quarantined)
    return fail(ErrorKind::conflict, "not_quarantined",
                fmt::format("the node is {}, not quarantined", name_of(standing_.state)),
                "holdfast node resume ends draining and disabled");
  return widen("node.release", uid);
}

Status Node::widen(JournalAction action, uint32_t uid) {
  if (standing_.state == NodeState::active && standing_is_durable_) return {};
  const NodeStanding next{NodeState::active, wall_now_ns() / ns_per_ms, uid};
  if (Status ok = write_standing(options_.state_dir, next); !ok) {
    // It may have come to stand there all the same.
    if (Status back = write_standing(options_.state_dir, standing_); !back)
      log::error("node_state_not_written", {{"cause", back.error().text()}});
    return pass_on(ok, fmt::format("the node stays {}", name_of(standing_.state)));
  }
  const NodeState before = standing_.state;
  standing_ = next;
  standing_is_durable_ = true;
  journal_.record(log::Level::notice, action,
                  {{"state", name_of(next.state)}, {"before", name_of(before)}});
  return {};
}

Status Node::may_widen(std::string_view what) const {
  if (standing_.state != NodeState::quarantined) return {};
  return fail(ErrorKind::conflict, "node_quarantined",
              fmt::format("the node is quarantined: no {} until that is released", what),
              "holdfast node release");
}

// The state is asked before anything else of a request, so its refusals cost nothing.
Status Node::may_lease(bool renewal) {
  const NodeState state = standing_.state;
  if (state == NodeState::active || (state == NodeState::draining && renewal)) return {};
  ++refused_by_state_;
  const char* code = state == NodeState::draining   ? "node_draining"
                     : state == NodeState::disabled ? "node_disabled"
                                                    : "node_quarantined";
  log::notice(renewal ? "renewal_refused" : "grant_refused", {{"code", code}});
  return fail(ErrorKind::conflict, code,
              fmt::format("the node is {}: it {}", name_of(state),
                          state == NodeState::draining ? "takes no new leases" : "has no leases"),
              state == NodeState::quarantined
                  ? "ask another node, or lift it: holdfast node release"
                  : "ask another node, or end it: holdfast node resume");
}

Status Node::may_push(const Policy& next) const {
  if (standing_.state != NodeState::quarantined) return {};
  const std::vector<std::string> opened = what_opens(*policy_, next);
  if (opened.empty()) return {};
  return fail(
      ErrorKind::conflict, "node_quarantined",
      fmt::format("the node is quarantined, and this policy opens: {}", fmt::join(opened, "; ")),
      "push one that opens nothing, or: holdfast node release");
}

Node::ResourceState Node::slot_state(uint32_t slot) const {
  if (plane_->slots.record(slot).phase == abi::HF_PHASE_FENCED) return ResourceState::fenced;
  if (draining_[slot]) return ResourceState::draining;
  return plane_->slots.bound(slot) ? ResourceState::leased : ResourceState::free;
}

Node::ResourceState Node::resource_state(const abi::endpoint_key& key) const {
  const std::optional<abi::endpoint_entry> entry = plane_->banks.endpoint(key);
  return entry ? slot_state(entry->slot) : ResourceState::free;
}

Node::ResourceState Node::egress_state(const Tenant& tenant, const TenantPort& port) const {
  const auto found = egress_slots_.find({tenant.id, port.name});
  return found != egress_slots_.end() ? slot_state(found->second) : ResourceState::free;
}

}  // namespace holdfast
