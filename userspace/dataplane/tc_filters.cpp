#include "userspace/dataplane/tc_filters.hpp"

#include <array>
#include <cerrno>
#include <memory>

#include <libmnl/libmnl.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

namespace holdfast {
namespace {

struct CloseSocket {
  void operator()(mnl_socket* socket) const { ::mnl_socket_close(socket); }
};
using Socket = std::unique_ptr<mnl_socket, CloseSocket>;

int on_bpf_attribute(const nlattr* attribute, void* program) {
  if (::mnl_attr_get_type(attribute) == TCA_BPF_ID)
    *static_cast<uint32_t*>(program) = ::mnl_attr_get_u32(attribute);
  return MNL_CB_OK;
}

struct Seen {
  const tcmsg* message = nullptr;
  TcFilter filter;
  uint32_t chain = 0;
};

int on_attribute(const nlattr* attribute, void* data) {
  auto* seen = static_cast<Seen*>(data);
  switch (::mnl_attr_get_type(attribute)) {
    case TCA_KIND: seen->filter.kind = ::mnl_attr_get_str(attribute); break;
    case TCA_CHAIN: seen->chain = ::mnl_attr_get_u32(attribute); break;
    case TCA_OPTIONS:
      // Only bpf's are known here: another kind's may have the same number for something else.
      if (seen->filter.kind == "bpf")
        ::mnl_attr_parse_nested(attribute, on_bpf_attribute, &seen->filter.program);
      break;
    default: break;
  }
  return MNL_CB_OK;
}

// A priority's own message comes before those of its filters, and has no handle.
int on_filter(const nlmsghdr* header, void* data) {
  auto* first = static_cast<std::optional<TcFilter>*>(data);
  if (*first) return MNL_CB_OK;
  Seen seen;
  seen.message = static_cast<const tcmsg*>(::mnl_nlmsg_get_payload(header));
  ::mnl_attr_parse(header, sizeof(tcmsg), on_attribute, &seen);
  if (seen.message->tcm_handle == 0 || seen.chain != 0) return MNL_CB_OK;
  seen.filter.priority = TC_H_MAJ(seen.message->tcm_info) >> 16;
  seen.filter.handle = seen.message->tcm_handle;
  *first = std::move(seen.filter);
  return MNL_CB_OK;
}

}  // namespace

Result<std::optional<TcFilter>> first_filter(uint32_t ifindex, bool ingress) {
  const Socket socket(::mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC));
  if (!socket || ::mnl_socket_bind(socket.get(), 0, MNL_SOCKET_AUTOPID) != 0)
    return fail_sys(errno, "rtnetlink", "opening rtnetlink");
  std::array<char, 32768> buffer{};
  nlmsghdr* header = ::mnl_nlmsg_put_header(buffer.data());
  header->nlmsg_type = RTM_GETTFILTER;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  auto* request = static_cast<tcmsg*>(::mnl_nlmsg_put_extra_header(header, sizeof(tcmsg)));
  request->tcm_family = AF_UNSPEC;
  request->tcm_ifindex = static_cast<int>(ifindex);
  request->tcm_parent = TC_H_MAKE(TC_H_CLSACT, ingress ? TC_H_MIN_INGRESS : TC_H_MIN_EGRESS);
  if (::mnl_socket_sendto(socket.get(), header, header->nlmsg_len) < 0)
    return fail_sys(errno, "rtnetlink", "asking for tc filters");
  std::optional<TcFilter> first;
  for (;;) {
    const ssize_t length = ::mnl_socket_recvfrom(socket.get(), buffer.data(), buffer.size());
    if (length < 0) return fail_sys(errno, "rtnetlink", "reading tc filters");
    const int more = ::mnl_cb_run(buffer.data(), static_cast<size_t>(length), 0,
                                  ::mnl_socket_get_portid(socket.get()), on_filter, &first);
    if (more < 0) return fail_sys(errno, "rtnetlink", "reading tc filters");
    if (more == MNL_CB_STOP) return first;
  }
}

}  // namespace holdfast
