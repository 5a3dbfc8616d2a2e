// What a scheduler signs: that a lease has to end, and that a grant token may be used. Each is kept
// and delivered by anybody, within five minutes. README.md has the format.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/signed.hpp"

namespace holdfast::token {

// Neither a grant token nor a generation of a lease lives longer.
constexpr uint64_t schedule_life_max_s = 300;
constexpr size_t reason_bytes_max = 256;
// A signed one, whole: header, content, signature. It is embedded in the event.
constexpr size_t schedule_bytes_max = 4096;

// This generation of a lease ends, at once or after a grace; without one, after the lease's own.
struct Preempt {
  std::array<uint8_t, 16> lease{};
  uint64_t generation = 0;
  std::string reason;
  std::optional<uint64_t> grace_ns = {};

  bool operator==(const Preempt&) const = default;
};

// A grant token, by its leaf's hash, may make its lease.
struct Admission {
  Digest token{};
  std::string tenant;
  std::string reason;

  bool operator==(const Admission&) const = default;
};

// Errors: invalid / malformed_preempt, malformed_admission; those of the signer.
Result<std::vector<uint8_t>> sign_preempt(const Signer& signer, std::string_view node,
                                          uint64_t life_s, const Preempt& preempt);
Result<std::vector<uint8_t>> sign_admission(const Signer& signer, std::string_view node,
                                            uint64_t life_s, const Admission& admission);
// The content of a signed object. Errors: as above.
Result<Preempt> decode_preempt(std::span<const uint8_t> content);
Result<Admission> decode_admission(std::span<const uint8_t> content);

}  // namespace holdfast::token
