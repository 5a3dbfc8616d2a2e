#include "userspace/daemon/authority.hpp"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "userspace/base/clock.hpp"

namespace holdfast {
namespace {

// A proof of presence is good for so long (H10).
constexpr uint64_t fresh_ns = 300 * ns_per_s;

struct Verb {
  std::string_view name;
  Reach reach;
};

constexpr Verb verbs[] = {
    {"status", Reach::reading},
    {"lease.list", Reach::reading},
    {"lease.show", Reach::reading},
    {"route.list", Reach::reading},
    {"tenant.list", Reach::reading},
    {"bundle.show", Reach::reading},
    {"drops.read", Reach::reading},
    {"drops.follow", Reach::reading},
    {"flows.list", Reach::reading},
    {"explain", Reach::reading},
    {"trust.show", Reach::reading},
    {"watch", Reach::reading},
    {"peer.list", Reach::reading},
    {"bearer.list", Reach::reading},
    {"enroll.show", Reach::reading},
    {"node.identity", Reach::reading},
    {"node.report", Reach::reading},
    {"holder.prove", Reach::proving},
    {"operator.present", Reach::proving},
    {"session.challenge", Reach::proving},
    {"session.bearer", Reach::proving},
    {"lease.renew", Reach::own_lease},
    {"lease.release", Reach::own_lease},
    {"lease.checkpoint", Reach::own_lease},
    {"lease.revoke", Reach::tightening},
    {"lease.preempt", Reach::tightening},
    {"tenant.disable", Reach::tightening},
    {"trust.revoke", Reach::tightening},
    {"trust.rotate", Reach::tightening},
    {"peer.suspend", Reach::tightening},
    {"bearer.revoke", Reach::tightening},
    {"node.drain", Reach::tightening},
    {"node.disable", Reach::tightening},
    {"node.quarantine", Reach::tightening},
    {"lease.grant", Reach::widening},
    {"tenant.enable", Reach::widening},
    {"trust.restore", Reach::widening},
    {"bundle.push", Reach::widening},
    {"peer.resume", Reach::widening},
    {"bearer.create", Reach::widening},
    {"node.resume", Reach::widening},
    {"node.release", Reach::widening},
    {"enroll.finish", Reach::widening},
    {"enroll.begin", Reach::founding},
    {"enroll.end", Reach::founding},
    {"node.detach", Reach::ending},
};

const Verb* find(std::string_view name) {
  const auto* found = std::ranges::find(verbs, name, &Verb::name);
  return found == std::end(verbs) ? nullptr : found;
}

}  // namespace

Reach reach_of(std::string_view verb) {
  const Verb* found = find(verb);
  return found == nullptr ? Reach::reading : found->reach;
}

bool is_reading(std::string_view verb) {
  const Verb* found = find(verb);
  return found != nullptr && found->reach == Reach::reading;
}

std::vector<std::string_view> reading_verbs() {
  std::vector<std::string_view> names;
  for (const Verb& verb : verbs)
    if (verb.reach == Reach::reading) names.push_back(verb.name);
  return names;
}

bool brings_its_own_signature(const wire::Request& request) {
  if (request.verb == "lease.preempt") return true;
  if (request.verb == "bundle.push")
    return request.args.get_bool_or("signed", false).value_or(false);
  return request.args.has("token") &&
         (request.verb == "lease.grant" || request.verb == "lease.renew");
}

Status may_ask(const wire::Peer& peer, const wire::Request& request, Reach reach,
               bool signatures_needed) {
  if (reach == Reach::proving) return {};
  if (peer.bearer != nullptr && request.signer == nullptr) {
    if (reach == Reach::reading && peer.bearer->may_ask(request.verb)) return {};
    return fail(ErrorKind::denied, "bearer_scope",
                fmt::format("the bearer token {} is for {}, and not for {}", peer.bearer->name,
                            fmt::join(peer.bearer->verbs, ", "), request.verb),
                "leave --bearer-file out, or unset HOLDFAST_BEARER_FILE; or make one for more: "
                "holdfast bearer create");
  }
  if (brings_its_own_signature(request)) return {};
  if (reach == Reach::ending && (request.signer != nullptr || peer.uid != 0))
    return fail(ErrorKind::denied, "not_root", "only root may end enforcement",
                "run it as root, on this machine");
  if (reach == Reach::founding && peer.uid != 0)
    return fail(ErrorKind::denied, "not_root", "only root says who may enroll this node",
                "run it as root, on this machine");
  const bool widens = reach == Reach::widening || reach == Reach::founding;
  if (request.signer != nullptr) {
    if (!request.signer->may_ask(request.verb))
      return fail(
          ErrorKind::denied, "verb_not_allowed",
          fmt::format("the key of {} may not ask for {}", request.signer->name, request.verb),
          "its anchor lists the verbs it may: holdfast trust show");
    if (widens && boot_now_ns() - peer.challenge_boot_ns > fresh_ns)
      return fail(
          ErrorKind::denied, "step_up_required",
          fmt::format("{} takes a signature over a challenge of the last 5 minutes", request.verb),
          "ask for a new challenge: session.challenge");
    return {};
  }
  switch (reach) {
    case Reach::reading:
      if (peer.role != wire::Role::none) return {};
      return fail(
          ErrorKind::denied, "not_in_group",
          fmt::format("uid {} is in neither group holdfast nor holdfast-operator", peer.uid),
          "usermod -aG holdfast USER, then log in again; or show a bearer token: --bearer-file "
          "FILE");
    case Reach::own_lease: return {};
    default:
      if (peer.role != wire::Role::operates)
        return fail(ErrorKind::denied, "not_operator",
                    fmt::format("uid {} is not an operator of this node", peer.uid),
                    "usermod -aG holdfast-operator USER, then log in again");
      if (widens && signatures_needed)
        return fail(ErrorKind::denied, "step_up_required",
                    fmt::format("{} has to be signed on this node, whoever asks", request.verb),
                    "holdfast --sign-key KEY");
      return {};
  }
}

Error not_in_scope(const wire::Principal& signer, std::string_view tenant) {
  const std::string who =
      fmt::format("{} {}", signer.is_bearer ? "the bearer token" : "the key of", signer.name);
  return {ErrorKind::denied, "tenant_not_allowed", 0,
          tenant == "*" || tenant.empty()
              ? fmt::format("{} may ask about its own tenants only", who)
              : fmt::format("{} may not ask about tenant {}", who, tenant),
          signer.is_bearer ? "holdfast bearer ls shows which they are"
                           : "its anchor lists the tenants it may: holdfast trust show"};
}

}  // namespace holdfast
