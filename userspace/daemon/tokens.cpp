#include "userspace/daemon/tokens.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <sys/random.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/state_file.hpp"

namespace holdfast {
namespace {

using cbor::Value;
using token::Refusal;

constexpr int64_t drift_max_ns = 2 * static_cast<int64_t>(ns_per_s);
constexpr uint64_t behind_floor_max_s = 30;

uint64_t big_endian(const uint8_t* bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  if constexpr (std::endian::native == std::endian::little) value = __builtin_bswap64(value);
  return value;
}

constexpr std::string_view revocations_name = "revocations";

uint64_t beginning_of(const token::Digest& digest) {
  return big_endian(digest.data());
}

Value time_of(uint64_t seconds) {
  return rfc3339_utc(seconds * ns_per_s);
}

Value list_of(const std::vector<std::string>& names) {
  Value list = Value::array();
  for (const std::string& each : names) list.push(each);
  return list;
}

Result<token::Revocations> read_revocations(const std::string& state_dir) {
  const std::string path = fmt::format("{}/{}", state_dir, revocations_name);
  const Result<std::string> bytes = read_state_file(path);
  if (!bytes && bytes.error().sys == ENOENT) return token::Revocations();
  if (!bytes) return std::unexpected(bytes.error());
  Result<token::Revocations> read =
      token::Revocations::decode({reinterpret_cast<const uint8_t*>(bytes->data()), bytes->size()});
  if (!read) {
    read.error().message = path + " is damaged, so it is not known what was revoked";
    read.error().next_step = "put a copy back; or remove it, start, and revoke anew what has to be";
  }
  return read;
}

// Of resources as they are shown, what a token names: all of each endpoint, where one by one they
// do not fit. The lease itself says which of them it holds.
void name_whole_endpoints(std::vector<std::string>& endpoints) {
  for (std::string& each : endpoints) each.resize(std::min(each.size(), each.find('@')));
  endpoints.erase(std::unique(endpoints.begin(), endpoints.end()), endpoints.end());
}

}  // namespace

std::optional<std::string> WallClock::doubt(uint64_t wall_ns, uint64_t boot_ns) const {
  const int64_t drift = static_cast<int64_t>(wall_ns - boot_ns) - offset_ns_;
  if (drift > drift_max_ns || drift < -drift_max_ns)
    return fmt::format("it was set {} by {} while the daemon ran", drift > 0 ? "forward" : "back",
                       human_duration(static_cast<uint64_t>(drift > 0 ? drift : -drift)));
  if (const uint64_t wall_s = wall_ns / ns_per_s; wall_s + behind_floor_max_s < floor_s_)
    return fmt::format("it is {} behind a time that has been",
                       human_duration((floor_s_ - wall_s) * ns_per_s));
  return std::nullopt;
}

Tokens::Tokens(std::string state_dir, Identity identity, Spent spent, const WallClock& clock,
               token::Revocations revoked)
    : state_dir_(std::move(state_dir)),
      identity_(std::move(identity)),
      spent_(std::move(spent)),
      clock_(clock) {
  believe(std::move(revoked));
}

Result<std::unique_ptr<Tokens>> Tokens::open(const std::string& state_dir,
                                             const std::string& key_uri) {
  const Result<Identity::Moment> now = Identity::Moment::now();
  if (!now) return std::unexpected(now.error());
  Result<Identity> identity = Identity::open(state_dir, *now, key_uri);
  if (!identity) return pass_on(identity);
  const WallClock clock(wall_now_ns(), boot_now_ns(), identity->wall_floor_ms() / 1000);
  bool whole = false;
  Result<Spent> spent = Spent::open(state_dir, now->wall_ms / 1000, whole);
  if (!spent) return pass_on(spent);
  // Which tokens were used is not known: none of before may count any more.
  if (!whole && !identity->epoch_is_new())
    if (Status ok = identity->begin_epoch(*now); !ok) return pass_on(ok);
  Result<token::Revocations> revoked = read_revocations(state_dir);
  if (!revoked) return pass_on(revoked);
  return std::unique_ptr<Tokens>(
      new Tokens(state_dir, std::move(*identity), std::move(*spent), clock, std::move(*revoked)));
}

Status Tokens::read_anchors(const std::string& path, bool again) {
  anchors_path_ = path;
  token::Anchors anchors;
  const Result<std::string> text = read_state_file(path);
  if (text) {
    Result<token::Anchors> read = token::Anchors::parse(*text, path);
    if (!read) return pass_on(read);
    anchors = std::move(*read);
  } else if (text.error().sys != ENOENT) {
    return std::unexpected(text.error());
  } else if (again && !file_anchors_.all().empty()) {
    return fail(ErrorKind::not_found, "anchors_missing",
                path + " is gone; what it said still holds",
                "to believe nobody, write an empty list: anchors: []");
  }
  if (anchors.find(identity_.key().key()) != nullptr)
    return fail(ErrorKind::invalid, "anchors_syntax", path + " lists the node's own key",
                "leave it out: it signs what the node makes, and nothing else");
  file_anchors_ = std::move(anchors);
  believe(beliefs_.load()->revoked);
  return {};
}

Status Tokens::reread_anchors() {
  return read_anchors(std::string(anchors_path_));
}

void Tokens::use_bundle_anchors(BundleAnchors bundle) {
  bundle_anchors_ = std::move(bundle);
  believe(beliefs_.load()->revoked);
}

void Tokens::believe_root(std::optional<token::Anchor> root) {
  root_.reset();
  if (root) root_.emplace().add(std::move(*root));
  believe(beliefs_.load()->revoked);
}

bool Tokens::takes_signed_bundles_only() const {
  return std::ranges::any_of(standing_anchors().all(), &token::Anchor::for_bundles);
}

bool Tokens::is_revoked(const token::Digest& key) const {
  return beliefs_.load()->revoked.has_key(key);
}

bool Tokens::is_revoked_before(std::string_view issuer, uint64_t issued_s,
                               std::string_view tenant) const {
  return issued_s < beliefs_.load()->revoked.issued_before_s(issuer, tenant);
}

bool Tokens::is_dead(const token::Digest& key) const {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  const token::Anchor* anchor = now->anchors.find(key);
  return anchor != nullptr && !token::is_live(*anchor);
}

uint64_t Tokens::life_max_ns(uint64_t issuer) const {
  uint64_t life_s = token::life_max_s;
  for (const token::Anchor& each : beliefs_.load()->anchors.all())
    if (issuer_of(each.thumbprint) == issuer) life_s = each.life_max_s;
  return life_s * ns_per_s;
}

bool Tokens::signatures_needed() const {
  return signatures_needed_;
}

void Tokens::believe(token::Revocations revoked) {
  const std::shared_ptr<const token::Beliefs> before = beliefs_.load();
  auto next = std::make_shared<token::Beliefs>();
  next->node = identity_.name();
  next->epoch = identity_.epoch();
  next->version = before ? before->version + 1 : 1;
  const uint64_t now_s = clock_.unset_s(boot_now_ns());
  const auto add = [&](token::Anchor anchor) {
    const token::Anchor* was = before ? before->anchors.find(anchor.thumbprint) : nullptr;
    anchor.used_s = was != nullptr ? was->used_s : std::make_shared<std::atomic<uint64_t>>(0);
    anchor.retires_s = revoked.retires_s(anchor.thumbprint);
    if (anchor.retires_s && token::is_live(anchor)) {
      const bool over = *anchor.retires_s <= now_s;
      anchor.state = over ? token::KeyState::verify_only : token::KeyState::retiring;
      if (over && was != nullptr && token::is_live(*was)) retired_.push_back(anchor);
    }
    next->anchors.add(std::move(anchor));
  };
  const token::Digest named_for = key();  // no bundle makes an anchor of it
  // Its own first, so that nothing makes it another's.
  add(token::own_anchor(identity_.name(), identity_.epoch_key().public_key()));
  const token::Anchors& standing = standing_anchors();
  // Also while its signer is revoked: what is taken back from somebody widens nothing for others.
  signatures_needed_ = standing.signatures_needed || bundle_anchors_.anchors.signatures_needed;
  for (const token::Anchor& each : standing.all()) add(each);
  const token::Anchor* found = next->anchors.find(bundle_anchors_.signer);
  const token::Anchor signer = found != nullptr ? *found : token::Anchor();
  if (signer.for_bundles && token::is_live(signer) && !revoked.has_key(signer.thumbprint) &&
      bundle_anchors_.issued_s >= revoked.issued_before_s(signer.issuer, "")) {
    for (const token::Anchor& each : bundle_anchors_.anchors.all())
      if (standing.find(each.thumbprint) == nullptr &&
          each.thumbprint != next->anchors.all().front().thumbprint &&
          each.thumbprint != named_for && token::what_goes_beyond(each, signer) == nullptr)
        add(each);
  }
  next->revoked = std::move(revoked);
  beliefs_.store(std::move(next));
}

Status Tokens::write(const token::Revocations& revoked) const {
  const std::vector<uint8_t> bytes = revoked.encode();
  return write_state_file(state_dir_, revocations_name,
                          {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// Enforced before anything else, since what follows takes the longer the more is revoked: the list
// is copied, and written. In between no token is judged for a grant or a renewal, which are of this
// thread too; and what is torn down stays so, whatever becomes of the daemon.
Status Tokens::revoke(token::Revocation revocation, const std::function<void()>& enforce) {
  enforce();
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  token::Revocations next = now->revoked;
  // A time that is behind one that has been would let it lapse too early.
  revocation.since_s = std::max(wall_now_ns() / ns_per_s, identity_.wall_floor_ms() / 1000);
  const Status added = next.add(std::move(revocation));
  if (!added) return added;
  believe(next);
  Status written = write(next);
  if (written) return {};
  return pass_on(written, "it holds until the daemon ends, but not beyond");
}

Status Tokens::restore(const token::Revocation& revocation) {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  token::Revocations next = now->revoked;
  if (Status ok = next.lift(revocation); !ok) return ok;
  if (Status ok = write(next); !ok) {
    // It may have come to stand there all the same.
    if (Status back = write(now->revoked); !back)
      log::error("revocations_not_written", {{"cause", back.error().text()}});
    return ok;
  }
  believe(std::move(next));
  return {};
}

// What its bundle handed on ends with a signer of bundles, so the successor has to have signed one
// before.
std::vector<std::string> Tokens::hindrances(const token::Anchor& anchor,
                                            const token::Anchor& successor) const {
  std::vector<std::string> all = token::what_is_missing(anchor, successor);
  if (anchor.thumbprint == bundle_anchors_.signer && !bundle_anchors_.anchors.all().empty())
    all.emplace_back("the signature of the bundle in force");
  return all;
}

bool Tokens::is_rotatable(const token::Anchor& anchor, const token::Beliefs& now) const {
  return token::is_live(anchor) && !now.revoked.has_key(anchor.thumbprint) &&
         std::ranges::any_of(now.anchors.all(), [&](const token::Anchor& other) {
           return other.state == token::KeyState::current && !other.own &&
                  other.thumbprint != anchor.thumbprint && other.issuer == anchor.issuer &&
                  !now.revoked.has_key(other.thumbprint) && hindrances(anchor, other).empty();
         });
}

Result<uint64_t> Tokens::rotate(const token::Digest& old_key, const token::Digest& new_key,
                                uint64_t after_s, bool dry_run) {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  const auto find = [&](const token::Digest& key) -> Result<const token::Anchor*> {
    const token::Anchor* anchor = now->anchors.find(key);
    if (anchor == nullptr || anchor->own)
      return fail(ErrorKind::not_found, "no_such_anchor",
                  fmt::format("no anchor has the key {}", hex(key)), "holdfast trust show");
    if (!token::is_live(*anchor) || now->revoked.has_key(key))
      return fail(ErrorKind::conflict, "key_not_live",
                  fmt::format("the key {} may sign no more", hex(key)), "holdfast trust show");
    return anchor;
  };
  const Result<const token::Anchor*> retiring = find(old_key);
  if (!retiring) return std::unexpected(retiring.error());
  const Result<const token::Anchor*> successor = find(new_key);
  if (!successor) return std::unexpected(successor.error());
  const auto refuse = [&](std::string what, std::string next_step) {
    return fail(ErrorKind::conflict, "not_rotatable", std::move(what), std::move(next_step));
  };
  if (old_key == new_key || (*successor)->state != token::KeyState::current)
    return refuse(
        fmt::format("the key {} retires itself, so it takes no other's place", hex(new_key)),
        "name one that is current: holdfast trust show");
  if (const std::vector<std::string> missing = hindrances(**retiring, **successor);
      !missing.empty())
    return refuse(
        fmt::format("the key {} does not have {}", hex(new_key), fmt::join(missing, ", ")),
        root_ && (*retiring)->for_bundles
            ? "another root comes by another enrollment: holdfast enroll end"
            : "give it what the other one has: in anchors.yaml, or in the next bundle");
  token::Revocation retire;
  retire.kind = token::Revocation::Kind::retire;
  retire.digest = old_key;
  retire.issued_before_s = clock_.unset_s(boot_now_ns()) + after_s;
  const uint64_t end_s =
      std::min(retire.issued_before_s, (*retiring)->retires_s.value_or(retire.issued_before_s));
  if (!dry_run)
    if (Status ok = revoke(std::move(retire), [] {}); !ok) return pass_on(ok);
  return end_s;
}

std::vector<token::Anchor> Tokens::retire_due() {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  if (now->revoked.retiring().empty()) return std::exchange(retired_, {});
  const uint64_t now_s = clock_.unset_s(boot_now_ns());
  if (std::ranges::any_of(now->anchors.all(), [now_s](const token::Anchor& each) {
        return each.retires_s && *each.retires_s <= now_s && token::is_live(each);
      }))
    believe(now->revoked);
  return std::exchange(retired_, {});
}

void Tokens::note_use(const token::Digest& key) const {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  if (const token::Anchor* anchor = now->anchors.find(key); anchor != nullptr)
    token::note_use(*anchor, wall_now_ns() / ns_per_s);
}

Result<std::shared_ptr<const token::Anchor>> Tokens::signer(const token::Digest& key,
                                                            token::Purpose purpose) const {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  const token::Anchor* anchor = now->anchors.find(key);
  const auto deny = [](std::string_view code, const char* what) {
    return std::unexpected(Error{ErrorKind::denied, code, 0, what, "holdfast trust show"});
  };
  if (anchor == nullptr) return deny("unknown_key", "no anchor has the key that signed");
  if (!token::is_live(*anchor) || now->revoked.has_key(key))
    return deny("key_not_live", "the key that signed may sign no more");
  if (purpose == token::Purpose::request && !anchor->for_requests)
    return deny("key_not_for_requests", "the key that signed may sign other things, no requests");
  if (purpose == token::Purpose::operator_grant && !anchor->for_operators)
    return deny("key_not_for_operators", "the key that signed may sign other things, no grants");
  if (purpose == token::Purpose::bundle && !anchor->for_bundles)
    return deny("key_not_for_bundles", "the key that signed may sign other things, no bundles");
  const bool schedules = purpose == token::Purpose::preempt || purpose == token::Purpose::admission;
  if (schedules && !anchor->for_schedules)
    return deny("key_not_for_schedules",
                "the key that signed may sign other things, and is no scheduler's");
  return std::shared_ptr<const token::Anchor>(now, anchor);
}

Status Tokens::judge_dates(const token::SignedHeader& header, token::Purpose purpose,
                           uint64_t life_max_s) const {
  const std::string_view what = token::name_of(purpose);
  const auto deny = [](std::string_view code, std::string message, std::string next_step) {
    return std::unexpected(
        Error{ErrorKind::denied, code, 0, std::move(message), std::move(next_step)});
  };
  if (header.audience != identity_.name())
    return deny("wrong_audience", fmt::format("the {} is for {}", what, header.audience),
                "one for this node: holdfast status shows its name");
  // With a clock in doubt it closes all the same: the generation that it names says when it was
  // made.
  if (clock_in_doubt() && purpose == token::Purpose::preempt) return {};
  if (clock_in_doubt())
    return deny("clock_suspect",
                fmt::format("the node's clock is in doubt, and a {} is dated", what),
                "set the clock right, then restart holdfastd");
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  if (header.issued_s > now_s + token::clock_skew_s)
    return deny("issued_in_future",
                fmt::format("the {} is dated {}", what, rfc3339_utc(header.issued_s * ns_per_s)),
                "see whether its signer's clock is right");
  if (header.expires_s <= now_s)
    return deny("expired",
                fmt::format("the {} expired at {}", what, rfc3339_utc(header.expires_s * ns_per_s)),
                "sign it again");
  if (header.expires_s - header.issued_s > life_max_s)
    return deny(
        "life_too_long",
        fmt::format("the {} is good for more than {}", what, human_duration(life_max_s * ns_per_s)),
        "sign it for a shorter time");
  return {};
}

Status Tokens::judge_signature(const token::SignedObject& object, token::Purpose purpose,
                               const token::Anchor& anchor) const {
  if (!token::is_signed_by(signer_key(anchor), purpose, object))
    return fail(ErrorKind::denied, "bad_signature", "the signature is not the key's",
                "sign with the key that is named");
  if (is_revoked_before(anchor.issuer, object.header.issued_s))
    return fail(ErrorKind::denied, "revoked", "what its signer had issued by then is revoked",
                "holdfast trust show");
  return {};
}

Result<std::shared_ptr<const token::Anchor>> Tokens::judge_kept(const token::SignedObject& object,
                                                                token::Purpose purpose,
                                                                uint64_t life_max_s) const {
  if (Status ok = judge_dates(object.header, purpose, life_max_s); !ok) return pass_on(ok);
  Result<std::shared_ptr<const token::Anchor>> anchor = signer(object.header.key, purpose);
  if (!anchor) return anchor;
  if (Status ok = judge_signature(object, purpose, **anchor); !ok) return pass_on(ok);
  token::note_use(**anchor, wall_now_ns() / ns_per_s);
  return anchor;
}

Status Tokens::judge_pinned(const token::SignedObject& object, const token::Anchor& root,
                            uint64_t life_max_s) const {
  constexpr auto purpose = token::Purpose::enrollment;
  if (Status ok = judge_dates(object.header, purpose, life_max_s); !ok) return ok;
  // Revocations outlive an enrollment, and so hold for whoever comes again.
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  if (now->revoked.has_key(root.thumbprint) || now->revoked.retires_s(root.thumbprint))
    return fail(ErrorKind::denied, "key_not_live", "the key that signed may sign no more",
                "holdfast trust show");
  return judge_signature(object, purpose, root);
}

LeaseOrigin Tokens::origin_of(const token::Verified& token) {
  return {.issuer = issuer_of(token.head.key),
          .head = beginning_of(token.head_id),
          .token = beginning_of(token.id),
          .issued_s = token.claims.issued_at};
}

LeaseOrigin Tokens::origin_of(const wire::Principal& signer) {
  LeaseOrigin origin{.issuer = issuer_of(signer.by.value_or(signer.key)),
                     .issued_s = wall_now_ns() / ns_per_s};
  if (signer.by) origin.head = beginning_of(signer.key);
  return origin;
}

uint64_t Tokens::issuer_of(const token::Digest& key) {
  return beginning_of(key);
}

bool Tokens::is_orphan(uint64_t issuer) const {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  return std::ranges::none_of(now->anchors.all(), [&](const token::Anchor& each) {
    return issuer_of(each.thumbprint) == issuer && token::is_live(each) &&
           (each.for_tokens || each.for_requests || each.for_operators) &&
           !now->revoked.has_key(each.thumbprint);
  });
}

std::function<bool(const abi::lease_record&)> Tokens::meant_by(const token::Revocation& revocation,
                                                               std::optional<uint64_t> tenant_id,
                                                               const token::Anchors& left) const {
  using Kind = token::Revocation::Kind;
  using Record = abi::lease_record;
  const uint64_t beginning = beginning_of(revocation.digest);
  switch (revocation.kind) {
    case Kind::key:
      return [=](const Record& r) {
        return r.issuer != 0 && (r.issuer == beginning || (r.token == 0 && r.head == beginning));
      };
    case Kind::head: return [=](const Record& r) { return r.issuer != 0 && r.head == beginning; };
    case Kind::token:
      return [=, made = lease_of(revocation.digest)](const Record& r) {
        return r.issuer != 0 && (r.token == beginning || LeaseId::of(r) == made);
      };
    case Kind::holder:
      return [holder = parse_holder_name(revocation.name)](const Record& r) {
        return holder && Node::holder_of(r) == *holder;
      };
    case Kind::retire: return [](const Record&) { return false; };  // not before its end
    case Kind::issuer: break;
  }
  std::vector<uint64_t> keys;
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  for (const token::Anchors* anchors : {&now->anchors, &left})
    for (const token::Anchor& each : anchors->all())
      if (each.issuer == revocation.name) keys.push_back(issuer_of(each.thumbprint));
  return [keys, tenant_id, before_s = revocation.issued_before_s](const Record& r) {
    return std::ranges::find(keys, r.issuer) != keys.end() && r.issued_s < before_s &&
           (!tenant_id || r.tenant_id == *tenant_id);
  };
}

std::unexpected<Error> Tokens::refuse(Refusal why, const std::string& detail,
                                      const Actor& presenter) {
  ++refused_[static_cast<size_t>(why)];
  log::notice("token_refused",
              {{"reason", token::name_of(why)}, {"detail", detail}, {"uid", presenter.uid}});
  if (token::is_before_signature(why) && !presenter.operates)
    return fail(ErrorKind::denied, token::name_of(Refusal::denied),
                "this node does not accept that token",
                "an operator sees why in the log, and in `holdfast status`");
  return fail(ErrorKind::denied, token::name_of(why),
              fmt::format("the token is refused: {}{}{}{}", token::describe(why),
                          detail.empty() ? "" : " (", detail, detail.empty() ? "" : ")"),
              why == Refusal::clock_suspect
                  ? "set the clock right, then restart holdfastd; leases go on meanwhile"
              : why == Refusal::revoked ? "ask an operator: holdfast trust show"
                                        : "ask its issuer for another one");
}

Result<token::Verified> Tokens::judge(std::span<const uint8_t> bytes, token::Kind kind,
                                      const Actor& presenter) {
  const uint64_t wall_ns = wall_now_ns();
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  token::Checked<token::Verified> verified = token::verify(bytes, now->anchors,
                                                           {.node = now->node,
                                                            .epoch = identity_.epoch(),
                                                            .now_s = wall_ns / ns_per_s,
                                                            .revoked = now->revoked});
  if (!verified) return refuse(verified.error().why, verified.error().detail, presenter);
  if (verified->head.kind != kind)
    return refuse(Refusal::wrong_kind,
                  fmt::format("a {} token, where a {} token belongs",
                              token::name_of(verified->head.kind), token::name_of(kind)),
                  presenter);
  const Result<Holder> holder = holder_of(verified->claims, presenter);
  if (!holder) return std::unexpected(holder.error());
  const std::string name = holder_name(*holder);
  // Operators may present what is another's, but no key proves itself by who presents it.
  const bool by_key = holder->kind == Holder::Kind::key;
  if (!presenter.is(*holder) && (by_key || !presenter.operates))
    return refuse(Refusal::wrong_holder,
                  by_key ? fmt::format("{}, which was not proved on this connection", name)
                         : fmt::format("{}, and not uid:{}", name, presenter.uid),
                  presenter);
  // One that names no holder is its presenter's.
  const bool bearers = verified->claims.holder.empty() && !verified->claims.holder_key;
  if (bearers && !presenter.cgroups && now->revoked.has_cgroups())
    return refuse(Refusal::revoked, "who presents it is in a cgroup that is not known", presenter);
  for (const Holder& each : presenter.holders())
    if (now->revoked.has_holder(holder_name(each)))
      return refuse(Refusal::revoked, "who presents it, " + holder_name(each), presenter);
  if (const std::optional<std::string> doubt = clock_.doubt(wall_ns, boot_now_ns()))
    return refuse(Refusal::clock_suspect, *doubt, presenter);
  ++believed_;
  note_use(verified->head.key);
  return std::move(*verified);
}

Result<Holder> Tokens::holder_of(const token::Claims& claims, const Actor& presenter) {
  if (claims.holder_key) return Holder{Holder::Kind::key, 0, *claims.holder_key};
  if (!claims.holder.empty()) return parse_holder_name(claims.holder);
  return Holder{Holder::Kind::uid, presenter.uid, {}};
}

LeaseId Tokens::lease_of(const token::Digest& grant) const {
  const std::string& node = identity_.name();
  const token::Digest digest =
      token::sha256({std::span(reinterpret_cast<const uint8_t*>(node.data()), node.size()), grant});
  std::array<uint8_t, 16> id;
  std::copy_n(digest.begin(), id.size(), id.begin());
  return LeaseId::of(id);
}

Status Tokens::spend(const token::Verified& grant) {
  return spent_.add(grant.id, grant.expires_s, wall_now_ns() / ns_per_s);
}

void Tokens::take_back(const token::Verified& grant) {
  if (Status ok = spent_.take_back(grant.id); !ok)
    log::error("token_not_taken_back",
               {{"cause", ok.error().text()}, {"effect", "it counts as used"}});
}

Result<std::string> Tokens::use_token(const LeaseView& lease,
                                      const std::vector<std::string>& operations) {
  constexpr std::string_view egress = "egress:";
  const uint64_t wall_ns = wall_now_ns();
  const uint64_t wall_s = wall_ns / ns_per_s;
  const uint64_t now = boot_now_ns();
  const uint64_t left_ns = lease.deadline_boot_ns > now ? lease.deadline_boot_ns - now : 0;
  token::Claims claims;
  claims.issuer = claims.audience = identity_.name();
  claims.issued_at = claims.not_before = wall_s;
  // Rounded up: in the last part of a second the lease itself says when it ends.
  claims.expires = std::min((wall_ns + left_ns) / ns_per_s + 1, wall_s + token::life_max_s);
  if (::getrandom(claims.id.data(), claims.id.size(), 0) != static_cast<ssize_t>(claims.id.size()))
    return fail_sys(errno, "random", "asking the kernel for random bytes");
  claims.tenant = lease.tenant;
  for (const std::string& each : lease.resources)
    if (each.starts_with(egress))
      claims.egress.push_back(each.substr(egress.size()));
    else
      claims.endpoints.push_back(each);
  std::ranges::sort(claims.endpoints);
  std::ranges::sort(claims.egress);
  claims.operations = operations;
  if (lease.peer) claims.peer = format_prefix(*lease.peer);
  if (lease.holder.kind == Holder::Kind::key)
    claims.holder_key = lease.holder.key;
  else
    claims.holder = holder_name(lease.holder);
  claims.lease = token::LeaseAt{.id = lease.id.bytes(), .generation = lease.generation};
  if (!token::encode_claims(claims, token::Kind::use)) name_whole_endpoints(claims.endpoints);
  const token::Head head{.kind = token::Kind::use,
                         .issuer = claims.issuer,
                         .audience = claims.audience,
                         .expires = claims.expires,
                         .epoch = identity_.epoch()};
  const Result<std::vector<std::vector<uint8_t>>> made =
      token::issue(identity_.epoch_key(), head, std::span(&claims, 1));
  if (!made) return std::unexpected(made.error());
  return token::to_text(made->front());
}

bool Tokens::clock_in_doubt() const {
  return clock_.doubt(wall_now_ns(), boot_now_ns()).has_value();
}

Status Tokens::begin_epoch() {
  Result<Identity::Moment> now = Identity::Moment::now();
  if (!now) return pass_on(now);
  Status ok = identity_.begin_epoch(*now);
  const std::shared_ptr<const token::Beliefs> before = beliefs_.load();
  believe(before->revoked);  // of this epoch
  return ok;
}

void Tokens::release() {
  if (Status ok = begin_epoch(); !ok)
    log::error("identity_not_written", {{"cause", ok.error().text()}});
}

void Tokens::remember_time() {
  const uint64_t wall_ns = wall_now_ns();
  if (clock_.doubt(wall_ns, boot_now_ns())) return;
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  token::Revocations left = now->revoked;
  if (left.drop_lapsed(wall_ns / ns_per_s) != 0) {
    if (Status ok = write(left); !ok)
      log::error("revocations_not_written", {{"cause", ok.error().text()}});
    believe(std::move(left));
  }
  if (Status ok = identity_.remember_time(wall_ns / ns_per_ms); !ok)
    log::error("identity_not_written", {{"cause", ok.error().text()}});
}

Value Tokens::status() const {
  Value refused = Value::map();
  for (size_t i = 0; i < refused_.size(); ++i)
    if (refused_[i] != 0) refused.set(token::name_of(static_cast<Refusal>(i)), refused_[i]);
  const std::optional<std::string> doubt = clock_.doubt(wall_now_ns(), boot_now_ns());
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  return Value::map({{"anchors", now->anchors.all().size() - 1},
                     {"version", now->version},
                     {"unsigned_may", signatures_needed() ? "tighten" : "operate"},
                     {"revocations", now->revoked.all().size()},
                     {"believed", believed_},
                     {"refused", std::move(refused)},
                     {"spent", spent_.size()},
                     {"clock", doubt ? Value("suspect: " + *doubt) : Value("good")}});
}

namespace {

Value uses_of(const token::Anchor& anchor) {
  Value uses = Value::array();
  if (anchor.for_tokens) uses.push("token");
  if (anchor.for_requests) uses.push("request");
  if (anchor.for_bundles) uses.push("bundle");
  if (anchor.for_operators) uses.push("operator");
  if (anchor.for_schedules) uses.push("schedule");
  return uses;
}

// What an anchor may sign, and the state that it is in.
Value rights_value(const token::Anchor& anchor, std::string_view state) {
  return Value::map({{"issuer", anchor.issuer},
                     {"key", hex(anchor.thumbprint)},
                     {"state", state},
                     {"uses", uses_of(anchor)},
                     {"tenants", list_of(anchor.tenants)},
                     {"operations", list_of(anchor.operations)},
                     {"verbs", list_of(anchor.verbs)},
                     {"life", human_duration(anchor.life_max_s * ns_per_s)}});
}

// A root that is waited for: it may sign nothing but the answer.
Value pending_value(const token::Anchor& root) {
  Value value = rights_value(root, "pending");
  value.set("source", "enrollment");
  value.set("verified", false);
  value.set("pending", true);
  value.set("rotatable", false);
  for (const char* nothing : {"last_used", "until", "left"}) value.set(nothing, Value());
  return value;
}

Value revocation_value(const token::Revocation& revocation) {
  const std::optional<uint64_t> lapses = revocation.lapses_s();
  const uint64_t before_s = revocation.issued_before_s;
  if (revocation.kind == token::Revocation::Kind::retire)
    return Value::map({{"what", token::text_of(revocation)},
                       {"tenant", Value()},
                       {"issued_before", Value()},
                       {"since", time_of(before_s)},
                       {"lapses", Value()}});
  return Value::map({{"what", token::text_of(revocation)},
                     {"tenant", revocation.tenant.empty() ? Value() : Value(revocation.tenant)},
                     {"issued_before", before_s != 0 ? time_of(before_s) : Value()},
                     {"since", time_of(revocation.since_s)},
                     {"lapses", lapses ? time_of(*lapses) : Value()}});
}

}  // namespace

Value Tokens::anchor_value(const token::Anchor& anchor, const token::Beliefs& now) const {
  const bool is_revoked = now.revoked.has_key(anchor.thumbprint);
  const bool standing = standing_anchors().find(anchor.thumbprint) != nullptr;
  const uint64_t now_s = clock_.unset_s(boot_now_ns());
  const uint64_t used_s = anchor.used_s->load(std::memory_order_relaxed);
  const bool retires = anchor.retires_s && !is_revoked && token::is_live(anchor);
  Value value = rights_value(anchor, is_revoked ? "revoked" : token::name_of(anchor.state));
  value.set("source", !standing ? "bundle" : root_ ? "enrollment" : "file");
  value.set("verified", used_s != 0);
  value.set("last_used", used_s != 0 ? time_of(used_s) : Value());
  value.set("pending", false);
  value.set("rotatable", is_rotatable(anchor, now));
  value.set("until", retires ? time_of(*anchor.retires_s) : Value());
  value.set("left",
            retires ? Value(human_duration((std::max(*anchor.retires_s, now_s) - now_s) * ns_per_s))
                    : Value());
  return value;
}

Result<std::vector<uint8_t>> Tokens::sign_statement(token::Purpose purpose,
                                                    const token::StatementFor& target,
                                                    std::span<const uint8_t> content) const {
  if (identity_.certificate().empty())
    return fail(ErrorKind::unavailable, "no_certificate",
                "the node's own key could not sign for its epoch key when the epoch began",
                "see the log; once the key is back: systemctl restart holdfastd");
  return token::sign_statement(purpose, identity_.epoch_key(), identity_.epoch(),
                               identity_.certificate(), target, wall_now_ns() / ns_per_s, content);
}

Value Tokens::identity() const {
  const std::vector<uint8_t>& certificate = identity_.certificate();
  return Value::map(
      {{"node", identity_.name()},
       {"epoch", identity_.epoch()},
       {"key", hex(identity_.key().key())},
       {"kept", identity_.is_on_token() ? "pkcs11" : "file"},
       {"epoch_key", hex(identity_.epoch_key().key())},
       {"certificate", certificate.empty() ? Value() : Value(Value::Bytes(certificate))}});
}

Value Tokens::trust(uint64_t cursor, size_t limit,
                    const std::optional<token::Anchor>& pending) const {
  const std::shared_ptr<const token::Beliefs> now = beliefs_.load();
  const std::vector<token::Anchor>& anchors = now->anchors.all();
  const std::vector<token::Revocation>& revoked = now->revoked.all();
  const uint64_t end = anchors.size() + revoked.size();
  Value anchor_list = Value::array();
  Value revoked_list = Value::array();
  if (pending && cursor == 0) anchor_list.push(pending_value(*pending));
  uint64_t at = std::min(cursor, end);
  for (; at < end && limit > 0; ++at, --limit)
    if (at >= anchors.size())
      revoked_list.push(revocation_value(revoked[at - anchors.size()]));
    else if (!anchors[at].own)
      anchor_list.push(anchor_value(anchors[at], *now));
  return Value::map({{"node", identity_.name()},
                     {"epoch", identity_.epoch()},
                     {"anchors", std::move(anchor_list)},
                     {"revocations", std::move(revoked_list)},
                     {"next", at < end ? Value(at) : Value()}});
}

}  // namespace holdfast
