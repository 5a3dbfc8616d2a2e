#include "userspace/daemon/node.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <unordered_map>

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include "policy/address.hpp"
#include "policy/parse.hpp"
#include "policy/render.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/daemon/state_file.hpp"

namespace holdfast {
namespace {

// Of a node that was never given a policy: nothing is leased, everything is denied.
Policy empty_policy(uint32_t slots) {
  Policy policy;
  policy.failsafe_ports = {failsafe_port_default};
  policy.leases_max = std::min(node_leases_default, slots);
  return policy;
}

Error interface_missing(const std::string& name) {
  return {ErrorKind::unavailable, "interface_missing", 0,
          fmt::format("there is no interface {} here", name),
          "create it, or take it out of the policy"};
}

std::vector<std::string> interfaces_of(const Policy& policy) {
  std::vector<std::string> names = policy.uplinks;
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports) names.push_back(port.interface);
  return names;
}

nft::HostRules host_rules(const Policy& policy) {
  return {policy.failsafe_ports, policy.listeners};
}

// What nft should hold for a policy, beside the leases.
struct NftState {
  std::set<uint32_t> armed;
  std::set<uint32_t> tenants;
  std::set<std::pair<uint32_t, Address>> owned;
};

template <typename T>
std::vector<T> difference(const std::set<T>& a, const std::set<T>& b) {
  std::vector<T> out;
  std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}

std::vector<nft::OwnedAddress> owned_difference(const std::set<std::pair<uint32_t, Address>>& a,
                                                const std::set<std::pair<uint32_t, Address>>& b) {
  std::vector<nft::OwnedAddress> out;
  for (const auto& [ifindex, address] : difference(a, b)) out.push_back({ifindex, address});
  return out;
}

}  // namespace

std::string_view name_of(LeaseState state) {
  switch (state) {
    case LeaseState::active: return "active";
    case LeaseState::grace_running: return "grace_running";
    case LeaseState::checkpoint_reported: return "checkpoint_reported";
    case LeaseState::expired: return "expired";
    case LeaseState::draining: return "draining";
    case LeaseState::fenced: return "fenced";
  }
  return "?";
}

// Slots as the policy in force has them, and new ones out of a copy of the free ones: a compile
// that fails takes nothing.
class Node::Book final : public SlotBook {
 public:
  // A resource whose teardown is under way keeps its slot: under another one it could be leased
  // while the teardown takes its nft element away.
  // So does a fenced one, whoever the policy says it belongs to now: no bundle clears a fence (G7).
  explicit Book(const Node& node) : node_(node), used_(node.slot_used_) {
    for (uint32_t slot = 0; slot < node.draining_.size(); ++slot) {
      const abi::lease_record& record = node.plane_->slots.record(slot);
      if (record.resource_kind != abi::HF_RESOURCE_ENDPOINT) continue;
      if (record.phase == abi::HF_PHASE_FENCED) {
        kept_.insert_or_assign(endpoint_text(record.endpoint), slot);
      } else if (node.draining_[slot]) {
        kept_.emplace(endpoint_text(record.endpoint), slot);
      }
    }
  }

  std::optional<uint32_t> endpoint(uint32_t tenant, const abi::endpoint_key& key) const override {
    const auto kept = kept_.empty() ? kept_.end() : kept_.find(endpoint_text(key));
    const bool is_kept = kept != kept_.end();
    if (is_kept && node_.plane_->slots.record(kept->second).phase == abi::HF_PHASE_FENCED)
      return kept->second;
    const std::optional<abi::endpoint_entry> found = node_.plane_->banks.endpoint(key);
    if (found && found->tenant == tenant) return found->slot;
    if (is_kept && node_.plane_->slots.slot(kept->second).tenant == tenant) return kept->second;
    return std::nullopt;
  }
  std::optional<uint32_t> egress(const PortName& port) const override {
    if (const auto found = node_.egress_slots_.find(port); found != node_.egress_slots_.end())
      return found->second;
    const auto left = node_.egress_slots_left_.find(port);
    if (left == node_.egress_slots_left_.end()) return std::nullopt;
    const bool fenced = node_.plane_->slots.record(left->second).phase == abi::HF_PHASE_FENCED;
    if (!fenced && !node_.draining_[left->second]) return std::nullopt;
    return left->second;
  }
  std::optional<uint32_t> take() override {
    for (; next_ < used_.size(); ++next_) {
      if (used_[next_] || node_.plane_->slots.retired(next_)) continue;
      used_[next_] = true;
      return next_++;
    }
    return std::nullopt;
  }

 private:
  static std::string endpoint_text(const abi::endpoint_key& key) {
    return {reinterpret_cast<const char*>(&key), sizeof(key)};
  }

  const Node& node_;
  std::unordered_map<std::string, uint32_t> kept_;
  std::vector<bool> used_;
  uint32_t next_ = 0;
};

// ---- start

Result<std::unique_ptr<Node>> Node::open(wire::EventLoop& loop, const NodeOptions& options) {
  Result<std::unique_ptr<DataPlane>> plane = DataPlane::open(options.plane);
  if (!plane) return pass_on(plane);
  std::unique_ptr<Node> node(new Node(loop, options, std::move(*plane)));
  if (Status ok = node->start(); !ok) return pass_on(ok);
  return node;
}

Status Node::start() {
  if (Status ok = read_state(); !ok) return ok;
  const uint32_t slots = plane_->slots.size();
  slot_used_.assign(slots, false);
  draining_.assign(slots, false);
  // Slots of bound leases are not free, whoever the policy says they belong to.
  for (uint32_t slot = 0; slot < slots; ++slot)
    slot_used_[slot] = plane_->slots.record(slot).phase != 0;
  if (Status ok = load_policy(); !ok) return ok;
  adopt_leases();
  if (Status ok = plane_->nft.remove_boot_deny(); !ok)
    log::warning("boot_deny_left", {{"cause", ok.error().text()}});
  return {};
}

Status Node::load_policy() {
  Policy policy = empty_policy(plane_->slots.size());
  const std::string path = options_.state_dir + "/policy.json";
  const Result<std::string> text = read_state_file(path);
  if (text) {
    Result<Policy> parsed = parse_policy(*text, path, rendered_bytes_max);
    if (!parsed) return pass_on(parsed, "the stored policy");
    policy = std::move(*parsed);
  } else if (text.error().sys != ENOENT) {
    return std::unexpected(text.error());
  }
  auto next = std::make_shared<const Policy>(std::move(policy));
  const Result<NetworkFacts> network = read_network();
  if (!network) return std::unexpected(network.error());
  for (const LinkInfo& link : network->links)
    if (plane_->attachments.carries_gate(link.ifindex)) guarded_ports_.insert(link.ifindex);
  // What the former daemon compiled tells which egress slot belongs to which port.
  Result<NodeFacts> facts = gather_facts(*next, true);
  if (!facts) return pass_on(facts);
  for (const Tenant& tenant : next->tenants)
    for (const TenantPort& port : tenant.ports) {
      const auto ifindex = facts->ifindex.find(port.interface);
      if (ifindex == facts->ifindex.end()) continue;
      const std::optional<abi::tenant_port> known = plane_->banks.port(ifindex->second);
      if (known && known->tenant == facts->tenant_indexes.at(tenant.id))
        egress_slots_.emplace(PortName{tenant.id, port.name}, known->egress_slot);
    }
  Result<PushOutcome> done = change_policy(std::move(next), false, true);
  if (!done) return pass_on(done, "putting the stored policy in force");
  log::notice("policy_in_force", {{"generation", policy_->generation},
                                  {"tenants", policy_->tenants.size()},
                                  {"adopted", plane_->object.adopted() ? "yes" : "no"}});
  return {};
}

// Is every slot of the lease that begins here open, of this lease, bound under its tenant's epoch
// and still the slot of a resource that the policy in force names?
bool Node::is_whole(uint32_t first_slot) const {
  const LeaseId id = LeaseId::of(plane_->slots.record(first_slot));
  const uint64_t now = boot_now_ns();
  for (const uint32_t slot : slots_of(first_slot)) {
    if (slot >= plane_->slots.size() || !plane_->slots.bound(slot)) return false;
    const abi::lease_record& record = plane_->slots.record(slot);
    const abi::lease_slot& gate = plane_->slots.slot(slot);
    if (LeaseId::of(record) != id || record.first_slot != first_slot ||
        abi::hf_gate_deadline_boot_ns(gate.gate) <= now ||
        gate.tenant_epoch != plane_->tenants[gate.tenant].epoch ||
        index_->tenant_by_id(record.tenant_id) == nullptr)
      return false;
    if (record.resource_kind == abi::HF_RESOURCE_ENDPOINT) {
      const auto found = plane_->banks.endpoint(record.endpoint);
      if (!found || found->slot != slot) return false;
    } else if (std::none_of(egress_slots_.begin(), egress_slots_.end(),
                            [&](const auto& entry) { return entry.second == slot; })) {
      return false;
    }
  }
  return true;
}

// Leases whose pinned state is whole go on; of all others every slot ends. A daemon that was killed
// while it opened or closed a lease of several slots leaves such a half one.
void Node::adopt_leases() {
  std::vector<uint32_t> ended;
  std::vector<Term> live;
  std::vector<bool> adopted(plane_->slots.size(), false);
  for (uint32_t slot = 0; slot < plane_->slots.size(); ++slot) {
    const abi::lease_record& record = plane_->slots.record(slot);
    if (record.phase == 0 || record.phase == abi::HF_PHASE_FENCED) continue;
    if (record.first_slot != slot || !leases_may_live() || !is_whole(slot)) continue;
    // Killed while it wrote down what a lease stands on, it left parts that stand on another token.
    set_origin(slot, origin_of(record));
    for (const uint32_t part : slots_of(slot)) {
      adopted[part] = true;
      live.push_back({part, abi::hf_gate_deadline_boot_ns(plane_->slots.gate(part))});
    }
    leases_.add(LeaseId::of(record), slot, record.incarnation,
                abi::hf_gate_deadline_boot_ns(plane_->slots.gate(slot)),
                plane_->slots.slot(slot).tenant);
  }
  for (uint32_t slot = 0; slot < plane_->slots.size(); ++slot) {
    const uint32_t phase = plane_->slots.record(slot).phase;
    if (phase != 0 && phase != abi::HF_PHASE_FENCED && !adopted[slot]) ended.push_back(slot);
  }
  if (Status ok = restore_elements(*plane_, live); !ok)
    log::error("nft_elements_missing",
               {{"cause", ok.error().text()},
                {"effect", "some leases stay denied by nftables until renewed"}});
  if (!live.empty() || !ended.empty())
    log::notice("leases_adopted", {{"live", leases_.size()}, {"ended", ended.size()}});
  if (!ended.empty()) tear_down(std::move(ended), "failed_closed", {});
  name_leases();
  arm_expiry_timer();
}

// ---- policy

Result<PushOutcome> Node::push_policy(Policy policy, bool dry_run) {
  if (Status ok = may_push(policy); !ok) return pass_on(ok);
  return change_policy(std::make_shared<const Policy>(std::move(policy)), dry_run, false);
}

bool Node::names_no_slot(uint32_t tenant_index) const {
  for (uint32_t slot = 0; slot < plane_->slots.size(); ++slot)
    if (plane_->slots.record(slot).phase != 0 && plane_->slots.slot(slot).tenant == tenant_index)
      return false;
  return true;
}

// An index for each tenant of the policy: its own, else one that nobody has, else one of a tenant
// that no policy names and no slot remembers. Nothing is written; name_tenants() does.
Result<std::map<uint64_t, uint32_t>> Node::tenant_indexes(const Policy& policy) const {
  std::map<uint64_t, uint32_t> known, out;
  std::vector<uint32_t> unused;
  for (uint32_t i = 0; i < plane_->tenants.size(); ++i) {
    if (const uint64_t id = plane_->tenants[i].id; id != 0) {
      known.emplace(id, i);
    } else {
      unused.push_back(i);
    }
  }
  std::vector<uint64_t> strangers;
  for (const Tenant& tenant : policy.tenants) {
    if (const auto found = known.find(tenant.id); found != known.end()) {
      out.insert(*found);
    } else {
      strangers.push_back(tenant.id);
    }
  }
  for (auto at = known.begin(); at != known.end() && unused.size() < strangers.size(); ++at)
    if (!out.contains(at->first) && !(policy_ && facts_.tenant_indexes.contains(at->first)) &&
        names_no_slot(at->second))
      unused.push_back(at->second);
  if (unused.size() < strangers.size())
    return fail(ErrorKind::exhausted, "tenants_exhausted",
                fmt::format("the policy names {} new tenants, this node has room for {}",
                            strangers.size(), unused.size()),
                "name fewer, or wait until the leases of those that are gone have ended");
  for (size_t i = 0; i < strangers.size(); ++i) out.emplace(strangers[i], unused[i]);
  return out;
}

// An epoch never goes back, so nothing of an index's former tenant revives (G5, G12).
void Node::name_tenants(const NodeFacts& facts) {
  for (const auto& [id, index] : facts.tenant_indexes) {
    abi::tenant_state& state = plane_->tenants[index];
    if (state.id == id) continue;
    ++state.epoch;
    state.flags = 0;
    std::atomic_ref<decltype(state.id)>(state.id).store(id, std::memory_order_release);
  }
}

bool Node::tenant_disabled(uint32_t index) const {
  return (plane_->tenants[index].flags & abi::HF_TENANT_DISABLED) != 0;
}

Result<NodeFacts> Node::gather_facts(const Policy& policy, bool lenient) {
  Result<NetworkFacts> network = read_network();
  if (!network) return pass_on(network);
  network_ = std::move(*network);
  NodeFacts facts;
  facts.addresses = network_.addresses;
  const auto add = [&](const std::string& name, auto check) -> Status {
    const LinkInfo* link = network_.find(name);
    Status ok = link != nullptr ? check(*link) : Status(std::unexpected(interface_missing(name)));
    if (ok) facts.ifindex.emplace(name, link->ifindex);
    // Once in force, a policy outlives its interfaces: they stay dark and come back by themselves.
    return lenient ? Status{} : ok;
  };
  for (const std::string& uplink : policy.uplinks)
    if (Status ok = add(uplink, check_uplink_interface); !ok) return pass_on(ok);
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports)
      if (Status ok = add(port.interface, check_tenant_interface); !ok)
        return pass_on(ok, fmt::format("tenant {} port {}", tenant.name, port.name));
  Result<std::map<uint64_t, uint32_t>> indexes = tenant_indexes(policy);
  if (!indexes) return pass_on(indexes);
  facts.tenant_indexes = std::move(*indexes);
  // An address that a tenant owns is the tenant's, even if the node has it too (a proxied gateway).
  std::set<Address> owned;
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports)
      owned.insert(port.addresses.begin(), port.addresses.end());
  std::erase_if(facts.addresses, [&](const Address& address) { return owned.contains(address); });
  return facts;
}

namespace {

NftState nft_state(const Policy& policy, const NodeFacts& facts,
                   const std::function<bool(uint64_t)>& disabled) {
  NftState state;
  const auto find = [&](const std::string& name) -> uint32_t {
    const auto found = facts.ifindex.find(name);
    return found == facts.ifindex.end() ? 0 : found->second;
  };
  for (const std::string& uplink : policy.uplinks)
    if (const uint32_t ifindex = find(uplink); ifindex != 0) state.armed.insert(ifindex);
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports) {
      const uint32_t ifindex = find(port.interface);
      if (ifindex == 0) continue;
      state.tenants.insert(ifindex);
      if (!disabled(tenant.id)) state.armed.insert(ifindex);
      for (const Address& address : port.addresses) state.owned.emplace(ifindex, address);
    }
  return state;
}

}  // namespace

// Interfaces that were tenant ports under the policy in force, or that this policy names and that
// may be none now: renamed, or in a bridge. They stay guarded until they are gone or a push drops
// them. Giving back their hooks would join tenants whom nothing else keeps apart (G1).
std::set<uint32_t> Node::shut_ports(const Policy& policy, const NodeFacts& facts) const {
  std::set<uint32_t> shut;
  for (const uint32_t ifindex : guarded_ports_)
    if (network_.find(ifindex) != nullptr) shut.insert(ifindex);
  for (const Tenant& tenant : policy.tenants)
    for (const TenantPort& port : tenant.ports)
      if (const LinkInfo* link = network_.find(port.interface);
          link != nullptr && link->master != 0)
        shut.insert(link->ifindex);
  for (const auto& [name, ifindex] : facts.ifindex) shut.erase(ifindex);
  return shut;
}

void Node::describe_nft_change(const Policy& next, const NodeFacts& facts,
                               const std::set<uint32_t>& shut, PolicyChange& change) const {
  const auto disabled = [&](uint64_t id) {
    const auto index = facts.tenant_indexes.find(id);
    return index != facts.tenant_indexes.end() && tenant_disabled(index->second);
  };
  NftState after = nft_state(next, facts, disabled);
  NftState before;
  if (policy_) {
    before = nft_state(*policy_, facts_, disabled);
    before.tenants.insert(guarded_ports_.begin(), guarded_ports_.end());
  } else {
    // A former daemon's: of what it armed, only what is there can matter, and it is asked for
    // below.
    for (const LinkInfo& link : network_.links) before.armed.insert(link.ifindex);
    before.tenants = before.armed;
  }
  after.tenants.insert(shut.begin(), shut.end());
  change.narrow.disarm = difference(before.armed, after.armed);
  change.narrow.remove_tenants = difference(before.tenants, after.tenants);
  change.narrow.disown = owned_difference(before.owned, after.owned);
  // All of the new state is written, not only what differs: writing what is there already costs
  // little and mends what others removed.
  change.widen.arm = {after.armed.begin(), after.armed.end()};
  change.widen.add_tenants = {after.tenants.begin(), after.tenants.end()};
  change.widen.own = owned_difference(after.owned, {});
}

Result<PushOutcome> Node::change_policy(std::shared_ptr<const Policy> next, bool dry_run,
                                        bool lenient) {
  PushOutcome outcome;
  if (ended_)
    return fail(ErrorKind::unavailable, "detached", "this node is being detached",
                "start holdfastd again to enforce anew");
  if (policy_) {
    outcome.changes = diff_policies(*policy_, *next);
    for (const Tenant& tenant : policy_->tenants) {
      const bool stays = std::any_of(next->tenants.begin(), next->tenants.end(),
                                     [&](const Tenant& other) { return other.id == tenant.id; });
      const uint32_t live = leases_.of_tenant(facts_.tenant_indexes.at(tenant.id));
      if (!stays && live != 0)
        return fail(ErrorKind::conflict, "tenant_has_leases",
                    fmt::format("the policy drops tenant {}, which holds {} live leases",
                                tenant.name, live),
                    fmt::format("end them first: holdfast tenant disable {}", tenant.name));
    }
  }
  if (next->leases_max > plane_->slots.size())
    return fail(
        ErrorKind::exhausted, "leases_max",
        fmt::format("limits.leases is {}, this node has {} lease slots", next->leases_max,
                    plane_->slots.size()),
        "lower it, or start holdfastd with a larger --leases-max after `holdfast node detach`");
  Result<NodeFacts> facts = gather_facts(*next, lenient);
  if (!facts) return pass_on(facts);
  Book book(*this);
  Result<CompiledPolicy> compiled = compile(*next, *facts, book);
  if (!compiled) return pass_on(compiled);
  if (dry_run) {
    std::vector<bool> named(plane_->slots.size(), false);
    for (const abi::endpoint_entry& entry : compiled->tables.endpoints) named[entry.slot] = true;
    for (const auto& [port, slot] : compiled->egress_slots) named[slot] = true;
    outcome.leases_ended = count_leases(slots_losing(named));
    return outcome;
  }
  name_tenants(*facts);

  for (const Tenant& tenant : next->tenants)
    if (Status ok =
            ensure_tenant_tables(*plane_, facts->tenant_indexes.at(tenant.id), tenant.flows_max);
        !ok)
      return pass_on(ok);

  PolicyChange change;
  change.tables = &compiled->tables;
  change.generation = next->generation;
  const std::string canonical = render_policy_json(*next);
  ::SHA256(reinterpret_cast<const unsigned char*>(canonical.data()), canonical.size(),
           change.digest);
  for (const Tenant& tenant : next->tenants)
    for (const TenantPort& port : tenant.ports)
      if (const auto at = facts->ifindex.find(port.interface); at != facts->ifindex.end())
        change.tenant_ports.push_back({at->second, port.interface});
  for (const std::string& uplink : next->uplinks)
    if (const auto at = facts->ifindex.find(uplink); at != facts->ifindex.end())
      change.uplinks.push_back({at->second, uplink});
  change.host = host_rules(*next);
  change.insist = !lenient;
  // A push says what is a port from now on; a policy that only follows the network does not.
  const std::set<uint32_t> shut = lenient ? shut_ports(*next, *facts) : std::set<uint32_t>();
  for (const uint32_t ifindex : shut)
    change.shut_ports.push_back({ifindex, network_.find(ifindex)->name});
  describe_nft_change(*next, *facts, shut, change);

  for (const auto& [name, ifindex] : facts->ifindex) attached_.insert(ifindex);
  attached_.insert(shut.begin(), shut.end());
  Result<SwapOutcome> swapped = swap_policy(*plane_, change);
  if (!swapped) {
    if (policy_) restore_nft_of_policy_in_force();
    return pass_on(swapped);
  }
  auto* dark = &swapped->dark;

  // The policy is in force. What it no longer names ends now.
  guarded_ports_ = shut;
  for (const Interface& port : change.tenant_ports) guarded_ports_.insert(port.ifindex);
  for (const Tenant& tenant : next->tenants)
    if (Status ok =
            resize_flow_table(*plane_, facts->tenant_indexes.at(tenant.id), tenant.flows_max);
        !ok)
      log::error("flow_table_kept", {{"tenant", tenant.name}, {"cause", ok.error().text()}});
  Status stored;
  // Generation 0 is the policy of a node that was never given one: it is made anew at every start.
  if (next->generation != 0 && next != policy_)
    stored = write_state_file(options_.state_dir, "policy.json", canonical);
  std::vector<bool> used(plane_->slots.size(), false);
  std::vector<Term> moved;
  const auto follow = [&](uint32_t slot, uint32_t ifindex) {
    used[slot] = true;
    if (plane_->slots.bound(slot) && plane_->slots.record(slot).ifindex != ifindex) {
      if (Status ok = plane_->nft.apply([&] {
            nft::Changes old;
            if (plane_->slots.record(slot).ifindex != 0)
              old.revoke(lease_element(plane_->slots.record(slot),
                                       plane_->slots.slot(slot).flags & abi::HF_SLOT_PEER));
            return old;
          }());
          !ok)
        log::warning("nft_element_left", {{"cause", ok.error().text()}});
      plane_->slots.set_interface(slot, ifindex);
      if (ifindex != 0)
        moved.push_back({slot, abi::hf_gate_deadline_boot_ns(plane_->slots.gate(slot))});
    }
  };
  for (const abi::endpoint_entry& entry : compiled->tables.endpoints)
    follow(entry.slot, entry.ifindex);
  for (const Tenant& tenant : next->tenants)
    for (const TenantPort& port : tenant.ports) {
      const auto at = facts->ifindex.find(port.interface);
      follow(compiled->egress_slots.at({tenant.id, port.name}),
             at == facts->ifindex.end() ? 0 : at->second);
    }
  if (!moved.empty())
    if (Status ok = restore_elements(*plane_, moved); !ok)
      log::error("nft_elements_missing", {{"cause", ok.error().text()}});

  std::vector<uint32_t> ended = slots_losing(used);
  for (const uint32_t slot : ended) used[slot] = true;  // until its teardown is proved
  for (uint32_t slot = 0; slot < used.size(); ++slot)
    if (draining_[slot] || plane_->slots.record(slot).phase == abi::HF_PHASE_FENCED ||
        (!policy_ && plane_->slots.record(slot).phase != 0))
      used[slot] = true;
  const bool is_new = next != policy_;
  const std::shared_ptr<const Policy> old =
      policy_;  // the index refers into it until it is replaced
  policy_ = std::move(next);
  index_ = std::make_unique<PolicyIndex>(*policy_);
  facts_ = std::move(*facts);
  for (const auto& [name, slot] : egress_slots_) egress_slots_left_[name] = slot;
  egress_slots_ = std::move(compiled->egress_slots);
  slot_used_ = std::move(used);
  for (const std::string& name : interfaces_of(*policy_))
    if (!facts_.ifindex.contains(name)) dark->emplace_back(name, why_no_port(name));
  const auto dark_before = std::exchange(dark_, *dark);
  const auto unenforced_before = std::exchange(unenforced_uplinks_, std::move(swapped->unenforced));
  outcome.dark = std::move(*dark);
  outcome.leases_ended = count_leases(ended);
  outcome.applied = true;
  if (is_new) name_leases();
  if (!ended.empty()) tear_down(std::move(ended), "torndown", {});

  // Interfaces that are no longer ours get their hooks back. They were disarmed before the flip.
  detach_all_but_ours();
  for (const auto& [name, error] : dark_)
    if (std::none_of(dark_before.begin(), dark_before.end(), [&](const auto& was) {
          return was.first == name && was.second.text() == error.text();
        }))
      journal_.record(log::Level::error, "interface.dark",
                      {{"interface", name}, {"code", error.code}, {"cause", error.text()}});
  for (const auto& [name, error] : dark_before)
    if (std::ranges::none_of(dark_, [&](const auto& is) { return is.first == name; }))
      journal_.record("interface.back", {{"interface", name}});
  for (const Unenforced& uplink : unenforced_uplinks_)
    if (std::none_of(unenforced_before.begin(), unenforced_before.end(), [&](const auto& was) {
          return was.interface == uplink.interface && was.cause.text() == uplink.cause.text();
        }))
      log::error("unenforced", {{"what", name_of(uplink.layer)},
                                {"interface", uplink.interface},
                                {"cause", uplink.cause.text()}});
  journal_.record("policy.apply", {{"generation", policy_->generation},
                                   {"changes", outcome.changes.size()},
                                   {"leases_ended", outcome.leases_ended},
                                   {"dark", dark_.size()}});
  if (!swapped->widened) {
    // Somebody took our table away in the middle of it, or the kernel is out of memory.
    log::error("nft_not_widened", {{"cause", swapped->widened.error().text()}});
    if (is_new) loop_.defer([this] { restore_nft(); });  // else the drift check tries again
    return pass_on(swapped->widened,
                   "the policy is in force, but nftables denies what only it allows; it is being "
                   "written again");
  }
  if (!stored) return pass_on(stored, "the policy is in force, but would not survive a restart");
  return outcome;
}

// The slots of leases that lose a resource when only those named stay. A lease ends as a whole:
// half a one has nobody to answer for it.
std::vector<uint32_t> Node::slots_losing(const std::vector<bool>& named) const {
  std::set<uint32_t> losing;
  for (uint32_t slot = 0; policy_ && slot < named.size(); ++slot) {
    if (named[slot] || !slot_used_[slot] || draining_[slot] || !plane_->slots.bound(slot)) continue;
    for (const uint32_t part : slots_of(plane_->slots.record(slot).first_slot))
      if (plane_->slots.bound(part)) losing.insert(part);
  }
  return {losing.begin(), losing.end()};
}

uint32_t Node::count_leases(std::span<const uint32_t> slots) const {
  return static_cast<uint32_t>(std::ranges::count_if(
      slots, [&](uint32_t slot) { return plane_->slots.record(slot).first_slot == slot; }));
}

bool Node::is_unenforced(const std::string& uplink) const {
  return std::any_of(unenforced_uplinks_.begin(), unenforced_uplinks_.end(),
                     [&](const Unenforced& each) { return each.interface == uplink; });
}

std::vector<Unenforced> Node::unenforced() const {
  std::vector<Unenforced> all = plane_->unenforced;
  all.insert(all.end(), unenforced_uplinks_.begin(), unenforced_uplinks_.end());
  return all;
}

// Of an interface that the policy in force names and that is no port now.
Error Node::why_no_port(const std::string& name) const {
  const LinkInfo* link = network_.find(name);
  if (link == nullptr) return interface_missing(name);
  const bool is_uplink =
      std::find(policy_->uplinks.begin(), policy_->uplinks.end(), name) != policy_->uplinks.end();
  const Status ok = is_uplink ? check_uplink_interface(*link) : check_tenant_interface(*link);
  return ok ? interface_missing(name) : ok.error();
}

// After a swap that failed before its flip: nft as wide as the policy in force has it.
void Node::restore_nft_of_policy_in_force() {
  PolicyChange back;
  describe_nft_change(*policy_, facts_, guarded_ports_, back);
  Status ok = plane_->nft.ensure(host_rules(*policy_));
  if (ok) ok = plane_->nft.apply(back.widen);
  if (!ok) log::error("nft_not_restored", {{"cause", ok.error().text()}});
  detach_all_but_ours();
}

// Hooks stay where the policy in force wants them, and on what it has shut.
void Node::detach_all_but_ours() {
  std::set<uint32_t> ours = guarded_ports_;
  for (const auto& [name, ifindex] : facts_.ifindex) ours.insert(ifindex);
  for (const uint32_t ifindex : plane_->attachments.pinned_interfaces()) attached_.insert(ifindex);
  for (const uint32_t ifindex : attached_) {
    if (ours.contains(ifindex)) continue;
    if (Status ok = plane_->attachments.detach(ifindex); !ok)
      log::warning("hook_left", {{"interface", ifindex}, {"cause", ok.error().text()}});
  }
  attached_ = std::move(ours);
}

void Node::refresh_network() {
  // Its pin may have been removed, and the link with it. Without it since the start: status says
  // so.
  const bool no_clock =
      std::any_of(plane_->unenforced.begin(), plane_->unenforced.end(),
                  [](const Unenforced& each) { return each.layer == Layer::suspend; });
  if (!no_clock)
    if (Status ok = plane_->attachments.attach_clock(); !ok)
      log::error("clock_unguarded", {{"cause", ok.error().text()}});
  const NodeFacts before = facts_;
  Result<NodeFacts> now = gather_facts(*policy_, true);
  if (!now) {
    log::error("network_unknown", {{"cause", now.error().text()}});
    return;
  }
  // What is there and dark all the same is tried again.
  const bool retry = std::any_of(dark_.begin(), dark_.end(), [&](const auto& entry) {
    return now->ifindex.contains(entry.first);
  });
  const bool gone =
      std::any_of(guarded_ports_.begin(), guarded_ports_.end(),
                  [&](uint32_t ifindex) { return network_.find(ifindex) == nullptr; });
  bool drifted =
      before.ifindex != now->ifindex || before.addresses != now->addresses || retry || gone;
  for (const Tenant& tenant : policy_->tenants)
    for (const TenantPort& port : tenant.ports)
      if (const auto at = now->ifindex.find(port.interface); at != now->ifindex.end() && !drifted)
        drifted = !plane_->attachments.verify_tenant_port({at->second, port.interface});
  for (const std::string& uplink : policy_->uplinks)
    if (const auto at = now->ifindex.find(uplink); at != now->ifindex.end() && !drifted) {
      const Interface interface = {at->second, uplink};
      // One that goes without its hook gets it when there is room; until then nothing has changed.
      drifted = is_unenforced(uplink) ? plane_->attachments.attach_uplink(interface).has_value()
                                      : !plane_->attachments.verify_uplink(interface);
    }
  if (!drifted && !plane_->nft.check_rules(host_rules(*policy_))) return restore_nft();
  if (!drifted) return;
  const Result<PushOutcome> done = change_policy(policy_, false, true);
  if (!done) log::error("network_not_followed", {{"cause", done.error().text()}});
}

std::vector<Term> Node::live_terms() const {
  std::vector<Term> terms;
  for (uint32_t slot = 0; slot < plane_->slots.size(); ++slot)
    if (plane_->slots.bound(slot))
      terms.push_back({slot, abi::hf_gate_deadline_boot_ns(plane_->slots.gate(slot))});
  return terms;
}

void Node::restore_nft() {
  if (ended_) return;
  const Result<PushOutcome> done = change_policy(policy_, false, true);
  Status ok =
      done ? restore_elements(*plane_, live_terms()) : Status(std::unexpected(done.error()));
  if (ok) {
    log::notice("nft_restored", {{"leases", leases_.size()}});
  } else {
    log::error("nft_not_restored", {{"cause", ok.error().text()}});
  }
}

}  // namespace holdfast
