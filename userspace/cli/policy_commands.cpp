// status, route ls, tenant ls|disable|enable, node detach.
#include <cstdio>
#include <iostream>

#include <fmt/format.h>
#include <unistd.h>

#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

Outcome set_tenant(Session& session, std::string_view verb, const std::string& name,
                   std::string_view said) {
  Result<Value> reply = session.call(verb, Value::map({{"name", name}}));
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(fmt::format("{} {}\n", printable(name), said));
  }
  return ExitCode::done;
}

}  // namespace

Outcome run_status(Session& session, const std::string& socket) {
  Result<Value> reply = session.call("status", Value::map());
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_status(*reply, socket, session.style()));
  }
  return ExitCode::done;
}

Outcome run_route_ls(Session& session) {
  Result<Value> reply = session.call("route.list", Value::map());
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_routes(*reply, session.style()));
  }
  return ExitCode::done;
}

Outcome run_tenant_ls(Session& session) {
  Result<Value> reply = session.call("tenant.list", Value::map());
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_tenants(*reply, session.style()));
  }
  return ExitCode::done;
}

Outcome run_tenant_disable(Session& session, const std::string& name) {
  return set_tenant(
      session, "tenant.disable", name,
      "is disabled: all of its leases are closed, and none revives when it is enabled");
}

Outcome run_tenant_enable(Session& session, const std::string& name) {
  return set_tenant(session, "tenant.enable", name, "is enabled: it may be granted leases again");
}

Outcome run_node_state(Session& session, const std::string& verb) {
  Result<Value> reply = session.call("node." + verb, Value::map());
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_node_state(*reply, session.style()));
  }
  return ExitCode::done;
}

Outcome run_node_detach(Session& session, bool yes) {
  if (::geteuid() != 0) {
    return fail(ErrorKind::denied, "not_root", "node detach: only root may end enforcement",
                "run it as root: sudo holdfast node detach");
  }
  if (!yes) {
    if (::isatty(STDIN_FILENO) != 1) {
      return usage(
          "node detach asks before it opens everything, and there is no terminal to ask on",
          "if you mean it: holdfast node detach --yes");
    }
    std::fputs(
        "This ends all enforcement on this node:\n"
        "  - every lease ends\n"
        "  - Holdfast's programs leave all uplinks and tenant ports\n"
        "  - its nftables table and its pins are removed, and the daemon stops\n"
        "Afterwards nothing of Holdfast denies anything: tenants reach what routing lets them "
        "reach.\n"
        "Type \"detach\" to go on: ",
        stderr);
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != "detach") {
      return fail(ErrorKind::conflict, "not_confirmed",
                  "node detach: not confirmed, nothing was changed",
                  "type \"detach\", without quotes, to go on");
    }
  }
  Result<Value> reply = session.call("node.detach", Value::map());
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
    return ExitCode::done;
  }
  for (const Value& item : list_of(*reply, "removed"))
    session.print(
        fmt::format("removed {}\n", printable(item.as_text() != nullptr ? *item.as_text() : "")));
  session.print("Nothing is enforced any more.\n");
  return ExitCode::done;
}

}  // namespace holdfast::cli
