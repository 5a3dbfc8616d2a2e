// A ControlServer on a thread of its own with a handler of simple verbs, and a raw peer that writes
// what no Client would.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "userspace/wire/client.hpp"
#include "userspace/wire/listen_socket.hpp"
#include "userspace/wire/server.hpp"
#include "userspace/wire/unix_address.hpp"

namespace holdfast::wire::testing {

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/holdfast-wire-XXXXXX";
    path_ = ::mkdtemp(name);
    ::chmod(name, 0755);  // other users connect too
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string socket() const { return path_ + "/control.sock"; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What is sealed here: the letter s before a request. Everything else is refused.
inline Result<Unsealed> unseal(Peer& peer, std::span<const uint8_t> sealed) {
  if (sealed.empty() || sealed[0] != 's')
    return fail(ErrorKind::denied, "not_sealed", "the first byte is no s");
  ++peer.sequence;
  return Unsealed{.request = sealed.subspan(1),
                  .unpacked = {},
                  .signer = std::make_shared<const Principal>(
                      Principal{.name = "signer", .verbs = {"*"}, .tenants = {"*"}})};
}

// Writes down what it is told; refuses everybody once it is told to.
struct Guard final : PeerGuard {
  Status may_connect(const Peer&) const override {
    if (!refuses) return {};
    return fail(ErrorKind::denied, "suspended", "this peer is suspended", "ask an operator");
  }
  void on_offence(const Peer&, Offence offence) override { told.push_back(offence); }

  bool refuses = false;
  std::vector<Offence> told;
};

// The verbs:
//   echo            answers with its arguments
//   body            answers {"size", "sum"} of its raw body
//   later           keeps its Responder until release(); park() waits for so many of them
//   work {ms}       keeps the loop busy for so long, then answers
//   drop            drops its Responder
//   fill {bytes}    answers that many bytes
//   pages {count, bytes}   that many pages, waiting for room, then {"pages": count}
//   watch {count}   that many events, then {"events": count}
//   who             the peer
//   refuse          conflict / lease_not_live
class Daemon {
 public:
  explicit Daemon(const std::function<void(ServerConfig&)>& adjust = {}) {
    ServerConfig config;
    config.path = dir_.socket();
    config.root_connections_max = 256;
    if (adjust) adjust(config);
    path_ = config.path;
    loop_ = *EventLoop::create();
    Result<std::unique_ptr<ControlServer>> server = ControlServer::open(
        *loop_, config, guard_,
        [](const Peer& peer) {
          return cbor::Value::map(
              {{"role", name_of(peer.role)}, {"versions", cbor::Value::array({1})}});
        },
        unseal,
        [this](const Peer& peer, Request request, Responder responder) {
          handle(peer, std::move(request), std::move(responder));
        });
    EXPECT_TRUE(server) << server.error().text();
    server_ = std::move(*server);
    thread_ = std::thread([this] { EXPECT_TRUE(loop_->run()); });
  }

  ~Daemon() {
    on_loop([this] {
      parked_.clear();
      server_.reset();
    });
    loop_->stop();
    thread_.join();
  }

  const std::string& path() const { return path_; }
  Guard& guard() { return guard_; }  // on the loop's thread
  ControlServer& server() { return *server_; }

  // Runs a task on the loop's thread and waits for it.
  void on_loop(const std::function<void()>& task) {
    std::promise<void> done;
    loop_->defer([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }

  ServerStats stats() {
    ServerStats out;
    on_loop([&] { out = server_->stats(); });
    return out;
  }

  // Waits until a condition on the server's numbers holds.
  bool wait_for(const std::function<bool(const ServerStats&)>& condition) {
    const uint64_t deadline_ns = boot_now_ns() + 5 * ns_per_s;
    while (boot_now_ns() < deadline_ns) {
      if (condition(stats())) return true;
      ::poll(nullptr, 0, 1);
    }
    return false;
  }

  void wait_parked(size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(parked_changed_.wait_for(lock, std::chrono::seconds(5),
                                         [&] { return parked_count_ >= count; }));
  }
  size_t parked() {
    const std::lock_guard lock(mutex_);
    return parked_count_;
  }
  // Answers what is parked, newest first: answers need not come in the order of their requests.
  void release() {
    on_loop([this] {
      std::vector<Responder> all = std::exchange(parked_, {});
      {
        const std::lock_guard lock(mutex_);
        parked_count_ = 0;
      }
      while (!all.empty()) {
        all.back().answer(cbor::Value::map({{"released", true}}));
        all.pop_back();
      }
    });
  }
  // Sends one event to each that is parked, in order; for each, whether it was sent.
  std::vector<bool> tell_parked(std::span<const uint8_t> event, size_t unsent_max) {
    std::vector<bool> sent;
    on_loop([&] {
      for (Responder& responder : parked_) {
        const bool room = responder.has_room(unsent_max);
        sent.push_back(responder.event_encoded(event, unsent_max).has_value());
        EXPECT_EQ(room, sent.back());
      }
    });
    return sent;
  }
  // Ends the server while requests are unanswered.
  void end_server() {
    on_loop([this] { server_.reset(); });
  }

 private:
  struct Pager {
    Responder responder;
    uint64_t left;
    uint64_t count;
    std::vector<uint8_t> page;
  };

  static void send_pages(const std::shared_ptr<Pager>& pager) {
    while (pager->left > 0) {
      Status sent =
          pager->responder.page(cbor::Value::map({{"page", cbor::Value::bytes(pager->page)}}));
      if (!sent) {
        if (sent.error().code == "peer_slow") {
          pager->responder.on_writable([pager] { send_pages(pager); });
        }
        return;
      }
      --pager->left;
    }
    pager->responder.answer(cbor::Value::map({{"pages", pager->count}}));
  }

  void handle(const Peer& peer, Request request, Responder responder) {
    using cbor::Value;
    if (request.verb == "echo") {
      responder.answer(request.args);
    } else if (request.verb == "body") {
      uint64_t sum = 0;
      for (const uint8_t byte : request.body) sum += byte;
      responder.answer(Value::map({{"size", request.body.size()}, {"sum", sum}}));
    } else if (request.verb == "later") {
      parked_.push_back(std::move(responder));
      const std::lock_guard lock(mutex_);
      ++parked_count_;
      parked_changed_.notify_all();
    } else if (request.verb == "work") {
      ::poll(nullptr, 0, static_cast<int>(*request.args.get_u64("ms")));
      responder.answer(Value::map());
    } else if (request.verb == "drop") {
      // The destructor answers.
    } else if (request.verb == "fill") {
      responder.answer(Value::map(
          {{"bytes", Value::bytes(std::vector<uint8_t>(*request.args.get_u64("bytes")))}}));
    } else if (request.verb == "pages") {
      const uint64_t count = *request.args.get_u64("count");
      send_pages(std::make_shared<Pager>(std::move(responder), count, count,
                                         std::vector<uint8_t>(*request.args.get_u64("bytes"))));
    } else if (request.verb == "watch") {
      const uint64_t count = *request.args.get_u64("count");
      for (uint64_t i = 0; i < count; ++i) {
        EXPECT_TRUE(responder.event(Value::map({{"sequence", i}})));
      }
      responder.answer(Value::map({{"events", count}}));
    } else if (request.verb == "who") {
      responder.answer(Value::map({{"uid", peer.uid},
                                   {"pid", peer.pid},
                                   {"role", name_of(peer.role)},
                                   {"signer", request.signer ? request.signer->name : ""}}));
    } else if (request.verb == "refuse") {
      responder.fail(
          Error{ErrorKind::conflict, "lease_not_live", 0, "lease 7 is expired", "grant it again"});
    } else {
      responder.fail(Error{ErrorKind::invalid, "unknown_verb", 0, "no such verb", ""});
    }
  }

  TempDir dir_;
  std::string path_;
  Guard guard_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<ControlServer> server_;
  std::vector<Responder> parked_;
  std::mutex mutex_;
  std::condition_variable parked_changed_;
  size_t parked_count_ = 0;
  std::thread thread_;
};

class RawPeer {
 public:
  explicit RawPeer(const std::string& path) {
    fd_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const auto address = unix_address(path);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address),
              0);
  }

  int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }
  void half_close() { ::shutdown(fd_.get(), SHUT_WR); }

  bool send(std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(sent));
    }
    return true;
  }

  // As much as the socket takes now.
  size_t send_some(std::span<const uint8_t> bytes) {
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 ? 0 : static_cast<size_t>(sent);
  }

  void send_with_fd(std::span<const uint8_t> bytes, int fd) {
    alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(int))] = {};
    iovec piece{const_cast<uint8_t*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* item = CMSG_FIRSTHDR(&message);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(item), &fd, sizeof fd);
    EXPECT_EQ(::sendmsg(fd_.get(), &message, MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }

  static std::vector<uint8_t> request(uint32_t id, std::string_view verb,
                                      const cbor::Value& args = cbor::Value::map()) {
    const RequestParts parts = encode_request(verb, args, std::nullopt);
    std::vector<uint8_t> body = parts.before;
    body.insert(body.end(), parts.after.begin(), parts.after.end());
    std::vector<uint8_t> out;
    append_frame(out, FrameType::request, 0, id, body);
    return out;
  }

  // The next frame, or none when the server closed or nothing came in time.
  std::optional<Frame> read(int timeout_ms = 5000) {
    for (;;) {
      Result<std::optional<Frame>> frame = reader_.next();
      if (!frame) return std::nullopt;
      if (*frame) return std::move(*frame);
      pollfd item{fd_.get(), POLLIN, 0};
      if (::poll(&item, 1, timeout_ms) <= 0) return std::nullopt;
      uint8_t buffer[4096];
      const ssize_t received = ::recv(fd_.get(), buffer, sizeof buffer, 0);
      if (received <= 0) {
        closed_ = true;
        return std::nullopt;
      }
      reader_.feed({buffer, static_cast<size_t>(received)});
    }
  }

  std::optional<WireError> read_error() {
    std::optional<Frame> frame = read();
    if (!frame || frame->type != FrameType::error) return std::nullopt;
    Result<WireError> error = decode_error(frame->body);
    if (!error) return std::nullopt;
    return std::move(*error);
  }

  // The hello, which comes first on every connection.
  void expect_hello() {
    const std::optional<Frame> frame = read();
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->type, FrameType::hello);
    EXPECT_EQ(frame->request_id, 0U);
  }

  // Nothing more comes, and the server has closed.
  bool is_closed() { return !read() && closed_; }

 private:
  UniqueFd fd_;
  FrameReader reader_;
  bool closed_ = false;
};

}  // namespace holdfast::wire::testing
