// token inspect|verify: on files, or by asking the node.
#include <algorithm>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/token/ask.hpp"
#include "userspace/token/holder.hpp"
#include "userspace/token/node_identity.hpp"
#include "userspace/token/signers.hpp"
#include "userspace/token/verify.hpp"
#include "userspace/wire/verify_client.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;
using token::Claims;

constexpr size_t anchors_bytes_max = size_t{16} << 20;
constexpr size_t identity_bytes_max = 4096;
constexpr size_t tokens_bytes_max = size_t{512} << 20;

std::string time_json(uint64_t seconds) {
  return rfc3339_utc(seconds * ns_per_s);
}

Value names_value(const std::vector<std::string>& names) {
  Value list = Value::array();
  for (const std::string& each : names) list.push(each);
  return list;
}

Result<std::optional<token::Anchors>> read_anchors(const std::string& path) {
  if (path.empty()) return std::nullopt;
  const Result<std::string> text = read_file(path, anchors_bytes_max);
  if (!text) return std::unexpected(text.error());
  Result<token::Anchors> anchors = token::Anchors::parse(*text, shown_name(path));
  if (!anchors) return pass_on(anchors);
  return std::optional(std::move(*anchors));
}

// The node's own key, as a file of `node identity --out` says: it signs use tokens. A node's epoch
// ends with its machine's boot at the latest, and so does what it said of its key.
Status add_identity(const TokenCheckWords& words, token::Anchors& anchors) {
  const Result<std::string> file = read_file(words.identity, identity_bytes_max);
  if (!file) return std::unexpected(file.error());
  const Result<token::EpochKey> own = token::check_certificate(
      {reinterpret_cast<const uint8_t*>(file->data()), file->size()}, words.node);
  if (!own) return std::unexpected(Error(own.error()).in(shown_name(words.identity)));
  if (own->epoch != words.epoch)
    return fail(ErrorKind::denied, "stale_epoch",
                fmt::format("{}: it is of epoch {}, and --epoch is {}", shown_name(words.identity),
                            own->epoch, words.epoch),
                "ask the node again: holdfast node identity --out FILE");
  anchors.add(token::own_anchor(own->node, own->key));
  return {};
}

// Each line of a file is a token; blank ones are none.
template <typename Each>
Outcome for_each_token(const std::string& path, Each each) {
  const Result<std::string> text = read_file(path, tokens_bytes_max);
  if (!text) return std::unexpected(text.error());
  ExitCode worst = ExitCode::done;
  uint64_t line = 0;
  uint64_t count = 0;
  for (std::string_view rest = *text; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view one = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    ++line;
    if (one.empty()) continue;
    ++count;
    Result<std::vector<uint8_t>> bytes = token::from_text(one);
    if (!bytes) return pass_on(bytes, fmt::format("{}:{}", shown_name(path), line));
    worst = std::max(worst, each(line, *bytes));
  }
  if (count == 0)
    return fail(ErrorKind::invalid, "no_token", shown_name(path) + " has no token in it",
                "give what `holdfast token issue` printed");
  return worst;
}

Value claims_json(const Claims& claims) {
  Value json = Value::map({{"issuer", claims.issuer},
                           {"audience", claims.audience},
                           {"id", hex(claims.id)},
                           {"issued_at", time_json(claims.issued_at)},
                           {"not_before", time_json(claims.not_before)},
                           {"expires", time_json(claims.expires)},
                           {"tenant", claims.tenant},
                           {"endpoints", names_value(claims.endpoints)},
                           {"egress", names_value(claims.egress)},
                           {"operations", names_value(claims.operations)}});
  if (!claims.peer.empty()) json.set("peer", claims.peer);
  if (!claims.holder.empty()) json.set("holder", claims.holder);
  if (claims.holder_key) json.set("holder_key", hex(*claims.holder_key));
  if (claims.ttl_s != 0) json.set("ttl", human_duration(claims.ttl_s * ns_per_s));
  if (claims.lease) {
    json.set("lease", hex(claims.lease->id));
    json.set("generation", claims.lease->generation);
  }
  return json;
}

Value head_json(const token::Head& head) {
  return Value::map({{"kind", token::name_of(head.kind)},
                     {"key", hex(head.key)},
                     {"issuer", head.issuer},
                     {"audience", head.audience},
                     {"expires", time_json(head.expires)},
                     {"tree_size", head.tree_size},
                     {"epoch", head.epoch}});
}

// As JSON says it, a line each, times in the machine's zone.
void add_facts(Facts& facts, const Value& json) {
  for (const Value::Entry& each : *json.as_map()) {
    std::string text;
    if (const std::string* one = each.value.as_text()) {
      text = printable(local_time(*one));
    } else if (const Value::Array* many = each.value.as_array()) {
      for (const Value& name : *many)
        text += (text.empty() ? "" : ", ") + printable(*name.as_text());
      if (text.empty()) text = "-";
    } else {
      text = std::to_string(each.value.as_u64().value_or(0));
    }
    facts.add(each.key, text);
  }
}

// What an offline reader can say of the signature.
std::string signature_state(const token::Parts& parts,
                            const std::optional<token::Anchors>& anchors) {
  if (!anchors) return "not checked: no --anchors";
  const token::Anchor* anchor = anchors->find(parts.head.key);
  if (anchor == nullptr) return "not checked: no such key among the anchors";
  const std::optional<token::Digest> root = token::root_of_path(
      token::leaf_hash(parts.claims), parts.index, parts.head.tree_size, parts.path());
  const bool good =
      root &&
      token::verify_signature(
          anchor->key, token::signed_bytes(parts.head.kind, parts.header, *root), parts.signature);
  return good ? "good" : "wrong";
}

ExitCode inspect_one(Session& session, std::span<const uint8_t> bytes,
                     const std::optional<token::Anchors>& anchors) {
  const token::Checked<token::Parts> parts = token::take_apart(bytes);
  if (!parts) {
    const token::Refused& refused = parts.error();
    return session.report(Error{ErrorKind::invalid,
                                token::name_of(refused.why),
                                0,
                                fmt::format("{}{}{}", token::describe(refused.why),
                                            refused.detail.empty() ? "" : ": ", refused.detail),
                                {}});
  }
  const Result<token::ClaimsView> claims = token::decode_claims(parts->claims, parts->head.kind);
  const std::string state = signature_state(*parts, anchors);
  Value head = head_json(parts->head);
  head.set("index", parts->index);
  if (const std::optional<token::Digest> root = token::root_of_path(
          token::leaf_hash(parts->claims), parts->index, parts->head.tree_size, parts->path()))
    head.set("digest", hex(token::head_id(parts->head.kind, parts->header, *root)));
  if (session.json()) {
    session.print_json(
        Value::map({{"head", std::move(head)},
                    {"claims", claims ? claims_json(claims->copy()) : Value()},
                    {"claims_error", claims ? Value() : Value(claims.error().message)},
                    {"leaf", hex(token::leaf_hash(parts->claims))},
                    {"bytes", bytes.size()},
                    {"signature", state}}));
  } else {
    Facts facts;
    facts.add("signature", state);
    add_facts(facts, head);
    facts.add("leaf", hex(token::leaf_hash(parts->claims)));
    std::string text = facts.render(session.style());
    if (claims) {
      Facts said;
      add_facts(said, claims_json(claims->copy()));
      text += "\nclaims\n" + said.render(session.style());
    } else {
      text += "\nclaims: " + claims.error().text() + "\n";
    }
    session.print(text);
  }
  return claims && state != "wrong" ? ExitCode::done : ExitCode::failed;
}

ExitCode verify_one(Session& session, uint64_t line, std::span<const uint8_t> bytes,
                    const token::Anchors& anchors, const token::Place& place) {
  const token::Checked<token::Verified> verified = token::verify(bytes, anchors, place);
  if (session.json()) {
    Value json = Value::map({{"line", line}, {"verdict", verified ? "good" : "refused"}});
    if (verified) {
      json.set("id", hex(verified->id));
      json.set("kind", token::name_of(verified->head.kind));
      json.set("expires", time_json(verified->expires_s));
      json.set("claims", claims_json(verified->claims));
    } else {
      json.set("reason", token::name_of(verified.error().why));
      json.set("detail", verified.error().detail);
    }
    session.print_json(json);
  } else if (verified) {
    session.print(fmt::format(
        "{}: good: {} token for {}, until {}\n", line, token::name_of(verified->head.kind),
        printable(verified->claims.tenant), local_time(time_json(verified->expires_s))));
  } else {
    const token::Refused& refused = verified.error();
    session.print(fmt::format(
        "{}: refused: {}: {}{}\n", line, token::name_of(refused.why), token::describe(refused.why),
        refused.detail.empty() ? "" : " (" + printable(refused.detail) + ")"));
  }
  return verified ? ExitCode::done : ExitCode::failed;
}

// verify.sock stands beside control.sock.
std::string verify_socket(const std::string& control) {
  const size_t slash = control.rfind('/');
  return control.substr(0, slash == std::string::npos ? 0 : slash + 1) + "verify.sock";
}

ExitCode print_verdict(Session& session, uint64_t line, const wire::Verdict& verdict,
                       const std::string& reason) {
  const uint64_t now = boot_now_ns();
  const uint64_t left = verdict.valid_until_boot_ns > now ? verdict.valid_until_boot_ns - now : 0;
  if (session.json()) {
    Value json =
        Value::map({{"line", line}, {"verdict", verdict.reason == 0 ? "good" : "refused"}});
    if (verdict.reason == 0) {
      json.set("slot", verdict.slot);
      json.set("generation", verdict.generation);
      json.set("valid_for_ns", left);
    } else {
      json.set("reason", reason);
    }
    session.print_json(json);
  } else if (verdict.reason == 0) {
    session.print(fmt::format("{}: good: generation {}, for {} more\n", line, verdict.generation,
                              human_duration(left)));
  } else {
    const bool known = verdict.reason <= token::refusals;
    session.print(
        fmt::format("{}: refused: {}{}{}\n", line, printable(reason), known ? ": " : "",
                    known ? token::describe(static_cast<token::Refusal>(verdict.reason - 1)) : ""));
  }
  return verdict.reason == 0 ? ExitCode::done : ExitCode::failed;
}

// Whether each token allows this use by this holder, now, as the node sees it.
Outcome ask_node(Session& session, const TokenCheckWords& words) {
  if (words.operation.empty() || words.resource.empty())
    return usage("token verify: may it do what, on what?", "give both --operation and --resource");
  std::string presenter;
  if (!words.presenter.empty()) {
    Result<std::string> holder = parse_holder(words.presenter);
    if (!holder) return pass_on(holder, "--holder");
    presenter = std::move(*holder);
  }
  Result<wire::VerifyClient> node = wire::VerifyClient::connect(verify_socket(session.socket()));
  if (!node) return pass_on(node);
  if (!words.holder_key.empty()) {
    const Result<std::unique_ptr<token::Signer>> key = token::open_signer(words.holder_key);
    if (!key) return std::unexpected(key.error());
    if (Status ok = token::prove_key(*node, **key); !ok) return pass_on(ok, "--holder-key");
  }
  std::optional<Error> lost;
  const Outcome worst =
      for_each_token(words.file, [&](uint64_t line, std::span<const uint8_t> bytes) {
        if (lost) return ExitCode::failed;
        wire::CheckFrame frame;
        const token::Checked<void> added =
            token::add_check(frame, bytes, words.operation, words.resource, presenter);
        if (!added) {
          const auto why = static_cast<uint64_t>(added.error().why) + 1;
          return print_verdict(session, line, {.reason = why}, node->reason(why));
        }
        Result<std::vector<wire::Verdict>> verdicts = node->ask(frame);
        if (verdicts && verdicts->size() == 1)
          return print_verdict(session, line, verdicts->front(),
                               node->reason(verdicts->front().reason));
        lost = verdicts ? Error{ErrorKind::internal,
                                "malformed_answer",
                                0,
                                "the daemon answered something else",
                                {}}
                        : std::move(verdicts.error());
        return ExitCode::failed;
      });
  if (lost) return std::unexpected(std::move(*lost));
  return worst;
}

}  // namespace

Outcome run_token_inspect(Session& session, const TokenCheckWords& words) {
  const Result<std::optional<token::Anchors>> anchors = read_anchors(words.anchors);
  if (!anchors) return std::unexpected(anchors.error());
  return for_each_token(words.file, [&](uint64_t, std::span<const uint8_t> bytes) {
    return inspect_one(session, bytes, *anchors);
  });
}

Outcome run_token_verify(Session& session, const TokenCheckWords& words) {
  const bool asks = !words.operation.empty() || !words.resource.empty();
  const bool by_file = !words.anchors.empty() || !words.identity.empty();
  if (asks == by_file || (asks && (!words.node.empty() || !words.at.empty())))
    return usage("token verify: by the node, or by a file?",
                 "ask the node with --operation and --resource, or judge by --anchors or "
                 "--identity, with --node and --epoch");
  if (asks) return ask_node(session, words);
  if (words.node.empty() || words.epoch == 0)
    return usage("token verify: for which node?",
                 "give --node and --epoch, as holdfast status shows them");
  const Result<std::optional<token::Anchors>> anchors = read_anchors(words.anchors);
  if (!anchors) return std::unexpected(anchors.error());
  token::Anchors believed = anchors->has_value() ? **anchors : token::Anchors();
  if (!words.identity.empty())
    if (Status ok = add_identity(words, believed); !ok) return pass_on(ok);
  const token::Revocations none;  // the node knows of them, and no file
  token::Place place{
      .node = words.node, .epoch = words.epoch, .now_s = wall_now_ns() / ns_per_s, .revoked = none};
  if (!words.at.empty()) {
    const std::optional<uint64_t> at_ns = parse_rfc3339_utc(words.at);
    if (!at_ns) return usage("--at: no time in UTC", "write it like 2026-11-28T12:00:00Z");
    place.now_s = *at_ns / ns_per_s;
  }
  return for_each_token(words.file, [&](uint64_t line, std::span<const uint8_t> bytes) {
    return verify_one(session, line, bytes, believed, place);
  });
}

}  // namespace holdfast::cli
