#include "userspace/daemon/bundles.hpp"

#include <algorithm>
#include <cerrno>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/state_file.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "bundle";
constexpr std::string_view anchors_name = "the bundle's anchors";

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

void encode(cbor::Writer& out, const BundleRecord& record) {
  out.array(8)
      .u64(record.generation)
      .bytes(record.digest)
      .bytes(record.key)
      .text(record.signer)
      .u64(record.issued_s)
      .bytes(record.policy_digest)
      .text(record.anchors)
      .boolean(record.enrolled)
      .end();
}

void decode(cbor::Reader& in, BundleRecord& record) {
  const auto copy = [&](token::Digest& out) {
    const std::span<const uint8_t> from = in.bytes();
    if (from.size() == out.size()) std::ranges::copy(from, out.begin());
  };
  in.array_of(8);
  record.generation = in.u64();
  copy(record.digest);
  copy(record.key);
  record.signer = in.text();
  record.issued_s = in.u64();
  copy(record.policy_digest);
  record.anchors = in.text();
  record.enrolled = in.boolean();
  in.end();
}

}  // namespace

Result<Bundles> Bundles::open(const std::string& state_dir) {
  const std::string path = fmt::format("{}/{}", state_dir, file_name);
  Bundles bundles(state_dir);
  const Result<std::string> file = read_state_file(path);
  if (!file && file.error().sys == ENOENT) return bundles;
  if (!file) return std::unexpected(file.error());
  const std::span<const uint8_t> bytes = bytes_of(*file);
  constexpr size_t sum_bytes = sizeof(token::Digest);
  bool whole = bytes.size() > sum_bytes;
  if (whole) {
    const std::span<const uint8_t> content = bytes.first(bytes.size() - sum_bytes);
    cbor::Reader in(content, {.bytes_max = content.size()});
    in.array_of(2);
    decode(in, bundles.last_);
    decode(in, bundles.former_);
    in.end();
    whole = in.finish() && std::ranges::equal(token::sha256({content}), bytes.last(sum_bytes));
  }
  if (!whole)
    return fail(ErrorKind::invalid, "bundle_record_damaged",
                path + " is damaged, so it is not known which bundle was put in force last",
                "put a copy back; or remove it, start, and push a newer bundle");
  return bundles;
}

const BundleRecord* Bundles::of(const token::Digest& policy_digest) const {
  for (const BundleRecord* each : {&last_, &former_})
    if (each->generation != 0 && each->policy_digest == policy_digest) return each;
  return nullptr;
}

Tokens::BundleAnchors Bundles::anchors_of(const token::Digest& policy_digest) const {
  const BundleRecord* bundle = of(policy_digest);
  if (bundle == nullptr) return {};
  Tokens::BundleAnchors out{.anchors = {}, .signer = bundle->key, .issued_s = bundle->issued_s};
  if (bundle->anchors.empty()) return out;
  Result<token::Anchors> read = token::Anchors::parse(bundle->anchors, anchors_name);
  if (read)
    out.anchors = std::move(*read);
  else  // good when it came: another version has written it
    log::error("bundle_anchors_not_read",
               {{"cause", read.error().text()}, {"effect", "none of its keys is believed"}});
  return out;
}

// [the last, the one that was in force when it came], and behind it the hash of that.
Status Bundles::write() const {
  std::vector<uint8_t> bytes;
  cbor::Writer out(bytes);
  out.array(2);
  encode(out, last_);
  encode(out, former_);
  out.end();
  const token::Digest sum = token::sha256({std::span<const uint8_t>(bytes)});
  bytes.insert(bytes.end(), sum.begin(), sum.end());
  return write_state_file(state_dir_, file_name,
                          {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

Status Bundles::remember(BundleRecord record, const token::Digest& policy_digest) {
  const BundleRecord* now = of(policy_digest);
  BundleRecord former = now != nullptr ? *now : BundleRecord();
  before_ = {std::exchange(last_, std::move(record)), std::exchange(former_, std::move(former))};
  Status ok = write();
  // It may have come to stand there all the same.
  if (!ok)
    if (Status back = take_back(); !back)
      log::error("bundle_record_not_written", {{"cause", back.error().text()}});
  return ok;
}

Status Bundles::take_back() {
  std::tie(last_, former_) = *std::exchange(before_, std::nullopt);
  return write();
}

Result<BelievedBundle> Bundles::check(std::span<const uint8_t> bytes, const Tokens& tokens,
                                      const InForce& now, bool& signature_held) const {
  const Result<token::SignedObject> object =
      token::take_apart_signed(bytes, token::Purpose::bundle);
  if (!object) return std::unexpected(object.error());
  const auto signer = tokens.judge_kept(*object, token::Purpose::bundle, token::bundle_life_max_s);
  if (!signer) return std::unexpected(signer.error());
  signature_held = true;
  return read(*object, bytes, **signer, now);
}

Result<BelievedBundle> Bundles::read(const token::SignedObject& object,
                                     std::span<const uint8_t> bytes, const token::Anchor& signer,
                                     const InForce& now) const {
  const token::SignedHeader& header = object.header;
  BelievedBundle believed{.record = {.generation = header.generation,
                                     .digest = token::sha256({bytes}),
                                     .key = header.key,
                                     .signer = signer.issuer,
                                     .issued_s = header.issued_s,
                                     .policy_digest = {},
                                     .anchors = {}},
                          .policy = {},
                          .unpacked = {}};
  const bool again = believed.record.digest == last_.digest;
  if (again && last_.policy_digest == now.policy_digest) {
    believed.is_in_force = true;
    return believed;
  }
  const uint64_t floor = std::max(last_.generation, now.generation);
  if (header.generation < floor)
    return fail(
        ErrorKind::conflict, "old_generation",
        fmt::format("the bundle has generation {}, and {} was in force", header.generation, floor),
        "push a newer one: generations only rise");
  if (header.generation == floor && !again)
    return fail(ErrorKind::conflict, "generation_used",
                fmt::format("another policy has generation {} already", header.generation),
                "give each its own generation");
  const auto content = token::content_of(object, believed.unpacked);
  if (!content) return std::unexpected(content.error());
  const Result<token::Bundle> bundle = token::decode_bundle(*content);
  if (!bundle) return std::unexpected(bundle.error());
  believed.policy = bundle->policy;
  if (bundle->anchors.empty()) return believed;
  Result<token::Anchors> anchors = token::Anchors::parse(bundle->anchors, anchors_name);
  if (!anchors) return pass_on(anchors);
  for (const token::Anchor& each : anchors->all())
    if (const char* beyond = token::what_goes_beyond(each, signer); beyond != nullptr)
      return fail(ErrorKind::denied, "anchor_too_wide",
                  fmt::format("the {} of the key of {} go beyond those of {}, who signed", beyond,
                              each.issuer, signer.issuer),
                  "a bundle hands on what its signer has, and no right to sign bundles or grants");
  believed.record.anchors = bundle->anchors;
  return believed;
}

}  // namespace holdfast
