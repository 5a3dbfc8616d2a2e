#include "tests/bpf/node.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <optional>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <linux/pkt_cls.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "policy/endpoint_table.hpp"
#include "userspace/base/check.hpp"
#include "userspace/base/sized.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/dataplane/mapped_array.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wold-style-cast"
using namespace holdfast::abi;
#include "holdfast.skel.h"
#pragma GCC diagnostic pop

namespace holdfast::test {
namespace {

using namespace holdfast::abi;

constexpr std::uint32_t kFlowsMax = 1024, kPolicyMax = 64, kLines = 256;
constexpr std::uint32_t kFilterWords =
    HF_FILTER_WORDS_MIN;  // of a bank: as the map is if nobody sizes it
constexpr std::uint64_t kSeed = 0x5eed;
constexpr std::uint32_t kRingBytes = 4096;  // small, so that a test can fill it

struct Tap {
  UniqueFd fd;
  std::uint32_t ifindex = 0;
};

struct Bank {
  UniqueFd endpoints, ports;
  std::span<std::uint64_t> filter;
  endpoint_hash hash;
};

constexpr endpoint_hash kStandardHash = {
    .seed = kSeed, .mask = kLines - 1, .filter_mask = kFilterWords - 1};

int keep_event(void* context, void* data, std::size_t size) {
  CHECK(size == sizeof(drop_event));
  drop_event event;
  std::memcpy(&event, data, sizeof(event));
  static_cast<std::vector<drop_event>*>(context)->push_back(event);
  return 0;
}

// All that lives as long as the process.
class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  holdfast_bpf* skeleton = nullptr;
  Tap red0, red1, blue0, uplink, stranger;
  Bank banks[2];
  std::optional<MappedArray<std::uint64_t>> filter;  // both banks'
  UniqueFd flow_tables[kTenants], fragment_tables[kTenants];
  bool table_dropped = true;  // putting one in waits for RCU: done only when it has to be
  ring_buffer* ring = nullptr;
  std::vector<drop_event> events;
  int cpus = libbpf_num_possible_cpus();

  int fd(const bpf_map* map) const { return bpf_map__fd(map); }

 private:
  Machine() {
    if (::unshare(CLONE_NEWNET) != 0) {
      std::perror("bpf_test: unshare(CLONE_NEWNET); run as root");
      std::exit(1);
    }
    red0 = tap("red0");
    red1 = tap("red1");
    blue0 = tap("blue0");
    uplink = tap("uplink");
    stranger = tap("stranger");

    skeleton = holdfast_bpf__open();
    CHECK(skeleton);
    CHECK(bpf_map__set_max_entries(skeleton->maps.slots, kSlots) == 0);
    CHECK(bpf_map__set_max_entries(skeleton->maps.records, kSlots) == 0);
    CHECK(bpf_map__set_max_entries(skeleton->maps.drop_events, kRingBytes) == 0);
    if (holdfast_bpf__load(skeleton) != 0) {
      std::fprintf(stderr, "bpf_test: the programs do not load: %s\n", std::strerror(errno));
      std::exit(1);
    }
    Result<MappedArray<std::uint64_t>> mapped =
        MappedArray<std::uint64_t>::map(fd(skeleton->maps.endpoint_filter), "filter");
    CHECK(mapped);
    filter = std::move(*mapped);
    CHECK(filter->size() == 2 * kFilterWords);
    for (std::uint32_t i = 0; i < 2; i++) {
      Bank& b = banks[i];
      b.filter = {&(*filter)[i * kFilterWords], kFilterWords};
      b.hash = kStandardHash;
      b.endpoints = inner(BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(endpoint_line), kLines,
                          BPF_F_INNER_MAP | BPF_F_MMAPABLE);
      b.ports = inner(BPF_MAP_TYPE_HASH, sizeof(__u32), sizeof(tenant_port), kPolicyMax, 0);
      put_inner(skeleton->maps.policy_endpoints, i, b.endpoints);
      put_inner(skeleton->maps.policy_ports, i, b.ports);
    }
    for (std::uint32_t tenant = 0; tenant < kTenants; tenant++) {
      flow_tables[tenant] =
          inner(BPF_MAP_TYPE_LRU_HASH, sizeof(flow_key), sizeof(flow), kFlowsMax, 0);
      fragment_tables[tenant] = inner(BPF_MAP_TYPE_LRU_HASH, sizeof(fragment_key),
                                      sizeof(fragment_state), HF_FRAGMENTS_MAX, 0);
    }
    ring = ring_buffer__new(fd(skeleton->maps.drop_events), keep_event, &events, nullptr);
    CHECK(ring);
  }

  static Tap tap(const char* name) {
    Tap out;
    out.fd.reset(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    ifreq request = {};
    std::snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    if (!out.fd || ::ioctl(out.fd.get(), TUNSETIFF, &request) != 0) {
      std::perror("bpf_test: /dev/net/tun");
      std::exit(1);
    }
    out.ifindex = ::if_nametoindex(name);
    CHECK(out.ifindex > 1);
    return out;
  }

 public:
  static UniqueFd inner(bpf_map_type type, std::size_t key, std::size_t value,
                        std::uint32_t entries, std::uint32_t flags) {
    auto options = sized<bpf_map_create_opts>();
    options.map_flags = flags;
    UniqueFd out(bpf_map_create(type, "hf_test", static_cast<__u32>(key), static_cast<__u32>(value),
                                entries, &options));
    CHECK(out);
    return out;
  }

  static void put_inner(const bpf_map* outer, std::uint32_t index, const UniqueFd& table) {
    const int raw = table.get();
    CHECK(bpf_map_update_elem(bpf_map__fd(outer), &index, &raw, BPF_ANY) == 0);
  }
};

Machine& machine() {
  return Machine::get();
}

template <typename Value>
void put(int fd, std::uint32_t index, const Value& value) {
  CHECK(bpf_map_update_elem(fd, &index, &value, BPF_ANY) == 0);
}

template <typename Value>
Value fetch(int fd, std::uint32_t index) {
  Value value = {};
  CHECK(bpf_map_lookup_elem(fd, &index, &value) == 0);
  return value;
}

template <typename Value>
std::vector<Value> fetch_per_cpu(int fd, std::uint32_t index) {
  std::vector<Value> values(static_cast<std::size_t>(machine().cpus));
  static_assert(sizeof(Value) % 8 == 0, "the kernel pads per-CPU values to 8");
  CHECK(bpf_map_lookup_elem(fd, &index, values.data()) == 0);
  return values;
}

template <typename Key>
std::vector<Key> keys(int fd) {
  std::vector<Key> out;
  Key key = {};
  const void* previous = nullptr;
  Key next = {};
  while (bpf_map_get_next_key(fd, previous, &next) == 0) {
    out.push_back(next);
    key = next;
    previous = &key;
  }
  return out;
}

template <typename Key>
void clear(int fd) {
  for (const Key& key : keys<Key>(fd)) CHECK(bpf_map_delete_elem(fd, &key) == 0);
}

void copy_address(__u32* out, std::string_view text) {
  const Bytes bytes = mapped_bytes(text);
  std::memcpy(out, bytes.data(), 16);
}

const bpf_program* program_of(Hook hook) {
  auto& programs = machine().skeleton->progs;
  switch (hook) {
    case Hook::from_tenant: return programs.from_tenant;
    case Hook::to_tenant: return programs.to_tenant;
    case Hook::uplink_xdp: return programs.uplink_xdp;
    case Hook::uplink_tc: return programs.uplink_tc;
  }
  std::abort();
}

// Runs `program` on `frame`, which it may overwrite; returns the program's answer.
std::uint32_t test_run(const bpf_program* program, std::uint32_t ifindex, Bytes& frame,
                       std::uint32_t repeat, Gso gso, bool xdp, std::uint32_t mark = 0) {
  __sk_buff context = {};
  context.ifindex = ifindex;
  context.gso_size = gso.size;
  context.gso_segs = gso.segments;
  context.mark = mark;
  Bytes out(frame.size() + 256);
  auto options = sized<bpf_test_run_opts>();
  options.data_in = frame.data();
  options.data_size_in = static_cast<__u32>(frame.size());
  options.data_out = out.data();
  options.data_size_out = static_cast<__u32>(out.size());
  options.repeat = static_cast<int>(repeat);
  if (!xdp) {
    options.ctx_in = &context;
    options.ctx_size_in = sizeof(context);
  }
  const int rc = bpf_prog_test_run_opts(bpf_program__fd(program), &options);
  EXPECT_EQ(rc, 0) << "BPF_PROG_TEST_RUN: " << std::strerror(errno);
  out.resize(options.data_size_out);
  frame = out;
  return options.retval;
}

}  // namespace

std::uint64_t boot_ns() {
  timespec now = {};
  CHECK(::clock_gettime(CLOCK_BOOTTIME, &now) == 0);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

hf_direction direction_of(Hook hook) {
  switch (hook) {
    case Hook::from_tenant: return HF_FROM_TENANT;
    case Hook::to_tenant: return HF_TO_TENANT;
    default: return HF_FROM_UPLINK;
  }
}

const char* name_of(hf_reason reason) {
  static const char* const names[] = {
#define HF_REASON(name, verdict, text) #name,
#include "bpf/reasons.def"
#undef HF_REASON
  };
  return reason < HF_REASON_COUNT ? names[reason] : "?";
}

std::uint64_t Outcome::packets(hf_reason reason) const {
  const auto found = counted.find(reason);
  return found == counted.end() ? 0 : found->second.packets;
}

std::uint32_t Node::red0() {
  return machine().red0.ifindex;
}
std::uint32_t Node::red1() {
  return machine().red1.ifindex;
}
std::uint32_t Node::blue0() {
  return machine().blue0.ifindex;
}
std::uint32_t Node::uplink() {
  return machine().uplink.ifindex;
}
std::uint32_t Node::stranger() {
  return machine().stranger.ifindex;
}

Node::Node() {
  Machine& m = machine();
  const auto& maps = m.skeleton->maps;
  for (std::uint32_t slot = 0; slot < kSlots; slot++) {
    put(m.fd(maps.slots), slot, lease_slot{});
    put(m.fd(maps.records), slot, lease_record{});
  }
  for (std::uint32_t tenant = 0; tenant < kTenants; tenant++) {
    put(m.fd(maps.tenants), tenant, tenant_state{.epoch = 5, .flags = 0, .id = 100 + tenant});
    if (m.table_dropped) {
      Machine::put_inner(maps.flows, tenant, m.flow_tables[tenant]);
      Machine::put_inner(maps.fragments, tenant, m.fragment_tables[tenant]);
    }
    clear<flow_key>(m.flow_tables[tenant].get());
    clear<fragment_key>(m.fragment_tables[tenant].get());
    const std::vector<abi::tenant_counter> zero(static_cast<std::size_t>(m.cpus));
    CHECK(bpf_map_update_elem(m.fd(maps.tenant_counters), &tenant, zero.data(), BPF_ANY) == 0);
  }
  m.table_dropped = false;
  for (std::uint32_t i = 0; i < 3 * HF_REASON_COUNT; i++) {
    const std::vector<abi::reason_counter> zero(static_cast<std::size_t>(m.cpus));
    CHECK(bpf_map_update_elem(m.fd(maps.reason_counters), &i, zero.data(), BPF_ANY) == 0);
  }
  events();
  for (const std::uint32_t bank : {1u, 0u}) {
    stage(bank);
    clear_bank();
  }
  flip(0);
  standard_policy();
  for (const std::uint32_t slot : {kRed0Tcp4, kRed0Tcp6, kRed0Udp4, kRed0Udp6, kRed0Echo4,
                                   kRed0Echo6, kRed0Egress, kRed1Egress})
    lease(slot);
  for (const std::uint32_t slot : {kBlue0Tcp4, kBlue0Tcp6, kBlue0Egress})
    lease(slot, {.tenant = kBlue});
}

void Node::standard_policy() {
  port(red0(), "02:00:00:00:00:01", kRed, kRed0Egress);
  port(red1(), "02:00:00:00:00:02", kRed, kRed1Egress);
  port(blue0(), "02:00:00:00:00:03", kBlue, kBlue0Egress);
  for (const char* text : {"10.0.0.1", "fd00::1", "fe80::1"}) address(text, kRed, red0());
  for (const char* text : {"10.0.0.2", "fd00::2"}) address(text, kRed, red1());
  for (const char* text : {"10.0.1.1", "fd00:1::1"}) address(text, kBlue, blue0());
  for (const char* text : {"10.0.0.254", "203.0.113.1", "fd00::fe", "fe80::fe"})
    address(text, HF_OWNER_NODE);
  for (const char* text : {"169.254.169.254", "fd00:ec2::254"}) address(text, HF_OWNER_METADATA);
  endpoint("10.0.0.1", HF_PROTO_TCP, 443, kRed0Tcp4, red0(), kRed);
  endpoint("fd00::1", HF_PROTO_TCP, 443, kRed0Tcp6, red0(), kRed);
  endpoint("10.0.0.1", HF_PROTO_UDP, 53, kRed0Udp4, red0(), kRed);
  endpoint("fd00::1", HF_PROTO_UDP, 53, kRed0Udp6, red0(), kRed);
  endpoint("10.0.0.1", HF_PROTO_ICMP, 0, kRed0Echo4, red0(), kRed);
  endpoint("fd00::1", HF_PROTO_ICMPV6, 0, kRed0Echo6, red0(), kRed);
  endpoint("10.0.1.1", HF_PROTO_TCP, 443, kBlue0Tcp4, blue0(), kBlue);
  endpoint("fd00:1::1", HF_PROTO_TCP, 443, kBlue0Tcp6, blue0(), kBlue);
}

void Node::lease(std::uint32_t slot, const Lease& lease) {
  Machine& m = machine();
  const auto& maps = m.skeleton->maps;
  const auto state = fetch<tenant_state>(m.fd(maps.tenants), lease.tenant);
  lease_record record = {};
  record.incarnation = lease.incarnation;
  if (!lease.peer.empty()) {
    copy_address(record.peer, lease.peer);
    record.peer_prefix_bits = lease.peer_bits;
  }
  put(m.fd(maps.records), slot, record);
  lease_slot value = {};
  value.gate =
      hf_gate(boot_ns() + static_cast<std::uint64_t>(lease.expires_in.count()), lease.incarnation);
  value.tenant = lease.tenant;
  value.tenant_epoch = state.epoch;
  value.flags = lease.peer.empty() ? 0 : HF_SLOT_PEER;
  put(m.fd(maps.slots), slot, value);
}

void Node::gate(std::uint32_t slot, std::uint64_t word) {
  Machine& m = machine();
  auto value = fetch<lease_slot>(m.fd(m.skeleton->maps.slots), slot);
  value.gate = word;
  put(m.fd(m.skeleton->maps.slots), slot, value);
}

std::uint64_t Node::gate(std::uint32_t slot) const {
  return fetch<lease_slot>(machine().fd(machine().skeleton->maps.slots), slot).gate;
}

void Node::revoke(std::uint32_t slot) {
  gate(slot, hf_gate(0, hf_gate_incarnation(gate(slot)) + 1));
}

void Node::renew(std::uint32_t slot, std::chrono::nanoseconds expires_in) {
  gate(slot, hf_gate(boot_ns() + static_cast<std::uint64_t>(expires_in.count()),
                     hf_gate_incarnation(gate(slot))));
}

void Node::disable_tenant(std::uint32_t tenant) {
  const int fd = machine().fd(machine().skeleton->maps.tenants);
  auto state = fetch<tenant_state>(fd, tenant);
  state.epoch++;
  put(fd, tenant, state);
}

void Node::stage(std::uint32_t bank) {
  staging_ = bank;
}

void Node::clear_bank() {
  Bank& bank = machine().banks[staging_];
  for (std::uint32_t line = 0; line < kLines; line++)
    put(bank.endpoints.get(), line, endpoint_line{});
  std::ranges::fill(bank.filter, 0);
  if (bank.hash.seed != kSeed)  // publish_entries() was here
    Machine::put_inner(machine().skeleton->maps.policy_endpoints, staging_, bank.endpoints);
  bank.hash = kStandardHash;
  clear<std::uint32_t>(bank.ports.get());
}

void Node::flip(std::uint32_t bank) {
  const int fd = machine().fd(machine().skeleton->maps.control);
  auto value = fetch<control>(fd, 0);
  value.active_bank = bank;
  value.generation++;
  for (std::uint32_t i = 0; i < 2; i++) value.endpoint_hash[i] = machine().banks[i].hash;
  put(fd, 0, value);
}

void Node::port(std::uint32_t ifindex, std::string_view mac, std::uint32_t tenant,
                std::uint32_t egress_slot) {
  tenant_port value = {};
  value.tenant = tenant;
  value.egress_slot = egress_slot;
  std::memcpy(value.mac, mac_bytes(mac).data(), 6);
  put(machine().banks[staging_].ports.get(), ifindex, value);
}

void Node::endpoint(std::string_view address, std::uint8_t protocol, std::uint16_t port,
                    std::uint32_t slot, std::uint32_t ifindex, std::uint32_t tenant) {
  endpoint_entry entry = {};
  copy_address(entry.key.address, address);
  entry.key.port = __builtin_bswap16(port);
  entry.key.protocol = protocol;
  entry.slot = slot;
  entry.ifindex = ifindex;
  entry.tenant = tenant;
  put_entry(entry, entry);
}

// Over the entry of that key, or where there is room.
void Node::put_entry(const endpoint_entry& old, const endpoint_entry& entry) {
  const Bank& bank = machine().banks[staging_];
  const int fd = bank.endpoints.get();
  const endpoint_key& key = old.key;
  std::uint64_t lines = hf_endpoint_hash(key.address, key.port, key.protocol, kSeed);
  // A key that goes leaves its bits: others may share them.
  bank.filter[hf_filter_word(lines, 0, &bank.hash)] |= hf_filter_bits(lines);
  // The table is so empty that one of the four places is the key's own or free.
  for (int i = 0; i < 2; i++, lines >>= 32) {
    const auto index = static_cast<std::uint32_t>(lines) & (kLines - 1);
    auto line = fetch<endpoint_line>(fd, index);
    for (std::uint32_t at = 0; at < HF_LINE_ENTRIES; at++) {
      endpoint_entry& place = line.entries[at];
      if (place.key.protocol != 0 && std::memcmp(&place.key, &key, sizeof(key)) != 0) continue;
      place = entry;
      put(fd, index, line);
      return;
    }
  }
  CHECK(false && "the endpoint table of the tests is too small");
}

void Node::address(std::string_view text, std::uint32_t owner, std::uint32_t ifindex) {
  // The port's own egress slot, as port() names it in the standard policy.
  std::uint32_t egress = HF_NO_SLOT;
  if (ifindex == red0()) egress = kRed0Egress;
  if (ifindex == red1()) egress = kRed1Egress;
  if (ifindex == blue0()) egress = kBlue0Egress;
  endpoint(text, HF_PROTO_ADDRESS, 0, egress, ifindex, owner);
}

void Node::publish_entries(const std::vector<endpoint_entry>& entries) {
  Machine& m = machine();
  Bank& bank = m.banks[staging_];
  const EndpointTable built = build_endpoint_table(entries, kSeed + 1);
  bank.hash = built.hash;
  fill_filter(bank.filter, entries, bank.hash);
  const auto lines = static_cast<std::uint32_t>(built.lines.size());
  const UniqueFd table = Machine::inner(BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(endpoint_line),
                                        lines, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
  for (std::uint32_t line = 0; line < lines; line++) put(table.get(), line, built.lines[line]);
  Machine::put_inner(m.skeleton->maps.policy_endpoints, staging_, table);
}

std::span<std::uint64_t> Node::filter() {
  return machine().banks[staging_].filter;
}

const endpoint_hash& Node::hash() const {
  return machine().banks[staging_].hash;
}

void Node::forget_port(std::uint32_t ifindex) {
  CHECK(bpf_map_delete_elem(machine().banks[staging_].ports.get(), &ifindex) == 0);
}

void Node::forget_address(std::string_view text) {
  endpoint_entry old = {};
  copy_address(old.key.address, text);
  old.key.protocol = HF_PROTO_ADDRESS;
  put_entry(old, {});
}

void Node::drop_tables(std::uint32_t tenant) {
  const auto& maps = machine().skeleton->maps;
  for (const bpf_map* outer : {maps.flows, maps.fragments})
    CHECK(bpf_map_delete_elem(machine().fd(outer), &tenant) == 0);
  machine().table_dropped = true;
}

Outcome Node::send(Hook hook, std::uint32_t ifindex, const Packet& packet, std::uint32_t repeat,
                   Gso gso) {
  const int fd = machine().fd(machine().skeleton->maps.reason_counters);
  const auto totals = [fd] {
    std::vector<counter> out(3 * HF_REASON_COUNT);
    for (std::uint32_t i = 0; i < out.size(); i++) {
      for (const abi::reason_counter& cpu : fetch_per_cpu<abi::reason_counter>(fd, i)) {
        out[i].packets += cpu.total.packets;
        out[i].bytes += cpu.total.bytes;
      }
    }
    return out;
  };
  const bool xdp = hook == Hook::uplink_xdp;
  const std::vector<counter> before = totals();
  Bytes frame = packet.bytes();
  const std::uint32_t answer = test_run(program_of(hook), ifindex, frame, repeat, gso, xdp);
  const std::vector<counter> after = totals();

  Outcome out;
  const std::uint32_t pass =
      xdp ? static_cast<std::uint32_t>(XDP_PASS) : static_cast<std::uint32_t>(TC_ACT_UNSPEC);
  const std::uint32_t drop =
      xdp ? static_cast<std::uint32_t>(XDP_DROP) : static_cast<std::uint32_t>(TC_ACT_SHOT);
  EXPECT_TRUE(answer == pass || answer == drop) << "answer " << answer;
  out.passed = answer == pass;
  for (std::uint32_t i = 0; i < after.size(); i++) {
    const counter delta = {after[i].packets - before[i].packets, after[i].bytes - before[i].bytes};
    if (delta.packets == 0 && delta.bytes == 0) continue;
    if (i / HF_REASON_COUNT + 1 != direction_of(hook)) {
      out.elsewhere = true;
    } else {
      out.counted[static_cast<hf_reason>(i % HF_REASON_COUNT)] = delta;
    }
  }
  return out;
}

bool Node::explainable(const Packet& packet) {
  return packet.bytes().size() >= sizeof(verdict);
}

verdict Node::explain(Hook hook, std::uint32_t ifindex, const Packet& packet) {
  Bytes frame = packet.bytes();
  const std::uint32_t answer =
      test_run(machine().skeleton->progs.explain, ifindex, frame, 1, {}, false, direction_of(hook));
  EXPECT_EQ(answer, static_cast<std::uint32_t>(TC_ACT_UNSPEC));
  verdict out = {};
  std::memcpy(&out, frame.data(), sizeof(out));
  return out;
}

std::vector<flow> Node::flows(std::uint32_t tenant) const {
  const int fd = machine().flow_tables[tenant].get();
  std::vector<flow> out;
  for (const flow_key& key : keys<flow_key>(fd)) {
    flow value = {};
    if (bpf_map_lookup_elem(fd, &key, &value) == 0) out.push_back(value);
  }
  return out;
}

std::vector<fragment_state> Node::fragments(std::uint32_t tenant) const {
  const int fd = machine().fragment_tables[tenant].get();
  std::vector<fragment_state> out;
  for (const fragment_key& key : keys<fragment_key>(fd)) {
    fragment_state value = {};
    if (bpf_map_lookup_elem(fd, &key, &value) == 0) out.push_back(value);
  }
  return out;
}

void Node::age_fragments(std::chrono::nanoseconds age) {
  for (std::uint32_t tenant = 0; tenant < kTenants; tenant++) {
    const int fd = machine().fragment_tables[tenant].get();
    for (fragment_state state : fragments(tenant)) {
      state.first_boot_ns -= static_cast<std::uint64_t>(age.count());
      const fragment_key key = state.key;
      CHECK(bpf_map_update_elem(fd, &key, &state, BPF_EXIST) == 0);
    }
  }
}

std::vector<drop_event> Node::events() {
  CHECK(ring_buffer__consume(machine().ring) >= 0);
  return std::exchange(machine().events, {});
}

abi::reason_counter Node::reason_counter(hf_direction direction, hf_reason reason) const {
  abi::reason_counter sum = {};
  const int fd = machine().fd(machine().skeleton->maps.reason_counters);
  for (const auto& cpu :
       fetch_per_cpu<abi::reason_counter>(fd, hf_reason_index(direction, reason))) {
    sum.total.packets += cpu.total.packets;
    sum.total.bytes += cpu.total.bytes;
    sum.events_lost += cpu.events_lost;
    sum.events_unsampled += cpu.events_unsampled;
  }
  return sum;
}

abi::tenant_counter Node::tenant_counter(std::uint32_t tenant) const {
  abi::tenant_counter sum = {};
  const int fd = machine().fd(machine().skeleton->maps.tenant_counters);
  const auto add = [](counter& to, const counter& from) {
    to.packets += from.packets;
    to.bytes += from.bytes;
  };
  for (const auto& cpu : fetch_per_cpu<abi::tenant_counter>(fd, tenant)) {
    add(sum.to_tenant, cpu.to_tenant);
    add(sum.from_tenant, cpu.from_tenant);
    add(sum.dropped, cpu.dropped);
  }
  return sum;
}

Bytes Node::dump() const {
  Bytes out;
  const auto append = [&out](const auto& values) {
    if (values.empty()) return;
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
    out.insert(out.end(), bytes, bytes + values.size() * sizeof(values[0]));
  };
  const auto& maps = machine().skeleton->maps;
  for (std::uint32_t i = 0; i < 3 * HF_REASON_COUNT; i++)
    append(fetch_per_cpu<abi::reason_counter>(machine().fd(maps.reason_counters), i));
  for (std::uint32_t tenant = 0; tenant < kTenants; tenant++) {
    append(fetch_per_cpu<abi::tenant_counter>(machine().fd(maps.tenant_counters), tenant));
    append(flows(tenant));
    append(fragments(tenant));
  }
  return out;
}

void Node::inject_at_red0(const Packet& packet) {
  Machine& m = machine();
  // Up, so that it takes frames. The namespace goes with the process.
  UniqueFd control_socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request = {};
  std::snprintf(request.ifr_name, sizeof(request.ifr_name), "red0");
  request.ifr_flags = IFF_UP;
  CHECK(::ioctl(control_socket.get(), SIOCSIFFLAGS, &request) == 0);
  auto hook = sized<bpf_tc_hook>();
  hook.ifindex = static_cast<int>(red0());
  hook.attach_point = BPF_TC_INGRESS;
  const int created = bpf_tc_hook_create(&hook);
  CHECK(created == 0 || created == -EEXIST);
  auto filter = sized<bpf_tc_opts>();
  filter.prog_fd = bpf_program__fd(m.skeleton->progs.from_tenant);
  filter.flags = BPF_TC_F_REPLACE;
  filter.handle = 1;
  filter.priority = 1;
  CHECK(bpf_tc_attach(&hook, &filter) == 0);
  const Bytes frame = packet.bytes();
  CHECK(::write(m.red0.fd.get(), frame.data(), frame.size()) == static_cast<ssize_t>(frame.size()));
}

void expect(Node& node, Hook hook, std::uint32_t ifindex, const Packet& packet, hf_reason reason,
            std::uint32_t repeat) {
  if (Node::explainable(packet)) {
    node.events();
    const Bytes before = node.dump();
    const verdict explained = node.explain(hook, ifindex, packet);
    EXPECT_EQ(std::string(name_of(static_cast<hf_reason>(explained.reason))), name_of(reason))
        << "explained";
    EXPECT_EQ(node.dump(), before) << "explain changed something";
    EXPECT_TRUE(node.events().empty()) << "explain left an event";
  }
  const Outcome outcome = node.send(hook, ifindex, packet, repeat);
  EXPECT_EQ(outcome.packets(reason), repeat) << "not counted as " << name_of(reason);
  for (const auto& [counted, delta] : outcome.counted)
    if (counted != reason)
      ADD_FAILURE() << "counted as " << name_of(counted) << " " << delta.packets << " times";
  EXPECT_FALSE(outcome.elsewhere) << "another hook's counters moved";
  EXPECT_EQ(outcome.passed, hf_reason_passes(reason) != 0);
}

void run(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    std::vector<Hook> hooks = {row.hook};
    if (row.hook == Hook::uplink_xdp) hooks.push_back(Hook::uplink_tc);
    for (const Hook hook : hooks) {
      SCOPED_TRACE(row.name + (hook == Hook::uplink_tc ? " (tc)" : ""));
      Node node;
      const std::uint32_t ifindex =
          direction_of(hook) == HF_FROM_UPLINK ? Node::uplink() : row.port();
      if (row.given) row.given(node);
      {
        SCOPED_TRACE("control");
        expect(node, hook, ifindex,
               row.control_packet.empty() ? row.packet : row.control_packet.front(), row.control);
      }
      if (row.change) row.change(node);
      expect(node, hook, ifindex, row.packet, row.verdict, 5);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace holdfast::test
