// Probes of what later guards workloads and devices: cgroup programs and BPF LSM. Both deny
// something to a child of ours, and the child says whether it was denied.
#include <array>
#include <cerrno>
#include <fstream>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "userspace/base/cgroup2.hpp"
#include "userspace/base/sized.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/doctor/probes.hpp"

namespace holdfast {

namespace doctor {
namespace {

constexpr std::string_view device_feature = "device opens by cgroup";
constexpr std::string_view connect_feature = "connections by cgroup";
constexpr std::string_view lsm_feature = "BPF LSM";

bpf_insn instruction(uint8_t code, uint8_t destination, uint8_t source, int16_t offset,
                     int32_t immediate) {
  bpf_insn out{};
  out.code = code;
  out.dst_reg = destination & 0xf;
  out.src_reg = source & 0xf;
  out.off = offset;
  out.imm = immediate;
  return out;
}

bpf_insn set_result(int32_t value) {
  return instruction(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, value);
}
bpf_insn leave() {
  return instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

// A program that denies everything to the cgroup it is attached to.
UniqueFd load_denial(bpf_prog_type type, bpf_attach_type attach) {
  const std::array<bpf_insn, 2> code{set_result(0), leave()};
  auto options = sized<bpf_prog_load_opts>();
  options.expected_attach_type = attach;
  return UniqueFd(::bpf_prog_load(type, "hf_doctor", "GPL", code.data(), code.size(), &options));
}

bool device_is_denied() {
  const UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  return !fd && errno == EPERM;
}

bool connect_is_denied() {
  const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(9);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0 &&
         errno == EPERM;
}

// In the child, which is in the cgroup.
void probe_denial(int cgroup, std::string_view feature, bpf_prog_type type, bpf_attach_type attach,
                  bool (*is_denied)(), std::vector<Finding>& findings) {
  const std::string name(feature);
  const UniqueFd program = load_denial(type, attach);
  if (!program) {
    findings.push_back(failed(name, false, errno, "loading a program"));
    return;
  }
  const bool before = is_denied();
  const UniqueFd link(::bpf_link_create(program.get(), cgroup, attach, nullptr));
  if (!link) {
    findings.push_back(failed(name, false, errno, "attaching a program to a cgroup"));
    return;
  }
  const bool denied = !before && is_denied();
  findings.push_back({name,
                      denied ? Verdict::enforced : Verdict::refused,
                      denied   ? "a process in a cgroup was denied"
                      : before ? "something else denies it already"
                               : "the program was attached, and denied nothing",
                      {},
                      false});
}

}  // namespace

void probe_cgroups(std::vector<Finding>& findings) {
  const auto both = [&](Verdict verdict, const std::string& detail, const std::string& next_step) {
    for (const std::string_view feature : {device_feature, connect_feature})
      findings.push_back({std::string(feature), verdict, detail, next_step, false});
  };
  const std::string mount = cgroup2_mount();
  if (mount.empty())
    return both(Verdict::refused, "cgroup v2 is not mounted",
                "mount -t cgroup2 none /sys/fs/cgroup");
  const std::string path = fmt::format("{}/holdfast-doctor-{}", mount, ::getpid());
  if (::mkdir(path.c_str(), 0700) != 0) {
    const Finding row =
        failed("", false, errno, "making " + path, Verdict::unknown,
               "try on the machine itself: this cgroup tree cannot be changed from here");
    return both(row.verdict, row.detail, row.next_step);
  }
  const Finding lost{std::string(connect_feature), Verdict::unknown, {}, {}, false};
  in_child(findings, lost, [&](std::vector<Finding>& found) {
    std::ofstream procs(path + "/cgroup.procs");
    procs << "0" << std::flush;
    const UniqueFd cgroup(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!procs || !cgroup) {
      for (const std::string_view feature : {device_feature, connect_feature})
        found.push_back(
            failed(std::string(feature), false, errno, "entering " + path, Verdict::unknown));
      return;
    }
    probe_denial(cgroup.get(), device_feature, BPF_PROG_TYPE_CGROUP_DEVICE, BPF_CGROUP_DEVICE,
                 device_is_denied, found);
    probe_denial(cgroup.get(), connect_feature, BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
                 BPF_CGROUP_INET4_CONNECT, connect_is_denied, found);
  });
  // A cgroup is empty a moment after its last process was reaped.
  for (int attempt = 0; ::rmdir(path.c_str()) != 0 && errno == EBUSY && attempt < 100; ++attempt)
    ::usleep(10'000);
}

void probe_lsm(std::vector<Finding>& findings) {
  const std::string name(lsm_feature);
  if (::access("/sys/kernel/btf/vmlinux", R_OK) != 0) {
    findings.push_back(
        {name, Verdict::refused, "the kernel offers no BTF, which LSM programs need", {}, false});
    return;
  }
  const Finding lost{name, Verdict::unknown, {}, {}, false};
  in_child(findings, lost, [&](std::vector<Finding>& found) {
    const int hook = ::libbpf_find_vmlinux_btf_id("file_open", BPF_LSM_MAC);
    if (hook <= 0) {
      found.push_back(failed(name, false, hook, "finding the hook file_open"));
      return;
    }
    // Denies every open of this process, and of no other.
    constexpr int skip_two = 2;
    const std::array<bpf_insn, 7> code{
        instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_get_current_pid_tgid),
        instruction(BPF_ALU64 | BPF_RSH | BPF_K, BPF_REG_0, 0, 0, 32),
        instruction(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_0, 0, skip_two, ::getpid()),
        set_result(-EPERM),
        leave(),
        set_result(0),
        leave()};
    auto options = sized<bpf_prog_load_opts>();
    options.expected_attach_type = BPF_LSM_MAC;
    options.attach_btf_id = static_cast<uint32_t>(hook);
    const UniqueFd program(
        ::bpf_prog_load(BPF_PROG_TYPE_LSM, "hf_doctor", "GPL", code.data(), code.size(), &options));
    if (!program) {
      found.push_back(failed(name, false, errno, "loading an LSM program"));
      return;
    }
    const UniqueFd link(::bpf_raw_tracepoint_open(nullptr, program.get()));
    if (!link) {
      found.push_back(failed(name, false, errno, "attaching an LSM program"));
      return;
    }
    const bool denied = device_is_denied();
    found.push_back(
        {name, denied ? Verdict::enforced : Verdict::refused,
         denied ? "an open was denied" : "the program was attached, and denied nothing",
         denied ? "" : "boot with bpf in the list of the kernel parameter lsm=", false});
  });
}

}  // namespace doctor
}  // namespace holdfast
