// token issue: words, or a file of them, to requests for an Issuer.
#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/cli/bulk.hpp"
#include "userspace/cli/commands.hpp"
#include "userspace/cli/human.hpp"
#include "userspace/token/fields.hpp"
#include "userspace/token/issuer.hpp"
#include "userspace/token/signers.hpp"

namespace holdfast::cli {
namespace {

using cbor::Value;
using token::Kind;
using token::TokenRequest;

constexpr size_t requests_bytes_max = size_t{16} << 20;

// A request before its words mean anything: from options, or from an entry of a file.
struct Words {
  std::string peer, holder, ttl, lease, generation;
  TokenRequest rest;
};

Result<uint64_t> whole_seconds(std::string_view option, const std::string& text) {
  Result<uint64_t> ns = parse_duration(text);
  if (!ns) return pass_on(ns, option);
  if (*ns == 0 || *ns % ns_per_s != 0 || *ns > token::life_max_s * ns_per_s)
    return usage(
        fmt::format("{}: {} is not 1 to {} whole seconds", option, text, token::life_max_s),
        "write it like 60s or 5m");
  return *ns / ns_per_s;
}

Result<token::LeaseAt> lease_of(const Words& words) {
  token::LeaseAt lease;
  bool good = words.lease.size() == 2 * lease.id.size();
  for (size_t i = 0; good && i < lease.id.size(); ++i) {
    const char* at = words.lease.data() + 2 * i;
    good = std::from_chars(at, at + 2, lease.id[i], 16).ptr == at + 2;
  }
  if (!good)
    return usage("the lease is not 32 hexadecimal digits", "as holdfast lease ls --json shows it");
  const char* end = words.generation.data() + words.generation.size();
  if (words.generation.empty() ||
      std::from_chars(words.generation.data(), end, lease.generation).ptr != end)
    return usage("the lease's generation is not a number", "as holdfast lease show shows it");
  return lease;
}

Result<TokenRequest> request_of(Words words, Kind kind, const std::string& default_ttl) {
  TokenRequest request = std::move(words.rest);
  if (!words.peer.empty()) {
    if (const Result<Prefix> peer = parse_prefix(words.peer); !peer)
      return usage("the peer: " + peer.error().message, peer.error().next_step);
    request.peer = std::move(words.peer);
  }
  if (!words.holder.empty()) {
    Result<std::string> holder = parse_holder(words.holder);
    if (!holder) return pass_on(holder, "the holder");
    request.holder = std::move(*holder);
  }
  if (kind != Kind::use) {
    const Result<uint64_t> ttl_s =
        whole_seconds("--ttl", words.ttl.empty() ? default_ttl : words.ttl);
    if (!ttl_s) return std::unexpected(ttl_s.error());
    request.ttl_s = *ttl_s;
  }
  if (!words.lease.empty() || !words.generation.empty()) {
    const Result<token::LeaseAt> lease = lease_of(words);
    if (!lease) return std::unexpected(lease.error());
    request.lease = *lease;
  }
  return request;
}

class RequestReader : token::FileReader {
 public:
  RequestReader(const Document& document, std::string_view file)
      : FileReader(document, file, "requests_syntax") {}

  Result<std::vector<Words>> read() const {
    const Node& root = document().root();
    if (root.kind != NodeKind::list)
      return refuse(root, "a list is expected here", "write [{\"tenant\": ...}, ...]");
    std::vector<Words> all;
    for (const Node& each : document().children(root)) {
      Result<Words> words = read_one(each);
      if (!words) return pass_on(words);
      all.push_back(std::move(*words));
    }
    return all;
  }

 private:
  Result<Words> read_one(const Node& node) const {
    const Result<Fields> found = fields(node,
                                        {"tenant", "endpoints", "egress", "operations", "peer",
                                         "holder", "holder_key", "ttl", "lease", "generation"},
                                        {"tenant"});
    if (!found) return std::unexpected(found.error());
    Words words;
    TokenRequest& rest = words.rest;
    for (const auto& [name, where] :
         {std::pair("tenant", &rest.tenant), std::pair("peer", &words.peer),
          std::pair("holder", &words.holder), std::pair("ttl", &words.ttl),
          std::pair("lease", &words.lease), std::pair("generation", &words.generation)}) {
      if (!found->contains(name)) continue;
      Result<std::string> value = text(*found->at(name), name);
      if (!value) return pass_on(value);
      *where = std::move(*value);
    }
    for (const auto& [name, where] :
         {std::pair("endpoints", &rest.endpoints), std::pair("egress", &rest.egress),
          std::pair("operations", &rest.operations)}) {
      if (!found->contains(name)) continue;
      Result<std::vector<std::string>> value = texts(*found->at(name), name);
      if (!value) return pass_on(value);
      *where = std::move(*value);
    }
    if (found->contains("holder_key")) {
      const Result<token::PublicKey> key = public_key(*found->at("holder_key"));
      if (!key) return std::unexpected(key.error());
      rest.holder_key = *key;
    }
    return words;
  }
};

Result<std::vector<Words>> requests_of(const TokenIssueWords& given) {
  if (given.from.empty()) {
    if (given.tenant.empty())
      return usage("token issue: for which tenant?", "name it, or a file of tokens with --from");
    Words words;
    words.peer = given.peer;
    words.holder = given.holder;
    words.lease = given.lease;
    words.generation = given.generation;
    words.rest.tenant = given.tenant;
    words.rest.endpoints = given.endpoints;
    words.rest.egress = given.egress;
    words.rest.operations = given.operations;
    return std::vector{std::move(words)};
  }
  if (!given.tenant.empty() || !given.endpoints.empty() || !given.egress.empty() ||
      !given.operations.empty() || !given.peer.empty() || !given.holder.empty() ||
      !given.lease.empty())
    return usage("--from takes its tokens from the file, and the command line names one too",
                 "leave out the tenant and what it may use; --ttl and --life may stay");
  const Result<std::string> text = read_file(given.from, requests_bytes_max);
  if (!text) return std::unexpected(text.error());
  const std::string name = shown_name(given.from);
  const Result<Document> document = read_document(*text, name, requests_bytes_max);
  if (!document) return std::unexpected(document.error());
  return RequestReader(*document, name).read();
}

// The node that runs here says who it is.
Status this_node(Session& session, token::Batch& batch) {
  Result<wire::Client*> daemon = session.daemon();
  if (!daemon) return pass_on(daemon, "asking for the node's name, since there is no --node");
  const Result<std::string_view> node = (*daemon)->hello().get_text("node");
  const Result<uint64_t> epoch = (*daemon)->hello().get_u64("epoch");
  if (!node) return std::unexpected(node.error());
  if (!epoch) return std::unexpected(epoch.error());
  batch.node = std::string(*node);
  batch.epoch = *epoch;
  return {};
}

Result<token::Batch> batch_of(Session& session, const TokenIssueWords& words) {
  constexpr std::array kinds{Kind::grant, Kind::renew, Kind::use};
  const auto* kind =
      std::ranges::find(kinds, words.kind, [](Kind each) { return token::name_of(each); });
  if (kind == kinds.end())
    return usage(fmt::format("--kind: there is no {} token", printable(words.kind)),
                 "grant, renew or use");
  const Result<uint64_t> life_s = whole_seconds("--life", words.life);
  if (!life_s) return std::unexpected(life_s.error());
  if (words.node.empty() != (words.epoch == 0))
    return usage("a node has both a name and an epoch", "give both --node and --epoch, or neither");
  token::Batch batch{.kind = *kind, .node = words.node, .epoch = words.epoch, .life_s = *life_s};
  if (words.node.empty())
    if (Status ok = this_node(session, batch); !ok) return pass_on(ok);
  return batch;
}

Result<std::optional<token::PublicKey>> read_public_key(const std::string& path) {
  if (path.empty()) return std::nullopt;
  const Result<std::string> pem = read_file(path, requests_bytes_max);
  if (!pem) return std::unexpected(pem.error());
  Result<token::PublicKey> key = token::parse_public_key(*pem);
  if (!key) return pass_on(key, path);
  return *key;
}

}  // namespace

Outcome run_token_issue(Session& session, const TokenIssueWords& words) {
  const Result<token::Batch> batch = batch_of(session, words);
  if (!batch) return std::unexpected(batch.error());
  Result<std::vector<Words>> all = requests_of(words);
  if (!all) return pass_on(all);
  Result<std::unique_ptr<token::Signer>> key = token::open_signer(words.key);
  if (!key) return pass_on(key);
  const Result<std::optional<token::PublicKey>> holder_key = read_public_key(words.holder_key);
  if (!holder_key) return std::unexpected(holder_key.error());

  std::vector<TokenRequest> requests;
  for (Words& each : *all) {
    Result<TokenRequest> request = request_of(std::move(each), batch->kind, words.ttl);
    if (!request) return pass_on(request, fmt::format("token {}", requests.size() + 1));
    if (!request->holder_key) request->holder_key = *holder_key;
    requests.push_back(std::move(*request));
  }
  const token::Issuer issuer(std::move(*key), words.issuer);
  const Result<std::vector<token::IssuedToken>> tokens = issuer.issue(*batch, requests);
  if (!tokens) return std::unexpected(tokens.error());
  for (const token::IssuedToken& each : *tokens) {
    const std::string text = token::to_text(each.bytes);
    if (session.json()) {
      session.print_json(Value::map({{"token", text},
                                     {"id", hex(each.claims.id)},
                                     {"tenant", each.claims.tenant},
                                     {"expires", rfc3339_utc(each.claims.expires * ns_per_s)}}));
    } else {
      session.print(text + "\n");
    }
  }
  return ExitCode::done;
}

}  // namespace holdfast::cli
