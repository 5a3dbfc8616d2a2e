#include "nft/netlink.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>

#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <libnftnl/common.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <sys/socket.h>

#include "userspace/base/check.hpp"

namespace holdfast::nft {
namespace {

// Answers are small; a thousand elements read back at once take about 8 MiB of the kernel's
// accounting.
constexpr int receive_buffer_bytes = 16 << 20;
constexpr size_t receive_chunk_bytes = 256 * 1024;
// Answers to a request that is no dump come one object a datagram, none longer than the kernel's
// NLMSG_GOODSIZE: so many are taken with one system call.
constexpr size_t answer_bytes_max = 8192;
constexpr size_t answers_per_call = receive_chunk_bytes / answer_bytes_max;

struct Acknowledgement {
  uint32_t sequence = 0;
  int sys = 0;
  uint32_t offset = 0;
  std::string reason;
};

Acknowledgement read_acknowledgement(const nlmsghdr* message) {
  Acknowledgement out;
  out.sequence = message->nlmsg_seq;
  if (message->nlmsg_len < NLMSG_HDRLEN + sizeof(nlmsgerr)) {
    out.sys = EBADMSG;
    return out;
  }
  const auto* answer =
      reinterpret_cast<const nlmsgerr*>(reinterpret_cast<const char*>(message) + NLMSG_HDRLEN);
  out.sequence = answer->msg.nlmsg_seq;
  out.sys = answer->error < 0 ? -answer->error : answer->error;
  if ((message->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return out;
  size_t at = NLMSG_HDRLEN + sizeof(nlmsgerr);
  if ((message->nlmsg_flags & NLM_F_CAPPED) == 0 && out.sys != 0) {
    at += NLMSG_ALIGN(answer->msg.nlmsg_len) - NLMSG_HDRLEN;
  }
  if (at >= message->nlmsg_len) return out;
  for_each_attribute(reinterpret_cast<const char*>(message) + at, message->nlmsg_len - at,
                     [&](const nlattr* attribute) {
                       if (attribute_type(attribute) == NLMSGERR_ATTR_OFFS &&
                           attribute_bytes(attribute).size() == 4) {
                         std::memcpy(&out.offset, attribute_bytes(attribute).data(), 4);
                       } else if (attribute_type(attribute) == NLMSGERR_ATTR_MSG) {
                         out.reason = attribute_text(attribute);
                       }
                     });
  return out;
}

template <typename Visit>
void for_each_message(std::span<char> bytes, Visit visit) {
  size_t at = 0;
  while (bytes.size() - at >= NLMSG_HDRLEN) {
    const auto* message = reinterpret_cast<const nlmsghdr*>(bytes.data() + at);
    if (message->nlmsg_len < NLMSG_HDRLEN || message->nlmsg_len > bytes.size() - at) return;
    visit(message);
    at = std::min(bytes.size(), at + NLMSG_ALIGN(message->nlmsg_len));
  }
}

}  // namespace

std::string attribute_text(const nlattr* attribute) {
  auto bytes = attribute_bytes(attribute);
  return std::string(bytes.begin(), std::find(bytes.begin(), bytes.end(), uint8_t{0}));
}

uint64_t attribute_be(const nlattr* attribute) {
  uint64_t value = 0;
  auto bytes = attribute_bytes(attribute);
  for (uint8_t byte : bytes.first(std::min<size_t>(bytes.size(), 8))) value = value << 8 | byte;
  return value;
}

Batch::Batch() : buffer_(2 * message_bytes_max) {
  nftnl_batch_begin(buffer_.data(), sequence_);
  used_ = reinterpret_cast<nlmsghdr*>(buffer_.data())->nlmsg_len;
}

void Batch::reserve(size_t bytes) {
  if (buffer_.size() < bytes + 2 * message_bytes_max) buffer_.resize(bytes + 2 * message_bytes_max);
}

void Batch::end_message() {
  if (current_ == 0) return;
  size_t length = reinterpret_cast<nlmsghdr*>(&buffer_[current_])->nlmsg_len;
  CHECK(length <= message_bytes_max);
  used_ = current_ + NLMSG_ALIGN(length);
  current_ = 0;
}

nlmsghdr* Batch::begin(uint16_t type, uint16_t flags) {
  end_message();
  if (buffer_.size() - used_ < 2 * message_bytes_max) {
    buffer_.resize(buffer_.size() * 2 + 2 * message_bytes_max);
  }
  current_ = used_;
  ++messages_;
  return nftnl_nlmsg_build_hdr(&buffer_[current_], type, NFPROTO_INET, flags, ++sequence_);
}

size_t Batch::bytes() const {
  if (current_ == 0) return used_;
  return current_ + reinterpret_cast<const nlmsghdr*>(&buffer_[current_])->nlmsg_len;
}

std::span<const char> Batch::finish() {
  CHECK(current_ != 0);
  // Kernels before 6.10 never acknowledge the batch's end, so the last real message asks.
  reinterpret_cast<nlmsghdr*>(&buffer_[current_])->nlmsg_flags |= NLM_F_ACK;
  end_message();
  nftnl_batch_end(&buffer_[used_], sequence_ + 1);
  size_t end = used_ + reinterpret_cast<nlmsghdr*>(&buffer_[used_])->nlmsg_len;
  return {buffer_.data(), end};
}

Result<NlSocket> NlSocket::open() {
  NlSocket out;
  out.fd_.reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
  if (!out.fd_) return fail_sys(errno, "nft_socket", "cannot open a netfilter netlink socket");
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  socklen_t length = sizeof(address);
  if (::bind(out.fd(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      ::getsockname(out.fd(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return fail_sys(errno, "nft_socket", "cannot bind a netfilter netlink socket");
  }
  out.port_id_ = address.nl_pid;
  int on = 1;
  if (::setsockopt(out.fd(), SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer_bytes,
                   sizeof(receive_buffer_bytes)) != 0) {
    return fail_sys(errno, "nft_socket", "cannot size a netlink socket's receive buffer",
                    "run with CAP_NET_ADMIN");
  }
  // Short errors that say which attribute was at fault: how a refused element gets its name.
  if (::setsockopt(out.fd(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on)) != 0 ||
      ::setsockopt(out.fd(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on)) != 0) {
    return fail_sys(errno, "nft_socket", "the kernel has no extended netlink errors",
                    "Holdfast needs Linux 6.1 or later");
  }
  out.receive_buffer_.resize(receive_chunk_bytes);
  return out;
}

Status NlSocket::send(std::span<const char> bytes) {
  // What an exchange that failed half way left unread would be taken for this one's answer.
  for (;;) {
    ssize_t stale = ::recv(fd(), receive_buffer_.data(), receive_buffer_.size(), MSG_DONTWAIT);
    if (stale < 0 && errno != EINTR && errno != ENOBUFS) break;
  }
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  ssize_t sent = 0;
  do {
    sent = ::sendto(fd(), bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr*>(&kernel),
                    sizeof(kernel));
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) {
    return fail_sys(errno, "nft_send",
                    fmt::format("the kernel took no nftables message of {} bytes", bytes.size()));
  }
  return {};
}

Result<std::vector<Refusal>> NlSocket::transact(Batch& batch) {
  std::span<const char> bytes = batch.finish();
  if (bytes.size() > transaction_bytes_max) {
    return fail(ErrorKind::exhausted, "nft_transaction_too_large",
                fmt::format("an nftables transaction of {} bytes is beyond the limit of {}",
                            bytes.size(), transaction_bytes_max),
                "change fewer leases at once");
  }
  if (bytes.size() > send_buffer_bytes_) {
    // The kernel doubles the value; the margin is for its own bookkeeping.
    int wanted = static_cast<int>(bytes.size() / 2 + (64 << 10));
    if (::setsockopt(fd(), SOL_SOCKET, SO_SNDBUFFORCE, &wanted, sizeof(wanted)) != 0) {
      return fail_sys(errno, "nft_socket", "cannot size a netlink socket's send buffer",
                      "run with CAP_NET_ADMIN");
    }
    send_buffer_bytes_ = bytes.size();
  }
  if (auto sent = send(bytes); !sent) return pass_on(sent);

  std::vector<Refusal> refusals;
  bool last_answered = false;
  bool lost = false;
  for (;;) {
    ssize_t got = ::recv(fd(), receive_buffer_.data(), receive_buffer_.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == ENOBUFS) {
      lost = true;
      continue;
    }
    if (got < 0 && errno != EAGAIN)
      return fail_sys(errno, "nft_receive", "cannot read nftables' answer");
    if (got <= 0) break;
    for_each_message(
        {receive_buffer_.data(), static_cast<size_t>(got)}, [&](const nlmsghdr* message) {
          if (message->nlmsg_type != NLMSG_ERROR) return;
          Acknowledgement answer = read_acknowledgement(message);
          if (answer.sys != 0) {
            refusals.push_back(
                {answer.sequence, answer.sys, answer.offset, std::move(answer.reason)});
          } else if (answer.sequence == batch.sequence()) {
            last_answered = true;
          }
        });
  }
  if (refusals.empty() && (lost || !last_answered)) {
    return fail(ErrorKind::unavailable, "nft_reply_lost",
                "the kernel's answer to an nftables transaction was lost",
                "read back what it touched: it may be in force or not");
  }
  return refusals;
}

Result<int> NlSocket::request(nlmsghdr* message,
                              const std::function<void(const nlmsghdr*)>& on_message) {
  bool dump = (message->nlmsg_flags & NLM_F_DUMP) == NLM_F_DUMP;
  if (!dump) message->nlmsg_flags |= NLM_F_ACK;
  auto sent = send({reinterpret_cast<const char*>(message), message->nlmsg_len});
  if (!sent) return pass_on(sent);

  // A dump's parts are as long as there is room for them.
  const size_t pieces_count = dump ? 1 : answers_per_call;
  const size_t piece_bytes = receive_buffer_.size() / pieces_count;
  std::array<iovec, answers_per_call> pieces{};
  std::array<mmsghdr, answers_per_call> datagrams{};
  for (size_t i = 0; i < pieces_count; ++i) {
    pieces[i] = {receive_buffer_.data() + i * piece_bytes, piece_bytes};
    datagrams[i].msg_hdr.msg_iov = &pieces[i];
    datagrams[i].msg_hdr.msg_iovlen = 1;
  }
  int result = -1;
  bool interrupted = false;
  const auto take = [&](const nlmsghdr* answer) {
    if (answer->nlmsg_seq != message->nlmsg_seq || result >= 0) return;
    if ((answer->nlmsg_flags & NLM_F_DUMP_INTR) != 0) interrupted = true;
    if (answer->nlmsg_type == NLMSG_ERROR) {
      result = read_acknowledgement(answer).sys;
    } else if (answer->nlmsg_type == NLMSG_DONE) {
      result = 0;
    } else {
      on_message(answer);
    }
  };
  while (result < 0) {
    const int got = ::recvmmsg(fd(), datagrams.data(), static_cast<unsigned>(pieces_count),
                               MSG_DONTWAIT, nullptr);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      return fail_sys(got < 0 ? errno : EPIPE, "nft_receive", "cannot read nftables' answer");
    for (size_t i = 0; i < static_cast<size_t>(got); ++i) {
      if ((datagrams[i].msg_hdr.msg_flags & MSG_TRUNC) != 0)
        return fail_sys(EMSGSIZE, "nft_receive", "an answer of nftables is longer than it may be");
      for_each_message({receive_buffer_.data() + i * piece_bytes, datagrams[i].msg_len}, take);
    }
  }
  return interrupted && result == 0 ? EINTR : result;
}

}  // namespace holdfast::nft
