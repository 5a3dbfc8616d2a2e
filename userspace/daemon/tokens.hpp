// Tokens at the daemon: who this node is, whose keys it believes, which grant tokens were used, and
// whether the clock can be relied on to judge any. Nothing here touches a lease; Verbs does, with
// what judge() let through.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/daemon/identity.hpp"
#include "userspace/daemon/node.hpp"
#include "userspace/daemon/spent.hpp"
#include "userspace/token/checker.hpp"
#include "userspace/token/node_identity.hpp"
#include "userspace/token/signed.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/peer.hpp"

namespace holdfast {

// Whether wall time, by which tokens are dated, is what it was: within a run it moves with boot
// time, and over restarts it does not go back. `floor_s` is a time that has been.
class WallClock {
 public:
  WallClock(uint64_t wall_ns, uint64_t boot_ns, uint64_t floor_s)
      : offset_ns_(static_cast<int64_t>(wall_ns - boot_ns)),
        begin_ns_(boot_ns),
        floor_s_(floor_s) {}

  // What is wrong with it, if anything is.
  std::optional<std::string> doubt(uint64_t wall_ns, uint64_t boot_ns) const;
  // What it would be if nobody had set it since, and had it been no time before one that has been:
  // what ends by it can be put off by nobody. Seconds.
  uint64_t unset_s(uint64_t boot_ns) const {
    const int64_t wall_ns = offset_ns_ + static_cast<int64_t>(boot_ns);
    return std::max(floor_s_ + (boot_ns - begin_ns_) / ns_per_s,
                    static_cast<uint64_t>(wall_ns) / ns_per_s);
  }

 private:
  int64_t offset_ns_;
  uint64_t begin_ns_;
  uint64_t floor_s_;
};

class Tokens {
 public:
  // `key_uri`: of the node's key, if that is on a PKCS#11 token.
  static Result<std::unique_ptr<Tokens>> open(const std::string& state_dir,
                                              const std::string& key_uri = {});

  // Whose keys may sign: read anew from the file. Without one nobody may, but for the node itself.
  // `again`: a file that is there no more is an error, and takes nothing back.
  Status read_anchors(const std::string& path, bool again = false);
  // The same file as it is now; one that is there no more names nobody.
  Status reread_anchors();
  // The anchors of the bundle in force, beside those of the file; of a key in both the file's
  // count. They are believed as long as who signed the bundle is, and no further than that reaches.
  struct BundleAnchors {
    token::Anchors anchors;
    token::Digest signer{};
    uint64_t issued_s = 0;
  };
  void use_bundle_anchors(BundleAnchors bundle);
  // The root of an enrollment: from here on its key and those of its bundle count, and none of the
  // file's; without one the file's again.
  void believe_root(std::optional<token::Anchor> root);
  // Whether a policy has to be signed: there is a root, or the anchors file says who signs bundles.
  bool takes_signed_bundles_only() const;
  // What is believed now: replaced as a whole, and read by the verifying threads too.
  const std::atomic<std::shared_ptr<const token::Beliefs>>& beliefs() const { return beliefs_; }
  bool clock_in_doubt() const;

  // Calls `enforce`, which ends what is meant; from then on it is believed no more; then it is
  // written, so that it holds durably when this returns well. Errors: exhausted / revocations_max;
  // internal / state_write: it holds until the daemon ends.
  Status revoke(token::Revocation revocation, const std::function<void()>& enforce);
  // Errors: not_found / not_revoked; internal / state_write, and it stays revoked.
  Status restore(const token::Revocation& revocation);

  // A key that another one has taken the place of: believed as before, for so long, and no more
  // then. Checked only, if it is to be a dry run; the end, in Unix seconds. Errors: not_found /
  // no_such_anchor; conflict / key_not_live, not_rotatable, naming what the other one lacks;
  // exhausted / revocations_max; internal / state_write: it retires unless the daemon ends.
  Result<uint64_t> rotate(const token::Digest& old_key, const token::Digest& new_key,
                          uint64_t after_s, bool dry_run);
  // Those whose time is over since this was asked last: they are believed no more from here on.
  std::vector<token::Anchor> retire_due();
  // That what this key signed was believed, and has decided something.
  void note_use(const token::Digest& key) const;

  // Whether what widens has to be signed, by root too.
  bool signatures_needed() const;
  bool is_revoked(const token::Digest& key) const;
  // Whether all that this issuer had issued by then is revoked, or that about this tenant.
  bool is_revoked_before(std::string_view issuer, uint64_t issued_s,
                         std::string_view tenant = "") const;
  // An anchor that is there and may sign nothing any more.
  bool is_dead(const token::Digest& key) const;
  // How long a term may be that stands on this issuer (issuer_of()), by its anchor's `life`.
  uint64_t life_max_ns(uint64_t issuer) const;
  // Of what was signed and kept until now: for this node, dated well, by a key that may sign such
  // things, and not revoked with all that its issuer had issued. Errors: denied, with what is wrong
  // as code; nothing of its content has been read.
  Result<std::shared_ptr<const token::Anchor>> judge_kept(const token::SignedObject& object,
                                                          token::Purpose purpose,
                                                          uint64_t life_max_s) const;
  // The same by a key that is no anchor yet, but pinned: that of an enrollment.
  Status judge_pinned(const token::SignedObject& object, const token::Anchor& root,
                      uint64_t life_max_s) const;
  // The anchor of a key that may sign such things now. Errors: denied / unknown_key, key_not_live,
  // key_not_for_requests, key_not_for_bundles, key_not_for_operators, key_not_for_schedules.
  Result<std::shared_ptr<const token::Anchor>> signer(const token::Digest& key,
                                                      token::Purpose purpose) const;

  // What a lease by this token stands on.
  static LeaseOrigin origin_of(const token::Verified& token);
  // What a lease by a request that this key signed stands on: by the grace of another key, on that
  // one, and the signer's is in the place of a head.
  static LeaseOrigin origin_of(const wire::Principal& signer);
  // A key, as in the record of a lease that stands on it.
  static uint64_t issuer_of(const token::Digest& key);
  // Whether nobody's key is called so any more.
  bool is_orphan(uint64_t issuer) const;
  // Whether a revocation means a lease; of an anchor's key, issuer_of() tells sooner. `tenant_id`:
  // of the tenant that it names, if it names one. `left`: anchors that count no more and on which
  // leases stand all the same.
  std::function<bool(const abi::lease_record&)> meant_by(const token::Revocation& revocation,
                                                         std::optional<uint64_t> tenant_id,
                                                         const token::Anchors& left) const;

  const std::string& node() const { return identity_.name(); }
  uint64_t epoch() const { return identity_.epoch(); }
  token::Digest key() const { return identity_.key().key(); }  // that the node is named for
  bool is_own_key(const token::Digest& thumbprint) const {
    return thumbprint == identity_.key().key() || thumbprint == identity_.epoch_key().key();
  }
  // PKCS#10 by the node's key, for its name and with this password. Errors: those of signing, of a
  // key on a token.
  Result<std::string> certificate_request(const std::string& password) const {
    return token::certificate_request(identity_.key(), identity_.name(), password);
  }
  // What this node says of itself, a report or a notice, under its epoch key's signature. Errors:
  // unavailable / no_certificate.
  Result<std::vector<uint8_t>> sign_statement(token::Purpose purpose,
                                              const token::StatementFor& target,
                                              std::span<const uint8_t> content) const;
  // Who this node is, and the key with which it signs, certified by its own.
  cbor::Value identity() const;

  // Whether a token is believed, is of this kind, and belongs to who presents it. Refusals are
  // counted by reason, and logged. Errors: denied, with the reason as code; what was wrong before
  // the signature held is told to operators only, others read `denied`.
  Result<token::Verified> judge(std::span<const uint8_t> bytes, token::Kind kind,
                                const Actor& presenter);
  std::unexpected<Error> refuse(token::Refusal why, const std::string& detail,
                                const Actor& presenter);

  // Whose a lease by this token is: the holder that it names, else who presents it.
  static Result<Holder> holder_of(const token::Claims& claims, const Actor& presenter);
  // The lease that a grant token, known by its leaf, makes: always the same.
  LeaseId lease_of(const token::Digest& grant) const;
  bool is_spent(const token::Verified& grant) const { return spent_.has(grant.id); }
  Status spend(const token::Verified& grant);
  void take_back(const token::Verified& grant);

  // What shows a service that this lease is in force, until the lease's end: a use token, as text.
  Result<std::string> use_token(const LeaseView& lease, const std::vector<std::string>& operations);

  // Tokens of before are refused from here on, durably.
  Status begin_epoch();
  // Enforcement was removed: whatever comes next is another epoch.
  void release();
  // Raises the durable floor of wall time, unless that is in doubt.
  void remember_time();
  cbor::Value status() const;
  // Anchors, then revocations: at most `limit` of them, from the one with this number on. "next" is
  // where the next page begins, null after the last. `pending`: a root that is waited for, which
  // the first page shows.
  cbor::Value trust(uint64_t cursor, size_t limit,
                    const std::optional<token::Anchor>& pending) const;

 private:
  Tokens(std::string state_dir, Identity identity, Spent spent, const WallClock& clock,
         token::Revocations revoked);
  // From here on: the anchors that there are, apart from these revocations.
  void believe(token::Revocations revoked);
  // What keeps this anchor from retiring in favour of the other one.
  std::vector<std::string> hindrances(const token::Anchor& anchor,
                                      const token::Anchor& successor) const;
  bool is_rotatable(const token::Anchor& anchor, const token::Beliefs& now) const;
  cbor::Value anchor_value(const token::Anchor& anchor, const token::Beliefs& now) const;
  const token::Anchors& standing_anchors() const { return root_ ? *root_ : file_anchors_; }
  Status judge_dates(const token::SignedHeader& header, token::Purpose purpose,
                     uint64_t life_max_s) const;
  Status judge_signature(const token::SignedObject& object, token::Purpose purpose,
                         const token::Anchor& anchor) const;
  Status write(const token::Revocations& revoked) const;

  std::string state_dir_;
  Identity identity_;
  Spent spent_;
  WallClock clock_;
  std::string anchors_path_;
  token::Anchors file_anchors_;
  std::optional<token::Anchors> root_;  // that one, instead of the file's
  BundleAnchors bundle_anchors_;
  bool signatures_needed_ = false;
  std::vector<token::Anchor> retired_;  // and not told by retire_due() yet
  std::atomic<std::shared_ptr<const token::Beliefs>> beliefs_;
  uint64_t believed_ = 0;
  std::array<uint64_t, token::refusals> refused_{};
};

}  // namespace holdfast
