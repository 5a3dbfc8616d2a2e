// Probe: asks the loaded programs, on the live maps, what they would say to a packet
// (BPF_PROG_TEST_RUN of `explain`). Leaves no trace. It is the negative probe after a
// teardown (G6) and the heart of `holdfast explain`.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bpf/abi.h"
#include "policy/types.hpp"
#include "userspace/base/result.hpp"
#include "userspace/dataplane/object.hpp"

namespace holdfast {

// A packet in words. Ports are in host order; for icmp_echo, `source_port` is the identifier.
struct ProbePacket {
  Address source;
  Address destination;
  Protocol protocol = Protocol::tcp;
  uint16_t source_port = 0;
  uint16_t destination_port = 0;
  bool tcp_syn = true;  // opens a connection; else it carries data (ACK)
  bool echo_reply = false;
  MacAddress source_mac{};  // matters from a tenant port only
};

// The frame as the wire would carry it, headers complete, 64 bytes of payload.
std::vector<uint8_t> build_frame(const ProbePacket& packet);

class Probe {
 public:
  explicit Probe(const KernelObject& object);

  // What the hook says to this frame. `ifindex`: the tenant port (not needed for FROM_UPLINK).
  Result<abi::verdict> run(abi::hf_direction direction, uint32_t ifindex,
                           const std::vector<uint8_t>& frame) const;

 private:
  int program_;  // borrowed from the object
};

}  // namespace holdfast
