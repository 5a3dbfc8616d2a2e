// Verbs: requests on control.sock turned into calls of Node, and their outcome into replies. Who
// may do what: authority.hpp.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "userspace/daemon/bearers.hpp"
#include "userspace/daemon/bundles.hpp"
#include "userspace/daemon/enrollment.hpp"
#include "userspace/daemon/node.hpp"
#include "userspace/daemon/peers.hpp"
#include "userspace/daemon/signed_requests.hpp"
#include "userspace/daemon/tokens.hpp"
#include "userspace/daemon/watch.hpp"
#include "userspace/dataplane/counters.hpp"
#include "userspace/verifier/server.hpp"
#include "userspace/wire/server.hpp"

namespace holdfast {

// A preempt that was believed, and what became of it.
struct Preempted {
  token::Digest digest{};  // of its signed bytes
  LeaseId lease;
  std::optional<Status> outcome;  // none while the lease is torn down
  bool had_grace = false;
};

class Verbs {
 public:
  // `detach` removes everything of ours and ends the daemon.
  Verbs(wire::EventLoop& loop, Node& node, Tokens& tokens, Bundles& bundles, Bearers& bearers,
        Peers& peers, Enrollment& enrollment,
        std::function<Result<std::vector<std::string>>()> detach);
  static Status attach_drop_events(Verbs& verbs);

  cbor::Value hello(const wire::Peer& peer) const;
  cbor::Value verify_hello(const wire::Peer& peer) const;
  Result<wire::Unsealed> unseal(wire::Peer& peer, std::span<const uint8_t> sealed) {
    return signed_requests_.unseal(peer, sealed);
  }
  void handle(wire::Peer& peer, wire::Request request, wire::Responder responder);

  void set_server(wire::ControlServer* server);
  // Ends leases whose issuer's key counts no more; how many. Those of an enrollment that has ended
  // run out by themselves, unless that was to be at once.
  size_t end_orphans();
  // That, and streams that were begun by a signature.
  size_t trust_changed();
  void set_verifier(const verifier::Server* server) { verifier_ = server; }

 private:
  using Answer = Result<cbor::Value>;

  Answer read(const wire::Peer& peer, const wire::Request& request);
  void change(const wire::Peer& peer, wire::Request request, wire::Responder responder,
              uint32_t attempt);
  Answer change_now(const wire::Peer& peer, const wire::Request& request);
  void change_later(const wire::Peer& peer, wire::Request request, wire::Responder responder,
                    uint32_t attempt);

  Answer status(const wire::Peer& peer) const;
  cbor::Value peers() const;
  Answer lease_list(const cbor::Value& args) const;
  Answer lease_show(const cbor::Value& args) const;
  Answer route_list() const;
  Answer tenant_list(const wire::Principal* signer) const;
  Answer bundle_show(const cbor::Value& args) const;
  Answer drops_read() const;
  void drops_follow(const wire::Peer& peer, const wire::Request& request,
                    wire::Responder responder);
  Answer flows_list(const cbor::Value& args) const;
  Answer explain(const cbor::Value& args) const;

  Answer lease_grant(const wire::Peer& peer, const wire::Request& request);
  Answer lease_renew(const wire::Peer& peer, const wire::Request& request);
  Answer grant_by_token(const Actor& presenter, const cbor::Value& args);
  // By which a grant token is admitted. Errors: denied / admission_required, or what is wrong with
  // the one there is.
  Result<std::optional<Scheduling>> admission_of(const Actor& presenter, const cbor::Value& args,
                                                 const token::Verified& grant) const;
  Answer renew_by_token(const Actor& presenter, const cbor::Value& args);
  Answer prove_key(wire::Peer& peer, const cbor::Value& args) const;
  Answer present_grant(wire::Peer& peer, const cbor::Value& args);
  static Answer renew_challenge(wire::Peer& peer);
  static Result<token::Revocation> read_revocation(const cbor::Value& args);
  Answer trust_revoke(const cbor::Value& args);
  Answer trust_restore(const cbor::Value& args);
  Answer trust_rotate(const cbor::Value& args);
  void end_retired();
  Answer peer_list(const cbor::Value& args) const;
  Answer peer_change(const wire::Peer& peer, const wire::Request& request);
  cbor::Value abuse_value() const;
  Answer bearer_create(const wire::Peer& peer, const wire::Request& request);
  Answer bearer_list(const cbor::Value& args) const;
  Answer bearer_revoke(const cbor::Value& args);
  Answer show_bearer(wire::Peer& peer, const cbor::Value& args);
  bool may_still_hand_on(const Bearer& bearer) const;
  std::string_view state_of(const Bearer& bearer, uint64_t now_wall_ms) const;
  Status bearer_holds(const token::Digest& sha256) const;
  void end_bearers();
  cbor::Value bearers_status() const;
  Answer with_use_token(const LeaseId& id, const std::vector<std::string>& operations);
  void lease_end(const wire::Peer& peer, const wire::Request& request, wire::Responder responder);
  void lease_checkpoint(const wire::Peer& peer, const wire::Request& request,
                        wire::Responder responder);
  cbor::Value ending_value(const LeaseId& id) const;
  void lease_preempt(const wire::Peer& peer, const wire::Request& request,
                     wire::Responder responder);
  Answer preempted_value(const Preempted& preempted) const;
  void remember_preempt(std::shared_ptr<const Preempted> preempted);
  // Counts a token, a bundle or the like whose signature is not believed against who brings it.
  void count_disbelief(const wire::Peer& peer, const Error& why);
  Answer bundle_push(const wire::Peer& peer, const wire::Request& request);
  Answer push_signed(const wire::Peer& peer, const wire::Request& request, std::string_view file,
                     bool dry_run);
  Result<BelievedBundle> believe_bundle(const wire::Peer& peer, const wire::Request& request,
                                        std::string_view file, Policy& policy) const;
  // What the signature covers, parsed and held against what it may say.
  Status read_policy(BelievedBundle& bundle, std::string_view file, Policy& policy) const;
  // `enrolling`: the header of the bundle that answers a request, or nullptr.
  Result<PushOutcome> put_in_force(const wire::Peer& peer, const BelievedBundle& bundle,
                                   Policy policy, const token::SignedHeader* enrolling);
  Answer node_report(const wire::Peer& peer, const cbor::Value& args) const;
  Answer enroll_begin(const wire::Peer& peer, const cbor::Value& args);
  Answer enroll_finish(const wire::Peer& peer, const wire::Request& request);
  Status may_accept_again() const;
  Result<PushOutcome> accept_again(const wire::Peer& peer, const token::SignedHeader& header);
  Answer enroll_end(const wire::Peer& peer, const cbor::Value& args);
  static bool may_read_all(const wire::Peer& peer, const wire::Request& request);
  Answer node_state(const wire::Peer& peer, const wire::Request& request);
  Answer node_detach();
  Answer tenant_change(const wire::Request& request);
  cbor::Value pushed(const PushOutcome& outcome, uint64_t generation) const;

  cbor::Value event_value(const abi::drop_event& event) const;
  Status in_scope(const wire::Principal& signer, const wire::Request& request) const;
  Status judge_again(const wire::Peer& peer, wire::Request& request) const;
  Status may_lease() const;
  void offence(const wire::Peer& peer, wire::Offence kind, const Error& why);
  Status may_follow(const wire::Peer& peer) const;
  void on_drop(const abi::drop_event& event);

  wire::EventLoop& loop_;
  Node& node_;
  Tokens& tokens_;
  Bundles& bundles_;
  Bearers& bearers_;
  Peers& peers_;
  Enrollment& enrollment_;
  SignedRequests signed_requests_;
  std::function<Result<std::vector<std::string>>()> detach_;
  wire::ControlServer* server_ = nullptr;
  const verifier::Server* verifier_ = nullptr;
  Counters counters_;
  Watch watch_;
  std::optional<DropEvents> drop_events_;
  wire::FdWatch drop_watch_;
  struct Follower {
    uid_t uid;
    bool operates;
    std::shared_ptr<const wire::Principal> signer;  // by whose signature, if by one's
    std::shared_ptr<wire::Responder> responder;
  };
  std::vector<Follower> followers_;
  std::deque<std::shared_ptr<const Preempted>> preempted_;  // the last ones, the oldest first
  wire::Timer trust_timer_;                                 // what ends by time, while nobody asks
  uint64_t bearer_good_ = 0;
  std::map<std::string_view, uint64_t> bearer_refused_;  // by code, of which there are a few
  uint64_t started_boot_ns_;
  uint64_t started_wall_ns_;
};

}  // namespace holdfast
