// Keys on PKCS#11 tokens: the URI, and every way in which a token is not what is asked for. A real
// module (softhsm2) signs in tests/node/test_keys.py.
#include "userspace/token/pkcs11.hpp"

#include <string>
#include <vector>

#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include "tests/unit/core/directory.hpp"
#include "tests/unit/token/fake_token.hpp"
#include "tests/unit/token/fixture.hpp"
#include "userspace/token/signers.hpp"

namespace holdfast::token {
namespace {

constexpr std::string_view module_query = "?module-path=/m.so";

TEST(Pkcs11Uri, SaysWhichKey) {
  const Result<Pkcs11Uri> uri = parse_pkcs11_uri(
      "pkcs11:token=The%20ops;manufacturer=m;model=x;serial=01ab;object=root%3b;id=%00%ff;"
      "type=private?module-path=/usr/lib/m.so&pin-source=file:/etc/hsm/pin");
  ASSERT_TRUE(uri) << uri.error().text();
  EXPECT_EQ(*uri, (Pkcs11Uri{.token = "The ops",
                             .manufacturer = "m",
                             .model = "x",
                             .serial = "01ab",
                             .object = "root;",
                             .id = std::string("\0\xff", 2),
                             .module_path = "/usr/lib/m.so",
                             .pin_source = "/etc/hsm/pin"}));
  EXPECT_EQ(parse_pkcs11_uri("pkcs11:id=%01?pin-source=/p&module-path=/m")->pin_source, "/p");
}

TEST(Pkcs11Uri, WhatIsRefused) {
  struct Row {
    std::string_view uri, said;
  };
  const std::vector<Row> rows{
      {"pkcs11:token=t?module-path=/m", "names no key"},
      {"pkcs11:?module-path=/m", "names no key"},
      {"pkcs11:object=k", "no module"},
      {"pkcs11:object=k?module-path=m.so", "no module"},
      {"pkcs11:object=k?module-path=/m&pin-value=1234", "has a PIN in it"},
      {"pkcs11:object=k;pin-value=1234?module-path=/m", "has a PIN in it"},
      {"pkcs11:object=k?module-path=/m&pin-source=pin", "its PIN"},
      {"pkcs11:object=k?module-path=/m&pin-source=|cat", "its PIN"},
      {"pkcs11:object=k?module-path=/m&pin-source=file:pin", "its PIN"},
      {"pkcs11:object=k?module-path=/m&module-name=m", "\"module-name\", which has no meaning"},
      {"pkcs11:object=k;slot-id=1?module-path=/m", "\"slot-id\", which has no meaning"},
      {"pkcs11:object=k;type=public?module-path=/m", "\"type\", which has no meaning"},
      {"pkcs11:object=k;object=k?module-path=/m", "object twice"},
      {"pkcs11:object=?module-path=/m", "empty object"},
      {"pkcs11:object?module-path=/m", "no meaning"},
      {"pkcs11:object=k;;id=%01?module-path=/m", "no meaning"},
      {"pkcs11:object=a b?module-path=/m", "a character in object"},
      {"pkcs11:object=a/b?module-path=/m", "a character in object"},
      {"pkcs11:object=a%2?module-path=/m", "a % in object"},
      {"pkcs11:object=a%+1?module-path=/m", "a % in object"},
      {"pkcs11:object=a%00?module-path=/m", "a zero byte in object"},
      {"pkcs12:object=k?module-path=/m", "does not begin"},
  };
  for (const Row& row : rows) {
    const Result<Pkcs11Uri> uri = parse_pkcs11_uri(row.uri);
    ASSERT_FALSE(uri) << row.uri;
    EXPECT_EQ(uri.error().code, "pkcs11_uri");
    EXPECT_NE(uri.error().message.find(row.said), std::string::npos) << uri.error().text();
    EXPECT_FALSE(uri.error().next_step.empty());
    EXPECT_EQ(uri.error().text().find("1234"), std::string::npos);
  }
  EXPECT_TRUE(parse_pkcs11_uri(fmt::format("pkcs11:object=k{}", module_query)));
  EXPECT_FALSE(
      parse_pkcs11_uri(fmt::format("pkcs11:object={}{}", std::string(4096, 'k'), module_query)));
}

class Pkcs11 : public testing::Test {
 protected:
  Pkcs11() {
    void* module = ::dlopen(FAKE_TOKEN, RTLD_NOW | RTLD_LOCAL);
    EXPECT_NE(module, nullptr);
    fake_ = reinterpret_cast<FakeToken* (*)()>(::dlsym(module, "fake_token"))();
    *fake_ = {};
    const SecretKey key = key_of(1);
    std::ranges::copy(key.seed(), fake_->secret.begin());
    std::ranges::copy(key.public_key(), fake_->secret.begin() + 32);
    fake_->point = {0x04, 32};
    std::ranges::copy(key.public_key(), fake_->point.begin() + 2);
    fake_->point_size = 34;
    directory_.write("pin", "1234\n");
    EXPECT_EQ(::chmod(pin().c_str(), 0400), 0);
  }

  std::string pin() const { return directory_.path() + "/pin"; }
  std::string uri(std::string_view path = "token=ops;object=root") const {
    return fmt::format("pkcs11:{}?module-path={}&pin-source=file:{}", path, FAKE_TOKEN, pin());
  }
  std::string refused(const std::string& uri) const {
    const Result<std::unique_ptr<Signer>> signer = open_signer(uri);
    EXPECT_EQ(fake_->sessions, signer ? 1U : 0U);
    if (signer) return "good";
    EXPECT_FALSE(signer.error().next_step.empty()) << signer.error().text();
    return std::string(signer.error().code);
  }

  FakeToken* fake_ = nullptr;
  Directory directory_;
};

TEST_F(Pkcs11, SignsAsAFileDoes) {
  {
    const Result<std::unique_ptr<Signer>> signer = open_signer(uri());
    ASSERT_TRUE(signer) << signer.error().text();
    EXPECT_STREQ(fake_->pin.data(), "1234");
    EXPECT_EQ((*signer)->key(), key_of(1).key());
    const std::array<uint8_t, 3> message{1, 2, 3};
    EXPECT_EQ(*(*signer)->sign(message), *key_of(1).sign(message));
    const Claims claims = claims_of(Kind::grant);
    const auto tokens = issue(**signer, head_of(Kind::grant), std::span(&claims, 1));
    ASSERT_TRUE(tokens) << tokens.error().text();
    EXPECT_EQ(answer(tokens->front()), "good");
  }
  EXPECT_EQ(fake_->sessions, 0U);
  // The point as PKCS#11 3.1 has it.
  std::ranges::copy(key_of(1).public_key(), fake_->point.begin());
  fake_->point_size = 32;
  EXPECT_EQ(refused(uri()), "good");
  // No PIN where the token asks for none, or asks for it on a keyboard of its own.
  const std::string no_pin = fmt::format("pkcs11:object=root?module-path={}", FAKE_TOKEN);
  fake_->flags = CKF_TOKEN_INITIALIZED;
  fake_->logins = 0;
  EXPECT_EQ(refused(no_pin), "good");
  EXPECT_EQ(fake_->logins, 0U);
  fake_->flags |= CKF_LOGIN_REQUIRED | CKF_PROTECTED_AUTHENTICATION_PATH;
  EXPECT_EQ(refused(no_pin), "good");
  EXPECT_EQ(fake_->logins, 1U);
}

TEST_F(Pkcs11, WhatATokenLacks) {
  struct Row {
    std::string_view code;
    void (*change)(FakeToken&);
  };
  const std::vector<Row> rows{
      {"pkcs11_module", [](FakeToken& t) { t.initialize = CKR_GENERAL_ERROR; }},
      {"good", [](FakeToken& t) { t.initialize = CKR_CRYPTOKI_ALREADY_INITIALIZED; }},
      {"pkcs11_token_missing", [](FakeToken& t) { t.tokens = 0; }},
      {"pkcs11_token_missing", [](FakeToken& t) { t.flags = 0; }},
      {"pkcs11_token_ambiguous", [](FakeToken& t) { t.tokens = 2; }},
      {"pkcs11_mechanism", [](FakeToken& t) { t.signs_ed25519 = false; }},
      {"pkcs11_key_missing", [](FakeToken& t) { t.private_keys = 0; }},
      {"pkcs11_key_ambiguous", [](FakeToken& t) { t.private_keys = 3; }},
      {"pkcs11_key_asks", [](FakeToken& t) { t.asks_each_time = true; }},
      {"pkcs11_public_key_missing", [](FakeToken& t) { t.public_keys = 0; }},
      {"pkcs11_public_key_missing", [](FakeToken& t) { t.public_keys = 2; }},
      {"pkcs11_public_key_missing", [](FakeToken& t) { t.point_size = 59; }},  // Ed448
      {"pkcs11_public_key_missing", [](FakeToken& t) { t.point_size = 0; }},
      {"pkcs11_failed", [](FakeToken& t) { t.login = CKR_DEVICE_REMOVED; }},
      {"good", [](FakeToken& t) { t.login = CKR_USER_ALREADY_LOGGED_IN; }},
  };
  const FakeToken good = *fake_;
  for (const Row& row : rows) {
    *fake_ = good;
    row.change(*fake_);
    EXPECT_EQ(refused(uri()), row.code);
  }
  *fake_ = good;
  fake_->tokens = 2;
  EXPECT_EQ(refused(uri("token=ops;serial=1;object=root")), "good");
  EXPECT_EQ(refused(uri("token=other;object=root")), "pkcs11_token_missing");
  EXPECT_EQ(refused(uri("manufacturer=other;object=root")), "pkcs11_token_missing");
  EXPECT_EQ(refused(fmt::format("pkcs11:object=k?module-path={}/none.so", directory_.path())),
            "pkcs11_module");
}

TEST_F(Pkcs11, APinIsTriedOnce) {
  for (const CK_RV code : {CKR_PIN_INCORRECT, CKR_PIN_INVALID, CKR_PIN_LEN_RANGE}) {
    fake_->logins = 0;
    fake_->login = code;
    EXPECT_EQ(refused(uri()), "pkcs11_pin_wrong");
    EXPECT_EQ(fake_->logins, 1U);
  }
  fake_->login = CKR_PIN_LOCKED;
  EXPECT_EQ(refused(uri()), "pkcs11_pin_locked");
  fake_->login = CKR_OK;
  fake_->logins = 0;
  for (const CK_FLAGS flag : {CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED}) {
    fake_->flags = CKF_TOKEN_INITIALIZED | CKF_LOGIN_REQUIRED | flag;
    EXPECT_EQ(refused(uri()), "pkcs11_pin_locked");
  }
  fake_->flags = CKF_TOKEN_INITIALIZED | CKF_LOGIN_REQUIRED;
  EXPECT_EQ(refused(fmt::format("pkcs11:object=root?module-path={}", FAKE_TOKEN)),
            "pkcs11_pin_missing");
  ASSERT_EQ(::chmod(pin().c_str(), 0440), 0);
  EXPECT_EQ(refused(uri()), "key_exposed");
  ASSERT_EQ(::chmod(pin().c_str(), 0600), 0);
  directory_.write("pin", "\n");
  EXPECT_EQ(refused(uri()), "pkcs11_pin_missing");
  std::filesystem::remove(pin());
  EXPECT_EQ(refused(uri()), "key_missing");
  EXPECT_EQ(fake_->logins, 0U);
}

TEST_F(Pkcs11, NoSignatureThatDoesNotHold) {
  const std::array<uint8_t, 3> message{1, 2, 3};
  const Result<std::unique_ptr<Signer>> signer = open_signer(uri());
  ASSERT_TRUE(signer) << signer.error().text();
  fake_->wrong_signature = true;
  EXPECT_EQ((*signer)->sign(message).error().code, "pkcs11_wrong_pair");
  fake_->wrong_signature = false;
  fake_->sign = CKR_DEVICE_REMOVED;
  EXPECT_EQ((*signer)->sign(message).error().code, "pkcs11_failed");
  fake_->sign = CKR_OK;
  EXPECT_TRUE((*signer)->sign(message));
  fake_->point[10] ^= 1;  // of another pair
  const Result<std::unique_ptr<Signer>> other = open_signer(uri());
  ASSERT_TRUE(other);
  EXPECT_EQ((*other)->sign(message).error().code, "pkcs11_wrong_pair");
}

}  // namespace
}  // namespace holdfast::token
