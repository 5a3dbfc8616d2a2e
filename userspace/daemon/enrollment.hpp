// Enrollment: how a node comes under a root that its operator knows by a fingerprint only
// (PROTOCOL.md 5), and leaves it again.
//
//   unenrolled  policy and keys are files and pushes of this machine's own
//   pending     a request is out: nothing is leased or renewed, no policy is taken but the answer's
//   enrolled    the root's signed bundles are the policy, and the keys they name are the keys
//   left        the root counts no more, its policy is still in force: leases end at their term
//
// STATE_DIR/enrollment holds it, replaced whole and fsynced. Before an answer's policy is put in
// force the root is offered there, beside the request; whether it came to that, the policy in force
// says after a crash, by the bundle it is of (bundles.hpp). So there is one moment at which the
// node becomes enrolled: that at which policy.json is replaced. A request is pending until it is
// answered or given up; that its time is over makes it useless, and the node no less pending.
//
// `left` ends by itself when another policy comes into force. The record names the node that it is
// of: one that has lost its key is another, and has left what that was enrolled under. Thread: the
// event loop's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "policy/types.hpp"
#include "userspace/base/result.hpp"
#include "userspace/daemon/bundles.hpp"
#include "userspace/token/enrollment.hpp"
#include "userspace/token/signed.hpp"
#include "userspace/token/verify.hpp"

namespace holdfast {

enum class EnrollmentState : uint8_t { unenrolled, pending, enrolled, left };
std::string_view name_of(EnrollmentState state);

struct EnrollmentRecord {
  EnrollmentState state = EnrollmentState::unenrolled;
  uint64_t since_s = 0;
  uint32_t by_uid = 0;
  token::Digest anchor{};            // the root's thumbprint: pinned, believed or left
  std::vector<std::string> tenants;  // whose policy is taken; "*": everybody's
  // Of the request that is out.
  token::Digest nonce_hash{};
  uint64_t expires_s = 0;
  token::Digest spent{};  // hash of the nonce that was answered last
  // The root's key, and its first bundle's generation: enrolled, or offered while pending.
  std::optional<token::SignerKey> root = {};
  uint64_t generation = 0;
  // Of the node that left, also when it has asked anew: the root, the policy that came from there,
  // and whether its leases end at once.
  token::Digest left{};
  token::Digest policy_digest{};
  bool ends_now = false;
  token::Digest node{};  // its key's thumbprint; none in records of earlier builds

  bool operator==(const EnrollmentRecord&) const = default;
};

class Enrollment {
 public:
  // `node`: the thumbprint of this node's key. Errors: invalid / enrollment_damaged.
  static Result<Enrollment> open(const std::string& state_dir, const token::Digest& node);
  // After a start: whether an offer was taken, and whether a policy that was left is gone. Where
  // the record is another node's it has left; where the file was lost, a policy that came under an
  // enrollment is as good as left. `in_force`: the bundle of the policy in force, whose digest that
  // is.
  Status settle(const BundleRecord* in_force, const token::Digest& policy_digest, uint64_t now_s);

  EnrollmentState state(const token::Digest& policy_digest) const;
  const EnrollmentRecord& record() const { return record_; }
  // Whether no bundle and no file may come in its own way.
  bool is_pending() const { return record_.state == EnrollmentState::pending; }
  // Of an enrolled node: the anchor that its root is.
  std::optional<token::Anchor> root() const;
  // Of a pending one: the anchor that its root would be, of which no more than the fingerprint is
  // known.
  std::optional<token::Anchor> pending_root() const;
  // Whether the policy in force is that of a root which the node has left.
  bool has_left(const token::Digest& policy_digest) const;
  // Of such a node: its leases end at once.
  bool ends_leases() const { return record_.ends_now; }
  // What the bundle of the policy in force brought: nothing, of a root that was left.
  Tokens::BundleAnchors anchors_of(const Bundles& bundles,
                                   const token::Digest& policy_digest) const;

  // Errors: conflict / enrollment_pending, enrollment_ended, policy_not_of_root.
  Status may_lease(const BundleRecord* in_force, const token::Digest& policy_digest) const;
  // A policy that does not come as the answer. Errors: conflict / enrollment_pending.
  Status may_push() const;
  // Whether these are tenants of the enrollment. Errors: denied / tenant_not_enrolled.
  Status covers(const Policy& policy) const;

  // A new request, in place of one that is out. Errors: conflict / already_enrolled.
  Status begin(const token::Digest& anchor, const token::Digest& nonce,
               std::vector<std::string> tenants, uint64_t life_s, uint64_t now_s, uint32_t uid);
  // Whether this header answers the request, by the pinned key, in time; nothing is signed so far.
  // The anchor that the key would be. Errors: conflict / enroll_spent, already_enrolled,
  // not_pending; denied / enroll_expired, wrong_root, wrong_nonce.
  Result<token::Anchor> judge(const token::SignedHeader& header, uint64_t now_s) const;
  // Durably, before any of the answer is in force; and taken back, if it does not come to that.
  Status offer(const token::SignedHeader& header);
  Status take_back();
  // The answer is in force. What cannot be written now, settle() finds out.
  void accept(bool durably, uint64_t now_s, uint32_t uid);
  // Durably, before the root is forgotten. A request that is out is given up. `now` may come later
  // than the end. Errors: conflict / not_enrolled.
  Status end(const token::Digest& policy_digest, bool now, uint64_t now_s, uint32_t uid);

 private:
  Enrollment(std::string state_dir, const token::Digest& node)
      : state_dir_(std::move(state_dir)), node_(node) {}
  bool is_anothers() const;
  Status write(EnrollmentRecord next);
  static token::Anchor anchor_of(const EnrollmentRecord& record, const token::SignerKey& key);

  std::string state_dir_;
  token::Digest node_;
  EnrollmentRecord record_;
};

}  // namespace holdfast
