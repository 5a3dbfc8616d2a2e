// The life of a lease: grant, renew, revoke, release, expire, tear down (DESIGN.md section 3).
#include <algorithm>
#include <atomic>
#include <cerrno>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/daemon/node.hpp"
#include "userspace/daemon/times.hpp"

namespace holdfast {
namespace {

// Slots whose leases are forgotten, or whose teardown is finished, in one turn of the loop, so that
// a tenant with a hundred thousand leases does not keep others waiting.
constexpr size_t teardown_slots_per_turn = 4096;

// Slots looked at for one page of a list, so that a filter that fits nothing holds nobody up.
constexpr size_t slots_per_page_max = 65536;

// Leases that end or begin together are recorded one by one up to so many, then as a number for
// each tenant, and of so many tenants as one number.
constexpr size_t leases_recorded_each_max = 16;
constexpr size_t tenants_recorded_each_max = 16;

std::string lease_text(const abi::lease_record& record) {
  return format_lease_id(LeaseId::of(record));
}

bool in_grace(const abi::lease_record& record) {
  return record.phase == abi::HF_PHASE_GRACE || record.phase == abi::HF_PHASE_CHECKPOINT;
}

std::unexpected<Error> generation_mismatch(const abi::lease_record& record, uint64_t generation) {
  return fail(ErrorKind::conflict, "generation_mismatch",
              fmt::format("lease {} is at generation {}, not {}", lease_text(record),
                          record.generation, generation),
              "somebody renewed it in between; look at it and decide again");
}

// Another program took our table, or some of its elements, away.
bool lost_in_nft(const Error& error) {
  return error.code == "nft_table_missing" || error.sys == ENOENT;
}

}  // namespace

// ---- grant

Result<uint32_t> Node::slot_of(const Tenant& tenant, const Resource& resource,
                               abi::lease_record& record) const {
  if (resource.kind == Resource::Kind::endpoint) {
    record.resource_kind = abi::HF_RESOURCE_ENDPOINT;
    record.endpoint = endpoint_key(resource.address, resource.endpoint->protocol, resource.listen);
    // Read from the table that packets read. It stays that one: a lease is bound and opened in one
    // turn of the loop, as a policy is swapped in one.
    const std::optional<abi::endpoint_entry> entry = plane_->banks.endpoint(record.endpoint);
    if (!entry)
      return fail(
          ErrorKind::internal, "endpoint_unbound",
          fmt::format("the active endpoint table does not lead to {}", resource_name(resource)),
          "push the policy again");
    record.ifindex = entry->ifindex;
    return entry->slot;
  }
  record.resource_kind = abi::HF_RESOURCE_EGRESS;
  const auto at = facts_.ifindex.find(resource.port->interface);
  record.ifindex = at == facts_.ifindex.end() ? 0 : at->second;
  return egress_slots_.at({tenant.id, resource.port->name});
}

std::vector<Holder> Actor::holders() const {
  std::vector<Holder> all{{Holder::Kind::uid, uid, {}}};
  if (key) all.push_back({Holder::Kind::key, 0, *key});
  if (cgroups)
    for (const uint64_t id : *cgroups) all.push_back({Holder::Kind::cgroup, id, {}});
  return all;
}

// While some that have ended are still counted, that is over in a moment.
std::unexpected<Error> Node::at_limit(std::string_view code, std::string message,
                                      std::string_view next_step) const {
  if (forgetting_ != 0)
    return fail(ErrorKind::unavailable, "draining",
                message + ", and some of them have ended just now", "try again in a second");
  return fail(ErrorKind::exhausted, code, std::move(message), std::string(next_step));
}

Status Node::bind_lease(const GrantRequest& request, const LeaseId& id, const LeaseOrigin& origin,
                        uint64_t now_boot_ns, std::vector<Term>& bound) {
  const Result<GrantPlan> plan = decide_grant(*index_, request);
  if (!plan) return std::unexpected(plan.error());
  const Tenant& tenant = *plan->tenant;
  const uint32_t tenant_slot = facts_.tenant_indexes.at(tenant.id);
  const abi::tenant_state& state = plane_->tenants[tenant_slot];
  if (tenant_disabled(tenant_slot))
    return fail(ErrorKind::conflict, "tenant_disabled",
                fmt::format("tenant {} is disabled", tenant.name),
                fmt::format("holdfast tenant enable {}", tenant.name));
  uint32_t& binding = binding_of_tenant_[tenant_slot];
  if (leases_.of_tenant(tenant_slot) + binding >= tenant.leases_max)
    return at_limit(
        "tenant_leases_max",
        fmt::format("tenant {} has {} leases, its limit", tenant.name, tenant.leases_max),
        "release some, or raise the tenant's limits.leases");

  const size_t first = bound.size();
  for (const Resource& resource : plan->resources) {
    Binding b;
    const Result<uint32_t> slot = slot_of(tenant, resource, b.record);
    if (!slot) return std::unexpected(slot.error());
    const abi::lease_record& there = plane_->slots.record(*slot);
    const auto named = [&] { return resource_name(resource); };
    if (there.phase == abi::HF_PHASE_FENCED)
      return fail(ErrorKind::conflict, "fenced",
                  fmt::format("{} of tenant {} is fenced", named(), tenant.name),
                  "its last teardown could not be proved; an operator has to clear it");
    if (draining_[*slot])
      return fail(ErrorKind::unavailable, "draining",
                  fmt::format("{} of tenant {} is being torn down", named(), tenant.name),
                  "try again in a second");
    if (plane_->slots.bound(*slot))
      return fail(ErrorKind::conflict, "already_leased",
                  fmt::format("{} of tenant {} is held by lease {}", named(), tenant.name,
                              lease_text(there)),
                  "revoke it first, or renew it");
    if (plane_->slots.binding(*slot))
      return fail(
          ErrorKind::invalid, "named_twice",
          fmt::format("{} of tenant {} is named twice in this request", named(), tenant.name),
          "name each resource once");
    if (plane_->slots.retired(*slot))
      return fail(ErrorKind::exhausted, "slot_retired",
                  fmt::format("{} of tenant {} has used up its incarnations", named(), tenant.name),
                  "push a policy without it, then one with it: it gets a new slot");

    abi::lease_record& r = b.record;
    r.lease_id[0] = id.words[0];
    r.lease_id[1] = id.words[1];
    r.granted_boot_ns = now_boot_ns;
    r.generation = there.generation + 1;
    r.tenant_id = tenant.id;
    r.holder = request.holder.id;
    r.holder_kind = request.holder.kind == Holder::Kind::uid   ? abi::HF_HOLDER_UID
                    : request.holder.kind == Holder::Kind::key ? abi::HF_HOLDER_KEY
                                                               : abi::HF_HOLDER_CGROUP;
    std::ranges::copy(request.holder.key, r.holder_key);
    r.grace_ms = static_cast<uint32_t>(request.grace_ns / ns_per_ms);
    r.phase = abi::HF_PHASE_ACTIVE;
    r.issuer = origin.issuer;
    r.head = origin.head;
    r.token = origin.token;
    r.issued_s = origin.issued_s;
    r.first_slot = bound.size() == first ? *slot : bound[first].slot;
    r.next_slot = abi::HF_NO_SLOT;
    if (request.peer) {
      b.has_peer = true;
      store_address(r.peer, request.peer->address);
      r.peer_prefix_bits = request.peer->bits;
    }
    b.tenant = tenant_slot;
    b.tenant_epoch = state.epoch;
    plane_->slots.bind(*slot, b);
    names_bound_.push_back(names_.hash(tenant.name, named()));
    if (bound.size() != first) plane_->slots.link(bound.back().slot, *slot);
    bound.push_back({*slot, now_boot_ns + request.ttl_ns});
  }
  // One generation for all of the lease: its tokens name it.
  uint64_t generation = 0;
  for (size_t i = first; i < bound.size(); ++i)
    generation = std::max<uint64_t>(generation, plane_->slots.record(bound[i].slot).generation);
  for (size_t i = first; i < bound.size(); ++i)
    plane_->slots.set_generation(bound[i].slot, generation);
  ++binding;
  return {};
}

Result<Grant> Node::grant(const Actor& actor,
                          const std::function<Result<bool>(GrantRequest&)>& next,
                          const LeaseOrigin& origin, const ByToken* token) {
  if (!actor.operates)
    return fail(ErrorKind::denied, "not_operator", "granting a lease takes an operator",
                "join group holdfast-operator, or ask an operator");
  if (Status ok = may_lease(false); !ok) return pass_on(ok);
  std::vector<Term> bound;
  Grant granted;
  std::vector<LeaseId>& ids = granted.ids;
  const uint64_t now = boot_now_ns();
  binding_of_tenant_.clear();
  names_bound_.clear();

  // Everything is bound, still denying, before anything opens: a batch is granted whole or not at
  // all.
  const auto refuse = [&](Error error) -> Result<Grant> {
    for (const Term& term : bound) {
      plane_->slots.close(term.slot);
      plane_->slots.set_phase(term.slot, 0);
    }
    return std::unexpected(std::move(error));
  };
  GrantRequest request;
  for (;;) {
    Result<bool> more = next(request);
    if (!more) return refuse(std::move(more.error()));
    if (!*more) break;
    const LeaseId id = token != nullptr ? token->id : LeaseId::random();
    Status ok = leases_.size() + ids.size() < policy_->leases_max
                    ? bind_lease(request, id, origin, now, bound)
                    : Status(at_limit(
                          "leases_max",
                          fmt::format("this node has {} leases, its limit", policy_->leases_max),
                          "release some, or raise limits.leases in the policy"));
    if (!ok)
      return refuse(
          ids.empty()
              ? std::move(ok.error())
              : std::move(ok.error()).in(fmt::format("lease {} of the batch", ids.size() + 1)));
    ids.push_back(id);
  }
  if (token != nullptr)
    if (Status ok = token->spend(); !ok) return refuse(std::move(ok.error()));
  if (Status ok = open_leases(*plane_, bound, granted.nft_ns); !ok)
    return refuse(std::move(ok.error()));
  granted.ebpf_ns = boot_now_ns() - now - granted.nft_ns;

  leases_.reserve(ids.size());
  for (size_t i = 0; i < bound.size(); ++i) names_.put(bound[i].slot, names_bound_[i]);
  std::vector<uint32_t> firsts;
  firsts.reserve(ids.size());
  for (const Term& term : bound) {
    const abi::lease_record& record = plane_->slots.record(term.slot);
    issuers_.put(term.slot, record.issuer, record.first_slot == term.slot);
    if (record.first_slot != term.slot) continue;
    leases_.add(LeaseId::of(record), term.slot, record.incarnation, term.deadline_boot_ns,
                plane_->slots.slot(term.slot).tenant);
    firsts.push_back(term.slot);
  }
  journal_grants(firsts, now, token != nullptr && token->admission ? &*token->admission : nullptr);
  arm_expiry_timer();
  return granted;
}

void Node::journal_grants(std::span<const uint32_t> first_slots, uint64_t now_boot_ns,
                          const Scheduling* admission) {
  if (first_slots.size() > leases_recorded_each_max) {
    std::map<uint64_t, size_t> leases;
    for (const uint32_t slot : first_slots) ++leases[plane_->slots.record(slot).tenant_id];
    if (leases.size() > tenants_recorded_each_max)
      return journal_.record("lease.grant", {{"leases", first_slots.size()}});
    for (const auto& [id, count] : leases)
      journal_.record("lease.grant", {{"leases", count}, {"tenant", owner_name(id)}});
    return;
  }
  for (const uint32_t slot : first_slots) {
    const LeaseView lease = view(slot);
    std::vector<log::Field> fields{{"lease", format_lease_id(lease.id)},
                                   {"tenant", lease.tenant},
                                   {"resources", lease.resources},
                                   {"holder", holder_name(lease.holder)},
                                   {"generation", lease.generation},
                                   {"expires_at", wall_of(lease.deadline_boot_ns)},
                                   {"term", human_duration(lease.deadline_boot_ns - now_boot_ns)}};
    if (admission != nullptr)
      fields.insert(fields.end(), {{"scheduler", admission->scheduler},
                                   {"scheduler_key", admission->key},
                                   {"reason", admission->reason},
                                   {"admission", admission->object}});
    journal_.record(log::Level::info, "lease.grant", std::move(fields));
  }
}

// ---- renew

Error no_such_lease(const LeaseId& id) {
  return {ErrorKind::not_found, "no_such_lease", 0,
          fmt::format("there is no lease {}", format_lease_id(id)),
          "it may have ended: `holdfast lease ls`"};
}

Result<uint32_t> Node::find_live(const LeaseId& id) const {
  const std::optional<uint32_t> slot = leases_.find(id);
  if (slot && !draining_[*slot]) return *slot;
  return std::unexpected(no_such_lease(id));
}

Status Node::check_holder(const Actor& actor, uint32_t first_slot) const {
  const abi::lease_record& record = plane_->slots.record(first_slot);
  if (actor.operates || actor.is(holder_of(record))) return {};
  return fail(ErrorKind::denied, "not_holder",
              fmt::format("lease {} is not yours", lease_text(record)),
              "only its holder or an operator may do this");
}

Result<LeaseView> Node::renew(const Actor& actor, const LeaseId& id, uint64_t ttl_ns,
                              std::optional<uint64_t> generation, const LeaseOrigin* origin) {
  if (Status ok = check_term(ttl_ns); !ok) return pass_on(ok);
  if (Status ok = may_lease(true); !ok) return pass_on(ok);
  const Result<uint32_t> slot = find_live(id);
  if (!slot) return std::unexpected(slot.error());
  if (Status ok = check_holder(actor, *slot); !ok) return pass_on(ok);
  const abi::lease_record& record = plane_->slots.record(*slot);
  if (generation && *generation != record.generation)
    return generation_mismatch(record, *generation);
  if (in_grace(record))
    return fail(ErrorKind::conflict, "being_revoked",
                fmt::format("lease {} is being revoked", lease_text(record)),
                "grant a new one after it ended");
  const abi::lease_slot& place = plane_->slots.slot(*slot);
  if (tenant_disabled(place.tenant) || plane_->tenants[place.tenant].epoch != place.tenant_epoch)
    return fail(ErrorKind::conflict, "tenant_disabled",
                fmt::format("lease {} ended when its tenant was disabled", lease_text(record)),
                "grant a new one once the tenant is enabled");
  const uint64_t now = boot_now_ns();
  const uint64_t before = abi::hf_gate_deadline_boot_ns(plane_->slots.gate(*slot));
  if (!actor.operates)
    if (Status ok = check_renewal(before > now ? before - now : 0, ttl_ns); !ok)
      return pass_on(ok, fmt::format("lease {}", lease_text(record)));
  const uint64_t deadline = now + ttl_ns;
  // First: whoever revokes what it stands on from here on finds it.
  const LeaseOrigin former = origin_of(record);
  if (origin != nullptr) set_origin(*slot, *origin);
  if (deadline < before) {
    if (Status ok = shorten(*slot, deadline); !ok) return pass_on(ok);
  } else {
    const std::vector<Term> terms = terms_of(*slot, deadline);
    if (Status ok = move_deadline(*plane_, terms); !ok) {
      set_origin(*slot, former);
      // Some of its gates may stand at the new deadline and some at the old one, or be shut.
      if (ok.error().code == lease_closed_code) tear_down(slots_of(*slot), "failed_closed", {});
      return pass_on(ok);
    }
    leases_.moved(*slot, record.incarnation, deadline);
    arm_expiry_timer();
  }
  journal_.record("lease.renew", {{"lease", lease_text(record)},
                                  {"tenant", owner_name(record.tenant_id)},
                                  {"generation", record.generation},
                                  {"expires_at", wall_of(deadline)},
                                  {"term", human_duration(ttl_ns)}});
  return view(*slot);
}

uint64_t Node::issuer_of(const LeaseId& id) const {
  const Result<uint32_t> slot = find_live(id);
  return slot ? plane_->slots.record(*slot).issuer : 0;
}

LeaseOrigin Node::origin_of(const abi::lease_record& record) {
  return {record.issuer, record.head, record.token, record.issued_s};
}

void Node::set_origin(uint32_t first_slot, const LeaseOrigin& origin) {
  for (const uint32_t slot : slots_of(first_slot)) {
    plane_->slots.set_origin(slot, origin.issuer, origin.head, origin.token, origin.issued_s);
    issuers_.put(slot, origin.issuer, slot == first_slot);
  }
}

std::vector<Term> Node::terms_of(uint32_t first_slot, uint64_t deadline_boot_ns) const {
  std::vector<Term> terms;
  for (const uint32_t slot : slots_of(first_slot)) terms.push_back({slot, deadline_boot_ns});
  return terms;
}

// The gates first: from there on the kernel ends the lease at its new deadline, whatever becomes of
// nft and of us.
Status Node::shorten(uint32_t first_slot, uint64_t deadline_boot_ns) {
  const std::vector<Term> terms = terms_of(first_slot, deadline_boot_ns);
  if (Status ok = draw_gates_nearer(*plane_, terms); !ok) {
    if (ok.error().code == lease_closed_code) tear_down(slots_of(first_slot), "failed_closed", {});
    return ok;
  }
  leases_.moved(first_slot, plane_->slots.record(first_slot).incarnation, deadline_boot_ns);
  arm_expiry_timer();
  Status ok = draw_elements_nearer(*plane_, terms);
  if (!ok && lost_in_nft(ok.error())) {
    // It comes back with the new deadline.
    restore_nft();
    ok = draw_elements_nearer(*plane_, terms);
  }
  if (ok) return {};
  return pass_on(ok, fmt::format("the lease ends in {} all the same, but nftables was not told",
                                 human_duration(deadline_boot_ns - boot_now_ns())));
}

// ---- end

// One line for each of the leases that these slots are of, or their number.
void Node::journal_leases(JournalAction action, std::span<const uint32_t> slots) {
  struct Part {
    LeaseId id;
    uint64_t tenant_id;
    size_t slots;
  };
  std::vector<Part> leases;
  for (const uint32_t slot : slots) {
    const abi::lease_record& record = plane_->slots.record(slot);
    const LeaseId id = LeaseId::of(record);
    if (leases.empty() || leases.back().id != id) leases.push_back({id, record.tenant_id, 0});
    ++leases.back().slots;
  }
  std::ranges::sort(leases, {}, &Part::id);
  size_t distinct = 0;  // a lease's slots may be apart
  for (const Part& part : leases) {
    if (distinct != 0 && leases[distinct - 1].id == part.id)
      leases[distinct - 1].slots += part.slots;
    else
      leases[distinct++] = part;
  }
  leases.resize(distinct);
  if (leases.size() <= leases_recorded_each_max) {
    for (const Part& part : leases)
      journal_.record(action, {{"lease", format_lease_id(part.id)},
                               {"tenant", owner_name(part.tenant_id)},
                               {"slots", part.slots}});
    return;
  }
  struct Sum {
    size_t leases = 0;
    size_t slots = 0;
  };
  std::map<uint64_t, Sum> tenants;
  for (const Part& part : leases) {
    Sum& sum = tenants[part.tenant_id];
    ++sum.leases;
    sum.slots += part.slots;
  }
  if (tenants.size() > tenants_recorded_each_max)
    return journal_.record(action, {{"leases", leases.size()}, {"slots", slots.size()}});
  for (const auto& [id, sum] : tenants)
    journal_.record(action,
                    {{"leases", sum.leases}, {"tenant", owner_name(id)}, {"slots", sum.slots}});
}

void Node::revoke(const LeaseId& id, std::optional<uint64_t> grace, Done done) {
  const Result<uint32_t> slot = find_live(id);
  if (!slot) return done(std::unexpected(slot.error()));
  end_lease(*slot, grace, std::move(done));
}

void Node::end_lease(uint32_t first_slot, std::optional<uint64_t> grace, Done done,
                     const std::function<void()>& say_why) {
  const abi::lease_record& record = plane_->slots.record(first_slot);
  const uint64_t grace_ns = grace.value_or(record.grace_ms * ns_per_ms);
  const uint64_t ends = boot_now_ns() + std::min(grace_ns, lease_term_max_ns);
  const uint64_t deadline = abi::hf_gate_deadline_boot_ns(plane_->slots.gate(first_slot));
  if (grace_ns == 0) return tear_down(slots_of(first_slot), "torndown", std::move(done), say_why);
  const std::string lease = lease_text(record);
  const std::string tenant = owner_name(record.tenant_id);
  if (say_why) say_why();
  // A grace that runs already gets no longer.
  if (in_grace(record) && ends >= deadline) return done({});
  journal_.record("lease.revoke_warning",
                  {{"lease", lease}, {"tenant", tenant}, {"grace", human_duration(grace_ns)}});
  // Grace is a shorter term: the kernel ends it, whatever becomes of us. It never passes the
  // lease's end. In its grace it is not renewed, so that comes first.
  if (!in_grace(record))
    for (const uint32_t s : slots_of(first_slot)) plane_->slots.set_phase(s, abi::HF_PHASE_GRACE);
  const Status ok = shorten(first_slot, std::min(ends, deadline));
  if (ok || ok.error().code != lease_closed_code)
    journal_.record(
        "lease.grace_running",
        {{"lease", lease}, {"tenant", tenant}, {"expires_at", wall_of(std::min(ends, deadline))}});
  done(ok);
}

void Node::preempt(const LeaseId& id, const Preemption& said, Done done) {
  const Result<uint32_t> slot = find_live(id);
  if (!slot) return done(std::unexpected(slot.error()));
  const abi::lease_record& record = plane_->slots.record(*slot);
  // The grace has raised it by one: the same preempt, of which the answer was lost, still fits.
  const bool fits = said.generation == record.generation ||
                    (in_grace(record) && said.generation + 1 == record.generation);
  if (!fits) return done(generation_mismatch(record, said.generation));
  end_lease(*slot, said.grace_ns, std::move(done), [this, &said, &record] {
    journal_.record("lease.preempted", {{"lease", lease_text(record)},
                                        {"tenant", owner_name(record.tenant_id)},
                                        {"generation", said.generation},
                                        {"scheduler", said.by.scheduler},
                                        {"scheduler_key", said.by.key},
                                        {"reason", said.by.reason},
                                        {"preempt", said.by.object}});
  });
}

void Node::release(const Actor& actor, const LeaseId& id, Done done) {
  const Result<uint32_t> slot = find_live(id);
  if (!slot) return done(std::unexpected(slot.error()));
  if (Status ok = check_holder(actor, *slot); !ok) return done(ok);
  tear_down(slots_of(*slot), "torndown", std::move(done));
}

void Node::checkpoint(const Actor& actor, const LeaseId& id, std::string_view note, bool keep_grace,
                      Done done) {
  const Result<uint32_t> slot = find_live(id);
  if (!slot) return done(std::unexpected(slot.error()));
  if (Status ok = check_holder(actor, *slot); !ok) return done(ok);
  const abi::lease_record& record = plane_->slots.record(*slot);
  if (!in_grace(record))
    return done(fail(ErrorKind::conflict, "not_in_grace",
                     fmt::format("lease {} is not in its grace", lease_text(record)),
                     "report it once the lease is revoked with a grace: holdfast watch tells"));
  const auto report = [&] {
    journal_.record("lease.checkpoint_reported", {{"lease", lease_text(record)},
                                                  {"tenant", owner_name(record.tenant_id)},
                                                  {"holder", holder_name(holder_of(record))},
                                                  {"generation", record.generation},
                                                  {"note", note}});
  };
  // It is told once.
  if (keep_grace && record.phase == abi::HF_PHASE_CHECKPOINT) return done({});
  const std::vector<uint32_t> slots = slots_of(*slot);
  for (const uint32_t each : slots) plane_->slots.set_phase(each, abi::HF_PHASE_CHECKPOINT);
  if (!keep_grace) return tear_down(slots, "torndown", std::move(done), report);
  report();
  done({});
}

void Node::tear_down(std::vector<uint32_t> slots, std::string_view outcome, Done done,
                     const std::function<void()>& say_why) {
  plane_->slots.close(slots);  // first, and nothing before it
  if (say_why) say_why();
  // From here on nothing is bound there, and nobody finds their leases.
  for (const uint32_t slot : slots) {
    draining_[slot] = true;
    issuers_.remove(slot);
  }
  ++forgetting_;
  forget(std::make_shared<const std::vector<uint32_t>>(std::move(slots)), 0, outcome,
         std::move(done));
}

// What is still kept of the leases of closed slots, in turns of the loop; then the rest of their
// teardown.
void Node::forget(const std::shared_ptr<const std::vector<uint32_t>>& slots, size_t from,
                  std::string_view outcome, Done done) {
  const auto part =
      std::span(*slots).subspan(from, std::min(slots->size() - from, teardown_slots_per_turn));
  for (const uint32_t slot : part) {
    names_.remove(slot);
    const abi::lease_record& record = plane_->slots.record(slot);
    if (record.first_slot == slot)
      leases_.remove(LeaseId::of(record), plane_->slots.slot(slot).tenant);
  }
  journal_leases("lease.forced_teardown", part);
  from += part.size();
  if (from < slots->size())
    return loop_.defer([this, slots, from, outcome, done = std::move(done)]() mutable {
      forget(slots, from, outcome, std::move(done));
    });
  --forgetting_;
  grace_.after_grace_period(
      [this, slots, outcome, done = std::move(done)] { teardown_finished(*slots, outcome, done); });
}

// Free, or fenced: the end of one slot's teardown.
void Node::settle(uint32_t slot, const Status& proved) {
  plane_->slots.set_phase(slot, proved ? 0U : static_cast<uint32_t>(abi::HF_PHASE_FENCED));
  draining_[slot] = false;
  if (!proved) return;
  const abi::lease_record& record = plane_->slots.record(slot);
  if (record.resource_kind == abi::HF_RESOURCE_ENDPOINT) {
    const auto entry = plane_->banks.endpoint(record.endpoint);
    slot_used_[slot] = entry && entry->slot == slot;
  } else {
    slot_used_[slot] = std::any_of(egress_slots_.begin(), egress_slots_.end(),
                                   [&](const auto& entry) { return entry.second == slot; });
  }
}

void Node::teardown_finished(const std::vector<uint32_t>& slots, std::string_view outcome,
                             const Done& done) {
  if (ended_) return;  // with everything else
  const size_t now = std::min(slots.size(), teardown_slots_per_turn);
  const auto part = std::span(slots).first(now);
  // Together first, since that is one transaction; if that fails each by itself, so that what
  // cannot be proved down fences nobody else's.
  Status together = finish_teardown(*plane_, part);
  if (!together && together.error().code == "nft_table_missing") {
    // Another program took our table away, and with it what had to be removed. It comes back
    // without it.
    restore_nft();
    together = finish_teardown(*plane_, part);
  }
  Status ok;
  std::vector<uint32_t> down, fenced;
  for (const uint32_t slot : part) {
    const Status own = together ? together : finish_teardown(*plane_, std::span(&slot, 1));
    settle(slot, own);
    (own ? down : fenced).push_back(slot);
    if (!own) ok = own;
  }
  if (!down.empty())
    journal_leases(outcome == "torndown" ? JournalAction("lease.torndown")
                                         : JournalAction("lease.failed_closed"),
                   down);
  if (!ok) {
    const std::string lease = lease_text(plane_->slots.record(fenced.front()));
    journal_leases("lease.fenced", fenced);
    log::error("lease.teardown_unproved", {{"lease", lease}, {"cause", ok.error().text()}});
    ok = fail(
        ErrorKind::conflict, "fenced",
        fmt::format("the teardown of lease {} could not be proved: {}", lease, ok.error().text()),
        "the gate denies; the resource stays fenced until an operator clears it");
  }
  if (now < slots.size()) {
    auto rest = std::make_shared<std::vector<uint32_t>>(slots.begin() + static_cast<ptrdiff_t>(now),
                                                        slots.end());
    loop_.defer([this, rest, outcome, done] { teardown_finished(*rest, outcome, done); });
    return;
  }
  if (done) done(ok);
}

void Node::expire_due() {
  std::vector<uint32_t> due;
  const uint64_t now = boot_now_ns();
  for (auto next = leases_.earliest(); next && next->deadline_boot_ns <= now;
       next = leases_.earliest()) {
    leases_.pop();
    const uint64_t gate = plane_->slots.gate(next->slot);
    const bool same =
        abi::hf_gate_incarnation(gate) == next->incarnation && plane_->slots.bound(next->slot);
    // Renewed meanwhile: a later entry stands for it.
    if (!same || abi::hf_gate_deadline_boot_ns(gate) > now) continue;
    const std::vector<uint32_t> slots = slots_of(next->slot);
    due.insert(due.end(), slots.begin(), slots.end());
  }
  if (!due.empty()) {
    journal_leases("lease.expired", due);
    tear_down(std::move(due), "failed_closed", {});
  }
  expiry_timer_at_ = 0;
  arm_expiry_timer();
}

void Node::arm_expiry_timer() {
  const auto next = leases_.earliest();
  if (!next || (expiry_timer_at_ != 0 && expiry_timer_at_ <= next->deadline_boot_ns)) return;
  // The gate's clock ticks in 2^20 ns and rounds down, so at the deadline the kernel has denied
  // already.
  expiry_timer_at_ = next->deadline_boot_ns;
  expiry_timer_ = loop_.at(expiry_timer_at_, [this] { expire_due(); });
}

// ---- tenants

Status Node::disable_tenant(std::string_view name) {
  const Tenant* tenant = index_->tenant(name);
  if (tenant == nullptr)
    return fail(ErrorKind::not_found, "no_such_tenant", fmt::format("there is no tenant {}", name),
                "`holdfast tenant ls` lists them");
  const uint32_t index = facts_.tenant_indexes.at(tenant->id);
  abi::tenant_state& state = plane_->tenants[index];
  // One store ends every lease of the tenant; it comes before anything else.
  std::atomic_ref<decltype(state.epoch)>(state.epoch).fetch_add(1, std::memory_order_seq_cst);
  std::atomic_ref<decltype(state.flags)>(state.flags).fetch_or(abi::HF_TENANT_DISABLED);
  nft::Changes changes;
  for (const TenantPort& port : tenant->ports)
    if (const auto at = facts_.ifindex.find(port.interface); at != facts_.ifindex.end())
      changes.disarm.push_back(at->second);
  journal_.record("tenant.disable", {{"tenant", name}, {"leases", leases_.of_tenant(index)}});
  tear_down_tenant(index);
  if (changes.empty()) return {};
  const auto disarm = [&] {
    Status ok = plane_->nft.apply(changes);
    return ok ? plane_->nft.verify(changes) : ok;
  };
  Status ok = disarm();
  if (!ok && lost_in_nft(ok.error())) {
    restore_nft();  // without the ports of a tenant that is disabled
    ok = disarm();
  }
  if (ok) return {};
  return pass_on(ok, fmt::format("tenant {} is disabled and its leases have ended, but its ports "
                                 "still stand in nft's armed set",
                                 name));
}

Status Node::enable_tenant(std::string_view name) {
  const Tenant* tenant = index_->tenant(name);
  if (tenant == nullptr)
    return fail(ErrorKind::not_found, "no_such_tenant", fmt::format("there is no tenant {}", name),
                "`holdfast tenant ls` lists them");
  const uint32_t index = facts_.tenant_indexes.at(tenant->id);
  if (!tenant_disabled(index)) return {};
  abi::tenant_state& state = plane_->tenants[index];
  std::atomic_ref<decltype(state.flags)>(state.flags)
      .fetch_and(~static_cast<uint32_t>(abi::HF_TENANT_DISABLED));
  nft::Changes changes;
  for (const TenantPort& port : tenant->ports) {
    const auto at = facts_.ifindex.find(port.interface);
    if (at == facts_.ifindex.end()) continue;
    if (Status ok = plane_->attachments.verify_tenant_port({at->second, port.interface}); !ok)
      return ok;
    changes.arm.push_back(at->second);
  }
  journal_.record("tenant.enable", {{"tenant", name}});
  if (changes.empty()) return {};
  if (Status ok = plane_->nft.apply(changes); !ok) return ok;
  return plane_->nft.verify(changes);
}

size_t Node::revoke_all(const std::function<bool(const abi::lease_record&)>& is_meant) {
  std::vector<uint32_t> slots;
  size_t leases = 0;
  for (uint32_t slot = 0; slot < plane_->slots.size(); ++slot) {
    if (!plane_->slots.bound(slot) || draining_[slot]) continue;
    const abi::lease_record& record = plane_->slots.record(slot);
    if (!is_meant(record)) continue;
    slots.push_back(slot);
    if (record.first_slot == slot) ++leases;
  }
  if (!slots.empty()) tear_down(std::move(slots), "torndown", {});
  return leases;
}

size_t Node::revoke_issuers(const std::function<bool(uint64_t)>& is_meant) {
  std::vector<uint32_t> slots;
  size_t leases = 0;
  for (const uint64_t issuer : issuers_.issuers()) {
    if (!is_meant(issuer)) continue;
    leases += issuers_.leases(issuer);
    issuers_.append_slots(issuer, slots);
  }
  if (!slots.empty()) tear_down(std::move(slots), "torndown", {});
  return leases;
}

void Node::tear_down_tenant(uint32_t index) {
  std::vector<uint32_t> slots;
  for (uint32_t slot = 0; slot < plane_->slots.size(); ++slot)
    if (plane_->slots.slot(slot).tenant == index && plane_->slots.bound(slot) && !draining_[slot])
      slots.push_back(slot);
  if (!slots.empty()) tear_down(std::move(slots), "torndown", {});
}

// ---- views

std::vector<uint32_t> Node::slots_of(uint32_t first_slot) const {
  std::vector<uint32_t> slots;
  for (uint32_t slot = first_slot;
       slot < plane_->slots.size() && slots.size() < lease_resources_max;
       slot = plane_->slots.record(slot).next_slot)
    slots.push_back(slot);
  return slots;
}

std::string Node::owner_name(uint64_t tenant_id) const {
  const Tenant* tenant = index_->tenant_by_id(tenant_id);
  return tenant != nullptr ? tenant->name : fmt::format("id {}", tenant_id);
}

Holder Node::holder_of(const abi::lease_record& record) {
  Holder holder;
  holder.kind = record.holder_kind == abi::HF_HOLDER_UID   ? Holder::Kind::uid
                : record.holder_kind == abi::HF_HOLDER_KEY ? Holder::Kind::key
                                                           : Holder::Kind::cgroup;
  holder.id = record.holder;
  std::ranges::copy(record.holder_key, holder.key.begin());
  return holder;
}

LeaseView Node::view(uint32_t first_slot) const {
  const abi::lease_record& record = plane_->slots.record(first_slot);
  LeaseView out;
  out.id = LeaseId::of(record);
  out.deadline_boot_ns = abi::hf_gate_deadline_boot_ns(plane_->slots.gate(first_slot));
  out.granted_boot_ns = record.granted_boot_ns;
  out.generation = record.generation;
  out.holder = holder_of(record);
  if (record.phase == abi::HF_PHASE_FENCED) {
    out.state = LeaseState::fenced;
  } else if (draining_[first_slot]) {
    out.state = LeaseState::draining;
  } else if (out.deadline_boot_ns <= boot_now_ns()) {
    out.state = LeaseState::expired;
  } else if (record.phase == abi::HF_PHASE_GRACE) {
    out.state = LeaseState::grace_running;
  } else if (record.phase == abi::HF_PHASE_CHECKPOINT) {
    out.state = LeaseState::checkpoint_reported;
  }
  if (plane_->slots.slot(first_slot).flags & abi::HF_SLOT_PEER)
    out.peer = Prefix{address_of(record.peer), static_cast<uint8_t>(record.peer_prefix_bits)};
  out.tenant = owner_name(record.tenant_id);
  for (const uint32_t slot : slots_of(first_slot)) out.resources.push_back(resource_text(slot));
  return out;
}

// What the policy in force calls the resource that is leased at a slot.
std::string Node::resource_text(uint32_t slot) const {
  const abi::lease_record& record = plane_->slots.record(slot);
  if (record.resource_kind == abi::HF_RESOURCE_EGRESS) {
    std::string port = "?";
    for (const auto& [name, egress] : egress_slots_)
      if (egress == slot) port = name.second;
    return "egress:" + port;
  }
  const Tenant* tenant = index_->tenant_by_id(record.tenant_id);
  Resource resource;
  resource.address = address_of(record.endpoint.address);
  resource.listen = port_of(record.endpoint);
  if (tenant != nullptr)
    resource.endpoint = index_->endpoint_at(*tenant, resource.address, protocol_of(record.endpoint),
                                            resource.listen);
  return resource.endpoint != nullptr ? resource_name(resource)
                                      : "?@" + format_address(resource.address);
}

// After the start, and after a policy that may call them otherwise.
void Node::name_leases() {
  for (uint32_t slot = 0; slot < plane_->slots.size(); ++slot)
    if (plane_->slots.bound(slot) && !draining_[slot])
      names_.put(
          slot, names_.hash(owner_name(plane_->slots.record(slot).tenant_id), resource_text(slot)));
}

Result<LeaseView> Node::lease(const LeaseId& id) const {
  const Result<uint32_t> slot = find_live(id);
  if (!slot) return std::unexpected(slot.error());
  return view(*slot);
}

std::vector<LeaseView> Node::leases(uint32_t& slot, size_t limit, std::string_view tenant,
                                    bool with_draining) const {
  std::vector<LeaseView> out;
  const auto end = static_cast<uint32_t>(
      std::min<size_t>(plane_->slots.size(), size_t{slot} + slots_per_page_max));
  for (; slot < end && out.size() < limit; ++slot) {
    const abi::lease_record& record = plane_->slots.record(slot);
    const bool listed = plane_->slots.bound(slot) || record.phase == abi::HF_PHASE_FENCED ||
                        (with_draining && draining_[slot]);
    if (!listed || record.first_slot != slot) continue;
    if (tenant.empty() || owner_name(record.tenant_id) == tenant) out.push_back(view(slot));
  }
  return out;
}

std::vector<TenantView> Node::tenants() const {
  std::vector<TenantView> out;
  for (const Tenant& tenant : policy_->tenants) out.push_back(tenant_view(tenant));
  return out;
}

TenantView Node::tenant_view(const Tenant& tenant) const {
  const uint32_t index = facts_.tenant_indexes.at(tenant.id);
  return {&tenant, index, tenant_disabled(index), plane_->tenants[index].epoch,
          leases_.of_tenant(index)};
}

std::optional<LeaseId> Node::lease_of_slot(uint32_t slot) const {
  if (slot >= plane_->slots.size() || plane_->slots.record(slot).lease_id[0] == 0)
    return std::nullopt;
  return LeaseId::of(plane_->slots.record(slot));
}

std::string Node::tenant_name(uint32_t index) const {
  if (index >= plane_->tenants.size()) return "";
  const Tenant* tenant = index_->tenant_by_id(plane_->tenants[index].id);
  return tenant != nullptr ? tenant->name : "";
}

}  // namespace holdfast
