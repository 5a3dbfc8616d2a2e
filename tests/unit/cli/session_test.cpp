// Errors, exit codes and the shape of JSON.
#include "userspace/cli/session.hpp"

#include <cerrno>

#include <gtest/gtest.h>

namespace holdfast::cli {
namespace {

struct Exit {
  ErrorKind kind;
  std::string_view code;
  ExitCode exit;
};

TEST(ExitCodes, FollowFromTheError) {
  for (const Exit& each : {
           Exit{ErrorKind::invalid, "usage", ExitCode::usage},
           {ErrorKind::invalid, "ttl_out_of_range", ExitCode::failed},
           {ErrorKind::denied, "not_operator", ExitCode::failed},
           {ErrorKind::denied, "step_up_required", ExitCode::step_up},
           {ErrorKind::not_found, "no_such_lease", ExitCode::failed},
           {ErrorKind::conflict, "held", ExitCode::failed},
           {ErrorKind::exhausted, "leases_max", ExitCode::failed},
           {ErrorKind::unavailable, "daemon_not_running", ExitCode::failed},
           {ErrorKind::unsupported, "no_tcx", ExitCode::unsupported},
           {ErrorKind::unsupported, "not_holdfast", ExitCode::failed},
           {ErrorKind::unsupported, "unknown_version", ExitCode::failed},
           {ErrorKind::internal, "bpf_load", ExitCode::failed},
       })
    EXPECT_EQ(exit_code_of({each.kind, each.code, 0, "m", {}}), each.exit) << each.code;
}

TEST(Errors, AsText) {
  const Error error{ErrorKind::internal, "x", ENOENT, "policy.yaml", "check the path"};
  EXPECT_EQ(error_text(error, {}),
            "holdfast: policy.yaml: No such file or directory\n  check the path\n");
  EXPECT_EQ(error_text({ErrorKind::invalid, "x", 0, "f:1: one\nf:2: two\x1b", {}}, {}),
            "holdfast: f:1: one\n  f:2: two?\n");
}

TEST(Errors, AsJson) {
  const Error error{ErrorKind::denied, "not_operator", EPERM, "uid \"7\"", "join the group"};
  EXPECT_EQ(
      error_json(error),
      "{\"version\":1,\"error\":{\"code\":\"not_operator\",\"class\":\"denied\","
      "\"detail\":\"uid \\\"7\\\": Operation not permitted\",\"next_step\":\"join the group\"}}\n");
}

TEST(Json, CarriesItsVersionFirst) {
  EXPECT_EQ(versioned_json(cbor::Value::map()), "{\"version\":1}");
  EXPECT_EQ(versioned_json(cbor::Value::map({{"id", "00ff"}})), "{\"version\":1,\"id\":\"00ff\"}");
  // The daemon's own version is another thing.
  EXPECT_EQ(versioned_json(cbor::Value::map({{"version", "0.1.0"}, {"table", "t"}})),
            "{\"version\":1,\"table\":\"t\",\"daemon_version\":\"0.1.0\"}");
}

}  // namespace
}  // namespace holdfast::cli
