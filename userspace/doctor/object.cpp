// Probes of the real BPF object: it loads, its maps do what the daemon needs of them, its programs
// can be asked, and its events arrive.
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdarg>
#include <cstring>
#include <map>
#include <string>
#include <string_view>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bpf/abi.h"
#include "holdfast.skel.h"
#include "policy/address.hpp"
#include "userspace/base/sized.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/dataplane/probe.hpp"
#include "userspace/doctor/probes.hpp"

namespace holdfast::doctor {
namespace {

constexpr uint32_t slots_small = 64;  // of the daemon's 65536

// What libbpf and the verifier say while loading; the last line that names a failure is shown.
std::string& libbpf_words() {
  static std::string words;
  return words;
}

int collect_libbpf(libbpf_print_level level, const char* format, va_list arguments) {
  if (level != LIBBPF_WARN) return 0;
  std::array<char, 512> line{};
  const int length = std::vsnprintf(line.data(), line.size(), format, arguments);
  std::string text(line.data());
  text = text.substr(0, text.find('\n'));
  if (libbpf_words().empty()) libbpf_words() = text;
  return length;
}

// Of the verifier's log: its closing statistics (BPF_LOG_STATS of the kernel's bpf_verifier.h),
//   verification time 9021 usec
//   stack depth 312+176+0     the program's own, and those of its global functions
//   processed 5120 insns (limit 1000000) max_states_per_insn 4 ...
constexpr uint32_t log_statistics = 4;

uint64_t number_after(std::string_view log, std::string_view words) {
  const size_t at = log.find(words);
  uint64_t number = 0;
  if (at != std::string_view::npos)
    std::from_chars(log.data() + at + words.size(), log.data() + log.size(), number);
  return number;
}

uint64_t sum_after(std::string_view log, std::string_view words) {
  uint64_t sum = number_after(log, words);
  log.remove_prefix(std::min(log.size(), log.find(words)));
  log = log.substr(0, log.find('\n'));
  for (size_t plus = log.find('+'); plus != std::string_view::npos; plus = log.find('+')) {
    log.remove_prefix(plus);
    sum += number_after(log, "+");
    log.remove_prefix(1);
  }
  return sum;
}

Finding need_object(std::string feature) {
  return {std::move(feature), Verdict::unknown, "the programs did not load", {}, true};
}

void probe_mmap(holdfast_bpf& bpf, std::vector<Finding>& findings) {
  const std::string feature = "shared lease slots";
  const int fd = ::bpf_map__fd(bpf.maps.slots);
  constexpr size_t bytes = slots_small * sizeof(abi::lease_slot);
  void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) {
    findings.push_back(failed(feature, true, errno, "mapping the slots into memory"));
    return;
  }
  auto* slots = static_cast<volatile abi::lease_slot*>(mapped);
  constexpr uint64_t mark = 0x5afe5afe5afe;
  constexpr uint32_t at = slots_small - 1;
  slots[at].gate = mark;
  abi::lease_slot seen{};
  const bool read = ::bpf_map_lookup_elem(fd, &at, &seen) == 0 && seen.gate == mark;
  slots[at].gate = 0;
  ::munmap(mapped, bytes);
  findings.push_back(
      {feature,
       read ? Verdict::enforced : Verdict::refused,
       read ? "a store from here is what the programs read" : "a store from here is not seen",
       {},
       true});
}

void probe_inner_maps(holdfast_bpf& bpf, std::vector<Finding>& findings) {
  const std::string feature = "policy tables of any size";
  auto options = sized<bpf_map_create_opts>();
  options.map_flags = BPF_F_INNER_MAP | BPF_F_MMAPABLE;
  constexpr uint32_t lines = 7;  // other than the one of the template
  const UniqueFd inner(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "hf_doctor", 4,
                                        sizeof(abi::endpoint_line), lines, &options));
  if (!inner) {
    findings.push_back(failed(feature, true, errno, "making an inner map (BPF_F_INNER_MAP)"));
    return;
  }
  const int outer = ::bpf_map__fd(bpf.maps.policy_endpoints);
  const uint32_t bank = 0;
  const int value = inner.get();
  if (const int err = ::bpf_map_update_elem(outer, &bank, &value, BPF_ANY); err != 0) {
    findings.push_back(failed(feature, true, err, "publishing an inner map of another size"));
    return;
  }
  ::bpf_map_delete_elem(outer, &bank);
  findings.push_back(
      {feature, Verdict::enforced, "a table is published whole, by one store", {}, true});
}

std::vector<uint8_t> test_frame() {
  ProbePacket packet;
  // 192.0.2.0/24 is nobody's (RFC 5737).
  packet.source = *parse_address("192.0.2.1");
  packet.destination = *parse_address("192.0.2.2");
  packet.source_port = 40000;
  packet.destination_port = 443;
  return build_frame(packet);
}

void probe_test_run(holdfast_bpf& bpf, std::vector<Finding>& findings) {
  const std::string feature = "asking the programs";
  std::vector<uint8_t> frame = test_frame();
  std::vector<uint8_t> answer(frame.size() + 256);
  auto options = sized<bpf_test_run_opts>();
  options.data_in = frame.data();
  options.data_out = answer.data();
  options.data_size_in = static_cast<uint32_t>(frame.size());
  options.data_size_out = static_cast<uint32_t>(answer.size());
  options.repeat = 1;
  __sk_buff context{};
  context.mark = abi::HF_FROM_UPLINK;
  options.ctx_in = &context;
  options.ctx_size_in = sizeof(context);
  if (const int err = ::bpf_prog_test_run_opts(::bpf_program__fd(bpf.progs.explain), &options);
      err != 0) {
    findings.push_back(failed(feature, true, err, "BPF_PROG_TEST_RUN", Verdict::refused,
                              "explain, and the proof that a lease is torn down, need it"));
    return;
  }
  abi::verdict verdict{};
  std::memcpy(&verdict, answer.data(), sizeof(verdict));
  const bool right = verdict.reason == abi::HF_REASON_not_ours;
  findings.push_back({feature,
                      right ? Verdict::enforced : Verdict::refused,
                      right ? "BPF_PROG_TEST_RUN gives the verdict on a made-up packet"
                            : fmt::format("BPF_PROG_TEST_RUN gave reason {}", verdict.reason),
                      {},
                      true});
}

int on_event(void* seen, void*, size_t) {
  *static_cast<bool*>(seen) = true;
  return 0;
}

void probe_events(holdfast_bpf& bpf, std::vector<Finding>& findings) {
  const std::string feature = "drop events";
  bool seen = false;
  ring_buffer* ring =
      ::ring_buffer__new(::bpf_map__fd(bpf.maps.drop_events), on_event, &seen, nullptr);
  if (ring == nullptr) {
    findings.push_back(failed(feature, true, errno, "reading the ring buffer"));
    return;
  }
  // The gate drops what comes from an interface that is nobody's port.
  std::vector<uint8_t> frame = test_frame();
  auto options = sized<bpf_test_run_opts>();
  options.data_in = frame.data();
  options.data_size_in = static_cast<uint32_t>(frame.size());
  options.repeat = 1;
  const int err = ::bpf_prog_test_run_opts(::bpf_program__fd(bpf.progs.from_tenant), &options);
  ::ring_buffer__consume(ring);
  ::ring_buffer__free(ring);
  if (err != 0) {
    findings.push_back(failed(feature, true, err, "running the gate on a packet"));
    return;
  }
  findings.push_back({feature,
                      seen ? Verdict::enforced : Verdict::refused,
                      seen ? "a dropped packet was told of through the ring buffer"
                           : "a dropped packet was not told of through the ring buffer",
                      {},
                      true});
}

void probe_suspend(holdfast_bpf& bpf, std::vector<Finding>& findings) {
  const std::string feature = "suspend and resume";
  const UniqueFd link(
      ::bpf_raw_tracepoint_open("suspend_resume", ::bpf_program__fd(bpf.progs.clock_leap)));
  if (link) {
    findings.push_back(
        {feature, Verdict::enforced, "cached clock readings are void after resume", {}, true});
  } else if (errno == ENOENT && ::access("/sys/power/state", F_OK) != 0) {
    findings.push_back({feature,
                        Verdict::enforced,
                        "this kernel cannot suspend, so its clock never leaps",
                        {},
                        true});
  } else {
    findings.push_back(failed(feature, true, errno, "attaching to the suspend_resume tracepoint"));
  }
}

}  // namespace

void ProbeObject::Destroy::operator()(holdfast_bpf* loaded) const {
  holdfast_bpf__destroy(loaded);
}

ProbeObject load_object(std::vector<Finding>& findings, std::vector<Program>& programs) {
  const std::string feature = "BPF programs";
  ::libbpf_set_print(collect_libbpf);
  ProbeObject object;
  object.skeleton.reset(holdfast_bpf__open());
  if (!object.skeleton) {
    findings.push_back(failed(feature, true, errno, "opening the embedded object"));
    return object;
  }
  ::bpf_map__set_max_entries(object.skeleton->maps.slots, slots_small);
  ::bpf_map__set_max_entries(object.skeleton->maps.records, slots_small);
  std::map<const bpf_program*, std::array<char, 4096>> logs;
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, object.skeleton->obj) {
    std::array<char, 4096>& log = logs[program];
    ::bpf_program__set_log_level(program, log_statistics);
    ::bpf_program__set_log_buf(program, log.data(), log.size());
  }
  if (const int err = holdfast_bpf__load(object.skeleton.get()); err != 0) {
    object.skeleton.reset();
    // Of a missing capability libbpf only guesses the cause.
    const bool say_why = !libbpf_words().empty() && err != -EPERM;
    findings.push_back(failed(feature, true, err, say_why ? libbpf_words() : "loading them"));
    return object;
  }
  uint64_t most = 0;
  bpf_object__for_each_program(program, object.skeleton->obj) {
    const std::string_view log = logs[program].data();
    programs.push_back({.name = ::bpf_program__name(program),
                        .instructions = number_after(log, "processed "),
                        .stack_bytes = sum_after(log, "stack depth "),
                        .load_us = number_after(log, "verification time ")});
    most = std::max(most, programs.back().instructions);
  }
  findings.push_back({feature,
                      Verdict::enforced,
                      fmt::format("the verifier took all {} of ours, following {} instructions at "
                                  "most",
                                  programs.size(), most),
                      {},
                      true});
  return object;
}

void probe_object(const ProbeObject& object, std::vector<Finding>& findings) {
  if (!object.skeleton) {
    for (const char* feature : {"shared lease slots", "policy tables of any size",
                                "asking the programs", "drop events", "suspend and resume"})
      findings.push_back(need_object(feature));
    return;
  }
  holdfast_bpf& bpf = *object.skeleton;
  probe_mmap(bpf, findings);
  probe_inner_maps(bpf, findings);
  probe_test_run(bpf, findings);
  probe_events(bpf, findings);
  probe_suspend(bpf, findings);
}

}  // namespace holdfast::doctor
