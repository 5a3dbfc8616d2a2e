// Grant tokens that were used: each makes one lease. The file STATE_DIR/spent is appended to and
// fsynced before a lease opens, so that no crash makes a token good again (G11). An id is kept
// until its token has expired for a minute.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/token/sha256.hpp"

namespace holdfast {

class Spent {
 public:
  // An entry cut short at the end was of a grant that nobody was answered. `whole` is false when
  // there is no file, or anything else is wrong with it: then it is not known which tokens were
  // used.
  static Result<Spent> open(const std::string& state_dir, uint64_t now_s, bool& whole);

  bool has(const token::Digest& id) const { return expiry_.contains(id); }
  size_t size() const { return expiry_.size(); }
  // Durable when it returns. Errors: exhausted / tokens_spent_max; internal / state_write.
  Status add(const token::Digest& id, uint64_t expires_s, uint64_t now_s);
  // Its lease was not made after all.
  Status take_back(const token::Digest& id);

 private:
  struct Hash {
    size_t operator()(const token::Digest& id) const;
  };

  Status append(const token::Digest& id, uint64_t expires_s);
  Status rewrite(uint64_t now_s);

  std::string state_dir_;
  UniqueFd file_;
  std::unordered_map<token::Digest, uint64_t, Hash> expiry_;
  size_t entries_ = 0;  // in the file
  size_t rewrite_at_ = 0;
};

}  // namespace holdfast
