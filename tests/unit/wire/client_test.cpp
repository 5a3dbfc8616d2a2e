// Client against a real server, and against what is no server of ours.
#include "userspace/wire/client.hpp"

#include <fstream>

#include <grp.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include "tests/unit/wire/daemon.hpp"

namespace holdfast::wire {
namespace {

using cbor::Value;
using testing::Daemon;
using testing::TempDir;

TEST(Client, ReadsTheHelloAndCalls) {
  Daemon daemon;
  Result<Client> client = Client::connect(daemon.path());
  ASSERT_TRUE(client) << client.error().text();
  EXPECT_TRUE(client->hello().has("role"));
  for (int i = 0; i < 3; ++i) {
    const Result<Value> answer = client->call("echo", Value::map({{"i", i}}));
    ASSERT_TRUE(answer) << answer.error().text();
    EXPECT_EQ(*answer->get_u64("i"), static_cast<uint64_t>(i));
  }
}

TEST(Client, ErrorsComeBackAsTheyWere) {
  Daemon daemon;
  Result<Client> client = Client::connect(daemon.path());
  ASSERT_TRUE(client);
  const Result<Value> answer = client->call("refuse", Value::map());
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().kind, ErrorKind::conflict);
  EXPECT_EQ(answer.error().code, "lease_not_live");
  EXPECT_EQ(answer.error().text(), "lease 7 is expired; grant it again");
  EXPECT_EQ(client->last_retry().when, Retry::When::after_event);
  EXPECT_TRUE(client->call("echo", Value::map())) << "the connection goes on";
}

TEST(Client, BodiesOfEverySizeArrive) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs the operator role, which root has";
  Daemon daemon;
  Result<Client> client = Client::connect(daemon.path());
  ASSERT_TRUE(client);
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{23}, size_t{24}, size_t{300}, memfd_body_bytes_from - 100,
        memfd_body_bytes_from, size_t{5} << 20, size_t{64} << 20}) {
    SCOPED_TRACE(size);
    const Result<Value> answer =
        client->call_with_body("body", Value::map(), std::vector<uint8_t>(size, 1));
    ASSERT_TRUE(answer) << answer.error().text();
    EXPECT_EQ(*answer->get_u64("size"), size);
    EXPECT_EQ(*answer->get_u64("sum"), size);
  }
  const Result<Value> too_large =
      client->call_with_body("body", Value::map(), std::vector<uint8_t>(memfd_body_bytes_max));
  ASSERT_FALSE(too_large);
  EXPECT_EQ(too_large.error().code, "request_too_large");
  EXPECT_TRUE(client->call("echo", Value::map()));
}

TEST(Client, PagesComeInOrderThroughBackPressure) {
  Daemon daemon([](ServerConfig& config) { config.unsent_bytes_max = 1U << 20; });
  Result<Client> client = Client::connect(daemon.path());
  ASSERT_TRUE(client);
  uint64_t pages = 0;
  uint64_t bytes = 0;
  const Result<Value> last =
      client->call_paged("pages", Value::map({{"count", 200}, {"bytes", 200U << 10}}),
                         [&](const Value& page) -> Status {
                           ++pages;
                           bytes += page.get_bytes("page")->size();
                           return {};
                         });
  ASSERT_TRUE(last) << last.error().text();
  EXPECT_EQ(*last->get_u64("pages"), 200U);
  EXPECT_EQ(pages, 200U);
  EXPECT_EQ(bytes, 200U * (200U << 10));
}

TEST(Client, ACallRefusesPagesItCannotTake) {
  Daemon daemon;
  Result<Client> client = Client::connect(daemon.path());
  ASSERT_TRUE(client);
  const Result<Value> answer = client->call("pages", Value::map({{"count", 2}, {"bytes", 1}}));
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, "unexpected_frame");
  EXPECT_FALSE(client->is_connected());
}

TEST(Client, FollowGetsEventsUntilTheEndOrUntilItHasEnough) {
  Daemon daemon;
  Result<Client> client = Client::connect(daemon.path());
  ASSERT_TRUE(client);
  std::vector<uint64_t> seen;
  Result<Value> end = client->follow("watch", Value::map({{"count", 5}}), [&](const Value& event) {
    seen.push_back(*event.get_u64("sequence"));
    return true;
  });
  ASSERT_TRUE(end);
  EXPECT_EQ(*end->get_u64("events"), 5U);
  EXPECT_EQ(seen, (std::vector<uint64_t>{0, 1, 2, 3, 4}));

  end = client->follow("watch", Value::map({{"count", 5}}), [](const Value&) { return false; });
  ASSERT_TRUE(end);
  EXPECT_TRUE(end->is_null());
  EXPECT_FALSE(client->is_connected());
  EXPECT_EQ(client->call("echo", Value::map()).error().code, "connection_closed");
}

TEST(Client, ATimeoutLeavesTheConnectionUsable) {
  Daemon daemon;
  ClientOptions options;
  options.call_timeout_ns = 2 * ns_per_s;
  Result<Client> client = Client::connect(daemon.path(), options);
  ASSERT_TRUE(client);
  const Result<Value> answer = client->call("later", Value::map());
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, "timeout");
  daemon.release();
  // The late answer is not taken for the answer to this.
  const Result<Value> next = client->call("echo", Value::map({{"a", 2}}));
  ASSERT_TRUE(next);
  EXPECT_EQ(cbor::to_json(*next), R"({"a":2})");
}

TEST(Client, AServerThatEndsIsSaid) {
  Daemon daemon;
  Result<Client> client = Client::connect(daemon.path());
  ASSERT_TRUE(client);
  daemon.end_server();
  const Result<Value> answer = client->call("echo", Value::map());
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, "connection_closed");
}

TEST(Client, WhyItCannotConnectAndWhatToDo) {
  const TempDir dir;
  Result<Client> client = Client::connect(dir.socket());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, "daemon_not_running");
  EXPECT_EQ(client.error().kind, ErrorKind::unavailable);
  EXPECT_EQ(client.error().next_step, "start it: systemctl start holdfastd");

  {
    const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const auto address = unix_address(dir.socket());
    ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address), 0);
  }
  client = Client::connect(dir.socket());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, "stale_socket");

  EXPECT_EQ(Client::connect("/tmp/" + std::string(200, 'x')).error().code, "socket_path");
}

TEST(Client, AForbiddenSocketIsSaid) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to connect as another user";
  Daemon daemon;
  ASSERT_EQ(::chmod(daemon.path().c_str(), 0600), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    bool as_expected = false;
    if (::setgroups(0, nullptr) == 0 && ::setgid(1234) == 0 && ::setuid(1234) == 0) {
      const Result<Client> client = Client::connect(daemon.path());
      as_expected = !client && client.error().code == "socket_permission" &&
                    client.error().kind == ErrorKind::denied;
    }
    ::_exit(as_expected ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// Something that accepts and says `greeting`.
Result<Client> greeted_with(std::span<const uint8_t> greeting, bool close_after) {
  const TempDir dir;
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto address = unix_address(dir.socket());
  EXPECT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address),
            0);
  EXPECT_EQ(::listen(listener.get(), 1), 0);
  UniqueFd accepted;
  std::thread server([&] {
    accepted.reset(::accept(listener.get(), nullptr, nullptr));
    [[maybe_unused]] const ssize_t sent =
        ::send(accepted.get(), greeting.data(), greeting.size(), MSG_NOSIGNAL);
    if (close_after) accepted.reset();
  });
  ClientOptions options;
  options.connect_timeout_ns = 1000 * ns_per_ms;
  Result<Client> client = Client::connect(dir.socket(), options);
  server.join();
  return client;
}

TEST(Client, OtherServersAreTold) {
  const std::string_view ssh = "SSH-2.0-OpenSSH_9.2\r\n";
  const std::span<const uint8_t> foreign{reinterpret_cast<const uint8_t*>(ssh.data()), ssh.size()};
  EXPECT_EQ(greeted_with(foreign, true).error().code, "not_holdfast");

  std::vector<uint8_t> reply;
  append_frame(reply, FrameType::reply, 0, 0, cbor::encode(Value::map()));
  EXPECT_EQ(greeted_with(reply, true).error().code, "not_holdfast");

  std::vector<uint8_t> newer;
  append_frame(newer, FrameType::hello, 0, 0, cbor::encode(Value::map()));
  newer[4] = 2;
  EXPECT_EQ(greeted_with(newer, true).error().code, "unknown_version");

  EXPECT_EQ(greeted_with({}, true).error().code, "connection_closed");
  EXPECT_EQ(greeted_with({}, false).error().code, "timeout");
}

}  // namespace
}  // namespace holdfast::wire
