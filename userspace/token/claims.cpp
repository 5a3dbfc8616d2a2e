// Claims to bytes and back. The labels are CWT's (RFC 8392, RFC 8747); what is ours stands in one
// map under a private label, so that no standard reader takes it for something else.
#include <algorithm>

#include <fmt/format.h>

#include "userspace/token/token.hpp"
#include "userspace/wire/cbor.hpp"

namespace holdfast::token {
namespace {

using cbor::Reader;
using cbor::Writer;

enum Label : uint8_t { iss = 1, aud = 3, exp = 4, nbf = 5, iat = 6, cti = 7, cnf = 8 };
constexpr int64_t private_label = -65537;
constexpr uint64_t cnf_thumbprint = 5;
enum Private : uint8_t {
  tenant = 1,
  endpoints,
  egress,
  operations,
  peer,
  holder,
  ttl,
  lease,
  generation
};

constexpr size_t text_max = 256;

std::unexpected<Error> bad(std::string what, std::string mend = {}) {
  return fail(ErrorKind::invalid, "bad_claims", std::move(what), std::move(mend));
}

bool has_length(std::string_view text) {
  return !text.empty() && text.size() <= text_max;
}

Status check_text(std::string_view name, std::string_view text) {
  if (has_length(text)) return {};
  if (text.empty()) return bad(fmt::format("{} is empty", name));
  return bad(fmt::format("{} has {} bytes; at most {}", name, text.size(), text_max));
}

Status check_text_or_none(std::string_view name, std::string_view text) {
  return text.empty() ? Status() : check_text(name, text);
}

Status check_names(std::string_view name, const std::vector<std::string>& list) {
  if (list.size() > names_max)
    return bad(fmt::format("{} has {} names; at most {}", name, list.size(), names_max));
  for (const std::string& each : list) {
    if (Status ok = check_text(name, each); !ok) return ok;
    if (!cbor::is_utf8(each)) return bad(fmt::format("{} is not UTF-8", name));
  }
  for (size_t i = 1; i < list.size(); ++i)
    if (list[i - 1] >= list[i])
      return bad(fmt::format("{}: '{}' behind '{}'", name, list[i], list[i - 1]),
                 "name each once, in the order of its bytes");
  return {};
}

// Their number was checked before. What is not sound is read again, to say what is wrong.
Status check_names(std::string_view name, const NamesView& list) {
  if (list.sound || list.array.empty()) return {};
  std::string_view last;
  Status ok;
  list.all([&](std::string_view each) {
    ok = check_text(name, each);
    if (ok && last >= each)
      ok = bad(fmt::format("{}: '{}' behind '{}'", name, each, last),
               "name each once, in the order of its bytes");
    last = each;
    return ok.has_value();
  });
  return ok;
}

// What the kind asks for, and nothing that has no meaning in it. Claims, or a view of them.
template <typename AnyClaims>
Status check(const AnyClaims& claims, Kind kind, bool opens) {
  if (Status ok = check_text("the issuer", claims.issuer); !ok) return ok;
  if (Status ok = check_text("the audience", claims.audience); !ok) return ok;
  if (Status ok = check_text("the tenant", claims.tenant); !ok) return ok;
  if (Status ok = check_text_or_none("the peer", claims.peer); !ok) return ok;
  if (Status ok = check_text_or_none("the holder", claims.holder); !ok) return ok;
  if (Status ok = check_names("endpoints", claims.endpoints); !ok) return ok;
  if (Status ok = check_names("egress", claims.egress); !ok) return ok;
  if (Status ok = check_names("operations", claims.operations); !ok) return ok;
  if (claims.holder_key && !claims.holder.empty())
    return bad("it names a holder and a holder's key");
  if (claims.issued_at >= claims.expires || claims.not_before >= claims.expires)
    return bad("it expires before it begins");
  if (opens == (kind == Kind::renew))
    return bad(opens ? "a renew token names endpoints or egress, and the lease has them already"
                     : fmt::format("a {} token names neither endpoints nor egress", name_of(kind)));
  if ((kind == Kind::grant) == claims.lease.has_value())
    return bad(claims.lease ? "a grant token names a lease, and there is none yet"
                            : fmt::format("a {} token names no lease", name_of(kind)));
  if (kind == Kind::use ? claims.ttl_s != 0 : claims.ttl_s == 0 || claims.ttl_s > life_max_s)
    return bad(kind == Kind::use ? "a use token has a term, and gives none"
                                 : fmt::format("a term of {} s", claims.ttl_s),
               kind == Kind::use ? "" : fmt::format("1 to {} s", life_max_s));
  return {};
}

void write_names(Writer& out, Private label, const std::vector<std::string>& list) {
  if (list.empty()) return;
  out.u64(label).array(list.size());
  for (const std::string& each : list) out.text(each);
  out.end();
}

NamesView read_names(Reader& in, std::span<const uint8_t> input) {
  const size_t begin = in.offset();
  const uint64_t count = in.array();
  if (count == 0 || count > names_max) in.refuse(cbor::Fault::out_of_range);
  bool sound = true;
  for (std::string_view last; in.more();) {
    const std::string_view each = in.text();
    sound &= has_length(each) && last < each;
    last = each;
  }
  in.end();
  return {input.subspan(begin, in.offset() - begin), sound};
}

template <size_t size>
std::array<uint8_t, size> read_array(Reader& in) {
  std::array<uint8_t, size> out{};
  const std::span<const uint8_t> bytes = in.bytes();
  if (bytes.size() == size) {
    std::ranges::copy(bytes, out.begin());
  } else {
    in.refuse(cbor::Fault::out_of_range);
  }
  return out;
}

// {5: thumbprint}: RFC 8747 with the method of RFC 9679 (ckt).
Digest read_holder_key(Reader& in) {
  if (in.map() != 1 || in.u64() != cnf_thumbprint) in.refuse(cbor::Fault::out_of_range);
  const Digest thumbprint = read_array<32>(in);
  in.end();
  return thumbprint;
}

// An empty text would be a second way to leave it out.
std::string_view read_text(Reader& in) {
  const std::string_view text = in.text();
  if (text.empty()) in.refuse(cbor::Fault::out_of_range);
  return text;
}

void read_private(Reader& in, std::span<const uint8_t> input, ClaimsView& claims) {
  LeaseAt lease_at;
  bool has_lease = false;
  bool has_generation = false;
  for (in.map(); in.more();) {
    switch (in.u64()) {
      case tenant: claims.tenant = read_text(in); break;
      case endpoints: claims.endpoints = read_names(in, input); break;
      case egress: claims.egress = read_names(in, input); break;
      case operations: claims.operations = read_names(in, input); break;
      case peer: claims.peer = read_text(in); break;
      case holder: claims.holder = read_text(in); break;
      case ttl:
        claims.ttl_s = in.u64();
        if (claims.ttl_s == 0) in.refuse(cbor::Fault::out_of_range);
        break;
      case lease:
        lease_at.id = read_array<16>(in);
        has_lease = true;
        break;
      case generation:
        lease_at.generation = in.u64();
        has_generation = true;
        break;
      default: in.refuse(cbor::Fault::out_of_range);
    }
  }
  in.end();
  if (has_lease != has_generation) in.refuse(cbor::Fault::out_of_range);
  if (has_lease) claims.lease = lease_at;
}

}  // namespace

Result<std::vector<uint8_t>> encode_claims(const Claims& claims, Kind kind) {
  for (const std::string* text :
       {&claims.issuer, &claims.audience, &claims.tenant, &claims.peer, &claims.holder})
    if (!cbor::is_utf8(*text)) return bad("a text is not UTF-8");
  if (Status ok = check(claims, kind, !claims.endpoints.empty() || !claims.egress.empty()); !ok)
    return pass_on(ok);
  std::vector<uint8_t> bytes;
  Writer out(bytes);
  out.map(7 + (claims.holder_key ? 1 : 0));
  out.u64(iss).text(claims.issuer);
  out.u64(aud).text(claims.audience);
  out.u64(exp).u64(claims.expires);
  out.u64(nbf).u64(claims.not_before);
  out.u64(iat).u64(claims.issued_at);
  out.u64(cti).bytes(claims.id);
  if (claims.holder_key) out.u64(cnf).map(1).u64(cnf_thumbprint).bytes(*claims.holder_key).end();
  const auto has = [](bool there) { return there ? 1U : 0U; };
  out.i64(private_label)
      .map(1 + has(!claims.endpoints.empty()) + has(!claims.egress.empty()) +
           has(!claims.operations.empty()) + has(!claims.peer.empty()) +
           has(!claims.holder.empty()) + has(claims.ttl_s != 0) +
           2 * has(claims.lease.has_value()));
  out.u64(tenant).text(claims.tenant);
  write_names(out, endpoints, claims.endpoints);
  write_names(out, egress, claims.egress);
  write_names(out, operations, claims.operations);
  if (!claims.peer.empty()) out.u64(peer).text(claims.peer);
  if (!claims.holder.empty()) out.u64(holder).text(claims.holder);
  if (claims.ttl_s != 0) out.u64(ttl).u64(claims.ttl_s);
  if (claims.lease) {
    out.u64(lease).bytes(claims.lease->id);
    out.u64(generation).u64(claims.lease->generation);
  }
  out.end().end();
  if (bytes.size() > claims_bytes_max)
    return bad(fmt::format("{} bytes; at most {}", bytes.size(), claims_bytes_max),
               "name fewer endpoints in one token");
  return bytes;
}

Result<ClaimsView> decode_claims(std::span<const uint8_t> bytes, Kind kind) {
  ClaimsView claims;
  if (Status ok = decode_claims(bytes, kind, claims); !ok) return pass_on(ok);
  return claims;
}

Status decode_claims(std::span<const uint8_t> bytes, Kind kind, ClaimsView& claims) {
  claims = {};
  Reader in(bytes, {.depth_max = 4, .bytes_max = claims_bytes_max});
  uint32_t seen = 0;
  for (in.map(); in.more();) {
    const int64_t label = in.i64();
    switch (label) {
      case iss: claims.issuer = read_text(in); break;
      case aud: claims.audience = read_text(in); break;
      case exp: claims.expires = in.u64(); break;
      case nbf: claims.not_before = in.u64(); break;
      case iat: claims.issued_at = in.u64(); break;
      case cti: claims.id = read_array<16>(in); break;
      case cnf: claims.holder_key = read_holder_key(in); break;
      case private_label: read_private(in, bytes, claims); break;
      default: in.refuse(cbor::Fault::out_of_range);
    }
    if (in.ok()) seen |= 1U << (label == private_label ? 0 : label);
  }
  in.end();
  if (!in.finish()) return bad(in.error().message);
  constexpr uint32_t wanted =
      1U | 1U << iss | 1U << aud | 1U << exp | 1U << nbf | 1U << iat | 1U << cti;
  if ((seen & wanted) != wanted) return bad("a claim that every token has is missing");
  return check(claims, kind, !claims.endpoints.array.empty() || !claims.egress.array.empty());
}

Claims ClaimsView::copy() const {
  const auto names = [](const NamesView& view) {
    std::vector<std::string> list;
    view.all([&](std::string_view each) {
      list.emplace_back(each);
      return true;
    });
    return list;
  };
  return {.issuer = std::string(issuer),
          .audience = std::string(audience),
          .expires = expires,
          .not_before = not_before,
          .issued_at = issued_at,
          .id = id,
          .holder_key = holder_key,
          .tenant = std::string(tenant),
          .endpoints = names(endpoints),
          .egress = names(egress),
          .operations = names(operations),
          .peer = std::string(peer),
          .holder = std::string(holder),
          .ttl_s = ttl_s,
          .lease = lease};
}

}  // namespace holdfast::token
