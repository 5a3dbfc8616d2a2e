// Asks the data plane for one verdict after another while a test swaps policies, and notes each
// one's tag: which reason, bank, slot and incarnation.
//
//   verdict_tags PINS PLAN RESULT      prints "ready" after the first round
//
// The verdicts come from the loaded explain twins, on the live maps, by BPF_PROG_TEST_RUN: parser
// and decision are the functions that packets meet at the hooks, and the whole struct verdict comes
// back, also of what passes. Nothing is committed.
//
// PINS is the pin directory's part of this ABI. PLAN is text, one verdict a line:
//   verdict NAME from_tenant|to_tenant|from_uplink INTERFACE FRAME     the frame in hex
//
// A thread runs through PLAN, over and over. The other reads commands from standard input, one a
// line, and answers each with a line:
//   span N              -> ok       the test has got to N
//   policy RESOURCE...  -> BANK HELD...
//                                   the active bank and, of each resource, what its tables and the
//                                   slots say: "-" if it is not there, else SLOT/INCARNATION/LEASE
//                                   with "-" for LEASE while its gate denies. A RESOURCE is
//                                   egress,INTERFACE or ADDRESS,PORT,tcp|udp|icmp_echo
// At the end of its input it writes RESULT, text:
//   tag NAME HOOK REASON BANK SLOT INCARNATION BEFORE AFTER COUNT
//                                   SLOT is "-" without one; BEFORE and AFTER: the spans in which
//                                   the program was started, and in which it had ended
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <compare>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <bpf/bpf.h>
#include <fmt/format.h>
#include <net/if.h>

#include "bpf/abi.h"
#include "policy/address.hpp"
#include "policy/compile.hpp"
#include "policy/endpoint_table.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/dataplane/counters.hpp"
#include "userspace/dataplane/mapped_array.hpp"
#include "userspace/dataplane/slots.hpp"

namespace holdfast {
namespace {

constexpr size_t frame_bytes_max = 256;

Result<UniqueFd> open_pin(const std::string& path) {
  UniqueFd fd(::bpf_obj_get(path.c_str()));
  if (!fd) return fail_sys(errno, "pin", "opening " + path);
  return fd;
}

template <typename T>
Result<MappedArray<T>> map_pin(const std::string& pins, const char* name) {
  Result<UniqueFd> fd = open_pin(pins + "/maps/" + name);
  if (!fd) return pass_on(fd);
  return MappedArray<T>::map(fd->get(), name);
}

// The table that stands in `bank` of an outer map.
Result<UniqueFd> open_table(const UniqueFd& outer, uint32_t bank) {
  uint32_t id = 0;
  if (const int err = ::bpf_map_lookup_elem(outer.get(), &bank, &id); err != 0)
    return fail_sys(err, "table", "looking for a policy table");
  UniqueFd fd(::bpf_map_get_fd_by_id(id));
  if (!fd) return fail_sys(errno, "table", "opening a policy table");
  return fd;
}

// ---- what is in force ------------------------------------------------------------------------

// The policy in the active bank. Asked between two pushes, when nobody writes what is read.
class InForce {
 public:
  static Result<InForce> open(const std::string& pins) {
    auto control = map_pin<abi::control>(pins, "control");
    if (!control) return pass_on(control);
    auto slots = map_pin<abi::lease_slot>(pins, "slots");
    if (!slots) return pass_on(slots);
    auto records = map_pin<abi::lease_record>(pins, "records");
    if (!records) return pass_on(records);
    Result<UniqueFd> endpoints = open_pin(pins + "/maps/policy_endpoints");
    if (!endpoints) return pass_on(endpoints);
    Result<UniqueFd> ports = open_pin(pins + "/maps/policy_ports");
    if (!ports) return pass_on(ports);
    InForce made{std::move(*control), Slots(std::move(*slots), std::move(*records)),
                 std::move(*endpoints), std::move(*ports)};
    return made;
  }

  Result<std::string> describe(std::istream& resources) const {
    const uint32_t bank = control_[0].active_bank & 1;
    Result<UniqueFd> endpoints = open_table(endpoints_, bank);
    if (!endpoints) return pass_on(endpoints);
    auto lines = MappedArray<abi::endpoint_line>::map(endpoints->get(), "endpoints");
    if (!lines) return pass_on(lines);
    Result<UniqueFd> ports = open_table(ports_, bank);
    if (!ports) return pass_on(ports);
    std::string answer = fmt::format("{}", bank);
    for (std::string text; resources >> text;) {
      std::istringstream words(text);
      std::array<std::string, 3> part;
      for (std::string& word : part) std::getline(words, word, ',');
      std::optional<uint32_t> slot;
      if (part[0] == "egress") {
        const uint32_t ifindex = ::if_nametoindex(part[1].c_str());
        abi::tenant_port port{};
        if (::bpf_map_lookup_elem(ports->get(), &ifindex, &port) == 0) slot = port.egress_slot;
      } else {
        const Result<abi::endpoint_key> key = key_of(part);
        if (!key) return std::unexpected(key.error());
        const abi::endpoint_entry* entry =
            find_endpoint(&(*lines)[0], control_[0].endpoint_hash[bank], *key);
        if (entry != nullptr) slot = entry->slot;
      }
      answer += slot ? held(*slot) : " -";
    }
    return answer;
  }

 private:
  InForce(MappedArray<abi::control> control, Slots slots, UniqueFd endpoints, UniqueFd ports)
      : control_(std::move(control)),
        slots_(std::move(slots)),
        endpoints_(std::move(endpoints)),
        ports_(std::move(ports)) {}

  static Result<abi::endpoint_key> key_of(const std::array<std::string, 3>& part) {
    const Result<Address> address = parse_address(part[0]);
    if (!address) return std::unexpected(address.error());
    uint16_t port = 0;
    const char* end = part[1].data() + part[1].size();
    if (std::from_chars(part[1].data(), end, port).ptr != end)
      return fail(ErrorKind::invalid, "port", part[1]);
    const Protocol protocol = part[2] == "tcp"   ? Protocol::tcp
                              : part[2] == "udp" ? Protocol::udp
                                                 : Protocol::icmp_echo;
    return endpoint_key(*address, protocol, port);
  }

  std::string held(uint32_t slot) const {
    const abi::lease_record& record = slots_.record(slot);
    return fmt::format(" {}/{}/{}", slot, abi::hf_gate_incarnation(slots_.gate(slot)),
                       slots_.bound(slot)
                           ? fmt::format("{:016x}{:016x}", record.lease_id[0], record.lease_id[1])
                           : "-");
  }

  MappedArray<abi::control> control_;
  Slots slots_;
  UniqueFd endpoints_;
  UniqueFd ports_;
};

// ---- verdicts --------------------------------------------------------------------------------

struct Question {
  std::string name;
  std::string hook;
  uint32_t ifindex = 0;
  int program = -1;  // borrowed
  std::vector<uint8_t> frame;
};

struct Tag {
  size_t question = 0;
  uint32_t reason = 0;
  uint32_t bank = 0;
  uint32_t slot = 0;
  uint32_t incarnation = 0;
  uint32_t before = 0;
  uint32_t after = 0;
  auto operator<=>(const Tag&) const = default;
};

class Asking {
 public:
  Status read_plan(const std::string& pins, const char* file) {
    for (const char* hook : {"from_tenant", "to_tenant", "from_uplink"}) {
      Result<UniqueFd> twin = open_pin(fmt::format("{}/programs/explain_{}", pins, hook));
      if (!twin) return pass_on(twin);
      twins_[hook] = std::move(*twin);
    }
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);) {
      std::istringstream words(line);
      std::string kind, interface, frame;
      Question question;
      words >> kind >> question.name >> question.hook >> interface >> frame;
      const auto twin = twins_.find(question.hook);
      question.ifindex = ::if_nametoindex(interface.c_str());
      if (kind != "verdict" || twin == twins_.end() || question.ifindex == 0 ||
          frame.size() > 2 * frame_bytes_max)
        return fail(ErrorKind::invalid, "plan", line);
      question.program = twin->second.get();
      question.frame.resize(frame.size() / 2);
      for (size_t i = 0; i < question.frame.size(); ++i) {
        const char* at = frame.data() + 2 * i;
        if (std::from_chars(at, at + 2, question.frame[i], 16).ptr != at + 2)
          return fail(ErrorKind::invalid, "hex", line);
      }
      questions_.push_back(std::move(question));
    }
    if (questions_.empty()) return fail(ErrorKind::invalid, "plan", "asks nothing");
    return {};
  }

  // One verdict on each frame.
  Status round() {
    for (size_t i = 0; i < questions_.size(); ++i) {
      Tag tag{.question = i, .before = span.load()};
      const Result<abi::verdict> verdict = ask(questions_[i]);
      tag.after = span.load();
      if (!verdict) return std::unexpected(verdict.error());
      tag.reason = verdict->reason;
      tag.bank = verdict->bank;
      tag.slot = verdict->slot;
      tag.incarnation = abi::hf_gate_incarnation(verdict->gate);
      ++tags_[tag];
    }
    return {};
  }

  Status write_result(const char* file) const {
    std::ofstream out(file);
    for (const auto& [tag, count] : tags_) {
      const Question& question = questions_[tag.question];
      const std::string slot = tag.slot == abi::HF_NO_SLOT ? "-" : fmt::format("{}", tag.slot);
      out << fmt::format("tag {} {} {} {} {} {} {} {} {}\n", question.name, question.hook,
                         reason_name(tag.reason), tag.bank, slot, tag.incarnation, tag.before,
                         tag.after, count);
    }
    out.flush();
    return out ? Status{} : fail_sys(errno, "result", file);
  }

  std::atomic<uint32_t> span{0};

 private:
  static Result<abi::verdict> ask(const Question& question) {
    __sk_buff context{};
    context.ifindex = question.ifindex;
    std::array<uint8_t, 2 * frame_bytes_max> answer;
    bpf_test_run_opts opts{};
    opts.sz = sizeof(opts);
    opts.data_in = question.frame.data();
    opts.data_size_in = static_cast<uint32_t>(question.frame.size());
    opts.data_out = answer.data();
    opts.data_size_out = sizeof(answer);
    opts.ctx_in = &context;
    opts.ctx_size_in = sizeof(context);
    if (const int err = ::bpf_prog_test_run_opts(question.program, &opts); err != 0)
      return fail_sys(err, "verdict", question.name);
    abi::verdict verdict{};
    std::memcpy(&verdict, answer.data(), sizeof(verdict));  // a frame is longer than that
    return verdict;
  }

  std::map<std::string, UniqueFd> twins_;  // by hook
  std::vector<Question> questions_;
  std::map<Tag, uint64_t> tags_;
};

Status obey(const InForce& in_force, std::atomic<uint32_t>& span) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string verb;
    uint32_t number = 0;
    words >> verb;
    if (verb == "span" && words >> number) {
      span = number;
      fmt::print("ok\n");
    } else if (verb == "policy") {
      const Result<std::string> answer = in_force.describe(words);
      if (!answer) return std::unexpected(answer.error());
      fmt::print("{}\n", *answer);
    } else {
      return fail(ErrorKind::invalid, "command", line);
    }
    std::fflush(stdout);
  }
  return {};
}

Status run(const std::string& pins, const char* plan, const char* result) {
  Result<InForce> in_force = InForce::open(pins);
  if (!in_force) return pass_on(in_force);
  Asking asking;
  if (Status ok = asking.read_plan(pins, plan); !ok) return ok;
  if (Status ok = asking.round(); !ok) return ok;
  fmt::print("ready\n");
  std::fflush(stdout);
  Status asked;
  std::jthread asker([&](const std::stop_token& stop) {
    while (asked && !stop.stop_requested()) asked = asking.round();
  });
  Status obeyed = obey(*in_force, asking.span);
  asker.request_stop();
  asker.join();
  if (!obeyed) return obeyed;
  if (!asked) return asked;
  return asking.write_result(result);
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fputs("verdict_tags PINS PLAN RESULT\n", stderr);
    return 2;
  }
  const holdfast::Status ok = holdfast::run(argv[1], argv[2], argv[3]);
  if (ok) return 0;
  std::fputs((ok.error().text() + "\n").c_str(), stderr);
  return 1;
}
