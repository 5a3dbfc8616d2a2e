// bearer create|ls|revoke: tokens for reading only.
#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

Value list_value(const std::vector<std::string>& from) {
  Value out = Value::array();
  for (const std::string& each : from) out.push(each);
  return out;
}

std::string joined(const Value& from, std::string_view key) {
  std::string text;
  for (const Value& each : list_of(from, key))
    if (each.as_text() != nullptr) text += (text.empty() ? "" : ", ") + printable(*each.as_text());
  return text.empty() ? "-" : text;
}

std::string render_bearers(const Value& reply, const Style& style) {
  Table table({{"NAME"}, {"STATE"}, {"ENV"}, {"EXPIRES"}, {"TENANTS"}, {"SCOPE"}});
  for (const Value& each : list_of(reply, "bearers")) {
    const std::string state = text_of(each, "state");
    table.add({printable(text_of(each, "name")),
               {printable(state), state == "live" ? Colour::green : Colour::dim},
               printable(text_of(each, "environment")),
               local_time(printable(text_of(each, "expires"))),
               joined(each, "tenants"),
               joined(each, "scope")});
  }
  return table.empty() ? "No bearer tokens. Make one: holdfast bearer create --help\n"
                       : table.render(style);
}

}  // namespace

Outcome run_bearer_create(Session& session, const BearerWords& words) {
  const Result<uint64_t> ttl_ns = parse_duration(words.ttl);
  if (!ttl_ns) return std::unexpected(Error(ttl_ns.error()).in("--ttl"));
  Value args = Value::map({{"name", words.name},
                           {"environment", words.environment},
                           {"scope", list_value(words.scope)},
                           {"ttl_ns", *ttl_ns}});
  if (!words.tenants.empty()) args.set("tenants", list_value(words.tenants));
  const Result<Value> reply = session.call("bearer.create", args);
  if (!reply) return std::unexpected(reply.error());
  if (session.json()) {
    session.print_json(*reply);
    return ExitCode::done;
  }
  session.print(text_of(*reply, "token") + "\n");
  session.note(fmt::format("{} expires at {}. This is the only time it is shown.\n",
                           printable(text_of(*reply, "name")),
                           local_time(printable(text_of(*reply, "expires")))));
  return ExitCode::done;
}

Outcome run_bearer_ls(Session& session) {
  const Result<Value> reply = session.call("bearer.list", Value::map());
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else
    session.print(render_bearers(*reply, session.style()));
  return ExitCode::done;
}

Outcome run_bearer_revoke(Session& session, const std::string& name) {
  const Result<Value> reply = session.call("bearer.revoke", Value::map({{"name", name}}));
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else
    session.print(fmt::format("{}: revoked; connections that showed it are closed\n",
                              printable(text_of(*reply, "name"))));
  return ExitCode::done;
}

}  // namespace holdfast::cli
