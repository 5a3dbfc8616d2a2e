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
#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <getopt.h>

#include "tests/bench/dataplane.h"
#include "tests/bench/traffic.hpp"
#include "userspace/wire/client.hpp"

namespace holdfast::bench {
namespace {

using cbor::Value;

constexpr uint64_t term_ns = 300 * ns_per_s;
constexpr uint64_t resume_ns = 30 * ns_per_s;  // for a grant after a revocation
constexpr uint64_t retry_ns = 10 * ns_per_ms;
// Of a tenant's leases so many have traffic, spread over all: every first packet of a flow takes
// conntrack longer than 100,000 packets a second leave it.
constexpr uint32_t flows_max = 4096;

struct Options {
  bool tenant_wide = false;
  std::string socket, in, tenant;
  Route route;
  uint32_t leases = 0;
  uint32_t runs = 0;
  uint32_t seconds = 0;
  pid_t daemon = 0;
};

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
      Result<std::string_view> id = leases->as_array()->front().get_text("id");
      if (!id) return std::unexpected(id.error());
      return std::string(*id);
    }
    if (reply.error().kind != ErrorKind::unavailable || boot_now_ns() - begin > resume_ns)
      return pass_on(reply);
    pause_ns(retry_ns);
  }
}

Status measure(Options options) {
  Result<int> core = keep_off_senders_core(options.daemon);
  if (!core) return pass_on(core);
  Result<Receiver> receiver = Receiver::attach(options.in);
  if (!receiver) return pass_on(receiver);
  Result<wire::Client> daemon =
      wire::Client::connect(options.socket, {.call_timeout_ns = 60 * ns_per_s});
  if (!daemon) return pass_on(daemon);
  Result<std::string> lease = std::string();
  if (!options.tenant_wide) lease = grant(*daemon, options);
  if (!lease) return pass_on(lease);
  const uint32_t flows = options.tenant_wide ? std::min(options.leases, flows_max) : 0;
  for (uint32_t flow = 0; flow < flows; ++flow)
    options.route.keys.push_back(flow * (options.leases / flows));
  if (!options.tenant_wide) options.route.keys = {options.leases - 1};
  Result<SenderProcess> sender = SenderProcess::start(options.route, *core);
  if (!sender) return pass_on(sender);

  const auto revoke = [&]() -> Status {
    const std::string_view verb = options.tenant_wide ? "tenant.disable" : "lease.revoke";
    const Value args =
        options.tenant_wide ? Value::map({{"name", options.tenant}}) : Value::map({{"id", *lease}});
    if (Result<Value> reply = daemon->call(verb, args); !reply) return pass_on(reply);
    return {};
  };
  Latencies taken;
  // Runs that do not count are made up for, while there is time.
  const uint64_t end_ns = boot_now_ns() + options.seconds * ns_per_s;
  while (taken.ns.size() < options.runs && boot_now_ns() < end_ns) {
    if (Status ok = measure_once(*sender, *receiver, revoke, taken); !ok) return ok;
    if (options.tenant_wide) {
      if (Result<Value> on = daemon->call("tenant.enable", Value::map({{"name", options.tenant}}));
          !on)
        return pass_on(on);
    }
    lease = grant(*daemon, options);
    if (!lease) return pass_on(lease);
  }
  if (taken.ns.empty())
    return fail(ErrorKind::internal, "no_traffic", "no run had a packet in the 50 us before it");
  fmt::print("{}\n", taken.json());
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
      case 'n': options.route.sender = optarg; break;
      case 'o': options.route.out = optarg; break;
      case 'm': options.route.to = optarg; break;
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
}  // namespace holdfast::bench

int main(int argc, char** argv) {
  return holdfast::bench::main_of(argc, argv);
}
