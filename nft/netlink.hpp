// The one place that knows netlink: a socket, a transaction built as one buffer, and what the
// kernel answered. nf_tables takes a batch whole or not at all, and works it off inside send(), so
// every answer is already queued when send() returns: nothing here waits for the kernel.
//
// Ownership: NlSocket owns its descriptor and belongs to the network namespace it was opened in.
// Thread: one at a time for each socket. Errors: `sys` is the kernel's errno; a failed transaction
// has changed nothing, except after code "nft_reply_lost", when the caller has to read back.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <linux/netlink.h>

#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"

namespace holdfast::nft {

// A batch larger than this is refused whole (G14). A million of the largest elements take 120 MiB;
// the kernel needs about as much again while it works.
constexpr size_t transaction_bytes_max = size_t{512} << 20;

// One netlink transaction in the making. A message is begun, filled with libnftnl or libmnl, and
// ended by beginning the next one or by finish().
class Batch {
 public:
  Batch();

  // `type` is an NFT_MSG_*, `flags` are NLM_F_* beyond NLM_F_REQUEST. The header has room for
  // message_bytes_max; the pointer holds until the next call of begin() or finish().
  nlmsghdr* begin(uint16_t type, uint16_t flags);
  void reserve(size_t bytes);

  bool empty() const { return messages_ == 0; }
  size_t bytes() const;
  uint32_t sequence() const { return sequence_; }  // of the message begun last

  // Ends the batch and asks for an acknowledgement of its last message.
  std::span<const char> finish();

  static constexpr size_t message_bytes_max = 80 * 1024;

 private:
  void end_message();

  std::vector<char> buffer_;
  size_t used_ = 0;     // bytes before the message being built
  size_t current_ = 0;  // its offset; 0 while there is none, since the batch header comes first
  size_t messages_ = 0;
  uint32_t sequence_ = 0;
};

// One message of a batch was refused.
struct Refusal {
  uint32_t sequence = 0;  // 0: the whole batch
  int sys = 0;            // positive errno
  uint32_t offset = 0;    // of the attribute at fault, from the message's start; 0 if not told
  std::string reason;     // the kernel's words, often none
};

class NlSocket {
 public:
  static Result<NlSocket> open();

  int fd() const { return fd_.get(); }
  // The kernel writes it into every notification that our own transactions cause.
  uint32_t port_id() const { return port_id_; }

  // No refusals: the transaction is in force. Else nothing of it is.
  Result<std::vector<Refusal>> transact(Batch& batch);

  // Sends one request and hands every answer to `on_message`. Returns the errno the kernel ended
  // the answers with: 0, or for instance ENOENT. A dump the kernel marks as interrupted answers
  // EINTR.
  Result<int> request(nlmsghdr* message, const std::function<void(const nlmsghdr*)>& on_message);

 private:
  Status send(std::span<const char> bytes);

  UniqueFd fd_;
  uint32_t port_id_ = 0;
  size_t send_buffer_bytes_ = 0;
  std::vector<char> receive_buffer_;
};

// Calls `visit(const nlattr*)` for each attribute in [data, data + length). (libmnl's own loops are
// C.)
template <typename Visit>
void for_each_attribute(const void* data, size_t length, Visit visit) {
  const char* at = static_cast<const char*>(data);
  while (length >= sizeof(nlattr)) {
    const auto* attribute = reinterpret_cast<const nlattr*>(at);
    if (attribute->nla_len < sizeof(nlattr) || attribute->nla_len > length) return;
    visit(attribute);
    size_t step = NLA_ALIGN(attribute->nla_len);
    if (step >= length) return;
    at += step;
    length -= step;
  }
}
template <typename Visit>
void for_each_nested(const nlattr* nest, Visit visit) {
  for_each_attribute(reinterpret_cast<const char*>(nest) + sizeof(nlattr),
                     nest->nla_len - sizeof(nlattr), visit);
}

// The attributes of an nf_tables message, behind its nfgenmsg.
template <typename Visit>
void for_each_in_message(const nlmsghdr* message, Visit visit) {
  constexpr size_t head = NLMSG_HDRLEN + NLMSG_ALIGN(4);  // nlmsghdr, nfgenmsg
  if (message->nlmsg_len <= head) return;
  for_each_attribute(reinterpret_cast<const char*>(message) + head, message->nlmsg_len - head,
                     visit);
}

inline int attribute_type(const nlattr* attribute) {
  return attribute->nla_type & NLA_TYPE_MASK;
}
inline std::span<const uint8_t> attribute_bytes(const nlattr* attribute) {
  return {reinterpret_cast<const uint8_t*>(attribute) + sizeof(nlattr),
          attribute->nla_len - sizeof(nlattr)};
}
std::string attribute_text(const nlattr* attribute);
uint64_t attribute_be(const nlattr* attribute);  // 1 to 8 bytes, network order

}  // namespace holdfast::nft
