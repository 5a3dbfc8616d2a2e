#include "userspace/token/bundle.hpp"

#include <string>

#include "userspace/base/clock.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

constexpr size_t pack_from = 4096;

}  // namespace

Result<std::vector<uint8_t>> sign_bundle(const Signer& signer, const BundleFor& target,
                                         const Bundle& bundle) {
  std::vector<uint8_t> content;
  cbor::Writer out(content);
  out.map(bundle.anchors.empty() ? 1 : 2).text("policy").text(bundle.policy);
  if (!bundle.anchors.empty()) out.text("anchors").text(bundle.anchors);
  out.end();
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  const std::optional<Digest>& nonce = target.enrollment_nonce;
  return make_signed(signer, nonce ? Purpose::enrollment : Purpose::bundle,
                     {.audience = std::string(target.node),
                      .issued_s = now_s,
                      .expires_s = now_s + target.life_s,
                      .generation = target.generation,
                      .nonce = nonce.value_or(Digest())},
                     content, pack_from);
}

Result<Bundle> decode_bundle(std::span<const uint8_t> content) {
  Bundle bundle;
  cbor::Reader in(content, {.depth_max = 1, .bytes_max = content.size()});
  const uint64_t entries = in.map();
  if (in.text() != "policy") in.refuse(cbor::Fault::out_of_range);
  bundle.policy = in.text();
  if (entries > 1) {
    if (in.text() != "anchors") in.refuse(cbor::Fault::out_of_range);
    bundle.anchors = in.text();
  }
  in.end();
  if (!in.finish())
    return fail(ErrorKind::invalid, "malformed_bundle",
                "what was signed is no bundle: " + in.error().message,
                "make it as userspace/token/README.md says");
  return bundle;
}

}  // namespace holdfast::token
