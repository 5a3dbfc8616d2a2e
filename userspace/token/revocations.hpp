// What is not to be believed any more although it is signed: a key, a head, a token, a holder, or
// all that an issuer issued before some time; and keys that are to be believed for a while only,
// since another has taken their place. A change is a new Revocations; whoever reads one may
// keep it. Pure; times are Unix seconds.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/token.hpp"

namespace holdfast::token {

constexpr size_t revocations_max = 65536;
// Of these, for keys, that retire too, and issuers alone: what ends the most can be revoked however
// many tokens and holders have been.
constexpr size_t revocations_kept_for_keys = 4096;
// How long a key that retires is believed at the most: until nothing that it signed before can
// still be good.
constexpr uint64_t retiring_max_s = life_max_s + clock_skew_s;

struct Revocation {
  enum class Kind : uint8_t { key, head, token, holder, issuer, retire };
  Kind kind = Kind::key;
  Digest digest{};     // of a key (its thumbprint), a head (head_id) or a token (its leaf)
  std::string name;    // of a holder ("uid:1000") or an issuer
  std::string tenant;  // of an issuer: only this one's tokens; empty: all
  uint64_t issued_before_s = 0;  // of an issuer; of a key that retires, its end
  uint64_t since_s = 0;

  // When nothing that is meant can still be good; nothing for what stands until it is lifted.
  std::optional<uint64_t> lapses_s() const;
};

// "key:THUMBPRINT", "head:DIGEST", "token:DIGEST", "holder:HOLDER", "issuer:NAME",
// "retire:THUMBPRINT". Errors: invalid / bad_revocation.
Result<Revocation> parse_revocation(std::string_view text);
std::string text_of(const Revocation& revocation);

class Revocations {
 public:
  bool empty() const { return all_.empty(); }
  const std::vector<Revocation>& all() const { return all_; }

  // Replaces what says the same; an issuer's time does not go back, nor that of a key that retires
  // forward. Errors: exhausted / revocations_max.
  Status add(Revocation revocation);
  // Those that lapsed; how many there were.
  size_t drop_lapsed(uint64_t now_s);
  // Errors: not_found / not_revoked.
  Status lift(const Revocation& revocation);

  bool has_key(const Digest& thumbprint) const { return has(Revocation::Kind::key, thumbprint); }
  bool has_heads() const { return heads_ != 0; }
  bool has_head(const Digest& head) const { return has(Revocation::Kind::head, head); }
  bool has_token(const Digest& leaf) const { return has(Revocation::Kind::token, leaf); }
  bool has_holder(std::string_view name) const {
    return !holders_.empty() && holders_.contains(name);
  }
  bool has_cgroups() const { return cgroups_ != 0; }  // among the holders
  // Tokens of this issuer for this tenant count only if issued at this time or later.
  uint64_t issued_before_s(std::string_view issuer, std::string_view tenant) const;
  // When a key that retires is believed no more; nothing for others.
  std::optional<uint64_t> retires_s(const Digest& thumbprint) const;
  const std::vector<Revocation>& retiring() const { return retiring_; }

  // As it stands in a file, and back; damage is noticed. Errors: invalid / revocations_damaged.
  std::vector<uint8_t> encode() const;
  static Result<Revocations> decode(std::span<const uint8_t> bytes);

 private:
  struct Hash {
    size_t operator()(const Digest& digest) const;
  };
  struct TextHash : std::hash<std::string_view> {
    using is_transparent = void;
  };

  bool has(Revocation::Kind kind, const Digest& digest) const;
  void index();

  std::vector<Revocation> all_;
  std::unordered_map<Digest, uint32_t, Hash> digests_;  // a bit for each kind
  std::unordered_set<std::string, TextHash, std::equal_to<>> holders_;
  std::vector<Revocation> issuers_;
  std::vector<Revocation> retiring_;
  size_t heads_ = 0;
  size_t cgroups_ = 0;
};

}  // namespace holdfast::token
