// The measuring half of `scripts/bench dataplane`; dataplane.py makes the lab and starts this in
// it.
//
//   bench_dataplane verdict --pins DIR --port IFACE --leases N [--hot] [--pairs N] [--repeat N]
//     runs the pinned gate, the floor and the bare harness in turn over N live leases
//   bench_dataplane flood --out IFACE --first KEY --keys N --seconds S
//     sends frames for keys [KEY, KEY + N) out of IFACE as fast as this core can
//   bench_dataplane drops --pins DIR
//     what the uplink's hook has dropped so far
//
// Each prints one JSON object. Exit code 1 with a reason if it could not run.
#include "tests/bench/dataplane.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <getopt.h>
#include <net/if.h>
#include <netinet/in.h>

#include "dataplane.skel.h"
#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/sized.hpp"
#include "userspace/base/unique_fd.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wold-style-cast"  // the contract is C
#include "bpf/abi.h"
#pragma GCC diagnostic pop

namespace holdfast {
namespace {

struct Options {
  std::string pins;
  std::string interface;
  uint32_t leases = 1;
  uint32_t first = 0;
  uint32_t pairs = 15;
  uint32_t repeat = 1'000'000;
  double seconds = 1;
  bool hot = false;
};

constexpr int tc_pass = -1;  // TC_ACT_UNSPEC
constexpr int frames_per_call = 1 << 19;

struct DestroySkeleton {
  void operator()(dataplane_bpf* skeleton) const { dataplane_bpf__destroy(skeleton); }
};
using Skeleton = std::unique_ptr<dataplane_bpf, DestroySkeleton>;

// An Ethernet frame with 18 bytes of UDP payload: the shortest there is.
struct Frame {
  uint8_t bytes[60] = {
      2,    0,    0,   0,  0, 0x0a,                      // destination
      2,    0,    0,   0,  0, 0x0b,                      // source
      0x08, 0,                                           // IPv4
      0x45, 0,    0,   46, 0, 0,    0, 0, 64, 17, 0, 0,  // 46 bytes, UDP
      203,  0,    113, 7,                                // source address
      0,    0,    0,   0,                                // destination: drawn
      0x9c, 0x40, 0,   0,                                // ports: 40000, drawn
      0,    26,   0,   0,                                // length
  };
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

Result<UniqueFd> open_pin(const std::string& path) {
  const int fd = ::bpf_obj_get(path.c_str());
  if (fd < 0)
    return fail_sys(errno, "pin", "opening " + path, "is holdfastd running with this --pin-dir?");
  return UniqueFd(fd);
}

Result<Skeleton> load(uint32_t floor_keys) {
  ::libbpf_set_print(nullptr);
  Skeleton skeleton(dataplane_bpf__open());
  if (!skeleton) return fail_sys(errno, "load", "opening the harness");
  ::bpf_map__set_max_entries(skeleton->maps.floor_keys, floor_keys);
  if (const int err = dataplane_bpf__load(skeleton.get()); err != 0)
    return fail_sys(err, "load", "loading the harness");
  return skeleton;
}

Status fill_floor(int map_fd, uint32_t count) {
  std::vector<floor_key> keys(count);
  std::vector<uint64_t> values(count, 1);
  for (uint32_t k = 0; k < count; k++)
    keys[k] = {.address = htonl(BENCH_ADDRESS_FIRST + k % BENCH_ADDRESSES),
               .port = htons(static_cast<uint16_t>(BENCH_PORT_FIRST + k / BENCH_ADDRESSES)),
               .protocol = IPPROTO_UDP,
               .reserved = 0};
  if (const int err = ::bpf_map_update_batch(map_fd, keys.data(), values.data(), &count, nullptr);
      err != 0)
    return fail_sys(err, "fill", "filling the floor's hash map");
  return {};
}

// Packets that the hook of `direction` counted under the reasons that `wanted` accepts.
template <typename Wanted>
Result<uint64_t> counted(const std::string& pins, uint32_t direction, Wanted wanted) {
  Result<UniqueFd> map = open_pin(pins + "/maps/reason_counters");
  if (!map) return pass_on(map);
  const int cpus = ::libbpf_num_possible_cpus();
  if (cpus < 1) return fail_sys(cpus, "cpus", "counting CPUs");
  std::vector<abi::reason_counter> per_cpu(static_cast<size_t>(cpus));
  uint64_t packets = 0;
  for (uint32_t reason = 0; reason < abi::HF_REASON_COUNT; reason++) {
    if (!wanted(reason)) continue;
    const uint32_t index = abi::hf_reason_index(direction, reason);
    if (const int err = ::bpf_map_lookup_elem(map->get(), &index, per_cpu.data()); err != 0)
      return fail_sys(err, "counters", "reading the counters");
    for (const abi::reason_counter& counter : per_cpu) packets += counter.total.packets;
  }
  return packets;
}

// Runs `draw` with `variant_fd` behind it; CPU time of one packet, harness included. CPU time,
// since others may want this core too.
Result<double> time_variant(const dataplane_bpf& harness, int variant_fd, uint32_t ifindex,
                            uint32_t repeat) {
  const uint32_t zero = 0;
  if (const int err =
          ::bpf_map_update_elem(::bpf_map__fd(harness.maps.variant), &zero, &variant_fd, 0);
      err != 0)
    return fail_sys(err, "variant", "putting a variant behind the harness");
  Frame frame;
  __sk_buff context{};
  context.ifindex = ifindex;
  auto run = sized<bpf_test_run_opts>();
  run.data_in = frame.bytes;
  run.data_size_in = sizeof(frame.bytes);
  run.ctx_in = &context;
  run.ctx_size_in = sizeof(context);
  run.repeat = static_cast<int>(repeat);
  const uint64_t begin = read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
  const int err = ::bpf_prog_test_run_opts(::bpf_program__fd(harness.progs.draw), &run);
  const uint64_t end = read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
  if (err != 0) return fail_sys(err, "run", "BPF_PROG_TEST_RUN");
  if (static_cast<int>(run.retval) != tc_pass)
    return fail(ErrorKind::internal, "dropped", "a packet with a live lease was dropped",
                "a lease has expired, or harness and policy disagree about the keys");
  return static_cast<double>(end - begin) / repeat;
}

Status verdict(const Options& options) {
  const uint32_t ifindex = ::if_nametoindex(options.interface.c_str());
  if (ifindex == 0) return fail_sys(errno, "interface", options.interface);
  Result<UniqueFd> gate = open_pin(options.pins + "/programs/to_tenant");
  if (!gate) return pass_on(gate);
  Result<Skeleton> harness = load(options.leases);
  if (!harness) return pass_on(harness);
  if (Status ok = fill_floor(::bpf_map__fd((*harness)->maps.floor_keys), options.leases); !ok)
    return ok;
  (*harness)->data->drawn.keys = options.hot ? 1 : options.leases;

  const int variants[] = {::bpf_program__fd((*harness)->progs.nothing),
                          ::bpf_program__fd((*harness)->progs.floor_gate), gate->get()};
  std::vector<double> times[3];
  const auto is_endpoint = [](uint32_t reason) { return reason == abi::HF_REASON_endpoint; };
  Result<uint64_t> before = counted(options.pins, abi::HF_TO_TENANT, is_endpoint);
  if (!before) return pass_on(before);
  // Round 0 warms the caches. Odd rounds run backwards, so that neither variant always follows the
  // other.
  for (uint32_t round = 0; round <= options.pairs; round++) {
    for (int i = 0; i < 3; i++) {
      const int variant = round % 2 == 0 ? i : 2 - i;
      Result<double> ns = time_variant(**harness, variants[variant], ifindex, options.repeat);
      if (!ns) return pass_on(ns);
      if (round > 0) times[variant].push_back(*ns);
    }
  }
  Result<uint64_t> after = counted(options.pins, abi::HF_TO_TENANT, is_endpoint);
  if (!after) return pass_on(after);
  const uint64_t expected = uint64_t{options.repeat} * (options.pairs + 1);
  if (*after - *before != expected)
    return fail(ErrorKind::internal, "not_all_passed",
                fmt::format("{} of {} packets passed by their lease", *after - *before, expected),
                "a lease has expired, or other packets came to this port");

  const double harness_ns = median(times[0]);
  std::vector<double> ratios, gross_ratios;
  for (size_t i = 0; i < options.pairs; i++) {
    ratios.push_back((times[2][i] - harness_ns) / (times[1][i] - harness_ns));
    gross_ratios.push_back(times[2][i] / times[1][i]);
  }
  fmt::print(
      "{{\"leases\": {}, \"pairs\": {}, \"repeat\": {}, \"harness_ns\": {:.1f}, \"verdict_ns\": "
      "{:.1f}, "
      "\"floor_ns\": {:.1f}, \"ratio\": {:.3f}, \"gross_ratio\": {:.3f}}}\n",
      options.leases, options.pairs, options.repeat, harness_ns, median(times[2]) - harness_ns,
      median(times[1]) - harness_ns, median(ratios), median(gross_ratios));
  return {};
}

Status flood(const Options& options) {
  const uint32_t ifindex = ::if_nametoindex(options.interface.c_str());
  if (ifindex == 0) return fail_sys(errno, "interface", options.interface);
  Result<Skeleton> generator = load(1);
  if (!generator) return pass_on(generator);
  (*generator)->data->drawn.first = options.first;
  (*generator)->data->drawn.keys = options.leases;
  (*generator)->bss->flood_ifindex = ifindex;

  Frame frame;
  uint64_t frames = 0;
  const auto duration_ns = static_cast<uint64_t>(options.seconds * static_cast<double>(ns_per_s));
  for (const uint64_t begin = read_clock_ns(CLOCK_MONOTONIC);
       read_clock_ns(CLOCK_MONOTONIC) - begin < duration_ns; frames += frames_per_call) {
    auto run = sized<bpf_test_run_opts>();
    run.data_in = frame.bytes;
    run.data_size_in = sizeof(frame.bytes);
    run.repeat = frames_per_call;
    run.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    if (const int err =
            ::bpf_prog_test_run_opts(::bpf_program__fd((*generator)->progs.flood), &run);
        err != 0)
      return fail_sys(err, "run", "BPF_PROG_TEST_RUN with live frames");
  }
  fmt::print("{{\"frames\": {}}}\n", frames);
  return {};
}

Status drops(const Options& options) {
  Result<uint64_t> packets = counted(options.pins, abi::HF_FROM_UPLINK, [](uint32_t reason) {
    return !abi::hf_reason_passes(reason);
  });
  if (!packets) return pass_on(packets);
  fmt::print("{{\"dropped\": {}}}\n", *packets);
  return {};
}

template <typename T>
bool read_number(const char* text, T& out) {
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, out);
  return error == std::errc() && stop == end && out >= 0;
}

bool read_options(int argc, char** argv, Options& options) {
  constexpr option known[] = {{"pins", required_argument, nullptr, 'p'},
                              {"port", required_argument, nullptr, 'i'},
                              {"out", required_argument, nullptr, 'i'},
                              {"leases", required_argument, nullptr, 'n'},
                              {"keys", required_argument, nullptr, 'n'},
                              {"first", required_argument, nullptr, 'f'},
                              {"pairs", required_argument, nullptr, 'r'},
                              {"repeat", required_argument, nullptr, 'x'},
                              {"seconds", required_argument, nullptr, 's'},
                              {"hot", no_argument, nullptr, 'h'},
                              {nullptr, 0, nullptr, 0}};
  for (int c = 0; (c = ::getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    bool good = true;
    switch (c) {
      case 'p': options.pins = optarg; break;
      case 'i': options.interface = optarg; break;
      case 'n': good = read_number(optarg, options.leases) && options.leases > 0; break;
      case 'f': good = read_number(optarg, options.first); break;
      case 'r': good = read_number(optarg, options.pairs) && options.pairs > 0; break;
      case 'x': good = read_number(optarg, options.repeat) && options.repeat > 0; break;
      case 's': good = read_number(optarg, options.seconds); break;
      case 'h': options.hot = true; break;
      default: return false;
    }
    if (!good) {
      fmt::print(stderr, "bench_dataplane: '{}' is not a number this option takes\n", optarg);
      return false;
    }
  }
  return true;
}

int main_of(int argc, char** argv) {
  Options options;
  const std::string what = argc > 1 ? argv[1] : "";
  const auto command = what == "verdict" ? verdict
                       : what == "flood" ? flood
                       : what == "drops" ? drops
                                         : nullptr;
  if (command == nullptr || !read_options(argc - 1, argv + 1, options)) {
    fmt::print(stderr,
               "usage: bench_dataplane verdict|flood|drops [options]; scripts/bench runs it\n");
    return 2;
  }
  if (Status done = command(options); !done) {
    fmt::print(stderr, "bench_dataplane: {}: {}\n", what, done.error().text());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  return holdfast::main_of(argc, argv);
}
