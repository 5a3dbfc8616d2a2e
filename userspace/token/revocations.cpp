#include "userspace/token/revocations.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "policy/decide.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/token/bundle.hpp"
#include "userspace/token/verify.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

using What = Revocation::Kind;

constexpr size_t name_bytes_max = 256;
constexpr size_t file_bytes_max = size_t{64} << 20;
constexpr std::array<std::pair<std::string_view, What>, 6> kinds{{
    {"key", What::key},
    {"head", What::head},
    {"token", What::token},
    {"holder", What::holder},
    {"issuer", What::issuer},
    {"retire", What::retire},
}};

size_t room_for(What kind) {
  const bool is_wide = kind == What::key || kind == What::issuer || kind == What::retire;
  return is_wide ? revocations_max : revocations_max - revocations_kept_for_keys;
}

bool is_by_digest(What kind) {
  return kind != What::holder && kind != What::issuer;
}

bool says_the_same(const Revocation& a, const Revocation& b) {
  return a.kind == b.kind && a.digest == b.digest && a.name == b.name && a.tenant == b.tenant;
}

std::unexpected<Error> damaged() {
  return fail(ErrorKind::invalid, "revocations_damaged", "the list of revocations is damaged");
}

}  // namespace

std::optional<uint64_t> Revocation::lapses_s() const {
  switch (kind) {
    case What::head:
    case What::token: return since_s + life_max_s + clock_skew_s;
    case What::issuer: {
      // Bundles live longest of what an issuer signs; they are of no tenant.
      const uint64_t longest_s = (tenant.empty() ? bundle_life_max_s : life_max_s) + clock_skew_s;
      return std::min(issued_before_s, UINT64_MAX - longest_s) + longest_s;
    }
    default: return std::nullopt;
  }
}

Result<Revocation> parse_revocation(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view name = colon == text.npos ? "" : text.substr(colon + 1);
  for (const auto& [word, each] : kinds) {
    if (kind != word || name.empty() || name.size() > name_bytes_max) continue;
    Revocation revocation;
    revocation.kind = each;
    if (each == What::holder)
      if (const Result<Holder> holder = parse_holder_name(name); !holder)
        return std::unexpected(holder.error());
    if (!is_by_digest(each)) {
      revocation.name = name;
      return revocation;
    }
    if (const std::optional<Digest> digest = from_hex<sizeof(Digest)>(name)) {
      revocation.digest = *digest;
      return revocation;
    }
  }
  return fail(ErrorKind::invalid, "bad_revocation",
              fmt::format("\"{}\" names nothing that could be revoked", text),
              "key:, head: or token: and 64 lower hex digits, as `holdfast token inspect` shows "
              "them; holder:uid:N and the like; issuer:NAME; retire: and a key's digits");
}

std::string text_of(const Revocation& revocation) {
  const auto* word =
      std::ranges::find(kinds, revocation.kind, &std::pair<std::string_view, What>::second);
  return is_by_digest(revocation.kind)
             ? fmt::format("{}:{:02x}", word->first, fmt::join(revocation.digest, ""))
             : fmt::format("{}:{}", word->first, revocation.name);
}

size_t Revocations::Hash::operator()(const Digest& digest) const {
  size_t word = 0;
  std::memcpy(&word, digest.data(), sizeof(word));
  return word;
}

size_t Revocations::drop_lapsed(uint64_t now_s) {
  const size_t dropped = std::erase_if(all_, [&](const Revocation& each) {
    const std::optional<uint64_t> lapses = each.lapses_s();
    return lapses && *lapses <= now_s;
  });
  if (dropped != 0) index();
  return dropped;
}

Status Revocations::add(Revocation revocation) {
  const auto same = std::ranges::find_if(
      all_, [&](const Revocation& each) { return says_the_same(each, revocation); });
  if (same != all_.end()) {
    const auto [sooner, later] = std::minmax({revocation.issued_before_s, same->issued_before_s});
    revocation.issued_before_s = revocation.kind == What::retire ? sooner : later;
    *same = std::move(revocation);
  } else if (all_.size() >= room_for(revocation.kind)) {
    return fail(ErrorKind::exhausted, "revocations_max",
                fmt::format("{} revocations stand already", all_.size()),
                "lift what is not needed (holdfast trust show), or revoke the key instead");
  } else {
    all_.push_back(std::move(revocation));
  }
  index();
  return {};
}

Status Revocations::lift(const Revocation& revocation) {
  const size_t lifted =
      std::erase_if(all_, [&](const Revocation& each) { return says_the_same(each, revocation); });
  if (lifted == 0)
    return fail(ErrorKind::not_found, "not_revoked",
                text_of(revocation) +
                    (revocation.kind == What::retire ? " stands nowhere" : " is not revoked"),
                "holdfast trust show lists what is");
  index();
  return {};
}

void Revocations::index() {
  digests_.clear();
  holders_.clear();
  issuers_.clear();
  retiring_.clear();
  heads_ = static_cast<size_t>(std::ranges::count(all_, What::head, &Revocation::kind));
  for (const Revocation& each : all_)
    if (is_by_digest(each.kind))
      digests_[each.digest] |= 1U << static_cast<unsigned>(each.kind);
    else if (each.kind == What::holder)
      holders_.insert(each.name);
    else
      issuers_.push_back(each);
  std::ranges::copy_if(all_, std::back_inserter(retiring_),
                       [](const Revocation& each) { return each.kind == What::retire; });
  cgroups_ = static_cast<size_t>(std::ranges::count_if(
      holders_, [](const std::string& name) { return name.starts_with("cgroup:"); }));
}

bool Revocations::has(Revocation::Kind kind, const Digest& digest) const {
  if (digests_.empty()) return false;
  const auto found = digests_.find(digest);
  return found != digests_.end() && (found->second >> static_cast<unsigned>(kind) & 1) != 0;
}

uint64_t Revocations::issued_before_s(std::string_view issuer, std::string_view tenant) const {
  uint64_t latest = 0;
  for (const Revocation& each : issuers_)
    if (each.name == issuer && (each.tenant.empty() || each.tenant == tenant))
      latest = std::max(latest, each.issued_before_s);
  return latest;
}

std::optional<uint64_t> Revocations::retires_s(const Digest& thumbprint) const {
  const auto found = std::ranges::find(retiring_, thumbprint, &Revocation::digest);
  return found == retiring_.end() ? std::nullopt : std::optional(found->issued_before_s);
}

// [digest of the list, the list: bstr .cbor [* [what: tstr, tenant: tstr, issued_before, since]]]
std::vector<uint8_t> Revocations::encode() const {
  std::vector<uint8_t> list;
  cbor::Writer out(list);
  out.array(all_.size());
  for (const Revocation& each : all_)
    out.array(4)
        .text(text_of(each))
        .text(each.tenant)
        .u64(each.issued_before_s)
        .u64(each.since_s)
        .end();
  out.end();
  std::vector<uint8_t> file;
  cbor::Writer(file).array(2).bytes(sha256(list)).bytes(list).end();
  return file;
}

Result<Revocations> Revocations::decode(std::span<const uint8_t> bytes) {
  const cbor::Limits limits{.depth_max = 2, .bytes_max = file_bytes_max};
  cbor::Reader file(bytes, limits);
  file.array_of(2);
  const std::span<const uint8_t> sum = file.bytes();
  const std::span<const uint8_t> list = file.bytes();
  file.end();
  if (!file.finish() || !std::ranges::equal(sum, sha256(list))) return damaged();
  Revocations revocations;
  cbor::Reader in(list, limits);
  for (in.array(); in.more();) {
    in.array_of(4);
    Result<Revocation> each = parse_revocation(in.text());
    if (!each) return damaged();
    each->tenant = in.text();
    each->issued_before_s = in.u64();
    each->since_s = in.u64();
    in.end();
    revocations.all_.push_back(std::move(*each));
  }
  in.end();
  if (!in.finish() || revocations.all_.size() > revocations_max) return damaged();
  revocations.index();
  return revocations;
}

}  // namespace holdfast::token
