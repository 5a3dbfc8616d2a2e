// trust show|revoke|restore|rotate: whose signatures this node believes.
#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"
#include "userspace/token/revocations.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

std::string joined(const Value& from, std::string_view key) {
  std::string text;
  for (const Value& each : list_of(from, key))
    text += (text.empty() ? "" : ", ") + printable(*each.as_text());
  return text.empty() ? "-" : text;
}

std::string time_or_dash(const Value& from, std::string_view key) {
  return part_of(from, key).is_null() ? "-" : local_time(printable(text_of(from, key)));
}

// "current", or "retiring, 4m12s left".
Cell state_of(const Value& anchor) {
  const std::string state = text_of(anchor, "state");
  const std::string left = text_of(anchor, "left");
  const bool ends = state == "retiring" || state == "pending";
  return {printable(left.empty() ? state : fmt::format("{}, {} left", state, left)),
          state == "current" ? Colour::green
          : ends             ? Colour::yellow
                             : Colour::red};
}

std::string yes_or_dash(const Value& from, std::string_view key) {
  return from.get_bool_or(key, false).value_or(false) ? "yes" : "-";
}

std::string render_trust(const Value& trust, const Style& style) {
  Table anchors({{"ISSUER"},
                 {"KEY"},
                 {"STATE"},
                 {"FROM"},
                 {"VERIFIED"},
                 {"ROTATABLE"},
                 {"USES"},
                 {"LIFE"},
                 {"TENANTS"},
                 {"OPERATIONS"},
                 {"VERBS"}});
  for (const Value& each : list_of(trust, "anchors")) {
    anchors.add({printable(text_of(each, "issuer")), printable(text_of(each, "key")),
                 state_of(each), printable(text_of(each, "source")),
                 time_or_dash(each, "last_used"), yes_or_dash(each, "rotatable"),
                 joined(each, "uses"), printable(text_of(each, "life")), joined(each, "tenants"),
                 joined(each, "operations"), joined(each, "verbs")});
  }
  Table revocations({{"REVOKED"}, {"TENANT"}, {"ISSUED BEFORE"}, {"SINCE"}, {"UNTIL"}});
  for (const Value& each : list_of(trust, "revocations")) {
    const std::string tenant = text_of(each, "tenant");
    revocations.add(
        {printable(text_of(each, "what")), tenant.empty() ? "-" : printable(tenant),
         time_or_dash(each, "issued_before"), time_or_dash(each, "since"),
         part_of(each, "lapses").is_null() ? "restored" : time_or_dash(each, "lapses")});
  }
  std::string text = anchors.empty() ? "No keys: no token is taken. Name them in anchors.yaml.\n"
                                     : anchors.render(style);
  if (!revocations.empty()) text += "\n" + revocations.render(style);
  return text;
}

Result<Value> arguments(const TrustWords& words) {
  Value args = Value::map({{"what", words.what}});
  if (!words.tenant.empty()) args.set("tenant", words.tenant);
  if (!words.issued_before.empty()) {
    const std::optional<uint64_t> wall_ns = parse_rfc3339_utc(words.issued_before);
    if (!wall_ns)
      return usage("--issued-before: no time in UTC", "write it like 2026-11-28T12:00:00Z");
    args.set("issued_before_s", *wall_ns / ns_per_s);
  }
  return args;
}

}  // namespace

Outcome run_trust_show(Session& session) {
  Value anchors = Value::array();
  Value revocations = Value::array();
  Value whole;
  for (Value next = 0; !next.is_null();) {
    Result<Value> page = session.call("trust.show", Value::map({{"cursor", next}}));
    if (!page) return pass_on(page);
    for (const Value& each : list_of(*page, "anchors")) anchors.push(each);
    for (const Value& each : list_of(*page, "revocations")) revocations.push(each);
    next = part_of(*page, "next");
    whole = std::move(*page);
  }
  whole = Value::map({{"node", part_of(whole, "node")},
                      {"epoch", part_of(whole, "epoch")},
                      {"anchors", std::move(anchors)},
                      {"revocations", std::move(revocations)}});
  if (session.json())
    session.print_json(whole);
  else
    session.print(render_trust(whole, session.style()));
  return ExitCode::done;
}

Outcome run_trust_revoke(Session& session, const TrustWords& words) {
  const Result<Value> args = arguments(words);
  if (!args) return std::unexpected(args.error());
  const Result<Value> reply = session.call("trust.revoke", *args);
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else
    session.print(fmt::format("{}: revoked; {} ended\n", printable(text_of(*reply, "what")),
                              count_of(number_of(*reply, "leases_ended"), "lease", "leases")));
  return ExitCode::done;
}

Outcome run_trust_restore(Session& session, const TrustWords& words) {
  const Result<Value> args = arguments(words);
  if (!args) return std::unexpected(args.error());
  const Result<Value> reply = session.call("trust.restore", *args);
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else
    session.print(fmt::format("{}: not revoked any more; no lease came back\n",
                              printable(text_of(*reply, "what"))));
  return ExitCode::done;
}

Outcome run_trust_rotate(Session& session, const RotateWords& words) {
  const Result<uint64_t> after_ns = parse_duration(words.after);
  if (!after_ns) return std::unexpected(Error(after_ns.error()).in("--after"));
  if (*after_ns == 0 || *after_ns % ns_per_s != 0 || *after_ns > token::retiring_max_s * ns_per_s)
    return usage("--after: a key retires within 1s to 330s, in whole seconds", "write it like 2m");
  const Result<Value> reply =
      session.call("trust.rotate", Value::map({{"old", words.old_key},
                                               {"new", words.new_key},
                                               {"after_s", *after_ns / ns_per_s},
                                               {"dry_run", words.dry_run}}));
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else
    session.print(fmt::format("{}: {} believed until {}\n", printable(text_of(*reply, "old")),
                              words.dry_run ? "would be" : "is", time_or_dash(*reply, "until")));
  return ExitCode::done;
}

}  // namespace holdfast::cli
