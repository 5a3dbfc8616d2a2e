#include "userspace/cli/render.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/cli/human.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

constexpr size_t resources_shown = 2;  // of one lease in a table; `lease show` names all
constexpr size_t digest_shown = 12;

Colour colour_of_state(std::string_view state) {
  if (state == "active" || state == "enabled" || state == "live") return Colour::green;
  if (state == "grace_running" || state == "checkpoint_reported" || state == "draining")
    return Colour::yellow;
  if (state == "fenced" || state == "disabled" || state == "quarantined") return Colour::red;
  return Colour::dim;
}

Colour colour_of_verdict(std::string_view verdict) {
  return verdict == "pass" ? Colour::green : Colour::red;
}

// In tables a tenant's or another's words go through Table, which makes them printable; here they
// do not.
std::string safe(const Value& map, std::string_view key) {
  return printable(text_of(map, key));
}

std::string joined(const Value::Array& list, std::string_view separator, size_t most) {
  std::string out;
  for (size_t i = 0; i < list.size() && i < most; ++i) {
    const std::string* text = list[i].as_text();
    if (i != 0) out += separator;
    out += text != nullptr ? printable(*text) : "-";
  }
  if (list.size() > most) out += fmt::format("{}+{} more", separator, list.size() - most);
  return out;
}

std::string short_digest(const Value& map) {
  const std::string digest = safe(map, "digest");
  return digest.size() > digest_shown ? digest.substr(0, digest_shown) + "..." : digest;
}

std::string dark_line(const Value& dark, const Style& style) {
  return fmt::format("{}: {} ({})", style.paint(Colour::red, safe(dark, "interface") + " is dark"),
                     safe(dark, "cause"), safe(dark, "code"));
}

std::string unenforced_line(const Value& each, const Style& style) {
  const std::string interface = safe(each, "interface");
  return fmt::format("{}: {} ({})",
                     style.paint(Colour::red, safe(each, "what") + " unenforced" +
                                                  (interface.empty() ? "" : " on " + interface)),
                     safe(each, "cause"), safe(each, "code"));
}

std::string traffic(const Value& counter) {
  const uint64_t packets = number_of(counter, "packets");
  if (packets == 0) return "-";
  return fmt::format("{} / {}", human_count(packets), human_bytes(number_of(counter, "bytes")));
}

// "lease 5f3a..., tenant acme/shop/prod, 42s left"
std::string who_decided(const Value& step) {
  std::string out;
  const auto append = [&out](std::string_view part) {
    if (!out.empty()) out += ", ";
    out += part;
  };
  if (const std::string lease = safe(step, "lease"); !lease.empty()) append("lease " + lease);
  if (const std::string tenant = safe(step, "tenant"); !tenant.empty()) append("tenant " + tenant);
  if (const auto left = part_of(step, "remaining_ns").as_u64(); left)
    append(human_duration(*left) + " left");
  if (const auto ago = part_of(step, "ended_ns_ago").as_u64(); ago)
    append(fmt::format("ended {} ago", human_duration(*ago)));
  return out;
}

std::string hook_words(std::string_view hook) {
  if (hook == "from_uplink") return "arriving from outside";
  if (hook == "to_tenant") return "on its way to the tenant";
  if (hook == "from_tenant") return "leaving the tenant";
  return std::string(hook);
}

std::string_view meaning_of_node_state(std::string_view state) {
  if (state == "active") return "takes leases";
  if (state == "draining") return "takes no new leases; running ones may be renewed";
  if (state == "disabled") return "no lease, no grant, no renewal";
  if (state == "quarantined")
    return "no lease, no grant, no renewal; nothing opens until `holdfast node release`";
  return "";
}

// "draining: takes no new leases; running ones may be renewed; since 14:03:05, by uid 0"
std::string node_state_line(const Value& state, const Style& style) {
  const std::string name = safe(state, "name");
  std::string out = style.paint(colour_of_state(name), name);
  if (name == "active") return out;
  out += fmt::format(": {}; since {}, by uid {}", meaning_of_node_state(name),
                     local_time(safe(state, "since")), number_of(state, "by_uid"));
  if (const uint64_t refused = number_of(state, "refused"); refused != 0)
    out += fmt::format("; {} refused", count_of(refused, "request", "requests"));
  return out;
}

// "pending until 14:03:05: ..."
std::string enrollment_line(const Value& enrollment, const Style& style) {
  const std::string state = safe(enrollment, "state");
  const std::string root = safe(enrollment, "root");
  const std::string who = fmt::format("since {}, by uid {}", local_time(safe(enrollment, "since")),
                                      number_of(enrollment, "by_uid"));
  if (state == "pending") {
    const std::string until = local_time(safe(enrollment, "expires"));
    return fmt::format("{} {}, for root {}; no lease and no other policy; {}",
                       style.paint(Colour::yellow, "pending"),
                       truth_of(enrollment, "expired")
                           ? fmt::format("(the request expired at {})", until)
                           : fmt::format("until {}", until),
                       root, who);
  }
  if (state == "enrolled")
    return fmt::format("{} under root {}, for {}; {}", style.paint(Colour::green, "enrolled"), root,
                       joined(list_of(enrollment, "tenants"), ", ", resources_shown), who);
  if (state == "left")
    return fmt::format("{} root {}: no lease under its policy, which is still in force; {}",
                       style.paint(Colour::yellow, "left"), root, who);
  return "none: policy and keys are this machine's own";
}

// "acme/shop/prod  web@10.1.0.2:443", and what else there is, in the event's own order.
std::string event_details(const Value& event) {
  std::string out;
  const Value::Map* entries = event.as_map();
  if (entries == nullptr) return out;
  for (const Value::Entry& entry : *entries) {
    if (entry.key == "seq" || entry.key == "time" || entry.key == "event" || entry.key == "type" ||
        entry.key == "cursor" || entry.key == "expires_at" || entry.key == "lease" ||
        entry.key == "tenant")
      continue;
    std::string text;
    if (const std::string* words = entry.value.as_text(); words != nullptr)
      text = printable(*words);
    else if (const Value::Array* list = entry.value.as_array(); list != nullptr)
      text = joined(*list, ", ", resources_shown);
    else
      text = cbor::to_json(entry.value);
    out += fmt::format("  {} {}", printable(entry.key), text);
  }
  return out;
}

}  // namespace

std::string text_of(const Value& map, std::string_view key) {
  const Value* value = map.find(key);
  const std::string* text = value != nullptr ? value->as_text() : nullptr;
  return text != nullptr ? *text : std::string();
}

uint64_t number_of(const Value& map, std::string_view key) {
  return part_of(map, key).as_u64().value_or(0);
}

bool truth_of(const Value& map, std::string_view key) {
  return part_of(map, key).as_bool().value_or(false);
}

const Value::Array& list_of(const Value& map, std::string_view key) {
  static const Value::Array none;
  const Value::Array* list = part_of(map, key).as_array();
  return list != nullptr ? *list : none;
}

const Value& part_of(const Value& map, std::string_view key) {
  static const Value none;
  const Value* value = map.find(key);
  return value != nullptr ? *value : none;
}

std::string render_status(const Value& reply, std::string_view socket, const Style& style) {
  Facts facts;
  facts.add("holdfastd", fmt::format("{}, up {}, since {}", safe(reply, "version"),
                                     human_duration(number_of(reply, "uptime_ns")),
                                     local_time(safe(reply, "started_at"))));
  const Value& policy = part_of(reply, "policy");
  if (number_of(policy, "generation") == 0) {
    facts.add("policy",
              "none yet: everything is denied; put one in force: holdfast bundle push FILE");
  } else {
    facts.add("policy",
              fmt::format("generation {}, {}, {} ({})", number_of(policy, "generation"),
                          count_of(number_of(policy, "tenants"), "tenant", "tenants"),
                          count_of(number_of(policy, "endpoints"), "endpoint", "endpoints"),
                          short_digest(policy)));
  }
  facts.add("state", node_state_line(part_of(reply, "state"), style));
  if (const Value& enrollment = part_of(reply, "enrollment"); !enrollment.is_null())
    facts.add("enrollment", enrollment_line(enrollment, style));
  const Value& leases = part_of(reply, "leases");
  facts.add("leases", fmt::format("{} live, at most {}", human_count(number_of(leases, "live")),
                                  human_count(number_of(leases, "max"))));
  const Value& tokens = part_of(reply, "tokens");
  facts.add("node", fmt::format("{}, epoch {}", safe(reply, "node"), number_of(reply, "epoch")));
  std::string refused;
  if (const Value::Map* reasons = part_of(tokens, "refused").as_map())
    for (const Value::Entry& each : *reasons)
      refused += fmt::format("{}{} {}", refused.empty() ? "" : ", ", printable(each.key),
                             human_count(each.value.as_u64().value_or(0)));
  facts.add(
      "tokens",
      fmt::format("{} believed, {}; wall clock {}", human_count(number_of(tokens, "believed")),
                  refused.empty() ? "none refused" : "refused: " + refused, safe(tokens, "clock")));
  const Value& hooks = part_of(reply, "hooks");
  std::string where = "tenant ports by " + safe(hooks, "tenant");
  for (const Value& uplink : list_of(hooks, "uplinks"))
    where += fmt::format("; uplink {} by {}", safe(uplink, "interface"), safe(uplink, "hook"));
  facts.add("hooks", where);
  facts.add("nft table", safe(reply, "table"));
  facts.add("pins", safe(reply, "pin_dir"));
  facts.add("mapped", human_bytes(number_of(reply, "mapped_bytes")));
  const Value& peer = part_of(reply, "peer");
  facts.add(
      "socket",
      fmt::format("{}, {}; you are uid {} and may {}", socket,
                  count_of(number_of(reply, "connections"), "connection", "connections"),
                  number_of(peer, "uid"), text_of(peer, "role") == "operator" ? "change" : "read"));
  std::string signers;
  for (const Value& each : list_of(reply, "peers")) {
    const Value& signer = part_of(each, "signer");
    if (signer.is_null()) continue;
    signers += fmt::format("{}{} (uid {}) may {} for {}", signers.empty() ? "" : "\n",
                           safe(signer, "name"), number_of(each, "uid"),
                           joined(list_of(signer, "verbs"), ", ", resources_shown),
                           joined(list_of(signer, "tenants"), ", ", resources_shown));
  }
  if (!signers.empty()) facts.add("signers", signers);
  const Value& bearers = part_of(reply, "bearers");
  if (number_of(bearers, "live") != 0)
    facts.add("bearers", fmt::format("{} live, shown {}", human_count(number_of(bearers, "live")),
                                     count_of(number_of(bearers, "shown"), "time", "times")));
  std::string attention;
  const Value& abuse = part_of(reply, "abuse");
  if (const uint64_t suspended = number_of(abuse, "suspended"); suspended != 0)
    attention += fmt::format(
        "{}: holdfast peer ls",
        style.paint(Colour::red, count_of(suspended, "peer is suspended", "peers are suspended")));
  if (truth_of(abuse, "everybody")) {
    if (!attention.empty()) attention += '\n';
    attention += fmt::format("{}: only operators are served; holdfast peer resume all",
                             style.paint(Colour::red, "the list of suspended peers is damaged"));
  }
  for (const Value& dark : list_of(reply, "dark")) {
    if (!attention.empty()) attention += '\n';
    attention += dark_line(dark, style);
  }
  for (const Value& each : list_of(reply, "unenforced")) {
    if (!attention.empty()) attention += '\n';
    attention += unenforced_line(each, style);
  }
  facts.add("attention", attention.empty() ? style.paint(Colour::green, "nothing") : attention);
  return facts.render(style);
}

std::string render_enrollment(const Value& enrollment, const Style& style) {
  return enrollment_line(enrollment, style) + "\n";
}

std::string render_enroll_end(const Value& reply, const Style& style) {
  const uint64_t ended = number_of(reply, "leases_ended");
  const uint64_t left = number_of(reply, "leases");
  std::string out = render_enrollment(part_of(reply, "enrollment"), style);
  if (ended != 0) out += fmt::format("{} ended\n", count_of(ended, "lease", "leases"));
  if (left != 0)
    out += fmt::format("{} left, until the end of {} term\n", count_of(left, "lease", "leases"),
                       left == 1 ? "its" : "their");
  return out;
}

std::string expires_in(const Value& lease) {
  const uint64_t remaining_ns = number_of(lease, "remaining_ns");
  if (remaining_ns == 0) return "now";
  // To the nearest second: a lease of 60s, just granted, has 60s.
  constexpr uint64_t rounded_from_ns = 10 * ns_per_s;
  return "in " + human_duration(remaining_ns < rounded_from_ns ? remaining_ns
                                                               : remaining_ns + ns_per_s / 2);
}

Table lease_table() {
  return Table({{"LEASE"}, {"TENANT"}, {"OPENS"}, {"PEER"}, {"HOLDER"}, {"STATE"}, {"EXPIRES"}});
}

void add_leases(Table& table, const Value& page) {
  for (const Value& lease : list_of(page, "leases")) {
    const std::string state = text_of(lease, "state");
    const std::string peer = text_of(lease, "peer");
    table.add({text_of(lease, "id"), text_of(lease, "tenant"),
               joined(list_of(lease, "resources"), ", ", resources_shown),
               peer.empty() ? "any" : peer, text_of(lease, "holder"),
               Cell(state, colour_of_state(state)), expires_in(lease)});
  }
}

std::string render_lease(const Value& lease, const Style& style) {
  const std::string state = safe(lease, "state");
  const std::string peer = safe(lease, "peer");
  Facts facts;
  facts.add("lease", safe(lease, "id"));
  facts.add("state", style.paint(colour_of_state(state), state));
  facts.add("tenant", safe(lease, "tenant"));
  facts.add("opens", joined(list_of(lease, "resources"), "\n", SIZE_MAX));
  facts.add("peer", peer.empty() ? "any" : peer);
  facts.add("holder", safe(lease, "holder"));
  facts.add("granted", local_time(safe(lease, "granted_at")));
  facts.add("expires",
            fmt::format("{}, at {}", expires_in(lease), local_time(safe(lease, "expires_at"))));
  if (!part_of(lease, "grace_ends_at").is_null())
    facts.add("grace ends", local_time(safe(lease, "grace_ends_at")));
  facts.add("generation", fmt::format("{}", number_of(lease, "generation")));
  return facts.render(style);
}

std::string render_grant(const Value& reply, const Style& style) {
  const uint64_t granted = number_of(reply, "granted");
  const Value::Array& leases = list_of(reply, "leases");
  std::string out;
  if (granted == 1 && leases.size() == 1) {
    const Value& lease = leases.front();
    return fmt::format("granted {} to {}: {}; expires {}, at {}\n",
                       style.paint(Colour::bold, safe(lease, "id")), safe(lease, "tenant"),
                       joined(list_of(lease, "resources"), ", ", SIZE_MAX), expires_in(lease),
                       local_time(safe(lease, "expires_at")));
  }
  if (granted == leases.size()) {
    Table table = lease_table();
    add_leases(table, reply);
    out = table.render(style);
  }
  out += fmt::format(
      "granted {} in {} (eBPF {}, nftables {})\n", count_of(granted, "lease", "leases"),
      human_duration(number_of(reply, "took_ns")), human_duration(number_of(reply, "ebpf_ns")),
      human_duration(number_of(reply, "nft_ns")));
  return out;
}

std::string render_routes(const Value& reply, const Style& style) {
  const Value::Array& routes = list_of(reply, "routes");
  if (routes.empty())
    return "No routes: the policy publishes no endpoint. See what is in force: holdfast bundle "
           "show\n";
  Table table({{"TENANT"},
               {"ENDPOINT"},
               {"PROTOCOL"},
               {"ADDRESSES"},
               {"LISTEN"},
               {"PORT"},
               {"INTERFACE"},
               {"LEASED", Align::right}});
  for (const Value& route : routes) {
    const uint64_t members = number_of(route, "members");
    const uint64_t leased = number_of(route, "leased");
    const Colour colour = leased == 0        ? Colour::dim
                          : leased < members ? Colour::yellow
                                             : Colour::green;
    table.add({text_of(route, "tenant"), text_of(route, "endpoint"), text_of(route, "protocol"),
               joined(list_of(route, "addresses"), ", ", resources_shown), text_of(route, "listen"),
               text_of(route, "port"), text_of(route, "interface"),
               Cell(fmt::format("{} of {}", human_count(leased), human_count(members)), colour)});
  }
  return table.render(style);
}

std::string render_tenants(const Value& reply, const Style& style) {
  const Value::Array& tenants = list_of(reply, "tenants");
  if (tenants.empty())
    return "No tenants: the policy in force names none. Put another in force: holdfast bundle push "
           "FILE\n";
  Table table({{"TENANT"},
               {"STATE"},
               {"LEASES", Align::right},
               {"PORTS"},
               {"RECEIVED", Align::right},
               {"SENT", Align::right},
               {"DROPPED", Align::right}});
  for (const Value& tenant : tenants) {
    const std::string state = text_of(tenant, "state");
    std::string ports;
    bool missing = false;
    for (const Value& port : list_of(tenant, "ports")) {
      if (!ports.empty()) ports += ", ";
      ports += fmt::format("{} on {}", text_of(port, "name"), text_of(port, "interface"));
      if (!truth_of(port, "present")) {
        ports += " (not there)";
        missing = true;
      }
    }
    table.add({text_of(tenant, "name"), Cell(state, colour_of_state(state)),
               fmt::format("{} of {}", human_count(number_of(tenant, "leases")),
                           human_count(number_of(tenant, "leases_max"))),
               Cell(ports, missing ? Colour::yellow : Colour::none),
               traffic(part_of(tenant, "to_tenant")), traffic(part_of(tenant, "from_tenant")),
               traffic(part_of(tenant, "dropped"))});
  }
  return table.render(style);
}

std::string render_push(const Value& reply, bool dry_run, const Style& style) {
  std::string out;
  for (const Value& line : list_of(reply, "changes")) {
    const std::string text = printable(line.as_text() != nullptr ? *line.as_text() : "");
    const Colour colour = text.starts_with('+')   ? Colour::green
                          : text.starts_with('-') ? Colour::red
                          : text.starts_with('~') ? Colour::yellow
                                                  : Colour::none;
    out += style.paint(colour, text) + "\n";
  }
  if (const uint64_t more = number_of(reply, "changes_more"); more != 0)
    out += fmt::format("and {} more changes\n", more);
  const uint64_t ended = number_of(reply, "leases_ended");
  const uint64_t generation = number_of(reply, "generation");
  if (dry_run) {
    if (out.empty()) out = "No difference to the policy in force.\n";
    if (ended != 0) out += fmt::format("It would end {}.\n", count_of(ended, "lease", "leases"));
  } else if (!truth_of(reply, "applied")) {
    out += fmt::format("Policy generation {} was in force already.\n", generation);
  } else {
    out += fmt::format("Policy generation {} is in force ({}).\n", generation, short_digest(reply));
    if (ended != 0) out += fmt::format("It ended {}.\n", count_of(ended, "lease", "leases"));
  }
  for (const Value& dark : list_of(reply, "dark")) out += dark_line(dark, style) + "\n";
  return out;
}

std::string render_drops(const Value& reply, const Style& style) {
  struct Row {
    const Value* value;
    uint64_t packets;
  };
  std::vector<Row> rows;
  for (const Value& row : list_of(reply, "reasons")) {
    const uint64_t packets = number_of(row, "packets");
    if (text_of(row, "verdict") == "drop" && packets != 0) rows.push_back({&row, packets});
  }
  if (rows.empty()) return "Nothing was dropped since the programs were loaded.\n";
  std::ranges::sort(rows, [](const Row& a, const Row& b) {
    // Equal ones in the order of the reply, whose rows lie behind one another.
    return a.packets != b.packets ? a.packets > b.packets : a.value < b.value;
  });
  Table table({{"HOOK"}, {"REASON"}, {"PACKETS", Align::right}, {"BYTES", Align::right}, {"WHY"}});
  for (const Row& row : rows) {
    table.add({text_of(*row.value, "hook"), Cell(text_of(*row.value, "reason"), Colour::yellow),
               human_count(row.packets), human_bytes(number_of(*row.value, "bytes")),
               text_of(*row.value, "text")});
  }
  std::string out = table.render(style);
  const uint64_t lost = number_of(reply, "events_lost");
  const uint64_t unsampled = number_of(reply, "events_unsampled");
  if (lost != 0 || unsampled != 0) {
    out += style.paint(
               Colour::dim,
               fmt::format(
                   "Counts are exact. Of single events, {} were beyond the sample and {} lost.",
                   human_count(unsampled), human_count(lost))) +
           "\n";
  }
  return out;
}

std::string render_drop_event(const Value& event, const Style& style) {
  std::string who = safe(event, "tenant");
  if (const std::string lease = safe(event, "lease"); !lease.empty())
    who += (who.empty() ? "lease " : " lease ") + lease;
  // Columns wide enough for what is common; longer ones push the rest to the right.
  return fmt::format("{}  {:<11}  {:<15}  {}  {:<4} {} -> {}  {} bytes{}\n",
                     style.paint(Colour::dim, local_clock(safe(event, "time"))),
                     safe(event, "hook"), safe(event, "interface"),
                     style.paint(Colour::yellow, fmt::format("{:<18}", safe(event, "reason"))),
                     safe(event, "protocol"), safe(event, "source"), safe(event, "destination"),
                     number_of(event, "length"), who.empty() ? "" : "  " + who);
}

std::string render_watch(const Value& item, const Style& style) {
  const std::string type = text_of(item, "type");
  std::string out;
  if (type == "event") {
    out = fmt::format("{}  {}", style.paint(Colour::dim, local_clock(safe(item, "time"))),
                      style.paint(Colour::bold, fmt::format("{:<22}", safe(item, "event"))));
    for (const char* key : {"lease", "tenant"})
      if (const std::string name = safe(item, key); !name.empty()) out += "  " + name;
    return out + event_details(item) + "\n";
  }
  if (type == "asked") {
    const Value& args = part_of(item, "args");
    const auto all_or = [&](std::string_view key) {
      const Value::Array& some = list_of(args, key);
      return some.empty() ? "all" : joined(some, ", ", some.size());
    };
    const Value& from = part_of(args, "from");
    return fmt::format(
        "signed by {}, epoch {}, for {}, from {} on: kinds {}, tenants {}{}, challenge {}\n",
        safe(item, "node"), number_of(item, "epoch"), safe(item, "for"),
        local_time(safe(item, "issued")), all_or("kinds"), all_or("tenants"),
        from.is_null()
            ? ""
            : fmt::format(", behind cursor {}:{}", safe(from, "instance"), number_of(from, "seq")),
        safe(item, "challenge"));
  }
  if (type == "snapshot") {
    out = fmt::format("node {}, epoch {}, policy generation {}, {} of at most {}\n",
                      node_state_line(part_of(item, "state"), style), number_of(item, "epoch"),
                      number_of(item, "generation"),
                      count_of(number_of(item, "leases"), "lease", "leases"),
                      human_count(number_of(item, "leases_max")));
    for (const Value& dark : list_of(item, "dark")) out += dark_line(dark, style) + "\n";
    return out;
  }
  for (const Value& tenant : list_of(item, "tenants")) {
    const std::string state = safe(tenant, "state");
    out += fmt::format("tenant {}  {}  {} of {} leases\n", safe(tenant, "name"),
                       style.paint(colour_of_state(state), state),
                       human_count(number_of(tenant, "leases")),
                       human_count(number_of(tenant, "leases_max")));
  }
  for (const Value& each : list_of(item, "endpoints")) {
    const std::string listen = safe(each, "listen");
    out += fmt::format("endpoint {}  {}  {}{}  {} of {} free", safe(each, "tenant"),
                       safe(each, "endpoint"), safe(each, "protocol"),
                       listen.empty() ? "" : " " + listen, human_count(number_of(each, "free")),
                       human_count(number_of(each, "members")));
    for (const char* state : {"draining", "fenced"})
      if (const uint64_t count = number_of(each, state); count != 0)
        out +=
            fmt::format(", {} {}", human_count(count), style.paint(colour_of_state(state), state));
    out += "\n";
  }
  for (const Value& lease : list_of(item, "leases")) {
    const std::string state = safe(lease, "state");
    out += fmt::format(
        "lease {}  {}  {}  {}  {}  expires {}\n", safe(lease, "id"), safe(lease, "tenant"),
        joined(list_of(lease, "resources"), ", ", resources_shown), safe(lease, "holder"),
        style.paint(colour_of_state(state), state), expires_in(lease));
  }
  if (type == "snapshot_end" || type == "resumed") {
    const Value& cursor = part_of(item, "cursor");
    out += style.paint(Colour::dim,
                       fmt::format("{}; cursor {}:{}",
                                   type == "resumed" ? "going on" : "what happens from here on",
                                   safe(cursor, "instance"), number_of(cursor, "seq"))) +
           "\n";
  }
  return out;  // a heartbeat is nothing to read
}

std::string render_node_state(const Value& reply, const Style& style) {
  const std::string state = safe(reply, "state");
  std::string out = fmt::format("node {}: {}\n", style.paint(colour_of_state(state), state),
                                meaning_of_node_state(state));
  const uint64_t ended = number_of(reply, "leases_ended");
  const uint64_t left = number_of(reply, "leases");
  if (ended != 0) out += fmt::format("{} ended\n", count_of(ended, "lease", "leases"));
  if (state == "draining")
    out += fmt::format("{} left\n", count_of(left, "lease is", "leases are"));
  return out;
}

std::string render_flows(const Value& reply, const Style& style) {
  const Value::Array& flows = list_of(reply, "flows");
  if (flows.empty())
    return "No flows: no tenant has begun one. A tenant may under a lease with --egress PORT.\n";
  Table table(
      {{"TENANT"}, {"PROTOCOL"}, {"LOCAL"}, {"REMOTE"}, {"INTERFACE"}, {"STATE"}, {"LEASE"}});
  for (const Value& flow : flows) {
    const std::string state = text_of(flow, "state");
    table.add({text_of(flow, "tenant"), text_of(flow, "protocol"), text_of(flow, "local"),
               text_of(flow, "remote"), text_of(flow, "interface"),
               Cell(state, colour_of_state(state)), text_of(flow, "lease")});
  }
  std::string out = table.render(style);
  if (truth_of(reply, "truncated")) {
    out += style.paint(Colour::dim,
                       fmt::format("The first {}; there may be more: narrow it with --tenant.",
                                   human_count(flows.size()))) +
           "\n";
  }
  return out;
}

std::string render_explain(const Value& reply, std::string_view packet, const Style& style) {
  const Value::Array& steps = list_of(reply, "steps");
  std::string out = printable(packet) + "\n";
  if (!steps.empty()) out += "\n";
  size_t widest = 0;
  for (const Value& step : steps) {
    widest = std::max(
        widest, display_width(safe(step, "hook")) + 1 + display_width(safe(step, "interface")));
  }
  size_t count = 0;
  for (const Value& step : steps) {
    const std::string where = safe(step, "hook") + " " + safe(step, "interface");
    const std::string verdict = safe(step, "verdict");
    out += fmt::format(
        "{}. {}{}  {}  {}: {}\n", ++count, where, std::string(widest - display_width(where), ' '),
        style.paint(colour_of_verdict(verdict), verdict), safe(step, "reason"), safe(step, "text"));
    std::string details = who_decided(step);
    if (!details.empty()) details += ", ";
    details += fmt::format("policy bank {}", number_of(step, "bank"));
    out += "   " + style.paint(Colour::dim, details) + "\n";
  }
  const std::string verdict = text_of(reply, "verdict");
  std::string summary;
  if (steps.empty()) {
    summary = fmt::format("{}: it meets no hook of ours", verdict);
  } else {
    const Value& last = steps.back();
    const std::string who = who_decided(last);
    summary = verdict == "pass"
                  ? fmt::format("pass: {}", safe(last, "text"))
                  : fmt::format("drop {}: {}", hook_words(safe(last, "hook")), safe(last, "text"));
    if (!who.empty()) summary += fmt::format(" ({})", who);
  }
  return out + "\n" + style.paint(colour_of_verdict(verdict), summary) + "\n";
}

}  // namespace holdfast::cli
