// Bearer tokens of this node, for reading only (H11): who has one needs no group.
//
//   hf_{environment}_{base64url of 32 random bytes}        hf_prod_Zk3...; scanners find the prefix
//
// Whoever shows it on a connection (the verb session.bearer) may ask there for the verbs of its
// scope, all of them reading ones, about its tenants, until it expires or is revoked; and for
// nothing else, whoever it is otherwise. The token is told once, when it is made. Kept is its
// SHA-256, in STATE_DIR/bearers, mode 0600, replaced whole and fsynced; 256 random bits need no
// salt and no slow hash. What is shown is compared with every one, in a time that says nothing.
//
// To make one is written first and then holds; to revoke holds first. With a file that is damaged
// no token is good. Pure but for that file and the random bytes: `now` is an argument, and wall
// time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/token/sha256.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast {

constexpr size_t bearers_max = 256;  // compared with one by one at each try
constexpr uint64_t bearer_life_min_ns = ns_per_s;
constexpr uint64_t bearer_life_max_ns = 90 * 24 * 3600 * ns_per_s;
constexpr size_t bearer_tenants_max = 64;

struct Bearer {
  std::string name;
  std::string environment;
  std::vector<std::string> scope;    // verbs
  std::vector<std::string> tenants;  // "*": all
  uint64_t created_wall_ms = 0;
  uint64_t expires_wall_ms = 0;
  uint32_t by_uid = 0;
  std::optional<token::Digest> by_key = {};  // whose signature asked for it
  bool revoked = false;
  token::Digest sha256{};  // of the token, as text

  bool is_over(uint64_t now_wall_ms) const { return revoked || expires_wall_ms <= now_wall_ms; }
  bool operator==(const Bearer&) const = default;
};

class Bearers {
 public:
  // Errors: those of reading a file.
  static Result<Bearers> open(std::string state_dir);

  // The token. Of the same name there may have been another that is over. Errors: invalid, with
  // what is wrong as code; conflict / bearer_exists; exhausted / bearers_max; those of writing a
  // file, and then there is none.
  Result<std::string> create(Bearer wanted, uint64_t now_wall_ms);
  // What it was. Again: nothing changes, and what could not be written is. Errors: not_found /
  // no_such_bearer; those of writing a file, and then it is revoked all the same.
  Result<Bearer> revoke(std::string_view name);

  // Errors: denied / unknown_bearer, bearer_revoked, bearer_expired.
  Result<Bearer> judge(std::string_view token, uint64_t now_wall_ms) const;
  // Of one that was good: whether it still is.
  Status judge_again(const token::Digest& sha256, uint64_t now_wall_ms) const;

  const std::vector<Bearer>& all() const { return bearers_; }

 private:
  explicit Bearers(std::string state_dir) : state_dir_(std::move(state_dir)) {}
  Status write(const std::vector<Bearer>& bearers) const;

  std::string state_dir_;
  std::vector<Bearer> bearers_;  // in the order in which they were made
  bool durable_ = true;          // the file says what holds
};

}  // namespace holdfast
