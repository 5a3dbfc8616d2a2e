// Probes of the hooks and of nftables, in a network namespace of a child process:
//
//   veth "hf-port" (ours is attached here)  <->  veth "hf-far" (frames are sent here)
//
// A hook counts as working when a frame was sent and our program counted it.
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bpf/abi.h"
#include "holdfast.skel.h"
#include "nft/netlink.hpp"
#include "nft/table.hpp"
#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/sized.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/doctor/probes.hpp"

namespace holdfast::doctor {
namespace {

constexpr const char* port_name = "hf-port";
constexpr const char* far_name = "hf-far";
constexpr std::string_view tcx_feature = "tenant ports by tcx";
constexpr std::string_view clsact_feature = "tenant ports by clsact";
constexpr std::string_view xdp_feature = "uplinks by native XDP";
constexpr std::string_view uplink_tc_feature = "uplinks by tc";
constexpr std::string_view nft_feature = "nftables";
constexpr std::string_view refresh_feature = "nftables element refresh";

// linux/bpf.h of Debian 12 ends before tcx: these are the kernel's own numbers since 6.6.
constexpr auto attach_tcx_ingress = static_cast<bpf_attach_type>(46);
constexpr auto attach_tcx_egress = static_cast<bpf_attach_type>(47);
constexpr uint32_t before_all = 1U << 3;  // BPF_F_BEFORE

struct CloseSocket {
  void operator()(mnl_socket* socket) const { ::mnl_socket_close(socket); }
};

// 0, or a positive errno.
int set_up(const char* name) {
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (!socket || ::ioctl(socket.get(), SIOCGIFFLAGS, &request) != 0) return errno;
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  return ::ioctl(socket.get(), SIOCSIFFLAGS, &request) == 0 ? 0 : errno;
}

// A veth pair, both ends up. 0, or a positive errno.
int make_veth() {
  const std::unique_ptr<mnl_socket, CloseSocket> socket(::mnl_socket_open(NETLINK_ROUTE));
  if (!socket || ::mnl_socket_bind(socket.get(), 0, MNL_SOCKET_AUTOPID) != 0) return errno;
  std::array<char, 1024> buffer{};
  nlmsghdr* message = ::mnl_nlmsg_put_header(buffer.data());
  message->nlmsg_type = RTM_NEWLINK;
  message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
  // Down at first: an end cannot go up before the other one exists.
  ::mnl_nlmsg_put_extra_header(message, sizeof(ifinfomsg));
  ::mnl_attr_put_strz(message, IFLA_IFNAME, port_name);
  nlattr* info = ::mnl_attr_nest_start(message, IFLA_LINKINFO);
  ::mnl_attr_put_strz(message, IFLA_INFO_KIND, "veth");
  nlattr* data = ::mnl_attr_nest_start(message, IFLA_INFO_DATA);
  nlattr* peer = ::mnl_attr_nest_start(message, VETH_INFO_PEER);
  ::mnl_nlmsg_put_extra_header(message, sizeof(ifinfomsg));
  ::mnl_attr_put_strz(message, IFLA_IFNAME, far_name);
  ::mnl_attr_nest_end(message, peer);
  ::mnl_attr_nest_end(message, data);
  ::mnl_attr_nest_end(message, info);
  if (::mnl_socket_sendto(socket.get(), message, message->nlmsg_len) < 0) return errno;
  std::array<char, 4096> answer{};
  const ssize_t size = ::mnl_socket_recvfrom(socket.get(), answer.data(), answer.size());
  if (size < 0) return errno;
  const auto* head = reinterpret_cast<const nlmsghdr*>(answer.data());
  if (head->nlmsg_type != NLMSG_ERROR) return EPROTO;
  if (const int err = static_cast<const nlmsgerr*>(::mnl_nlmsg_get_payload(head))->error; err != 0)
    return -err;
  const int sys = set_up(port_name);
  return sys != 0 ? sys : set_up(far_name);
}

// A broadcast frame of an EtherType for experiments (IEEE Std 802): no stack answers it.
bool send_frame(uint32_t ifindex) {
  const UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  std::array<uint8_t, 64> frame{};
  std::fill_n(frame.begin(), 6, uint8_t{0xff});
  frame[6] = 0x02;  // source: locally administered
  frame[12] = 0x88;
  frame[13] = 0xb5;
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = static_cast<int>(ifindex);
  const ssize_t sent = ::sendto(socket.get(), frame.data(), frame.size(), 0,
                                reinterpret_cast<const sockaddr*>(&to), sizeof to);
  // What our program drops on its way out comes back to the sender as ENOBUFS.
  return sent == static_cast<ssize_t>(frame.size()) || errno == ENOBUFS;
}

uint64_t packets_counted(holdfast_bpf& bpf, uint32_t direction) {
  const int cpus = ::libbpf_num_possible_cpus();
  std::vector<abi::reason_counter> counters(static_cast<size_t>(std::max(cpus, 1)));
  uint64_t sum = 0;
  for (uint32_t reason = 0; reason < abi::HF_REASON_COUNT; ++reason) {
    const uint32_t index = abi::hf_reason_index(direction, reason);
    if (::bpf_map_lookup_elem(::bpf_map__fd(bpf.maps.reason_counters), &index, counters.data()) !=
        0)
      continue;
    for (const abi::reason_counter& counter : counters) sum += counter.total.packets;
  }
  return sum;
}

struct Lab {
  holdfast_bpf& bpf;
  uint32_t port;
  uint32_t far;

  // Sends from one end; did our program see it?
  bool program_runs(uint32_t send_from, uint32_t direction) const {
    const uint64_t before = packets_counted(bpf, direction);
    if (!send_frame(send_from)) return false;
    for (int wait = 0; wait < 50; ++wait) {
      if (packets_counted(bpf, direction) != before) return true;
      ::usleep(2'000);  // softirqs have no event to wait for
    }
    return false;
  }
};

Finding works(std::string_view feature, bool runs, std::string detail) {
  return {std::string(feature),
          runs ? Verdict::enforced : Verdict::refused,
          runs ? std::move(detail) : "it was attached, but a frame did not reach it",
          {},
          false};
}

Finding probe_tcx(const Lab& lab) {
  auto options = sized<bpf_link_create_opts>();
  options.flags = before_all;
  const auto attach = [&](const bpf_program* program, bpf_attach_type type) {
    return UniqueFd(
        ::bpf_link_create(::bpf_program__fd(program), static_cast<int>(lab.port), type, &options));
  };
  const UniqueFd in = attach(lab.bpf.progs.from_tenant, attach_tcx_ingress);
  const int sys = errno;
  if (!in) return failed(std::string(tcx_feature), false, sys, "attaching at tcx ingress");
  const UniqueFd out = attach(lab.bpf.progs.to_tenant, attach_tcx_egress);
  if (!out) return failed(std::string(tcx_feature), false, errno, "attaching at tcx egress");
  // In the place of the running program, as an upgrade does.
  if (const int err =
          ::bpf_link_update(in.get(), ::bpf_program__fd(lab.bpf.progs.from_tenant), nullptr);
      err != 0)
    return failed(std::string(tcx_feature), false, err, "replacing a program");
  return works(tcx_feature,
               lab.program_runs(lab.far, abi::HF_FROM_TENANT) &&
                   lab.program_runs(lab.port, abi::HF_TO_TENANT),
               "frames both ways met the gate, and it was replaced in place");
}

Finding probe_clsact(const Lab& lab) {
  auto hook = sized<bpf_tc_hook>();
  hook.ifindex = static_cast<int>(lab.port);
  hook.attach_point = BPF_TC_INGRESS;
  if (const int err = ::bpf_tc_hook_create(&hook); err != 0)
    return failed(std::string(clsact_feature), false, err, "making a clsact qdisc");
  const auto attach = [&](bpf_tc_attach_point point, const bpf_program* program, uint32_t flags) {
    auto at = sized<bpf_tc_hook>();
    at.ifindex = static_cast<int>(lab.port);
    at.attach_point = point;
    auto options = sized<bpf_tc_opts>();
    options.prog_fd = ::bpf_program__fd(program);
    options.flags = flags;
    options.handle = 1;
    options.priority = 1;
    return ::bpf_tc_attach(&at, &options);
  };
  int err = attach(BPF_TC_INGRESS, lab.bpf.progs.from_tenant, 0);
  if (err == 0) err = attach(BPF_TC_EGRESS, lab.bpf.progs.to_tenant, 0);
  if (err == 0) err = attach(BPF_TC_INGRESS, lab.bpf.progs.from_tenant, BPF_TC_F_REPLACE);
  Finding finding = err != 0 ? failed(std::string(clsact_feature), false, err, "attaching a filter")
                             : works(clsact_feature,
                                     lab.program_runs(lab.far, abi::HF_FROM_TENANT) &&
                                         lab.program_runs(lab.port, abi::HF_TO_TENANT),
                                     "frames both ways met the gate, and it was replaced in place");
  hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
  ::bpf_tc_hook_destroy(&hook);  // the whole qdisc
  return finding;
}

Finding probe_xdp(const Lab& lab) {
  auto options = sized<bpf_link_create_opts>();
  options.flags = XDP_FLAGS_DRV_MODE;
  const UniqueFd link(::bpf_link_create(::bpf_program__fd(lab.bpf.progs.uplink_xdp),
                                        static_cast<int>(lab.port), BPF_XDP, &options));
  if (!link)
    return failed(std::string(xdp_feature), false, errno, "attaching native XDP to a veth");
  if (const int err =
          ::bpf_link_update(link.get(), ::bpf_program__fd(lab.bpf.progs.uplink_xdp), nullptr);
      err != 0)
    return failed(std::string(xdp_feature), false, err, "replacing a program");
  return works(
      xdp_feature, lab.program_runs(lab.far, abi::HF_FROM_UPLINK),
      "on a veth; holdfastd tries each uplink's own driver, and takes tc where it has none");
}

Finding probe_uplink_tc(const Lab& lab) {
  auto hook = sized<bpf_tc_hook>();
  hook.ifindex = static_cast<int>(lab.port);
  hook.attach_point = BPF_TC_INGRESS;
  auto options = sized<bpf_tc_opts>();
  options.prog_fd = ::bpf_program__fd(lab.bpf.progs.uplink_tc);
  options.handle = 1;
  options.priority = 1;
  int err = ::bpf_tc_hook_create(&hook);
  if (err == 0) err = ::bpf_tc_attach(&hook, &options);
  if (err != 0) return failed(std::string(uplink_tc_feature), false, err, "attaching a filter");
  Finding finding = works(uplink_tc_feature, lab.program_runs(lab.far, abi::HF_FROM_UPLINK),
                          "the same early drop where a driver has no native XDP");
  hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
  ::bpf_tc_hook_destroy(&hook);
  return finding;
}

// Two ways for one thing: essential is that one of them works.
void push_alternatives(Finding first, Finding second, std::string_view instead,
                       std::vector<Finding>& findings) {
  if (first.verdict == Verdict::refused && second.verdict == Verdict::enforced) {
    first.verdict = Verdict::fallback;
    first.detail += fmt::format("; {} instead", instead);
  }
  const bool both_fail = first.verdict != Verdict::enforced && second.verdict != Verdict::enforced;
  first.essential = both_fail;
  second.essential = both_fail;
  findings.push_back(std::move(first));
  findings.push_back(std::move(second));
}

// ---- nftables
// -------------------------------------------------------------------------------------

constexpr const char* table_name = "holdfast_doctor";

nft::LeaseElement sample_element(uint32_t ifindex, uint16_t port) {
  nft::LeaseElement element;
  element.ifindex = ifindex;
  element.address = *parse_address("192.0.2.2");
  element.port = port;
  return element;
}

Finding nft_failed(const Error& error) {
  Finding finding =
      error.sys != 0 ? failed(std::string(nft_feature), true, error.sys, error.message)
                     : Finding{std::string(nft_feature), Verdict::refused, error.message, {}, true};
  if (!error.next_step.empty() && finding.next_step.empty()) finding.next_step = error.next_step;
  return finding;
}

// Adds an element again, as `nft add element` would. Answers the errno, 0 if it was taken.
Result<int> add_again(const nft::ElementKey& key, uint32_t timeout_ms) {
  Result<nft::NlSocket> socket = nft::NlSocket::open();
  if (!socket) return pass_on(socket);
  nft::Batch batch;
  nlmsghdr* message = batch.begin(NFT_MSG_NEWSETELEM, NLM_F_CREATE);
  ::mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_TABLE, table_name);
  ::mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_SET, nft::schema(key.set).name);
  nlattr* list = ::mnl_attr_nest_start(message, NFTA_SET_ELEM_LIST_ELEMENTS);
  nlattr* element = ::mnl_attr_nest_start(message, 1);
  nlattr* data = ::mnl_attr_nest_start(message, NFTA_SET_ELEM_KEY);
  ::mnl_attr_put(message, NFTA_DATA_VALUE, key.length, key.start.data());
  ::mnl_attr_nest_end(message, data);
  ::mnl_attr_put_u64(message, NFTA_SET_ELEM_TIMEOUT, __builtin_bswap64(timeout_ms));
  ::mnl_attr_nest_end(message, element);
  ::mnl_attr_nest_end(message, list);
  Result<std::vector<nft::Refusal>> refusals = socket->transact(batch);
  if (!refusals) return pass_on(refusals);
  return refusals->empty() ? 0 : refusals->front().sys;
}

void probe_nft(uint32_t ifindex, std::vector<Finding>& findings) {
  constexpr uint32_t short_ms = 100;
  constexpr uint32_t long_ms = 10'000;
  constexpr uint32_t longer_ms = 200'000;
  const auto refresh_unknown = [&] {
    findings.push_back(
        {std::string(refresh_feature), Verdict::unknown, "nftables could not be tried", {}, false});
  };
  Result<nft::Table> table = nft::Table::open(table_name);
  if (!table) {
    findings.push_back(nft_failed(table.error()));
    return refresh_unknown();
  }
  if (Status ok = table->ensure({.failsafe_ports = {22}, .listeners = {}}); !ok) {
    findings.push_back(nft_failed(ok.error()));
    return refresh_unknown();
  }
  const nft::LeaseElement dying = sample_element(ifindex, 1);
  const nft::LeaseElement kept = sample_element(ifindex, 2);
  nft::Changes changes;
  changes.grant(dying, short_ms);
  changes.grant(kept, long_ms);
  Status applied = table->apply(changes);
  if (!applied) {
    findings.push_back(nft_failed(applied.error()));
    return refresh_unknown();
  }
  const std::array<nft::LeaseKey, 2> keys{{{dying, nft::Side::a}, {kept, nft::Side::a}}};
  ::usleep(2 * short_ms * 1000);  // its own clock is what is tried
  const auto left = table->remaining_ms(keys);
  if (!left) {
    findings.push_back(nft_failed(left.error()));
    return refresh_unknown();
  }
  const bool expires = !left->at(0).has_value() && left->at(1).has_value();
  findings.push_back({std::string(nft_feature),
                      expires ? Verdict::enforced : Verdict::refused,
                      expires ? "our table was taken whole, and an element died on time"
                              : "an element did not die on time, or another died too early",
                      {},
                      true});

  const Result<int> again = add_again(nft::lease_key(kept, nft::Side::a), longer_ms);
  const auto after = table->remaining_ms(std::span(keys).subspan(1));
  if (!again || *again != 0 || !after || !after->at(0).has_value()) return refresh_unknown();
  const bool refreshed = *after->at(0) > long_ms;
  findings.push_back(
      {std::string(refresh_feature),
       refreshed ? Verdict::enforced : Verdict::fallback,
       refreshed ? "adding an element again prolongs it; renewal does not depend on it"
                 : "adding an element again does not prolong it; renewal takes two sets in turn",
       {},
       false});
}

void probe_hooks(holdfast_bpf& bpf, std::vector<Finding>& findings) {
  const int sys = make_veth();
  const uint32_t port = sys == 0 ? ::if_nametoindex(port_name) : 0;
  if (port == 0) {
    for (const std::string_view feature :
         {tcx_feature, clsact_feature, xdp_feature, uplink_tc_feature}) {
      findings.push_back(failed(std::string(feature), true, sys != 0 ? sys : ENODEV,
                                "making a veth pair to try it on", Verdict::unknown,
                                "load the kernel module: modprobe veth"));
    }
    return;
  }
  const Lab lab{bpf, port, ::if_nametoindex(far_name)};
  push_alternatives(probe_tcx(lab), probe_clsact(lab), "clsact", findings);
  push_alternatives(probe_xdp(lab), probe_uplink_tc(lab), "tc ingress", findings);
}

}  // namespace

void probe_network(const ProbeObject& object, std::vector<Finding>& findings) {
  const Finding lost{"network hooks", Verdict::unknown, {}, {}, true};
  in_child(findings, lost, [&](std::vector<Finding>& found) {
    const bool own = ::unshare(CLONE_NEWNET) == 0;
    const int sys = errno;
    for (const std::string_view feature :
         {tcx_feature, clsact_feature, xdp_feature, uplink_tc_feature, nft_feature}) {
      if (own && (object.skeleton || feature == nft_feature)) continue;
      found.push_back(own ? Finding{std::string(feature),
                                    Verdict::unknown,
                                    "the programs did not load",
                                    {},
                                    true}
                          : failed(std::string(feature), true, sys,
                                   "making a network namespace to try it in", Verdict::unknown));
    }
    if (!own) return;
    if (object.skeleton) probe_hooks(*object.skeleton, found);
    const uint32_t port = ::if_nametoindex(port_name);
    probe_nft(port != 0 ? port : 1, found);  // 1 is lo
  });
}

}  // namespace holdfast::doctor
