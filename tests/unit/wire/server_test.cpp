// ControlServer over a real socket: peers that misbehave, peers that are slow, and who they are.
#include "userspace/wire/server.hpp"

#include <fstream>

#include <fmt/format.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/unit/wire/daemon.hpp"
#include "tests/unit/wire/hex.hpp"

namespace holdfast::wire {
namespace {

using cbor::Value;
using holdfast::testing::from_hex;
using testing::Daemon;
using testing::RawPeer;
using testing::TempDir;

// ---- malformed input ----

struct Malformed {
  const char* name;
  const char* hex;
  const char* code;
  uint32_t request_id;
};

constexpr Malformed malformed[] = {
    {"not a frame", "474554202f20485454502f312e310d0a", "bad_magic", 0},
    {"unknown version", "484c4446 07 02 0000 00000000 00000005", "unknown_version", 0},
    {"unknown type", "484c4446 01 09 0000 00000000 00000005", "unknown_type", 5},
    {"unknown flag", "484c4446 01 02 0100 00000000 00000005", "unknown_flag", 5},
    {"oversized", "484c4446 01 02 0000 00100001 00000005", "frame_too_large", 5},
    {"a hello from a client", "484c4446 01 01 0000 00000000 00000005", "unexpected_frame", 5},
    {"a reply from a client", "484c4446 01 03 0000 00000000 00000005", "unexpected_frame", 5},
    {"an event from a client", "484c4446 01 05 0000 00000000 00000005", "unexpected_frame", 5},
    {"a request with more to follow", "484c4446 01 02 0001 00000000 00000005", "unexpected_frame",
     5},
    {"request id 0", "484c4446 01 02 0000 00000000 00000000", "request_id", 0},
    {"no body", "484c4446 01 02 0000 00000000 00000005", "malformed_cbor", 5},
    {"a body that is not canonical", "484c4446 01 02 0000 00000002 00000005 1800", "malformed_cbor",
     5},
    {"a body that is no map", "484c4446 01 02 0000 00000001 00000005 80", "malformed_cbor", 5},
    {"an empty map", "484c4446 01 02 0000 00000001 00000005 a0", "malformed_request", 5},
    {"memfd flag without a memfd", "484c4446 01 02 0002 00000000 00000005", "memfd_missing", 5},
};

TEST(ControlServer, MalformedInputGetsATypedErrorAndTheEnd) {
  Daemon daemon;
  for (const Malformed& item : malformed) {
    SCOPED_TRACE(item.name);
    RawPeer peer(daemon.path());
    peer.expect_hello();
    peer.send(from_hex(item.hex));
    const std::optional<Frame> frame = peer.read();
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->type, FrameType::error);
    EXPECT_EQ(frame->request_id, item.request_id);
    const Result<WireError> error = decode_error(frame->body);
    ASSERT_TRUE(error) << error.error().text();
    EXPECT_EQ(error->error.code, item.code);
    EXPECT_TRUE(peer.is_closed());
  }
  EXPECT_EQ(daemon.stats().malformed, std::size(malformed));
  EXPECT_TRUE(Client::connect(daemon.path())) << "others are not affected";
}

TEST(ControlServer, AnOversizedFrameIsRefusedBeforeItsBodyComes) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  std::vector<uint8_t> header = from_hex("484c4446 01 02 0000 7fffffff 00000001");
  peer.send(header);
  EXPECT_EQ(peer.read_error()->error.code, "frame_too_large");
  EXPECT_TRUE(peer.is_closed());
}

TEST(ControlServer, ARequestIdInUseIsRefused) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  peer.send(RawPeer::request(3, "later"));
  daemon.wait_parked(1);
  peer.send(RawPeer::request(3, "echo"));
  EXPECT_EQ(peer.read_error()->error.code, "request_id");
  EXPECT_TRUE(peer.is_closed());
}

// ---- memfd bodies ----

std::vector<uint8_t> memfd_header(uint32_t id) {
  std::vector<uint8_t> out;
  append_frame_header(out, FrameType::request, flag_memfd, id, 0);
  return out;
}

TEST(ControlServer, AnUnsealedMemfdIsRefusedUnread) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  const UniqueFd fd(::memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(fd.get(), 4096), 0);
  peer.send_with_fd(memfd_header(1), fd.get());
  EXPECT_EQ(peer.read_error()->error.code, "memfd_unsealed");
  EXPECT_TRUE(peer.is_closed());
}

TEST(ControlServer, UndeclaredDescriptorsAreClosed) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  peer.send_with_fd(RawPeer::request(1, "echo"), write_end.get());
  ASSERT_TRUE(peer.read());
  write_end.reset();
  // End of file means that no copy of the write end is left, in the daemon either.
  pollfd item{read_end.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&item, 1, 5000), 1);
  char byte = 0;
  EXPECT_EQ(::read(read_end.get(), &byte, 1), 0);
}

TEST(ControlServer, AMemfdRequestMayArriveInPieces) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  const std::vector<uint8_t> raw(100, 2);
  const RequestParts parts = encode_request("body", Value::map(), raw.size());
  Result<UniqueFd> fd = sealed_memfd({parts.before, raw, parts.after});
  ASSERT_TRUE(fd);
  const std::vector<uint8_t> header = memfd_header(1);
  peer.send_with_fd(std::span(header).first(1), fd->get());
  for (size_t i = 1; i < header.size(); ++i) peer.send(std::span(header).subspan(i, 1));
  const std::optional<Frame> frame = peer.read();
  ASSERT_TRUE(frame);
  EXPECT_EQ(cbor::to_json(*cbor::decode(frame->body)), R"({"sum":200,"size":100})");
}

// ---- slow, silent and leaving peers ----

TEST(ControlServer, AByteAtATimeIsServedToo) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  const auto request = RawPeer::request(1, "echo", Value::map({{"a", 1}}));
  for (const uint8_t& byte : request) ASSERT_TRUE(peer.send({&byte, 1}));
  const std::optional<Frame> frame = peer.read();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->type, FrameType::reply);
  EXPECT_EQ(cbor::to_json(*cbor::decode(frame->body)), R"({"a":1})");
}

TEST(ControlServer, AHalfClosedPeerStillGetsItsAnswersNowAndLater) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  peer.send(RawPeer::request(1, "later"));
  peer.send(RawPeer::request(2, "echo"));
  peer.half_close();
  EXPECT_EQ(peer.read()->request_id, 2U);
  daemon.wait_parked(1);
  daemon.release();
  EXPECT_EQ(peer.read()->request_id, 1U);
  EXPECT_TRUE(peer.is_closed());
}

TEST(ControlServer, AHalfCloseInsideAFrameIsRefused) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  const auto request = RawPeer::request(1, "echo");
  peer.send(std::span(request).first(request.size() - 1));
  peer.half_close();
  EXPECT_EQ(peer.read_error()->error.code, "truncated_frame");
  EXPECT_TRUE(peer.is_closed());
}

TEST(ControlServer, RequestsOfAPeerThatLeftAreStillCarriedOut) {
  Daemon daemon;
  {
    RawPeer peer(daemon.path());
    for (uint32_t id = 1; id <= 10; ++id) peer.send(RawPeer::request(id, "echo"));
  }
  EXPECT_TRUE(
      daemon.wait_for([](const ServerStats& s) { return s.requests == 10 && s.connections == 0; }));
}

TEST(ControlServer, AnAnswerForAPeerThatLeftGoesNowhere) {
  Daemon daemon;
  {
    RawPeer peer(daemon.path());
    peer.expect_hello();
    peer.send(RawPeer::request(1, "later"));
    daemon.wait_parked(1);
  }
  EXPECT_TRUE(daemon.wait_for([](const ServerStats& s) { return s.connections == 0; }));
  daemon.release();
  EXPECT_TRUE(Client::connect(daemon.path()));
}

TEST(ControlServer, AnUnfinishedFrameTimesOut) {
  Daemon daemon([](ServerConfig& config) { config.partial_frame_timeout_ns = 30 * ns_per_ms; });
  RawPeer quiet(daemon.path());
  quiet.expect_hello();
  RawPeer peer(daemon.path());
  peer.expect_hello();
  const auto request = RawPeer::request(7, "echo");
  peer.send(std::span(request).first(20));
  const std::optional<Frame> frame = peer.read();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->request_id, 7U);
  EXPECT_EQ(decode_error(frame->body)->error.code, "frame_timeout");
  EXPECT_TRUE(peer.is_closed());
  // A connection that is merely idle stays.
  quiet.send(RawPeer::request(1, "echo"));
  EXPECT_TRUE(quiet.read());
}

TEST(ControlServer, APeerThatNeverReadsIsStoppedAndStallsNobody) {
  Daemon daemon([](ServerConfig& config) { config.unsent_bytes_max = 256U << 10; });
  RawPeer greedy(daemon.path());
  greedy.expect_hello();
  // Asks for 64 KiB again and again and reads nothing: at some point its requests stay unread.
  size_t sent = 0;
  for (uint32_t id = 1; id < 100000; ++id) {
    const auto request = RawPeer::request(id, "fill", Value::map({{"bytes", 64U << 10}}));
    const size_t taken = greedy.send_some(request);
    if (taken < request.size()) {
      pollfd item{greedy.fd(), POLLOUT, 0};
      if (taken == 0 && ::poll(&item, 1, 200) == 0) break;
      if (taken != 0) break;
    }
    ++sent;
  }
  EXPECT_GT(sent, 4U);
  const uint64_t served = daemon.stats().requests;
  // What was answered is bounded by the budget and the socket buffer, whatever was asked.
  EXPECT_LT(served, 40U);

  Result<Client> other = Client::connect(daemon.path());
  ASSERT_TRUE(other);
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(other->call("echo", Value::map({{"i", i}})));
  }
  // It may start to read at any time: nothing was lost or reordered.
  for (uint32_t id = 1; id <= served + 5 && id <= sent; ++id) {
    const std::optional<Frame> frame = greedy.read();
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->request_id, id);
  }
}

TEST(ControlServer, APeerThatNeverReadsIsClosedInTheEnd) {
  Daemon daemon([](ServerConfig& config) { config.stall_timeout_ns = 50 * ns_per_ms; });
  RawPeer peer(daemon.path());
  peer.expect_hello();
  for (uint32_t id = 1; id <= 3; ++id) {
    peer.send(RawPeer::request(id, "fill", Value::map({{"bytes", 1000U << 10}})));
  }
  EXPECT_TRUE(
      daemon.wait_for([](const ServerStats& s) { return s.stalled == 1 && s.connections == 0; }));
}

TEST(ControlServer, TheBudgetOfUnsentBytesIsPerUid) {
  Daemon daemon([](ServerConfig& config) {
    config.unsent_bytes_max = 4U << 20;
    config.uid_unsent_bytes_max = 1U << 20;
  });
  // One connection uses up the uid's budget; another of the same uid waits until it is read.
  RawPeer greedy(daemon.path());
  greedy.expect_hello();
  for (uint32_t id = 1; id <= 4; ++id) {
    greedy.send(RawPeer::request(id, "fill", Value::map({{"bytes", 1000U << 10}})));
  }
  ASSERT_TRUE(daemon.wait_for([](const ServerStats& s) { return s.requests == 2; }));
  RawPeer waiting(daemon.path());
  waiting.send(RawPeer::request(1, "echo"));
  waiting.expect_hello();
  EXPECT_FALSE(waiting.read(50));
  for (uint32_t id = 1; id <= 4; ++id) ASSERT_TRUE(greedy.read());
  EXPECT_TRUE(waiting.read());
}

TEST(ControlServer, OutstandingRequestsAreBoundedAndTheRestWaits) {
  Daemon daemon([](ServerConfig& config) { config.unanswered_max = 8; });
  RawPeer peer(daemon.path());
  peer.expect_hello();
  std::vector<uint8_t> pipeline;
  for (uint32_t id = 1; id <= 20; ++id) {
    const auto request = RawPeer::request(id, "later");
    pipeline.insert(pipeline.end(), request.begin(), request.end());
  }
  peer.send(pipeline);
  daemon.wait_parked(8);
  EXPECT_EQ(daemon.stats().requests, 8U);
  EXPECT_EQ(daemon.parked(), 8U);
  size_t answered = 0;
  while (answered < 20) {
    const size_t parked = std::min<size_t>(8, 20 - answered);
    daemon.wait_parked(parked);
    daemon.release();
    for (size_t i = 0; i < parked; ++i) ASSERT_TRUE(peer.read());
    answered += parked;
  }
}

TEST(ControlServer, OutstandingRequestsAreBoundedPerUid) {
  Daemon daemon([](ServerConfig& config) { config.uid_unanswered_max = 3; });
  RawPeer first(daemon.path());
  RawPeer second(daemon.path());
  first.expect_hello();
  second.expect_hello();
  for (uint32_t id = 1; id <= 3; ++id) first.send(RawPeer::request(id, "later"));
  daemon.wait_parked(3);
  second.send(RawPeer::request(1, "echo"));
  EXPECT_FALSE(second.read(50));
  daemon.release();
  EXPECT_TRUE(second.read());
}

TEST(ControlServer, PipelinedRequestsAreAllAnsweredInOrder) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  constexpr uint32_t count = 5000;
  std::thread writer([&] {
    std::vector<uint8_t> pipeline;
    for (uint32_t id = 1; id <= count; ++id) {
      const auto request = RawPeer::request(id, "echo", Value::map({{"id", id}}));
      pipeline.insert(pipeline.end(), request.begin(), request.end());
    }
    peer.send(pipeline);
  });
  for (uint32_t id = 1; id <= count; ++id) {
    const std::optional<Frame> frame = peer.read();
    ASSERT_TRUE(frame);
    ASSERT_EQ(frame->request_id, id);
  }
  writer.join();
}

// ---- answers ----

TEST(ControlServer, ADroppedResponderAnswersInternal) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  peer.send(RawPeer::request(4, "drop"));
  const std::optional<WireError> error = peer.read_error();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->error.kind, ErrorKind::internal);
  EXPECT_EQ(error->error.code, "unanswered");
  peer.send(RawPeer::request(5, "echo"));
  EXPECT_EQ(peer.read()->request_id, 5U) << "the connection goes on";
}

TEST(ControlServer, AReplyThatFitsNoFrameBecomesAnError) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  peer.send(RawPeer::request(1, "fill", Value::map({{"bytes", 2U << 20}})));
  EXPECT_EQ(peer.read_error()->error.code, "reply_too_large");
}

TEST(ControlServer, EndingTheServerClosesConnectionsAndRemovesTheSocket) {
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  peer.send(RawPeer::request(1, "later"));
  daemon.wait_parked(1);
  daemon.end_server();
  EXPECT_TRUE(peer.is_closed());
  EXPECT_FALSE(std::filesystem::exists(daemon.path()));
}

// ---- limits on connections and rates ----

TEST(ControlServer, ConnectionsOfAUidAreBounded) {
  Daemon daemon([](ServerConfig& config) {
    config.uid_connections_max = 3;
    config.root_connections_max = 3;
  });
  std::vector<std::unique_ptr<RawPeer>> peers;
  for (int i = 0; i < 3; ++i) {
    peers.push_back(std::make_unique<RawPeer>(daemon.path()));
    peers.back()->expect_hello();
  }
  RawPeer fourth(daemon.path());
  const std::optional<WireError> error = fourth.read_error();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->error.code, "too_many_connections");
  EXPECT_EQ(error->error.kind, ErrorKind::exhausted);
  EXPECT_TRUE(fourth.is_closed());
  const Result<Client> client = Client::connect(daemon.path());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code, "too_many_connections");
  peers.pop_back();
  EXPECT_TRUE(daemon.wait_for([](const ServerStats& s) { return s.connections == 2; }));
  RawPeer again(daemon.path());
  again.expect_hello();
}

TEST(ControlServer, ConnectionsAreBoundedAltogether) {
  Daemon daemon([](ServerConfig& config) { config.connections_max = 2; });
  RawPeer first(daemon.path());
  RawPeer second(daemon.path());
  first.expect_hello();
  second.expect_hello();
  RawPeer third(daemon.path());
  EXPECT_EQ(third.read_error()->error.code, "too_many_connections");
}

TEST(ControlServer, RequestsOverTheRateAreRefusedWithATimeAndThenServed) {
  const auto slow = [](ServerConfig& config) {
    config.operator_rate = {20, 5};
    config.rate = {20, 5};
  };
  Daemon daemon(slow);
  RawPeer peer(daemon.path());  // one token
  peer.expect_hello();
  uint32_t refused = 0;
  std::vector<uint8_t> pipeline;
  for (uint32_t id = 1; id <= 10; ++id) {
    const auto request = RawPeer::request(id, "echo");
    pipeline.insert(pipeline.end(), request.begin(), request.end());
  }
  peer.send(pipeline);
  for (uint32_t id = 1; id <= 10; ++id) {
    const std::optional<Frame> frame = peer.read();
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->request_id, id);
    if (frame->type != FrameType::error) continue;
    const Result<WireError> error = decode_error(frame->body);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->error.code, "rate_limited");
    EXPECT_EQ(error->retry.when, Retry::When::after_ms);
    EXPECT_GT(error->retry.after_ms, 0U);
    ++refused;
  }
  EXPECT_GE(refused, 1U);
  EXPECT_EQ(daemon.stats().rate_limited, refused);
}

// ---- the guard (H5) ----

TEST(ControlServer, TheGuardIsToldOfEveryOffence) {
  Daemon daemon([](ServerConfig& config) {
    config.operator_rate = {1, 4};
    config.rate = {1, 4};
  });
  const auto told = [&] {
    std::vector<Offence> out;
    daemon.on_loop([&] { out = std::exchange(daemon.guard().told, {}); });
    return out;
  };
  {
    RawPeer peer(daemon.path());
    peer.expect_hello();
    peer.send(RawPeer::request(1, "echo"));
    ASSERT_TRUE(peer.read());
    EXPECT_TRUE(told().empty()) << "what is right is no offence";
    std::vector<uint8_t> sealed;
    append_frame(sealed, FrameType::signed_request, 0, 2, std::vector<uint8_t>{'x'});
    peer.send(sealed);
    ASSERT_TRUE(peer.read());
    EXPECT_EQ(told(), std::vector{Offence::signature});
    peer.send(RawPeer::request(3, "echo"));
    peer.send(RawPeer::request(4, "echo"));
    ASSERT_TRUE(peer.read());
    EXPECT_EQ(peer.read_error()->error.code, "rate_limited");
    EXPECT_EQ(told(), std::vector{Offence::rate});
    peer.send(from_hex("474554202f20485454502f312e310d0a"));
    EXPECT_EQ(peer.read_error()->error.code, "bad_magic");
    EXPECT_EQ(told(), std::vector{Offence::frame});
  }
  uint32_t refused = 0;
  for (int i = 0; i < 10; ++i) refused += Client::connect(daemon.path()) ? 0 : 1;
  EXPECT_GT(refused, 0U);
  EXPECT_EQ(told(), std::vector(refused, Offence::rate)) << "connections count as well";
}

TEST(ControlServer, WhomTheGuardRefusesGetsOneTypedError) {
  Daemon daemon;
  daemon.on_loop([&] { daemon.guard().refuses = true; });
  RawPeer peer(daemon.path());
  const auto error = peer.read_error();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->error.code, "suspended");
  EXPECT_EQ(error->error.kind, ErrorKind::denied);
  EXPECT_EQ(error->retry.when, Retry::When::never);
  EXPECT_TRUE(peer.is_closed());
  const ServerStats stats = daemon.stats();
  EXPECT_EQ(stats.suspended, 1U);
  EXPECT_EQ(stats.connections, 0U);
  daemon.on_loop([&] { daemon.guard().refuses = false; });
  EXPECT_TRUE(Client::connect(daemon.path()));
}

TEST(ControlServer, PeersAreEndedWithAReasonWhateverTheyWaitFor) {
  Daemon daemon;
  RawPeer waiting(daemon.path());
  waiting.expect_hello();
  waiting.send(RawPeer::request(1, "later"));
  RawPeer idle(daemon.path());
  idle.expect_hello();
  daemon.wait_parked(1);
  const auto end = [&](bool all) {
    daemon.on_loop([&] {
      daemon.server().end_peers([all](const Peer&) { return all; },
                                Error{ErrorKind::denied, "suspended", 0, "it is over", {}});
    });
  };
  end(false);
  idle.send(RawPeer::request(1, "echo"));
  ASSERT_TRUE(idle.read()) << "nobody was meant";
  end(true);
  for (RawPeer* peer : {&idle, &waiting}) {
    EXPECT_EQ(peer->read_error()->error.code, "suspended");
    EXPECT_TRUE(peer->is_closed());
  }
  EXPECT_EQ(daemon.stats().connections, 0U);
  daemon.release();
  EXPECT_TRUE(Client::connect(daemon.path()));
}

TEST(RateMeter, IsThatOfTheLastWholeSecond) {
  RateMeter meter;
  EXPECT_EQ(meter.per_second(0), 0U);
  for (int i = 0; i < 5; ++i) meter.count(10 * ns_per_s + i);
  EXPECT_EQ(meter.per_second(10 * ns_per_s + 9), 0U) << "that one is not over";
  EXPECT_EQ(meter.per_second(11 * ns_per_s), 5U);
  EXPECT_EQ(meter.per_second(12 * ns_per_s), 0U);
  for (int i = 0; i < 3; ++i) meter.count(11 * ns_per_s + i);
  EXPECT_EQ(meter.per_second(11 * ns_per_s + 5), 5U);
  EXPECT_EQ(meter.per_second(12 * ns_per_s), 3U);
  meter.count(14 * ns_per_s);
  EXPECT_EQ(meter.per_second(14 * ns_per_s), 0U);
}

std::vector<uint8_t> pipeline_of_work(uint32_t requests, uint64_t ms) {
  std::vector<uint8_t> out;
  for (uint32_t id = 1; id <= requests; ++id) {
    const auto request = RawPeer::request(id, "work", Value::map({{"ms", ms}}));
    out.insert(out.end(), request.begin(), request.end());
  }
  return out;
}

TEST(ControlServer, APipelineOfCostlyRequestsHoldsNobodyUp) {
  Daemon daemon;
  RawPeer other(daemon.path());
  other.expect_hello();
  RawPeer greedy(daemon.path());
  greedy.expect_hello();
  constexpr uint32_t count = 30;
  greedy.send(pipeline_of_work(count, 20));
  ASSERT_TRUE(greedy.read());
  other.send(RawPeer::request(1, "echo"));
  ASSERT_TRUE(other.read());
  EXPECT_LT(daemon.stats().requests, 6U) << "its turn came after that of one costly request or two";
  for (uint32_t id = 2; id <= count; ++id) {
    const std::optional<Frame> frame = greedy.read();
    ASSERT_TRUE(frame);
    ASSERT_EQ(frame->request_id, id);
  }
}

TEST(ControlServer, AUidOverItsShareOfTheLoopsTimeWaits) {
  Daemon daemon([](ServerConfig& config) {
    config.busy_percent = 20;
    config.operator_busy_percent = 20;
  });
  RawPeer greedy(daemon.path());
  greedy.expect_hello();
  RawPeer second(daemon.path());
  second.expect_hello();
  // 400 ms of work are 2 s of the uid's share; 1 s of that it has saved up.
  const uint64_t begin_ns = boot_now_ns();
  greedy.send(pipeline_of_work(1, 400));
  ASSERT_TRUE(greedy.read());
  second.send(RawPeer::request(1, "echo"));  // another connection of the same uid waits as well
  ASSERT_TRUE(second.read());
  EXPECT_GE(boot_now_ns() - begin_ns, 1300 * ns_per_ms);
}

TEST(ControlServer, OperatorsHaveAllTheTimeTheyNeed) {
  if (::geteuid() != 0) GTEST_SKIP() << "the peer has to be an operator";
  Daemon daemon;
  RawPeer peer(daemon.path());
  peer.expect_hello();
  const uint64_t begin_ns = boot_now_ns();
  peer.send(pipeline_of_work(5, 100));
  for (uint32_t id = 1; id <= 5; ++id) ASSERT_TRUE(peer.read());
  EXPECT_LT(boot_now_ns() - begin_ns, 900 * ns_per_ms);
}

// ---- the socket file ----

TEST(ControlServer, EveryoneMayConnect) {
  Daemon daemon;
  struct stat status{};
  ASSERT_EQ(::stat(daemon.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0666U);
}

Result<std::unique_ptr<ControlServer>> open_at(EventLoop& loop, const std::string& path) {
  ServerConfig config;
  config.path = path;
  static testing::Guard guard;
  return ControlServer::open(
      loop, config, guard, [](const Peer&) { return Value::map(); }, testing::unseal,
      [](const Peer&, Request, Responder) {});
}

TEST(ControlServer, ASecondDaemonIsRefused) {
  Daemon daemon;
  const auto loop = *EventLoop::create();
  const auto second = open_at(*loop, daemon.path());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind, ErrorKind::conflict);
  EXPECT_EQ(second.error().code, "already_serving");
  EXPECT_EQ(second.error().message, "another holdfastd is serving " + daemon.path());
  EXPECT_TRUE(Client::connect(daemon.path())) << "the first one is untouched";
}

TEST(ControlServer, ASecondDaemonIsRefusedEvenWhenTheLockFileWasRemoved) {
  Daemon daemon;
  ASSERT_EQ(::unlink((daemon.path() + ".lock").c_str()), 0);
  const auto loop = *EventLoop::create();
  const auto second = open_at(*loop, daemon.path());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, "already_serving");
  EXPECT_TRUE(Client::connect(daemon.path()));
}

TEST(ControlServer, ASecondDaemonIsRefusedWhileTheFirstIsStillStarting) {
  const TempDir dir;
  const UniqueFd lock(::open((dir.socket() + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::flock(lock.get(), LOCK_EX), 0);
  const auto loop = *EventLoop::create();
  const auto second = open_at(*loop, dir.socket());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, "already_serving");
}

void leave_stale_socket(const std::string& path) {
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto address = unix_address(path);
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address), 0);
  ASSERT_EQ(::listen(fd.get(), 1), 0);
}

TEST(ControlServer, AStaleSocketIsReplaced) {
  const TempDir dir;
  leave_stale_socket(dir.socket());
  Daemon daemon([&](ServerConfig& config) { config.path = dir.socket(); });
  EXPECT_TRUE(Client::connect(dir.socket()));
}

TEST(ControlServer, AnythingElseAtThePathIsLeftAlone) {
  const TempDir dir;
  std::ofstream(dir.socket()) << "important";
  const auto loop = *EventLoop::create();
  const auto server = open_at(*loop, dir.socket());
  ASSERT_FALSE(server);
  EXPECT_EQ(server.error().code, "socket_path");
  EXPECT_TRUE(std::filesystem::is_regular_file(dir.socket()));
}

TEST(ControlServer, ASocketOfASuccessorIsNotRemoved) {
  const TempDir dir;
  const auto loop = *EventLoop::create();
  auto first = open_at(*loop, dir.socket());
  ASSERT_TRUE(first);
  // Somebody removes the file and another socket takes its place.
  ASSERT_EQ(::unlink(dir.socket().c_str()), 0);
  leave_stale_socket(dir.socket());
  first->reset();
  EXPECT_TRUE(std::filesystem::exists(dir.socket()));
}

TEST(ControlServer, BadPathsAreRefused) {
  const auto loop = *EventLoop::create();
  EXPECT_EQ(open_at(*loop, "").error().code, "socket_path");
  EXPECT_EQ(open_at(*loop, "/tmp/" + std::string(120, 'x')).error().code, "socket_path");
  EXPECT_EQ(open_at(*loop, "/nonexistent/directory/control.sock").error().code, "socket_lock");
}

// ---- who the peer is ----

struct Identity {
  uid_t uid;
  gid_t gid;
  std::vector<gid_t> groups;
};

// What a client sees that connects as this user: the answer to "who", or the code it was refused
// with.
std::string seen_as(const std::string& path, const Identity& identity) {
  int ends[2];
  EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    std::string out = "cannot change user";
    if (::setgroups(identity.groups.size(), identity.groups.data()) == 0 &&
        ::setgid(identity.gid) == 0 && ::setuid(identity.uid) == 0) {
      Result<Client> client = Client::connect(path);
      if (!client) {
        out = client.error().code;
      } else if (Result<Value> who = client->call("who", Value::map()); who) {
        out = fmt::format("{} {}", *who->get_text("role"), *client->hello().get_text("role"));
      } else {
        out = who.error().code;
      }
    }
    [[maybe_unused]] const ssize_t written = ::write(write_end.get(), out.data(), out.size());
    ::_exit(0);
  }
  write_end.reset();
  char buffer[200] = {};
  const ssize_t size = ::read(read_end.get(), buffer, sizeof buffer - 1);
  ::waitpid(child, nullptr, 0);
  return {buffer, static_cast<size_t>(std::max<ssize_t>(size, 0))};
}

TEST(ControlServer, RolesFollowFromUidAndGroups) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to connect as other users";
  static constexpr gid_t operators = 4001;
  static constexpr gid_t readers = 4002;
  Daemon daemon([](ServerConfig& config) {
    config.operator_gid = operators;
    config.reader_gid = readers;
  });
  struct Case {
    const char* name;
    Identity identity;
    const char* seen;
  };
  std::vector<gid_t> many;
  for (gid_t gid = 5000; gid < 5300; ++gid) many.push_back(gid);
  many.push_back(operators);
  const Case cases[] = {
      {"root", {0, 0, {}}, "operator operator"},
      {"operator by supplementary group", {1234, 1234, {9, operators}}, "operator operator"},
      {"operator by primary group", {1234, operators, {}}, "operator operator"},
      {"reader", {1234, 1234, {readers}}, "reader reader"},
      {"both", {1234, 1234, {readers, operators}}, "operator operator"},
      {"nobody special", {1234, 1234, {9, 10}}, "none none"},
      {"root's group only", {1234, 0, {0}}, "none none"},
      {"three hundred groups", {1234, 1234, many}, "operator operator"},
      {"the overflow uid", {65534, 65534, {operators}}, "unmapped_uid"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    EXPECT_EQ(seen_as(daemon.path(), c.identity), c.seen);
  }
}

TEST(ControlServer, AbsentGroupsGiveNobodyARole) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to connect as other users";
  Daemon daemon;
  EXPECT_EQ(seen_as(daemon.path(), {1234, 1234, {4001, 4002}}), "none none");
}

TEST(ControlServer, AFullHouseKeepsRoomForOperators) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to connect as other users";
  Daemon daemon([](ServerConfig& config) {
    config.connections_max = 4;
    config.connections_for_operators = 2;
  });
  RawPeer first(daemon.path());
  first.expect_hello();
  RawPeer second(daemon.path());
  second.expect_hello();
  EXPECT_EQ(seen_as(daemon.path(), {1234, 1234, {}}), "too_many_connections");
  EXPECT_EQ(seen_as(daemon.path(), {0, 0, {}}), "operator operator");
}

TEST(ControlServer, OnlyOperatorsMayPassAMemfd) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to connect as other users";
  Daemon daemon;
  const pid_t child = ::fork();
  if (child == 0) {
    bool refused = false;
    if (::setgroups(0, nullptr) == 0 && ::setgid(1234) == 0 && ::setuid(1234) == 0) {
      Result<Client> client = Client::connect(daemon.path());
      if (client) {
        const Result<Value> answer =
            client->call_with_body("body", Value::map(), std::vector<uint8_t>(1U << 20));
        refused = !answer && answer.error().code == "memfd_missing";
      }
    }
    ::_exit(refused ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// Of two followers of one user the one that does not read gets no more once its limit is reached,
// and the other one misses nothing, although together they share a budget.
TEST(Server, EventsGoOnlyToWhoHasRoom) {
  constexpr size_t unsent_max = 128U << 10;
  Daemon daemon([](ServerConfig& config) { config.uid_unsent_bytes_max = 1U << 20; });
  RawPeer idle(daemon.path()), reader(daemon.path());
  for (RawPeer* peer : {&idle, &reader}) {
    peer->expect_hello();
    ASSERT_TRUE(peer->send(RawPeer::request(1, "later")));
    daemon.wait_parked(peer == &idle ? 1 : 2);
  }
  const std::vector<uint8_t> event =
      cbor::encode(cbor::Value::map({{"bytes", cbor::Value::bytes(std::vector<uint8_t>(30000))}}));
  size_t sent = 0;
  for (int turn = 0; turn < 100; ++turn) {
    const std::vector<bool> each = daemon.tell_parked(event, unsent_max);
    ASSERT_TRUE(each[1]) << turn;
    if (each[0]) ++sent;
    const std::optional<Frame> frame = reader.read();
    ASSERT_TRUE(frame) << turn;
    EXPECT_EQ(frame->type, FrameType::event);
    EXPECT_EQ(frame->body, event);
  }
  EXPECT_GT(sent, 4U);  // its socket's buffer, and the limit
  EXPECT_LT(sent, 40U);
  for (size_t i = 0; i < sent; ++i) ASSERT_TRUE(idle.read()) << i;
  EXPECT_TRUE(daemon.tell_parked(event, unsent_max)[0]);  // it reads again
}

// Once half of a user's budget waits for those who do not read, only who has taken all gets more.
TEST(Server, TheIdleOfAUserDoNotUseUpItsBudget) {
  constexpr size_t budget = 1U << 20;
  Daemon daemon([](ServerConfig& config) { config.uid_unsent_bytes_max = budget; });
  std::vector<std::unique_ptr<RawPeer>> idle;
  for (uint32_t n = 0; n < 30; ++n) {
    idle.push_back(std::make_unique<RawPeer>(daemon.path()));
    idle.back()->expect_hello();
    ASSERT_TRUE(idle.back()->send(RawPeer::request(1, "later")));
    daemon.wait_parked(n + 1);
  }
  const std::vector<uint8_t> event =
      cbor::encode(cbor::Value::map({{"bytes", cbor::Value::bytes(std::vector<uint8_t>(8000))}}));
  for (int turn = 0; turn < 200; ++turn) daemon.tell_parked(event, 128U << 10);
  RawPeer other(daemon.path());
  other.expect_hello();
  ASSERT_TRUE(other.send(RawPeer::request(1, "echo")));  // the user is served as before
  const std::optional<Frame> frame = other.read();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->type, FrameType::reply);
}

}  // namespace
}  // namespace holdfast::wire
