#include "userspace/daemon/tokens.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <sys/random.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
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

std::string holder_of(const Actor& actor) {
  return holder_name({Holder::Kind::uid, actor.uid});
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

Tokens::Tokens(Identity identity, Spent spent, const WallClock& clock)
    : identity_(std::move(identity)), spent_(std::move(spent)), clock_(clock) {}

Result<std::unique_ptr<Tokens>> Tokens::open(const std::string& state_dir) {
  const Result<Identity::Moment> now = Identity::Moment::now();
  if (!now) return std::unexpected(now.error());
  Result<Identity> identity = Identity::open(state_dir, *now);
  if (!identity) return pass_on(identity);
  const WallClock clock(wall_now_ns(), boot_now_ns(), identity->wall_floor_ms() / 1000);
  bool whole = false;
  Result<Spent> spent = Spent::open(state_dir, now->wall_ms / 1000, whole);
  if (!spent) return pass_on(spent);
  // Which tokens were used is not known: none of before may count any more.
  if (!whole && !identity->epoch_is_new())
    if (Status ok = identity->begin_epoch(*now); !ok) return pass_on(ok);
  return std::unique_ptr<Tokens>(new Tokens(std::move(*identity), std::move(*spent), clock));
}

Status Tokens::read_anchors(const std::string& path) {
  token::Anchors anchors;
  const Result<std::string> text = read_state_file(path);
  if (text) {
    Result<token::Anchors> read = token::Anchors::parse(*text, path);
    if (!read) return pass_on(read);
    anchors = std::move(*read);
  } else if (text.error().sys != ENOENT) {
    return std::unexpected(text.error());
  }
  token::Anchor own;
  own.issuer = identity_.name();
  own.key = identity_.key().public_key();
  own.thumbprint = token::thumbprint(own.key);
  own.for_tokens = true;
  own.own = true;
  own.tenants = {"*"};
  own.operations = {"*"};
  if (anchors.find(own.thumbprint) != nullptr)
    return fail(ErrorKind::invalid, "anchors_syntax", path + " lists the node's own key",
                "leave it out: it signs what the node makes, and nothing else");
  anchors.add(std::move(own));
  auto next = std::make_shared<token::Beliefs>();
  next->node = identity_.name();
  next->epoch = identity_.epoch();
  next->anchors = std::move(anchors);
  next->version = beliefs_ ? beliefs_->version + 1 : 1;
  beliefs_ = std::move(next);
  return {};
}

uint64_t Tokens::issuer_of(const token::Head& head) {
  return big_endian(head.key.data());
}

bool Tokens::is_live_issuer(uint64_t issuer) const {
  return std::ranges::any_of(beliefs_->anchors.all(), [&](const token::Anchor& each) {
    return big_endian(each.thumbprint.data()) == issuer && token::is_live(each);
  });
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
                  : "ask its issuer for another one");
}

Result<token::Verified> Tokens::judge(std::span<const uint8_t> bytes, token::Kind kind,
                                      const Actor& presenter) {
  const uint64_t wall_ns = wall_now_ns();
  token::Checked<token::Verified> verified = token::verify(
      bytes, beliefs_->anchors,
      {.node = identity_.name(), .epoch = identity_.epoch(), .now_s = wall_ns / ns_per_s});
  if (!verified) return refuse(verified.error().why, verified.error().detail, presenter);
  if (verified->head.kind != kind)
    return refuse(Refusal::wrong_kind,
                  fmt::format("a {} token, where a {} token belongs",
                              token::name_of(verified->head.kind), token::name_of(kind)),
                  presenter);
  const std::string& holder = verified->claims.holder;
  if (verified->claims.holder_key)
    return refuse(Refusal::wrong_holder, "its holder has to prove a key, which is not taken here",
                  presenter);
  if (!holder.empty() && holder != holder_of(presenter) && !presenter.operates)
    return refuse(Refusal::wrong_holder,
                  fmt::format("{}, and not {}", holder, holder_of(presenter)), presenter);
  if (const std::optional<std::string> doubt = clock_.doubt(wall_ns, boot_now_ns()))
    return refuse(Refusal::clock_suspect, *doubt, presenter);
  ++believed_;
  return std::move(*verified);
}

LeaseId Tokens::lease_of(const token::Verified& grant) const {
  const std::string& node = identity_.name();
  const token::Digest digest = token::sha256(
      {std::span(reinterpret_cast<const uint8_t*>(node.data()), node.size()), grant.id});
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
  claims.holder = holder_name(lease.holder);
  claims.lease = token::LeaseAt{.id = lease.id.bytes(), .generation = lease.generation};
  if (!token::encode_claims(claims, token::Kind::use)) name_whole_endpoints(claims.endpoints);
  const token::Head head{.kind = token::Kind::use,
                         .issuer = claims.issuer,
                         .audience = claims.audience,
                         .expires = claims.expires,
                         .epoch = identity_.epoch()};
  const Result<std::vector<std::vector<uint8_t>>> made =
      token::issue(identity_.key(), head, std::span(&claims, 1));
  if (!made) return std::unexpected(made.error());
  return token::to_text(made->front());
}

bool Tokens::clock_in_doubt() const {
  return clock_.doubt(wall_now_ns(), boot_now_ns()).has_value();
}

void Tokens::release() {
  Result<Identity::Moment> now = Identity::Moment::now();
  const Status ok = now ? identity_.begin_epoch(*now) : Status(pass_on(now));
  if (!ok) log::error("identity_not_written", {{"cause", ok.error().text()}});
}

void Tokens::remember_time() {
  const uint64_t wall_ns = wall_now_ns();
  if (clock_.doubt(wall_ns, boot_now_ns())) return;
  if (Status ok = identity_.remember_time(wall_ns / ns_per_ms); !ok)
    log::error("identity_not_written", {{"cause", ok.error().text()}});
}

Value Tokens::status() const {
  Value refused = Value::map();
  for (size_t i = 0; i < refused_.size(); ++i)
    if (refused_[i] != 0) refused.set(token::name_of(static_cast<Refusal>(i)), refused_[i]);
  const std::optional<std::string> doubt = clock_.doubt(wall_now_ns(), boot_now_ns());
  return Value::map({{"anchors", beliefs_->anchors.all().size() - 1},
                     {"believed", believed_},
                     {"refused", std::move(refused)},
                     {"spent", spent_.size()},
                     {"clock", doubt ? Value("suspect: " + *doubt) : Value("good")}});
}

}  // namespace holdfast
