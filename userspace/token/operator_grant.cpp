#include "userspace/token/operator_grant.hpp"

#include <algorithm>

#include "userspace/base/clock.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

constexpr size_t grant_bytes_max = 16384;
constexpr size_t name_bytes_max = 256;
constexpr size_t names_max = 64;

std::unexpected<Error> malformed(std::string why) {
  return fail(ErrorKind::invalid, "malformed_grant", std::move(why),
              "make it as userspace/token/README.md says");
}

std::vector<uint8_t> encode(const OperatorGrant& grant) {
  std::vector<uint8_t> bytes;
  cbor::Writer out(bytes);
  const auto list = [&](const std::vector<std::string>& names) {
    out.array(names.size());
    for (const std::string& each : names) out.text(each);
    out.end();
  };
  const bool security = !grant.key.application.empty();
  out.map(security ? 5 : 4).text("key").bytes(grant.key.key).text("name").text(grant.name);
  out.text("verbs");
  list(grant.verbs);
  out.text("tenants");
  list(grant.tenants);
  if (security) out.text("application").text(grant.key.application);
  out.end();
  return bytes;
}

}  // namespace

Result<std::vector<uint8_t>> sign_operator_grant(const Signer& signer, std::string_view node,
                                                 uint64_t life_s, const OperatorGrant& grant) {
  const std::vector<uint8_t> content = encode(grant);
  if (const auto good = decode_operator_grant(content); !good) return std::unexpected(good.error());
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  return make_signed(
      signer, Purpose::operator_grant,
      {.audience = std::string(node), .issued_s = now_s, .expires_s = now_s + life_s}, content);
}

Result<OperatorGrant> decode_operator_grant(std::span<const uint8_t> content) {
  OperatorGrant grant;
  cbor::Reader in(content, {.depth_max = 2, .bytes_max = grant_bytes_max});
  const auto refuse = [&] { in.refuse(cbor::Fault::out_of_range); };
  const auto expect = [&](std::string_view key) {
    if (in.text() != key) refuse();
  };
  const auto name = [&] {
    const std::string_view text = in.text();
    if (text.empty() || text.size() > name_bytes_max) refuse();
    return std::string(text);
  };
  const auto list = [&](std::vector<std::string>& out) {
    const uint64_t count = in.array();
    if (count == 0 || count > names_max) refuse();
    while (in.more()) out.push_back(name());
    in.end();
  };
  const uint64_t entries = in.map();
  expect("key");
  const std::span<const uint8_t> key = in.bytes();
  if (key.size() == grant.key.key.size())
    std::ranges::copy(key, grant.key.key.begin());
  else
    refuse();
  expect("name");
  grant.name = name();
  expect("verbs");
  list(grant.verbs);
  expect("tenants");
  list(grant.tenants);
  if (entries > 4) {
    expect("application");
    grant.key.application = name();
  }
  in.end();
  if (!in.finish()) return malformed("what was signed is no operator grant: " + in.error().message);
  return grant;
}

}  // namespace holdfast::token
