#include "userspace/token/enrollment.hpp"

#include <charconv>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/hex.hpp"
#include "userspace/token/fields.hpp"
#include "userspace/token/token.hpp"

namespace holdfast::token {
namespace {

constexpr size_t request_bytes_max = size_t{1} << 20;

class Reader : FileReader {
 public:
  Reader(const Document& document, std::string_view file)
      : FileReader(document, file, "request_syntax") {}

  Result<EnrollmentRequest> read() const {
    const Names all = {"version", "node",      "host",    "nonce",
                       "anchor",  "expires_s", "tenants", "generation_floor",
                       "csr"};
    const Node& top = document().root();
    Result<Fields> found = fields(top, all, all);
    if (!found) return pass_on(found);
    const auto at = [&](std::string_view name) -> const Node& { return *found->at(name); };
    if (const std::optional<uint64_t> version = number(at("version")); version != 1)
      return refuse(at("version"), "the only version is 1", "ask with the same version");
    EnrollmentRequest request;
    for (const auto& [name, out] :
         {std::pair{"node", &request.node}, {"host", &request.host}, {"csr", &request.csr}}) {
      Result<std::string> read = text(at(name), name);
      if (!read) return pass_on(read);
      *out = std::move(*read);
    }
    for (const auto& [name, out] :
         {std::pair{"nonce", &request.nonce}, {"anchor", &request.anchor}}) {
      const std::optional<Digest> digest = from_hex<sizeof(Digest)>(document().text(at(name)));
      if (at(name).kind != NodeKind::scalar || !digest)
        return refuse(at(name), fmt::format("\"{}\" is 64 hexadecimal digits", name), again);
      *out = *digest;
    }
    for (const auto& [name, out] : {std::pair{"expires_s", &request.expires_s},
                                    {"generation_floor", &request.generation_floor}}) {
      const std::optional<uint64_t> value = number(at(name));
      if (!value) return refuse(at(name), fmt::format("\"{}\" is a number", name), again);
      *out = *value;
    }
    Result<std::vector<std::string>> tenants = texts(at("tenants"), "tenants");
    if (!tenants) return pass_on(tenants);
    if (tenants->empty()) return refuse(at("tenants"), "it names no tenant", again);
    request.tenants = std::move(*tenants);
    const Result<CertificateRequest> csr = parse_certificate_request(request.csr);
    if (!csr) return refuse(at("csr"), csr.error().message, again);
    if (node_name(csr->key) != request.node || csr->name != request.node ||
        csr->password != hex(request.nonce))
      return refuse(at("csr"), "it was made by another node's key, or for another request", again);
    return request;
  }

 private:
  static constexpr const char* again = "take it as `holdfast enroll begin` has printed it";

  std::optional<uint64_t> number(const Node& node) const {
    const std::string_view digits = document().text(node);
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (node.kind != NodeKind::scalar || error != std::errc() ||
        end != digits.data() + digits.size())
      return std::nullopt;
    return value;
  }
};

}  // namespace

Result<EnrollmentRequest> parse_enrollment_request(std::string_view text, std::string_view file) {
  Result<Document> document = read_document(text, file, request_bytes_max);
  if (!document) return pass_on(document);
  return Reader(*document, file).read();
}

}  // namespace holdfast::token
