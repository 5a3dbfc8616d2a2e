#include "userspace/daemon/statement_for.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace holdfast {
Result<token::StatementFor> read_statement_for(const cbor::Value& args) {
  if (Status ok = args.only_keys({"challenge", "for"}); !ok) return pass_on(ok);
  token::StatementFor target;
  const Result<std::span<const uint8_t>> challenge =
      args.get_bytes("challenge", target.challenge.size());
  if (!challenge) return std::unexpected(challenge.error());
  std::ranges::copy(*challenge, target.challenge.begin());
  const Result<std::string_view> audience = args.get_text("for");
  if (!audience) return std::unexpected(audience.error());
  if (audience->empty() || audience->size() > token::audience_bytes_max)
    return fail(ErrorKind::invalid, "bad_audience",
                fmt::format("\"for\" has {} bytes, it must have 1 to {}", audience->size(),
                            token::audience_bytes_max),
                "name who is told: a control plane, a person");
  target.audience = *audience;
  return target;
}

}  // namespace holdfast
