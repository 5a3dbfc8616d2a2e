// Notes the tags of verdicts, which reason, bank, slot and incarnation each was made of, while a
// test swaps policies under traffic.
//
//   verdict_tags PINS PLAN RESULT      prints "ready" after the first round
//
// Asked: the loaded `explain`, on the live maps, by BPF_PROG_TEST_RUN, one verdict after
// another, hundreds a call (verdict_tags.bpf.c). Parser and decision are the functions that
// packets meet at the hooks, and the whole struct verdict comes back, also of what passes. Nothing
// is committed.
// Met: what the hooks themselves dropped, from the ring of drop events (one a reason, CPU and
// jiffy), which is read here without taking anything from the daemon, its reader.
//
// PINS is the pin directory's part of this ABI. PLAN is text, one kind of packet a line:
//   verdict NAME from_tenant|to_tenant|from_uplink INTERFACE one-port|any-port FRAME
// FRAME is in hex. any-port: packets are met with other source ports, too.
//
// A thread asks through PLAN, over and over. The other reads commands from standard input, one a
// line, and answers each with a line:
//   span N              -> ok       the test has got to N
//   policy RESOURCE...  -> BANK HELD...
//                                   the active bank and, of each resource, what its tables and the
//                                   slots say: "-" if it is not there, else SLOT/INCARNATION/LEASE
//                                   with "-" for LEASE while its gate denies. A RESOURCE is
//                                   egress,INTERFACE or ADDRESS,PORT,tcp|udp|icmp_echo
// At the end of its input it writes RESULT, text:
//   asked|met NAME HOOK REASON BANK SLOT INCARNATION BEFORE AFTER COUNT
//                                   SLOT is "-" without one; BEFORE and AFTER: the spans in which
//                                   the program was started, at the earliest, and had ended
// Fails if a verdict's tag was lost, or a drop event overwritten before it was read.
#include "tests/node/tools/verdict_tags.h"

#include <algorithm>
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
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bpf/abi.h"
#include "policy/address.hpp"
#include "policy/compile.hpp"
#include "policy/endpoint_table.hpp"
#include "tests/support/native_parser.hpp"
#include "userspace/base/check.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/sized.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/dataplane/counters.hpp"
#include "userspace/dataplane/mapped_array.hpp"
#include "userspace/dataplane/slots.hpp"
#include "verdict_tags.skel.h"

namespace holdfast {
namespace {

// A read-side critical section of RCU is as long as a call, and swaps wait for those.
constexpr int verdicts_per_call = 256;
constexpr int asker_nice = 5;
// From a verdict's begin to its drop event: longer than any time that a CPU was seen to be held up.
constexpr uint64_t verdict_ns_max = 100 * ns_per_ms;

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

// ---- drop events -----------------------------------------------------------------------------

// A second reader of the ring (Documentation/bpf/ringbuf.rst): it sees what was written after it
// was opened, and moves no position that others see.
class Onlooker {
 public:
  static Result<Onlooker> open(const std::string& pins) {
    Result<UniqueFd> fd = open_pin(pins + "/maps/drop_events");
    if (!fd) return pass_on(fd);
    bpf_map_info info{};
    uint32_t length = sizeof(info);
    if (const int err = ::bpf_obj_get_info_by_fd(fd->get(), &info, &length); err != 0)
      return fail_sys(err, "ring", "asking for the ring's size");
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    // The producer's position has a page of its own; the data comes twice in a row.
    const size_t bytes = page + 2UL * info.max_entries;
    void* base = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd->get(), static_cast<off_t>(page));
    if (base == MAP_FAILED) return fail_sys(errno, "ring", "mapping the ring");
    return Onlooker(static_cast<const uint8_t*>(base), page, info.max_entries);
  }

  // Calls `met` with every event since the last time.
  template <typename Met>
  Status look(Met met) {
    for (const uint64_t end = written(); at_ < end;) {
      const uint8_t* record = base_ + page_ + (at_ & (size_ - 1));
      const uint32_t header =
          __atomic_load_n(reinterpret_cast<const uint32_t*>(record), __ATOMIC_ACQUIRE);
      if ((header & BPF_RINGBUF_BUSY_BIT) != 0) break;
      const uint32_t length = header & ~BPF_RINGBUF_DISCARD_BIT;
      abi::drop_event event{};
      const bool whole = header == sizeof(event);
      if (whole) std::memcpy(&event, record + BPF_RINGBUF_HDR_SZ, sizeof(event));
      // Had it been overwritten by then?
      __atomic_thread_fence(__ATOMIC_ACQUIRE);
      if (written() - at_ > size_)
        return fail(ErrorKind::exhausted, "overwritten",
                    "drop events came faster than they were read");
      if (whole) met(event);
      at_ += (length + BPF_RINGBUF_HDR_SZ + 7) / 8 * 8;
    }
    return {};
  }

 private:
  Onlooker(const uint8_t* base, size_t page, uint64_t size)
      : base_(base), page_(page), size_(size), at_(written()) {}

  uint64_t written() const {
    return __atomic_load_n(reinterpret_cast<const uint64_t*>(base_), __ATOMIC_ACQUIRE);
  }

  const uint8_t* base_;  // mapped until the process ends
  size_t page_;
  uint64_t size_;
  uint64_t at_;
};

// ---- verdicts --------------------------------------------------------------------------------

struct DestroySkeleton {
  void operator()(verdict_tags_bpf* skeleton) const { verdict_tags_bpf__destroy(skeleton); }
};
using Skeleton = std::unique_ptr<verdict_tags_bpf, DestroySkeleton>;

// When the test got to each span. Written by one thread, read by the other and by the program.
class Spans {
 public:
  explicit Spans(uint32_t& now) : begin_boot_ns_{0}, now_(now) {}

  void enter(uint32_t number) {
    const std::lock_guard guard(lock_);
    CHECK(number == begin_boot_ns_.size());
    begin_boot_ns_.push_back(boot_now_ns());
    std::atomic_ref(now_).store(number);
  }
  uint32_t at(uint64_t boot_ns) const {
    const std::lock_guard guard(lock_);
    const auto after = std::upper_bound(begin_boot_ns_.begin(), begin_boot_ns_.end(), boot_ns);
    return static_cast<uint32_t>(after - begin_boot_ns_.begin() - 1);
  }

 private:
  mutable std::mutex lock_;
  std::vector<uint64_t> begin_boot_ns_;  // by span
  uint32_t& now_;
};

struct Question {
  std::string name;
  uint32_t hook = 0;  // hf_direction
  uint32_t ifindex = 0;
  bool any_port = false;
  std::vector<uint8_t> frame;
};

// By which a drop event is known for a question's packet.
struct Identity {
  uint32_t hook = 0;
  std::array<uint32_t, 4> source{};
  std::array<uint32_t, 4> destination{};
  uint16_t source_port = 0;
  uint16_t destination_port = 0;
  uint8_t protocol = 0;
  auto operator<=>(const Identity&) const = default;
};

struct Tag {
  uint32_t question = 0;
  bool met = false;
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
  static Result<Asking> open(const std::string& pins, Onlooker drops) {
    ::libbpf_set_print(nullptr);
    Skeleton skeleton(verdict_tags_bpf__open_and_load());
    if (!skeleton) return fail_sys(errno, "load", "loading the asking program");
    Result<UniqueFd> explain = open_pin(pins + "/programs/explain");
    if (!explain) return pass_on(explain);
    const uint32_t zero = 0;
    const int fd = explain->get();
    if (const int err =
            ::bpf_map_update_elem(::bpf_map__fd(skeleton->maps.explain), &zero, &fd, BPF_ANY);
        err != 0)
      return fail_sys(err, "explain", "putting `explain` behind the asking program");
    return Asking(std::move(skeleton), drops);
  }

  Status read_plan(const char* file) {
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);) {
      std::istringstream words(line);
      std::string kind, hook, interface, ports, frame;
      Question question;
      words >> kind >> question.name >> hook >> interface >> ports >> frame;
      for (const uint32_t each : hooks)
        if (hook == hook_name(each)) question.hook = each;
      question.ifindex = ::if_nametoindex(interface.c_str());
      question.any_port = ports == "any-port";
      question.frame.resize(frame.size() / 2);
      for (size_t i = 0; i < question.frame.size(); ++i) {
        const char* at = frame.data() + 2 * i;
        if (std::from_chars(at, at + 2, question.frame[i], 16).ptr != at + 2)
          return fail(ErrorKind::invalid, "hex", line);
      }
      if (kind != "verdict" || question.hook == 0 || question.ifindex == 0 ||
          question.frame.size() > QUESTION_BYTES || questions_.size() == QUESTIONS_MAX)
        return fail(ErrorKind::invalid, "plan", line);
      questions_.push_back(std::move(question));
    }
    if (questions_.empty()) return fail(ErrorKind::invalid, "plan", "asks nothing");
    // What a call asks is of one hook and interface.
    std::ranges::sort(questions_, {},
                      [](const Question& q) { return std::pair(q.hook, q.ifindex); });
    for (uint32_t i = 0; i < questions_.size(); ++i)
      if (Status ok = prepare(i); !ok) return ok;
    return {};
  }

  uint32_t& span() { return skeleton_->bss->asking.span; }

  // A call for each hook and interface, and the drops that were met meanwhile.
  Status round(const Spans& spans) {
    for (uint32_t first = 0, end = 0; first < questions_.size(); first = end) {
      const Question& question = questions_[first];
      while (end < questions_.size() && questions_[end].hook == question.hook &&
             questions_[end].ifindex == question.ifindex)
        ++end;
      if (Status ok = ask(first, end); !ok) return ok;
    }
    return drops_.look([&](const abi::drop_event& event) { meet(event, spans); });
  }

  // Takes over what the program kept.
  Status finish() {
    const int tags = ::bpf_map__fd(skeleton_->maps.tags);
    verdict_tag tag{};
    for (const verdict_tag* previous = nullptr; ::bpf_map_get_next_key(tags, previous, &tag) == 0;
         previous = &tag) {
      uint64_t count = 0;
      if (const int err = ::bpf_map_lookup_elem(tags, &tag, &count); err != 0)
        return fail_sys(err, "tags", "reading the tags");
      take({.tag = tag, .count = count});
    }
    for (uint32_t i = 0; i < questions_.size(); ++i) {
      alike latest{};
      if (const int err = ::bpf_map_lookup_elem(::bpf_map__fd(skeleton_->maps.latest), &i, &latest);
          err != 0)
        return fail_sys(err, "tags", "reading the latest tags");
      if (latest.count != 0) take(latest);
    }
    const asking& state = skeleton_->bss->asking;
    if (state.failed != 0 || taken_ != state.asked)
      return fail(ErrorKind::internal, "lost",
                  fmt::format("{} verdicts failed; of {} noted {} are there", state.failed,
                              state.asked, taken_));
    return {};
  }

  Status write_result(const char* file) const {
    std::ofstream out(file);
    for (const auto& [tag, count] : tags_) {
      const Question& question = questions_[tag.question];
      const std::string slot = tag.slot == abi::HF_NO_SLOT ? "-" : fmt::format("{}", tag.slot);
      out << fmt::format("{} {} {} {} {} {} {} {} {} {}\n", tag.met ? "met" : "asked",
                         question.name, hook_name(question.hook), reason_name(tag.reason), tag.bank,
                         slot, tag.incarnation, tag.before, tag.after, count);
    }
    out.flush();
    return out ? Status{} : fail_sys(errno, "result", file);
  }

 private:
  static constexpr std::array<uint32_t, 3> hooks{abi::HF_FROM_TENANT, abi::HF_TO_TENANT,
                                                 abi::HF_FROM_UPLINK};

  Asking(Skeleton skeleton, Onlooker drops) : skeleton_(std::move(skeleton)), drops_(drops) {}

  // Gives question `i` to the program, and notes how its packet will be known.
  Status prepare(uint32_t i) {
    const Question& of = questions_[i];
    question padded{};
    std::copy(of.frame.begin(), of.frame.end(), padded.frame);
    if (const int err =
            ::bpf_map_update_elem(::bpf_map__fd(skeleton_->maps.questions), &i, &padded, BPF_ANY);
        err != 0)
      return fail_sys(err, "question", of.name);
    const auto [wrong, packet] = test::parse(of.frame, of.frame.size());
    if (wrong != abi::HF_REASON_unclassified) return fail(ErrorKind::invalid, "frame", of.name);
    by_identity_[{.hook = of.hook,
                  .source = std::to_array(packet.source),
                  .destination = std::to_array(packet.destination),
                  .source_port = of.any_port ? uint16_t{0} : packet.source_port,
                  .destination_port = packet.destination_port,
                  .protocol = packet.protocol}] = i;
    return {};
  }

  // Questions [first, end) in turn. The call's last answer stays unread.
  Status ask(uint32_t first, uint32_t end) {
    asking& state = skeleton_->bss->asking;
    state.hook = questions_[first].hook;
    state.first = first;
    state.end = end;
    state.answered = 0;
    std::array<uint8_t, QUESTION_BYTES> frame{};
    std::ranges::copy(questions_[first].frame, frame.begin());
    __sk_buff context{};
    context.ifindex = questions_[first].ifindex;
    auto opts = sized<bpf_test_run_opts>();
    opts.data_in = frame.data();
    opts.data_size_in = frame.size();
    opts.ctx_in = &context;
    opts.ctx_size_in = sizeof(context);
    opts.repeat = verdicts_per_call;
    if (const int err = ::bpf_prog_test_run_opts(::bpf_program__fd(skeleton_->progs.ask), &opts);
        err != 0)
      return fail_sys(err, "verdict", questions_[first].name);
    return {};
  }

  void take(const alike& from) {
    taken_ += from.count;
    tags_[{.question = from.tag.question,
           .reason = from.tag.reason,
           .bank = from.tag.bank,
           .slot = from.tag.slot,
           .incarnation = from.tag.incarnation,
           .before = from.tag.before,
           .after = from.tag.after}] += from.count;
  }

  void meet(const abi::drop_event& event, const Spans& spans) {
    Identity identity{.hook = event.direction,
                      .source = std::to_array(event.source),
                      .destination = std::to_array(event.destination),
                      .source_port = event.source_port,
                      .destination_port = event.destination_port,
                      .protocol = event.protocol};
    auto found = by_identity_.find(identity);
    if (found == by_identity_.end()) {
      identity.source_port = 0;
      found = by_identity_.find(identity);
    }
    if (found == by_identity_.end()) return;  // not one of the test's
    const abi::verdict& verdict = event.verdict;
    // The event's time is when the verdict had been made.
    ++tags_[{.question = found->second,
             .met = true,
             .reason = verdict.reason,
             .bank = verdict.bank,
             .slot = verdict.slot,
             .incarnation = abi::hf_gate_incarnation(verdict.gate),
             .before = spans.at(event.time_boot_ns - verdict_ns_max),
             .after = spans.at(event.time_boot_ns)}];
  }

  Skeleton skeleton_;
  Onlooker drops_;
  std::vector<Question> questions_;
  std::map<Identity, uint32_t> by_identity_;
  std::map<Tag, uint64_t> tags_;
  uint64_t taken_ = 0;
};

Status obey(const InForce& in_force, Spans& spans) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string verb;
    uint32_t number = 0;
    words >> verb;
    if (verb == "span" && words >> number) {
      spans.enter(number);
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
  Result<Onlooker> drops = Onlooker::open(pins);
  if (!drops) return pass_on(drops);
  Result<Asking> asking = Asking::open(pins, *drops);
  if (!asking) return pass_on(asking);
  if (Status ok = asking->read_plan(plan); !ok) return ok;
  Spans spans(asking->span());
  if (Status ok = asking->round(spans); !ok) return ok;
  fmt::print("ready\n");
  std::fflush(stdout);
  Status asked;
  std::jthread asker([&](const std::stop_token& stop) {
    // Whatever the cores have to spare, and not much of what swaps and traffic need.
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), asker_nice);
    while (asked && !stop.stop_requested()) asked = asking->round(spans);
  });
  Status obeyed = obey(*in_force, spans);
  asker.request_stop();
  asker.join();
  if (!obeyed) return obeyed;
  if (!asked) return asked;
  if (Status ok = asking->finish(); !ok) return ok;
  return asking->write_result(result);
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
