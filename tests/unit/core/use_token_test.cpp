// A lease's use token: what it names, also when its resources do not fit in one.
#include <algorithm>

#include <fmt/format.h>

#include "tests/unit/core/directory.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/daemon/tokens.hpp"

namespace holdfast {
namespace {

token::Claims said_by(const std::string& text) {
  const std::vector<uint8_t> bytes = *token::from_text(text);
  const token::Checked<token::Parts> parts = token::take_apart(bytes);
  EXPECT_TRUE(parts);
  const Result<token::ClaimsView> claims = token::decode_claims(parts->claims, token::Kind::use);
  EXPECT_TRUE(claims) << claims.error().text();
  return claims->copy();
}

TEST(UseToken, NamesTheLeaseAndItsResources) {
  const Directory state;
  const Result<std::unique_ptr<Tokens>> tokens = Tokens::open(state.path());
  ASSERT_TRUE(tokens) << tokens.error().text();
  LeaseView lease;
  lease.id = {{0x0102030405060708, 0x090a0b0c0d0e0f10}};
  lease.tenant = "acme/shop/prod";
  lease.generation = 7;
  lease.deadline_boot_ns = boot_now_ns() + 30 * ns_per_s;
  lease.resources = {"web@10.1.0.2:443", "dns@10.1.0.2:53", "egress:web0"};
  const Result<std::string> text = (*tokens)->use_token(lease, {"connect"});
  ASSERT_TRUE(text) << text.error().text();
  const token::Claims claims = said_by(*text);
  EXPECT_EQ(claims.endpoints, (std::vector<std::string>{"dns@10.1.0.2:53", "web@10.1.0.2:443"}));
  EXPECT_EQ(claims.egress, std::vector<std::string>{"web0"});
  ASSERT_TRUE(claims.lease);
  EXPECT_EQ(LeaseId::of(claims.lease->id), lease.id);
  EXPECT_EQ(claims.lease->id[0], 1);
  EXPECT_EQ(claims.lease->generation, 7U);

  // As many as a lease may have, with names that do not fit together.
  lease.resources.clear();
  for (size_t i = 0; i < lease_resources_max; ++i)
    lease.resources.push_back(fmt::format("{}@[fd00:1234:5678:9abc:def0:1234:5678:{:x}]:65535",
                                          i % 2 == 0 ? "web" : "metrics", 0x1000 + i));
  const Result<std::string> whole = (*tokens)->use_token(lease, {"connect"});
  ASSERT_TRUE(whole) << whole.error().text();
  EXPECT_EQ(said_by(*whole).endpoints, (std::vector<std::string>{"metrics", "web"}));
}

}  // namespace
}  // namespace holdfast
