// Node: the loaded data plane of one small machine, for tables through BPF_PROG_TEST_RUN.
//
//     red0 10.0.0.1 fd00::1 ---+                      +--- uplink --- world 192.0.2.9, 2001:db8::9
//     red1 10.0.0.2 fd00::2 ---+--- this node --------+
//    blue0 10.0.1.1 fd00:1::1 -+    10.0.0.254, fd00::fe, 203.0.113.1; metadata 169.254.169.254
//
// Tenant red owns red0 and red1, tenant blue owns blue0; `stranger` is an interface no policy
// names. Every port has an egress slot. red0 has endpoints TCP 443, UDP 53 and echo over both
// families, blue0 has TCP 443. All leases are live for 100 s. A test changes one thing and looks at
// the next packet.
//
// The programs are loaded once a process, in a network namespace of its own; every Node starts from
// the state above with counters at zero. Deadlines are relative to now: the kernel's clock cannot
// be set.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/native_parser.hpp"
#include "tests/support/packet.hpp"

namespace holdfast::test {

using namespace std::chrono_literals;

inline constexpr std::uint32_t kRed = 1, kBlue = 2, kTenants = 3;

// Slots of the standard world.
enum Slot : std::uint32_t {
  kRed0Tcp4 = 1,
  kRed0Tcp6,
  kRed0Udp4,
  kRed0Udp6,
  kRed0Echo4,
  kRed0Echo6,
  kBlue0Tcp4,
  kBlue0Tcp6,
  kRed0Egress = 16,
  kRed1Egress,
  kBlue0Egress,
  kSpare = 32,
  kSlots = 64,
};

struct Lease {
  std::uint32_t tenant = kRed;
  std::chrono::nanoseconds expires_in = 100s;  // negative: it has expired
  std::uint32_t incarnation = 1;
  std::string peer = {};  // with peer_bits over the 128-bit form
  std::uint32_t peer_bits = 0;
};

enum class Hook { from_tenant, to_tenant, uplink_xdp, uplink_tc };
abi::hf_direction direction_of(Hook hook);

// What one run of a program did.
struct Outcome {
  bool passed = false;
  std::map<abi::hf_reason, abi::counter> counted;  // by reason, at this hook only
  bool elsewhere = false;                          // some other hook's counters moved: never right
  std::uint64_t packets(abi::hf_reason reason) const;
};

struct Gso {
  std::uint32_t size = 0;
  std::uint32_t segments = 0;
};

const char* name_of(abi::hf_reason reason);

class Node {
 public:
  Node();

  // Interface indexes.
  static std::uint32_t red0();
  static std::uint32_t red1();
  static std::uint32_t blue0();
  static std::uint32_t uplink();
  static std::uint32_t stranger();

  // Leases. revoke() is one store: deny, and the next incarnation.
  void lease(std::uint32_t slot, const Lease& lease = {});
  void gate(std::uint32_t slot, std::uint64_t word);
  std::uint64_t gate(std::uint32_t slot) const;
  void revoke(std::uint32_t slot);
  void renew(std::uint32_t slot, std::chrono::nanoseconds expires_in);
  void disable_tenant(std::uint32_t tenant);

  // Policy. Written into bank `staging`, which is the active one until stage() says otherwise.
  void port(std::uint32_t ifindex, std::string_view mac, std::uint32_t tenant,
            std::uint32_t egress_slot);
  void endpoint(std::string_view address, std::uint8_t protocol, std::uint16_t port,
                std::uint32_t slot, std::uint32_t ifindex, std::uint32_t tenant);
  // `owner`: a tenant, HF_OWNER_NODE or HF_OWNER_METADATA.
  void address(std::string_view address, std::uint32_t owner, std::uint32_t ifindex = 0);
  // In place of what the bank held: these entries, in a table and a filter as the daemon builds
  // them.
  void publish_entries(const std::vector<abi::endpoint_entry>& entries);
  // The bank's half of the filter, and how it is addressed.
  std::span<std::uint64_t> filter();
  const abi::endpoint_hash& hash() const;
  void forget_port(std::uint32_t ifindex);
  void forget_address(std::string_view address);
  void stage(std::uint32_t bank);
  void clear_bank();
  void flip(std::uint32_t bank);
  void standard_policy();
  void drop_tables(std::uint32_t tenant);  // of its flows and fragments

  // Runs a packet. from/to tenant name the port; for an uplink `ifindex` is not used.
  Outcome send(Hook hook, std::uint32_t ifindex, const Packet& packet, std::uint32_t repeat = 1,
               Gso gso = {});
  // What the `explain` answers. The frame has to have room for a verdict; shorter ones are not
  // explained.
  abi::verdict explain(Hook hook, std::uint32_t ifindex, const Packet& packet);
  static bool explainable(const Packet& packet);

  std::vector<abi::flow> flows(std::uint32_t tenant) const;
  std::vector<abi::fragment_state> fragments(std::uint32_t tenant) const;
  std::vector<abi::drop_event> events();
  abi::reason_counter reason_counter(abi::hf_direction direction, abi::hf_reason reason) const;
  abi::tenant_counter tenant_counter(std::uint32_t tenant) const;
  void age_fragments(std::chrono::nanoseconds age);
  // Counters, flows and fragments, byte for byte.
  Bytes dump() const;

  // Frames through the real hook: attaches from_tenant to red0's ingress and writes `frame` to the
  // tap.
  void inject_at_red0(const Packet& packet);

 private:
  void put_entry(const abi::endpoint_entry& old, const abi::endpoint_entry& entry);

  std::uint32_t staging_ = 0;
};

std::uint64_t boot_ns();

// ---- tables
// ----------------------------------------------------------------------------------------------

using Change = std::function<void(Node&)>;

// One row: `packet` at `hook` of `ifindex` (0: red0, or the uplink) passes as `control`, then one
// thing is changed, then it gets `verdict`. A row with no `change` is about the packet itself:
// `control_packet` is the honest one beside it.
struct Row {
  std::string name = {};
  Hook hook = Hook::to_tenant;
  std::uint32_t (*port)() = &Node::red0;
  Packet packet = {};
  Change given = {};  // before everything
  abi::hf_reason control = abi::HF_REASON_endpoint;
  std::vector<Packet> control_packet = {};  // at most one
  Change change = {};
  abi::hf_reason verdict = abi::HF_REASON_unclassified;
};

// Runs every row in a fresh Node: the control passes; the verdict is counted under its reason
// exactly as often as the packet was sent, and under no other, and the program's answer agrees; the
// `explain` says the same and changes nothing. Uplink rows run through both uplink programs.
void run(const std::vector<Row>& rows);

// The same single packet gets `reason`; says so on failure.
void expect(Node& node, Hook hook, std::uint32_t ifindex, const Packet& packet,
            abi::hf_reason reason, std::uint32_t repeat = 1);

}  // namespace holdfast::test
