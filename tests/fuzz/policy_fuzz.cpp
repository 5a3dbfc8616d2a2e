// Any bytes either are refused with a message that names the file, or are a policy whose canonical
// text reads back as itself. Seeds: corpus/policy, and tests/unit/policy/cases.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "policy/parse.hpp"
#include "policy/render.hpp"
#include "tests/fuzz/libfyaml_leaks.hpp"
#include "userspace/base/check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  Result<Policy> policy = parse_policy(bytes, "fuzz");
  if (!policy) {
    CHECK(policy.error().kind == ErrorKind::invalid);
    CHECK(policy.error().message.starts_with("fuzz:"));
    return 0;
  }
  Result<Policy> again = parse_policy(render_policy_json(*policy), "rendered", rendered_bytes_max);
  CHECK(again);
  CHECK(*again == *policy);
  CHECK(diff_policies(*policy, *again).empty());
  return 0;
}
