#include "userspace/verifier/worker.hpp"

#include <algorithm>
#include <csignal>
#include <future>

#include <fmt/format.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"

namespace holdfast::verifier {

struct Worker::User {
  uint64_t virtual_ns = 0;
  uint16_t group = 0;
  uint32_t connections = 0;
  std::deque<uint32_t> runnable;  // connections with a frame to judge, in turn
};

struct Worker::Connection {
  Link link;
  uid_t uid = 0;
  Asker asker;
  User* user = nullptr;
  std::deque<Received> received;
  std::deque<std::vector<uint8_t>> unsent;  // the first is under way
  bool receiving = true;
  bool is_runnable = false;  // stands in its user's list
  bool closing = false;      // once what is unsent has gone
  uint64_t moved_ns = 0;     // when an answer was last taken
};

Worker::Worker(const VerifierState& state, const WorkerOptions& options)
    : state_(state), options_(options) {}

Result<std::unique_ptr<Worker>> Worker::start(const VerifierState& state,
                                              const WorkerOptions& options) {
  std::unique_ptr<Worker> worker(new Worker(state, options));
  worker->wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!worker->wake_) return fail_sys(errno, "eventfd", "making an eventfd");
  // An io_uring belongs to the thread that makes it.
  std::promise<Status> promise;
  std::future<Status> ready = promise.get_future();
  worker->thread_ = std::jthread(
      [made = std::move(promise), self = worker.get()](const std::stop_token& stop) mutable {
        Result<std::unique_ptr<Transport>> transport = self->options_.uring
                                                           ? Transport::uring(self->wake_.get())
                                                           : Transport::epoll(self->wake_.get());
        if (!transport) return made.set_value(std::unexpected(std::move(transport.error())));
        self->transport_ = std::move(*transport);
        self->transport_name_ = self->transport_->name();
        made.set_value({});
        self->run(stop);
        self->connections_.clear();
        self->transport_.reset();
      });
  if (Status ok = ready.get(); !ok) return pass_on(ok);
  return worker;
}

Worker::~Worker() {
  thread_.request_stop();
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = ::write(wake_.get(), &one, sizeof(one));
}

void Worker::take(UniqueFd fd, uid_t uid, Asker asker) {
  {
    const std::scoped_lock lock(mutex_);
    arrivals_.push_back({std::move(fd), uid, std::move(asker)});
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = ::write(wake_.get(), &one, sizeof(one));
}

WorkerCounts Worker::counts() const {
  const std::scoped_lock lock(mutex_);
  return counts_;
}

void Worker::run(const std::stop_token& stop) {
  ::pthread_setname_np(::pthread_self(), "verifier");
  while (!stop.stop_requested()) {
    User* next = nullptr;
    for (auto& [uid, user] : users_)
      if (!user.runnable.empty() && (next == nullptr || user.virtual_ns < next->virtual_ns))
        next = &user;
    if (next != nullptr) go_on_with(*next);
    const bool idle = next == nullptr;
    const bool unsent = sweep(idle);
    transport_->poll(!idle ? 0 : unsent ? 1000 : -1, *this);
  }
}

void Worker::admit(Arrival arrival) {
  auto found = users_.find(arrival.uid);
  const bool is_new = found == users_.end();
  if (connections_.size() >= options_.connections_max ||
      (is_new ? users_.size() >= options_.uids_max
              : found->second.connections >= options_.uid_connections_max))
    return;  // its descriptor is closed: the peer sees the end
  if (is_new) {
    User user;
    if (free_groups_.empty()) {
      if (!transport_->add_group(next_group_)) return;
      free_groups_.push_back(next_group_++);
    }
    user.group = free_groups_.back();
    free_groups_.pop_back();
    user.virtual_ns = virtual_now_;
    found = users_.emplace(arrival.uid, std::move(user)).first;
  }
  auto connection = std::make_unique<Connection>();
  connection->link.id = next_link_++;
  connection->link.fd = std::move(arrival.fd);
  connection->link.group = found->second.group;
  connection->uid = arrival.uid;
  connection->asker = std::move(arrival.asker);
  connection->user = &found->second;
  ++found->second.connections;
  Connection& there = *connection;
  connections_.emplace(there.link.id, std::move(connection));
  if (!transport_->add(there.link)) close(there.link.id);
}

void Worker::on_wake() {
  std::vector<Arrival> arrivals;
  {
    const std::scoped_lock lock(mutex_);
    arrivals.swap(arrivals_);
  }
  for (Arrival& each : arrivals) admit(std::move(each));
}

void Worker::on_datagram(uint32_t id, uint16_t buffer, std::span<const uint8_t> bytes) {
  Connection& connection = *connections_.at(id);
  connection.received.push_back({buffer, bytes, nullptr});
  settle(connection);
}

void Worker::on_closed(uint32_t id) {
  close(id);
}

// Whether it is its turn, and whether more is to be received.
void Worker::settle(Connection& connection) {
  const bool stalled = connection.unsent.size() >= options_.unsent_max || connection.closing;
  if (!connection.received.empty() && !stalled && !connection.is_runnable) {
    connection.is_runnable = true;
    // Who was idle begins where the others are: idling saves nothing up.
    if (connection.user->runnable.empty())
      connection.user->virtual_ns = std::max(connection.user->virtual_ns, virtual_now_);
    connection.user->runnable.push_back(connection.link.id);
  }
  const bool receiving = !stalled && connection.received.size() < options_.unanswered_max;
  if (receiving != connection.receiving) {
    connection.receiving = receiving;
    transport_->receive(connection.link, receiving);
  }
}

// Reads a frame's header. What needs no judging is answered at once.
Result<std::vector<uint8_t>> Worker::begin(Connection& connection, Received& frame) {
  const Result<wire::Datagram> datagram = wire::read_datagram(frame.bytes);
  if (!datagram) return std::unexpected(datagram.error());
  if (datagram->type == wire::FrameType::prove)
    return take_proof(*datagram, *state_.beliefs.load(), connection.asker);
  if (datagram->type != wire::FrameType::check)
    return fail(ErrorKind::invalid, "unknown_type",
                "only check and prove frames are answered here");
  frame.judge = std::make_unique<FrameJudge>(datagram->request_id, datagram->body);
  return {};
}

void Worker::go_on_with(User& user) {
  const uint64_t began_ns = boot_now_ns();
  virtual_now_ = user.virtual_ns;
  const uint32_t id = user.runnable.front();
  user.runnable.pop_front();
  Connection& connection = *connections_.at(id);
  connection.is_runnable = false;
  Received& frame = connection.received.front();
  bool done = true;
  std::vector<uint8_t> reply;
  if (frame.judge == nullptr) {
    Result<std::vector<uint8_t>> answer = begin(connection, frame);
    if (answer) {
      reply = std::move(*answer);
    } else {
      // It does not speak our protocol, or proves nothing: told so, and let go.
      const Error& error = answer.error();
      wire::append_frame(reply, wire::FrameType::error, 0, 0,
                         cbor::encode(wire::encode_error(error, wire::default_retry(error))));
      ++fresh_counts_.malformed;
      connection.closing = true;
    }
  }
  if (frame.judge != nullptr) {
    const std::shared_ptr<const token::Beliefs> beliefs = state_.beliefs.load();
    done =
        frame.judge->go_on(checker_, state_, *beliefs, connection.asker, options_.slice_ns, fresh_);
    if (done) reply = frame.judge->answer();
  }
  if (done) {
    ++fresh_counts_.frames;
    const uint16_t buffer = frame.buffer;
    connection.received.pop_front();
    transport_->give_back(user.group, buffer);
    answer(connection, std::move(reply));
  }
  settle(connection);
  user.virtual_ns += boot_now_ns() - began_ns;
}

void Worker::answer(Connection& connection, std::vector<uint8_t> frame) {
  connection.unsent.push_back(std::move(frame));
  if (connection.unsent.size() == 1) {
    connection.moved_ns = boot_now_ns();
    transport_->send(connection.link, connection.unsent.front());
  }
}

void Worker::on_sent(uint32_t id) {
  Connection& connection = *connections_.at(id);
  connection.unsent.pop_front();
  connection.moved_ns = boot_now_ns();
  if (!connection.unsent.empty())
    transport_->send(connection.link, connection.unsent.front());
  else if (connection.closing)
    return close(id);
  settle(connection);
}

void Worker::close(uint32_t id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  Connection& connection = *found->second;
  transport_->remove(connection.link);
  for (const Received& each : connection.received)
    transport_->give_back(connection.link.group, each.buffer);
  User& user = *connection.user;
  std::erase(user.runnable, id);
  const uid_t uid = connection.uid;
  connections_.erase(found);
  if (--user.connections > 0) return;
  free_groups_.push_back(user.group);
  users_.erase(uid);
}

// Now and then: hands the counts over, and lets go of who takes no answers.
// Whether anything is unsent; not looked at each time.
bool Worker::sweep(bool idle) {
  const uint64_t now = boot_now_ns();
  constexpr uint64_t period_ns = 20 * ns_per_ms;
  if (!idle && now - swept_ns_ < period_ns) return true;
  swept_ns_ = now;
  bool unsent = false;
  std::vector<uint32_t> stalled;
  for (const auto& [id, connection] : connections_) {
    if (connection->unsent.empty()) continue;
    unsent = true;
    if (now - connection->moved_ns > options_.stall_timeout_ns) stalled.push_back(id);
  }
  for (const uint32_t id : stalled) close(id);
  const std::scoped_lock lock(mutex_);
  counts_.connections = connections_.size();
  counts_.frames = fresh_counts_.frames;
  counts_.malformed = fresh_counts_.malformed;
  counts_.signatures = checker_.signatures();
  counts_.verdicts = fresh_;
  return unsent;
}

}  // namespace holdfast::verifier
