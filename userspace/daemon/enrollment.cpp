#include "userspace/daemon/enrollment.hpp"

#include <algorithm>
#include <cerrno>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <openssl/crypto.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/state_file.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "enrollment";
constexpr std::string_view root_issuer = "root";  // as trust show calls it
constexpr uint64_t parts = 14;                    // of a record; those of earlier builds lack one

void encode(cbor::Writer& out, const EnrollmentRecord& record) {
  out.array(parts)
      .u64(static_cast<uint64_t>(record.state))
      .u64(record.since_s)
      .u64(record.by_uid)
      .bytes(record.anchor);
  out.array(record.tenants.size());
  for (const std::string& each : record.tenants) out.text(each);
  out.end();
  out.bytes(record.nonce_hash).u64(record.expires_s).bytes(record.spent);
  out.array(record.root ? 2 : 0);
  if (record.root) out.bytes(record.root->key).text(record.root->application);
  out.end();
  out.u64(record.generation).bytes(record.left).bytes(record.policy_digest);
  out.boolean(record.ends_now).bytes(record.node).end();
}

void decode(cbor::Reader& in, EnrollmentRecord& record) {
  const auto copy = [&](token::Digest& out) {
    const std::span<const uint8_t> from = in.bytes();
    if (from.size() == out.size())
      std::ranges::copy(from, out.begin());
    else
      in.refuse(cbor::Fault::out_of_range);
  };
  const uint64_t count = in.array();
  if (count != parts && count != parts - 1) in.refuse(cbor::Fault::out_of_range);
  const uint64_t state = in.u64();
  if (state > static_cast<uint64_t>(EnrollmentState::left)) in.refuse(cbor::Fault::out_of_range);
  record.state = static_cast<EnrollmentState>(state);
  record.since_s = in.u64();
  record.by_uid = static_cast<uint32_t>(in.u64());
  copy(record.anchor);
  for (in.array(); in.more();) record.tenants.emplace_back(in.text());
  in.end();
  copy(record.nonce_hash);
  record.expires_s = in.u64();
  copy(record.spent);
  if (in.array() != 0) {
    record.root.emplace();
    copy(record.root->key);
    record.root->application = in.text();
  }
  in.end();
  record.generation = in.u64();
  copy(record.left);
  copy(record.policy_digest);
  record.ends_now = in.boolean();
  if (count == parts) copy(record.node);
  in.end();
}

token::Digest hash_of(const token::Digest& nonce) {
  return token::sha256({std::span<const uint8_t>(nonce)});
}

bool same(const token::Digest& left, const token::Digest& right) {
  return ::CRYPTO_memcmp(left.data(), right.data(), left.size()) == 0;
}

std::unexpected<Error> enrolled_already(const EnrollmentRecord& record) {
  return fail(ErrorKind::conflict, "already_enrolled",
              fmt::format("this node is enrolled, under the root {}", hex(record.anchor)),
              "end that first: holdfast enroll end");
}

}  // namespace

std::string_view name_of(EnrollmentState state) {
  switch (state) {
    case EnrollmentState::unenrolled: return "unenrolled";
    case EnrollmentState::pending: return "pending";
    case EnrollmentState::enrolled: return "enrolled";
    case EnrollmentState::left: return "left";
  }
  return "?";
}

Result<Enrollment> Enrollment::open(const std::string& state_dir, const token::Digest& node) {
  const std::string path = fmt::format("{}/{}", state_dir, file_name);
  Enrollment enrollment(state_dir, node);
  const Result<std::string> file = read_state_file(path);
  if (!file && file.error().sys == ENOENT) return enrollment;
  if (!file) return std::unexpected(file.error());
  const std::span bytes(reinterpret_cast<const uint8_t*>(file->data()), file->size());
  constexpr size_t sum_bytes = sizeof(token::Digest);
  bool whole = bytes.size() > sum_bytes;
  if (whole) {
    const std::span<const uint8_t> content = bytes.first(bytes.size() - sum_bytes);
    cbor::Reader in(content, {.bytes_max = content.size()});
    decode(in, enrollment.record_);
    whole = in.finish() && std::ranges::equal(token::sha256({content}), bytes.last(sum_bytes));
  }
  if (!whole)
    return fail(ErrorKind::invalid, "enrollment_damaged",
                path + " is damaged, so it is not known whose node this is",
                "put a copy back; or remove it, start, and enroll anew");
  return enrollment;
}

// In memory once it is on disk. A write that failed may have come to stand there all the same, so
// what was is written over it.
Status Enrollment::write(EnrollmentRecord next) {
  next.node = node_;
  const auto put = [this](const EnrollmentRecord& record) {
    std::vector<uint8_t> bytes;
    cbor::Writer out(bytes);
    encode(out, record);
    const token::Digest sum = token::sha256({std::span<const uint8_t>(bytes)});
    bytes.insert(bytes.end(), sum.begin(), sum.end());
    return write_state_file(state_dir_, file_name,
                            {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  };
  if (Status ok = put(next); !ok) {
    if (Status back = put(record_); !back)
      log::error("enrollment_not_written", {{"cause", back.error().text()}});
    return ok;
  }
  record_ = std::move(next);
  return {};
}

// The bundle that is in force is the root's, and not one that it had sent before: then it was the
// answer, or has come after it.
Status Enrollment::settle(const BundleRecord* in_force, const token::Digest& policy_digest,
                          uint64_t now_s) {
  if (is_anothers()) {
    log::error("enrollment_of_another", {{"root", hex(record_.anchor)},
                                         {"was", hex(record_.node)},
                                         {"is", hex(node_)},
                                         {"effect", "this node has left that enrollment"},
                                         {"next_step", "enroll anew, or put its key back"}});
    EnrollmentRecord next = record_;
    // What that node had left it has left as it did; a request that was out is as good as one.
    if (next.state != EnrollmentState::left) {
      next = {.state = EnrollmentState::left,
              .since_s = now_s,
              .anchor = record_.anchor,
              .tenants = {},
              .spent = record_.spent,
              .left = record_.anchor,
              .policy_digest = policy_digest};
    }
    if (Status ok = write(std::move(next)); !ok) return ok;
  } else if (record_.state != EnrollmentState::unenrolled && record_.node != node_) {
    if (Status ok = write(record_); !ok) return ok;  // an earlier build's
  }
  if (record_.state == EnrollmentState::left &&
      state(policy_digest) == EnrollmentState::unenrolled) {
    EnrollmentRecord next;
    next.spent = record_.spent;
    return write(std::move(next));
  }
  if (record_.state == EnrollmentState::unenrolled && in_force != nullptr && in_force->enrolled) {
    log::error("enrollment_lost", {{"root", hex(in_force->key)},
                                   {"effect", "nothing is leased under its policy"},
                                   {"next_step", "put the file back, or enroll anew"}});
    return write({.state = EnrollmentState::left,
                  .since_s = now_s,
                  .anchor = in_force->key,
                  .tenants = {},
                  .left = in_force->key,
                  .policy_digest = policy_digest});
  }
  if (!is_pending() || !record_.root) return {};
  if (in_force == nullptr || in_force->key != record_.anchor ||
      in_force->generation < record_.generation)
    return take_back();
  accept(true, now_s, record_.by_uid);
  return {};
}

bool Enrollment::is_anothers() const {
  return record_.state != EnrollmentState::unenrolled && record_.node != token::Digest{} &&
         record_.node != node_;
}

EnrollmentState Enrollment::state(const token::Digest& policy_digest) const {
  if (record_.state == EnrollmentState::left && record_.policy_digest != policy_digest)
    return EnrollmentState::unenrolled;
  return record_.state;
}

bool Enrollment::has_left(const token::Digest& policy_digest) const {
  const bool may_have = record_.state == EnrollmentState::left || is_pending();
  return may_have && record_.left != token::Digest{} && record_.policy_digest == policy_digest;
}

Tokens::BundleAnchors Enrollment::anchors_of(const Bundles& bundles,
                                             const token::Digest& policy_digest) const {
  return has_left(policy_digest) ? Tokens::BundleAnchors() : bundles.anchors_of(policy_digest);
}

token::Anchor Enrollment::anchor_of(const EnrollmentRecord& record, const token::SignerKey& key) {
  token::Anchor anchor;
  anchor.issuer = root_issuer;
  anchor.key = key.key;
  anchor.application = key.application;
  anchor.thumbprint = record.anchor;
  anchor.for_bundles = true;
  anchor.tenants = record.tenants;
  anchor.operations = {"*"};
  anchor.verbs = {"*"};
  return anchor;
}

std::optional<token::Anchor> Enrollment::root() const {
  if (record_.state != EnrollmentState::enrolled || !record_.root || is_anothers())
    return std::nullopt;
  return anchor_of(record_, *record_.root);
}

std::optional<token::Anchor> Enrollment::pending_root() const {
  if (!is_pending()) return std::nullopt;
  return anchor_of(record_, {});
}

Status Enrollment::may_lease(const BundleRecord* in_force,
                             const token::Digest& policy_digest) const {
  switch (state(policy_digest)) {
    case EnrollmentState::unenrolled: return {};
    case EnrollmentState::pending: return may_push();
    case EnrollmentState::left:
      return fail(ErrorKind::conflict, "enrollment_ended",
                  "the policy in force is of an enrollment that has ended: its leases run out",
                  "put one of this machine's own in force, with another generation: holdfast "
                  "bundle push FILE; or enroll anew");
    case EnrollmentState::enrolled: break;
  }
  if (in_force != nullptr && in_force->key == record_.anchor) return {};
  return fail(ErrorKind::conflict, "policy_not_of_root",
              fmt::format("this node is enrolled, and the policy in force is not one that its root "
                          "{} has signed",
                          hex(record_.anchor)),
              "have a bundle with a higher generation signed, and push it");
}

Status Enrollment::may_push() const {
  if (!is_pending()) return {};
  return fail(ErrorKind::conflict, "enrollment_pending",
              "this node waits for its enrollment: no lease, and no policy but the one it brings",
              "holdfast enroll finish BUNDLE, or give it up: holdfast enroll end");
}

Status Enrollment::covers(const Policy& policy) const {
  const std::vector<std::string>& named = record_.tenants;
  if (std::ranges::find(named, "*") != named.end()) return {};
  for (const Tenant& tenant : policy.tenants)
    if (std::ranges::find(named, tenant.name) == named.end())
      return fail(ErrorKind::denied, "tenant_not_enrolled",
                  fmt::format("the policy names tenant {}, for which this node is not enrolled",
                              tenant.name),
                  "leave it out, or enroll the node for it: holdfast enroll show");
  return {};
}

Status Enrollment::begin(const token::Digest& anchor, const token::Digest& nonce,
                         std::vector<std::string> tenants, uint64_t life_s, uint64_t now_s,
                         uint32_t uid) {
  if (record_.state == EnrollmentState::enrolled) return enrolled_already(record_);
  return write({.state = EnrollmentState::pending,
                .since_s = now_s,
                .by_uid = uid,
                .anchor = anchor,
                .tenants = std::move(tenants),
                .nonce_hash = hash_of(nonce),
                .expires_s = now_s + life_s,
                .spent = record_.spent,
                .left = record_.left,
                .policy_digest = record_.policy_digest,
                .ends_now = record_.ends_now});
}

Result<token::Anchor> Enrollment::judge(const token::SignedHeader& header, uint64_t now_s) const {
  const token::Digest hash = hash_of(header.nonce);
  if (same(hash, record_.spent))
    return fail(ErrorKind::conflict, "enroll_spent", "that request has been answered already",
                "each is good once: holdfast enroll begin makes another");
  if (record_.state == EnrollmentState::enrolled) return enrolled_already(record_);
  if (!is_pending())
    return fail(ErrorKind::conflict, "not_pending", "this node has asked for no enrollment",
                "holdfast enroll begin --anchor FINGERPRINT");
  if (now_s >= record_.expires_s)
    return fail(
        ErrorKind::denied, "enroll_expired",
        fmt::format("the request was good until {}", rfc3339_utc(record_.expires_s * ns_per_s)),
        "begin anew: holdfast enroll begin");
  if (header.key != record_.anchor || token::thumbprint(header.root.key) != record_.anchor)
    return fail(ErrorKind::denied, "wrong_root",
                fmt::format("the bundle is signed by key {}, and this node waits for {}",
                            hex(header.key), hex(record_.anchor)),
                "have it signed by that key, or begin anew with the right fingerprint");
  if (!same(hash, record_.nonce_hash))
    return fail(ErrorKind::denied, "wrong_nonce", "the bundle answers another request",
                "sign for the last one: holdfast bundle sign --enroll REQUEST");
  return anchor_of(record_, header.root);
}

Status Enrollment::offer(const token::SignedHeader& header) {
  EnrollmentRecord next = record_;
  next.root = header.root;
  next.generation = header.generation;
  return write(std::move(next));
}

Status Enrollment::take_back() {
  EnrollmentRecord next = record_;
  next.root.reset();
  next.generation = 0;
  return write(std::move(next));
}

void Enrollment::accept(bool durably, uint64_t now_s, uint32_t uid) {
  EnrollmentRecord next = record_;
  next.state = EnrollmentState::enrolled;
  next.since_s = now_s;
  next.by_uid = uid;
  next.spent = std::exchange(next.nonce_hash, {});
  next.expires_s = 0;
  next.left = next.policy_digest = {};
  next.ends_now = false;
  if (durably) {
    const Status ok = write(next);
    if (ok) return;
    log::error("enrollment_not_written",
               {{"cause", ok.error().text()}, {"effect", "the next start finds it out"}});
  }
  record_ = std::move(next);
}

Status Enrollment::end(const token::Digest& policy_digest, bool now, uint64_t now_s, uint32_t uid) {
  const bool ends_later = state(policy_digest) == EnrollmentState::left && !record_.ends_now;
  if (record_.state != EnrollmentState::enrolled && !is_pending() && !(now && ends_later))
    return fail(ErrorKind::conflict, "not_enrolled", "this node is neither enrolled nor pending",
                "holdfast enroll show");
  const bool was_enrolled = record_.state == EnrollmentState::enrolled;
  // One that has left before it asked again has left all the same.
  EnrollmentRecord next;
  next.state = EnrollmentState::left;
  next.since_s = now_s;
  next.by_uid = uid;
  next.spent = record_.spent;
  next.anchor = next.left = was_enrolled ? record_.anchor : record_.left;
  next.policy_digest = was_enrolled ? policy_digest : record_.policy_digest;
  next.ends_now = now || (!was_enrolled && record_.ends_now);
  return write(std::move(next));
}

}  // namespace holdfast
