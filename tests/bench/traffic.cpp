#include "tests/bench/traffic.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "revoke.skel.h"
#include "tests/bench/dataplane.h"
#include "userspace/base/sized.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast::bench {
namespace {

constexpr uint64_t flowing_ns = 50 * ns_per_us;
constexpr uint64_t settle_ns = 5 * ns_per_ms;  // after the reply: what is on its way arrives
constexpr uint64_t rate_ns = 50 * ns_per_ms;
constexpr uint64_t warm_ns = 100 * ns_per_ms;      // of traffic, before a run
constexpr uint64_t patience_ns = 100 * ns_per_ms;  // for a packet, before a run

// An Ethernet frame with 18 bytes of UDP payload: the shortest there is.
struct Frame {
  std::array<uint8_t, 60> bytes{0,    0,    0,   0,  0, 0,                         // destination
                                2,    0,    0,   0,  0, 0x0b,                      // source
                                0x08, 0,                                           // IPv4
                                0x45, 0,    0,   46, 0, 0,    0, 0, 64, 17, 0, 0,  // 46 bytes, UDP
                                203,  0,    113, 7,                                // source address
                                0,    0,    0,   0,                                // destination
                                0x9c, 0x40, 0,   0,                                // ports: 40000
                                0,    26,   0,   0};                               // no checksum

  void aim(uint32_t key) {
    const uint32_t address = htonl(BENCH_ADDRESS_FIRST + key % BENCH_ADDRESSES);
    const uint16_t port = htons(static_cast<uint16_t>(BENCH_PORT_FIRST + key / BENCH_ADDRESSES));
    std::memcpy(&bytes[30], &address, sizeof(address));
    std::memcpy(&bytes[36], &port, sizeof(port));
    bytes[24] = bytes[25] = 0;
    uint32_t sum = 0;
    for (size_t i = 14; i < 34; i += 2) sum += static_cast<uint32_t>(bytes[i] << 8 | bytes[i + 1]);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~((sum & 0xffff) + (sum >> 16));
    bytes[24] = static_cast<uint8_t>(sum >> 8);
    bytes[25] = static_cast<uint8_t>(sum);
  }
};

Status keep_to(pid_t thread, const cpu_set_t& cpus) {
  if (::sched_setaffinity(thread, sizeof(cpus), &cpus) != 0)
    return fail_sys(errno, "cpus", fmt::format("choosing the cores of thread {}", thread));
  return {};
}

Status keep_all_to(pid_t process, const cpu_set_t& cpus) {
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", process), gone))
    if (Status ok = keep_to(std::atoi(entry.path().filename().c_str()), cpus); !ok) return ok;
  return {};
}

Status send_for_ever(const Route& route, int core, Sender& shared) {
  if (Status ok = keep_on_core(::getpid(), core); !ok) return ok;
  const UniqueFd netns(::open(route.sender.c_str(), O_RDONLY | O_CLOEXEC));
  if (!netns || ::setns(netns.get(), CLONE_NEWNET) != 0)
    return fail_sys(errno, "netns", route.sender);
  const UniqueFd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));  // 0: receives nothing
  sockaddr_ll at{};
  at.sll_family = AF_PACKET;
  at.sll_ifindex = static_cast<int>(::if_nametoindex(route.out.c_str()));
  const int one = 1;
  if (!fd || at.sll_ifindex == 0 ||
      ::setsockopt(fd.get(), SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) != 0)
    return fail_sys(errno, "sender", route.out);
  Frame frame;
  unsigned mac[6];
  if (std::sscanf(route.to.c_str(), "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3],
                  &mac[4], &mac[5]) != 6)
    return fail(ErrorKind::invalid, "mac", route.to + " is no MAC address");
  for (size_t i = 0; i < 6; i++) frame.bytes[i] = static_cast<uint8_t>(mac[i]);
  frame.aim(route.keys.front());
  uint32_t random = 2463534242U;
  for (uint64_t sent = 0;; sent++) {
    if (!route.in_turn.empty() && sent % 2 != 0) {
      frame.aim(route.in_turn[sent / 2 % route.in_turn.size()]);
    } else if (route.keys.size() > 1) {
      // Xorshift (Marsaglia 2003)
      random ^= random << 13;
      random ^= random >> 17;
      random ^= random << 5;
      frame.aim(route.keys[uint64_t{random} * route.keys.size() >> 32]);
    }
    shared.boot_ns[sent % sent_times].store(boot_now_ns(), std::memory_order_relaxed);
    shared.sent.store(sent + 1, std::memory_order_release);
    if (::sendto(fd.get(), frame.bytes.data(), frame.bytes.size(), 0,
                 reinterpret_cast<const sockaddr*>(&at), sizeof(at)) < 0 &&
        errno != ENOBUFS)
      return fail_sys(errno, "send", route.out);
  }
}

struct Run {
  uint64_t latency_ns = 0;
  uint64_t answer_ns = 0;
  bool flowing = false;  // a packet arrived in the 50 us before
  bool bounded = false;  // and one that did not was sent within 50 us after the last that did
};

Result<Run> run_once(const SenderProcess& sender, const Receiver& receiver,
                     const std::function<Status()>& revoke) {
  Run run;
  // Others may have the sender's core just now: begin while packets come.
  uint64_t before_ns = receiver.last_boot_ns();
  for (const uint64_t give_up_ns = boot_now_ns() + patience_ns;
       boot_now_ns() > before_ns + flowing_ns / 2 && boot_now_ns() < give_up_ns;)
    before_ns = receiver.last_boot_ns();
  const uint64_t begin_ns = boot_now_ns();
  if (Status ok = revoke(); !ok) return pass_on(ok);
  run.answer_ns = boot_now_ns() - begin_ns;
  pause_ns(settle_ns);
  const uint64_t last_ns = receiver.last_boot_ns();
  const uint64_t denied_ns = sender.sent_after(last_ns);
  run.flowing = begin_ns - before_ns <= flowing_ns;
  run.bounded = denied_ns != 0 && denied_ns - last_ns <= flowing_ns;
  run.latency_ns = last_ns > begin_ns ? last_ns - begin_ns : 0;
  const uint64_t packets = receiver.packets();
  pause_ns(settle_ns);
  if (receiver.packets() != packets)
    return fail(ErrorKind::internal, "passed", "packets arrived after the revocation was answered");
  return run;
}

}  // namespace

void pause_ns(uint64_t ns) {
  const timespec span{static_cast<time_t>(ns / ns_per_s), static_cast<long>(ns % ns_per_s)};
  ::nanosleep(&span, nullptr);
}

double percentile_us(const std::vector<uint64_t>& sorted, size_t percent) {
  if (sorted.empty()) return 0;
  const size_t rank = (sorted.size() * percent + 99) / 100;  // nearest rank, from 1
  return static_cast<double>(sorted[rank - 1]) / ns_per_us;
}

Result<int> keep_off_senders_core(pid_t daemon) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < 2)
    return fail(ErrorKind::unsupported, "cpus", "two cores are needed, one of them to send");
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(last, &allowed)) last--;
  CPU_CLR(last, &allowed);
  if (Status ok = keep_to(0, allowed); !ok) return pass_on(ok);
  if (Status ok = keep_all_to(daemon, allowed); !ok) return pass_on(ok);
  return last;
}

Status keep_on_core(pid_t process, int core) {
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(core, &own);
  return keep_all_to(process, own);
}

Result<SenderProcess> SenderProcess::start(const Route& route, int core) {
  void* memory =
      ::mmap(nullptr, sizeof(Sender), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail_sys(errno, "memory", "mapping the sender's times");
  auto* shared = new (memory) Sender;
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return fail_sys(errno, "fork", "starting the sender");
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    const Status failed = send_for_ever(route, core, *shared);
    fmt::print(stderr, "sender: {}\n", failed.error().text());
    shared->failed = 1;
    ::_exit(1);
  }
  return SenderProcess(child, shared);
}

SenderProcess::~SenderProcess() {
  if (child_ < 0) return;
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
}

void SenderProcess::stop() const {
  ::kill(child_, SIGSTOP);
}

void SenderProcess::go_on() const {
  ::kill(child_, SIGCONT);
}

uint64_t SenderProcess::sent_after(uint64_t boot_ns) const {
  const uint64_t end = shared_->sent.load(std::memory_order_acquire);
  uint64_t found = 0;
  for (uint64_t back = 1; back <= end && back < sent_times; ++back) {
    const uint64_t at = shared_->boot_ns[(end - back) % sent_times].load(std::memory_order_relaxed);
    if (at <= boot_ns) return found;
    found = at;
  }
  return 0;
}

void Receiver::Destroy::operator()(revoke_bpf* skeleton) const {
  revoke_bpf__destroy(skeleton);
}

Result<Receiver> Receiver::attach(const std::string& interface) {
  ::libbpf_set_print(nullptr);
  Receiver receiver;
  receiver.skeleton_.reset(revoke_bpf__open_and_load());
  if (!receiver.skeleton_) return fail_sys(errno, "load", "loading the receiver");
  auto hook = sized<bpf_tc_hook>();
  hook.ifindex = static_cast<int>(::if_nametoindex(interface.c_str()));
  hook.attach_point = BPF_TC_INGRESS;
  if (const int err = ::bpf_tc_hook_create(&hook); err != 0 && err != -EEXIST)
    return fail_sys(err, "attach", "clsact on " + interface);
  auto program = sized<bpf_tc_opts>();
  program.prog_fd = ::bpf_program__fd(receiver.skeleton_->progs.receive);
  program.handle = 1;
  program.priority = 1;
  program.flags = BPF_TC_F_REPLACE;
  if (const int err = ::bpf_tc_attach(&hook, &program); err != 0)
    return fail_sys(err, "attach", "the receiver at " + interface);
  return receiver;
}

// Read from the program's own memory, which is mapped here.
uint64_t Receiver::last_boot_ns() const {
  uint64_t last = 0;
  for (arrivals& cpu : skeleton_->bss->arrived)
    last = std::max<uint64_t>(last, std::atomic_ref(cpu.last_boot_ns).load());
  return last;
}

uint64_t Receiver::packets() const {
  uint64_t all = 0;
  for (arrivals& cpu : skeleton_->bss->arrived) all += std::atomic_ref(cpu.packets).load();
  return all;
}

std::string Latencies::json(const std::string& more) const {
  std::vector<uint64_t> sorted = ns;
  std::sort(sorted.begin(), sorted.end());
  std::vector<uint64_t> answers = answer_ns;
  std::sort(answers.begin(), answers.end());
  return fmt::format(
      "{{\"runs\": {}, \"discarded\": {}, \"sender_paused\": {}, \"pps\": {:.0f}, \"p50_us\": "
      "{:.1f}, \"p90_us\": {:.1f}, \"p99_us\": {:.1f}, \"max_us\": {:.1f}, \"answer_p50_us\": "
      "{:.1f}, \"answer_max_us\": {:.1f}{}}}",
      sorted.size(), discarded, paused,
      static_cast<double>(packets) * ns_per_s /
          static_cast<double>(std::max<uint64_t>(flowed_ns, 1)),
      percentile_us(sorted, 50), percentile_us(sorted, 90), percentile_us(sorted, 99),
      percentile_us(sorted, 100), percentile_us(answers, 50), percentile_us(answers, 100), more);
}

Status measure_once(const SenderProcess& sender, const Receiver& receiver,
                    const std::function<Status()>& revoke, Latencies& out) {
  sender.go_on();
  pause_ns(warm_ns);
  const uint64_t packets_before = receiver.packets(), begin_ns = boot_now_ns();
  pause_ns(rate_ns);
  out.packets += receiver.packets() - packets_before;
  out.flowed_ns += boot_now_ns() - begin_ns;
  Result<Run> run = run_once(sender, receiver, revoke);
  sender.stop();
  if (!run) return pass_on(run);
  if (run->flowing && run->bounded) {
    out.ns.push_back(run->latency_ns);
    out.answer_ns.push_back(run->answer_ns);
  } else {
    out.discarded++;
    out.paused += run->flowing;
  }
  if (sender.has_failed()) return fail(ErrorKind::internal, "sender", "the sender ended");
  return {};
}

}  // namespace holdfast::bench
