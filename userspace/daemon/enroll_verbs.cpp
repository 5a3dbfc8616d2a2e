// enroll.begin, enroll.finish, enroll.end, enroll.show: whose node this is.
#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <sys/random.h>
#include <sys/utsname.h>

#include "policy/text.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t tenants_max = 4096;           // as many as a policy can name
constexpr size_t tenant_name_bytes_max = 256;  // no tenant has a longer one

uint64_t wall_s() {
  return wall_now_ns() / ns_per_s;
}

Result<std::vector<std::string>> read_tenants(const Value& args) {
  std::vector<std::string> tenants;
  const Value* list = args.find("tenants");
  if (list == nullptr) return std::vector<std::string>{"*"};
  const Value::Array* names = list->as_array();
  const auto refuse = [](std::string what) {
    return fail(ErrorKind::invalid, "bad_tenants", std::move(what),
                "name them as policies do: org/app/env; all of them is *");
  };
  if (names == nullptr || names->empty() || names->size() > tenants_max)
    return refuse(fmt::format("tenants is a list of 1 to {} names", tenants_max));
  for (const Value& each : *names) {
    const std::string* name = each.as_text();
    if (name == nullptr || name->empty() || name->size() > tenant_name_bytes_max)
      return refuse("a tenant's name is a text of 1 to 256 bytes");
    if (std::ranges::find(tenants, *name) != tenants.end())
      return refuse(fmt::format("tenant {} is named twice", quote_text(*name)));
    tenants.push_back(*name);
  }
  return tenants;
}

}  // namespace

Verbs::Answer Verbs::enroll_begin(const wire::Peer& peer, const Value& args) {
  if (Status ok = args.only_keys({"anchor", "life_s", "tenants"}); !ok) return pass_on(ok);
  const Result<std::string_view> fingerprint = args.get_text("anchor");
  if (!fingerprint) return std::unexpected(fingerprint.error());
  const auto anchor = from_hex<sizeof(token::Digest)>(*fingerprint);
  if (!anchor)
    return fail(ErrorKind::invalid, "bad_fingerprint",
                "a root's fingerprint is 64 hexadecimal digits, in lower case",
                "whoever has the key is told it: holdfast enroll fingerprint KEY");
  if (tokens_.is_own_key(*anchor))
    return fail(ErrorKind::invalid, "own_key", "that is the fingerprint of the node's own key",
                "name the root's: the node is nobody's root, and not its own");
  const Result<uint64_t> life_s = args.has("life_s")
                                      ? args.get_u64("life_s", 1, token::enrollment_life_max_s)
                                      : token::enrollment_life_default_s;
  if (!life_s) return std::unexpected(life_s.error());
  Result<std::vector<std::string>> tenants = read_tenants(args);
  if (!tenants) return pass_on(tenants);
  if (tokens_.clock_in_doubt())
    return fail(ErrorKind::unavailable, "clock_suspect",
                "the node's clock is in doubt, and a request is dated",
                "set the clock right, then restart holdfastd");
  token::Digest nonce{};
  if (::getrandom(nonce.data(), nonce.size(), 0) != static_cast<ssize_t>(nonce.size()))
    return fail_sys(errno, "random", "drawing a nonce");
  // Signed first: a request that could not be made leaves nothing behind.
  const Result<std::string> csr = tokens_.certificate_request(hex(nonce));
  if (!csr) return std::unexpected(Error(csr.error()).in("the node's key"));
  const bool again = enrollment_.is_pending();
  if (Status ok = enrollment_.begin(*anchor, nonce, *tenants, *life_s, wall_s(), peer.uid); !ok)
    return pass_on(ok);
  node_.journal().record(log::Level::notice, "enroll.begin",
                         {{"root", *fingerprint},
                          {"expires", rfc3339_utc(enrollment_.record().expires_s * ns_per_s)},
                          {"replaces_another", again ? "yes" : "no"}});
  utsname host{};
  ::uname(&host);
  // The nonce is told here and kept nowhere: what is kept is its hash.
  return Value::map({{"version", 1},
                     {"node", tokens_.node()},
                     {"host", host.nodename},
                     {"nonce", hex(nonce)},
                     {"anchor", *fingerprint},
                     {"expires_s", enrollment_.record().expires_s},
                     {"generation_floor", bundles_.last().generation},
                     {"tenants", names_value(*tenants)},
                     {"csr", *csr}});
}

// The cheap refusals first, on the bounded header: is a request out, in time, is this the pinned
// key and the request's nonce, this node, dated well -> the signature over the raw bytes -> the
// content, within what a root may say -> in force -> answered.
Verbs::Answer Verbs::enroll_finish(const wire::Peer& peer, const wire::Request& request) {
  if (Status ok = request.args.only_keys({"file"}); !ok) return pass_on(ok);
  const Result<std::string_view> file = request.args.get_text_or("file", "policy");
  if (!file) return std::unexpected(file.error());
  if (!request.has_body)
    return fail(ErrorKind::invalid, "no_body", "enroll.finish takes the signed bundle as its body",
                "holdfast enroll finish BUNDLE");
  Policy policy;
  token::SignedHeader header;
  const auto believe = [&]() -> Result<BelievedBundle> {
    const Result<token::SignedObject> object =
        token::take_apart_signed(request.body, token::Purpose::enrollment);
    if (!object) return std::unexpected(object.error());
    header = object->header;
    const Result<token::Anchor> root = enrollment_.judge(header, wall_s());
    if (!root) return std::unexpected(root.error());
    if (Status ok = tokens_.judge_pinned(*object, *root, token::bundle_life_max_s); !ok)
      return pass_on(ok);
    Result<BelievedBundle> bundle =
        bundles_.read(*object, request.body, *root, {.policy_digest = node_.policy_digest()});
    if (!bundle) return bundle;
    if (Status ok = bundle->is_in_force ? may_accept_again() : read_policy(*bundle, *file, policy);
        !ok)
      return pass_on(ok);
    return bundle;
  };
  const Result<BelievedBundle> bundle = believe();
  const auto refused = [&](const Error& why) {
    log::notice("enrollment_refused",
                {{"reason", why.code}, {"detail", why.message}, {"uid", peer.uid}});
    return std::unexpected(why);
  };
  if (!bundle) return refused(bundle.error());
  const Result<PushOutcome> outcome = bundle->is_in_force
                                          ? accept_again(peer, header)
                                          : put_in_force(peer, *bundle, std::move(policy), &header);
  tokens_.note_use(header.key);
  if (enrollment_.root())
    node_.journal().record(log::Level::notice, "enroll.finish",
                           {{"root", hex(enrollment_.record().anchor)},
                            {"generation", bundle->record.generation},
                            {"bundle", hex(bundle->record.digest)}});
  if (!outcome) return refused(outcome.error());
  Value reply = pushed(*outcome, bundle->record.generation);
  reply.set("bundle", hex(bundle->record.digest));
  reply.set("enrollment", enrollment_value(enrollment_, node_));
  return reply;
}

// The answer's policy is in force already where a record of before it was put back.
Status Verbs::may_accept_again() const {
  if (Status ok = enrollment_.covers(node_.policy()); !ok) return ok;
  return node_.may_widen("enroll.finish");  // its keys come in again
}

Result<PushOutcome> Verbs::accept_again(const wire::Peer& peer, const token::SignedHeader& header) {
  if (Status ok = enrollment_.offer(header); !ok) return pass_on(ok);
  enrollment_.accept(true, wall_s(), peer.uid);
  tokens_.believe_root(enrollment_.root());
  tokens_.use_bundle_anchors(enrollment_.anchors_of(bundles_, node_.policy_digest()));
  trust_changed();
  return PushOutcome();
}

// Written first: whoever asks again after a crash finds it done, and a start ends what was to end
// at once.
Verbs::Answer Verbs::enroll_end(const wire::Peer& peer, const Value& args) {
  if (Status ok = args.only_keys({"now"}); !ok) return pass_on(ok);
  const Result<bool> now = args.get_bool_or("now", false);
  if (!now) return std::unexpected(now.error());
  const std::string root = hex(enrollment_.record().anchor);
  // From here on the file counts again: as it is now, and not as it was read once.
  if (enrollment_.root())
    if (Status ok = tokens_.reread_anchors(); !ok) return pass_on(ok);
  if (Status ok = enrollment_.end(node_.policy_digest(), *now, wall_s(), peer.uid); !ok)
    return pass_on(ok);
  tokens_.believe_root(std::nullopt);
  tokens_.use_bundle_anchors(enrollment_.anchors_of(bundles_, node_.policy_digest()));
  const size_t ended = trust_changed();
  node_.journal().record(log::Level::notice, "enroll.end",
                         {{"root", root}, {"now", *now ? "yes" : "no"}, {"leases_ended", ended}});
  return Value::map({{"enrollment", enrollment_value(enrollment_, node_)},
                     {"leases_ended", ended},
                     {"leases", node_.lease_count()}});
}

}  // namespace holdfast
