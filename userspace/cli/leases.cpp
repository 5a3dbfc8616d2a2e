// lease ls, show, grant, renew, revoke, release, checkpoint.
#include <fmt/format.h>

#include "policy/address.hpp"
#include "policy/decide.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"
#include "userspace/token/schedule.hpp"
#include "userspace/token/token.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

constexpr uint64_t page_leases = 1000;
constexpr uint64_t bulk_timeout_ns = 600 * ns_per_s;

Result<uint64_t> duration_option(std::string_view option, const std::string& text) {
  Result<uint64_t> ns = parse_duration(text);
  if (!ns) return pass_on(ns, option);
  return ns;
}

Result<uint64_t> term_option(const std::string& text) {
  Result<uint64_t> ns = duration_option("--ttl", text);
  if (!ns) return ns;
  if (Status fits = check_term(*ns); !fits) return pass_on(fits, "--ttl");
  return ns;
}

}  // namespace

Result<std::optional<uint64_t>> grace_option(const std::string& text) {
  if (text.empty()) return std::optional<uint64_t>();
  Result<uint64_t> ns = duration_option("--grace", text);
  if (!ns) return pass_on(ns);
  return std::optional(*ns);
}

namespace {

// What one lease and a file of them share.
Result<BulkDefaults> defaults_of(const GrantWords& words) {
  BulkDefaults defaults;
  Result<uint64_t> ttl_ns = term_option(words.ttl);
  if (!ttl_ns) return pass_on(ttl_ns);
  defaults.ttl_ns = *ttl_ns;
  Result<std::optional<uint64_t>> grace_ns = grace_option(words.grace);
  if (!grace_ns) return pass_on(grace_ns);
  defaults.grace_ns = *grace_ns;
  if (!words.holder.empty()) {
    Result<std::string> holder = parse_holder(words.holder);
    if (!holder) return pass_on(holder, "--holder");
    defaults.holder = std::move(*holder);
  }
  return defaults;
}

Result<GrantBody> body_from_words(const GrantWords& words, const BulkDefaults& defaults) {
  if (words.tenant.empty()) {
    return usage(
        "lease grant: whose?",
        "name the tenant, or a file of leases with --from; see holdfast lease grant --help");
  }
  if (words.endpoints.empty() && words.egress.empty()) {
    return usage("lease grant: a lease that opens nothing",
                 "name what it opens with --endpoint or --egress; see holdfast route ls");
  }
  if (words.each && (words.endpoints.empty() || !words.egress.empty()))
    return usage("--each is for endpoints", "name endpoints, and egress in a lease of its own");
  if (!words.peer.empty()) {
    const Result<Prefix> peer = parse_prefix(words.peer);
    if (!peer) return usage("--peer: " + peer.error().message, peer.error().next_step);
  }
  const std::vector<std::string_view> endpoints(words.endpoints.begin(), words.endpoints.end());
  const std::vector<std::string_view> egress(words.egress.begin(), words.egress.end());
  LeaseEntry entry;
  entry.tenant = words.tenant;
  entry.endpoints = endpoints;
  entry.egress = egress;
  entry.peer = words.peer;
  entry.holder = defaults.holder;
  entry.ttl_ns = defaults.ttl_ns;
  entry.grace_ns = defaults.grace_ns;
  entry.each = words.each;
  GrantBody body;
  body.add(entry);
  return body;
}

Result<GrantBody> body_from_file(Session& session, const GrantWords& words,
                                 const BulkDefaults& defaults) {
  if (!words.tenant.empty() || !words.endpoints.empty() || !words.egress.empty() ||
      !words.peer.empty() || words.each) {
    return usage("--from takes its leases from the file, and the command line names one too",
                 "leave out the tenant and what it opens; --ttl, --grace and --holder may stay");
  }
  Result<std::string> text = read_file(words.from, bulk_bytes_max);
  if (!text) return pass_on(text);
  const uint64_t begin_ns = boot_now_ns();
  Result<GrantBody> body = parse_bulk(*text, shown_name(words.from), defaults);
  if (body) {
    session.note(fmt::format("read {} in {}; granting...\n",
                             count_of(body->count(), "entry", "entries"),
                             human_duration(boot_now_ns() - begin_ns)));
  }
  return body;
}

// The token that a file holds, presented, and with it a scheduler's admission, if there is one.
Result<Value> by_token(Session& session, std::string_view verb, const std::string& path,
                       const std::string& admission_path) {
  Result<std::vector<uint8_t>> token = read_token(path);
  if (!token) return pass_on(token);
  Value args = Value::map({{"token", std::move(*token)}});
  if (!admission_path.empty()) {
    const Result<std::string> text = read_file(admission_path, token::schedule_bytes_max);
    if (!text) return std::unexpected(text.error());
    args.set("admission", Value::Bytes(text->begin(), text->end()));
  }
  return session.call(verb, args);
}

// What its holder shows to services that ask this node.
std::string use_token_line(const Value& lease) {
  if (!lease.has("token")) return "";
  return fmt::format("use token: {}\n", printable(text_of(lease, "token")));
}

// One after another; what fails is reported and the rest goes on, since each is a lease of its own.
Outcome end_leases(Session& session, const EndWords& words, std::string_view verb,
                   std::optional<uint64_t> grace_ns) {
  ExitCode worst = ExitCode::done;
  for (const std::string& id : words.ids) {
    Value args = Value::map({{"id", id}});
    if (grace_ns) args.set("grace_ns", *grace_ns);
    Result<Value> reply = session.call(verb, args);
    if (!reply) {
      // Without the daemon none of the others has a chance.
      if (reply.error().kind == ErrorKind::unavailable) return pass_on(reply);
      worst = std::max(worst, session.report(reply.error()));
      continue;
    }
    print_ending(session, *reply);
  }
  return worst;
}

}  // namespace

Result<std::vector<uint8_t>> read_token(const std::string& path) {
  Result<std::string> text = read_file(path, 3 * token::token_bytes_max);
  if (!text) return pass_on(text);
  while (text->ends_with('\n')) text->pop_back();
  Result<std::vector<uint8_t>> token = token::from_text(*text);
  if (!token) return pass_on(token, shown_name(path));
  return token;
}

void print_ending(Session& session, const Value& reply) {
  if (session.json()) return session.print_json(reply);
  const std::string id = printable(text_of(reply, "id"));
  const std::string state = printable(text_of(reply, "state"));
  if (part_of(reply, "grace_ends_at").is_null())
    session.print(fmt::format("{}: {}\n", id, state == "torndown" ? "torn down" : state));
  else
    session.print(fmt::format("{}: {}: its grace ends {}, at {}\n", id, state, expires_in(reply),
                              local_time(printable(text_of(reply, "grace_ends_at")))));
}

Outcome run_lease_ls(Session& session, const ListWords& words) {
  Table table = lease_table();
  Value next = 0;
  uint64_t listed = 0;
  // Page by page, so that a million leases need no memory here; widths grow as they come.
  for (bool first = true; !next.is_null(); first = false) {
    Value args = Value::map({{"cursor", next}, {"limit", page_leases}});
    if (words.limit != 0) args.set("limit", std::min(page_leases, words.limit - listed));
    if (!words.tenant.empty()) args.set("tenant", words.tenant);
    Result<Value> page = session.call("lease.list", args);
    if (!page) return pass_on(page);
    if (first && session.json())
      session.print(fmt::format("{{\"version\":{},\"leases\":[", json_version));
    if (session.json()) {
      std::string out;
      uint64_t at = listed;
      for (const Value& lease : list_of(*page, "leases")) {
        if (at++ != 0) out += ',';
        out += cbor::to_json(lease);
      }
      session.print(out);
    } else {
      add_leases(table, *page);
      session.print(table.render(session.style()));
    }
    listed += list_of(*page, "leases").size();
    next = part_of(*page, "next");
    if (words.limit != 0 && listed >= words.limit) break;
  }
  if (session.json()) {
    session.print("]}\n");
  } else if (listed == 0) {
    session.print(words.tenant.empty()
                      ? "No leases: everything is denied. Grant one: holdfast lease grant TENANT "
                        "--endpoint NAME\n"
                      : fmt::format("No leases of {}.\n", printable(words.tenant)));
  }
  return ExitCode::done;
}

Outcome run_lease_show(Session& session, const std::string& id) {
  Result<Value> lease = session.call("lease.show", Value::map({{"id", id}}));
  if (!lease) return pass_on(lease);
  if (session.json()) {
    session.print_json(*lease);
  } else {
    session.print(render_lease(*lease, session.style()));
  }
  return ExitCode::done;
}

Outcome run_lease_grant(Session& session, const GrantWords& words) {
  if (!words.token.empty()) {
    if (!words.tenant.empty() || !words.endpoints.empty() || !words.egress.empty() ||
        !words.peer.empty() || !words.holder.empty() || !words.grace.empty() || words.each ||
        !words.from.empty())
      return usage("--token says all about the lease, and the command line says something too",
                   "leave out the tenant and every other option");
    if (Status ok = session.prove(words.holder_key); !ok) return pass_on(ok);
    Result<Value> lease = by_token(session, "lease.grant", words.token, words.admission);
    if (!lease) return pass_on(lease);
    if (session.json()) {
      session.print_json(*lease);
    } else {
      Value reply = Value::map({{"granted", 1}});
      reply.set("leases", Value::array({*lease}));
      session.print(render_grant(reply, session.style()) + use_token_line(*lease));
    }
    return ExitCode::done;
  }
  if (!words.admission.empty())
    return usage("--admission is of a grant token, and there is no --token", "give both");
  if (!words.holder_key.empty())
    return usage("--holder-key proves whose a token is, and there is no --token",
                 "name its holder with --holder key:THUMBPRINT");
  const bool bulk = !words.from.empty();
  Result<BulkDefaults> defaults = defaults_of(words);
  if (!defaults) return pass_on(defaults);
  Result<GrantBody> body =
      bulk ? body_from_file(session, words, *defaults) : body_from_words(words, *defaults);
  if (!body) return pass_on(body);
  Result<wire::Client*> daemon = session.daemon(bulk_timeout_ns);
  if (!daemon) return pass_on(daemon);
  Result<Value> reply = (*daemon)->call_with_body("lease.grant", Value::map(), body->finish());
  if (!reply)
    return bulk ? pass_on(reply, shown_name(words.from) + ": none granted") : pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_grant(*reply, session.style()));
  }
  return ExitCode::done;
}

Outcome run_lease_renew(Session& session, const RenewWords& words) {
  if (words.token.empty() == words.id.empty())
    return usage(words.id.empty() ? "lease renew: which lease?" : "--token names the lease already",
                 "give its id, or a renew token with --token");
  if (!words.token.empty() && words.generation)
    return usage("--token names the generation already", "leave out --generation");
  Result<uint64_t> ttl_ns = term_option(words.ttl);
  if (!ttl_ns) return pass_on(ttl_ns);
  Value args = Value::map({{"id", words.id}, {"ttl_ns", *ttl_ns}});
  if (words.generation) args.set("generation", *words.generation);
  if (Status ok = session.prove(words.holder_key); !ok) return pass_on(ok);
  Result<Value> lease = words.token.empty() ? session.call("lease.renew", args)
                                            : by_token(session, "lease.renew", words.token, {});
  if (!lease) return pass_on(lease);
  if (session.json()) {
    session.print_json(*lease);
  } else {
    session.print(fmt::format("renewed {}: expires {}, at {}; generation {}\n",
                              printable(text_of(*lease, "id")), expires_in(*lease),
                              local_time(printable(text_of(*lease, "expires_at"))),
                              number_of(*lease, "generation")) +
                  use_token_line(*lease));
  }
  return ExitCode::done;
}

Outcome run_lease_revoke(Session& session, const EndWords& words) {
  Result<std::optional<uint64_t>> grace_ns = grace_option(words.grace);
  if (!grace_ns) return pass_on(grace_ns);
  return end_leases(session, words, "lease.revoke", *grace_ns);
}

Outcome run_lease_release(Session& session, const EndWords& words) {
  if (Status ok = session.prove(words.holder_key); !ok) return pass_on(ok);
  return end_leases(session, words, "lease.release", std::nullopt);
}

Outcome run_lease_checkpoint(Session& session, const CheckpointWords& words) {
  if (Status ok = session.prove(words.holder_key); !ok) return pass_on(ok);
  Value args = Value::map({{"id", words.id}, {"keep_grace", words.keep_grace}});
  if (!words.note.empty()) args.set("note", words.note);
  Result<Value> reply = session.call("lease.checkpoint", args);
  if (!reply) return pass_on(reply);
  print_ending(session, *reply);
  return ExitCode::done;
}

}  // namespace holdfast::cli
