#include "userspace/dataplane/banks.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include <bpf/bpf.h>
#include <fmt/format.h>
#include <linux/membarrier.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "holdfast.skel.h"
#include "policy/endpoint_table.hpp"
#include "userspace/base/sized.hpp"

namespace holdfast {
namespace {

// Creates a hash map of exactly this many elements (at least one: the kernel has no empty map) and
// fills it.
template <typename Key, typename Value>
Result<UniqueFd> make_table(const char* name, const std::vector<Key>& keys,
                            const std::vector<Value>& values) {
  CHECK(keys.size() == values.size());
  const uint32_t size = std::max<uint32_t>(1, static_cast<uint32_t>(keys.size()));
  UniqueFd fd(::bpf_map_create(BPF_MAP_TYPE_HASH, name, sizeof(Key), sizeof(Value), size, nullptr));
  if (!fd)
    return fail_sys(errno, "table_create",
                    fmt::format("creating policy table {} of {} entries", name, size));
  uint32_t count = static_cast<uint32_t>(keys.size());
  if (count == 0) return fd;
  auto opts = sized<bpf_map_batch_opts>();
  if (const int err = ::bpf_map_update_batch(fd.get(), keys.data(), values.data(), &count, &opts);
      err != 0)
    return fail_sys(-err, "table_fill",
                    fmt::format("filling policy table {}: stopped at entry {} of {}", name, count,
                                keys.size()));
  return fd;
}

Status publish(int outer, uint32_t bank, const UniqueFd& inner, const char* name) {
  const int fd = inner.get();
  if (const int err = ::bpf_map_update_elem(outer, &bank, &fd, BPF_ANY); err != 0)
    return fail_sys(-err, "table_publish", fmt::format("publishing policy table {}", name));
  return {};
}

Result<UniqueFd> inner_of(int outer, uint32_t bank) {
  uint32_t id = 0;
  if (const int err = ::bpf_map_lookup_elem(outer, &bank, &id); err != 0) {
    if (err == -ENOENT) return UniqueFd();
    return fail_sys(-err, "table_open", "reading the active policy tables");
  }
  UniqueFd fd(::bpf_map_get_fd_by_id(id));
  if (!fd) return fail_sys(errno, "table_open", "opening an active policy table");
  return fd;
}

}  // namespace

void wait_grace_period() {
  // The command is an RCU grace period on every kernel since 4.3; it cannot fail where it exists.
  const long result = ::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
  CHECK(result == 0);
}

Status check_grace_period() {
  if (::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0) return {};
  return fail(
      ErrorKind::unsupported, "no_grace_period",
      fmt::format("the kernel refuses membarrier(MEMBARRIER_CMD_GLOBAL): {}", std::strerror(errno)),
      "without it no teardown can be proved; boot without nohz_full=, and allow the system "
      "call");
}

Result<Banks> Banks::open(const KernelObject& object) {
  auto control = MappedArray<abi::control>::map(::bpf_map__fd(object->maps.control), "control");
  if (!control) return pass_on(control);
  auto filter = MappedArray<uint64_t>::map(::bpf_map__fd(object->maps.endpoint_filter), "filter");
  if (!filter) return pass_on(filter);
  Banks banks(std::move(*control), std::move(*filter), ::bpf_map__fd(object->maps.policy_endpoints),
              ::bpf_map__fd(object->maps.policy_ports));
  // A daemon that was killed right after its flip may have left readers in what is now the idle
  // bank.
  wait_grace_period();
  if (Status ok = banks.adopt_active(); !ok) return pass_on(ok);
  return banks;
}

Status Banks::adopt_active() {
  for (auto [outer, fd] : {std::pair{outer_.endpoints, &current_.endpoints},
                           std::pair{outer_.ports, &current_.ports}}) {
    Result<UniqueFd> inner = inner_of(outer, active());
    if (!inner) return pass_on(inner);
    *fd = std::move(*inner);
  }
  if (!current_.endpoints) return {};
  auto lines = MappedArray<abi::endpoint_line>::map(current_.endpoints.get(), "endpoints");
  if (!lines) return pass_on(lines);
  current_.lines = std::move(*lines);
  return {};
}

Result<Banks::Tables> Banks::make_tables(const PolicyTables& tables, std::span<uint64_t> filter,
                                         abi::endpoint_hash& hash) {
  uint64_t seed = 0;
  CHECK(::getrandom(&seed, sizeof(seed), 0) == sizeof(seed));
  std::vector<abi::endpoint_entry> entries = tables.endpoints;
  entries.insert(entries.end(), tables.addresses.begin(), tables.addresses.end());
  const EndpointTable built = build_endpoint_table(entries, seed);
  hash = built.hash;
  fill_filter(filter, entries, hash);
  auto opts = sized<bpf_map_create_opts>();
  opts.map_flags = BPF_F_INNER_MAP | BPF_F_MMAPABLE;
  Tables made;
  made.endpoints.reset(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "hf_endpoints", sizeof(uint32_t),
                                        sizeof(abi::endpoint_line),
                                        static_cast<uint32_t>(built.lines.size()), &opts));
  if (!made.endpoints)
    return fail_sys(errno, "table_create",
                    fmt::format("creating the endpoint table of {} entries", entries.size()));
  auto lines = MappedArray<abi::endpoint_line>::map(made.endpoints.get(), "endpoints");
  if (!lines) return pass_on(lines);
  std::memcpy(&(*lines)[0], built.lines.data(), built.lines.size() * sizeof(abi::endpoint_line));
  made.lines = std::move(*lines);

  auto ports = make_table("hf_ports", tables.port_keys, tables.ports);
  if (!ports) return pass_on(ports);
  made.ports = std::move(*ports);
  return made;
}

Status Banks::stage(const PolicyTables& tables) {
  const uint32_t idle = active() ^ 1;
  const uint32_t words = filter_.size() / 2;
  const std::span<uint64_t> filter(&filter_[idle * words], words);
  Result<Tables> made = make_tables(tables, filter, control_[0].endpoint_hash[idle]);
  if (!made) return pass_on(made);
  staged_ = std::move(*made);
  if (Status ok = publish(outer_.endpoints, idle, staged_.endpoints, "endpoints"); !ok) return ok;
  return publish(outer_.ports, idle, staged_.ports, "ports");
}

void Banks::flip(uint64_t generation, const uint8_t (&digest)[32]) {
  CHECK(staged_.endpoints);
  abi::control& c = control_[0];
  const uint32_t old = c.active_bank;
  c.generation = generation;
  std::memcpy(c.policy_digest, digest, sizeof(digest));
  std::atomic_ref<uint32_t>(c.active_bank).store(old ^ 1, std::memory_order_seq_cst);
  wait_grace_period();
  // The old bank's tables go now, not with the next policy: an idle table is memory for nothing.
  for (const int outer : {outer_.endpoints, outer_.ports}) ::bpf_map_delete_elem(outer, &old);
  current_ = std::move(staged_);
  staged_ = {};
}

std::optional<abi::endpoint_entry> Banks::endpoint(const abi::endpoint_key& key) const {
  if (!current_.lines) return std::nullopt;
  const abi::endpoint_entry* found =
      find_endpoint(&(*current_.lines)[0], control_[0].endpoint_hash[active()], key);
  if (found == nullptr) return std::nullopt;
  return *found;
}

std::optional<abi::tenant_port> Banks::port(uint32_t ifindex) const {
  abi::tenant_port value{};
  if (!current_.ports || ::bpf_map_lookup_elem(current_.ports.get(), &ifindex, &value) != 0)
    return std::nullopt;
  return value;
}

}  // namespace holdfast
