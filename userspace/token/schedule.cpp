#include "userspace/token/schedule.hpp"

#include <algorithm>
#include <utility>

#include "userspace/base/clock.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

constexpr size_t content_bytes_max = 1024;
constexpr size_t tenant_bytes_max = 256;
constexpr uint64_t grace_max_ns = 300 * ns_per_s;  // no lease has longer

std::unexpected<Error> malformed(std::string_view code, std::string why) {
  return fail(ErrorKind::invalid, code, std::move(why),
              "make it as userspace/token/README.md says");
}

// The values of a map whose keys come in the one order that there is.
class Content {
 public:
  explicit Content(std::span<const uint8_t> bytes)
      : in_(bytes, {.depth_max = 1, .bytes_max = content_bytes_max}) {}

  uint64_t map() { return in_.map(); }
  template <size_t N>
  void bytes(std::string_view key, std::array<uint8_t, N>& out) {
    expect(key);
    const std::span<const uint8_t> from = in_.bytes();
    if (from.size() == N)
      std::ranges::copy(from, out.begin());
    else
      refuse();
  }
  void text(std::string_view key, size_t bytes_max, std::string& out) {
    expect(key);
    out = in_.text();
    if (out.empty() || out.size() > bytes_max) refuse();
  }
  uint64_t number(std::string_view key, uint64_t max) {
    expect(key);
    const uint64_t value = in_.u64();
    if (value > max) refuse();
    return value;
  }
  // What is wrong, if anything is.
  std::optional<std::string> finish() {
    in_.end();
    if (in_.finish()) return std::nullopt;
    return in_.error().message;
  }

 private:
  void refuse() { in_.refuse(cbor::Fault::out_of_range); }
  void expect(std::string_view key) {
    if (in_.text() != key) refuse();
  }

  cbor::Reader in_;
};

std::vector<uint8_t> encode(const Preempt& preempt) {
  std::vector<uint8_t> bytes;
  cbor::Writer out(bytes);
  out.map(preempt.grace_ns ? 4 : 3).text("lease").bytes(preempt.lease);
  out.text("reason").text(preempt.reason);
  if (preempt.grace_ns) out.text("grace_ns").u64(*preempt.grace_ns);
  out.text("generation").u64(preempt.generation).end();
  return bytes;
}

std::vector<uint8_t> encode(const Admission& admission) {
  std::vector<uint8_t> bytes;
  cbor::Writer out(bytes);
  out.map(3).text("token").bytes(admission.token).text("reason").text(admission.reason);
  out.text("tenant").text(admission.tenant).end();
  return bytes;
}

Result<std::vector<uint8_t>> sign(const Signer& signer, Purpose purpose, std::string_view node,
                                  uint64_t life_s, std::span<const uint8_t> content) {
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  return make_signed(
      signer, purpose,
      {.audience = std::string(node), .issued_s = now_s, .expires_s = now_s + life_s}, content);
}

}  // namespace

Result<std::vector<uint8_t>> sign_preempt(const Signer& signer, std::string_view node,
                                          uint64_t life_s, const Preempt& preempt) {
  const std::vector<uint8_t> content = encode(preempt);
  if (const auto good = decode_preempt(content); !good) return std::unexpected(good.error());
  return sign(signer, Purpose::preempt, node, life_s, content);
}

Result<std::vector<uint8_t>> sign_admission(const Signer& signer, std::string_view node,
                                            uint64_t life_s, const Admission& admission) {
  const std::vector<uint8_t> content = encode(admission);
  if (const auto good = decode_admission(content); !good) return std::unexpected(good.error());
  return sign(signer, Purpose::admission, node, life_s, content);
}

Result<Preempt> decode_preempt(std::span<const uint8_t> content) {
  Preempt preempt;
  Content in(content);
  const bool has_grace = in.map() > 3;
  in.bytes("lease", preempt.lease);
  in.text("reason", reason_bytes_max, preempt.reason);
  if (has_grace) preempt.grace_ns = in.number("grace_ns", grace_max_ns);
  preempt.generation = in.number("generation", UINT64_MAX);
  if (const auto wrong = in.finish(); wrong)
    return malformed("malformed_preempt", "what was signed is no preempt: " + *wrong);
  return preempt;
}

Result<Admission> decode_admission(std::span<const uint8_t> content) {
  Admission admission;
  Content in(content);
  in.map();
  in.bytes("token", admission.token);
  in.text("reason", reason_bytes_max, admission.reason);
  in.text("tenant", tenant_bytes_max, admission.tenant);
  if (const auto wrong = in.finish(); wrong)
    return malformed("malformed_admission", "what was signed is no admission: " + *wrong);
  return admission;
}

}  // namespace holdfast::token
