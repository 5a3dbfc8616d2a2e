#include <array>
#include <cerrno>
#include <deque>
#include <unordered_map>

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/verifier/transport.hpp"

namespace holdfast::verifier {
namespace {

constexpr uint64_t wake_id = 0;

class EpollTransport final : public Transport {
 public:
  EpollTransport(UniqueFd epoll, int wake) : epoll_(std::move(epoll)), wake_(wake) {}

  std::string_view name() const override { return "epoll"; }

  Status add_group(uint16_t number) override {
    auto memory = ZeroedArray<uint8_t>::make(buffers_per_uid * buffer_bytes, buffer_pages);
    if (!memory) return pass_on(memory);
    Group& group = groups_.emplace(number, Group{.memory = std::move(*memory)}).first->second;
    for (uint16_t i = 0; i < buffers_per_uid; ++i) group.free.push_back(i);
    return {};
  }
  Status add(const Link& link) override {
    epoll_event event{.events = EPOLLIN, .data = {.u64 = link.id}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, link.fd.get(), &event) != 0)
      return fail_sys(errno, "epoll", "watching a connection");
    Watched& watched = links_[link.id];
    watched.fd = link.fd.get();
    watched.group = link.group;
    return {};
  }
  void remove(const Link& link) override {
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, link.fd.get(), nullptr);
    links_.erase(link.id);
  }

  void receive(const Link& link, bool on) override {
    Watched& watched = links_.at(link.id);
    watched.wanted = on;
    watch(link.id, watched);
  }

  void send(const Link& link, std::span<const uint8_t> bytes) override {
    Watched& watched = links_.at(link.id);
    watched.sending = bytes;
    try_send(link.id, watched);
  }

  void give_back(uint16_t number, uint16_t buffer) override {
    Group& group = groups_.at(number);
    group.free.push_back(buffer);
    if (group.starved.empty()) return;
    std::vector<uint32_t> starved;
    starved.swap(group.starved);
    for (const uint32_t id : starved)
      if (const auto found = links_.find(id); found != links_.end()) {
        found->second.starved = false;
        watch(id, found->second);
      }
  }

  void poll(int wait_ms, Events& events) override {
    std::vector<uint32_t> sent;
    sent.swap(sent_);
    std::vector<uint32_t> broken;
    broken.swap(broken_);
    for (const uint32_t id : sent)
      if (links_.contains(id)) events.on_sent(id);
    for (const uint32_t id : broken)
      if (links_.contains(id)) events.on_closed(id);
    std::array<epoll_event, 64> ready;
    const bool waits = sent.empty() && broken.empty();
    const int count = ::epoll_wait(epoll_.get(), ready.data(), ready.size(), waits ? wait_ms : 0);
    for (int i = 0; i < count; ++i) {
      if (ready[i].data.u64 == wake_id) {
        uint64_t value = 0;
        [[maybe_unused]] const ssize_t got = ::read(wake_, &value, sizeof(value));
        events.on_wake();
        continue;
      }
      const auto id = static_cast<uint32_t>(ready[i].data.u64);
      if ((ready[i].events & EPOLLOUT) != 0)
        if (const auto found = links_.find(id); found != links_.end()) try_send(id, found->second);
      if ((ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) read_one(id, events);
    }
  }

 private:
  struct Group {
    ZeroedArray<uint8_t> memory;
    std::vector<uint16_t> free = {};
    std::vector<uint32_t> starved = {};
  };
  struct Watched {
    int fd = -1;
    uint16_t group = 0;
    bool wanted = true;
    bool starved = false;
    std::span<const uint8_t> sending;
    uint32_t events = EPOLLIN;
  };

  void watch(uint32_t id, Watched& watched) {
    const uint32_t events = (watched.wanted && !watched.starved ? uint32_t{EPOLLIN} : 0) |
                            (watched.sending.empty() ? 0 : uint32_t{EPOLLOUT});
    if (events == watched.events) return;
    watched.events = events;
    epoll_event event{.events = events, .data = {.u64 = id}};
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, watched.fd, &event);
  }

  void try_send(uint32_t id, Watched& watched) {
    if (watched.sending.empty()) return;
    const ssize_t put = ::send(watched.fd, watched.sending.data(), watched.sending.size(),
                               MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put < 0 && (errno == EAGAIN || errno == EINTR)) return watch(id, watched);
    watched.sending = {};
    watch(id, watched);
    (put < 0 ? broken_ : sent_).push_back(id);
  }

  void read_one(uint32_t id, Events& events) {
    const auto found = links_.find(id);
    if (found == links_.end()) return;
    Watched& watched = found->second;
    if (!watched.wanted) return events.on_closed(id);  // only an error or the end wakes it then
    Group& group = groups_.at(watched.group);
    if (group.free.empty()) {
      watched.starved = true;
      group.starved.push_back(id);
      return watch(id, watched);
    }
    const uint16_t buffer = group.free.back();
    uint8_t* at = group.memory.data() + buffer * buffer_bytes;
    const ssize_t got = ::recv(watched.fd, at, buffer_bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return events.on_closed(id);
    group.free.pop_back();
    events.on_datagram(id, buffer, {at, static_cast<size_t>(got)});
  }

  UniqueFd epoll_;
  int wake_;
  std::unordered_map<uint16_t, Group> groups_;
  std::unordered_map<uint32_t, Watched> links_;
  std::vector<uint32_t> sent_;
  std::vector<uint32_t> broken_;
};

}  // namespace

Result<std::unique_ptr<Transport>> Transport::epoll(int wake) {
  UniqueFd fd(::epoll_create1(EPOLL_CLOEXEC));
  if (!fd) return fail_sys(errno, "epoll", "making an epoll");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = wake_id}};
  if (::epoll_ctl(fd.get(), EPOLL_CTL_ADD, wake, &event) != 0)
    return fail_sys(errno, "epoll", "watching an eventfd");
  return std::make_unique<EpollTransport>(std::move(fd), wake);
}

}  // namespace holdfast::verifier
