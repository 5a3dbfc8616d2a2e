// What `enroll begin` prints: the node's side of an enrollment, for whoever signs its first bundle.
// README.md has the form.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"

namespace holdfast::token {

constexpr uint64_t enrollment_life_max_s = uint64_t{24} * 3600;  // of a request
constexpr uint64_t enrollment_life_default_s = 3600;

struct EnrollmentRequest {
  std::string node;  // its name, by its key
  std::string host;  // as people call it; nothing depends on it
  Digest nonce{};
  Digest anchor{};  // the thumbprint of the only key that may sign
  uint64_t expires_s = 0;
  uint64_t generation_floor = 0;     // the bundle's has to be above it
  std::vector<std::string> tenants;  // whose policy the node takes; "*": everybody's
  std::string csr;                   // PKCS#10 by the node's key: CN the node, password the nonce

  bool operator==(const EnrollmentRequest&) const = default;
};

// A JSON file (YAML will do). Its certificate request is by the key that the node is named for, and
// says this nonce: so all that is signed for is what the holder of that key has asked for. Errors:
// invalid / request_syntax, naming file:line.
Result<EnrollmentRequest> parse_enrollment_request(std::string_view text, std::string_view file);

}  // namespace holdfast::token
