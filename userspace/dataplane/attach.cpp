#include "userspace/dataplane/attach.hpp"

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <optional>
#include <set>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <linux/if_link.h>
#include <unistd.h>

#include "bpf/abi.h"
#include "holdfast.skel.h"
#include "userspace/base/log.hpp"
#include "userspace/base/sized.hpp"
#include "userspace/dataplane/tc_filters.hpp"

namespace holdfast {
namespace {

// linux/bpf.h of Debian 12 ends before tcx: these are the kernel's own numbers since 6.6.
constexpr auto attach_tcx_ingress = static_cast<bpf_attach_type>(46);
constexpr auto attach_tcx_egress = static_cast<bpf_attach_type>(47);
constexpr uint32_t before_all = 1U << 3;  // BPF_F_BEFORE without a relative: first in order

// A clsact filter of ours has this place: before every filter that asks for a priority of its own.
constexpr uint32_t clsact_handle = 1;
constexpr uint32_t clsact_priority = 1;

struct ProgramInfo {
  uint32_t id = 0;
  std::string name;
  uint32_t loaded_by_uid = 0;
};

Result<ProgramInfo> program_info(int fd) {
  bpf_prog_info info{};
  uint32_t length = sizeof(info);
  if (const int err = ::bpf_obj_get_info_by_fd(fd, &info, &length); err != 0)
    return fail_sys(-err, "program_info", "reading a program's info");
  return ProgramInfo{info.id, info.name, info.created_by_uid};
}

std::string describe_program(uint32_t id) {
  const UniqueFd fd(::bpf_prog_get_fd_by_id(id));
  if (!fd) return fmt::format("program {}", id);
  const Result<ProgramInfo> info = program_info(fd.get());
  if (!info) return fmt::format("program {}", id);
  return fmt::format("program {} \"{}\" (loaded by uid {})", id, info->name, info->loaded_by_uid);
}

std::string program_name(uint32_t id) {
  const UniqueFd fd(::bpf_prog_get_fd_by_id(id));
  if (!fd) return {};
  const Result<ProgramInfo> info = program_info(fd.get());
  return info ? info->name : std::string();
}

// Ours by name: the kernel keeps 15 characters of it, as our sections name them.
bool is_ours(uint32_t id) {
  const std::string name = program_name(id);
  return name == "from_tenant" || name == "to_tenant" || name == "uplink_tc" ||
         name == "uplink_xdp";
}

// Programs at a tcx hook, in order. Empty where the kernel has no tcx.
std::vector<uint32_t> tcx_programs(uint32_t ifindex, bpf_attach_type type) {
  std::vector<uint32_t> ids(64);
  uint32_t count = static_cast<uint32_t>(ids.size());
  if (::bpf_prog_query(static_cast<int>(ifindex), type, 0, nullptr, ids.data(), &count) != 0)
    count = 0;
  ids.resize(count);
  return ids;
}

Result<bpf_link_info> link_info(int fd) {
  bpf_link_info info{};
  uint32_t length = sizeof(info);
  if (const int err = ::bpf_obj_get_info_by_fd(fd, &info, &length); err != 0)
    return fail_sys(-err, "link_info", "reading a link's info");
  return info;
}

// The interface a link is attached to; 0 if that is gone. XDP and tcx keep it in the same place.
Result<uint32_t> link_interface(int fd) {
  Result<bpf_link_info> info = link_info(fd);
  if (!info) return pass_on(info);
  return info->xdp.ifindex;
}

bpf_tc_hook clsact_hook(uint32_t ifindex, bool ingress) {
  auto hook = sized<bpf_tc_hook>();
  hook.ifindex = static_cast<int>(ifindex);
  hook.attach_point = ingress ? BPF_TC_INGRESS : BPF_TC_EGRESS;
  return hook;
}

// The program in our clsact place, if there is one.
std::optional<uint32_t> clsact_program(uint32_t ifindex, bool ingress) {
  bpf_tc_hook hook = clsact_hook(ifindex, ingress);
  auto opts = sized<bpf_tc_opts>();
  opts.handle = clsact_handle;
  opts.priority = clsact_priority;
  if (::bpf_tc_query(&hook, &opts) != 0) return std::nullopt;
  return opts.prog_id;
}

void remove_clsact(uint32_t ifindex, bool ingress) {
  const std::optional<uint32_t> there = clsact_program(ifindex, ingress);
  if (!there || !is_ours(*there)) return;
  bpf_tc_hook hook = clsact_hook(ifindex, ingress);
  auto opts = sized<bpf_tc_opts>();
  opts.handle = clsact_handle;
  opts.priority = clsact_priority;
  ::bpf_tc_detach(&hook, &opts);
}

std::string_view direction_name(bool ingress) {
  return ingress ? "ingress" : "egress";
}

}  // namespace

Attachments::Attachments(const KernelObject& object, TenantHook tenant_hook, UplinkHook uplink_hook)
    : links_(object.root() + "/links"),
      tenant_hook_(tenant_hook),
      uplink_hook_(uplink_hook),
      from_tenant_(object.program_fd(object->progs.from_tenant)),
      to_tenant_(object.program_fd(object->progs.to_tenant)),
      uplink_xdp_(object.program_fd(object->progs.uplink_xdp)),
      uplink_tc_(object.program_fd(object->progs.uplink_tc)),
      clock_leap_(object.program_fd(object->progs.clock_leap)) {}

std::string Attachments::link_path(std::string_view program, uint32_t ifindex) const {
  return fmt::format("{}/{}-{}", links_, program, ifindex);
}

Status Attachments::attach_tenant_port(const Interface& port) {
  // It may have been an uplink until now.
  if (const UniqueFd link(::bpf_obj_get(link_path("uplink_xdp", port.ifindex).c_str())); link) {
    ::bpf_link_detach(link.get());
    ::unlink(link_path("uplink_xdp", port.ifindex).c_str());
  }
  if (Status ok = verify_no_xdp(port); !ok) return ok;
  if (Status ok = attach_tc(port, true, from_tenant_, "from_tenant"); !ok) return ok;
  return attach_tc(port, false, to_tenant_, "to_tenant");
}

Status Attachments::attach_uplink(const Interface& uplink) {
  if (uplink_hook_ != UplinkHook::tc) {
    Status ok = attach_xdp(uplink);
    if (ok) {
      ::unlink(link_path("uplink_tc", uplink.ifindex).c_str());
      remove_clsact(uplink.ifindex, true);
      return {};
    }
    const bool no_native = ok.error().sys == EOPNOTSUPP || ok.error().sys == EINVAL;
    if (uplink_hook_ == UplinkHook::xdp || !no_native) return ok;
    log::notice(
        "uplink_without_native_xdp",
        {{"interface", uplink.name}, {"cause", ok.error().text()}, {"fallback", "tc ingress"}});
  }
  if (Status ok = attach_tc(uplink, true, uplink_tc_, "uplink_tc"); !ok) return ok;
  ::unlink(link_path("uplink_xdp", uplink.ifindex).c_str());
  return {};
}

Status Attachments::attach_tc(const Interface& at, bool ingress, int program_fd,
                              std::string_view program) {
  if (tenant_hook_ == TenantHook::automatic) {
    // The real attach is the probe: before 6.6 the attach type does not exist.
    Status ok = attach_tcx(at, ingress, program_fd, program);
    const bool no_tcx = !ok && ok.error().sys == EINVAL;
    tenant_hook_ = no_tcx ? TenantHook::clsact : TenantHook::tcx;
    if (!no_tcx) return ok;
    log::notice("no_tcx", {{"fallback", "clsact"}});
  }
  if (tenant_hook_ == TenantHook::tcx) {
    if (Status ok = attach_tcx(at, ingress, program_fd, program); !ok) return ok;
    remove_clsact(at.ifindex, ingress);
  } else {
    if (Status ok = attach_clsact(at, ingress, program_fd, program); !ok) return ok;
    ::unlink(link_path(program, at.ifindex).c_str());
  }
  return verify_tc(at, ingress, program_fd, program);
}

Status Attachments::attach_tcx(const Interface& at, bool ingress, int program_fd,
                               std::string_view program) {
  const std::string path = link_path(program, at.ifindex);
  if (const UniqueFd old(::bpf_obj_get(path.c_str())); old) {
    const Result<uint32_t> where = link_interface(old.get());
    if (where && *where == at.ifindex) {
      if (const int err = ::bpf_link_update(old.get(), program_fd, nullptr); err != 0)
        return fail_sys(-err, "link_update",
                        fmt::format("putting {} in place on {}", program, at.name));
      return {};
    }
    ::unlink(path.c_str());  // its interface is gone; the index was given to another
  }
  auto opts = sized<bpf_link_create_opts>();
  opts.flags = before_all;
  const UniqueFd link(::bpf_link_create(program_fd, static_cast<int>(at.ifindex),
                                        ingress ? attach_tcx_ingress : attach_tcx_egress, &opts));
  if (!link)
    return fail_sys(
        errno, "attach_tcx",
        fmt::format("attaching {} at tcx {} of {}", program, direction_name(ingress), at.name));
  if (const int err = ::bpf_obj_pin(link.get(), path.c_str()); err != 0)
    return fail_sys(-err, "pin", "pinning " + path);
  return {};
}

Status Attachments::attach_clsact(const Interface& at, bool ingress, int program_fd,
                                  std::string_view program) {
  bpf_tc_hook hook = clsact_hook(at.ifindex, ingress);
  if (const int err = ::bpf_tc_hook_create(&hook); err != 0 && err != -EEXIST)
    return fail_sys(-err, "attach_clsact", fmt::format("making the clsact qdisc of {}", at.name));
  const std::optional<uint32_t> there = clsact_program(at.ifindex, ingress);
  if (there && !is_ours(*there))
    return fail(ErrorKind::conflict, "foreign_program",
                fmt::format("{}: tc {} priority {} is taken by {}", at.name,
                            direction_name(ingress), clsact_priority, describe_program(*there)),
                "Holdfast must run first and replaces nobody's program: move that filter to a "
                "higher number");
  auto opts = sized<bpf_tc_opts>();
  opts.prog_fd = program_fd;
  opts.handle = clsact_handle;
  opts.priority = clsact_priority;
  opts.flags = there ? BPF_TC_F_REPLACE : 0;
  if (const int err = ::bpf_tc_attach(&hook, &opts); err != 0)
    return fail_sys(
        -err, "attach_clsact",
        fmt::format("attaching {} at tc {} of {}", program, direction_name(ingress), at.name));
  return {};
}

Status Attachments::attach_xdp(const Interface& at) {
  const std::string path = link_path("uplink_xdp", at.ifindex);
  if (const UniqueFd old(::bpf_obj_get(path.c_str())); old) {
    const Result<uint32_t> where = link_interface(old.get());
    if (where && *where == at.ifindex) {
      if (const int err = ::bpf_link_update(old.get(), uplink_xdp_, nullptr); err != 0)
        return fail_sys(-err, "link_update",
                        fmt::format("putting uplink_xdp in place on {}", at.name));
      return verify_uplink(at);
    }
    ::unlink(path.c_str());
  }
  uint32_t foreign = 0;
  if (::bpf_xdp_query_id(static_cast<int>(at.ifindex), 0, &foreign) == 0 && foreign != 0)
    return fail(
        ErrorKind::conflict, "foreign_program",
        fmt::format("uplink {} already runs XDP {}", at.name, describe_program(foreign)),
        "Holdfast replaces nobody's program: detach it, or start holdfastd with --uplink-hook tc");
  auto opts = sized<bpf_link_create_opts>();
  opts.flags = XDP_FLAGS_DRV_MODE;
  const UniqueFd link(::bpf_link_create(uplink_xdp_, static_cast<int>(at.ifindex), BPF_XDP, &opts));
  if (!link)
    return fail_sys(errno, "attach_xdp", fmt::format("attaching native XDP to {}", at.name));
  if (const int err = ::bpf_obj_pin(link.get(), path.c_str()); err != 0)
    return fail_sys(-err, "pin", "pinning " + path);
  return verify_uplink(at);
}

Status Attachments::attach_clock() {
  const std::string path = links_ + "/clock_leap";
  Result<ProgramInfo> ours = program_info(clock_leap_);
  if (!ours) return pass_on(ours);
  // A program that was reused has its link. Before 6.10 a tracepoint refuses it a second one
  // (EEXIST), also while the first is pinned under the successor's name.
  finish_pin_over(path);
  if (const UniqueFd old(::bpf_obj_get(path.c_str())); old) {
    const Result<bpf_link_info> link = link_info(old.get());
    if (link && link->type == BPF_LINK_TYPE_RAW_TRACEPOINT && link->prog_id == ours->id) return {};
  }
  // Raw tracepoint links have no update; the successor is pinned over the old one.
  const UniqueFd link(::bpf_raw_tracepoint_open("suspend_resume", clock_leap_));
  if (!link) {
    // A kernel that cannot suspend has no such tracepoint, and no leaping clock.
    if (errno == ENOENT && ::access("/sys/power/state", F_OK) != 0) return {};
    return fail_sys(errno, "attach_clock", "attaching to the suspend_resume tracepoint",
                    "without it a lease could outlive its deadline by a tick after resume");
  }
  return pin_over(link.get(), path);
}

Status Attachments::verify_tc(const Interface& at, bool ingress, int program_fd,
                              std::string_view program) const {
  const Result<ProgramInfo> ours = program_info(program_fd);
  if (!ours) return std::unexpected(ours.error());
  const std::vector<uint32_t> tcx =
      tcx_programs(at.ifindex, ingress ? attach_tcx_ingress : attach_tcx_egress);
  std::string first;  // nothing: there is nobody
  if (!tcx.empty()) {
    // tcx programs run before clsact filters, so any of them is ahead of a filter of ours.
    if (tcx.front() == ours->id) return {};
    first = describe_program(tcx.front());
  } else if (tenant_hook_ == TenantHook::clsact) {
    // Not only our own place: in the same priority a newer filter stands before ours.
    const Result<std::optional<TcFilter>> filter = first_filter(at.ifindex, ingress);
    if (!filter) return std::unexpected(filter.error());
    if (*filter && (*filter)->program == ours->id) return {};
    if (*filter)
      first = fmt::format("filter {} of priority {}, {}", (*filter)->handle, (*filter)->priority,
                          (*filter)->program != 0 ? describe_program((*filter)->program)
                                                  : "kind " + (*filter)->kind);
  }
  if (first.empty())
    return fail(ErrorKind::unavailable, "hook_missing",
                fmt::format("{}: {} is not at tc {}", at.name, program, direction_name(ingress)));
  return fail(
      ErrorKind::conflict, "foreign_program",
      fmt::format("{}: {} runs before Holdfast at tc {}", at.name, first, direction_name(ingress)),
      "what runs before the gate can bypass it: detach it; the port stays dark until then");
}

// XDP runs before tc and before nft. We have none on a tenant port, so whatever is there is
// somebody else's.
Status Attachments::verify_no_xdp(const Interface& at) {
  auto there = sized<bpf_xdp_query_opts>();
  if (const int err = ::bpf_xdp_query(static_cast<int>(at.ifindex), 0, &there); err != 0)
    return fail_sys(-err, "xdp_query", "asking for XDP programs on " + at.name);
  for (const uint32_t id :
       {there.prog_id, there.drv_prog_id, there.skb_prog_id, there.hw_prog_id}) {
    if (id == 0) continue;
    return fail(ErrorKind::conflict, "foreign_program",
                fmt::format("{}: {} runs at XDP, before Holdfast", at.name, describe_program(id)),
                "what it redirects passes neither tc nor nftables, so that not even a port out of "
                "nft's armed set is shut to it: remove it (ip link set " +
                    at.name + " xdp off); the port stays dark until then");
  }
  return {};
}

Status Attachments::verify_tenant_port(const Interface& port) const {
  if (Status ok = verify_no_xdp(port); !ok) return ok;
  if (Status ok = verify_tc(port, true, from_tenant_, "from_tenant"); !ok) return ok;
  return verify_tc(port, false, to_tenant_, "to_tenant");
}

Status Attachments::verify_uplink(const Interface& uplink) const {
  const Result<ProgramInfo> ours = program_info(uplink_xdp_);
  if (!ours) return std::unexpected(ours.error());
  uint32_t id = 0;
  if (::bpf_xdp_query_id(static_cast<int>(uplink.ifindex), 0, &id) == 0 && id == ours->id)
    return {};
  return verify_tc(uplink, true, uplink_tc_, "uplink_tc");
}

Status Attachments::detach(uint32_t ifindex) {
  for (const char* program : {"from_tenant", "to_tenant", "uplink_xdp", "uplink_tc"}) {
    const std::string path = link_path(program, ifindex);
    // Detached now, not when the kernel gets round to freeing the unpinned link: the same interface
    // may be attached to again at once.
    if (const UniqueFd link(::bpf_obj_get(path.c_str())); link) ::bpf_link_detach(link.get());
    if (::unlink(path.c_str()) != 0 && errno != ENOENT)
      return fail_sys(errno, "unpin", "removing " + path);
  }
  remove_clsact(ifindex, true);
  remove_clsact(ifindex, false);
  return {};
}

std::vector<uint32_t> Attachments::pinned_interfaces() const {
  std::set<uint32_t> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(links_, ignored)) {
    const std::string name = entry.path().filename().string();
    const size_t dash = name.rfind('-');
    uint32_t ifindex = 0;
    if (dash == std::string::npos) continue;
    if (std::from_chars(name.data() + dash + 1, name.data() + name.size(), ifindex).ec ==
        std::errc())
      found.insert(ifindex);
  }
  return {found.begin(), found.end()};
}

bool Attachments::carries_gate(uint32_t ifindex) const {
  if (::access(link_path("from_tenant", ifindex).c_str(), F_OK) == 0) return true;
  const std::optional<uint32_t> filter = clsact_program(ifindex, true);
  return filter && program_name(*filter) == "from_tenant";
}

std::string_view Attachments::uplink_hook_of(uint32_t ifindex) const {
  const UniqueFd xdp(::bpf_obj_get(link_path("uplink_xdp", ifindex).c_str()));
  return xdp ? "xdp" : "tc";
}

}  // namespace holdfast
