// status, route ls, tenant ls|disable|enable, bundle check|push|show|diff, node detach.
#include <cstdio>
#include <iostream>

#include <fmt/format.h>
#include <unistd.h>

#include "policy/limits.hpp"
#include "policy/parse.hpp"
#include "policy/render.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

constexpr uint64_t push_timeout_ns = 300 * ns_per_s;

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

Outcome run_bundle_check(Session& session, const std::string& file) {
  Result<std::string> text = read_file(file, policy_bytes_max);
  if (!text) return pass_on(text);
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
  Result<std::string> text = read_file(file, policy_bytes_max);
  if (!text) return pass_on(text);
  Result<wire::Client*> daemon = session.daemon(push_timeout_ns);
  if (!daemon) return pass_on(daemon);
  const Value args = Value::map({{"file", shown_name(file)}, {"dry_run", dry_run}});
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

Outcome run_bundle_show(Session& session) {
  Result<Value> reply = session.call("bundle.show", Value::map());
  if (!reply) return pass_on(reply);
  const std::string text = text_of(*reply, "policy");
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
