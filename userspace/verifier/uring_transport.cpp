// Multishot receives into each user's own ring of buffers, and sends, one ring a thread: only this
// thread submits (SINGLE_ISSUER), and completions are run when it asks for them (DEFER_TASKRUN).
#include <array>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include <fmt/format.h>
#include <liburing.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/verifier/transport.hpp"

namespace holdfast::verifier {
namespace {

constexpr unsigned entries = 256;

// What a completion is of: in the low byte, above the link's id.
enum class Op : uint8_t { wake, receive, send, cancel };
uint64_t data_of(Op op, uint32_t link) {
  return uint64_t{link} << 8 | static_cast<uint8_t>(op);
}

class UringTransport final : public Transport {
 public:
  explicit UringTransport(int wake) : wake_(wake) {}
  ~UringTransport() override {
    if (open_) ::io_uring_queue_exit(&ring_);
  }

  Status open() {
    io_uring_params params{};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE;
    params.cq_entries = 8 * entries;
    if (const int err = ::io_uring_queue_init_params(entries, &ring_, &params); err != 0) {
      Error error{ErrorKind::unsupported, "io_uring", -err, "making an io_uring",
                  "epoll serves as well; see holdfast doctor"};
      return std::unexpected(std::move(error));
    }
    open_ = true;
    arm_wake();
    return {};
  }

  std::string_view name() const override { return "io_uring"; }

  Status add_group(uint16_t number) override {
    auto ring = ZeroedArray<io_uring_buf>::make(buffers_per_uid, buffer_pages);
    if (!ring) return pass_on(ring);
    auto memory = ZeroedArray<uint8_t>::make(buffers_per_uid * buffer_bytes, buffer_pages);
    if (!memory) return pass_on(memory);
    Group group{.ring = std::move(*ring), .memory = std::move(*memory)};
    io_uring_buf_reg registered{};
    registered.ring_addr = reinterpret_cast<uint64_t>(group.ring.data());
    registered.ring_entries = buffers_per_uid;
    registered.bgid = number;
    if (const int err = ::io_uring_register_buf_ring(&ring_, &registered, 0); err != 0)
      return fail_sys(-err, "io_uring", "registering receive buffers");
    ::io_uring_buf_ring_init(group.entries());
    for (uint16_t i = 0; i < buffers_per_uid; ++i) put(group, i);
    groups_.emplace(number, std::move(group));
    return {};
  }
  Status add(const Link& link) override {
    Watched& watched = links_[link.id];
    watched.fd = link.fd.get();
    watched.group = link.group;
    arm(link.id, watched);
    return {};
  }
  void remove(const Link& link) override {
    // Ends what is under way; its completions find no link and are let go.
    ::shutdown(link.fd.get(), SHUT_RDWR);
    io_uring_sqe* sqe = entry();
    ::io_uring_prep_cancel_fd(sqe, link.fd.get(), IORING_ASYNC_CANCEL_ALL);
    sqe->user_data = data_of(Op::cancel, link.id);
    ::io_uring_submit(&ring_);
    if (const auto found = links_.find(link.id); found != links_.end()) {
      if (found->second.armed || found->second.sending) gone_[link.id] = found->second;
      links_.erase(found);
    }
  }

  void receive(const Link& link, bool on) override {
    Watched& watched = links_.at(link.id);
    watched.wanted = on;
    if (on && !watched.armed) return arm(link.id, watched);
    if (on || !watched.armed) return;
    io_uring_sqe* sqe = entry();
    ::io_uring_prep_cancel64(sqe, data_of(Op::receive, link.id), 0);
    sqe->user_data = data_of(Op::cancel, link.id);
  }

  void send(const Link& link, std::span<const uint8_t> bytes) override {
    links_.at(link.id).sending = true;
    io_uring_sqe* sqe = entry();
    ::io_uring_prep_send(sqe, link.fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    sqe->user_data = data_of(Op::send, link.id);
  }

  void give_back(uint16_t number, uint16_t buffer) override {
    Group& group = groups_.at(number);
    put(group, buffer);
    std::vector<uint32_t> starved;
    starved.swap(group.starved);
    for (const uint32_t id : starved)
      if (const auto found = links_.find(id); found != links_.end())
        if (found->second.wanted && !found->second.armed) arm(id, found->second);
  }

  void poll(int wait_ms, Events& events) override {
    if (wait_ms < 0) {
      ::io_uring_submit_and_wait(&ring_, 1);
    } else if (wait_ms > 0) {
      __kernel_timespec limit{.tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * 1'000'000};
      io_uring_cqe* first = nullptr;
      ::io_uring_submit_and_wait_timeout(&ring_, &first, 1, &limit, nullptr);
    } else {
      ::io_uring_submit_and_get_events(&ring_);
    }
    std::array<io_uring_cqe*, 64> batch;
    while (const unsigned count = ::io_uring_peek_batch_cqe(&ring_, batch.data(), batch.size())) {
      // Copied, so that the places are free for what the handlers bring about.
      std::array<io_uring_cqe, 64> taken;
      for (unsigned i = 0; i < count; ++i) taken[i] = *batch[i];
      ::io_uring_cq_advance(&ring_, count);
      for (unsigned i = 0; i < count; ++i) complete(taken[i], events);
    }
  }

 private:
  struct Group {
    ZeroedArray<io_uring_buf> ring;
    ZeroedArray<uint8_t> memory;
    std::vector<uint32_t> starved = {};

    io_uring_buf_ring* entries() { return reinterpret_cast<io_uring_buf_ring*>(ring.data()); }
  };
  struct Watched {
    int fd = -1;
    uint16_t group = 0;
    bool wanted = true;
    bool armed = false;
    bool sending = false;
  };

  static void put(Group& group, uint16_t buffer) {
    ::io_uring_buf_ring_add(group.entries(), group.memory.data() + buffer * buffer_bytes,
                            buffer_bytes, buffer, ::io_uring_buf_ring_mask(buffers_per_uid), 0);
    ::io_uring_buf_ring_advance(group.entries(), 1);
  }

  io_uring_sqe* entry() {
    for (;;) {
      if (io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_); sqe != nullptr) return sqe;
      ::io_uring_submit(&ring_);
    }
  }

  void arm_wake() {
    io_uring_sqe* sqe = entry();
    ::io_uring_prep_poll_add(sqe, wake_, POLLIN);
    sqe->user_data = data_of(Op::wake, 0);
  }

  void arm(uint32_t id, Watched& watched) {
    io_uring_sqe* sqe = entry();
    ::io_uring_prep_recv_multishot(sqe, watched.fd, nullptr, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = watched.group;
    sqe->user_data = data_of(Op::receive, id);
    watched.armed = true;
  }

  void complete(const io_uring_cqe& cqe, Events& events) {
    const auto op = static_cast<Op>(cqe.user_data & 0xff);
    const auto id = static_cast<uint32_t>(cqe.user_data >> 8);
    if (op == Op::wake) {
      uint64_t value = 0;
      [[maybe_unused]] const ssize_t got = ::read(wake_, &value, sizeof(value));
      arm_wake();
      return events.on_wake();
    }
    if (op == Op::cancel) return;
    const auto found = links_.find(id);
    const auto left = gone_.find(id);
    if (found == links_.end() && left == gone_.end()) return;
    Watched& watched = found != links_.end() ? found->second : left->second;
    if (op == Op::send) {
      watched.sending = false;
      if (found != links_.end()) return cqe.res < 0 ? events.on_closed(id) : events.on_sent(id);
    } else {
      if ((cqe.flags & IORING_CQE_F_MORE) == 0) watched.armed = false;
      const bool has_buffer = (cqe.flags & IORING_CQE_F_BUFFER) != 0;
      const auto buffer = static_cast<uint16_t>(cqe.flags >> IORING_CQE_BUFFER_SHIFT);
      if (found != links_.end()) return received(id, watched, cqe.res, has_buffer, buffer, events);
      if (has_buffer) give_back(watched.group, buffer);
    }
    if (!watched.armed && !watched.sending) gone_.erase(left);
  }

  void received(uint32_t id, Watched& watched, int result, bool has_buffer, uint16_t buffer,
                Events& events) {
    if (result > 0 && has_buffer) {
      if (!watched.armed && watched.wanted) arm(id, watched);
      return events.on_datagram(id, buffer,
                                {groups_.at(watched.group).memory.data() + buffer * buffer_bytes,
                                 static_cast<size_t>(result)});
    }
    if (has_buffer) give_back(watched.group, buffer);
    if (result == -ENOBUFS) {
      groups_.at(watched.group).starved.push_back(id);
    } else if (result == -ECANCELED) {
      if (watched.wanted && !watched.armed) arm(id, watched);
    } else {
      events.on_closed(id);
    }
  }

  io_uring ring_{};
  bool open_ = false;
  int wake_;
  std::unordered_map<uint16_t, Group> groups_;
  std::unordered_map<uint32_t, Watched> links_;
  std::unordered_map<uint32_t, Watched> gone_;  // removed, with something under way
};

}  // namespace

Result<std::unique_ptr<Transport>> Transport::uring(int wake) {
  auto transport = std::make_unique<UringTransport>(wake);
  if (Status ok = transport->open(); !ok) return pass_on(ok);
  return transport;
}

}  // namespace holdfast::verifier
