#include "userspace/daemon/bundles.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/daemon/state_file.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "bundle";
constexpr std::string_view anchors_name = "the bundle's anchors";

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// [generation, digest, key, signer, anchors], and behind it the hash of that.
std::vector<uint8_t> encode(const BundleRecord& record) {
  std::vector<uint8_t> bytes;
  cbor::Writer(bytes)
      .array(5)
      .u64(record.generation)
      .bytes(record.digest)
      .bytes(record.key)
      .text(record.signer)
      .text(record.anchors)
      .end();
  const token::Digest sum = token::sha256({std::span<const uint8_t>(bytes)});
  bytes.insert(bytes.end(), sum.begin(), sum.end());
  return bytes;
}

bool decode(std::span<const uint8_t> bytes, BundleRecord& record) {
  constexpr size_t sum_bytes = sizeof(token::Digest);
  if (bytes.size() < sum_bytes) return false;
  const std::span<const uint8_t> content = bytes.first(bytes.size() - sum_bytes);
  if (!std::ranges::equal(token::sha256({content}), bytes.last(sum_bytes))) return false;
  cbor::Reader in(content, {.bytes_max = content.size()});
  const auto copy = [&](token::Digest& out) {
    const std::span<const uint8_t> from = in.bytes();
    if (from.size() == out.size()) std::ranges::copy(from, out.begin());
  };
  in.array_of(5);
  record.generation = in.u64();
  copy(record.digest);
  copy(record.key);
  record.signer = in.text();
  record.anchors = in.text();
  in.end();
  return in.finish();
}

std::unexpected<Error> deny(std::string_view code, std::string what, std::string next_step) {
  return std::unexpected(
      Error{ErrorKind::denied, code, 0, std::move(what), std::move(next_step)});
}

bool covers(const std::vector<std::string>& wide, const std::vector<std::string>& narrow) {
  const auto listed = [&](std::string_view name) {
    return std::ranges::find(wide, name) != wide.end();
  };
  return listed("*") || std::ranges::all_of(narrow, listed);
}

// A bundle hands on no more than its signer has, and makes no signers of bundles.
Status check_anchors(const token::Anchors& anchors, const token::Anchor& signer) {
  for (const token::Anchor& each : anchors.all()) {
    const char* beyond = each.for_bundles                              ? "uses"
                         : !covers(signer.tenants, each.tenants)       ? "tenants"
                         : !covers(signer.operations, each.operations) ? "operations"
                         : !covers(signer.verbs, each.verbs)           ? "verbs"
                         : each.life_max_s > signer.life_max_s         ? "life"
                                                                       : nullptr;
    if (beyond != nullptr)
      return fail(ErrorKind::denied, "anchor_too_wide",
                  fmt::format("the {} of the key of {} go beyond those of {}, who signed", beyond,
                              each.issuer, signer.issuer),
                  "a bundle hands on what its signer has, and no right to sign bundles");
  }
  return {};
}

}  // namespace

Result<Bundles> Bundles::open(const std::string& state_dir) {
  const std::string path = fmt::format("{}/{}", state_dir, file_name);
  const Result<std::string> bytes = read_state_file(path);
  if (!bytes && bytes.error().sys == ENOENT) return Bundles(state_dir, {});
  if (!bytes) return std::unexpected(bytes.error());
  BundleRecord record;
  if (!decode(bytes_of(*bytes), record))
    return fail(ErrorKind::invalid, "bundle_record_damaged",
                path + " is damaged, so it is not known which bundle was put in force last",
                "put a copy back; or remove it, start, and push the newest bundle at once: until "
                "then an older one would be taken");
  return Bundles(state_dir, std::move(record));
}

Status Bundles::remember(BundleRecord record) {
  const std::vector<uint8_t> bytes = encode(record);
  if (Status ok = write_state_file(state_dir_, file_name,
                                   {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
      !ok)
    return ok;
  last_ = std::move(record);
  return {};
}

Result<BelievedBundle> Bundles::check(std::span<const uint8_t> bytes, const Tokens& tokens,
                                      bool& signature_held) const {
  const Result<token::SignedObject> object =
      token::take_apart_signed(bytes, token::Purpose::bundle);
  if (!object) return std::unexpected(object.error());
  const token::SignedHeader& header = object->header;
  if (header.audience != tokens.node())
    return deny("wrong_audience", fmt::format("the bundle is for {}", header.audience),
                "sign one for this node: holdfast status shows its name");
  if (tokens.clock_in_doubt())
    return deny("clock_suspect", "the node's clock is in doubt, and bundles are dated",
                "set the clock right, then restart holdfastd");
  const uint64_t now_s = wall_now_ns() / ns_per_s;
  if (header.issued_s > now_s + token::clock_skew_s)
    return deny("issued_in_future", "the bundle is dated " + rfc3339_utc(header.issued_s * ns_per_s),
                "see whether its signer's clock is right");
  if (header.expires_s <= now_s)
    return deny("expired", "the bundle expired at " + rfc3339_utc(header.expires_s * ns_per_s),
                "sign it again");
  if (header.expires_s - header.issued_s > token::bundle_life_max_s)
    return deny("life_too_long", "the bundle may be put in force for more than 30 days",
                "sign it for a shorter time");
  Result<std::shared_ptr<const token::Anchor>> signer =
      tokens.signer(header.key, token::Purpose::bundle);
  if (!signer) return pass_on(signer);
  if (!token::is_signed_by((*signer)->key, token::Purpose::bundle, *object))
    return deny("bad_signature", "the signature is not the key's", "sign with the key that is named");
  signature_held = true;

  const token::Digest digest = token::sha256({bytes});
  if (header.generation < last_.generation)
    return fail(ErrorKind::conflict, "old_generation",
                fmt::format("the bundle has generation {}, and {} was in force", header.generation,
                            last_.generation),
                "push a newer one: generations only rise");
  if (header.generation == last_.generation && digest != last_.digest)
    return fail(ErrorKind::conflict, "generation_used",
                fmt::format("another bundle has generation {} already", header.generation),
                "give each its own generation");
  BelievedBundle believed{.record = {.generation = header.generation,
                                     .digest = digest,
                                     .key = header.key,
                                     .signer = (*signer)->issuer,
                                     .anchors = {}},
                          .signer = std::move(*signer),
                          .policy = {},
                          .anchors = {},
                          .unpacked = {}};
  const auto content = token::content_of(*object, believed.unpacked);
  if (!content) return std::unexpected(content.error());
  const Result<token::Bundle> bundle = token::decode_bundle(*content);
  if (!bundle) return std::unexpected(bundle.error());
  believed.policy = bundle->policy;
  if (!bundle->anchors.empty()) {
    Result<token::Anchors> anchors = token::Anchors::parse(bundle->anchors, anchors_name);
    if (!anchors) return pass_on(anchors);
    if (Status ok = check_anchors(*anchors, *believed.signer); !ok) return pass_on(ok);
    believed.anchors = std::move(*anchors);
    believed.record.anchors = bundle->anchors;
  }
  return believed;
}

}  // namespace holdfast
