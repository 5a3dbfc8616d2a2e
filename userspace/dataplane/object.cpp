#include "userspace/dataplane/object.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
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
#include <unistd.h>

#include "bpf/abi.h"
#include "holdfast.skel.h"
#include "policy/endpoint_table.hpp"
#include "userspace/base/check.hpp"
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

std::string map_path(const std::string& root, const bpf_map* map) {
  return fmt::format("{}/maps/{}", root, ::bpf_map__name(map));
}

std::string program_path(const std::string& root, const bpf_program* program) {
  return fmt::format("{}/programs/{}", root, ::bpf_program__name(program));
}

using Digest = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

Digest embedded_digest() {
  size_t size = 0;
  const auto* bytes = static_cast<const unsigned char*>(holdfast_bpf__elf_bytes(&size));
  Digest digest;
  ::SHA256(bytes, size, digest.data());
  return digest;
}

// Nobody else can have put anything into this directory.
bool is_only_ours(const std::string& directory) {
  struct stat status{};
  return ::stat(directory.c_str(), &status) == 0 && status.st_uid == ::geteuid() &&
         (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

std::optional<bpf_map_info> info_of_map(int fd) {
  bpf_map_info info{};
  uint32_t length = sizeof(info);
  if (::bpf_obj_get_info_by_fd(fd, &info, &length) != 0) return std::nullopt;
  return info;
}

bool is_digest_pinned(const std::string& root) {
  const UniqueFd fd(::bpf_obj_get((root + "/digest").c_str()));
  if (!fd) return false;
  const std::optional<bpf_map_info> info = info_of_map(fd.get());
  Digest pinned;
  const uint32_t zero = 0;
  return info && info->type == BPF_MAP_TYPE_ARRAY && info->value_size == sizeof(pinned) &&
         ::bpf_map_lookup_elem(fd.get(), &zero, pinned.data()) == 0 && pinned == embedded_digest();
}

// Is the program pinned there, and does it use no other maps than these, but for its own constants?
bool is_over_maps(const std::string& path, const std::set<uint32_t>& maps) {
  const UniqueFd fd(::bpf_obj_get(path.c_str()));
  if (!fd) return false;
  std::array<uint32_t, 64> used{};  // BPF_MAX_USED_MAPS
  bpf_prog_info info{};
  info.map_ids = reinterpret_cast<uint64_t>(used.data());
  info.nr_map_ids = used.size();
  uint32_t length = sizeof(info);
  if (::bpf_obj_get_info_by_fd(fd.get(), &info, &length) != 0) return false;
  if (info.nr_map_ids > used.size()) return false;
  return std::all_of(used.begin(), used.begin() + info.nr_map_ids, [&](uint32_t id) {
    if (maps.contains(id)) return true;
    const UniqueFd map(::bpf_map_get_fd_by_id(id));
    const std::optional<bpf_map_info> other = info_of_map(map.get());
    return other && std::string_view(other->name).find(".rodata") != std::string_view::npos;
  });
}

// Do the pins hold every program of this very object, over the maps that are pinned beside them? A
// map that somebody removed is made anew, and programs over the old one would never see it.
bool are_programs_of(const bpf_object* object, const std::string& root) {
  if (!is_digest_pinned(root)) return false;
  std::set<uint32_t> maps;
  const bpf_map* map = nullptr;
  bpf_object__for_each_map(map, object) {
    if (::bpf_map__is_internal(map)) continue;
    const UniqueFd fd(::bpf_obj_get(map_path(root, map).c_str()));
    const std::optional<bpf_map_info> info = info_of_map(fd.get());
    if (!info) return false;
    maps.insert(info->id);
  }
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, object) {
    if (!is_over_maps(program_path(root, program), maps)) return false;
  }
  return true;
}

// The name under which a successor is pinned before it is renamed over the pin. bpffs refuses dots.
std::string successor_of(const std::string& path) {
  return path + "_new";
}

}  // namespace

Status pin_over(int fd, const std::string& path) {
  const std::string successor = successor_of(path);
  ::unlink(successor.c_str());
  if (const int err = ::bpf_obj_pin(fd, successor.c_str()); err != 0)
    return fail_sys(-err, "pin", "pinning " + successor);
  if (::rename(successor.c_str(), path.c_str()) != 0)
    return fail_sys(errno, "pin", "renaming " + successor + " to " + path);
  return {};
}

void finish_pin_over(const std::string& path) {
  ::rename(successor_of(path).c_str(), path.c_str());  // mostly there is none
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

  if (Status ok = object.set_sizes_and_pins(options.leases_max); !ok) return pass_on(ok);
  const bool same = is_only_ours(options.pin_dir) && is_only_ours(object.root_) &&
                    are_programs_of(bpf, object.root_);
  if (same) {
    bpf_program* program = nullptr;
    bpf_object__for_each_program(program, bpf) {
      ::bpf_program__set_autoload(program, false);
    }
  }
  if (const int err = holdfast_bpf__load(object.skeleton_.get()); err != 0) {
    if (err == -EPERM)
      return fail_sys(
          -err, "bpf_load", "loading the BPF programs",
          "run holdfastd as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN");
    return fail_sys(-err, "bpf_load", "loading the BPF programs",
                    "run `holdfast doctor`; --log-level debug shows the verifier's words");
  }
  if (!same)
    if (Status ok = object.pin_programs(); !ok) return pass_on(ok);
  if (Status ok = object.open_programs(); !ok) return pass_on(ok);
  log::info("programs_ready", {{"reused", same ? "yes" : "no"}});
  return object;
}

Status KernelObject::set_sizes_and_pins(uint32_t wanted) {
  Result<uint32_t> entries = pinned_entries(root_ + "/maps/slots");
  if (!entries) return pass_on(entries);
  adopted_ = *entries != 0;
  const uint32_t leases_max = adopted_ ? *entries : wanted;
  if (leases_max != wanted)
    log::warning("leases_max_kept",
                 {{"pinned", leases_max},
                  {"asked", wanted},
                  {"next_step", "the size changes only after `holdfast node detach`"}});
  ::bpf_map__set_max_entries(skeleton_->maps.slots, leases_max);
  ::bpf_map__set_max_entries(skeleton_->maps.records, leases_max);
  ::bpf_map__set_max_entries(skeleton_->maps.endpoint_filter, 2 * filter_words(leases_max));

  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton_->obj) {
    if (::bpf_map__is_internal(map)) continue;  // constants of this build's programs
    const std::string path = map_path(root_, map);
    if (const int err = ::bpf_map__set_pin_path(map, path.c_str()); err != 0)
      return fail_sys(-err, "pin", path);
  }
  return {};
}

// The digest is away while the set of programs is not whole: a daemon killed in here leaves pins
// that the next one replaces.
Status KernelObject::pin_programs() const {
  const std::string digest_pin = root_ + "/digest";
  if (::unlink(digest_pin.c_str()) != 0 && errno != ENOENT)
    return fail_sys(errno, "unpin", "removing " + digest_pin);
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, skeleton_->obj) {
    if (Status ok = pin_over(::bpf_program__fd(program), program_path(root_, program)); !ok)
      return ok;
  }
  const UniqueFd map(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "hf_digest", sizeof(uint32_t),
                                      sizeof(Digest), 1, nullptr));
  if (!map) return fail_sys(errno, "pin", "creating the map of the digest");
  const uint32_t zero = 0;
  const Digest digest = embedded_digest();
  if (const int err = ::bpf_map_update_elem(map.get(), &zero, digest.data(), BPF_ANY); err != 0)
    return fail_sys(-err, "pin", "storing the digest");
  return pin_over(map.get(), digest_pin);
}

Status KernelObject::open_programs() {
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, skeleton_->obj) {
    const std::string path = program_path(root_, program);
    UniqueFd fd(::bpf_obj_get(path.c_str()));
    if (!fd) return fail_sys(errno, "pin", "opening " + path);
    programs_.emplace(::bpf_program__name(program), std::move(fd));
  }
  return {};
}

int KernelObject::program_fd(const bpf_program* program) const {
  const auto found = programs_.find(::bpf_program__name(program));
  CHECK(found != programs_.end());
  return found->second.get();
}

KernelObject::KernelObject(KernelObject&&) noexcept = default;
KernelObject& KernelObject::operator=(KernelObject&&) noexcept = default;
KernelObject::~KernelObject() = default;

void KernelObject::Destroy::operator()(holdfast_bpf* skeleton) const {
  holdfast_bpf__destroy(skeleton);
}

std::string kernel_object_digest() {
  std::string hex;
  for (const unsigned char byte : embedded_digest()) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace holdfast
