// node identity|report: who this node is and with what it signs; what it says of itself, and
// whether it was it that said so.
#include <algorithm>
#include <span>

#include <fmt/format.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/cli/render.hpp"
#include "userspace/cli/statements.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;

constexpr size_t report_bytes_max = size_t{2} << 20;  // as it comes from a node, at most half

// Of 64 hexadecimal digits; none, if there are none. Errors: usage.
Result<std::optional<token::Challenge>> read_challenge(const std::string& digits) {
  if (digits.empty()) return std::nullopt;
  const auto challenge = from_hex<sizeof(token::Challenge)>(digits);
  if (!challenge)
    return usage("--challenge: 64 hexadecimal digits, in lower case",
                 "draw one: openssl rand -hex 32");
  return challenge;
}

std::string render_identity(const Value& reply, const Style& style) {
  Facts facts;
  const bool on_token = text_of(reply, "kept") == "pkcs11";
  facts.add("node", printable(text_of(reply, "node")));
  facts.add("epoch", std::to_string(number_of(reply, "epoch")));
  facts.add("key", printable(text_of(reply, "key")));
  facts.add("kept", on_token ? "on a PKCS#11 token" : "in a file of the state directory");
  facts.add("signs with", on_token ? printable(text_of(reply, "epoch_key")) : "that key");
  facts.add("certificate", part_of(reply, "certificate").is_null()
                               ? style.paint(Colour::red, "none: its own key could not sign it")
                               : "there: --out FILE keeps it");
  return facts.render(style);
}

Value report_json(const token::Statement& report, const Value& content) {
  return Value::map({{"node", report.by.node},
                     {"epoch", report.by.epoch},
                     {"epoch_key", hex(token::thumbprint(report.by.key))},
                     {"for", report.target.audience},
                     {"challenge", hex(report.target.challenge)},
                     {"issued", rfc3339_utc(report.issued_s * ns_per_s)},
                     {"report", content}});
}

// The first page of its inventory is about the node.
const Value& node_page(const Value& content) {
  static const Value none = Value::map();
  const Value::Array& pages = list_of(content, "inventory");
  return pages.empty() ? none : pages.front();
}

std::string render_report(const token::Statement& report, const Value& content,
                          std::string_view fresh, const Style& style) {
  const Value& node = node_page(content);
  const Value& status = part_of(content, "status");
  size_t tenants = 0;
  for (const Value& page : list_of(content, "inventory"))
    tenants += list_of(page, "tenants").size();
  Facts facts;
  facts.add("node", fmt::format("{}, epoch {}", printable(report.by.node), report.by.epoch));
  facts.add("for", printable(report.target.audience));
  facts.add("issued", local_time(rfc3339_utc(report.issued_s * ns_per_s)));
  facts.add("challenge", fmt::format("{} ({})", hex(report.target.challenge), fresh));
  facts.add("state", printable(text_of(part_of(node, "state"), "name")));
  facts.add("enrollment", printable(text_of(part_of(node, "enrollment"), "state")));
  const Value& policy = part_of(status, "policy");
  facts.add("policy", fmt::format("generation {}, {} ({})", number_of(policy, "generation"),
                                  count_of(tenants, "tenant", "tenants"),
                                  printable(text_of(policy, "digest"))));
  facts.add("leases", fmt::format("{} live, at most {}", number_of(node, "leases"),
                                  number_of(node, "leases_max")));
  facts.add("dark", std::to_string(list_of(node, "dark").size()));
  facts.add("unenforced", std::to_string(list_of(status, "unenforced").size()));
  facts.add("clock", printable(text_of(part_of(status, "tokens"), "clock")));
  return facts.render(style);
}

Outcome ask_for_report(Session& session, const ReportWords& words) {
  if (!words.node.empty())
    return usage("--node says whose a report has to be, for --verify",
                 "leave it out: the node that is asked signs");
  const Result<std::string> audience = audience_or_self(words.audience);
  if (!audience) return std::unexpected(audience.error());
  const Result<std::optional<token::Challenge>> given = read_challenge(words.challenge);
  if (!given) return std::unexpected(given.error());
  if (words.out.empty() && ::isatty(STDOUT_FILENO) == 1)
    return usage("a signed report is not for a terminal",
                 "holdfast node report --sign --out node.report");
  const Result<token::Challenge> challenge =
      *given ? Result<token::Challenge>(**given) : drawn_challenge();
  if (!challenge) return std::unexpected(challenge.error());
  const Result<Value> reply = session.call(
      "node.report", Value::map({{"challenge", Value::Bytes(challenge->begin(), challenge->end())},
                                 {"for", *audience}}));
  if (!reply) return std::unexpected(reply.error());
  const Result<std::span<const uint8_t>> report = reply->get_bytes("report");
  if (!report) return std::unexpected(report.error());
  if (words.out.empty()) {
    session.print({reinterpret_cast<const char*>(report->data()), report->size()});
    return ExitCode::done;
  }
  if (Status ok = write_file(words.out, *report); !ok) return pass_on(ok);
  if (session.json())
    session.print_json(
        Value::map({{"file", words.out}, {"for", *audience}, {"challenge", hex(*challenge)}}));
  else
    session.print(fmt::format("signed for {}, over the challenge {}\n", printable(*audience),
                              hex(*challenge)));
  return ExitCode::done;
}

Outcome verify_report(Session& session, const ReportWords& words) {
  if (words.node.empty())
    return usage("node report --verify: whose has it to be?",
                 "give --node, a name that you know: holdfast status on the node shows it");
  if (!words.out.empty())
    return usage("--out is for --sign", "with --json what it says is printed whole");
  const Result<std::optional<token::Challenge>> challenge = read_challenge(words.challenge);
  if (!challenge) return std::unexpected(challenge.error());
  const Result<std::string> node = read_node_name(words.node);
  if (!node) return std::unexpected(node.error());
  const Result<std::string> file = read_file(words.verify, report_bytes_max);
  if (!file) return std::unexpected(file.error());
  const std::string name = shown_name(words.verify);
  const Result<token::Statement> report =
      token::check_statement(token::Purpose::report,
                             {reinterpret_cast<const uint8_t*>(file->data()), file->size()}, *node);
  if (!report) return std::unexpected(Error(report.error()).in(name));
  if (words.epoch != 0 && words.epoch != report->by.epoch)
    return fail(ErrorKind::denied, "stale_epoch",
                fmt::format("{}: it is of epoch {}, and --epoch is {}", name, report->by.epoch,
                            words.epoch),
                "have one signed now: holdfast node report --sign");
  if (*challenge && **challenge != report->target.challenge)
    return fail(ErrorKind::denied, "wrong_challenge",
                fmt::format("{}: it answers the challenge {}", name, hex(report->target.challenge)),
                "it may be an old one: have one signed over yours");
  if (!words.audience.empty() && words.audience != report->target.audience)
    return fail(ErrorKind::denied, "wrong_audience",
                fmt::format("{}: it is for {}", name, printable(report->target.audience)),
                "have one signed for you: holdfast node report --sign --for NAME");
  const Result<Value> content = cbor::decode(
      report->content, {.bytes_max = std::max(report->content.size(), report_bytes_max)});
  if (!content) return std::unexpected(Error(content.error()).in(name));
  if (session.json())
    session.print_json(report_json(*report, *content));
  else
    session.print(render_report(*report, *content,
                                *challenge ? "yours: it is fresh" : "not checked: no --challenge",
                                session.style()));
  return ExitCode::done;
}

}  // namespace

Outcome run_node_report(Session& session, const ReportWords& words) {
  if (words.sign == !words.verify.empty())
    return usage("node report: sign one, or verify one?", "give --sign, or --verify FILE");
  if (words.sign && words.epoch != 0)
    return usage("--epoch is for --verify", "the node signs in the epoch that it is in");
  return words.sign ? ask_for_report(session, words) : verify_report(session, words);
}

Outcome run_node_identity(Session& session, const std::string& out) {
  const Result<Value> reply = session.call("node.identity", Value::map());
  if (!reply) return std::unexpected(reply.error());
  if (!out.empty()) {
    const Value::Bytes* certificate = part_of(*reply, "certificate").as_bytes();
    if (certificate == nullptr)
      return fail(ErrorKind::unavailable, "no_certificate",
                  "the node's own key could not sign for its epoch key when the epoch began",
                  "see the daemon's log; once the key is back: systemctl restart holdfastd");
    if (Status ok = write_file(out, *certificate); !ok) return pass_on(ok);
  }
  if (session.json())
    session.print_json(*reply);
  else
    session.print(render_identity(*reply, session.style()));
  return ExitCode::done;
}

}  // namespace holdfast::cli
