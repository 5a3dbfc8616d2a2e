// Any bytes either are refused with a message that names the file, or say whose key may sign what;
// and a token is good exactly where they allow it.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tests/fuzz/issuer.hpp"
#include "tests/fuzz/libfyaml_leaks.hpp"
#include "userspace/base/check.hpp"

namespace {

using namespace holdfast::token;

const std::vector<uint8_t>& good_token() {
  static const std::vector<uint8_t> made = [] {
    const uint64_t now_s = place().now_s;
    Claims claims;
    claims.issuer = "cp.example";
    claims.audience = place().node;
    claims.not_before = claims.issued_at = now_s;
    claims.expires = now_s + life_max_s;
    claims.tenant = "acme/shop/prod";
    claims.endpoints = {"web"};
    claims.operations = {"connect"};
    claims.ttl_s = life_max_s;
    Head head;
    head.issuer = claims.issuer;
    head.audience = claims.audience;
    head.expires = claims.expires;
    head.epoch = place().epoch;
    std::vector<uint8_t> token = issue(issuer_key(), head, {&claims, 1})->front();
    CHECK(verify(token, anchors(), place()));
    return token;
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const holdfast::Result<Anchors> read = Anchors::parse(text, "fuzz");
  if (!read) {
    CHECK(read.error().kind == holdfast::ErrorKind::invalid);
    CHECK(read.error().message.starts_with("fuzz:"));
    return 0;
  }
  const PublicKey& key = issuer_key().public_key();
  const Anchor* anchor = read->find(thumbprint(key));
  const bool good = verify(good_token(), *read, place()).has_value();
  if (anchor == nullptr) {
    CHECK(!good);
    return 0;
  }
  CHECK(anchor->key == key && anchor->thumbprint == thumbprint(key) && !anchor->issuer.empty());
  const auto names = [](const std::vector<std::string>& list, std::string_view name) {
    return std::ranges::any_of(list, [&](const auto& each) { return each == "*" || each == name; });
  };
  const bool live = anchor->state == KeyState::current || anchor->state == KeyState::retiring;
  CHECK(good == (live && anchor->for_tokens && anchor->life_max_s == life_max_s &&
                 anchor->issuer == "cp.example" && names(anchor->tenants, "acme/shop/prod") &&
                 names(anchor->operations, "connect")));
  return 0;
}
