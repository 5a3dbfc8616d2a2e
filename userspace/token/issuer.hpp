// Issuer: how a control plane makes tokens, many under one signature. Pure but for random bytes
// and, where no time is given, the clock. May be shared between threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"
#include "userspace/token/token.hpp"

namespace holdfast::token {

// What one token says. Names may come in any order, and more than once.
struct TokenRequest {
  std::string tenant;
  std::vector<std::string> endpoints;   // NAME, NAME@ADDRESS or NAME@ADDRESS:PORT
  std::vector<std::string> egress;      // tenant ports
  std::vector<std::string> operations;  // what services may be asked to do
  std::string peer;                     // a prefix; empty: any
  std::string holder;                   // "uid:1000", "cgroup:4711"; empty: whoever presents it
  std::optional<PublicKey> holder_key;  // instead of a holder: who presents it proves this key
  uint64_t ttl_s = 60;                  // the lease's term, 1 to life_max_s; not of a use token
  std::optional<LeaseAt> lease;         // of a renew or use token: which one
};

// What all tokens under one head have in common.
struct Batch {
  Kind kind = Kind::grant;
  std::string node;      // "ni:///sha-256;...": as "node" and
  uint64_t epoch = 0;    // "epoch" of its hello say (Client::hello())
  uint64_t life_s = 60;  // of the tokens, 1 to life_max_s
};

struct IssuedToken {
  std::vector<uint8_t> bytes;  // to_text() for people and files
  Claims claims;
};

class Issuer {
 public:
  // `name` is what the nodes' anchors call this key's owner.
  Issuer(std::shared_ptr<const Signer> key, std::string name)
      : key_(std::move(key)), name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  const PublicKey& public_key() const { return key_->public_key(); }

  // A token for each request, in that order, good from `now_s` (Unix seconds) on. All or none.
  // Errors: invalid / bad_life; invalid / too_many_tokens (none, or more than tree_size_max);
  // invalid / bad_prefix, bad_holder or bad_claims, naming the token; internal / random;
  // those of sign_plainly().
  Result<std::vector<IssuedToken>> issue(const Batch& batch, std::span<const TokenRequest> requests,
                                         uint64_t now_s = wall_now_ns() / ns_per_s) const;

 private:
  std::shared_ptr<const Signer> key_;
  std::string name_;
};

}  // namespace holdfast::token
