// Signed objects: made as independent.py makes them, good for their own purpose only, whole or not
// at all, and unpacked within bounds.
#include "userspace/token/signed.hpp"

#include <charconv>
#include <map>
#include <string>

#include <zstd.h>

#include "tests/unit/token/fixture.hpp"

namespace holdfast::token {
namespace {

// By make_signed() of independent.py, with the seed of key_of(3).
constexpr std::string_view golden_request =
    "845893a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa203"
    "726e693a2f2f2f7368612d3235363b6e6f6465061a6b49d2001078216170706c69636174696f6e2f686f6c64"
    "666173742d726571756573742b636f73653a00010000a30104025820000102030405060708090a0b0c0d0e0f"
    "101112131415161718191a1b1c1d1e1f0307a04d776861742069732061736b65645840fbbad4392ff2bc266e"
    "4d2122f100d16b5e70dc45d422a2ac2955d66a93e33599abe3dc040bd18b03e72708f76914ea84ca7d4e7cd4"
    "4bbb3c6ef10b4387e1680c";
constexpr std::string_view golden_bundle =
    "845873a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa303"
    "726e693a2f2f2f7368612d3235363b6e6f6465041a6b49e010061a6b49d2001078206170706c69636174696f"
    "6e2f686f6c64666173742d62756e646c652b636f73653a00010000a1040ca0486120706f6c69637958406f01"
    "d59b47f6780ee5de384e1c1109bb0724e64ea501988ae5f145c8ee7323031319b2755692b1012197579034c8"
    "8758e36768a8a2fad60ffbd3614b0b8a4408";

constexpr std::string_view golden_enrollment =
    "8458bda5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa303"
    "726e693a2f2f2f7368612d3235363b6e6f6465041a6b49e010061a6b49d2001078246170706c69636174696f"
    "6e2f686f6c64666173742d656e726f6c6c6d656e742b636f73653a00010000a3040c06582000010203040506"
    "0708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f075820ed4928c628d1c2c6eae9033890599561"
    "2959273a5c63f93636c14614ac8737d1a0486120706f6c696379584045d7fb3716a03b4e6f6b2b357eeae708"
    "89a60cdc171a0898d1374243b6fe92f944800b551a9927bbae62fb25ee53854c0b63215ad4821f1a45089887"
    "cdb07a06";

constexpr std::string_view golden_epoch_key =
    "845893a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa203"
    "726e693a2f2f2f7368612d3235363b6e6f6465061a6b49d2001078236170706c69636174696f6e2f686f6c64"
    "666173742d65706f63682d6b65792b636f73653a00010000a20104075820ed4928c628d1c2c6eae903389059"
    "95612959273a5c63f93636c14614ac8737d1a04561206b65795840bff13fdcf7e8a7d9ff76565aa1cd43fb8b"
    "ec98ec232cadd5a74f65b9f65995e0bde473b578586f5fcf9b38911aa79eef8f0d985dd8635d810f4dae27b3"
    "79460d";
constexpr std::string_view golden_report =
    "845895a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa203"
    "726e693a2f2f2f7368612d3235363b6e6f6465061a6b49d2001078206170706c69636174696f6e2f686f6c64"
    "666173742d7265706f72742b636f73653a00010000a30104025820000102030405060708090a0b0c0d0e0f10"
    "1112131415161718191a1b1c1d1e1f0943010203a04861207265706f72745840f6285e4da0cdc884cebaaea2"
    "cda6a783969248795199c7df055dd741c5d955b9aec104d87d9ff9ea529382c5dec544f7af76a1e1b33acdcb"
    "5a46f275d0949b0d";
constexpr std::string_view golden_notice =
    "845897a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa203"
    "726e693a2f2f2f7368612d3235363b6e6f6465061a6b49d2001078206170706c69636174696f6e2f686f6c64"
    "666173742d6e6f746963652b636f73653a00010000a40104025820000102030405060708090a0b0c0d0e0f10"
    "1112131415161718191a1b1c1d1e1f03070943010203a04861206e6f746963655840da5c996971cb0fa5a167"
    "30f77f7a43ae6626550d997f54a2af2d3113dbc11abf6616d0da9bd14a7287934a04368fe7b474055a404548"
    "7e8f084a627369432003";
constexpr std::string_view golden_operator_grant =
    "845879a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa303"
    "726e693a2f2f2f7368612d3235363b6e6f6465041a6b49e010061a6b49d2001078286170706c69636174696f"
    "6e2f686f6c64666173742d6f70657261746f722d6772616e742b636f73653a00010000a0a04761206772616e"
    "7458408a7805724f5ff4c819cd06fdf7e7017a6e824407ba8ad11fd33f17f35867cc51dc37eae57ec3ce1b54"
    "505491cf4d8d9b9be352470e68b217130a573d40acff09";
constexpr std::string_view golden_preempt =
    "845872a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa303"
    "726e693a2f2f2f7368612d3235363b6e6f6465041a6b49e010061a6b49d2001078216170706c69636174696f"
    "6e2f686f6c64666173742d707265656d70742b636f73653a00010000a0a0496120707265656d70745840bf04"
    "bc9eb9042bc56d44f5052fd819585aaaf8b6dad50c79a0b25ea91af3cd36a8b88523498d0cbcf86543a2ec02"
    "3cae627db377c4c581ff180857eebb59790f";
constexpr std::string_view golden_admission =
    "845874a5013204582072d16fafc7e5497618246178631d650fef01a4aca770c965dd8b551760bad6dc0fa303"
    "726e693a2f2f2f7368612d3235363b6e6f6465041a6b49e010061a6b49d2001078236170706c69636174696f"
    "6e2f686f6c64666173742d61646d697373696f6e2b636f73653a00010000a0a04c616e2061646d697373696f"
    "6e58408bf76863506de18dbb6e9083a0c5d5e055e39141387775eaaf907ac311d8ace10a8167eb19c81beed5"
    "ce4ba508138c0eb03418525c608f1b360b50b60357110d";

std::vector<uint8_t> from_hex(std::string_view hex) {
  std::vector<uint8_t> bytes(hex.size() / 2);
  for (size_t i = 0; i < bytes.size(); ++i)
    std::from_chars(&hex[2 * i], &hex[2 * i] + 2, bytes[i], 16);
  return bytes;
}

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

SignedHeader header_of(Purpose purpose) {
  SignedHeader header{.audience = "ni:///sha-256;node", .issued_s = now_s};
  const bool numbered = purpose == Purpose::request || purpose == Purpose::notice;
  const bool said = purpose == Purpose::report || purpose == Purpose::notice;
  const bool live = numbered || said;
  if (live || purpose == Purpose::epoch_key) {
    header.epoch = 4;
    if (numbered) header.sequence = 7;
    if (said) header.certificate = {1, 2, 3};
    if (live)
      for (uint8_t i = 0; i < header.challenge.size(); ++i) header.challenge[i] = i;
  } else {
    header.expires_s = now_s + 3600;
    if (purpose == Purpose::bundle || purpose == Purpose::enrollment) header.generation = 12;
    if (purpose == Purpose::enrollment)
      for (uint8_t i = 0; i < header.nonce.size(); ++i) header.nonce[i] = i;
  }
  return header;
}

std::vector<uint8_t> signed_by(uint8_t number, Purpose purpose, std::string_view content,
                               size_t pack_from = SIZE_MAX) {
  const auto made =
      make_signed(key_of(number), purpose, header_of(purpose), bytes_of(content), pack_from);
  EXPECT_TRUE(made) << made.error().text();
  return *made;
}

// What becomes of it: the content, or the code of what is wrong.
std::string opened(std::span<const uint8_t> bytes, Purpose purpose) {
  const Result<SignedObject> object = take_apart_signed(bytes, purpose);
  if (!object) return std::string(object.error().code);
  if (!is_signed_by({key_of(3).public_key()}, purpose, *object)) return "bad_signature";
  std::vector<uint8_t> storage;
  const auto content = content_of(*object, storage);
  if (!content) return std::string(content.error().code);
  return {content->begin(), content->end()};
}

constexpr Purpose all[] = {Purpose::request,    Purpose::bundle,    Purpose::operator_grant,
                           Purpose::enrollment, Purpose::epoch_key, Purpose::report,
                           Purpose::notice,     Purpose::preempt,   Purpose::admission};
static_assert(std::size(all) == purposes);

TEST(Signed, IsWhatTheOtherImplementationMakes) {
  EXPECT_EQ(signed_by(3, Purpose::request, "what is asked"), from_hex(golden_request));
  EXPECT_EQ(signed_by(3, Purpose::bundle, "a policy"), from_hex(golden_bundle));
  EXPECT_EQ(signed_by(3, Purpose::enrollment, "a policy"), from_hex(golden_enrollment));
  EXPECT_EQ(signed_by(3, Purpose::epoch_key, "a key"), from_hex(golden_epoch_key));
  EXPECT_EQ(signed_by(3, Purpose::report, "a report"), from_hex(golden_report));
  EXPECT_EQ(signed_by(3, Purpose::notice, "a notice"), from_hex(golden_notice));
  EXPECT_EQ(signed_by(3, Purpose::operator_grant, "a grant"), from_hex(golden_operator_grant));
  EXPECT_EQ(signed_by(3, Purpose::preempt, "a preempt"), from_hex(golden_preempt));
  EXPECT_EQ(signed_by(3, Purpose::admission, "an admission"), from_hex(golden_admission));
  EXPECT_EQ(opened(from_hex(golden_request), Purpose::request), "what is asked");
  EXPECT_EQ(opened(from_hex(golden_bundle), Purpose::bundle), "a policy");
  EXPECT_EQ(opened(from_hex(golden_enrollment), Purpose::enrollment), "a policy");
}

TEST(Signed, SaysWhatItsHeaderSays) {
  for (const Purpose purpose : all) {
    const std::vector<uint8_t> bytes = signed_by(3, purpose, "x");
    const Result<SignedObject> object = take_apart_signed(bytes, purpose);
    ASSERT_TRUE(object) << object.error().text();
    SignedHeader expected = header_of(purpose);
    expected.key = thumbprint(key_of(3).public_key());
    if (purpose == Purpose::enrollment || purpose == Purpose::epoch_key)
      expected.root = {.key = key_of(3).public_key()};
    EXPECT_EQ(object->header, expected);
  }
}

// A security key's root has an application, and that stands in the header, too.
TEST(Signed, AnEnrollmentNamesTheKeyThatSigns) {
  class Other : public SecretKey {
   public:
    explicit Other(SecretKey key) : SecretKey(std::move(key)) {}
    std::string_view application() const override { return "ssh:"; }
  };
  const auto made = make_signed(Other(key_of(3)), Purpose::enrollment,
                                header_of(Purpose::enrollment), bytes_of("x"), SIZE_MAX);
  ASSERT_TRUE(made);
  const auto object = take_apart_signed(*made, Purpose::enrollment);
  ASSERT_TRUE(object) << object.error().text();
  EXPECT_EQ(object->header.root, (SignerKey{key_of(3).public_key(), "ssh:"}));
  EXPECT_EQ(object->header.key, thumbprint(object->header.root.key));
}

TEST(Signed, ServesNoOtherPurpose) {
  for (const Purpose made : all)
    for (const Purpose wanted : all)
      EXPECT_EQ(opened(signed_by(3, made, "x"), wanted), made == wanted ? "x" : "wrong_purpose");
  // Nor is it a token or a proof, or one of these it.
  const ProofPlace place{.node = "ni:///sha-256;node", .epoch = 4};
  for (const Purpose purpose : all) {
    EXPECT_EQ(opened(*make_proof(key_of(3), place), purpose), "malformed_signed");
    EXPECT_EQ(opened(token_of(Kind::grant), purpose), "malformed_signed");
    EXPECT_EQ(check_proof(signed_by(3, purpose, "x"), place).error().code, "malformed_proof");
    EXPECT_EQ(answer(signed_by(1, purpose, "x")), "malformed");
  }
}

TEST(Signed, AnothersSignatureIsNone) {
  for (const Purpose purpose : all)
    EXPECT_EQ(opened(signed_by(4, purpose, "x"), purpose), "bad_signature");
}

TEST(Signed, EveryTruncationAndEveryBit) {
  for (const Purpose purpose : all) {
    const std::vector<uint8_t> bytes = signed_by(3, purpose, "what is asked");
    for (size_t size = 0; size < bytes.size(); ++size)
      ASSERT_EQ(opened(std::span(bytes).first(size), purpose), "malformed_signed") << size;
    std::vector<uint8_t> longer = bytes;
    longer.push_back(0);
    EXPECT_EQ(opened(longer, purpose), "malformed_signed");
    std::map<std::string, size_t> codes;
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      std::vector<uint8_t> damaged = bytes;
      damaged[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
      ++codes[opened(damaged, purpose)];
    }
    // Each of its bytes is under the signature, or is one.
    EXPECT_EQ(codes.size(), 3U) << "malformed_signed, wrong_purpose, bad_signature";
    EXPECT_EQ(codes["malformed_signed"] + codes["wrong_purpose"] + codes["bad_signature"],
              8 * bytes.size());
    EXPECT_GT(codes["bad_signature"], 8 * (64 + 32));
  }
}

TEST(Signed, LargeContentIsPacked) {
  const std::string text(100'000, 'x');
  const std::vector<uint8_t> bytes = signed_by(3, Purpose::bundle, text, 1000);
  EXPECT_LT(bytes.size(), 1000U);
  EXPECT_EQ(opened(bytes, Purpose::bundle), text);
  EXPECT_EQ(opened(signed_by(3, Purpose::bundle, "short", 1000), Purpose::bundle), "short");
}

// A payload of any bytes, under a good signature, that says it unpacks to `size`.
std::string unpacked(std::span<const uint8_t> payload, uint64_t size) {
  SignedObject object{.header = header_of(Purpose::bundle),
                      .header_bytes = {},
                      .payload = payload,
                      .signature = {}};
  object.header.unpacked_bytes = size;
  std::vector<uint8_t> storage;
  const auto content = content_of(object, storage);
  return content ? std::to_string(content->size()) : std::string(content.error().code);
}

std::vector<uint8_t> packed(size_t size) {
  const std::vector<uint8_t> zeros(size);
  std::vector<uint8_t> out(ZSTD_compressBound(size));
  out.resize(ZSTD_compress(out.data(), out.size(), zeros.data(), zeros.size(), 19));
  return out;
}

TEST(Signed, UnpacksWhatItSaysAndNothingElse) {
  std::vector<uint8_t> frame = packed(5'000'000);
  ASSERT_LT(frame.size(), 1000U);
  EXPECT_EQ(unpacked(frame, 5'000'000), "5000000");
  for (const uint64_t wrong : {uint64_t{0}, uint64_t{1}, uint64_t{4'999'999}, uint64_t{5'000'001},
                               unpacked_bytes_max + 1, UINT64_MAX})
    EXPECT_EQ(unpacked(frame, wrong), "bad_packing") << wrong;
  // A bomb: more than is ever unpacked, whatever it says.
  const std::vector<uint8_t> bomb = packed(unpacked_bytes_max + 1);
  EXPECT_EQ(unpacked(bomb, unpacked_bytes_max + 1), "bad_packing");
  EXPECT_EQ(unpacked(bomb, 5'000'000), "bad_packing");
  std::vector<uint8_t> two = frame;
  two.insert(two.end(), frame.begin(), frame.end());
  EXPECT_EQ(unpacked(two, 5'000'000), "bad_packing");
  EXPECT_EQ(unpacked(two, 10'000'000), "bad_packing");
  // A skippable frame, before or behind, hides bytes that nobody looks at.
  std::vector<uint8_t> skippable = {0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4};
  std::vector<uint8_t> behind = frame;
  behind.insert(behind.end(), skippable.begin(), skippable.end());
  EXPECT_EQ(unpacked(behind, 5'000'000), "bad_packing");
  skippable.insert(skippable.end(), frame.begin(), frame.end());
  EXPECT_EQ(unpacked(skippable, 5'000'000), "bad_packing");
  for (size_t size = 0; size < frame.size(); ++size)
    ASSERT_EQ(unpacked(std::span(frame).first(size), 5'000'000), "bad_packing") << size;
}

}  // namespace
}  // namespace holdfast::token
