#include "userspace/daemon/netlink.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/socket.h>
#include <unistd.h>

namespace holdfast {
namespace {

// Of a dump that changes under it; the event loop waits meanwhile, for a quarter of a second at
// most.
constexpr int dump_attempts_max = 50;
constexpr unsigned dump_pause_us = 5000;

struct CloseSocket {
  void operator()(mnl_socket* socket) const { ::mnl_socket_close(socket); }
};
using Socket = std::unique_ptr<mnl_socket, CloseSocket>;

Result<Socket> open_route_socket() {
  Socket socket(::mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC));
  if (!socket || ::mnl_socket_bind(socket.get(), 0, MNL_SOCKET_AUTOPID) != 0)
    return fail_sys(errno, "rtnetlink", "opening rtnetlink");
  return socket;
}

// Sends one dump request and hands each answer to `callback`.
Status dump(mnl_socket* socket, uint16_t type, mnl_cb_t callback, void* data) {
  std::array<char, 65536> buffer{};
  nlmsghdr* header = ::mnl_nlmsg_put_header(buffer.data());
  header->nlmsg_type = type;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  header->nlmsg_seq = type;
  auto* family = static_cast<rtgenmsg*>(::mnl_nlmsg_put_extra_header(header, sizeof(ifinfomsg)));
  family->rtgen_family = AF_UNSPEC;
  if (::mnl_socket_sendto(socket, header, header->nlmsg_len) < 0)
    return fail_sys(errno, "rtnetlink", "asking rtnetlink");
  const unsigned port = ::mnl_socket_get_portid(socket);
  for (;;) {
    const ssize_t length = ::mnl_socket_recvfrom(socket, buffer.data(), buffer.size());
    if (length < 0) return fail_sys(errno, "rtnetlink", "reading rtnetlink");
    const int more =
        ::mnl_cb_run(buffer.data(), static_cast<size_t>(length), type, port, callback, data);
    if (more < 0) return fail_sys(errno, "rtnetlink", "reading rtnetlink");
    if (more == MNL_CB_STOP) return {};
  }
}

// libmnl's loops over attributes are macros for C.
template <typename Visit>
void for_each_attribute(const void* first, const void* tail, Visit visit) {
  const auto* attribute = static_cast<const nlattr*>(first);
  const auto left = [&] {
    return static_cast<int>(static_cast<const char*>(tail) -
                            reinterpret_cast<const char*>(attribute));
  };
  for (; ::mnl_attr_ok(attribute, left()); attribute = ::mnl_attr_next(attribute)) visit(attribute);
}

template <typename Visit>
void for_each_attribute(const nlmsghdr* header, size_t offset, Visit visit) {
  for_each_attribute(::mnl_nlmsg_get_payload_offset(header, offset),
                     ::mnl_nlmsg_get_payload_tail(header), visit);
}

int on_link(const nlmsghdr* header, void* data) {
  auto* facts = static_cast<NetworkFacts*>(data);
  const auto* info = static_cast<const ifinfomsg*>(::mnl_nlmsg_get_payload(header));
  LinkInfo link;
  link.ifindex = static_cast<uint32_t>(info->ifi_index);
  link.ethernet = info->ifi_type == ARPHRD_ETHER;
  for_each_attribute(header, sizeof(*info), [&](const nlattr* attribute) {
    switch (::mnl_attr_get_type(attribute)) {
      case IFLA_IFNAME: link.name = ::mnl_attr_get_str(attribute); break;
      case IFLA_MASTER: link.master = ::mnl_attr_get_u32(attribute); break;
      case IFLA_LINKINFO: {
        const auto* nested = static_cast<const char*>(::mnl_attr_get_payload(attribute));
        for_each_attribute(nested, nested + ::mnl_attr_get_payload_len(attribute),
                           [&](const nlattr* inner) {
                             if (::mnl_attr_get_type(inner) == IFLA_INFO_KIND)
                               link.kind = ::mnl_attr_get_str(inner);
                           });
        break;
      }
      default: break;
    }
  });
  facts->links.push_back(std::move(link));
  return MNL_CB_OK;
}

int on_address(const nlmsghdr* header, void* data) {
  auto* facts = static_cast<NetworkFacts*>(data);
  const auto* info = static_cast<const ifaddrmsg*>(::mnl_nlmsg_get_payload(header));
  const nlattr* local = nullptr;
  for_each_attribute(header, sizeof(*info), [&](const nlattr* attribute) {
    const uint16_t type = ::mnl_attr_get_type(attribute);
    // IFA_LOCAL is the node's end; on a point-to-point link IFA_ADDRESS is the other's.
    if (type == IFA_LOCAL || (type == IFA_ADDRESS && local == nullptr)) local = attribute;
  });
  if (local == nullptr || info->ifa_scope == RT_SCOPE_HOST) return MNL_CB_OK;
  Address address;
  const auto length = ::mnl_attr_get_payload_len(local);
  if (info->ifa_family == AF_INET && length == 4) {
    address.bytes[10] = address.bytes[11] = 0xff;
    std::memcpy(&address.bytes[12], ::mnl_attr_get_payload(local), 4);
  } else if (info->ifa_family == AF_INET6 && length == 16) {
    std::memcpy(address.bytes.data(), ::mnl_attr_get_payload(local), 16);
  } else {
    return MNL_CB_OK;
  }
  facts->addresses.push_back(address);
  return MNL_CB_OK;
}

Result<NetworkFacts> read_network_once() {
  Result<Socket> socket = open_route_socket();
  if (!socket) return pass_on(socket);
  NetworkFacts facts;
  if (Status ok = dump(socket->get(), RTM_GETLINK, on_link, &facts); !ok) return pass_on(ok);
  if (Status ok = dump(socket->get(), RTM_GETADDR, on_address, &facts); !ok) return pass_on(ok);
  for (LinkInfo& link : facts.links)
    if (const LinkInfo* master = facts.find(link.master); link.master != 0 && master != nullptr)
      link.master_name = master->name;
  std::sort(facts.addresses.begin(), facts.addresses.end());
  facts.addresses.erase(std::unique(facts.addresses.begin(), facts.addresses.end()),
                        facts.addresses.end());
  return facts;
}

}  // namespace

const LinkInfo* NetworkFacts::find(const std::string& name) const {
  for (const LinkInfo& link : links)
    if (link.name == name) return &link;
  return nullptr;
}

const LinkInfo* NetworkFacts::find(uint32_t ifindex) const {
  for (const LinkInfo& link : links)
    if (link.ifindex == ifindex) return &link;
  return nullptr;
}

Result<NetworkFacts> read_network() {
  // A dump that interfaces changed under (NLM_F_DUMP_INTR) may miss some of them: libmnl says
  // EINTR, and it is asked again, all of it, so that links and addresses belong together.
  for (int attempt = 1;; ++attempt) {
    Result<NetworkFacts> facts = read_network_once();
    if (facts || facts.error().sys != EINTR || attempt == dump_attempts_max) return facts;
    ::usleep(dump_pause_us);
  }
}

Status check_tenant_interface(const LinkInfo& link) {
  if (link.master != 0)
    return fail(
        ErrorKind::unsupported, "port_has_master",
        fmt::format("interface {} belongs to {}: frames between its ports would not pass our hooks",
                    link.name, link.master_name.empty() ? "another interface" : link.master_name),
        "take it out (ip link set " + link.name + " nomaster) and route to it instead");
  if ((link.kind == "veth" || link.kind == "tun") && link.ethernet) return {};
  return fail(ErrorKind::unsupported, "port_kind",
              fmt::format("interface {} is {}: a tenant port is the host end of a veth, or a tap",
                          link.name, link.kind.empty() ? "plain hardware" : "a " + link.kind),
              "the host has no hook per tenant there; give the tenant a veth pair or a tap");
}

Status check_uplink_interface(const LinkInfo& link) {
  if (link.master != 0)
    return fail(ErrorKind::unsupported, "uplink_has_master",
                fmt::format("uplink {} belongs to {}", link.name, link.master_name),
                "name the bridge or bond itself as the uplink");
  if (!link.ethernet)
    return fail(ErrorKind::unsupported, "uplink_kind",
                fmt::format("uplink {} carries no Ethernet frames", link.name),
                "name the interface below it");
  return {};
}

Result<NetworkWatch> NetworkWatch::open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
  if (!fd || ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    return fail_sys(errno, "rtnetlink", "subscribing to interface changes");
  return NetworkWatch(std::move(fd));
}

void NetworkWatch::drain() const {
  std::array<char, 65536> buffer{};
  // ENOBUFS means that changes were lost; the reader looks at everything anyway.
  while (::recv(fd_.get(), buffer.data(), buffer.size(), 0) > 0 || errno == ENOBUFS) errno = 0;
}

}  // namespace holdfast
