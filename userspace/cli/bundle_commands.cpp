// bundle check|sign|push|show|diff: policies, as files and as signed bundles.
#include <algorithm>
#include <span>

#include <fmt/format.h>
#include <unistd.h>

#include "policy/limits.hpp"
#include "policy/parse.hpp"
#include "policy/render.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"
#include "userspace/token/bundle.hpp"
#include "userspace/token/enrollment.hpp"
#include "userspace/token/signers.hpp"
#include "userspace/token/verify.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

constexpr uint64_t push_timeout_ns = 300 * ns_per_s;

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// A CBOR array of four; no text begins so.
bool is_signed(std::string_view content) {
  return content.starts_with('\x84');
}

// What is in a signed bundle. Whether the node believes its key is the node's to say.
Outcome check_signed(Session& session, const std::string& text, const std::string& file) {
  auto object = token::take_apart_signed(bytes_of(text), token::Purpose::bundle);
  const bool enrolls = !object && object.error().code == "wrong_purpose";
  if (enrolls) object = token::take_apart_signed(bytes_of(text), token::Purpose::enrollment);
  if (!object) return std::unexpected(Error(object.error()).in(shown_name(file)));
  std::vector<uint8_t> unpacked;
  const auto content = token::content_of(*object, unpacked);
  if (!content) return std::unexpected(content.error());
  const Result<token::Bundle> bundle = token::decode_bundle(*content);
  if (!bundle) return std::unexpected(bundle.error());
  const Result<Policy> policy = parse_policy(bundle->policy, shown_name(file));
  if (!policy) return std::unexpected(policy.error());
  size_t anchors = 0;
  if (!bundle->anchors.empty()) {
    const Result<token::Anchors> read =
        token::Anchors::parse(bundle->anchors, shown_name(file) + ": anchors");
    if (!read) return std::unexpected(read.error());
    anchors = read->all().size();
  }
  const token::SignedHeader& header = object->header;
  if (header.generation != policy->generation)
    return fail(ErrorKind::invalid, "generation_differs",
                fmt::format("{}: the bundle has generation {}, and its policy {}", shown_name(file),
                            header.generation, policy->generation),
                "sign it again: holdfast bundle sign");
  const std::string expires = rfc3339_utc(header.expires_s * ns_per_s);
  const std::string key = fmt::format("{:02x}", fmt::join(header.key, ""));
  if (session.json()) {
    session.print_json(Value::map({{"good", true},
                                   {"file", file},
                                   {"generation", header.generation},
                                   {"node", header.audience},
                                   {"key", key},
                                   {"issued", rfc3339_utc(header.issued_s * ns_per_s)},
                                   {"expires", expires},
                                   {"tenants", policy->tenants.size()},
                                   {"anchors", anchors},
                                   {"enrolls", enrolls}}));
  } else {
    session.print(fmt::format(
        "{} is {}: generation {}, {}, {}\n  for {}\n  by key {}, to be {} before {}\n{}",
        printable(shown_name(file)), enrolls ? "the answer to an enrollment" : "a signed bundle",
        header.generation, count_of(policy->tenants.size(), "tenant", "tenants"),
        count_of(anchors, "anchor", "anchors"), printable(header.audience), key,
        enrolls ? "finished" : "pushed", local_time(expires),
        enrolls ? "Whether the node waits for it, that says: holdfast enroll finish\n"
                : "Whether its key is believed, the node says: holdfast bundle "
                  "diff\n"));
  }
  return ExitCode::done;
}

// The request that this bundle is to answer. What the node would refuse is not signed.
Result<token::EnrollmentRequest> read_request(const BundleSignWords& words, const Policy& policy,
                                              const token::Signer& signer) {
  const Result<std::string> text = read_file(words.enroll, policy_bytes_max);
  if (!text) return std::unexpected(text.error());
  Result<token::EnrollmentRequest> asked =
      token::parse_enrollment_request(*text, shown_name(words.enroll));
  if (!asked) return asked;
  if (!words.node.empty() && words.node != asked->node)
    return usage("--node is not the node that asks", "leave it out: --enroll names it");
  if (signer.key() != asked->anchor)
    return fail(ErrorKind::denied, "wrong_root",
                fmt::format("{}: the node waits for key {}, and --key is {}",
                            shown_name(words.enroll), hex(asked->anchor), hex(signer.key())),
                "sign with that key, or begin anew with the right fingerprint");
  if (asked->expires_s <= wall_now_ns() / ns_per_s)
    return fail(ErrorKind::denied, "enroll_expired",
                fmt::format("{}: the request was good until {}", shown_name(words.enroll),
                            rfc3339_utc(asked->expires_s * ns_per_s)),
                "begin anew on the node: holdfast enroll begin");
  if (policy.generation <= asked->generation_floor)
    return fail(ErrorKind::conflict, "old_generation",
                fmt::format("the policy has generation {}, and the node has had {}",
                            policy.generation, asked->generation_floor),
                "give it a higher one: generations only rise");
  for (const Tenant& tenant : policy.tenants)
    if (const auto& named = asked->tenants; std::ranges::find(named, "*") == named.end() &&
                                            std::ranges::find(named, tenant.name) == named.end())
      return fail(
          ErrorKind::denied, "tenant_not_enrolled",
          fmt::format("the policy names tenant {}, which the node does not ask for", tenant.name),
          "leave it out, or begin anew on the node with --tenant");
  return asked;
}

}  // namespace

Outcome run_bundle_check(Session& session, const std::string& file) {
  Result<std::string> text = read_file(file, bundle_bytes_max);
  if (!text) return pass_on(text);
  if (is_signed(*text)) return check_signed(session, *text, file);
  Result<Policy> policy = parse_policy(*text, shown_name(file));
  if (!policy) return pass_on(policy);
  size_t ports = 0;
  size_t endpoints = 0;
  for (const Tenant& tenant : policy->tenants) {
    ports += tenant.ports.size();
    endpoints += tenant.endpoints.size();
  }
  if (session.json()) {
    session.print_json(Value::map({{"good", true},
                                   {"file", file},
                                   {"generation", policy->generation},
                                   {"uplinks", policy->uplinks.size()},
                                   {"tenants", policy->tenants.size()},
                                   {"ports", ports},
                                   {"endpoints", endpoints}}));
  } else {
    session.print(fmt::format(
        "{} is {}: generation {}, {}, {}, {}, {}\n", printable(shown_name(file)),
        session.style().paint(Colour::green, "good"), policy->generation,
        count_of(policy->uplinks.size(), "uplink", "uplinks"),
        count_of(policy->tenants.size(), "tenant", "tenants"), count_of(ports, "port", "ports"),
        count_of(endpoints, "endpoint", "endpoints")));
  }
  return ExitCode::done;
}

Outcome run_bundle_push(Session& session, const std::string& file, bool dry_run) {
  Result<std::string> text = read_file(file, bundle_bytes_max);
  if (!text) return pass_on(text);
  Result<wire::Client*> daemon = session.daemon(push_timeout_ns);
  if (!daemon) return pass_on(daemon);
  const Value args =
      Value::map({{"file", shown_name(file)}, {"dry_run", dry_run}, {"signed", is_signed(*text)}});
  Result<Value> reply = (*daemon)->call_with_body(
      "bundle.push", args, {reinterpret_cast<const uint8_t*>(text->data()), text->size()});
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_push(*reply, dry_run, session.style()));
  }
  return ExitCode::done;
}

Outcome run_bundle_sign(Session& session, const BundleSignWords& words) {
  if (::isatty(STDOUT_FILENO) == 1)
    return usage("a signed bundle is not for a terminal",
                 "holdfast bundle sign ... > node1.bundle");
  const Result<std::string> policy_text = read_file(words.file, policy_bytes_max);
  if (!policy_text) return std::unexpected(policy_text.error());
  const Result<Policy> policy = parse_policy(*policy_text, shown_name(words.file));
  if (!policy) return std::unexpected(policy.error());
  std::string anchors;
  if (!words.anchors.empty()) {
    Result<std::string> text = read_file(words.anchors, policy_bytes_max);
    if (!text) return pass_on(text);
    if (const auto read = token::Anchors::parse(*text, shown_name(words.anchors)); !read)
      return std::unexpected(read.error());
    anchors = std::move(*text);
  }
  const Result<uint64_t> life_ns = parse_duration(words.life);
  if (!life_ns) return std::unexpected(Error(life_ns.error()).in("--life"));
  if (*life_ns < ns_per_s || *life_ns / ns_per_s > token::bundle_life_max_s)
    return usage("--life: a bundle may be put in force for 1s to 720h", "write it like 24h");
  const Result<std::unique_ptr<token::Signer>> signer = token::open_signer(words.key);
  if (!signer) return std::unexpected(signer.error());
  token::BundleFor target{
      .node = {}, .generation = policy->generation, .life_s = *life_ns / ns_per_s};
  std::string node;
  if (!words.enroll.empty()) {
    const Result<token::EnrollmentRequest> asked = read_request(words, *policy, **signer);
    if (!asked) return std::unexpected(asked.error());
    node = asked->node;
    target.enrollment_nonce = asked->nonce;
  } else {
    Result<std::string> named = session.node_or(words.node);
    if (!named) return pass_on(named);
    node = std::move(*named);
  }
  target.node = node;
  const Result<std::vector<uint8_t>> bundle =
      token::sign_bundle(**signer, target, {.policy = *policy_text, .anchors = anchors});
  if (!bundle) return std::unexpected(bundle.error());
  session.print({reinterpret_cast<const char*>(bundle->data()), bundle->size()});
  return ExitCode::done;
}

Outcome run_bundle_show(Session& session) {
  Result<Value> reply = session.call("bundle.show", Value::map());
  if (!reply) return pass_on(reply);
  std::string text{text_of(*reply, "policy")};
  for (Value next = part_of(*reply, "next"); !next.is_null();) {
    const Result<Value> piece = session.call("bundle.show", Value::map({{"cursor", next}}));
    if (!piece) return std::unexpected(piece.error());
    if (text_of(*piece, "digest") != text_of(*reply, "digest"))
      return fail(ErrorKind::conflict, "policy_changed",
                  "another policy came into force while this one was read", "ask again");
    text += text_of(*piece, "policy");
    next = part_of(*piece, "next");
  }
  const uint64_t generation = number_of(*reply, "generation");
  Result<Policy> policy = parse_policy(text, "the daemon's policy", rendered_bytes_max);
  // Before the first push there is nothing that would parse.
  if (!policy && generation != 0) return pass_on(policy);
  if (session.json()) {
    // The policy as an object of its own, not as text in text.
    std::string json = policy ? render_policy_json(*policy) : "null";
    if (json.ends_with('\n')) json.pop_back();
    session.print(fmt::format("{{\"version\":{},\"generation\":{},\"digest\":{},\"policy\":{}}}\n",
                              json_version, generation, cbor::to_json(part_of(*reply, "digest")),
                              json));
    return ExitCode::done;
  }
  if (!policy) {
    session.print(
        "No policy yet: everything is denied. Put one in force: holdfast bundle push FILE\n");
    return ExitCode::done;
  }
  // Only the policy on stdout, so that it may be kept in a file and pushed again.
  session.print(render_policy_json(*policy, JsonLayout::indented));
  session.note(
      fmt::format("generation {}, digest {}\n", generation, printable(text_of(*reply, "digest"))));
  return ExitCode::done;
}

}  // namespace holdfast::cli
