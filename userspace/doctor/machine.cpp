// Probes of the machine itself: clocks, capabilities, membarrier, io_uring, the pin directory.
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <bpf/bpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/membarrier.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "userspace/base/cgroup2.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/dataplane/object.hpp"
#include "userspace/doctor/probes.hpp"

namespace holdfast::doctor {
namespace {

// In a time namespace with an offset we would read other deadlines than the kernel's.
void probe_clock(std::vector<Finding>& findings) {
  Finding finding{"true boot clock",
                  Verdict::enforced,
                  "CLOCK_BOOTTIME reads as the kernel reads it",
                  {},
                  true};
  std::ifstream offsets("/proc/self/timens_offsets");
  std::string clock;
  int64_t seconds = 0;
  int64_t ns = 0;
  while (offsets >> clock >> seconds >> ns) {
    if (seconds == 0 && ns == 0) continue;
    finding.verdict = Verdict::refused;
    finding.detail = fmt::format(
        "a time namespace shifts the {} clock by {} s, and BPF programs do not see that", clock,
        seconds);
    finding.next_step = "run holdfastd outside of time namespaces";
  }
  findings.push_back(std::move(finding));
}

void probe_capabilities(std::vector<Finding>& findings) {
  Finding finding{"capabilities", Verdict::enforced, {}, {}, true};
  constexpr std::array<std::pair<unsigned, std::string_view>, 4> needed{
      {{CAP_BPF, "CAP_BPF"},
       {CAP_NET_ADMIN, "CAP_NET_ADMIN"},
       {CAP_PERFMON, "CAP_PERFMON"},
       {CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}}};
  __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> sets{};
  if (::syscall(SYS_capget, &head, sets.data()) != 0) {
    findings.push_back(failed("capabilities", true, errno, "reading them"));
    return;
  }
  std::string missing;
  for (const auto& [number, name] : needed) {
    if ((sets[number / 32].effective >> number % 32 & 1) == 0)
      missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  if (missing.empty()) {
    finding.detail = "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN";
  } else {
    const bool root = ::geteuid() == 0;
    finding.verdict = root ? Verdict::refused : Verdict::unknown;
    finding.detail = "without " + missing;
    finding.next_step =
        root ? "in a container, add them (--cap-add); or run on the machine itself" : "try as root";
  }
  findings.push_back(std::move(finding));
}

// What a change of policy waits for before it writes to tables that packets may still read.
void probe_membarrier(std::vector<Finding>& findings) {
  const uint64_t begin_ns = boot_now_ns();
  if (::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) != 0) {
    findings.push_back(failed("grace periods", true, errno, "membarrier(MEMBARRIER_CMD_GLOBAL)",
                              Verdict::refused,
                              "it is missing with nohz_full CPUs, and where seccomp forbids it"));
    return;
  }
  findings.push_back({"grace periods",
                      Verdict::enforced,
                      fmt::format("membarrier took {}", human_duration(boot_now_ns() - begin_ns)),
                      {},
                      true});
}

void probe_io_uring(std::vector<Finding>& findings) {
  io_uring_params params{};
  const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 2, &params)));
  const int sys = errno;
  if (ring) {
    findings.push_back(
        {"io_uring", Verdict::enforced, "usable; holdfastd does not depend on it", {}, false});
    return;
  }
  int disabled = 0;
  std::ifstream("/proc/sys/kernel/io_uring_disabled") >> disabled;
  std::string why = with_errno("seccomp or the kernel forbids it", sys);
  if (sys == ENOSYS) why = "this kernel, or a seccomp filter, has none";
  if (disabled != 0) why = fmt::format("disabled by sysctl kernel.io_uring_disabled={}", disabled);
  findings.push_back({"io_uring", Verdict::fallback, why + "; the daemon uses epoll", {}, false});
}

// Whether tokens and leases can be made out to workloads: a socket of our own tells it.
void probe_peer_cgroups(std::vector<Finding>& findings) {
  Finding finding{"holders by cgroup",
                  Verdict::enforced,
                  "who connects is known by its process, and so by its cgroup",
                  {},
                  false};
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0) {
    const UniqueFd one(pair[0]), other(pair[1]);
    if (const Result<std::vector<uint64_t>> ids = cgroups_of_peer(one.get()); !ids)
      finding = {finding.feature, Verdict::refused, ids.error().message, ids.error().next_step,
                 false};
  }
  findings.push_back(std::move(finding));
}

void probe_jit(std::vector<Finding>& findings) {
  int enabled = 1;
  std::ifstream("/proc/sys/net/core/bpf_jit_enable") >> enabled;
  if (enabled != 0) return;
  findings.push_back({"BPF compiler", Verdict::fallback,
                      "programs are interpreted: right, but several times slower",
                      "sysctl net.core.bpf_jit_enable=1", false});
}

}  // namespace

void probe_machine(std::vector<Finding>& findings) {
  probe_clock(findings);
  probe_capabilities(findings);
  probe_membarrier(findings);
  probe_io_uring(findings);
  probe_peer_cgroups(findings);
  probe_jit(findings);
}

void probe_pin_dir(const std::string& pin_dir, std::vector<Finding>& findings) {
  Finding finding{"BPF file system", Verdict::enforced, {}, {}, true};
  if (const Status ok = check_pin_dir(pin_dir); !ok) {
    const Error& error = ok.error();
    findings.push_back({finding.feature, Verdict::refused,
                        error.sys != 0 ? with_errno(error.message, error.sys) : error.message,
                        error.next_step, true});
    return;
  }
  const std::string parent = std::filesystem::path(pin_dir).parent_path().string();
  const std::string path = fmt::format("{}/holdfast-doctor-{}", parent, ::getpid());
  const UniqueFd map(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "hf_doctor", 4, 8, 1, nullptr));
  if (!map) {
    findings.push_back(failed(finding.feature, true, errno, "making a map to pin"));
    return;
  }
  if (const int err = ::bpf_obj_pin(map.get(), path.c_str()); err != 0) {
    findings.push_back(failed(finding.feature, true, err, "pinning " + path));
    return;
  }
  const UniqueFd again(::bpf_obj_get(path.c_str()));
  const int sys = errno;
  ::unlink(path.c_str());
  if (!again) {
    findings.push_back(failed(finding.feature, true, sys, "reading back " + path));
    return;
  }
  // check_pin_dir() compares with what the first process sees, if that may be looked at.
  const std::string of_init = "/proc/1/root" + parent;
  finding.detail =
      ::access(of_init.c_str(), F_OK) == 0
          ? parent + " is shared by the whole machine, and holds pins"
          : fmt::format("{} holds pins; whether the whole machine shares it cannot be seen: {}",
                        parent, with_errno(of_init, errno));
  findings.push_back(std::move(finding));
}

}  // namespace holdfast::doctor
