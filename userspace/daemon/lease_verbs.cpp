// lease.list, lease.show, lease.grant, lease.renew, lease.revoke, lease.release, lease.checkpoint.
// What is asked for by a token: token_verbs.cpp; by a scheduler: schedule_verbs.cpp.
#include <algorithm>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/daemon/authority.hpp"
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr size_t leases_per_page = 1000;
constexpr size_t grant_items_max = abi::HF_SLOTS_MAX;
constexpr size_t note_bytes_max = 256;  // of a checkpoint: it goes to everybody who watches

// Who a peer is, without what it signs.
Actor actor_of(const wire::Peer& peer) {
  return {peer.uid, peer.role == wire::Role::operates, peer.proved_key, peer.cgroups};
}

Actor actor_of(const wire::Peer& peer, const wire::Request& request) {
  if (request.signer == nullptr) return actor_of(peer);
  return {.uid = peer.uid, .operates = true};
}

Status check_life(uint64_t ttl_ns, uint64_t life_max_ns) {
  if (ttl_ns <= life_max_ns) return {};
  return fail(ErrorKind::denied, "life_too_long",
              fmt::format("{}, and a lease by this key lives for {} at the most",
                          human_duration(ttl_ns), human_duration(life_max_ns)),
              "ask for a shorter term, or for a longer `life` of the key's anchor");
}

// One item of a bulk grant; what it names are views of the body. Unknown keys are refused: a
// misspelt limit must not be ignored.
Result<bool> read_grant(cbor::Reader& in, GrantRequest& request, bool& each) {
  request.tenant = {};
  request.endpoints.clear();
  request.egress.clear();
  request.peer.reset();
  request.grace_ns = 0;
  request.ttl_ns = 0;
  each = false;
  const auto texts = [&](std::vector<std::string_view>& out) {
    for (in.array(); in.more();) out.emplace_back(in.text());
    in.end();
  };
  std::optional<Error> bad;
  for (in.map(); in.more() && !bad;) {
    const std::string_view key = in.text();
    if (key == "tenant") {
      request.tenant = in.text();
    } else if (key == "endpoints") {
      texts(request.endpoints);
    } else if (key == "egress") {
      texts(request.egress);
    } else if (key == "ttl_ns") {
      request.ttl_ns = in.u64();
    } else if (key == "grace_ns") {
      request.grace_ns = in.u64();
    } else if (key == "each") {
      each = in.boolean();
    } else if (key == "peer") {
      Result<Prefix> peer = parse_prefix(in.text());
      if (peer)
        request.peer = *peer;
      else
        bad = std::move(peer.error());
    } else if (key == "holder") {
      Result<Holder> holder = parse_holder_name(in.text());
      if (holder)
        request.holder = *holder;
      else
        bad = std::move(holder.error());
    } else if (in.ok()) {
      bad = Error{
          ErrorKind::invalid, "unknown_key", 0, fmt::format("a lease has no \"{}\"", key), {}};
    }
  }
  if (bad) return std::unexpected(std::move(*bad));
  in.end();
  if (!in.ok()) return std::unexpected(in.error());
  return true;
}

// Before anything of the tenant is looked up.
Status may_grant(const wire::Principal* signer, const GrantRequest& request) {
  if (signer == nullptr) return {};
  if (!signer->covers(request.tenant))
    return std::unexpected(not_in_scope(*signer, request.tenant));
  return check_life(request.ttl_ns, signer->life_max_ns);
}

}  // namespace

Verbs::Answer Verbs::lease_list(const Value& args) const {
  if (Status ok = args.only_keys({"cursor", "limit", "tenant"}); !ok) return pass_on(ok);
  const Result<uint64_t> cursor = args.get_u64_or("cursor", 0);
  const Result<uint64_t> limit = args.get_u64_or("limit", leases_per_page, 1);
  const Result<std::string_view> tenant = args.get_text_or("tenant", "");
  if (!cursor) return std::unexpected(cursor.error());
  if (!limit) return std::unexpected(limit.error());
  if (!tenant) return std::unexpected(tenant.error());
  auto slot = static_cast<uint32_t>(std::min<uint64_t>(*cursor, UINT32_MAX));
  Value list = Value::array();
  for (const LeaseView& lease :
       node_.leases(slot, std::min<uint64_t>(*limit, leases_per_page), *tenant))
    list.push(lease_value(lease));
  const bool more = slot < node_.plane().slots.size();
  return Value::map({{"leases", std::move(list)}, {"next", more ? Value(slot) : Value()}});
}

Verbs::Answer Verbs::lease_show(const Value& args) const {
  const Result<std::string_view> text = args.get_text("id");
  if (!text) return std::unexpected(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return std::unexpected(id.error());
  const Result<LeaseView> lease = node_.lease(*id);
  if (!lease) return std::unexpected(lease.error());
  return lease_value(*lease);
}

Verbs::Answer Verbs::lease_grant(const wire::Peer& peer, const wire::Request& request) {
  if (request.args.has("token")) return grant_by_token(actor_of(peer), request.args);
  if (!request.has_body)
    return fail(ErrorKind::invalid, "no_body", "lease.grant takes an array of leases as its body");
  const uint64_t begin = boot_now_ns();
  cbor::Reader in(request.body, {.bytes_max = request.body.size()});
  const uint64_t count = in.array();
  if (!in.ok()) return std::unexpected(in.error());
  if (count == 0 || count > grant_items_max)
    return fail(ErrorKind::invalid, "lease_count", fmt::format("{} leases in one request", count),
                fmt::format("between 1 and {}", grant_items_max));

  // `each` stands for one lease on every member of what it selects.
  std::vector<Resource> members;
  size_t member = 0;
  const auto next = [&](GrantRequest& out) -> Result<bool> {
    if (member == members.size()) {
      if (!in.more()) {
        in.end();
        if (!in.finish()) return std::unexpected(in.error());
        return false;
      }
      bool each = false;
      out.holder = {Holder::Kind::uid, peer.uid, {}};
      out.selected.reset();
      Result<bool> ok = read_grant(in, out, each);
      if (ok)
        if (Status may = may_grant(request.signer.get(), out); !may) ok = pass_on(may);
      if (!ok || !each) return ok;
      Result<std::vector<Resource>> all = select_members(node_.index(), out);
      if (!all) return pass_on(all);
      members = std::move(*all);
      member = 0;
    }
    out.selected = members[member++];
    return true;
  };
  const wire::Principal* signer = request.signer.get();
  const Result<Grant> granted =
      node_.grant(actor_of(peer, request), next,
                  signer != nullptr ? Tokens::origin_of(*signer) : LeaseOrigin());
  if (!granted) return std::unexpected(granted.error());
  Value reply = Value::map({{"granted", granted->ids.size()},
                            {"took_ns", boot_now_ns() - begin},
                            {"ebpf_ns", granted->ebpf_ns},
                            {"nft_ns", granted->nft_ns}});
  if (granted->ids.size() <= leases_per_page) {
    Value list = Value::array();
    for (const LeaseId& id : granted->ids)
      if (const Result<LeaseView> lease = node_.lease(id); lease) list.push(lease_value(*lease));
    reply.set("leases", std::move(list));
  }
  return reply;
}

Verbs::Answer Verbs::lease_renew(const wire::Peer& peer, const wire::Request& request) {
  const Value& args = request.args;
  if (args.has("token")) return renew_by_token(actor_of(peer), args);
  if (Status ok = args.only_keys({"id", "ttl_ns", "generation"}); !ok) return pass_on(ok);
  const Result<std::string_view> text = args.get_text("id");
  if (!text) return std::unexpected(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return std::unexpected(id.error());
  const Result<uint64_t> ttl = args.get_u64("ttl_ns");
  if (!ttl) return std::unexpected(ttl.error());
  std::optional<uint64_t> generation;
  if (args.has("generation")) {
    const Result<uint64_t> given = args.get_u64("generation");
    if (!given) return std::unexpected(given.error());
    generation = *given;
  }
  Actor actor = actor_of(peer, request);
  std::optional<LeaseOrigin> origin;
  if (request.signer != nullptr) {
    origin = Tokens::origin_of(*request.signer);
    if (Status ok = check_life(*ttl, request.signer->life_max_ns); !ok) return pass_on(ok);
  } else {
    // To prolong another's lease is to widen.
    actor.operates = actor.operates && !tokens_.signatures_needed();
    if (const uint64_t issuer = node_.issuer_of(*id); issuer != 0)
      if (Status ok = check_life(*ttl, tokens_.life_max_ns(issuer)); !ok) return pass_on(ok);
  }
  const Result<LeaseView> lease =
      node_.renew(actor, *id, *ttl, generation, origin ? &*origin : nullptr);
  if (!lease) return std::unexpected(lease.error());
  return lease_value(*lease);
}

void Verbs::lease_end(const wire::Peer& peer, const wire::Request& request,
                      wire::Responder responder) {
  const Result<std::string_view> text = request.args.get_text("id");
  if (!text) return responder.fail(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return responder.fail(id.error());
  std::optional<uint64_t> grace;
  if (request.args.has("grace_ns")) {
    const Result<uint64_t> given = request.args.get_u64("grace_ns", 0, lease_term_max_ns);
    if (!given) return responder.fail(given.error());
    grace = *given;
  }
  auto waiting = std::make_shared<wire::Responder>(std::move(responder));
  const auto done = [this, waiting, id = *id](const Status& ok) {
    ok ? waiting->answer(ending_value(id)) : waiting->fail(ok.error());
  };
  if (request.verb == "lease.release") return node_.release(actor_of(peer, request), *id, done);
  node_.revoke(*id, grace, done);
}

void Verbs::lease_checkpoint(const wire::Peer& peer, const wire::Request& request,
                             wire::Responder responder) {
  const Value& args = request.args;
  if (Status ok = args.only_keys({"id", "note", "keep_grace"}); !ok)
    return responder.fail(ok.error());
  const Result<std::string_view> text = args.get_text("id");
  if (!text) return responder.fail(text.error());
  const Result<LeaseId> id = parse_lease_id(*text);
  if (!id) return responder.fail(id.error());
  const Result<std::string_view> note = args.get_text_or("note", "");
  if (!note) return responder.fail(note.error());
  const Result<bool> keep_grace = args.get_bool_or("keep_grace", false);
  if (!keep_grace) return responder.fail(keep_grace.error());
  if (note->size() > note_bytes_max)
    return responder.fail(Error{
        ErrorKind::invalid, "note_too_long", 0, fmt::format("the note has {} bytes", note->size()),
        fmt::format("at most {}: of what is longer, its digest", note_bytes_max)});
  auto waiting = std::make_shared<wire::Responder>(std::move(responder));
  node_.checkpoint(actor_of(peer, request), *id, *note, *keep_grace,
                   [this, waiting, id = *id](const Status& ok) {
                     ok ? waiting->answer(ending_value(id)) : waiting->fail(ok.error());
                   });
}

// What became of a lease that was to end: it is still listed while its grace runs.
Value Verbs::ending_value(const LeaseId& id) const {
  const Result<LeaseView> lease = node_.lease(id);
  if (!lease) return Value::map({{"id", format_lease_id(id)}, {"state", "torndown"}});
  return lease_value(*lease);
}

}  // namespace holdfast
