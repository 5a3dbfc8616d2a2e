// The anchors file: which keys may sign tokens, and for whom. README.md has its form.
#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "policy/text.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/token/fields.hpp"
#include "userspace/token/verify.hpp"

namespace holdfast::token {
namespace {

constexpr size_t anchors_bytes_max = 1U << 20;
constexpr std::array<std::pair<std::string_view, KeyState>, 4> states{{
    {"current", KeyState::current},
    {"retiring", KeyState::retiring},
    {"verify_only", KeyState::verify_only},
    {"revoked", KeyState::revoked},
}};

constexpr std::array<std::string_view, 5> known_uses{"token", "request", "bundle", "operator",
                                                     "schedule"};

class Reader : FileReader {
 public:
  Reader(const Document& document, std::string_view file)
      : FileReader(document, file, "anchors_syntax") {}

  Result<Anchors> read() {
    Anchors anchors;
    Result<Fields> top =
        fields(document().root(), {"version", "unsigned", "anchors"}, {"version", "anchors"});
    if (!top) return pass_on(top);
    const Node& version = *top->at("version");
    if (version.kind != NodeKind::scalar || document().text(version) != "1")
      return refuse(version, "the only version is 1", "write version: 1");
    if (top->contains("unsigned")) {
      const Node& unsigned_may = *top->at("unsigned");
      const std::string_view word = document().text(unsigned_may);
      if (unsigned_may.kind != NodeKind::scalar || (word != "operate" && word != "tighten"))
        return refuse(unsigned_may, "no such right of who does not sign",
                      "operate: operators may all; tighten: what widens has to be signed");
      anchors.signatures_needed = word == "tighten";
    }
    const Node& list = *top->at("anchors");
    if (list.kind != NodeKind::list)
      return refuse(list, "anchors is a list", "write - issuer: NAME");
    for (const Node& each : document().children(list)) {
      Result<Anchor> anchor = read_anchor(each);
      if (!anchor) return pass_on(anchor);
      if (anchors.find(anchor->thumbprint) != nullptr)
        return refuse(each, "that key stands here twice", "keep one of them");
      anchors.add(std::move(*anchor));
    }
    return anchors;
  }

 private:
  Result<Anchor> read_anchor(const Node& node) const {
    Result<Fields> found = fields(
        node,
        {"issuer", "key", "ssh_key", "state", "uses", "tenants", "operations", "verbs", "life"},
        {"issuer", "uses", "tenants"});
    if (!found) return pass_on(found);
    Anchor anchor;
    const Node& issuer = *found->at("issuer");
    Result<std::string> name = text(issuer, "issuer");
    if (!name) return pass_on(name);
    anchor.issuer = std::move(*name);
    if (found->contains("key") == found->contains("ssh_key"))
      return refuse(node, "an anchor has a key, or an ssh_key",
                    "write key: LINE, or ssh_key: ssh-ed25519 LINE");
    if (found->contains("key")) {
      const Result<PublicKey> key = public_key(*found->at("key"));
      if (!key) return std::unexpected(key.error());
      anchor.key = *key;
    } else {
      const Node& line = *found->at("ssh_key");
      Result<SignerKey> key = parse_ssh_public_key(document().text(line));
      if (line.kind != NodeKind::scalar || !key)
        return refuse(line, "that is no Ed25519 key of OpenSSH's",
                      "copy the line of the .pub file; ecdsa and rsa keys are not taken");
      anchor.key = key->key;
      anchor.application = std::move(key->application);
    }
    anchor.thumbprint = thumbprint(anchor.key);
    if (found->contains("state")) {
      const Node& state = *found->at("state");
      const auto* known = std::ranges::find(states, document().text(state),
                                            &std::pair<std::string_view, KeyState>::first);
      if (state.kind != NodeKind::scalar || known == states.end())
        return refuse(state, "no such state of a key", "current, retiring, verify_only or revoked");
      anchor.state = known->second;
    }
    const Node& uses = *found->at("uses");
    Result<std::vector<std::string>> names = texts(uses, "uses");
    if (!names) return pass_on(names);
    for (const std::string& use : *names)
      if (std::ranges::find(known_uses, use) == known_uses.end())
        return refuse(uses, fmt::format("a key has no use {}", quote_text(use)),
                      fmt::format("there are {}", fmt::join(known_uses, ", ")));
    const auto is_for = [&](std::string_view use) {
      return std::ranges::find(*names, use) != names->end();
    };
    anchor.for_tokens = is_for("token");
    anchor.for_requests = is_for("request");
    anchor.for_bundles = is_for("bundle");
    anchor.for_operators = is_for("operator");
    anchor.for_schedules = is_for("schedule");
    if (anchor.for_tokens && !anchor.application.empty())
      return refuse(uses, "a security key signs no tokens", "it may sign requests and bundles");
    Result<std::vector<std::string>> tenants = texts(*found->at("tenants"), "tenants");
    if (!tenants) return pass_on(tenants);
    anchor.tenants = std::move(*tenants);
    if (anchor.for_bundles && anchor.tenants != std::vector<std::string>{"*"})
      return refuse(uses, "a bundle is the policy of all tenants, and of the node itself",
                    "write tenants: [\"*\"], or leave out the use bundle");
    if (found->contains("operations")) {
      Result<std::vector<std::string>> operations = texts(*found->at("operations"), "operations");
      if (!operations) return pass_on(operations);
      anchor.operations = std::move(*operations);
    }
    if (anchor.for_requests && !found->contains("verbs"))
      return refuse(uses, "a key that signs requests has verbs that it may ask for",
                    "write verbs: [lease.grant], or [\"*\"]");
    if (found->contains("verbs")) {
      Result<std::vector<std::string>> verbs = texts(*found->at("verbs"), "verbs");
      if (!verbs) return pass_on(verbs);
      anchor.verbs = std::move(*verbs);
    }
    if (found->contains("life")) {
      const Node& life = *found->at("life");
      const Result<std::string> text = this->text(life, "life");
      if (!text) return std::unexpected(text.error());
      const Result<uint64_t> ns = parse_duration(*text);
      if (!ns || *ns == 0 || *ns % ns_per_s != 0 || *ns > life_max_s * ns_per_s)
        return refuse(life, fmt::format("{} is not 1 to {} whole seconds", *text, life_max_s),
                      "write it like 60s or 5m");
      anchor.life_max_s = *ns / ns_per_s;
    }
    return anchor;
  }
};

// The first of these names that the wider list does not have, or nullptr.
const std::string* first_beyond(const std::vector<std::string>& wide,
                                const std::vector<std::string>& narrow) {
  const auto listed = [&](std::string_view name) {
    return std::ranges::find(wide, name) != wide.end();
  };
  if (listed("*")) return nullptr;
  const auto found = std::ranges::find_if_not(narrow, listed);
  return found == narrow.end() ? nullptr : &*found;
}

}  // namespace

const char* what_goes_beyond(const Anchor& anchor, const Anchor& signer) {
  const auto covers = [](const std::vector<std::string>& wide,
                         const std::vector<std::string>& narrow) {
    return first_beyond(wide, narrow) == nullptr;
  };
  if (anchor.for_bundles || anchor.for_operators) return "uses";
  if (!covers(signer.tenants, anchor.tenants)) return "tenants";
  if (!covers(signer.operations, anchor.operations)) return "operations";
  if (!covers(signer.verbs, anchor.verbs)) return "verbs";
  if (anchor.life_max_s > signer.life_max_s) return "life";
  return nullptr;
}

std::vector<std::string> what_is_missing(const Anchor& anchor, const Anchor& in) {
  std::vector<std::string> missing;
  const auto use = [&](bool has, bool in_has, const char* name) {
    if (has && !in_has) missing.push_back(fmt::format("the use {}", name));
  };
  const auto names = [&](const std::vector<std::string>& narrow,
                         const std::vector<std::string>& wide, const char* what) {
    if (const std::string* beyond = first_beyond(wide, narrow); beyond != nullptr)
      missing.push_back(fmt::format("{} {}", what, *beyond));
  };
  if (in.issuer != anchor.issuer) missing.push_back(fmt::format("the issuer {}", anchor.issuer));
  use(anchor.for_tokens, in.for_tokens, "token");
  use(anchor.for_requests, in.for_requests, "request");
  use(anchor.for_bundles, in.for_bundles, "bundle");
  use(anchor.for_operators, in.for_operators, "operator");
  use(anchor.for_schedules, in.for_schedules, "schedule");
  names(anchor.tenants, in.tenants, "tenant");
  names(anchor.operations, in.operations, "operation");
  names(anchor.verbs, in.verbs, "verb");
  if (in.life_max_s < anchor.life_max_s)
    missing.push_back(fmt::format("a life of {}", human_duration(anchor.life_max_s * ns_per_s)));
  return missing;
}

std::string_view name_of(KeyState state) {
  return std::ranges::find(states, state, &std::pair<std::string_view, KeyState>::second)->first;
}

Result<Anchors> Anchors::parse(std::string_view text, std::string_view file) {
  Result<Document> document = read_document(text, file, anchors_bytes_max);
  if (!document) return pass_on(document);
  return Reader(*document, file).read();
}

void Anchors::add(Anchor anchor) {
  anchors_.push_back(std::move(anchor));
}

const Anchor* Anchors::find(const Digest& thumbprint) const {
  const auto found = std::ranges::find(anchors_, thumbprint, &Anchor::thumbprint);
  return found == anchors_.end() ? nullptr : &*found;
}

}  // namespace holdfast::token
