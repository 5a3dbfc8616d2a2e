#include "userspace/token/token.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <sodium.h>

#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

using cbor::Reader;
using cbor::Writer;

// Header parameters: RFC 9052, RFC 9597 (CWT claims), RFC 9596 (typ), RFC 9942 (receipts).
enum Parameter : uint16_t {
  alg = 1,
  crit = 2,
  kid = 4,
  cwt_claims = 15,
  typ = 16,
  vds = 395,
  vdp = 396
};
constexpr int64_t private_label = -65537;  // {1: tree size, 2: epoch}
constexpr int64_t ed25519 = -19;           // RFC 9864
constexpr uint64_t rfc9162_sha256 = 1;     // verifiable data structures, RFC 9942
constexpr int64_t inclusion_proofs = -1;
constexpr size_t tokens_max = tree_size_max;

struct KindText {
  Kind kind;
  std::string_view name, type, context;
};
constexpr std::array<KindText, 3> kinds{{
    {Kind::grant, "grant", "application/holdfast-grant+cwt", "holdfast grant token v1"},
    {Kind::renew, "renew", "application/holdfast-renew+cwt", "holdfast renew token v1"},
    {Kind::use, "use", "application/holdfast-use+cwt", "holdfast use token v1"},
}};
const KindText& text_of(Kind kind) {
  return kinds[static_cast<size_t>(kind)];
}

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::unexpected<Refused> refuse(Refusal why, std::string detail = {}) {
  return std::unexpected(Refused{why, std::move(detail)});
}
std::unexpected<Refused> malformed(const Reader& in) {
  return refuse(Refusal::malformed, in.error().message);
}

// The issuer, the node and the end, as CWT claims of the head.
void read_claims_of_head(Reader& in, Head& head) {
  if (in.map() != 3) in.refuse(cbor::Fault::out_of_range);
  const auto label = [&](uint64_t wanted) {
    if (in.u64() != wanted) in.refuse(cbor::Fault::out_of_range);
  };
  label(1);
  head.issuer = in.text();
  label(3);
  head.audience = in.text();
  label(4);
  head.expires = in.u64();
  in.end();
}

void read_private(Reader& in, Head& head) {
  if (in.map() != 2 || in.u64() != 1) in.refuse(cbor::Fault::out_of_range);
  head.tree_size = in.u64();
  if (head.tree_size == 0 || head.tree_size > tree_size_max) in.refuse(cbor::Fault::out_of_range);
  if (in.u64() != 2) in.refuse(cbor::Fault::out_of_range);
  head.epoch = in.u64();
  in.end();
}

std::vector<uint8_t> encode_proof(uint64_t size, uint64_t index, std::span<const Digest> path) {
  std::vector<uint8_t> proof;
  Writer out(proof);
  out.array(3).u64(size).u64(index).array(path.size());
  for (const Digest& node : path) out.bytes(node);
  out.end().end();
  return proof;
}

// [[header, {396: {-1: [proof]}}, nil, signature], claims]
std::vector<uint8_t> put_together(std::span<const uint8_t> header, std::span<const uint8_t> proof,
                                  const Signature& signature, std::span<const uint8_t> claims) {
  std::vector<uint8_t> token;
  Writer out(token);
  out.array(2).array(4).bytes(header);
  out.map(1).u64(vdp).map(1).i64(inclusion_proofs).array(1).bytes(proof).end().end().end();
  out.null().bytes(signature).end().bytes(claims).end();
  return token;
}

}  // namespace

std::string_view name_of(Kind kind) {
  return text_of(kind).name;
}

std::string_view name_of(Refusal refusal) {
  switch (refusal) {
#define X(name, text) \
  case Refusal::name: return #name;
    HF_TOKEN_REFUSALS(X)
    HF_USE_REFUSALS(X)
#undef X
  }
  return "malformed";
}

std::string_view describe(Refusal refusal) {
  switch (refusal) {
#define X(name, text) \
  case Refusal::name: return text;
    HF_TOKEN_REFUSALS(X)
    HF_USE_REFUSALS(X)
#undef X
  }
  return "";
}

std::vector<uint8_t> encode_head(const Head& head) {
  std::vector<uint8_t> bytes;
  Writer out(bytes);
  out.map(6).u64(alg).i64(ed25519).u64(kid).bytes(head.key);
  out.u64(cwt_claims).map(3);
  out.u64(1).text(head.issuer).u64(3).text(head.audience).u64(4).u64(head.expires).end();
  out.u64(typ).text(text_of(head.kind).type).u64(vds).u64(rfc9162_sha256);
  out.i64(private_label).map(2).u64(1).u64(head.tree_size).u64(2).u64(head.epoch).end().end();
  return bytes;
}

Checked<Head> decode_head(std::span<const uint8_t> bytes) {
  Head head;
  Reader in(bytes, {.depth_max = 3, .bytes_max = header_bytes_max});
  std::string_view type;
  bool right_algorithms = true;
  uint32_t parameters = 0;
  for (in.map(); in.more(); ++parameters) {
    switch (in.i64()) {
      case alg: right_algorithms &= in.i64() == ed25519; break;
      case crit:
        in.skip();
        if (in.ok()) return refuse(Refusal::unknown_critical);
        break;
      case kid: {
        const std::span<const uint8_t> key = in.bytes();
        if (key.size() == head.key.size()) {
          std::ranges::copy(key, head.key.begin());
        } else {
          in.refuse(cbor::Fault::out_of_range);
        }
        break;
      }
      case cwt_claims: read_claims_of_head(in, head); break;
      case typ: type = in.text(); break;
      case vds: right_algorithms &= in.u64() == rfc9162_sha256; break;
      case private_label: read_private(in, head); break;
      default:
        if (in.ok()) return refuse(Refusal::unknown_header);
    }
    if (!in.ok()) return malformed(in);
  }
  in.end();
  if (!in.finish()) return malformed(in);
  // Keys are in order and none is there twice, so the count says that all are there.
  if (parameters != 6) return refuse(Refusal::malformed, "the header lacks a parameter");
  if (!right_algorithms) return refuse(Refusal::wrong_algorithm);
  const auto* kind = std::ranges::find(kinds, type, &KindText::type);
  if (kind == kinds.end()) return refuse(Refusal::wrong_type);
  head.kind = kind->kind;
  return head;
}

Checked<Parts> take_apart(std::span<const uint8_t> token) {
  Reader in(token, {.depth_max = 6, .bytes_max = token_bytes_max});
  in.array_of(2);
  in.array_of(4);
  const std::span<const uint8_t> header = in.bytes();
  if (header.size() > header_bytes_max) in.refuse(cbor::Fault::too_long);
  if (in.map() != 1 || in.u64() != vdp || in.map() != 1 || in.i64() != inclusion_proofs)
    in.refuse(cbor::Fault::out_of_range);
  in.array_of(1);
  const std::span<const uint8_t> proof = in.bytes();
  in.end();
  in.end();
  in.end();
  in.null();
  const std::span<const uint8_t> signature = in.bytes();
  if (signature.size() != sizeof(Signature)) in.refuse(cbor::Fault::out_of_range);
  in.end();
  const std::span<const uint8_t> claims = in.bytes();
  in.end();
  if (!in.finish()) return malformed(in);

  Checked<Head> head = decode_head(header);
  if (!head) return std::unexpected(std::move(head.error()));

  Reader steps(proof, {.depth_max = 2, .bytes_max = token_bytes_max});
  steps.array_of(3);
  const uint64_t size = steps.u64();
  const uint64_t index = steps.u64();
  Parts parts{.header = header,
              .head = std::move(*head),
              .signature = signature.first<sizeof(Signature)>(),
              .index = index,
              .claims = claims,
              .nodes = {}};
  const uint64_t nodes = steps.array();
  for (size_t i = 0; steps.more(); ++i) {
    const std::span<const uint8_t> node = steps.bytes();
    if (node.size() != sizeof(Digest) || i == path_nodes_max) {
      steps.refuse(cbor::Fault::out_of_range);
    } else {
      std::ranges::copy(node, parts.nodes[i].begin());
    }
  }
  steps.end();
  steps.end();
  if (!steps.finish()) return malformed(steps);
  if (size != parts.head.tree_size || index >= size || nodes != path_length(index, size))
    return refuse(Refusal::bad_proof);
  return parts;
}

std::vector<uint8_t> signed_bytes(Kind kind, std::span<const uint8_t> header, const Digest& root) {
  std::vector<uint8_t> bytes;
  Writer(bytes)
      .array(4)
      .text("Signature1")
      .bytes(header)
      .bytes(bytes_of(text_of(kind).context))
      .bytes(root)
      .end();
  return bytes;
}

Digest head_id(Kind kind, std::span<const uint8_t> header, const Digest& root) {
  return sha256(signed_bytes(kind, header, root));
}

Result<std::vector<std::vector<uint8_t>>> issue(const Signer& signer, Head head,
                                                std::span<const Claims> claims) {
  if (claims.empty() || claims.size() > tokens_max)
    return fail(ErrorKind::invalid, "too_many_tokens",
                fmt::format("{} tokens in one tree", claims.size()),
                fmt::format("1 to {}", tokens_max));
  std::vector<std::vector<uint8_t>> leaves;
  std::vector<Digest> hashes;
  for (const Claims& each : claims) {
    Result<std::vector<uint8_t>> leaf = encode_claims(each, head.kind);
    if (!leaf) return pass_on(leaf, fmt::format("token {}", leaves.size() + 1));
    hashes.push_back(leaf_hash(*leaf));
    leaves.push_back(std::move(*leaf));
  }
  const Tree tree(std::move(hashes));
  head.tree_size = tree.size();
  head.key = signer.key();
  const std::vector<uint8_t> header = encode_head(head);
  if (header.size() > header_bytes_max)
    return fail(ErrorKind::invalid, "bad_claims",
                fmt::format("a head of {} bytes; at most {}", header.size(), header_bytes_max),
                "use shorter names of issuer and node");
  const Result<Signature> signature =
      sign_plainly(signer, signed_bytes(head.kind, header, tree.root()));
  if (!signature) return std::unexpected(signature.error());
  std::vector<std::vector<uint8_t>> tokens;
  tokens.reserve(leaves.size());
  for (size_t i = 0; i < leaves.size(); ++i)
    tokens.push_back(
        put_together(header, encode_proof(tree.size(), i, tree.path(i)), *signature, leaves[i]));
  return tokens;
}

std::string to_text(std::span<const uint8_t> token) {
  constexpr int variant = sodium_base64_VARIANT_URLSAFE_NO_PADDING;
  std::string text(sodium_base64_encoded_len(token.size(), variant), '\0');
  sodium_bin2base64(text.data(), text.size(), token.data(), token.size(), variant);
  text.pop_back();  // the terminating zero
  return text;
}

Result<std::vector<uint8_t>> from_text(std::string_view text) {
  std::vector<uint8_t> token(text.size());
  size_t size = 0;
  const char* end = nullptr;
  if (text.empty() || text.size() > 2 * token_bytes_max ||
      sodium_base642bin(token.data(), token.size(), text.data(), text.size(), nullptr, &size, &end,
                        sodium_base64_VARIANT_URLSAFE_NO_PADDING) != 0 ||
      end != text.data() + text.size())
    return fail(ErrorKind::invalid, "token_text", "that is no token: not base64url without padding",
                "give it as `holdfast token issue` printed it");
  token.resize(size);
  return token;
}

std::string node_name_of(const Digest& thumbprint) {
  return "ni:///sha-256;" + to_text(thumbprint);
}

std::string node_name(const PublicKey& key) {
  return node_name_of(thumbprint(key));
}

}  // namespace holdfast::token
