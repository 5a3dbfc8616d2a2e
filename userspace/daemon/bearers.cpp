#include "userspace/daemon/bearers.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <utility>

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <sys/random.h>

#include "userspace/base/hex.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/authority.hpp"
#include "userspace/daemon/state_file.hpp"
#include "userspace/token/token.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "bearers";
constexpr std::string_view title = "holdfast bearers 1";
constexpr size_t secret_bytes = 32;
constexpr size_t name_bytes_max = 64;
constexpr size_t environment_bytes_max = 16;
constexpr size_t tenant_bytes_max = 256;

token::Digest digest_of(std::string_view text) {
  return token::sha256({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

bool is_lower(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool is_environment(std::string_view text) {
  return !text.empty() && text.size() <= environment_bytes_max &&
         std::ranges::all_of(text, is_lower);
}

// What stands in the file as one word.
bool is_word(std::string_view text, size_t bytes_max, std::string_view also) {
  return !text.empty() && text.size() <= bytes_max && std::ranges::all_of(text, [&](char c) {
    return is_lower(c) || (c >= 'A' && c <= 'Z') || also.contains(c);
  });
}

std::string line_of(const Bearer& bearer) {
  return fmt::format(
      "bearer {} environment {} scope {} tenants {} created {} expires {} by {} key {} state {} "
      "sha256 {}\n",
      bearer.name, bearer.environment, fmt::join(bearer.scope, ","), fmt::join(bearer.tenants, ","),
      bearer.created_wall_ms, bearer.expires_wall_ms, bearer.by_uid,
      bearer.by_key ? hex(*bearer.by_key) : "-", bearer.revoked ? "revoked" : "live",
      hex(bearer.sha256));
}

std::string render(const std::vector<Bearer>& bearers) {
  std::string text = fmt::format("{}\n", title);
  for (const Bearer& each : bearers) text += line_of(each);
  return text + fmt::format("sum {}\n", hex(digest_of(text)));
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> out;
  for (;;) {
    const size_t end = text.find(at);
    out.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

std::vector<std::string> names(std::string_view text) {
  std::vector<std::string> out;
  for (const std::string_view each : split(text, ',')) out.emplace_back(each);
  return out;
}

// What render() wrote, to the byte.
std::optional<std::vector<Bearer>> parse(std::string_view text) {
  constexpr size_t words_of_a_line = 20;  // a name and a value, ten times
  std::vector<Bearer> bearers;
  for (const std::string_view line : split(text, '\n')) {
    if (!line.starts_with("bearer ")) continue;
    const std::vector<std::string_view> words = split(line, ' ');
    if (words.size() != words_of_a_line) return std::nullopt;
    const auto number = [](std::string_view digits) {
      uint64_t out = 0;
      std::from_chars(digits.data(), digits.data() + digits.size(), out);
      return out;
    };
    Bearer bearer{.name = std::string(words[1]),
                  .environment = std::string(words[3]),
                  .scope = names(words[5]),
                  .tenants = names(words[7]),
                  .created_wall_ms = number(words[9]),
                  .expires_wall_ms = number(words[11]),
                  .by_uid = static_cast<uint32_t>(number(words[13])),
                  .revoked = words[17] == "revoked",
                  .sha256 = from_hex<sizeof(token::Digest)>(words[19]).value_or(token::Digest{})};
    if (words[15] != "-") bearer.by_key = from_hex<sizeof(token::Digest)>(words[15]);
    bearers.push_back(std::move(bearer));
  }
  if (render(bearers) != text) return std::nullopt;
  return bearers;
}

Status check(const Bearer& wanted, uint64_t now_wall_ms) {
  if (!is_word(wanted.name, name_bytes_max, "._-"))
    return fail(
        ErrorKind::invalid, "bearer_name",
        fmt::format("a bearer token has a name of 1 to {} letters, digits, '.', '_' and '-'",
                    name_bytes_max),
        "such as: holdfast bearer create --name grafana ...");
  if (!is_environment(wanted.environment))
    return fail(ErrorKind::invalid, "bearer_environment",
                fmt::format("an environment is 1 to {} lower-case letters and digits",
                            environment_bytes_max),
                "such as: --env prod");
  if (wanted.scope.empty())
    return fail(ErrorKind::invalid, "bearer_scope", "the token would be for nothing",
                "name reading verbs: --scope status,lease.list");
  for (size_t i = 0; i < wanted.scope.size(); ++i) {
    const std::string& verb = wanted.scope[i];
    const auto before = wanted.scope.begin() + static_cast<ptrdiff_t>(i);
    if (!is_reading(verb) || std::find(wanted.scope.begin(), before, verb) != before)
      return fail(
          ErrorKind::invalid, "bearer_scope",
          fmt::format("a bearer token is for reading verbs, each named once, and not for {}", verb),
          fmt::format("reading are: {}", fmt::join(reading_verbs(), ", ")));
  }
  if (wanted.tenants.empty() || wanted.tenants.size() > bearer_tenants_max)
    return fail(
        ErrorKind::invalid, "bearer_tenants",
        fmt::format("a bearer token is for 1 to {} tenants, or for all", bearer_tenants_max),
        "leave --tenant out for all, or make a second token");
  const bool all = wanted.tenants == std::vector<std::string>{"*"};
  for (const std::string& tenant : wanted.tenants)
    if (!all && !is_word(tenant, tenant_bytes_max, "/._-"))
      return fail(ErrorKind::invalid, "bearer_tenants", "no tenant has such a name",
                  "holdfast tenant ls shows them");
  const uint64_t life_ms = wanted.expires_wall_ms - now_wall_ms;
  if (wanted.expires_wall_ms <= now_wall_ms || life_ms < bearer_life_min_ns / ns_per_ms ||
      life_ms > bearer_life_max_ns / ns_per_ms)
    return fail(ErrorKind::invalid, "bearer_life",
                fmt::format("a bearer token lives for {} to {}", human_duration(bearer_life_min_ns),
                            human_duration(bearer_life_max_ns)),
                "such as: --ttl 24h");
  return {};
}

Status good(const Bearer& bearer, uint64_t now_wall_ms) {
  if (bearer.revoked)
    return fail(ErrorKind::denied, "bearer_revoked",
                fmt::format("the bearer token {} is revoked", bearer.name),
                "have an operator make another: holdfast bearer create");
  if (bearer.is_over(now_wall_ms))
    return fail(ErrorKind::denied, "bearer_expired",
                fmt::format("the bearer token {} expired at {}", bearer.name,
                            rfc3339_utc(bearer.expires_wall_ms * ns_per_ms)),
                "have an operator make another: holdfast bearer create");
  return {};
}

// Every one is looked at, whichever it is.
const Bearer* find(const std::vector<Bearer>& bearers, const token::Digest& sha256) {
  const Bearer* found = nullptr;
  for (const Bearer& each : bearers)
    if (CRYPTO_memcmp(each.sha256.data(), sha256.data(), sha256.size()) == 0) found = &each;
  return found;
}

}  // namespace

Result<Bearers> Bearers::open(std::string state_dir) {
  Bearers bearers(std::move(state_dir));
  const std::string path = bearers.state_dir_ + "/" + std::string(file_name);
  const Result<std::string> text = read_state_file(path);
  if (!text && text.error().sys == ENOENT) return bearers;
  if (!text) return std::unexpected(text.error());
  if (auto read = parse(*text)) {
    bearers.bearers_ = std::move(*read);
  } else {
    log::error(
        "bearers_damaged",
        {{"file", path},
         {"effect", "no bearer token is good"},
         {"next_step", "find out who wrote it, then make new ones: holdfast bearer create"}});
  }
  return bearers;
}

Status Bearers::write(const std::vector<Bearer>& bearers) const {
  return write_state_file(state_dir_, file_name, render(bearers));
}

Result<std::string> Bearers::create(Bearer wanted, uint64_t now_wall_ms) {
  if (Status ok = check(wanted, now_wall_ms); !ok) return pass_on(ok);
  std::vector<Bearer> next = bearers_;
  std::erase_if(next, [&](const Bearer& each) {
    return each.is_over(now_wall_ms) &&
           (each.name == wanted.name || bearers_.size() >= bearers_max);
  });
  if (std::ranges::find(next, wanted.name, &Bearer::name) != next.end())
    return fail(ErrorKind::conflict, "bearer_exists",
                fmt::format("there is a bearer token {} already", wanted.name),
                fmt::format("another name, or first: holdfast bearer revoke {}", wanted.name));
  if (next.size() >= bearers_max)
    return fail(ErrorKind::exhausted, "bearers_max",
                fmt::format("there are {} bearer tokens already", next.size()),
                "revoke what is not needed any more: holdfast bearer ls");
  std::array<uint8_t, secret_bytes> secret{};
  if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size()))
    return fail_sys(errno, "random", "asking the kernel for random bytes");
  std::string text = fmt::format("hf_{}_{}", wanted.environment, token::to_text(secret));
  OPENSSL_cleanse(secret.data(), secret.size());
  wanted.created_wall_ms = now_wall_ms;
  wanted.revoked = false;
  wanted.sha256 = digest_of(text);
  next.push_back(std::move(wanted));
  if (Status ok = write(next); !ok) {
    // It may have come to stand there all the same; nobody was told the token.
    return pass_on(ok, "no bearer token was made");
  }
  bearers_ = std::move(next);
  durable_ = true;
  return text;
}

Result<Bearer> Bearers::revoke(std::string_view name) {
  const auto found = std::ranges::find(bearers_, name, &Bearer::name);
  if (found == bearers_.end())
    return fail(ErrorKind::not_found, "no_such_bearer",
                fmt::format("there is no bearer token {}", name), "holdfast bearer ls shows them");
  if (found->revoked && durable_) return *found;
  found->revoked = true;
  durable_ = false;
  if (Status ok = write(bearers_); !ok)
    return pass_on(ok, fmt::format("{} is revoked, but would not be after a restart", name));
  durable_ = true;
  return *found;
}

Result<Bearer> Bearers::judge(std::string_view token, uint64_t now_wall_ms) const {
  const Bearer* found = find(bearers_, digest_of(token));
  if (found == nullptr)
    return fail(ErrorKind::denied, "unknown_bearer", "that is no bearer token of this node",
                "see whether the file has the whole line that `holdfast bearer create` printed");
  if (Status ok = good(*found, now_wall_ms); !ok) return pass_on(ok);
  return *found;
}

Status Bearers::judge_again(const token::Digest& sha256, uint64_t now_wall_ms) const {
  const Bearer* found = find(bearers_, sha256);
  if (found == nullptr)
    return fail(ErrorKind::denied, "unknown_bearer", "the bearer token is not there any more",
                "have an operator make another: holdfast bearer create");
  return good(*found, now_wall_ms);
}

}  // namespace holdfast
