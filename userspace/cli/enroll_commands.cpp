// enroll begin|finish|end|show|fingerprint: whose node this is.
#include <fmt/format.h>

#include "policy/limits.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"
#include "userspace/token/enrollment.hpp"
#include "userspace/token/signed.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

constexpr uint64_t finish_timeout_ns = 300 * ns_per_s;

}  // namespace

// The request is a file for another machine, so it is JSON whether --json is there or not.
Outcome run_enroll_begin(Session& session, const EnrollBeginWords& words) {
  if (!from_hex<sizeof(token::Digest)>(words.anchor))
    return usage("--anchor: a root's fingerprint is 64 hexadecimal digits, in lower case",
                 "whoever has the key is told it: holdfast enroll fingerprint KEY");
  const Result<uint64_t> life_ns = parse_duration(words.ttl);
  if (!life_ns) return std::unexpected(Error(life_ns.error()).in("--ttl"));
  if (*life_ns < ns_per_s || *life_ns / ns_per_s > token::enrollment_life_max_s)
    return usage("--ttl: a request is good for 1s to 24h", "write it like 1h");
  Value args = Value::map({{"anchor", words.anchor}, {"life_s", *life_ns / ns_per_s}});
  if (!words.tenants.empty()) {
    Value tenants = Value::array();
    for (const std::string& each : words.tenants) tenants.push(each);
    args.set("tenants", std::move(tenants));
  }
  const Result<Value> reply = session.call("enroll.begin", args);
  if (!reply) return std::unexpected(reply.error());
  session.print(cbor::to_json(*reply) + "\n");
  session.note(fmt::format(
      "This node is pending until {}: nothing is leased. Have the request signed by that root: "
      "holdfast bundle sign --enroll\n",
      local_time(rfc3339_utc(number_of(*reply, "expires_s") * ns_per_s))));
  return ExitCode::done;
}

Outcome run_enroll_finish(Session& session, const std::string& file) {
  const Result<std::string> bundle = read_file(file, bundle_bytes_max);
  if (!bundle) return std::unexpected(bundle.error());
  Result<wire::Client*> daemon = session.daemon(finish_timeout_ns);
  if (!daemon) return pass_on(daemon);
  const Result<Value> reply =
      (*daemon)->call_with_body("enroll.finish", Value::map({{"file", shown_name(file)}}),
                                {reinterpret_cast<const uint8_t*>(bundle->data()), bundle->size()});
  if (!reply) return std::unexpected(reply.error());
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(fmt::format("enrolled under root {}\n",
                              printable(text_of(part_of(*reply, "enrollment"), "root"))));
    session.print(render_push(*reply, false, session.style()));
  }
  return ExitCode::done;
}

Outcome run_enroll_end(Session& session, bool now) {
  const Result<Value> reply = session.call("enroll.end", Value::map({{"now", now}}));
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else
    session.print(render_enroll_end(*reply, session.style()));
  return ExitCode::done;
}

Outcome run_enroll_show(Session& session) {
  const Result<Value> reply = session.call("enroll.show", Value::map());
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else
    session.print(render_enrollment(*reply, session.style()));
  return ExitCode::done;
}

Outcome run_enroll_fingerprint(Session& session, const std::string& file) {
  const Result<token::SignerKey> key = read_signer_key(file);
  if (!key) return std::unexpected(key.error());
  const std::string fingerprint = hex(token::thumbprint(key->key));
  if (session.json())
    session.print_json(Value::map({{"file", file}, {"fingerprint", fingerprint}}));
  else
    session.print(fingerprint + "\n");
  return ExitCode::done;
}

}  // namespace holdfast::cli
