// P6, H4: a request for enrollment is what the node's own key has asked for, and nothing else.
#include "userspace/token/enrollment.hpp"

#include "tests/unit/token/fixture.hpp"
#include "userspace/base/hex.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

using cbor::Value;

const SecretKey& node_key() {
  static const SecretKey key = key_of(9);
  return key;
}

Digest nonce_of(uint8_t number) {
  Digest nonce{};
  nonce.fill(number);
  return nonce;
}

Value request() {
  const std::string node = node_name(node_key().public_key());
  return Value::map({{"version", 1},
                     {"node", node},
                     {"host", "node1"},
                     {"nonce", hex(nonce_of(1))},
                     {"anchor", hex(thumbprint(key_of(3).public_key()))},
                     {"expires_s", now_s + 3600},
                     {"generation_floor", 4},
                     {"tenants", Value::array({"acme/shop/prod"})},
                     {"csr", *certificate_request(node_key(), node, hex(nonce_of(1)))}});
}

Result<EnrollmentRequest> parsed(const Value& value) {
  return parse_enrollment_request(cbor::to_json(value), "node.request");
}

TEST(Enrollment, IsWhatTheNodeAsked) {
  const Result<EnrollmentRequest> read = parsed(request());
  ASSERT_TRUE(read) << read.error().text();
  EXPECT_EQ(read->node, node_name(node_key().public_key()));
  EXPECT_EQ(read->host, "node1");
  EXPECT_EQ(read->nonce, nonce_of(1));
  EXPECT_EQ(read->anchor, thumbprint(key_of(3).public_key()));
  EXPECT_EQ(read->expires_s, now_s + 3600);
  EXPECT_EQ(read->generation_floor, 4);
  EXPECT_EQ(read->tenants, std::vector<std::string>{"acme/shop/prod"});
}

TEST(Enrollment, EachPartIsNeededAndOfItsKind) {
  const Value whole = request();
  for (const Value::Entry& entry : *whole.as_map()) {
    Value without = Value::map();
    for (const Value::Entry& each : *whole.as_map())
      if (each.key != entry.key) without.set(each.key, each.value);
    EXPECT_FALSE(parsed(without)) << entry.key;
    Value changed = whole;
    changed.set(entry.key, Value::map({{"a", 1}}));
    const auto refused = parsed(changed);
    ASSERT_FALSE(refused) << entry.key;
    EXPECT_EQ(refused.error().code, "request_syntax") << entry.key;
    EXPECT_TRUE(refused.error().message.starts_with("node.request:")) << refused.error().message;
  }
  Value more = whole;
  more.set("more", 1);
  EXPECT_FALSE(parsed(more));
  EXPECT_FALSE(parse_enrollment_request("", "x"));
  EXPECT_FALSE(parse_enrollment_request("[]", "x"));
}

TEST(Enrollment, AnothersCertificateRequestIsRefused) {
  const std::string node = node_name(node_key().public_key());
  const std::string nonce = hex(nonce_of(1));
  const std::vector<std::pair<const char*, std::string>> wrong{
      {"by another key", *certificate_request(key_of(8), node, nonce)},
      {"for another name", *certificate_request(node_key(), "ni:///sha-256;other", nonce)},
      {"for another request", *certificate_request(node_key(), node, hex(nonce_of(2)))},
      {"none", "x"},
  };
  for (const auto& [why, csr] : wrong) {
    Value changed = request();
    changed.set("csr", csr);
    EXPECT_FALSE(parsed(changed)) << why;
  }
}

TEST(CertificateRequest, SaysWhatWasSignedAndNothingElse) {
  const std::string pem = *certificate_request(node_key(), "a name", "a password");
  const Result<CertificateRequest> read = parse_certificate_request(pem);
  ASSERT_TRUE(read) << read.error().text();
  EXPECT_EQ(read->key, node_key().public_key());
  EXPECT_EQ(read->name, "a name");
  EXPECT_EQ(read->password, "a password");
  // Of what its signature covers, or is, no letter can be another one.
  const size_t begin = pem.find('\n') + 1;
  for (size_t at = begin; at < pem.find("\n-----END"); ++at) {
    if (pem[at] == '\n' || pem[at] == '=') continue;
    std::string bad = pem;
    bad[at] = bad[at] == 'A' ? 'B' : 'A';
    const Result<CertificateRequest> other = parse_certificate_request(bad);
    if (other) {
      EXPECT_EQ(bad.substr(at, 3).find('='), 1) << "only in bits that no byte has";
    }
  }
}

}  // namespace
}  // namespace holdfast::token
