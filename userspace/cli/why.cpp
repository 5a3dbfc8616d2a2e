// drops, flows, explain: why a packet passed or did not.
#include "userspace/cli/commands.hpp"
#include "userspace/cli/render.hpp"

namespace holdfast::cli {

using cbor::Value;

Outcome run_drops(Session& session, bool follow) {
  if (!follow) {
    Result<Value> reply = session.call("drops.read", Value::map());
    if (!reply) return pass_on(reply);
    if (session.json()) {
      session.print_json(*reply);
    } else {
      session.print(render_drops(*reply, session.style()));
    }
    return ExitCode::done;
  }
  Result<wire::Client*> daemon = session.daemon();
  if (!daemon) return pass_on(daemon);
  session.note("following denied packets; Ctrl-C ends it\n");
  Status written;
  // Each event at once: whoever reads this waits for it.
  Result<Value> ended = (*daemon)->follow("drops.follow", Value::map(), [&](const Value& event) {
    if (session.json()) {
      session.print_json(event);
    } else {
      session.print(render_drop_event(event, session.style()));
    }
    written = session.flush();
    return written.has_value();
  });
  if (!written) return pass_on(written);
  if (!ended) return pass_on(ended);
  return ExitCode::done;
}

Outcome run_flows(Session& session, const ListWords& words) {
  Value args = Value::map();
  if (!words.tenant.empty()) args.set("tenant", words.tenant);
  if (words.limit != 0) args.set("limit", words.limit);
  Result<Value> reply = session.call("flows.list", args);
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_flows(*reply, session.style()));
  }
  return ExitCode::done;
}

Outcome run_explain(Session& session, const PacketWords& words) {
  const Result<Packet> packet = parse_packet(words);
  if (!packet) return std::unexpected(packet.error());
  Result<Value> reply = session.call("explain", explain_arguments(*packet));
  if (!reply) return pass_on(reply);
  if (session.json()) {
    session.print_json(*reply);
  } else {
    session.print(render_explain(*reply, describe(*packet), session.style()));
  }
  return ExitCode::done;
}

}  // namespace holdfast::cli
