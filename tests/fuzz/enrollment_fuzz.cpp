// Any bytes either are refused with a message that names the file, or are a request by the key that
// the node is named for, of this nonce; and any bytes either are no certificate request, or say the
// same when they are read again.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tests/fuzz/libfyaml_leaks.hpp"
#include "userspace/base/check.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/token/enrollment.hpp"
#include "userspace/token/token.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::token;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const holdfast::Result<EnrollmentRequest> read = parse_enrollment_request(text, "fuzz");
  if (!read) {
    CHECK(read.error().kind == holdfast::ErrorKind::invalid);
    CHECK(read.error().message.starts_with("fuzz:"));
  } else {
    const auto csr = parse_certificate_request(read->csr);
    CHECK(csr.has_value());
    CHECK(node_name(csr->key) == read->node && csr->name == read->node);
    CHECK(csr->password == holdfast::hex(read->nonce));
  }
  const auto csr = parse_certificate_request(text);
  CHECK(csr || csr.error().code == "csr_syntax");
  return 0;
}
