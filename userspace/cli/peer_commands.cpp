// peer ls|suspend|resume: who is served on the control socket.
#include <charconv>

#include <fmt/format.h>

#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

// "1,204 rate, 3 frame"
std::string offences_text(const Value& peer) {
  std::string text;
  if (const Value::Map* counts = part_of(peer, "offences").as_map())
    for (const Value::Entry& each : *counts)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ",
                          human_count(each.value.as_u64().value_or(0)), printable(each.key));
  return text.empty() ? "-" : text;
}

std::string render_peers(const Value& peers, const Style& style) {
  Table table({{"UID"},
               {"STATE"},
               {"CONNECTIONS", Align::right},
               {"REQUESTS/S", Align::right},
               {"OFFENCES"},
               {"SINCE"},
               {"FOR"}});
  for (const Value& peer : list_of(peers, "peers")) {
    const std::string state = text_of(peer, "state");
    const std::string since = text_of(peer, "since");
    std::string cause = printable(text_of(peer, "cause"));
    if (cause == "operator") cause = fmt::format("by uid {}", number_of(peer, "by_uid"));
    table.add({fmt::format("{}", number_of(peer, "uid")),
               {printable(state), state == "suspended" ? Colour::red : Colour::green},
               human_count(number_of(peer, "connections")),
               human_count(number_of(peer, "requests_per_s")),
               offences_text(peer),
               since.empty() ? "-" : local_time(printable(since)),
               cause.empty() ? "-" : cause});
  }
  std::string text = table.render(style);
  if (truth_of(peers, "everybody"))
    text += style.paint(Colour::red,
                        "The list of suspended peers is damaged: only operators are served.") +
            "\nLook into the log, then: holdfast peer resume all\n";
  return text;
}

Result<Value> uid_args(const std::string& text) {
  uint32_t uid = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), uid);
  if (text.empty() || error != std::errc() || end != text.data() + text.size())
    return usage(fmt::format("\"{}\" is no uid", text), "a number, as holdfast peer ls shows it");
  return Value::map({{"uid", uid}});
}

Outcome change(Session& session, std::string_view verb, const Value& args) {
  const Result<Value> reply = session.call(verb, args);
  if (!reply) return std::unexpected(reply.error());
  if (session.json())
    session.print_json(*reply);
  else if (args.has("all"))
    session.print(
        fmt::format("{} served again\n", count_of(number_of(*reply, "resumed"), "peer", "peers")));
  else
    session.print(fmt::format("uid {}: {}\n", number_of(*reply, "uid"),
                              text_of(*reply, "state") == "suspended"
                                  ? "suspended; its connections are closed"
                                  : "served again"));
  return ExitCode::done;
}

}  // namespace

Outcome run_peer_ls(Session& session) {
  Value peers = Value::array();
  Value whole;
  for (Value next = 0; !next.is_null();) {
    Result<Value> page = session.call("peer.list", Value::map({{"cursor", next}}));
    if (!page) return pass_on(page);
    for (const Value& each : list_of(*page, "peers")) peers.push(each);
    next = part_of(*page, "next");
    whole = std::move(*page);
  }
  whole = Value::map({{"peers", std::move(peers)},
                      {"suspended", part_of(whole, "suspended")},
                      {"everybody", part_of(whole, "everybody")}});
  if (session.json())
    session.print_json(whole);
  else
    session.print(render_peers(whole, session.style()));
  return ExitCode::done;
}

Outcome run_peer_suspend(Session& session, const std::string& uid) {
  const Result<Value> args = uid_args(uid);
  if (!args) return std::unexpected(args.error());
  return change(session, "peer.suspend", *args);
}

Outcome run_peer_resume(Session& session, const std::string& uid) {
  if (uid == "all") return change(session, "peer.resume", Value::map({{"all", true}}));
  const Result<Value> args = uid_args(uid);
  if (!args) return std::unexpected(args.error());
  return change(session, "peer.resume", *args);
}

}  // namespace holdfast::cli
