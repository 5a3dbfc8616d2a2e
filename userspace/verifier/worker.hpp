// A thread that answers checks. Its time is shared out between users: whose frames have taken the
// least goes on next, for a fraction of a millisecond, so that a user who sends what is dear (heads
// nobody knows) or much waits for itself and not the others for it. (A virtual clock a user, as in
// Linux's CFS.)
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "userspace/verifier/judge.hpp"
#include "userspace/verifier/transport.hpp"

namespace holdfast::verifier {

struct WorkerOptions {
  bool uring = true;  // if it is to be had; else epoll
  uint32_t connections_max = 1024;
  uint32_t uid_connections_max = 64;
  uint32_t uids_max = 64;       // each has half a MiB of buffers
  uint32_t unanswered_max = 4;  // frames of a connection that are received and not answered
  uint32_t unsent_max = 16;     // answers that a connection has not taken
  uint64_t slice_ns = 300'000;  // of one user, before another is looked at
  uint64_t stall_timeout_ns = 10'000'000'000;  // no answer taken for so long
};

struct WorkerCounts {
  uint64_t connections = 0;
  uint64_t frames = 0;
  uint64_t malformed = 0;
  uint64_t signatures = 0;
  VerdictCounts verdicts{};
};

class Worker final : Events {
 public:
  // Starts the thread. Errors: what the transport says.
  static Result<std::unique_ptr<Worker>> start(const VerifierState& state,
                                               const WorkerOptions& options);
  ~Worker() override;

  // From any thread. The hello has been sent.
  void take(UniqueFd fd, uid_t uid, Asker asker);
  WorkerCounts counts() const;
  std::string_view transport() const { return transport_name_; }

 private:
  struct Connection;
  struct User;
  struct Arrival {
    UniqueFd fd;
    uid_t uid;
    Asker asker;
  };
  struct Received {
    uint16_t buffer;
    std::span<const uint8_t> bytes;
    std::unique_ptr<FrameJudge> judge;  // once begun
  };

  Worker(const VerifierState& state, const WorkerOptions& options);
  void run(const std::stop_token& stop);
  void admit(Arrival arrival);
  Result<std::vector<uint8_t>> begin(Connection& connection, Received& frame);
  void go_on_with(User& user);
  void answer(Connection& connection, std::vector<uint8_t> frame);
  void send_next(Connection& connection);
  void settle(Connection& connection);
  void close(uint32_t id);
  bool sweep(bool idle);

  void on_datagram(uint32_t link, uint16_t buffer, std::span<const uint8_t> bytes) override;
  void on_closed(uint32_t link) override;
  void on_sent(uint32_t link) override;
  void on_wake() override;

  const VerifierState& state_;
  const WorkerOptions options_;
  token::Checker checker_;
  std::unique_ptr<Transport> transport_;
  std::string_view transport_name_;
  UniqueFd wake_;
  std::map<uid_t, User> users_;
  std::unordered_map<uint32_t, std::unique_ptr<Connection>> connections_;
  uint32_t next_link_ = 1;
  uint16_t next_group_ = 0;
  std::vector<uint16_t> free_groups_;
  uint64_t virtual_now_ = 0;
  uint64_t swept_ns_ = 0;

  mutable std::mutex mutex_;  // of what follows
  std::vector<Arrival> arrivals_;
  WorkerCounts counts_;
  VerdictCounts fresh_{};  // the thread's own, until they are added
  WorkerCounts fresh_counts_;

  std::jthread thread_;  // last: it uses what stands above
};

}  // namespace holdfast::verifier
