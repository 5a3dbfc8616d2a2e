// Node: the daemon's state and its changes. Policy and leases are decided here (policy/), made so
// by apply, recorded in the journal, and answered. One thread: the event loop's.
//
// What is remembered where: leases in the pinned maps (LeaseTable only indexes them); the policy in
// force in STATE_DIR/policy.json and, compiled, in the active bank; everything else is derived at
// start.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "policy/compile.hpp"
#include "policy/decide.hpp"
#include "policy/types.hpp"
#include "userspace/base/result.hpp"
#include "userspace/daemon/apply.hpp"
#include "userspace/daemon/grace_waiter.hpp"
#include "userspace/daemon/journal.hpp"
#include "userspace/daemon/lease_issuers.hpp"
#include "userspace/daemon/lease_table.hpp"
#include "userspace/daemon/netlink.hpp"
#include "userspace/daemon/node_state.hpp"
#include "userspace/verifier/leased_names.hpp"
#include "userspace/wire/event_loop.hpp"

namespace holdfast {

struct NodeOptions {
  DataPlaneOptions plane;
  std::string state_dir = "/var/lib/holdfast";
};

// Who asks. Operators, and who has a token that says so, may act on every lease; holders on their
// own.
struct Actor {
  uint32_t uid = 0;
  bool operates = false;
  std::optional<Holder::KeyThumbprint> key = {};      // that it proved
  std::optional<std::vector<uint64_t>> cgroups = {};  // that it is in, if that is known

  // All that it is as a holder.
  std::vector<Holder> holders() const;
  bool is(const Holder& holder) const {
    const std::vector<Holder> all = holders();
    return std::ranges::find(all, holder) != all.end();
  }
};

enum class LeaseState { active, grace_running, checkpoint_reported, expired, draining, fenced };
std::string_view name_of(LeaseState state);

// A lease as it is shown.
struct LeaseView {
  LeaseId id;
  LeaseState state = LeaseState::active;
  std::string tenant;
  std::vector<std::string> resources;  // "web@10.1.0.2:443", "egress:web0"
  Holder holder;
  std::optional<Prefix> peer;
  uint64_t granted_boot_ns = 0;
  uint64_t deadline_boot_ns = 0;
  uint64_t generation = 0;
};

struct TenantView {
  const Tenant* tenant = nullptr;
  uint32_t index = 0;
  bool disabled = false;
  uint32_t epoch = 0;
  uint32_t leases = 0;
};

struct PushOutcome {
  std::vector<std::string> changes;  // what the new policy says that the old one did not
  std::vector<std::pair<std::string, Error>> dark;  // interfaces left unguarded, and so shut
  uint32_t leases_ended = 0;
  bool applied = false;
};

// A batch that was granted, and where its time went.
struct Grant {
  std::vector<LeaseId> ids;
  uint64_t ebpf_ns = 0;  // slots bound and gates opened
  uint64_t nft_ns = 0;   // elements written and read back
};

// The token or signed request by which a lease was granted or last renewed; units as in
// lease_record. A request has neither head nor token.
struct LeaseOrigin {
  uint64_t issuer = 0;
  uint64_t head = 0;
  uint64_t token = 0;
  uint64_t issued_s = 0;
};

// A scheduler's word on a lease, as it is recorded.
struct Scheduling {
  std::string scheduler;
  std::string key;  // that signed, its thumbprint in digits
  std::string reason;
  std::string object;  // what was signed, as text
};

// What a token says of the lease it makes, beyond the request.
struct ByToken {
  LeaseId id;  // follows from the token's, so that a repeated grant finds its lease
  std::function<Status()> spend;  // durably; called when all is bound and nothing open
  std::optional<Scheduling> admission = {};
};

// That a lease has to end.
struct Preemption {
  uint64_t generation = 0;           // the lease's, as the scheduler knew it
  std::optional<uint64_t> grace_ns;  // without one the lease's own
  Scheduling by;
};

// There is none, or none that may be told of.
Error no_such_lease(const LeaseId& id);

class Node {
 public:
  using Done = std::function<void(Status)>;

  // Loads or adopts the data plane, the policy and the leases. When this returns, everything that
  // is in force is guarded and listed.
  static Result<std::unique_ptr<Node>> open(wire::EventLoop& loop, const NodeOptions& options);

  // ---- policy ----
  // All or nothing up to the flip. `dry_run` stops before the first effect.
  Result<PushOutcome> push_policy(Policy policy, bool dry_run);
  const Policy& policy() const { return *policy_; }
  const PolicyIndex& index() const { return *index_; }
  // Of its canonical form: SHA-256.
  std::array<uint8_t, 32> policy_digest() const {
    return std::to_array(plane_->banks.control().policy_digest);
  }

  // Interfaces or addresses of the node changed: brings the tables up to them.
  void refresh_network();
  // Somebody changed our nftables table: writes it whole again, leases included.
  void restore_nft();
  // Enforcement is being removed: nothing may put any of it back.
  void stop_enforcing() { ended_ = true; }

  // ---- leases ----
  // Feeds requests one by one, so that a million need not stand in memory; all or none are granted.
  // `next` fills its argument and says true, or false after the last, or an error that ends it all.
  // `origin` is what they stand on, if on anything. By token it is one lease.
  Result<Grant> grant(const Actor& actor, const std::function<Result<bool>(GrantRequest&)>& next,
                      const LeaseOrigin& origin = {}, const ByToken* token = nullptr);
  // With an origin the lease stands on that one from then on.
  Result<LeaseView> renew(const Actor& actor, const LeaseId& id, uint64_t ttl_ns,
                          std::optional<uint64_t> generation, const LeaseOrigin* origin = nullptr);
  // Closes now, with grace 0; `done` is called when the teardown is proved or has failed. Without a
  // grace the lease's own is taken.
  void revoke(const LeaseId& id, std::optional<uint64_t> grace_ns, Done done);
  void release(const Actor& actor, const LeaseId& id, Done done);
  // In its grace a lease's holder says that it has saved what it was to save, with a note of its
  // own; that ends the grace, unless `keep_grace`. Errors: conflict / not_in_grace.
  void checkpoint(const Actor& actor, const LeaseId& id, std::string_view note, bool keep_grace,
                  Done done);
  // As revoke(), by a scheduler. In a grace that runs already the end can only come nearer, also
  // for the generation before it. Errors besides: conflict / generation_mismatch.
  void preempt(const LeaseId& id, const Preemption& said, Done done);
  // Ends all leases that are meant, at once; how many. Their teardown follows.
  size_t revoke_all(const std::function<bool(const abi::lease_record&)>& is_meant);
  // The same for those that stand on a key of these issuers (as in lease_record), for which nobody
  // else's lease is looked at.
  size_t revoke_issuers(const std::function<bool(uint64_t issuer)>& is_meant);

  static Holder holder_of(const abi::lease_record& record);
  uint64_t issuer_of(const LeaseId& id) const;  // 0: nobody's, or there is no such lease
  Result<LeaseView> lease(const LeaseId& id) const;
  // Up to `limit` leases from `slot` on; `slot` moves to where the next page begins, or to size().
  // Looks at a bounded number of slots, so a page may be short, or empty, and not the last.
  // `with_draining`: also those whose teardown is not proved yet.
  std::vector<LeaseView> leases(uint32_t& slot, size_t limit, std::string_view tenant,
                                bool with_draining = false) const;
  size_t lease_count() const { return leases_.size(); }

  // ---- tenants ----
  std::vector<TenantView> tenants() const;
  TenantView tenant_view(const Tenant& tenant) const;  // of the policy in force
  Status disable_tenant(std::string_view name);        // one store; teardown follows
  Status enable_tenant(std::string_view name);

  // ---- the node's own state ----
  const NodeStanding& standing() const { return standing_; }
  uint64_t refused_by_state() const { return refused_by_state_; }
  // To this state, or a narrower one that it is in already; how many leases that ended. It holds
  // from here on, and durably when this returns well. Errors: internal / state_write.
  Result<size_t> narrow(NodeState to, uint32_t uid);
  // Back to active, durably first. resume() does not lift a quarantine, release() nothing else.
  // Errors: conflict / node_quarantined, not_quarantined; internal / state_write.
  Status resume(uint32_t uid);
  Status release_quarantine(uint32_t uid);
  // Nothing is widened under quarantine. Errors: conflict / node_quarantined.
  Status may_widen(std::string_view what) const;

  // ---- for the reading verbs ----
  Journal& journal() { return journal_; }
  std::shared_ptr<const Policy> policy_in_force() const { return policy_; }
  enum class ResourceState { free, leased, draining, fenced };
  // Of what may be leased: a member of an endpoint, or sending from a port.
  ResourceState resource_state(const abi::endpoint_key& key) const;
  ResourceState egress_state(const Tenant& tenant, const TenantPort& port) const;
  // Slots that belong to a resource: of the policy in force, being torn down, or fenced.
  size_t slots_used() const {
    return static_cast<size_t>(std::count(slot_used_.begin(), slot_used_.end(), true));
  }
  DataPlane& plane() { return *plane_; }
  const DataPlane& plane() const { return *plane_; }
  const NetworkFacts& network() const { return network_; }
  const std::vector<std::pair<std::string, Error>>& dark() const { return dark_; }
  // What is not enforced, with the operator's consent.
  std::vector<Unenforced> unenforced() const;
  std::optional<LeaseId> lease_of_slot(uint32_t slot) const;
  std::string tenant_name(uint32_t index) const;
  // Where live leases stand, by what they are of; for the verifying threads.
  const LeasedNames& names() const { return names_; }

 private:
  class Book;

  Node(wire::EventLoop& loop, NodeOptions options, std::unique_ptr<DataPlane> plane)
      : loop_(loop),
        options_(std::move(options)),
        plane_(std::move(plane)),
        grace_(loop),
        names_(plane_->slots.size()),
        issuers_(plane_->slots.size()) {}

  Status start();
  Status load_policy();
  Status save_policy(const Policy& policy) const;
  bool is_whole(uint32_t first_slot) const;
  void adopt_leases();
  std::vector<Term> live_terms() const;

  Result<PushOutcome> change_policy(std::shared_ptr<const Policy> next, bool dry_run, bool lenient);
  Result<NodeFacts> gather_facts(const Policy& policy, bool lenient);
  Result<std::map<uint64_t, uint32_t>> tenant_indexes(const Policy& policy) const;
  void name_tenants(const NodeFacts& facts);
  bool names_no_slot(uint32_t tenant_index) const;
  bool tenant_disabled(uint32_t index) const;
  std::set<uint32_t> shut_ports(const Policy& policy, const NodeFacts& facts) const;
  void describe_nft_change(const Policy& next, const NodeFacts& facts,
                           const std::set<uint32_t>& shut, PolicyChange& change) const;
  std::vector<uint32_t> slots_losing(const std::vector<bool>& named) const;
  uint32_t count_leases(std::span<const uint32_t> slots) const;
  void detach_all_but_ours();
  bool is_unenforced(const std::string& uplink) const;
  Error why_no_port(const std::string& name) const;
  void restore_nft_of_policy_in_force();

  // Binds the slots of one lease and appends them to `bound`, which the caller closes if anything
  // fails.
  Status bind_lease(const GrantRequest& request, const LeaseId& id, const LeaseOrigin& origin,
                    uint64_t now_boot_ns, std::vector<Term>& bound);
  std::unexpected<Error> at_limit(std::string_view code, std::string message,
                                  std::string_view next_step) const;
  Result<uint32_t> slot_of(const Tenant& tenant, const Resource& resource,
                           abi::lease_record& record) const;
  std::vector<uint32_t> slots_of(uint32_t first_slot) const;
  Result<uint32_t> find_live(const LeaseId& id) const;
  static LeaseOrigin origin_of(const abi::lease_record& record);
  void set_origin(uint32_t first_slot, const LeaseOrigin& origin);
  Status check_holder(const Actor& actor, uint32_t first_slot) const;
  LeaseView view(uint32_t first_slot) const;
  std::string resource_text(uint32_t slot) const;
  void name_leases();
  std::string owner_name(uint64_t tenant_id) const;
  std::vector<Term> terms_of(uint32_t first_slot, uint64_t deadline_boot_ns) const;
  // Draws a lease's end nearer. When nft fails the error says so, and the end is nearer all the
  // same.
  Status shorten(uint32_t first_slot, uint64_t deadline_boot_ns);

  // Closes the slots at once; then `say_why` may put on record what for; the rest follows after a
  // grace period. `outcome`: torndown, failed_closed.
  void tear_down(std::vector<uint32_t> slots, std::string_view outcome, Done done,
                 const std::function<void()>& say_why = {});
  void end_lease(uint32_t first_slot, std::optional<uint64_t> grace_ns, Done done,
                 const std::function<void()>& say_why = {});
  void forget(const std::shared_ptr<const std::vector<uint32_t>>& slots, size_t from,
              std::string_view outcome, Done done);
  void settle(uint32_t slot, const Status& proved);
  void teardown_finished(const std::vector<uint32_t>& slots, std::string_view outcome,
                         const Done& done);
  void journal_leases(JournalAction action, std::span<const uint32_t> slots);
  void journal_grants(std::span<const uint32_t> first_slots, uint64_t now_boot_ns,
                      const Scheduling* admission);
  Status read_state();
  Status widen(JournalAction action, uint32_t uid);
  bool leases_may_live() const { return standing_.state < NodeState::disabled; }
  Status may_lease(bool renewal);
  Status may_push(const Policy& next) const;
  ResourceState slot_state(uint32_t slot) const;

  void expire_due();
  void arm_expiry_timer();
  void tear_down_tenant(uint32_t index);

  wire::EventLoop& loop_;
  NodeOptions options_;
  std::unique_ptr<DataPlane> plane_;
  GraceWaiter grace_;
  Journal journal_;

  std::shared_ptr<const Policy> policy_;
  std::unique_ptr<PolicyIndex> index_;
  NodeFacts facts_;
  NetworkFacts network_;
  std::map<PortName, uint32_t> egress_slots_;
  std::map<PortName, uint32_t> egress_slots_left_;  // of former policies; may still be draining
  std::vector<bool> slot_used_;  // named by the policy in force, being torn down, or fenced
  std::vector<bool> draining_;   // closed, its teardown not yet proved
  std::vector<std::pair<std::string, Error>> dark_;
  std::vector<Unenforced> unenforced_uplinks_;
  std::set<uint32_t> attached_;  // interfaces our programs may be on
  // Tenant ports under the policy in force, and what was one and is still there: renamed, or put
  // into a bridge. Those no table names, so the gate denies everything on them (G1).
  std::set<uint32_t> guarded_ports_;
  bool ended_ = false;
  NodeStanding standing_;
  bool standing_is_durable_ = true;
  uint64_t refused_by_state_ = 0;  // grants and renewals
  std::map<uint32_t, uint32_t>
      binding_of_tenant_;  // leases bound in the batch under way, by tenant index
  // Leases that were just closed may be in these two for a few turns of the loop; draining_ says
  // so.
  LeaseTable leases_;
  LeasedNames names_;
  size_t forgetting_ = 0;              // teardowns for which that is so
  LeaseIssuers issuers_;               // of slots that are open and do not drain
  std::vector<uint64_t> names_bound_;  // of the batch under way, slot by slot as in `bound`
  wire::Timer expiry_timer_;
  uint64_t expiry_timer_at_ = 0;
};

}  // namespace holdfast
