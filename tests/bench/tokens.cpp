// The asking side of `scripts/bench tokens`: makes an issuer's tokens for the leases that are
// there, and asks about them as fast as the daemon answers, or at a rate. Commands come on standard
// input, a line each; each is answered by a line of JSON. tokens.py says what is asked, and
// README.md why.
#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/base/clock.hpp"
#include "userspace/token/checker.hpp"
#include "userspace/wire/client.hpp"
#include "userspace/wire/verify_client.hpp"

namespace {

using namespace holdfast;
using token::Claims;
using token::Digest;
using token::Kind;
using token::Refusal;

constexpr size_t checks_per_frame = 64;
constexpr size_t frames_ahead = 8;
// Answers are taken in bursts: who sleeps for each of them is woken for each of them, which costs
// the daemon's core more than the answer. (A service that checks so many tokens has other things to
// do.)
constexpr long burst_ns = 150'000;
constexpr uint64_t life_s = 290;
constexpr std::string_view issuer = "bench.example";
constexpr std::string_view operation = "connect";
constexpr std::string_view presenter = "uid:4001";

[[noreturn]] void give_up(const std::string& why) {
  std::cerr << "bench_tokens: " << why << "\n";
  std::exit(1);
}

template <typename T>
T must(Result<T> result) {
  if (!result) give_up(result.error().text());
  return std::move(*result);
}

double now_s() {
  return static_cast<double>(read_clock_ns(CLOCK_MONOTONIC)) / 1e9;
}

double cpu_s() {
  return static_cast<double>(read_clock_ns(CLOCK_PROCESS_CPUTIME_ID)) / 1e9;
}

struct Lease {
  token::LeaseAt at;
  std::string resource;
};

// A token as a frame carries it, and what the daemon has to say of it.
struct Made {
  std::vector<uint8_t> bytes;
  token::Parts parts;
  std::vector<uint8_t> path;
  std::string resource;
  std::string_view op = operation;
  std::string_view who = presenter;
  uint64_t verdict = 0;
};

uint64_t verdict_of(Refusal why) {
  return 1 + static_cast<uint64_t>(why);
}

struct Run {
  std::vector<std::vector<uint8_t>> frames;
  std::map<uint64_t, uint64_t> expected;  // verdicts by reason
  size_t tokens = 0;
};

class Bench {
 public:
  Bench(const std::string& control, std::string verify, const std::string& key)
      : verify_(std::move(verify)), key_(must(token::SecretKey::read(key))) {
    wire::Client client = must(wire::Client::connect(control));
    node_ = std::string(must(client.hello().get_text("node")));
    epoch_ = must(client.hello().get_u64("epoch"));
    cbor::Value next = 0;
    while (!next.is_null()) {
      const cbor::Value page =
          must(client.call("lease.list", cbor::Value::map({{"cursor", next}, {"limit", 1000}})));
      for (const cbor::Value& each : *must(page.get_array("leases"))) {
        Lease lease;
        const std::string_view id = must(each.get_text("id"));
        for (size_t i = 0; i < lease.at.id.size(); ++i)
          std::from_chars(id.data() + 2 * i, id.data() + 2 * i + 2, lease.at.id[i], 16);
        lease.at.generation = must(each.get_u64("generation"));
        lease.resource = *(*must(each.get_array("resources")))[0].as_text();
        tenant_ = std::string(must(each.get_text("tenant")));
        leases_.push_back(std::move(lease));
      }
      next = *page.find("next");
    }
    if (leases_.empty()) give_up("there are no leases");
  }

  size_t leases() const { return leases_.size(); }

  // `heads` trees of `size` tokens, a hundredth of them bad in ten ways; all in random order.
  Run make(size_t heads, size_t size, bool some_bad) {
    std::vector<Made> all;
    all.reserve(heads * size);
    const size_t bad_heads = some_bad ? std::max<size_t>(1, heads / 100) : 0;
    for (size_t h = 0; h < heads; ++h) {
      const bool bad = h >= heads - bad_heads;
      add_tree(all, size, bad ? static_cast<int>(h % 10) : -1);
    }
    std::shuffle(all.begin(), all.end(), random_);
    return framed(all, all.size());
  }

  // The same tokens, each frame's drawn at random: `count` of them.
  Run drawn(const std::vector<Made>& from, size_t count) { return framed(from, count, true); }
  std::vector<Made> singles(size_t count) {
    std::vector<Made> all;
    all.reserve(count);
    for (size_t i = 0; i < count; ++i) add_tree(all, 1, -1);
    return all;
  }
  Run in_order(const std::vector<Made>& all) { return framed(all, all.size()); }

  // As fast as it goes: answers are counted by reason, and have to be what was expected.
  std::string drive(const Run& run) {
    wire::VerifyClient client = must(wire::VerifyClient::connect(verify_));
    std::map<uint64_t, uint64_t> counted;
    const double begin = now_s();
    const double cpu = cpu_s();
    size_t answered = 0;
    for (size_t sent = 0; answered < run.frames.size();) {
      bool moved = false;
      for (; sent < run.frames.size() && sent - answered < frames_ahead; ++sent, moved = true) {
        const std::vector<uint8_t>& frame = run.frames[sent];
        if (::send(client.fd(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) break;
      }
      pollfd readable{client.fd(), POLLIN, 0};
      for (; answered < sent && ::poll(&readable, 1, 0) > 0; ++answered, moved = true)
        count(must(client.receive()), counted);
      if (moved) continue;
      const timespec burst{0, burst_ns};
      ::nanosleep(&burst, nullptr);
    }
    const double took = now_s() - begin;
    return fmt::format(
        R"({{"tokens": {}, "seconds": {:.6f}, "per_s": {:.1f}, "exact": {}, "client_cpu": {:.3f}}})",
        run.tokens, took, static_cast<double>(run.tokens) / took, counted == run.expected,
        (cpu_s() - cpu) / took);
  }

  // At a rate, for so long: what was answered of what was offered, and how long each frame took.
  // What cannot be sent in its turn is not made up for.
  std::string pace(const Run& run, double per_s, double seconds) {
    wire::VerifyClient client = must(wire::VerifyClient::connect(verify_));
    std::map<uint64_t, uint64_t> counted;
    std::vector<double> sent_at, took_us;
    const double step = checks_per_frame / per_s;
    const double begin = now_s();
    size_t answered = 0, offered = 0;
    for (double due = begin; now_s() < begin + seconds || answered < sent_at.size();) {
      const double now = now_s();
      if (now < begin + seconds && now >= due) {
        due += step;
        ++offered;
        if (sent_at.size() - answered < 8 * frames_ahead) {
          const std::vector<uint8_t>& frame = run.frames[sent_at.size() % run.frames.size()];
          sent_at.push_back(now_s());
          if (::send(client.fd(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0)
            give_up("sending failed");
        }
      }
      pollfd readable{client.fd(), POLLIN, 0};
      const double until = std::min(due, begin + seconds) - now_s();
      timespec wait{0, std::clamp<long>(static_cast<long>(until * 1e9), 0, 20'000'000)};
      if (answered < sent_at.size() ? ::ppoll(&readable, 1, &wait, nullptr) > 0
                                    : (::nanosleep(&wait, nullptr), false)) {
        count(must(client.receive()), counted);
        took_us.push_back((now_s() - sent_at[answered++]) * 1e6);
      }
      if (now_s() > begin + seconds + 10) break;
    }
    const double took = seconds;
    std::sort(took_us.begin(), took_us.end());
    const auto percentile = [&](double p) {
      return took_us.empty()
                 ? 0.0
                 : took_us[std::min(took_us.size() - 1,
                                    static_cast<size_t>(p * static_cast<double>(took_us.size())))];
    };
    return fmt::format(
        R"({{"offered_per_s": {:.1f}, "per_s": {:.1f}, "p50_us": {:.1f}, "p99_us": {:.1f}, "good": {}}})",
        static_cast<double>(offered * checks_per_frame) / took,
        static_cast<double>(answered * checks_per_frame) / took, percentile(0.5), percentile(0.99),
        counted.size() == 1 && counted.contains(0));
  }

  // A peer that nobody would want, until the process is ended: heads that look right under
  // signatures that nobody made, good heads again and again, and answers that nobody reads.
  [[noreturn]] void flood(uid_t uid) {
    if (::setresuid(uid, uid, uid) != 0) give_up("becoming another user failed");
    std::vector<Made> unknown = singles(checks_per_frame * 8);
    for (Made& each : unknown) {
      auto* signature = const_cast<uint8_t*>(each.parts.signature.data());
      for (size_t i = 0; i < 31; ++i) signature[i] = static_cast<uint8_t>(random_());
    }
    const Run dear = framed(unknown, unknown.size());
    const Run replayed = make(64, 64, false);
    constexpr size_t connections = 9;
    std::vector<wire::VerifyClient> peers;
    peers.reserve(connections);
    while (peers.size() < connections) peers.push_back(must(wire::VerifyClient::connect(verify_)));
    std::vector<uint8_t> answer(1 << 16);
    for (size_t turn = 0;; ++turn) {
      for (size_t i = 0; i < peers.size(); ++i) {
        const Run& run = i % 3 == 0 ? replayed : dear;
        const std::vector<uint8_t>& frame = run.frames[turn % run.frames.size()];
        [[maybe_unused]] ssize_t done =
            ::send(peers[i].fd(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        // A third never reads.
        if (i % 3 != 2)
          while ((done = ::recv(peers[i].fd(), answer.data(), answer.size(), MSG_DONTWAIT)) > 0) {
          }
      }
      if (turn % 16 == 0) ::usleep(200);
    }
  }

  // The checker alone, in this process: tokens of trees of 256 under heads that are known.
  std::string in_process() {
    std::vector<Made> all;
    for (size_t h = 0; h < 256; ++h) add_tree(all, 256, -1);
    std::shuffle(all.begin(), all.end(), random_);
    token::Beliefs beliefs;
    beliefs.node = node_;
    beliefs.epoch = epoch_;
    token::Anchor anchor;
    anchor.issuer = issuer;
    anchor.key = key_.public_key();
    anchor.thumbprint = token::thumbprint(anchor.key);
    anchor.for_tokens = true;
    anchor.tenants = anchor.operations = {"*"};
    beliefs.anchors.add(std::move(anchor));
    token::Checker checker;
    const uint64_t wall = wall_now_ns() / ns_per_s;
    std::vector<double> rates;
    for (int round = 0; round < 6; ++round) {
      const double begin = now_s();
      size_t good = 0;
      std::vector<token::FramedHead> heads;
      heads.reserve(16);
      std::array<token::Item, 16> batch;
      for (size_t at = 0; at < all.size(); at += batch.size()) {
        heads.clear();
        for (size_t i = 0; i < batch.size(); ++i)
          heads.push_back(
              {.header = all[at + i].parts.header, .signature = all[at + i].parts.signature});
        for (size_t i = 0; i < batch.size(); ++i) {
          checker.expect(heads[i]);
          batch[i].head = &heads[i];
          batch[i].index = all[at + i].parts.index;
          batch[i].path = all[at + i].path;
          batch[i].claims = all[at + i].parts.claims;
        }
        checker.check(batch, beliefs, wall);
        for (const token::Item& each : batch) good += each.verdict.has_value();
      }
      if (good != all.size()) give_up("the checker refused a good token");
      if (round > 0) rates.push_back(static_cast<double>(all.size()) / (now_s() - begin));
    }
    std::sort(rates.begin(), rates.end());
    return fmt::format(R"({{"per_s": {:.1f}, "sha256": "{}"}})", rates[rates.size() / 2],
                       token::sha256_code());
  }

 private:
  Claims claims_for(const Lease& lease, uint64_t wall_s) {
    Claims claims;
    claims.issuer = issuer;
    claims.audience = node_;
    claims.issued_at = claims.not_before = wall_s;
    claims.expires = wall_s + life_s;
    for (uint8_t& byte : claims.id) byte = static_cast<uint8_t>(random_());
    claims.tenant = tenant_;
    claims.endpoints = {lease.resource};
    claims.operations = {std::string(operation)};
    claims.holder = presenter;
    claims.lease = lease.at;
    return claims;
  }

  // One head and its tokens. `fault` 0 to 9: all of them bad, in one of ten ways.
  void add_tree(std::vector<Made>& all, size_t size, int fault) {
    const uint64_t wall_s = wall_now_ns() / ns_per_s;
    std::vector<Claims> claims;
    std::vector<std::string> resources;
    for (size_t i = 0; i < size; ++i) {
      const Lease& lease = leases_[next_lease_++ % leases_.size()];
      claims.push_back(claims_for(lease, wall_s));
      resources.push_back(lease.resource);
      if (fault == 3)
        claims.back().expires = wall_s,
        claims.back().issued_at = claims.back().not_before = wall_s - 60;
      if (fault == 6) claims.back().lease->id[3] ^= 1;
      if (fault == 7) --claims.back().lease->generation;
    }
    token::Head head;
    head.kind = Kind::use;
    head.issuer = issuer;
    head.audience = fault == 1 ? "ni:///sha-256;" + std::string(43, 'A') : node_;
    if (fault == 1)
      for (Claims& each : claims) each.audience = head.audience;
    head.expires = wall_s + life_s;
    head.epoch = fault == 0 ? epoch_ - 1 : epoch_;
    const auto seed = std::array<uint8_t, 32>{1, 2, 3};
    const token::SecretKey stranger = token::SecretKey::from_seed(seed);
    std::vector<std::vector<uint8_t>> tokens =
        must(token::issue(fault == 2 ? stranger : key_, head, claims));
    constexpr std::array verdicts{
        Refusal::stale_epoch,  Refusal::wrong_audience,      Refusal::unknown_key,
        Refusal::expired,      Refusal::operation_not_named, Refusal::resource_not_named,
        Refusal::no_lease,     Refusal::old_generation,      Refusal::wrong_holder,
        Refusal::bad_signature};
    for (size_t i = 0; i < size; ++i) {
      const token::Parts parts = *token::take_apart(tokens[i]);
      // Its parts point into its bytes, which stay where they are.
      all.push_back(
          {.bytes = std::move(tokens[i]), .parts = parts, .path = {}, .resource = resources[i]});
      Made& there = all.back();
      for (const Digest& node : there.parts.path())
        there.path.insert(there.path.end(), node.begin(), node.end());
      if (fault < 0) continue;
      there.verdict = verdict_of(verdicts[static_cast<size_t>(fault)]);
      if (fault == 4) there.op = "erase";
      if (fault == 5) there.resource += "0";
      if (fault == 8) there.who = "uid:4002";
      if (fault == 9) const_cast<uint8_t&>(there.parts.claims.back()) ^= 1;
    }
  }

  Run framed(const std::vector<Made>& all, size_t count, bool drawn = false) {
    Run run;
    run.tokens = count;
    for (size_t begin = 0; begin < count; begin += checks_per_frame) {
      wire::CheckFrame frame;
      std::map<const uint8_t*, uint64_t> heads;
      for (size_t i = begin; i < std::min(count, begin + checks_per_frame); ++i) {
        const Made& made = all[drawn ? random_() % all.size() : i];
        frame.add({.head = frame.add_head(made.parts.header, made.parts.signature),
                   .index = made.parts.index,
                   .path = made.path,
                   .claims = made.parts.claims,
                   .operation = made.op,
                   .resource = made.resource,
                   .presenter = made.who});
        ++run.expected[made.verdict];
      }
      run.frames.push_back(frame.finish(static_cast<uint32_t>(run.frames.size() + 1)));
      if (run.frames.back().size() > wire::check_frame_bytes_max)
        give_up(fmt::format("a frame of {} bytes", run.frames.back().size()));
    }
    show_kernel(run.frames);
    return run;
  }

  // Sends each of them to itself. In a virtual machine with shadow page tables the kernel's first
  // look at a page costs as much as some ten tokens, and that is the asker's time, not the
  // daemon's.
  static void show_kernel(const std::vector<std::vector<uint8_t>>& frames) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends.data()) != 0) give_up("no pair of sockets");
    char first = 0;
    for (const std::vector<uint8_t>& frame : frames)
      if (::send(ends[0], frame.data(), frame.size(), MSG_NOSIGNAL) < 0 ||
          ::recv(ends[1], &first, 1, 0) != 1)
        give_up("sending a frame to itself failed");
    for (const int end : ends) ::close(end);
  }

  static void count(std::span<const uint8_t> body, std::map<uint64_t, uint64_t>& counted) {
    cbor::Reader in(body, {.depth_max = 2, .bytes_max = wire::check_frame_bytes_max});
    uint64_t good = 0;
    for (in.array(); in.more();) {
      in.array();
      const uint64_t reason = in.u64();
      if (reason == 0)
        ++good;
      else
        ++counted[reason];
      while (in.more()) in.u64();
      in.end();
    }
    in.end();
    if (!in.finish()) give_up("an answer that is none");
    if (good != 0) counted[0] += good;
  }

  std::string verify_;
  token::SecretKey key_;
  std::string node_;
  std::string tenant_;
  uint64_t epoch_ = 0;
  std::vector<Lease> leases_;
  size_t next_lease_ = 0;
  std::mt19937_64 random_{std::random_device{}()};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) give_up("usage: bench_tokens CONTROL VERIFY KEY; commands on standard input");
  Bench bench(argv[1], argv[2], argv[3]);
  Run run;
  std::vector<Made> pool;
  const auto say = [](const std::string& line) { std::cout << line << '\n' << std::flush; };
  say(fmt::format(R"({{"leases": {}}})", bench.leases()));
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    double a = 0, b = 0;
    words >> command >> a >> b;
    if (command == "make") {  // heads, tokens each
      run = bench.make(static_cast<size_t>(a), static_cast<size_t>(b), true);
      say(fmt::format(R"({{"tokens": {}}})", run.tokens));
    } else if (command == "drive") {
      say(bench.drive(run));
    } else if (command == "singles") {  // tokens
      pool = bench.singles(static_cast<size_t>(a));
      run = bench.in_order(pool);
      say(fmt::format(R"({{"tokens": {}}})", run.tokens));
    } else if (command == "draw") {  // tokens
      run = bench.drawn(pool, static_cast<size_t>(a));
      say(fmt::format(R"({{"tokens": {}}})", run.tokens));
    } else if (command == "good") {  // heads, tokens each
      run = bench.make(static_cast<size_t>(a), static_cast<size_t>(b), false);
      say(fmt::format(R"({{"tokens": {}}})", run.tokens));
    } else if (command == "pace") {  // tokens a second, seconds
      say(bench.pace(run, a, b));
    } else if (command == "in_process") {
      say(bench.in_process());
    } else if (command == "flood") {
      say("{}");
      bench.flood(static_cast<uid_t>(a));
    } else {
      give_up("no command: " + line);
    }
  }
}
