#include "nft/watch.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <optional>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include "nft/netlink.hpp"
#include "userspace/base/check.hpp"

namespace holdfast::nft {
namespace {

constexpr int receive_buffer_bytes = 8 << 20;
constexpr size_t receive_chunk_bytes = 64 * 1024;
constexpr size_t own_port_ids_max = 16;

// The kernel batches one transaction's notices into packets, all with the port id of who sent it,
// so a look at the first header decides about the packet.
Status ignore_own(int fd, std::span<const uint32_t> own_port_ids) {
  CHECK(own_port_ids.size() <= own_port_ids_max);
  std::vector<sock_filter> code;
  code.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(nlmsghdr, nlmsg_pid)));
  for (size_t i = 0; i < own_port_ids.size(); ++i) {
    // The load swaps bytes; on a match jump over the rest and the accepting return.
    auto over = static_cast<uint8_t>(own_port_ids.size() - i);
    code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl(own_port_ids[i]), over, 0));
  }
  code.push_back(BPF_STMT(BPF_RET | BPF_K, UINT32_MAX));
  code.push_back(BPF_STMT(BPF_RET | BPF_K, 0));
  sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) != 0) {
    return fail_sys(errno, "nft_watch", "cannot filter nftables notices");
  }
  return {};
}

struct Attributes {
  std::string first, second, third;  // the table's name, and what stands in attributes 2 and 3
};

Attributes read_attributes(const nlmsghdr* message, int second, int third) {
  Attributes out;
  for_each_in_message(message, [&](const nlattr* attribute) {
    int type = attribute_type(attribute);
    if (type == 1) out.first = attribute_text(attribute);  // NFTA_*_TABLE, NFTA_TABLE_NAME
    if (type == second) out.second = attribute_text(attribute);
    if (type == third) out.third = attribute_text(attribute);
  });
  return out;
}

uint64_t count_elements(const nlmsghdr* message) {
  uint64_t count = 0;
  for_each_in_message(message, [&](const nlattr* list) {
    if (attribute_type(list) != NFTA_SET_ELEM_LIST_ELEMENTS) return;
    for_each_nested(list, [&](const nlattr*) { ++count; });
  });
  return count;
}

std::optional<Event> event_of(const nlmsghdr* message, const std::string& table) {
  static_assert(NFTA_TABLE_NAME == 1 && NFTA_CHAIN_TABLE == 1 && NFTA_RULE_TABLE == 1 &&
                NFTA_SET_TABLE == 1 && NFTA_SET_ELEM_LIST_TABLE == 1 && NFTA_FLOWTABLE_TABLE == 1);
  if (message->nlmsg_len < NLMSG_LENGTH(sizeof(nfgenmsg))) return {};
  const auto* head =
      reinterpret_cast<const nfgenmsg*>(reinterpret_cast<const char*>(message) + NLMSG_HDRLEN);
  int type = NFNL_MSG_TYPE(message->nlmsg_type);
  if (type == NFT_MSG_NEWFLOWTABLE) {
    Attributes found = read_attributes(message, NFTA_FLOWTABLE_NAME, -1);
    return Event{EventKind::flowtable_added, found.first + " " + found.second, 1, 0, {}};
  }
  if (head->nfgen_family != NFPROTO_INET) return {};

  EventKind kind{};
  int name = -1;
  switch (type) {
    case NFT_MSG_NEWTABLE:
      kind = EventKind::table_changed;
      name = NFTA_TABLE_NAME;
      break;
    case NFT_MSG_DELTABLE:
      kind = EventKind::table_removed;
      name = NFTA_TABLE_NAME;
      break;
    case NFT_MSG_NEWCHAIN:
      kind = EventKind::chain_changed;
      name = NFTA_CHAIN_NAME;
      break;
    case NFT_MSG_DELCHAIN:
      kind = EventKind::chain_removed;
      name = NFTA_CHAIN_NAME;
      break;
    case NFT_MSG_NEWRULE:
      kind = EventKind::rule_added;
      name = NFTA_RULE_CHAIN;
      break;
    case NFT_MSG_DELRULE:
      kind = EventKind::rule_removed;
      name = NFTA_RULE_CHAIN;
      break;
    case NFT_MSG_NEWSET:
      kind = EventKind::set_changed;
      name = NFTA_SET_NAME;
      break;
    case NFT_MSG_DELSET:
      kind = EventKind::set_removed;
      name = NFTA_SET_NAME;
      break;
    case NFT_MSG_NEWSETELEM:
      kind = EventKind::elements_added;
      name = NFTA_SET_ELEM_LIST_SET;
      break;
    case NFT_MSG_DELSETELEM:
      kind = EventKind::elements_removed;
      name = NFTA_SET_ELEM_LIST_SET;
      break;
    default: return {};
  }
  Attributes found = read_attributes(message, name, -1);
  if (found.first != table) return {};
  bool elements = type == NFT_MSG_NEWSETELEM || type == NFT_MSG_DELSETELEM;
  return Event{kind,
               name == NFTA_TABLE_NAME && found.second.empty() ? table : found.second,
               elements ? count_elements(message) : 1,
               0,
               {}};
}

}  // namespace

const char* name_of(EventKind kind) {
  switch (kind) {
    case EventKind::table_removed: return "table removed";
    case EventKind::table_changed: return "table made or changed";
    case EventKind::chain_removed: return "chain removed";
    case EventKind::chain_changed: return "chain made or changed";
    case EventKind::rule_removed: return "rule removed from chain";
    case EventKind::rule_added: return "rule added to chain";
    case EventKind::set_removed: return "set removed";
    case EventKind::set_changed: return "set made or changed";
    case EventKind::elements_removed: return "element removed from set";
    case EventKind::elements_added: return "element added to set";
    case EventKind::flowtable_added: return "flowtable made";
    case EventKind::overrun: return "notices were lost";
  }
  CHECK(false);
}

std::string Event::text() const {
  std::string out = name_of(kind);
  if (!object.empty()) out += " " + object;
  if (count > 1) out += fmt::format(" ({} times)", count);
  if (process != 0) out += fmt::format(" by {}, process {}", command, process);
  return out;
}

Result<Watch> Watch::open(std::string table, std::span<const uint32_t> own_port_ids) {
  Watch out;
  out.table_ = std::move(table);
  out.buffer_.resize(receive_chunk_bytes);
  out.fd_.reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_NETFILTER));
  if (!out.fd_) return fail_sys(errno, "nft_watch", "cannot open a netfilter netlink socket");
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  int group = NFNLGRP_NFTABLES;
  if (::bind(out.fd(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::setsockopt(out.fd(), SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer_bytes,
                   sizeof(receive_buffer_bytes)) != 0) {
    return fail_sys(errno, "nft_watch", "cannot set up a netfilter netlink socket",
                    "run with CAP_NET_ADMIN");
  }
  // The filter comes first: nothing of ours arrives between joining and filtering.
  if (auto filtered = ignore_own(out.fd(), own_port_ids); !filtered) return pass_on(filtered);
  if (::setsockopt(out.fd(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) != 0) {
    return fail_sys(errno, "nft_watch", "cannot subscribe to nftables notices",
                    "run with CAP_NET_ADMIN");
  }
  return out;
}

Result<std::vector<Event>> Watch::drain() {
  std::vector<Event> events;
  size_t transaction = 0;  // the first event of the transaction whose end was not seen yet
  for (;;) {
    ssize_t got = ::recv(fd(), buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == ENOBUFS) {
      events.push_back({EventKind::overrun, {}, 1, 0, {}});
      transaction = events.size();
      continue;
    }
    if (got < 0 && errno != EAGAIN)
      return fail_sys(errno, "nft_watch", "cannot read nftables notices");
    if (got <= 0) return events;
    size_t at = 0;
    auto end = static_cast<size_t>(got);
    while (end - at >= NLMSG_HDRLEN) {
      const auto* message = reinterpret_cast<const nlmsghdr*>(buffer_.data() + at);
      if (message->nlmsg_len < NLMSG_HDRLEN || message->nlmsg_len > end - at) break;
      at = std::min(end, at + NLMSG_ALIGN(message->nlmsg_len));
      if (NFNL_SUBSYS_ID(message->nlmsg_type) != NFNL_SUBSYS_NFTABLES) continue;
      if (NFNL_MSG_TYPE(message->nlmsg_type) == NFT_MSG_NEWGEN) {
        // The notice that ends a transaction names who made it.
        for_each_in_message(message, [&](const nlattr* attribute) {
          for (size_t i = transaction; i < events.size(); ++i) {
            if (attribute_type(attribute) == NFTA_GEN_PROC_PID) {
              events[i].process = static_cast<uint32_t>(attribute_be(attribute));
            } else if (attribute_type(attribute) == NFTA_GEN_PROC_NAME) {
              events[i].command = attribute_text(attribute);
            }
          }
        });
        transaction = events.size();
        continue;
      }
      auto event = event_of(message, table_);
      if (!event) continue;
      auto same = std::find_if(events.begin() + static_cast<ptrdiff_t>(transaction), events.end(),
                               [&](const Event& each) {
                                 return each.kind == event->kind && each.object == event->object;
                               });
      if (same != events.end()) {
        same->count += event->count;
      } else {
        events.push_back(std::move(*event));
      }
    }
  }
}

Status Watch::pause() {
  if (!fd_) return {};
  const int group = NFNLGRP_NFTABLES;
  if (::setsockopt(fd_.get(), SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &group, sizeof(group)) != 0)
    return fail_sys(errno, "nft_watch", "leaving the group of nf_tables notices");
  return {};
}

Status Watch::resume() {
  if (!fd_) return {};
  const int group = NFNLGRP_NFTABLES;
  if (::setsockopt(fd_.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) != 0)
    return fail_sys(errno, "nft_watch", "joining the group of nf_tables notices");
  return {};
}

}  // namespace holdfast::nft
