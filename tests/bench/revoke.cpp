// The measuring half of `scripts/bench revoke`; revoke.py makes the lab and starts this in the
// tenant's namespace.
//
//   bench_revoke single|tenant --socket PATH --sender NETNS --out IFACE --to MAC --in IFACE
//                --tenant NAME --leases N --runs N --seconds N --daemon PID
//
// A child sends from NETNS out of IFACE, one packet at a time, as fast as its core can: to key
// leases-1 (single), or drawn from 4,096 keys spread over [0, leases) (tenant). A program at
// ingress of --in notes when packets arrive. One run: read CLOCK_BOOTTIME, write the request on a
// connection that stands, wait for the reply and a little longer, take the time of the last
// arrival; grant again. Prints one JSON object. Exit code 1 with a reason if it could not run.
#include "tests/bench/revoke.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <getopt.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "revoke.skel.h"
#include "tests/bench/dataplane.h"
#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/wire/cbor.hpp"
#include "userspace/wire/client.hpp"

namespace holdfast {
namespace {

using cbor::Value;

constexpr uint64_t ns_per_us = 1000;
constexpr uint64_t flowing_ns = 50 * ns_per_us;
constexpr uint64_t term_ns = 300 * ns_per_s;
constexpr uint64_t settle_ns = 5 * ns_per_ms;  // after the reply: what is on its way arrives
constexpr uint64_t rate_ns = 50 * ns_per_ms;
constexpr uint64_t warm_ns = 100 * ns_per_ms;      // of traffic, before a run
constexpr uint64_t resume_ns = 30 * ns_per_s;      // for a grant after a revocation
constexpr uint64_t patience_ns = 100 * ns_per_ms;  // for a packet, before a run
constexpr uint64_t retry_ns = 10 * ns_per_ms;
constexpr size_t sent_times = 1 << 20;
// Of a tenant's leases so many have traffic, spread over all: every first packet of a flow takes
// conntrack longer than 100,000 packets a second leave it.
constexpr uint32_t flows_max = 4096;

struct Options {
  bool tenant_wide = false;
  std::string socket, sender, out, in, to, tenant;
  uint32_t leases = 0;
  uint32_t runs = 0;
  uint32_t seconds = 0;
  pid_t daemon = 0;
};

// Shared with the sender, which alone writes it.
struct Sender {
  std::atomic<uint64_t> sent{0};
  std::atomic<int> failed{0};
  std::array<std::atomic<uint64_t>, sent_times> boot_ns{};  // of packet i, at i % sent_times
};

void pause_ns(uint64_t ns) {
  const timespec span{static_cast<time_t>(ns / ns_per_s), static_cast<long>(ns % ns_per_s)};
  ::nanosleep(&span, nullptr);
}

// ---- the sender
// ----------------------------------------------------------------------------------

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

std::vector<pid_t> threads_of(pid_t process) {
  std::vector<pid_t> threads;
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", process), gone))
    threads.push_back(std::atoi(entry.path().filename().c_str()));
  return threads;
}

Status send_for_ever(const Options& options, int cpu, Sender& shared) {
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(cpu, &own);
  if (Status ok = keep_to(0, own); !ok) return ok;
  const UniqueFd netns(::open(options.sender.c_str(), O_RDONLY | O_CLOEXEC));
  if (!netns || ::setns(netns.get(), CLONE_NEWNET) != 0)
    return fail_sys(errno, "netns", options.sender);
  const UniqueFd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));  // 0: receives nothing
  sockaddr_ll at{};
  at.sll_family = AF_PACKET;
  at.sll_ifindex = static_cast<int>(::if_nametoindex(options.out.c_str()));
  const int one = 1;
  if (!fd || at.sll_ifindex == 0 ||
      ::setsockopt(fd.get(), SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) != 0)
    return fail_sys(errno, "sender", options.out);
  Frame frame;
  unsigned mac[6];
  if (std::sscanf(options.to.c_str(), "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3],
                  &mac[4], &mac[5]) != 6)
    return fail(ErrorKind::invalid, "mac", options.to + " is no MAC address");
  for (size_t i = 0; i < 6; i++) frame.bytes[i] = static_cast<uint8_t>(mac[i]);
  frame.aim(options.leases - 1);
  const uint32_t flows = std::min(options.leases, flows_max);
  uint32_t random = 2463534242U;
  for (uint64_t sent = 0;; sent++) {
    if (options.tenant_wide) {
      // Xorshift (Marsaglia 2003)
      random ^= random << 13;
      random ^= random >> 17;
      random ^= random << 5;
      frame.aim(static_cast<uint32_t>(uint64_t{random} * flows >> 32) * (options.leases / flows));
    }
    shared.boot_ns[sent % sent_times].store(boot_now_ns(), std::memory_order_relaxed);
    shared.sent.store(sent + 1, std::memory_order_release);
    if (::sendto(fd.get(), frame.bytes.data(), frame.bytes.size(), 0,
                 reinterpret_cast<const sockaddr*>(&at), sizeof(at)) < 0 &&
        errno != ENOBUFS)
      return fail_sys(errno, "send", options.out);
  }
}

class SenderProcess {
 public:
  static Result<SenderProcess> start(const Options& options, int cpu) {
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
      const Status failed = send_for_ever(options, cpu, *shared);
      fmt::print(stderr, "bench_revoke: sender: {}\n", failed.error().text());
      shared->failed = 1;
      ::_exit(1);
    }
    return SenderProcess(child, shared);
  }
  SenderProcess(SenderProcess&& other) noexcept
      : child_(std::exchange(other.child_, -1)), shared_(other.shared_) {}
  SenderProcess& operator=(SenderProcess&&) = delete;
  ~SenderProcess() {
    if (child_ < 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }

  const Sender& sender() const { return *shared_; }
  // Between runs it leaves its core to others.
  void stop() const { ::kill(child_, SIGSTOP); }
  void go_on() const { ::kill(child_, SIGCONT); }

  // When the first packet after `boot_ns` was sent; 0 if that is not known (any more).
  uint64_t sent_after(uint64_t boot_ns) const {
    const uint64_t end = shared_->sent.load(std::memory_order_acquire);
    uint64_t found = 0;
    for (uint64_t i = end; i-- > 0 && end - i < sent_times;) {
      const uint64_t at = shared_->boot_ns[i % sent_times].load(std::memory_order_relaxed);
      if (at <= boot_ns) return found;
      found = at;
    }
    return 0;
  }

 private:
  SenderProcess(pid_t child, Sender* shared) : child_(child), shared_(shared) {}
  pid_t child_;
  Sender* shared_;
};

// ---- the receiver
// --------------------------------------------------------------------------------

class Receiver {
 public:
  static Result<Receiver> attach(const std::string& interface) {
    ::libbpf_set_print(nullptr);
    Receiver receiver;
    receiver.skeleton_.reset(revoke_bpf__open_and_load());
    if (!receiver.skeleton_) return fail_sys(errno, "load", "loading the receiver");
    bpf_tc_hook hook{};
    hook.sz = sizeof(hook);
    hook.ifindex = static_cast<int>(::if_nametoindex(interface.c_str()));
    hook.attach_point = BPF_TC_INGRESS;
    if (const int err = ::bpf_tc_hook_create(&hook); err != 0 && err != -EEXIST)
      return fail_sys(err, "attach", "clsact on " + interface);
    bpf_tc_opts program{};
    program.sz = sizeof(program);
    program.prog_fd = ::bpf_program__fd(receiver.skeleton_->progs.receive);
    program.handle = 1;
    program.priority = 1;
    program.flags = BPF_TC_F_REPLACE;
    if (const int err = ::bpf_tc_attach(&hook, &program); err != 0)
      return fail_sys(err, "attach", "the receiver at " + interface);
    return receiver;
  }

  // Read from the program's own memory, which is mapped here.
  uint64_t last_boot_ns() const {
    uint64_t last = 0;
    for (arrivals& cpu : skeleton_->bss->arrived)
      last = std::max<uint64_t>(last, std::atomic_ref(cpu.last_boot_ns).load());
    return last;
  }
  uint64_t packets() const {
    uint64_t all = 0;
    for (arrivals& cpu : skeleton_->bss->arrived) all += std::atomic_ref(cpu.packets).load();
    return all;
  }

 private:
  struct Destroy {
    void operator()(revoke_bpf* skeleton) const { revoke_bpf__destroy(skeleton); }
  };
  std::unique_ptr<revoke_bpf, Destroy> skeleton_;
};

// ---- the runs
// ------------------------------------------------------------------------------------

// Leases on the sender's key, or one on each of the tenant's; the id of the first.
Result<std::string> grant(wire::Client& daemon, const Options& options) {
  std::string endpoint = "load";
  if (!options.tenant_wide) {
    const uint32_t key = options.leases - 1;
    endpoint += fmt::format("@10.90.0.{}:{}", (BENCH_ADDRESS_FIRST & 0xff) + key % BENCH_ADDRESSES,
                            BENCH_PORT_FIRST + key / BENCH_ADDRESSES);
  }
  Value lease = Value::map(
      {{"tenant", options.tenant}, {"endpoints", Value::array({endpoint})}, {"ttl_ns", term_ns}});
  if (options.tenant_wide) lease.set("each", true);
  const std::vector<uint8_t> body = cbor::encode(Value::array({lease}));
  // What was just revoked may still be in its teardown.
  for (const uint64_t begin = boot_now_ns();;) {
    Result<Value> reply = daemon.call_with_body("lease.grant", Value::map(), body);
    if (reply) {
      const Value* leases = reply->find("leases");
      if (leases == nullptr || leases->as_array()->empty()) return std::string();
      const Result<std::string_view> id = leases->as_array()->front().get_text("id");
      if (!id) return std::unexpected(id.error());
      return std::string(*id);
    }
    if (reply.error().kind != ErrorKind::unavailable || boot_now_ns() - begin > resume_ns)
      return pass_on(reply);
    pause_ns(retry_ns);
  }
}

struct Run {
  uint64_t latency_ns = 0;
  bool flowing = false;  // a packet arrived in the 50 us before
  bool bounded = false;  // and one that did not was sent within 50 us after the last that did
};

Result<Run> run_once(wire::Client& daemon, const Receiver& receiver, const SenderProcess& sender,
                     const Options& options, const std::string& lease) {
  const std::string_view verb = options.tenant_wide ? "tenant.disable" : "lease.revoke";
  const Value args =
      options.tenant_wide ? Value::map({{"name", options.tenant}}) : Value::map({{"id", lease}});
  Run run;
  // Others may have the sender's core just now: begin while packets come.
  uint64_t before_ns = receiver.last_boot_ns();
  for (const uint64_t give_up_ns = boot_now_ns() + patience_ns;
       boot_now_ns() > before_ns + flowing_ns / 2 && boot_now_ns() < give_up_ns;)
    before_ns = receiver.last_boot_ns();
  const uint64_t begin_ns = boot_now_ns();
  Result<Value> reply = daemon.call(verb, args);
  if (!reply) return pass_on(reply);
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

double percentile_us(const std::vector<uint64_t>& sorted, size_t percent) {
  const size_t rank = (sorted.size() * percent + 99) / 100;  // nearest rank, from 1
  return static_cast<double>(sorted[rank - 1]) / ns_per_us;
}

Status measure(const Options& options) {
  // The last core sends. Whoever asks and whoever answers stay off it: were they to run there, no
  // packet would be on its way while they revoke, and the figure would flatter.
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < 2)
    return fail(ErrorKind::unsupported, "cpus", "two cores are needed, one of them to send");
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(last, &allowed)) last--;
  CPU_CLR(last, &allowed);
  if (Status ok = keep_to(0, allowed); !ok) return ok;
  for (const int thread : threads_of(options.daemon))
    if (Status ok = keep_to(thread, allowed); !ok) return ok;

  Result<Receiver> receiver = Receiver::attach(options.in);
  if (!receiver) return pass_on(receiver);
  Result<wire::Client> daemon =
      wire::Client::connect(options.socket, {.call_timeout_ns = 60 * ns_per_s});
  if (!daemon) return pass_on(daemon);
  Result<std::string> lease = std::string();
  if (!options.tenant_wide) lease = grant(*daemon, options);
  if (!lease) return pass_on(lease);
  Result<SenderProcess> sender = SenderProcess::start(options, last);
  if (!sender) return pass_on(sender);

  std::vector<uint64_t> latencies;
  uint64_t packets = 0, flowed_ns = 0, discarded = 0, paused = 0;
  // Runs that do not count are made up for, while there is time.
  const uint64_t end_ns = boot_now_ns() + options.seconds * ns_per_s;
  while (latencies.size() < options.runs && boot_now_ns() < end_ns) {
    sender->go_on();
    pause_ns(warm_ns);
    const uint64_t packets_before = receiver->packets(), begin_ns = boot_now_ns();
    pause_ns(rate_ns);
    packets += receiver->packets() - packets_before;
    flowed_ns += boot_now_ns() - begin_ns;
    const Result<Run> run = run_once(*daemon, *receiver, *sender, options, *lease);
    if (!run) return std::unexpected(run.error());
    sender->stop();
    if (run->flowing && run->bounded) {
      latencies.push_back(run->latency_ns);
    } else {
      discarded++;
      paused += run->flowing;
    }
    if (sender->sender().failed != 0)
      return fail(ErrorKind::internal, "sender", "the sender ended");
    if (options.tenant_wide) {
      if (Result<Value> on = daemon->call("tenant.enable", Value::map({{"name", options.tenant}}));
          !on)
        return pass_on(on);
    }
    lease = grant(*daemon, options);
    if (!lease) return pass_on(lease);
  }
  if (latencies.empty())
    return fail(ErrorKind::internal, "no_traffic", "no run had a packet in the 50 us before it");
  std::sort(latencies.begin(), latencies.end());
  fmt::print(
      "{{\"runs\": {}, \"discarded\": {}, \"sender_paused\": {}, \"pps\": {:.0f}, \"p50_us\": "
      "{:.1f}, \"p90_us\": {:.1f}, \"p99_us\": {:.1f}, \"max_us\": {:.1f}}}\n",
      latencies.size(), discarded, paused,
      static_cast<double>(packets) * ns_per_s / static_cast<double>(flowed_ns),
      percentile_us(latencies, 50), percentile_us(latencies, 90), percentile_us(latencies, 99),
      percentile_us(latencies, 100));
  return {};
}

template <typename T>
bool read_number(const char* text, T& out) {
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, out);
  return error == std::errc() && stop == end && out > 0;
}

int main_of(int argc, char** argv) {
  constexpr option known[] = {{"socket", required_argument, nullptr, 's'},
                              {"sender", required_argument, nullptr, 'n'},
                              {"out", required_argument, nullptr, 'o'},
                              {"to", required_argument, nullptr, 'm'},
                              {"in", required_argument, nullptr, 'i'},
                              {"tenant", required_argument, nullptr, 't'},
                              {"leases", required_argument, nullptr, 'l'},
                              {"daemon", required_argument, nullptr, 'd'},
                              {"seconds", required_argument, nullptr, 'x'},
                              {"runs", required_argument, nullptr, 'r'},
                              {nullptr, 0, nullptr, 0}};
  const std::string what = argc > 1 ? argv[1] : "";
  Options options;
  options.tenant_wide = what == "tenant";
  bool good = options.tenant_wide || what == "single";
  for (int c = 0; good && (c = ::getopt_long(argc - 1, argv + 1, "", known, nullptr)) != -1;) {
    switch (c) {
      case 's': options.socket = optarg; break;
      case 'n': options.sender = optarg; break;
      case 'o': options.out = optarg; break;
      case 'm': options.to = optarg; break;
      case 'i': options.in = optarg; break;
      case 't': options.tenant = optarg; break;
      case 'l': good = read_number(optarg, options.leases); break;
      case 'x': good = read_number(optarg, options.seconds); break;
      case 'd': good = read_number(optarg, options.daemon); break;
      case 'r': good = read_number(optarg, options.runs); break;
      default: good = false;
    }
  }
  if (!good || options.leases == 0 || options.runs == 0 || options.seconds == 0 ||
      options.daemon == 0) {
    fmt::print(stderr, "usage: bench_revoke single|tenant [options]; scripts/bench runs it\n");
    return 2;
  }
  if (Status done = measure(options); !done) {
    fmt::print(stderr, "bench_revoke: {}: {}\n", what, done.error().text());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  return holdfast::main_of(argc, argv);
}
