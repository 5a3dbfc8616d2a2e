// The measuring half of `scripts/bench control`; control.py makes the lab and starts this. Each
// prints one JSON object; exit code 1 with a reason if it could not run.
//
//   bench_control grants --socket PATH --daemon PID --tenant NAME --leases N --runs N [--key FILE]
//   bench_control watch --socket PATH --daemon PID --tenant NAME --leases N --watchers N --rate N
//                 --runs N --seconds N
//   bench_control bundle ROUTE --socket PATH --daemon PID --tenant NAME --leases ROUTES --runs N
//   bench_control key ROUTE --socket PATH --daemon PID --tenant NAME --endpoints N --leases N
//                 --wide N --key FILE --issuer NAME --runs N --seconds N
//   ROUTE: --sender NETNS --out IFACE --to MAC --in IFACE, as of bench_revoke; it runs in the
//   tenant's namespace then
//
// grants: one operator's grants, one after another on one connection, the daemon on a core of its
// own; signed, if there is a key. watch: leases are renewed in turn, --rate a second, while all
// that watch read; a run is --seconds long. bundle: two policies of N routes take turns; half of
// the routes are in both. Packets go to one that is leased and that the next policy does not have.
// key: N resources are leased by tokens of one key, --wide of them by each, spread over the slots
// of N endpoints; then the key is revoked while packets go to them.
#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <ctime>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <getopt.h>

#include "tests/bench/dataplane.h"
#include "tests/bench/traffic.hpp"
#include "userspace/token/issuer.hpp"
#include "userspace/token/requests.hpp"
#include "userspace/wire/client.hpp"

namespace holdfast::bench {
namespace {

using cbor::Value;

constexpr uint64_t term_ns = 300 * ns_per_s;
constexpr uint64_t term_s = 300;
constexpr uint64_t retry_ns = 20 * ns_per_ms;
constexpr uint64_t teardown_ns = 120 * ns_per_s;  // for all that was revoked to be down
// Every first packet of a flow takes conntrack longer than 100,000 packets a second leave it.
constexpr uint32_t flows_max = 4096;
constexpr size_t tokens_per_head = 1024;

struct Options {
  std::string socket, tenant, key, issuer, in;
  Route route;
  uint32_t endpoints = 0, leases = 0, wide = 1, runs = 0, seconds = 0, watchers = 0, rate = 0;
  pid_t daemon = 0;
};

std::string resource_of(uint32_t key) {
  return fmt::format("load@10.90.0.{}:{}", (BENCH_ADDRESS_FIRST & 0xff) + key % BENCH_ADDRESSES,
                     BENCH_PORT_FIRST + key / BENCH_ADDRESSES);
}

Result<wire::Client> connect(const Options& options) {
  return wire::Client::connect(options.socket, {.call_timeout_ns = 60 * ns_per_s});
}

Result<uint64_t> live_leases(wire::Client& daemon) {
  Result<Value> status = daemon.call("status", Value::map());
  if (!status) return pass_on(status);
  Result<const Value*> leases = status->get_map("leases");
  if (!leases) return pass_on(leases);
  return (*leases)->get_u64("live");
}

Status until_all_ended(wire::Client& daemon) {
  for (const uint64_t end_ns = boot_now_ns() + teardown_ns; boot_now_ns() < end_ns;) {
    Result<uint64_t> live = live_leases(daemon);
    if (!live) return pass_on(live);
    if (*live == 0) return {};
    pause_ns(retry_ns);
  }
  return fail(ErrorKind::internal, "not_ended", "leases that were revoked are still there");
}

// ---- grants

uint64_t cpu_ns(pid_t process) {
  clockid_t clock = 0;
  return ::clock_getcpuclockid(process, &clock) == 0 ? read_clock_ns(clock) : 0;
}

Result<Value> grant_one(wire::Client& daemon, const Options& options, uint32_t key) {
  const Value lease = Value::map({{"tenant", options.tenant},
                                  {"endpoints", Value::array({resource_of(key)})},
                                  {"ttl_ns", term_ns}});
  return daemon.call_with_body("lease.grant", Value::map(), cbor::encode(Value::array({lease})));
}

// One request after another, `count` of them; number n is asked for by `ask`.
struct RoundTrips {
  std::vector<double> per_s, cpu_us;  // of each run
  std::vector<uint64_t> ns;           // of all requests

  Status run(uint32_t count, pid_t daemon, const std::function<Status(uint32_t)>& ask) {
    const uint64_t begin_ns = boot_now_ns(), cpu_before_ns = cpu_ns(daemon);
    for (uint32_t n = 0; n < count; ++n) {
      const uint64_t sent_ns = boot_now_ns();
      if (Status ok = ask(n); !ok) return ok;
      ns.push_back(boot_now_ns() - sent_ns);
    }
    per_s.push_back(count * 1e9 / static_cast<double>(boot_now_ns() - begin_ns));
    cpu_us.push_back(static_cast<double>(cpu_ns(daemon) - cpu_before_ns) / ns_per_us / count);
    return {};
  }

  std::string json() {
    std::sort(per_s.begin(), per_s.end());
    std::sort(cpu_us.begin(), cpu_us.end());
    std::sort(ns.begin(), ns.end());
    return fmt::format(
        R"({{"runs": {}, "per_s": {:.1f}, "daemon_cpu_us": {:.1f}, "p50_us": {:.1f}, "p99_us": {:.1f}}})",
        per_s.size(), per_s[per_s.size() / 2], cpu_us[cpu_us.size() / 2], percentile_us(ns, 50),
        percentile_us(ns, 99));
  }
};

Status measure_grants(Options options) {
  Result<int> other = keep_off_senders_core(options.daemon);
  if (!other) return pass_on(other);
  // The daemon has one core for itself, this has the other.
  if (Status ok = keep_on_core(::getpid(), *other); !ok) return ok;
  Result<wire::Client> daemon = connect(options);
  if (!daemon) return pass_on(daemon);
  if (!options.key.empty()) {
    Result<token::SecretKey> key = token::SecretKey::read(options.key);
    if (!key) return pass_on(key);
    token::sign_requests(*daemon, std::make_shared<token::SecretKey>(std::move(*key)));
  }
  const auto grant = [&](uint32_t key) -> Status {
    Result<Value> reply = grant_one(*daemon, options, key);
    if (!reply) return pass_on(reply);
    return {};
  };
  RoundTrips trips;
  const Value tenant = Value::map({{"name", options.tenant}});
  for (uint32_t run = 0; run < options.runs; ++run) {
    if (Status ok = trips.run(options.leases, options.daemon, grant); !ok) return ok;
    for (const char* verb : {"tenant.disable", "tenant.enable"})
      if (Result<Value> done = daemon->call(verb, tenant); !done) return pass_on(done);
    if (Status ok = until_all_ended(*daemon); !ok) return ok;
    pause_ns(ns_per_s);  // elements are still being taken out of nft
  }
  fmt::print("{}\n", trips.json());
  return {};
}

// ---- watch

// Each reads in a thread of its own, and sees every event from its snapshot on, or is an error.
class Watchers {
 public:
  ~Watchers() { end_ = 0; }  // a heartbeat ends those that are still there

  void add(wire::Client client) {
    seen_.push_back({});
    threads_.emplace_back(
        [this, client = std::move(client), &seen = seen_.back()]() mutable { read(client, seen); });
  }

  Status until_live() const {
    for (const uint64_t end_ns = boot_now_ns() + teardown_ns; live_ < threads_.size();) {
      if (boot_now_ns() > end_ns)
        return fail(
            ErrorKind::internal, "not_live",
            fmt::format("{} of {} watchers have a snapshot", live_.load(), threads_.size()));
      pause_ns(retry_ns);
    }
    return {};
  }

  // All of them have seen all events up to this one, and end.
  Status until(uint64_t last) {
    end_ = last;
    threads_.clear();
    for (Result<uint64_t>& seen : seen_) {
      if (!seen) return pass_on(seen);
      if (*seen < last)
        return fail(ErrorKind::internal, "missed", fmt::format("event {} of {}", *seen, last));
    }
    return {};
  }

 private:
  void read(wire::Client& client, Result<uint64_t>& seen) {
    bool is_live = false;
    Status good;
    const auto next = [&](const Value& frame) {
      const Result<std::string_view> type = frame.get_text("type");
      if (!type || (!is_live && *type != "snapshot_end")) return end_ != 0;
      if (const Result<const Value::Array*> events = frame.get_array("events"); events)
        for (const Value& event : **events) {
          const Result<uint64_t> seq = event.get_u64("seq");
          if (!seq || *seq != *seen + 1) {
            good = fail(ErrorKind::internal, "missed", fmt::format("no event after {}", *seen));
            return false;
          }
          seen = *seq;
        }
      Result<const Value*> cursor = frame.get_map("cursor");
      const Result<uint64_t> seq =
          cursor ? (*cursor)->get_u64("seq") : Result<uint64_t>(pass_on(cursor));
      if (!seq || (is_live && *seq != *seen)) {
        good = fail(ErrorKind::internal, "missed", fmt::format("the cursor is not at {}", *seen));
        return false;
      }
      seen = *seq;
      if (!is_live) ++live_;
      is_live = true;
      return *seen < end_;
    };
    Result<Value> ended = client.follow("watch", Value::map({{"heartbeat_ns", ns_per_s}}), next);
    if (!ended) seen = pass_on(ended);
    if (!good) seen = pass_on(good);
  }

  std::atomic<uint64_t> end_{UINT64_MAX}, live_{0};
  std::deque<Result<uint64_t>> seen_;  // the last event of each
  std::vector<std::jthread> threads_;  // last: they use what stands above
};

Result<uint64_t> last_event(wire::Client& daemon) {
  Result<Value> status = daemon.call("status", Value::map());
  if (!status) return pass_on(status);
  Result<const Value*> watch = status->get_map("watch");
  if (!watch) return pass_on(watch);
  return (*watch)->get_u64("events");
}

Status measure_watch(Options options) {
  Result<int> other = keep_off_senders_core(options.daemon);
  if (!other) return pass_on(other);
  if (Status ok = keep_on_core(::getpid(), *other); !ok) return ok;
  Result<wire::Client> daemon = connect(options);
  if (!daemon) return pass_on(daemon);
  std::vector<Value> renewals;
  for (uint32_t key = 0; key < options.leases; ++key) {
    Result<Value> reply = grant_one(*daemon, options, key);
    if (!reply) return pass_on(reply);
    Result<const Value::Array*> leases = reply->get_array("leases");
    if (!leases || (*leases)->empty()) return fail(ErrorKind::internal, "leases", "none granted");
    Result<std::string_view> id = (*leases)->front().get_text("id");
    if (!id) return pass_on(id);
    renewals.push_back(Value::map({{"id", *id}, {"ttl_ns", term_ns}}));
  }
  Watchers watchers;
  for (uint32_t n = 0; n < options.watchers; ++n) {
    Result<wire::Client> watcher = connect(options);
    if (!watcher) return pass_on(watcher);
    watchers.add(std::move(*watcher));
  }
  if (Status ok = watchers.until_live(); !ok) return ok;
  std::vector<double> cpu, client_cpu, per_s;  // of each run
  Result<uint64_t> last = last_event(*daemon);
  for (uint32_t run = 0; run < options.runs; ++run) {
    if (!last) return pass_on(last);
    const uint64_t first = *last, daemon_ns = cpu_ns(options.daemon), own_ns = cpu_ns(::getpid());
    const uint64_t begin_ns = boot_now_ns();
    for (uint32_t n = 0; n < options.rate * options.seconds; ++n) {
      const Value& renewal = renewals[n % renewals.size()];
      if (Result<Value> done = daemon->call("lease.renew", renewal); !done) return pass_on(done);
      const uint64_t next_ns = begin_ns + (n + 1) * ns_per_s / options.rate;
      if (const uint64_t now_ns = boot_now_ns(); now_ns < next_ns) pause_ns(next_ns - now_ns);
    }
    const auto took_ns = static_cast<double>(boot_now_ns() - begin_ns);
    cpu.push_back(static_cast<double>(cpu_ns(options.daemon) - daemon_ns) / took_ns);
    client_cpu.push_back(static_cast<double>(cpu_ns(::getpid()) - own_ns) / took_ns);
    last = last_event(*daemon);
    if (last) per_s.push_back(static_cast<double>(*last - first) * 1e9 / took_ns);
  }
  if (!last) return pass_on(last);
  if (Status ok = watchers.until(*last); !ok) return ok;
  fmt::print(
      R"({{"runs": {}, "watchers": {}, "events_per_s": {:.1f}, "cpu": {:.3f}, "client_cpu": {:.3f}}})"
      "\n",
      cpu.size(), options.watchers, std::ranges::min(per_s), std::ranges::max(cpu),
      std::ranges::max(client_cpu));
  return {};
}

// ---- bundle

// Routes for keys [first, first + count), each an endpoint with one address.
std::string policy_of(const Options& options, uint32_t first, uint64_t generation) {
  std::string addresses;
  for (uint32_t i = 0; i < BENCH_ADDRESSES; ++i)
    addresses +=
        fmt::format(R"({}"10.90.0.{}")", i != 0 ? "," : "", (BENCH_ADDRESS_FIRST & 0xff) + i);
  std::string text = fmt::format(
      R"({{"version":1,"generation":{},"uplinks":["uplink0"],"tenants":[{{"id":1,"name":"{}",)"
      R"("ports":[{{"name":"port","interface":"t0","mac":"02:00:00:00:00:0a","addresses":[{}]}}],)"
      R"("endpoints":[)",
      generation, options.tenant, addresses);
  for (uint32_t key = first; key < first + options.leases; ++key)
    text += fmt::format(
        R"({}{{"name":"r{}","port":"port","protocol":"udp","listen":{},"addresses":["10.90.0.{}"]}})",
        key != first ? "," : "", key, BENCH_PORT_FIRST + key / BENCH_ADDRESSES,
        (BENCH_ADDRESS_FIRST & 0xff) + key % BENCH_ADDRESSES);
  return text + "]}]}";
}

Status measure_bundle(Options options) {
  Result<int> core = keep_off_senders_core(options.daemon);
  if (!core) return pass_on(core);
  Result<Receiver> receiver = Receiver::attach(options.in);
  if (!receiver) return pass_on(receiver);
  Result<wire::Client> daemon = connect(options);
  if (!daemon) return pass_on(daemon);
  uint64_t generation = 1;  // of the lab's policy
  const auto push = [&](uint32_t first) -> Status {
    const std::string text = policy_of(options, first, ++generation);
    Result<Value> reply = daemon->call_with_body(
        "bundle.push", Value::map(), {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    if (!reply) return pass_on(reply);
    return {};
  };
  const auto grant = [&]() -> Status {
    const Value lease = Value::map(
        {{"tenant", options.tenant}, {"endpoints", Value::array({"r0"})}, {"ttl_ns", term_ns}});
    Result<Value> reply =
        daemon->call_with_body("lease.grant", Value::map(), cbor::encode(Value::array({lease})));
    if (!reply) return pass_on(reply);
    return {};
  };
  if (Status ok = push(0); !ok) return ok;
  if (Status ok = grant(); !ok) return ok;
  options.route.keys = {0};
  Result<SenderProcess> sender = SenderProcess::start(options.route, *core);
  if (!sender) return pass_on(sender);
  Latencies taken;
  for (uint32_t run = 0; taken.ns.size() < options.runs && run < 4 * options.runs; ++run) {
    // Made before the clock runs: only its sending counts.
    const std::string text = policy_of(options, options.leases / 2, ++generation);
    const auto next = [&]() -> Status {
      Result<Value> reply =
          daemon->call_with_body("bundle.push", Value::map(),
                                 {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
      if (!reply) return pass_on(reply);
      return {};
    };
    if (Status ok = measure_once(*sender, *receiver, next, taken); !ok) return ok;
    if (Status ok = push(0); !ok) return ok;
    if (Status ok = grant(); !ok) return ok;
  }
  if (taken.ns.empty()) return fail(ErrorKind::internal, "no_traffic", "no run counted");
  fmt::print("{}\n", taken.json());
  return {};
}

// ---- key

class KeyRuns {
 public:
  KeyRuns(const Options& options, wire::Client daemon, token::SecretKey key)
      : options_(options),
        daemon_(std::move(daemon)),
        thumbprint_(fmt::format("{:02x}", fmt::join(token::thumbprint(key.public_key()), ""))),
        issuer_(std::make_shared<token::SecretKey>(std::move(key)), options.issuer) {}

  // Slots are taken address by address and port by port. So these are spread evenly over all, with
  // the first and the last among them.
  uint32_t key_of(uint32_t n) const {
    const uint32_t ports = options_.endpoints / BENCH_ADDRESSES;
    const auto slot = static_cast<uint32_t>(uint64_t{n} * (options_.endpoints - 1) /
                                            std::max(1U, options_.leases - 1));
    return slot % ports * BENCH_ADDRESSES + slot / ports;
  }

  Status lease_all() {
    const uint64_t begin_ns = boot_now_ns();
    std::vector<token::TokenRequest> requests;
    for (uint32_t n = 0; n < options_.leases;) {
      token::TokenRequest& each = requests.emplace_back();
      each.tenant = options_.tenant;
      each.operations = {"connect"};
      each.ttl_s = term_s;
      for (uint32_t i = 0; i < options_.wide && n < options_.leases; ++i, ++n)
        each.endpoints.push_back(resource_of(key_of(n)));
      if (requests.size() < tokens_per_head && n < options_.leases) continue;
      if (Status ok = lease_by_tokens(requests); !ok) return ok;
      requests.clear();
    }
    Result<uint64_t> live = live_leases(daemon_);
    if (!live) return pass_on(live);
    const uint64_t expected = (options_.leases + options_.wide - 1) / options_.wide;
    if (*live != expected)
      return fail(ErrorKind::internal, "leases", fmt::format("{} leases of {}", *live, expected));
    leasing_ns_ = boot_now_ns() - begin_ns;
    return {};
  }

  Status revoke() {
    Result<Value> reply = daemon_.call("trust.revoke", named());
    if (!reply) return pass_on(reply);
    Result<uint64_t> ended = reply->get_u64("leases_ended");
    if (!ended) return pass_on(ended);
    const uint64_t expected = (options_.leases + options_.wide - 1) / options_.wide;
    if (*ended == expected) return {};
    return fail(ErrorKind::internal, "ended", fmt::format("{} leases ended", *ended));
  }

  Status restore() {
    if (Result<Value> reply = daemon_.call("trust.restore", named()); !reply) return pass_on(reply);
    return until_all_ended(daemon_);
  }

  double leasing_s() const { return static_cast<double>(leasing_ns_) / ns_per_s; }

 private:
  Value named() const { return Value::map({{"what", "key:" + thumbprint_}}); }

  Status lease_by_tokens(const std::vector<token::TokenRequest>& requests) {
    Result<std::string_view> node = daemon_.hello().get_text("node");
    Result<uint64_t> epoch = daemon_.hello().get_u64("epoch");
    if (!node || !epoch) return fail(ErrorKind::internal, "hello", "no node or epoch in the hello");
    Result<std::vector<token::IssuedToken>> tokens = issuer_.issue(
        {.kind = token::Kind::grant, .node = std::string(*node), .epoch = *epoch, .life_s = term_s},
        requests);
    if (!tokens) return pass_on(tokens);
    for (const token::IssuedToken& token : *tokens) {
      const Value args = Value::map({{"token", token.bytes}});
      // What was just revoked may still be in its teardown.
      for (const uint64_t begin_ns = boot_now_ns();;) {
        Result<Value> reply = daemon_.call("lease.grant", args);
        if (reply) break;
        if (reply.error().kind != ErrorKind::unavailable || boot_now_ns() - begin_ns > teardown_ns)
          return pass_on(reply);
        pause_ns(retry_ns);
      }
    }
    return {};
  }

  const Options& options_;
  wire::Client daemon_;
  std::string thumbprint_;
  token::Issuer issuer_;
  uint64_t leasing_ns_ = 0;
};

Status measure_key(Options options) {
  Result<int> core = keep_off_senders_core(options.daemon);
  if (!core) return pass_on(core);
  Result<Receiver> receiver = Receiver::attach(options.in);
  if (!receiver) return pass_on(receiver);
  Result<wire::Client> daemon = connect(options);
  if (!daemon) return pass_on(daemon);
  Result<token::SecretKey> key = token::SecretKey::read(options.key);
  if (!key) return pass_on(key);
  KeyRuns runs(options, std::move(*daemon), std::move(*key));
  const uint32_t flows = std::min(options.leases, flows_max);
  for (uint32_t flow = 0; flow < flows; ++flow)
    options.route.keys.push_back(
        runs.key_of(static_cast<uint32_t>(uint64_t{flow} * options.leases / flows)));
  // The last to be closed has a packet on its way all the time, whatever the order.
  options.route.in_turn = {runs.key_of(0), runs.key_of(options.leases - 1)};
  Result<SenderProcess> sender = SenderProcess::start(options.route, *core);
  if (!sender) return pass_on(sender);
  sender->stop();
  Latencies taken;
  std::vector<double> leasing_s;
  const uint64_t end_ns = boot_now_ns() + options.seconds * ns_per_s;
  while (taken.ns.size() < options.runs && boot_now_ns() < end_ns) {
    if (Status ok = runs.lease_all(); !ok) return ok;
    leasing_s.push_back(runs.leasing_s());
    if (Status ok = measure_once(*sender, *receiver, [&] { return runs.revoke(); }, taken); !ok)
      return ok;
    if (Status ok = runs.restore(); !ok) return ok;
  }
  if (taken.ns.empty()) return fail(ErrorKind::internal, "no_traffic", "no run counted");
  std::sort(leasing_s.begin(), leasing_s.end());
  fmt::print("{}\n",
             taken.json(fmt::format(", \"leasing_s\": {:.2f}", leasing_s[leasing_s.size() / 2])));
  return {};
}

// ---- options

bool read_number(const char* text, auto& out) {
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
                              {"key", required_argument, nullptr, 'k'},
                              {"issuer", required_argument, nullptr, 'u'},
                              {"endpoints", required_argument, nullptr, 'e'},
                              {"leases", required_argument, nullptr, 'l'},
                              {"wide", required_argument, nullptr, 'w'},
                              {"daemon", required_argument, nullptr, 'd'},
                              {"watchers", required_argument, nullptr, 'a'},
                              {"rate", required_argument, nullptr, 'f'},
                              {"seconds", required_argument, nullptr, 'x'},
                              {"runs", required_argument, nullptr, 'r'},
                              {nullptr, 0, nullptr, 0}};
  const std::string what = argc > 1 ? argv[1] : "";
  const auto measure = what == "grants"   ? measure_grants
                       : what == "watch"  ? measure_watch
                       : what == "bundle" ? measure_bundle
                       : what == "key"    ? measure_key
                                          : nullptr;
  Options options;
  bool good = measure != nullptr;
  for (int c = 0; good && (c = ::getopt_long(argc - 1, argv + 1, "", known, nullptr)) != -1;) {
    switch (c) {
      case 's': options.socket = optarg; break;
      case 'n': options.route.sender = optarg; break;
      case 'o': options.route.out = optarg; break;
      case 'm': options.route.to = optarg; break;
      case 'i': options.in = optarg; break;
      case 't': options.tenant = optarg; break;
      case 'k': options.key = optarg; break;
      case 'u': options.issuer = optarg; break;
      case 'e': good = read_number(optarg, options.endpoints); break;
      case 'l': good = read_number(optarg, options.leases); break;
      case 'w': good = read_number(optarg, options.wide); break;
      case 'd': good = read_number(optarg, options.daemon); break;
      case 'a': good = read_number(optarg, options.watchers); break;
      case 'f': good = read_number(optarg, options.rate); break;
      case 'x': good = read_number(optarg, options.seconds); break;
      case 'r': good = read_number(optarg, options.runs); break;
      default: good = false;
    }
  }
  if (!good || options.leases == 0 || options.runs == 0 || options.daemon == 0) {
    fmt::print(stderr,
               "usage: bench_control grants|watch|bundle|key [options]; scripts/bench runs it\n");
    return 2;
  }
  if (Status done = measure(options); !done) {
    fmt::print(stderr, "bench_control: {}: {}\n", what, done.error().text());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace holdfast::bench

int main(int argc, char** argv) {
  return holdfast::bench::main_of(argc, argv);
}
