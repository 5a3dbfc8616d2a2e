#include "userspace/dataplane/object.hpp"

#include <cerrno>
#include <cstdarg>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <openssl/sha.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include "bpf/abi.h"
#include "holdfast.skel.h"
#include "policy/endpoint_table.hpp"
#include "userspace/base/log.hpp"

namespace holdfast {
namespace {

constexpr std::string_view mount_advice = "mount it: mount -t bpf bpf /sys/fs/bpf";

// libbpf prints to stderr by itself; its warnings go to our log, where they are limited and
// structured.
int log_libbpf(libbpf_print_level level, const char* format, va_list arguments) {
  if (level == LIBBPF_DEBUG) return 0;
  char line[1024];
  const int length = std::vsnprintf(line, sizeof(line), format, arguments);
  std::string_view text(
      line, std::min<size_t>(static_cast<size_t>(std::max(length, 0)), sizeof(line) - 1));
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  log::debug("libbpf", {{"message", text}});
  return length;
}

Status make_directory(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST)
    return fail_sys(errno, "pin_dir", "creating " + path);
  return {};
}

std::string read_link(const char* path) {
  std::error_code error;
  return std::filesystem::read_symlink(path, error).string();
}

// Is `directory` on a mount that only this mount namespace sees? A service manager's namespace is
// one of its own too, but its mounts are slaves of the machine's. The kernel's first thread lives
// in the machine's namespace; where it may not be asked (no CAP_SYS_PTRACE, or a container), the
// answer is no.
bool is_private_mount(const std::string& directory) {
  std::ifstream comm("/proc/2/comm");
  std::string name;
  std::getline(comm, name);
  const std::string machine = name == "kthreadd" ? read_link("/proc/2/ns/mnt") : "";
  if (machine.empty() || machine == read_link("/proc/self/ns/mnt")) return false;
  // proc(5): the mount point is the fifth field; optional fields from the seventh on tell of
  // propagation. The longest mount point that `directory` is below is its own, the last one where
  // they are stacked.
  std::ifstream mounts("/proc/self/mountinfo");
  bool is_private = false;
  size_t longest = 0;
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string skipped, point;
    fields >> skipped >> skipped >> skipped >> skipped >> point;
    const bool holds = directory == point || point == "/" || directory.starts_with(point + "/");
    if (!holds || point.size() < longest) continue;
    longest = point.size();
    is_private =
        line.find(" shared:") == std::string::npos && line.find(" master:") == std::string::npos;
  }
  return is_private;
}

Status refuse_other_versions(const std::string& pin_dir) {
  std::error_code ignored;
  const std::string ours = fmt::format("v{}", static_cast<int>(abi::HF_ABI_VERSION));
  for (const auto& entry : std::filesystem::directory_iterator(pin_dir, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name != ours && name.size() > 1 && name[0] == 'v')
      return fail(
          ErrorKind::conflict, "abi_mismatch",
          fmt::format("{}/{} holds the pins of another ABI version than {}", pin_dir, name, ours),
          "end its leases with that version, then `holdfast node detach`");
  }
  return {};
}

// The sizes of maps that are pinned already stay what they are.
Result<uint32_t> pinned_entries(const std::string& path) {
  const UniqueFd fd(::bpf_obj_get(path.c_str()));
  if (!fd) return 0U;
  bpf_map_info info{};
  uint32_t length = sizeof(info);
  if (const int err = ::bpf_obj_get_info_by_fd(fd.get(), &info, &length); err != 0)
    return fail_sys(-err, "map_info", "reading " + path);
  return info.max_entries;
}

}  // namespace

Status pin_over(int fd, const std::string& path) {
  const std::string successor = path + "_new";  // bpffs refuses dots
  ::unlink(successor.c_str());
  if (const int err = ::bpf_obj_pin(fd, successor.c_str()); err != 0)
    return fail_sys(-err, "pin", "pinning " + successor);
  if (::rename(successor.c_str(), path.c_str()) != 0)
    return fail_sys(errno, "pin", "renaming " + successor + " to " + path);
  return {};
}

std::string pin_root(std::string_view pin_dir) {
  return fmt::format("{}/v{}", pin_dir, static_cast<int>(abi::HF_ABI_VERSION));
}

Status check_pin_dir(const std::string& pin_dir) {
  const std::string parent = std::filesystem::path(pin_dir).parent_path().string();
  struct statfs fs{};
  if (::statfs(parent.c_str(), &fs) != 0)
    return fail_sys(errno, "pin_dir", parent, std::string(mount_advice));
  if (static_cast<unsigned long>(fs.f_type) != BPF_FS_MAGIC)
    return fail(ErrorKind::unavailable, "bpffs_not_mounted", parent + " is not a BPF file system",
                std::string(mount_advice));
  if (!is_private_mount(parent)) return {};
  return fail(
      ErrorKind::unavailable, "bpffs_private",
      parent +
          " is a BPF file system of this mount namespace alone: its pins, and with them "
          "enforcement, would vanish with it",
      "start holdfastd in the machine's mount namespace (nsenter --net=, not ip netns exec)");
}

Result<KernelObject> KernelObject::load(const KernelObjectOptions& options) {
  ::libbpf_set_print(log_libbpf);
  if (Status ok = check_pin_dir(options.pin_dir); !ok) return pass_on(ok);
  if (Status ok = make_directory(options.pin_dir, 0700); !ok) return pass_on(ok);
  if (Status ok = refuse_other_versions(options.pin_dir); !ok) return pass_on(ok);

  KernelObject object;
  object.root_ = pin_root(options.pin_dir);
  for (const char* part : {"", "/maps", "/programs", "/links"})
    if (Status ok = make_directory(object.root_ + part, 0700); !ok) return pass_on(ok);

  object.lock_.reset(::open(object.root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!object.lock_ || ::flock(object.lock_.get(), LOCK_EX | LOCK_NB) != 0)
    return fail(ErrorKind::conflict, "already_running",
                fmt::format("another holdfastd enforces with the pins under {}", object.root_),
                "stop it first, or give each its own --pin-dir, --table and --state-dir");
  object.skeleton_.reset(holdfast_bpf__open());
  if (!object.skeleton_) return fail_sys(errno, "bpf_open", "opening the embedded BPF object");
  bpf_object* bpf = object.skeleton_->obj;

  Result<uint32_t> entries = pinned_entries(object.root_ + "/maps/slots");
  if (!entries) return pass_on(entries);
  object.adopted_ = *entries != 0;
  const uint32_t leases_max = object.adopted_ ? *entries : options.leases_max;
  if (object.adopted_ && *entries != options.leases_max)
    log::warning("leases_max_kept",
                 {{"pinned", *entries},
                  {"asked", options.leases_max},
                  {"next_step", "the size changes only after `holdfast node detach`"}});
  ::bpf_map__set_max_entries(object.skeleton_->maps.slots, leases_max);
  ::bpf_map__set_max_entries(object.skeleton_->maps.records, leases_max);
  ::bpf_map__set_max_entries(object.skeleton_->maps.endpoint_filter, 2 * filter_words(leases_max));

  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, bpf) {
    if (::bpf_map__is_internal(map)) continue;  // constants of this build's programs
    const std::string path = fmt::format("{}/maps/{}", object.root_, ::bpf_map__name(map));
    if (const int err = ::bpf_map__set_pin_path(map, path.c_str()); err != 0)
      return fail_sys(-err, "pin", path);
  }
  if (const int err = holdfast_bpf__load(object.skeleton_.get()); err != 0) {
    if (err == -EPERM)
      return fail_sys(
          -err, "bpf_load", "loading the BPF programs",
          "run holdfastd as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN");
    return fail_sys(-err, "bpf_load", "loading the BPF programs",
                    "run `holdfast doctor`; --log-level debug shows the verifier's words");
  }
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, bpf) {
    const std::string path =
        fmt::format("{}/programs/{}", object.root_, ::bpf_program__name(program));
    if (Status ok = pin_over(::bpf_program__fd(program), path); !ok) return pass_on(ok);
  }
  return object;
}

KernelObject::KernelObject(KernelObject&&) noexcept = default;
KernelObject& KernelObject::operator=(KernelObject&&) noexcept = default;
KernelObject::~KernelObject() = default;

void KernelObject::Destroy::operator()(holdfast_bpf* skeleton) const {
  holdfast_bpf__destroy(skeleton);
}

std::string kernel_object_digest() {
  size_t size = 0;
  const auto* bytes = static_cast<const unsigned char*>(holdfast_bpf__elf_bytes(&size));
  unsigned char digest[SHA256_DIGEST_LENGTH];
  ::SHA256(bytes, size, digest);
  std::string hex;
  for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace holdfast
