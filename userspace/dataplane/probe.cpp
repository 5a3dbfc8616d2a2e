#include "userspace/dataplane/probe.hpp"

#include <cstring>

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <net/ethernet.h>

#include "holdfast.skel.h"
#include "userspace/base/sized.hpp"

namespace holdfast {
namespace {

constexpr size_t payload_bytes = 64;

void put8(std::vector<uint8_t>& out, unsigned value) {
  out.push_back(static_cast<uint8_t>(value));
}
void put16(std::vector<uint8_t>& out, unsigned value) {
  put8(out, value >> 8);
  put8(out, value & 0xff);
}
void put32(std::vector<uint8_t>& out, uint32_t value) {
  put16(out, value >> 16);
  put16(out, value & 0xffff);
}

// RFC 1071 over the header; L4 checksums are the sender's business, no hook of ours reads them.
uint16_t ip_checksum(const uint8_t* header, size_t size) {
  uint32_t sum = 0;
  for (size_t i = 0; i + 1 < size; i += 2)
    sum += static_cast<uint32_t>(header[i] << 8 | header[i + 1]);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

std::vector<uint8_t> build_l4(const ProbePacket& p, bool v4) {
  std::vector<uint8_t> out;
  switch (p.protocol) {
    case Protocol::tcp:
      put16(out, p.source_port);
      put16(out, p.destination_port);
      put32(out, 1);
      put32(out, p.tcp_syn ? 0 : 1);
      put16(out, p.tcp_syn ? 0x5002 : 0x5010);  // SYN or ACK
      put16(out, 65535);
      put32(out, 0);
      break;
    case Protocol::udp:
      put16(out, p.source_port);
      put16(out, p.destination_port);
      put16(out, 8 + payload_bytes);
      put16(out, 0);
      break;
    case Protocol::icmp_echo:
      put8(out, p.echo_reply ? (v4 ? 0 : 129) : (v4 ? 8 : 128));
      put8(out, 0);
      put16(out, 0);
      put16(out, p.source_port);
      put16(out, 1);
      break;
  }
  out.resize(out.size() + payload_bytes);
  return out;
}

}  // namespace

std::vector<uint8_t> build_frame(const ProbePacket& p) {
  const bool v4 = p.destination.is_v4();
  const std::vector<uint8_t> l4 = build_l4(p, v4);
  std::vector<uint8_t> out(6, 0x02);
  out.insert(out.end(), p.source_mac.bytes.begin(), p.source_mac.bytes.end());
  put16(out, v4 ? ETHERTYPE_IP : ETHERTYPE_IPV6);
  const uint8_t protocol = p.protocol == Protocol::icmp_echo && !v4
                               ? uint8_t{IPPROTO_ICMPV6}
                               : static_cast<uint8_t>(p.protocol);
  if (v4) {
    const size_t header = out.size();
    put16(out, 0x4500);
    put16(out, static_cast<unsigned>(20 + l4.size()));
    put32(out, 0x4000);  // do not fragment
    put8(out, 64);
    put8(out, protocol);
    put16(out, 0);
    out.insert(out.end(), p.source.bytes.begin() + 12, p.source.bytes.end());
    out.insert(out.end(), p.destination.bytes.begin() + 12, p.destination.bytes.end());
    const uint16_t sum = ip_checksum(&out[header], 20);
    out[header + 10] = static_cast<uint8_t>(sum >> 8);
    out[header + 11] = static_cast<uint8_t>(sum & 0xff);
  } else {
    put32(out, 0x60000000);
    put16(out, static_cast<unsigned>(l4.size()));
    put8(out, protocol);
    put8(out, 64);
    out.insert(out.end(), p.source.bytes.begin(), p.source.bytes.end());
    out.insert(out.end(), p.destination.bytes.begin(), p.destination.bytes.end());
  }
  out.insert(out.end(), l4.begin(), l4.end());
  return out;
}

Probe::Probe(const KernelObject& object) : program_(object.program_fd(object->progs.explain)) {}

Result<abi::verdict> Probe::run(abi::hf_direction direction, uint32_t ifindex,
                                const std::vector<uint8_t>& frame) const {
  __sk_buff context{};
  context.ifindex = ifindex;
  context.mark = direction;
  std::vector<uint8_t> answer(frame.size() + 64);
  auto opts = sized<bpf_test_run_opts>();
  opts.data_in = frame.data();
  opts.data_size_in = static_cast<uint32_t>(frame.size());
  opts.data_out = answer.data();
  opts.data_size_out = static_cast<uint32_t>(answer.size());
  opts.ctx_in = &context;
  opts.ctx_size_in = sizeof(context);
  if (const int err = ::bpf_prog_test_run_opts(program_, &opts); err != 0)
    return fail_sys(-err, "probe",
                    fmt::format("probing the loaded program at interface {}", ifindex),
                    err == -ENODEV ? "the interface is gone" : "");
  abi::verdict verdict{};
  if (opts.data_size_out < sizeof(verdict))
    return fail(ErrorKind::internal, "probe", "the probe's answer is too short");
  std::memcpy(&verdict, answer.data(), sizeof(verdict));
  return verdict;
}

}  // namespace holdfast
