// Numbered frames on many streams at once, as fast as they are taken, and who got which.
//
//   swap_traffic PLAN RESULT     prints "ready" after the first round, ends with SIGTERM or SIGINT
//
// PLAN is text, one item a line:
//   path NAME NETNS INTERFACE
//   stream NAME FROM-PATH TO-PATH must|may PORT-OFFSET FRAME
//
// FRAME is a whole Ethernet frame in hex whose last 16 bytes are the stamp: "HFSW", the stream's
// number, 2 bytes that complement the source port, the round, and the round's complement. So a
// stamp never changes a checksum, nor does another source port: PORT-OFFSET says where that is
// counted up, 0 that it stays.
//
// A round sends one frame of each stream. The next one begins when all `must` frames of the round
// before last have arrived, or are overdue: so no queue on the way overflows, and what is missing
// was dropped by a verdict. RESULT is text:
//   round BEGIN-NS END-NS        CLOCK_BOOTTIME: before its first frame was sent; when its `must`
//                                frames had arrived
//   run STREAM FIRST LAST COUNT  rounds FIRST to LAST each arrived COUNT times
//   stray STREAM COUNT           frames that came out at another path
//
// One thread. Fails if a receiving socket overflowed: then the result would say nothing.
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast {
namespace {

constexpr size_t stamp_bytes = 16;
constexpr size_t frame_bytes_max = 256;
constexpr size_t batch = 64;
constexpr uint32_t ports_per_stream = 16384;
constexpr uint64_t overdue_ns = 300'000'000;  // longer than any scheduling delay seen on two CPUs
constexpr uint64_t rounds_in_flight = 2;
constexpr int receive_buffer_bytes = 32 << 20;

volatile std::sig_atomic_t ended = 0;

struct Path {
  UniqueFd sender;
  UniqueFd receiver;
};

struct Stream {
  std::string name;
  size_t from = 0;
  size_t to = 0;
  bool must = false;
  size_t port_offset = 0;
  uint16_t first_port = 0;
  std::vector<uint8_t> frame;
  std::vector<uint8_t> arrived;  // by round: how often
  uint64_t strays = 0;
};

struct Round {
  uint64_t begin_ns = 0;
  uint64_t end_ns = 0;
  uint32_t missing = 0;  // `must` frames not yet arrived
};

Result<Path> open_path(const std::string& netns, const std::string& interface) {
  const UniqueFd ns(::open(netns.c_str(), O_RDONLY | O_CLOEXEC));
  if (!ns || ::setns(ns.get(), CLONE_NEWNET) != 0) return fail_sys(errno, "netns", netns);
  const unsigned ifindex = ::if_nametoindex(interface.c_str());
  if (ifindex == 0) return fail_sys(errno, "interface", interface);
  Path path;
  path.sender.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  path.receiver.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!path.sender || !path.receiver) return fail_sys(errno, "socket", "AF_PACKET");
  const int one = 1;
  ::setsockopt(path.receiver.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one));
  if (::setsockopt(path.receiver.get(), SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer_bytes,
                   sizeof(receive_buffer_bytes)) != 0)
    return fail_sys(errno, "rcvbuf", "sizing a receive buffer");
  sockaddr_ll at{};
  at.sll_family = AF_PACKET;
  at.sll_ifindex = static_cast<int>(ifindex);
  if (::bind(path.sender.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0)
    return fail_sys(errno, "bind", interface);
  at.sll_protocol = htons(ETH_P_ALL);
  if (::bind(path.receiver.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0)
    return fail_sys(errno, "bind", interface);
  return path;
}

Result<std::vector<uint8_t>> from_hex(const std::string& text) {
  std::vector<uint8_t> out(text.size() / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    const char* at = text.data() + 2 * i;
    if (std::from_chars(at, at + 2, out[i], 16).ptr != at + 2)
      return fail(ErrorKind::invalid, "hex", text);
  }
  if (out.size() < ETH_HLEN + stamp_bytes || out.size() > frame_bytes_max)
    return fail(ErrorKind::invalid, "frame_length", text);
  return out;
}

void store32(uint8_t* at, uint32_t value) {
  value = htonl(value);
  std::memcpy(at, &value, sizeof(value));
}
uint32_t load32(const uint8_t* at) {
  uint32_t value = 0;
  std::memcpy(&value, at, sizeof(value));
  return ntohl(value);
}
void store16(uint8_t* at, uint16_t value) {
  value = htons(value);
  std::memcpy(at, &value, sizeof(value));
}
uint16_t load16(const uint8_t* at) {
  uint16_t value = 0;
  std::memcpy(&value, at, sizeof(value));
  return ntohs(value);
}

class Traffic {
 public:
  Status read_plan(const char* file) {
    std::ifstream in(file);
    std::map<std::string, size_t> names;
    for (std::string line; std::getline(in, line);) {
      std::istringstream words(line);
      std::string kind;
      std::string name;
      words >> kind >> name;
      if (kind == "path") {
        std::string netns;
        std::string interface;
        words >> netns >> interface;
        Result<Path> path = open_path(netns, interface);
        if (!path) return pass_on(path, "path " + name);
        names[name] = paths_.size();
        paths_.push_back(std::move(*path));
        continue;
      }
      std::string from;
      std::string to;
      std::string must;
      std::string frame;
      Stream stream;
      stream.name = name;
      words >> from >> to >> must >> stream.port_offset >> frame;
      if (kind != "stream" || !words || !names.contains(from) || !names.contains(to))
        return fail(ErrorKind::invalid, "plan", line);
      Result<std::vector<uint8_t>> bytes = from_hex(frame);
      if (!bytes) return pass_on(bytes);
      stream.from = names[from];
      stream.to = names[to];
      stream.must = must == "must";
      stream.frame = std::move(*bytes);
      if (stream.port_offset != 0) stream.first_port = load16(&stream.frame[stream.port_offset]);
      uint8_t* stamp = &stream.frame[stream.frame.size() - stamp_bytes];
      if (std::memcmp(stamp, "HFSW", 4) != 0 || load16(stamp + 4) != streams_.size())
        return fail(ErrorKind::invalid, "stamp", line);
      must_ += stream.must;
      streams_.push_back(std::move(stream));
    }
    if (streams_.empty()) return fail(ErrorKind::invalid, "plan", "no streams");
    return {};
  }

  Status run() {
    while (ended == 0) {
      const auto number = static_cast<uint32_t>(rounds_.size());
      rounds_.push_back({.begin_ns = boot_now_ns(), .end_ns = 0, .missing = must_});
      for (Stream& stream : streams_) {
        if (Status ok = send(stream, number); !ok) return ok;
      }
      drain();
      while (done_ + rounds_in_flight < rounds_.size()) {
        settle();
        drain();
      }
      if (number == 0) {
        std::puts("ready");
        std::fflush(stdout);
      }
    }
    while (done_ < rounds_.size()) {
      settle();
      drain();
    }
    const uint64_t end = boot_now_ns() + overdue_ns;  // for stragglers of `may` streams
    while (boot_now_ns() < end) drain();
    for (const Path& path : paths_) {
      tpacket_stats statistics{};
      socklen_t length = sizeof(statistics);
      if (::getsockopt(path.receiver.get(), SOL_PACKET, PACKET_STATISTICS, &statistics, &length) !=
              0 ||
          statistics.tp_drops != 0)
        return fail(ErrorKind::internal, "overflow",
                    fmt::format("{} frames were lost in a receive buffer", statistics.tp_drops));
    }
    return {};
  }

  Status write_result(const char* file) const {
    std::ofstream out(file);
    for (const Round& round : rounds_)
      out << "round " << round.begin_ns << ' ' << round.end_ns << '\n';
    for (const Stream& stream : streams_) {
      for (size_t first = 0; first < rounds_.size();) {
        size_t last = first;
        while (last + 1 < rounds_.size() && stream.arrived[last + 1] == stream.arrived[first])
          ++last;
        out << "run " << stream.name << ' ' << first << ' ' << last << ' '
            << static_cast<int>(stream.arrived[first]) << '\n';
        first = last + 1;
      }
      if (stream.strays != 0) out << "stray " << stream.name << ' ' << stream.strays << '\n';
    }
    out.flush();
    return out ? Status{} : fail_sys(errno, "result", file);
  }

 private:
  Status send(Stream& stream, uint32_t number) {
    stream.arrived.push_back(0);
    uint8_t* stamp = &stream.frame[stream.frame.size() - stamp_bytes];
    if (stream.port_offset != 0) {
      const auto port = static_cast<uint16_t>(stream.first_port + number % ports_per_stream);
      store16(&stream.frame[stream.port_offset], port);
      store16(stamp + 6, static_cast<uint16_t>(~port));
    }
    store32(stamp + 8, number);
    store32(stamp + 12, ~number);
    const int fd = paths_[stream.from].sender.get();
    while (::send(fd, stream.frame.data(), stream.frame.size(), 0) < 0) {
      if (errno != ENOBUFS && errno != EINTR) return fail_sys(errno, "send", stream.name);
      drain();
    }
    return {};
  }

  // Rounds are done in order: when nothing of theirs is missing, or it is overdue.
  void settle() {
    while (done_ < rounds_.size()) {
      Round& round = rounds_[done_];
      const uint64_t now = boot_now_ns();
      if (round.missing != 0 && now < round.begin_ns + overdue_ns) return;
      if (round.end_ns == 0) round.end_ns = now;
      ++done_;
    }
  }

  void drain() {
    for (size_t i = 0; i < paths_.size(); ++i) {
      for (;;) {
        std::array<mmsghdr, batch> messages{};
        std::array<iovec, batch> parts{};
        for (size_t m = 0; m < batch; ++m) {
          parts[m] = {buffers_[m].data(), frame_bytes_max};
          messages[m].msg_hdr.msg_iov = &parts[m];
          messages[m].msg_hdr.msg_iovlen = 1;
        }
        const int got = ::recvmmsg(paths_[i].receiver.get(), messages.data(), batch,
                                   MSG_DONTWAIT | MSG_TRUNC, nullptr);
        for (int m = 0; m < got; ++m) {
          const auto at = static_cast<size_t>(m);
          count(i, buffers_[at].data(), messages[at].msg_len);
        }
        if (got < static_cast<int>(batch)) break;
      }
    }
    settle();
  }

  void count(size_t path, const uint8_t* frame, size_t length) {
    if (length < ETH_HLEN + stamp_bytes || length > frame_bytes_max) return;
    const uint8_t* stamp = frame + length - stamp_bytes;
    const uint32_t number = load32(stamp + 8);
    if (std::memcmp(stamp, "HFSW", 4) != 0 || load32(stamp + 12) != ~number) return;
    const uint16_t index = load16(stamp + 4);
    // An ICMP error that quotes one of ours is longer.
    if (index >= streams_.size() || length != streams_[index].frame.size()) return;
    Stream& stream = streams_[index];
    if (number >= stream.arrived.size()) return;
    if (path != stream.to) {
      ++stream.strays;
      return;
    }
    if (stream.arrived[number] < 255) ++stream.arrived[number];
    if (stream.must && stream.arrived[number] == 1 && --rounds_[number].missing == 0)
      rounds_[number].end_ns = boot_now_ns();
  }

  std::vector<Path> paths_;
  std::vector<Stream> streams_;
  std::vector<Round> rounds_;
  uint32_t must_ = 0;
  size_t done_ = 0;
  std::array<std::array<uint8_t, frame_bytes_max>, batch> buffers_{};
};

Status run(const char* plan, const char* result) {
  Traffic traffic;
  if (Status ok = traffic.read_plan(plan); !ok) return ok;
  if (Status ok = traffic.run(); !ok) return ok;
  return traffic.write_result(result);
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("swap_traffic PLAN RESULT\n", stderr);
    return 2;
  }
  std::signal(SIGTERM, [](int) { holdfast::ended = 1; });
  std::signal(SIGINT, [](int) { holdfast::ended = 1; });
  const holdfast::Status ok = holdfast::run(argv[1], argv[2]);
  if (ok) return 0;
  std::fputs((ok.error().text() + "\n").c_str(), stderr);
  return 1;
}
