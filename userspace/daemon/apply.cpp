#include "userspace/daemon/apply.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <future>

#include <bpf/bpf.h>
#include <fmt/format.h>

#include "holdfast.skel.h"
#include "policy/address.hpp"
#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"

namespace holdfast {
namespace {

// nft elements of one transaction. A larger bulk goes in several; the gates open after the last.
// Fewer make more commits, more leave one of the two threads of write_chunks() without work for
// longer.
constexpr size_t elements_per_transaction = 4096;

constexpr uint64_t restore_margin_ns = 50 * ns_per_ms;

// From here on a change is a bulk load, during which we do not listen to nftables' notices.
constexpr size_t bulk_elements_min = 4096;

// The side of nft's timed sets that a generation writes to: bind and renew each raise it by one, so
// they alternate, and the element that is live is never the one that is written.
nft::Side side_of(uint64_t generation) {
  return generation & 1 ? nft::Side::b : nft::Side::a;
}

uint32_t remaining_ms(uint64_t deadline_boot_ns, uint64_t now_boot_ns) {
  const uint64_t left =
      deadline_boot_ns > now_boot_ns ? (deadline_boot_ns - now_boot_ns) / ns_per_ms : 0;
  return static_cast<uint32_t>(std::clamp<uint64_t>(left, 1, nft::element_timeout_max_ms));
}

bool has_peer(const DataPlane& plane, uint32_t slot) {
  return (plane.slots.slot(slot).flags & abi::HF_SLOT_PEER) != 0;
}

nft::LeaseElement element_of(const DataPlane& plane, uint32_t slot) {
  return lease_element(plane.slots.record(slot), has_peer(plane, slot));
}

// A slot whose interface is not there has nothing in nft until the interface is back.
bool in_nft(const DataPlane& plane, uint32_t slot) {
  return plane.slots.record(slot).ifindex != 0;
}

// An interface may have changed hands in a push: its element is the new holder's by then.
bool is_anothers(const DataPlane& plane, uint32_t slot) {
  const abi::lease_record& record = plane.slots.record(slot);
  uint32_t holder = slot;
  if (record.resource_kind == abi::HF_RESOURCE_ENDPOINT) {
    if (const auto entry = plane.banks.endpoint(record.endpoint); entry) holder = entry->slot;
  } else {
    if (const auto port = plane.banks.port(record.ifindex); port) holder = port->egress_slot;
  }
  return holder != slot && plane.slots.bound(holder) &&
         element_of(plane, holder) == element_of(plane, slot);
}

nft::Changes removal_of(const DataPlane& plane, std::span<const uint32_t> slots) {
  nft::Changes changes;
  for (const uint32_t slot : slots)
    if (in_nft(plane, slot) && !is_anothers(plane, slot)) changes.revoke(element_of(plane, slot));
  return changes;
}

nft::Changes writes_of(const DataPlane& plane, std::span<const Term> terms, uint64_t step,
                       bool replaces, uint64_t now_boot_ns) {
  nft::Changes changes;
  changes.writes.reserve(terms.size());
  for (const Term& term : terms) {
    if (!in_nft(plane, term.slot)) continue;
    changes.writes.push_back({.element = element_of(plane, term.slot),
                              .side = side_of(plane.slots.record(term.slot).generation + step),
                              .timeout_ms = remaining_ms(term.deadline_boot_ns, now_boot_ns),
                              .replaces = replaces});
  }
  return changes;
}

// nft gets the elements of `terms` for their generation plus `step`, and is read back. In a bulk
// another thread, through another socket, reads back each chunk once it is written. It takes the
// kernel longer to answer for an element than to take it in, so when all is written, this thread
// reads too.
Status write_chunks(DataPlane& plane, std::span<const Term> terms, uint64_t step, bool replaces) {
  const size_t chunks = (terms.size() + elements_per_transaction - 1) / elements_per_transaction;
  // When each was written: its elements' time counts from there.
  std::vector<uint64_t> written_boot_ns(chunks);
  // A chunk is derived again to be read back: a million elements need not stand in memory.
  const auto changes_of = [&](size_t chunk) {
    const size_t begin = chunk * elements_per_transaction;
    return writes_of(plane,
                     terms.subspan(begin, std::min(elements_per_transaction, terms.size() - begin)),
                     step, replaces, written_boot_ns[chunk]);
  };
  const auto write = [&](size_t chunk) {
    written_boot_ns[chunk] = boot_now_ns();
    return plane.nft.apply(changes_of(chunk));
  };

  std::atomic<size_t> written = 0;  // chunks that may be read back
  std::atomic<size_t> next = 0;     // the first that nobody reads back yet
  std::atomic<bool> failed = false;
  const auto read_back = [&](nft::Table& through) {
    for (size_t chunk = next++; chunk < chunks; chunk = next++) {
      for (size_t seen = written; seen <= chunk; seen = written) written.wait(seen);
      if (failed) break;
      if (Status ok = through.verify(changes_of(chunk)); !ok) {
        failed = true;
        return ok;
      }
    }
    return Status{};
  };

  std::future<Status> reader;
  if (chunks > 1)
    reader = std::async(std::launch::async, [&] { return read_back(plane.nft_reader); });
  Status applied;
  for (size_t chunk = 0; chunk < chunks && !failed; ++chunk) {
    if (applied = write(chunk); !applied) break;
    written = chunk + 1;
    written.notify_one();
  }
  if (!applied) failed = true;
  written = chunks;  // all that will be
  written.notify_one();
  const Status here = read_back(plane.nft);
  const Status there = reader.valid() ? reader.get() : Status{};
  if (!applied) return applied;
  return here ? there : here;
}

Status write_elements(DataPlane& plane, std::span<const Term> terms, uint64_t step, bool replaces) {
  if (terms.size() < bulk_elements_min) return write_chunks(plane, terms, step, replaces);
  if (Status ok = plane.nft_watch.pause(); !ok) return ok;
  Status written = write_chunks(plane, terms, step, replaces);
  if (Status ok = plane.nft_watch.resume(); !ok && written) return ok;
  return written;
}

std::vector<uint32_t> slots_of(std::span<const Term> terms) {
  std::vector<uint32_t> slots;
  slots.reserve(terms.size());
  for (const Term& term : terms) slots.push_back(term.slot);
  return slots;
}

ProbePacket probe_packet(const DataPlane& plane, uint32_t slot) {
  const abi::lease_record& record = plane.slots.record(slot);
  ProbePacket packet;
  packet.destination = address_of(record.endpoint.address);
  packet.protocol = protocol_of(record.endpoint);
  packet.destination_port = port_of(record.endpoint);
  packet.source_port = 65000;
  // A peer that the lease admitted: the probe must fail for the lease, not for the peer.
  if (has_peer(plane, slot)) {
    packet.source = address_of(record.peer);
  } else {
    const Result<Address> outside =
        parse_address(packet.destination.is_v4() ? "192.0.2.1" : "2001:db8::1");
    CHECK(outside);
    packet.source = *outside;
  }
  return packet;
}

// What was leased must now be denied by the loaded programs (G6).
Status probe_denied(DataPlane& plane, uint32_t slot) {
  const abi::lease_record& record = plane.slots.record(slot);
  if (plane.slots.gate(slot) >> abi::HF_GATE_INCARNATION_BITS != 0)
    return fail(ErrorKind::internal, "gate_open", fmt::format("slot {} is open", slot));
  if (record.resource_kind != abi::HF_RESOURCE_ENDPOINT || record.ifindex == 0) return {};
  const Result<abi::verdict> verdict =
      plane.probe.run(abi::HF_TO_TENANT, record.ifindex, build_frame(probe_packet(plane, slot)));
  if (!verdict) {
    if (verdict.error().sys == ENODEV) return {};  // the interface went, and all traffic with it
    return std::unexpected(verdict.error());
  }
  if (abi::hf_reason_passes(verdict->reason) && verdict->slot == slot)
    return fail(ErrorKind::internal, "probe_passed",
                fmt::format("a probe still passes by slot {}", slot));
  return {};
}

// Attaches and verifies; what cannot be guarded is not armed.
template <typename Attach>
void guard(std::span<const Interface> interfaces, PolicyChange& change,
           std::vector<std::pair<std::string, Error>>& dark, Attach attach) {
  for (const Interface& at : interfaces) {
    Status ok = attach(at);
    if (ok) continue;
    std::erase(change.widen.arm, at.ifindex);
    change.narrow.disarm.push_back(at.ifindex);
    dark.emplace_back(at.name, std::move(ok.error()));
  }
}

}  // namespace

std::string_view name_of(Layer layer) {
  switch (layer) {
    case Layer::nftables: return "nftables";
    case Layer::uplinks: return "uplinks";
    case Layer::suspend: return "suspend";
  }
  return "?";
}

namespace {

struct Nftables {
  nft::Table table;
  nft::Table reader;
  nft::Watch watch;
};

Result<Nftables> open_nftables(const std::string& name) {
  Result<nft::Table> table = nft::Table::open(name);
  if (!table) return pass_on(table);
  Result<nft::Table> reader = nft::Table::open(name);
  if (!reader) return pass_on(reader);
  const uint32_t ours = table->port_id();
  Result<nft::Watch> watch = nft::Watch::open(name, std::span(&ours, 1));
  if (!watch) return pass_on(watch);
  return Nftables{std::move(*table), std::move(*reader), std::move(*watch)};
}

// A layer that cannot be enforced: with the operator's consent it is noted, else it is an error
// that says how to give it.
Status consent(const DataPlaneOptions& options, Layer layer, Error cause,
               std::vector<Unenforced>& unenforced) {
  const std::string_view name = name_of(layer);
  if (options.may_go_unenforced.contains(layer)) {
    log::error("unenforced", {{"what", name}, {"cause", cause.text()}});
    unenforced.push_back({layer, {}, std::move(cause)});
    return {};
  }
  cause.kind = ErrorKind::unsupported;
  if (!cause.next_step.empty()) cause.next_step += "; ";
  cause.next_step +=
      fmt::format("`holdfast doctor` tells more; --unenforced {} starts without it", name);
  return std::unexpected(std::move(cause));
}

}  // namespace

Result<std::unique_ptr<DataPlane>> DataPlane::open(const DataPlaneOptions& options) {
  if (Status ok = check_grace_period(); !ok) return pass_on(ok);
  Result<KernelObject> object = KernelObject::load(options.kernel);
  if (!object) return pass_on(object);
  auto slots = MappedArray<abi::lease_slot>::map(::bpf_map__fd((*object)->maps.slots), "slots");
  if (!slots) return pass_on(slots);
  auto records =
      MappedArray<abi::lease_record>::map(::bpf_map__fd((*object)->maps.records), "records");
  if (!records) return pass_on(records);
  auto tenants =
      MappedArray<abi::tenant_state>::map(::bpf_map__fd((*object)->maps.tenants), "tenants");
  if (!tenants) return pass_on(tenants);
  Result<Banks> banks = Banks::open(*object);
  if (!banks) return pass_on(banks);
  std::vector<Unenforced> unenforced;
  Result<Nftables> nft = open_nftables(options.table);
  if (!nft) {
    if (Status ok = consent(options, Layer::nftables, nft.error(), unenforced); !ok)
      return pass_on(ok);
    nft =
        Nftables{nft::Table::off(options.table), nft::Table::off(options.table), nft::Watch::off()};
  }
  Attachments attachments(*object, options.tenant_hook, options.uplink_hook);
  if (Status clock = attachments.attach_clock(); !clock)
    if (Status ok = consent(options, Layer::suspend, clock.error(), unenforced); !ok)
      return pass_on(ok);
  Probe probe(*object);
  return std::unique_ptr<DataPlane>(
      new DataPlane{std::move(*object), Slots(std::move(*slots), std::move(*records)),
                    std::move(*tenants), std::move(*banks), std::move(attachments), probe,
                    std::move(nft->table), std::move(nft->reader), std::move(nft->watch),
                    options.may_go_unenforced, std::move(unenforced)});
}

nft::LeaseElement lease_element(const abi::lease_record& record, bool has_peer) {
  nft::LeaseElement element;
  element.ifindex = record.ifindex;
  if (record.resource_kind == abi::HF_RESOURCE_EGRESS) {
    element.kind = nft::LeaseElement::Kind::egress;
    return element;
  }
  element.address = address_of(record.endpoint.address);
  element.protocol = protocol_of(record.endpoint);
  element.port = port_of(record.endpoint);
  if (has_peer)
    element.peer = Prefix{address_of(record.peer), static_cast<uint8_t>(record.peer_prefix_bits)};
  return element;
}

Status open_leases(DataPlane& plane, std::span<const Term> terms, uint64_t& nft_ns) {
  const uint64_t begin = boot_now_ns();
  const Status ok = write_elements(plane, terms, 0, false);
  nft_ns += boot_now_ns() - begin;
  if (ok) {
    for (const Term& term : terms) CHECK(plane.slots.open(term.slot, term.deadline_boot_ns));
    return {};
  }
  for (const Term& term : terms) plane.slots.close(term.slot);
  if (Status undone = plane.nft.apply(removal_of(plane, slots_of(terms))); !undone)
    return fail(ErrorKind::internal, "undo_failed",
                ok.error().text() + "; and undoing it failed: " + undone.error().text(),
                "nothing passes: the gates are shut and nft's elements end at their time-out");
  return ok;
}

namespace {

std::vector<uint64_t> gates_of(const DataPlane& plane, std::span<const Term> terms) {
  std::vector<uint64_t> gates;
  gates.reserve(terms.size());
  for (const Term& term : terms) gates.push_back(plane.slots.gate(term.slot));
  return gates;
}

// `seen`: the gates as they were when it was decided to move them.
Status move_gates(DataPlane& plane, std::span<const Term> terms, std::span<const uint64_t> seen) {
  const uint64_t now = boot_now_ns();  // one for all: a lease ends whole
  for (size_t i = 0; i < terms.size(); ++i) {
    if (abi::hf_gate_deadline_boot_ns(seen[i]) <= now ||
        !plane.slots.renew(terms[i].slot, seen[i], terms[i].deadline_boot_ns))
      return fail(ErrorKind::conflict, lease_closed_code,
                  "the lease ended while its term was being changed", "grant a new one");
  }
  return {};
}

void raise_generation(DataPlane& plane, std::span<const Term> terms) {
  for (const Term& term : terms)
    plane.slots.set_generation(term.slot, plane.slots.record(term.slot).generation + 1);
}

}  // namespace

Status move_deadline(DataPlane& plane, std::span<const Term> terms) {
  const std::vector<uint64_t> seen = gates_of(plane, terms);
  if (Status ok = write_elements(plane, terms, 1, true); !ok) return ok;
  if (Status ok = move_gates(plane, terms, seen); !ok) return ok;
  raise_generation(plane, terms);
  return {};
}

Status draw_gates_nearer(DataPlane& plane, std::span<const Term> terms) {
  return move_gates(plane, terms, gates_of(plane, terms));
}

Status draw_elements_nearer(DataPlane& plane, std::span<const Term> terms) {
  nft::Changes later;  // elements that would outlive the new deadline
  for (const Term& term : terms)
    if (in_nft(plane, term.slot))
      later.removals.push_back(
          {element_of(plane, term.slot), side_of(plane.slots.record(term.slot).generation)});
  if (Status ok = write_elements(plane, terms, 1, true); !ok) return ok;
  raise_generation(plane, terms);
  return later.empty() ? Status{} : plane.nft.apply(later);
}

Status restore_elements(DataPlane& plane, std::span<const Term> terms) {
  std::vector<Term> asked;
  std::vector<nft::LeaseKey> keys;
  for (const Term& term : terms) {
    // What ends within the time this takes is not worth an element that outlives it.
    if (!in_nft(plane, term.slot) || term.deadline_boot_ns <= boot_now_ns() + restore_margin_ns)
      continue;
    asked.push_back(term);
    keys.push_back(
        {element_of(plane, term.slot), side_of(plane.slots.record(term.slot).generation)});
  }
  const auto there = plane.nft.remaining_ms(keys);
  if (!there) return std::unexpected(there.error());
  // An element that stands may be the only live one: packets that pass by it must never find it
  // gone.
  std::vector<Term> missing;
  for (size_t i = 0; i < asked.size(); ++i)
    if (!(*there)[i]) missing.push_back(asked[i]);
  return write_elements(plane, missing, 0, true);
}

namespace {

// One of the LRU tables that every tenant has for itself.
struct TenantTable {
  const char* name;
  const bpf_map* tables;  // array of maps, index = tenant
  uint32_t key_bytes;
  uint32_t value_bytes;  // of which the key is the beginning
};

TenantTable flow_tables(const DataPlane& plane) {
  return {"hf_flows", plane.object->maps.flows, sizeof(abi::flow_key), sizeof(abi::flow)};
}

TenantTable fragment_tables(const DataPlane& plane) {
  return {"hf_fragments", plane.object->maps.fragments, sizeof(abi::fragment_key),
          sizeof(abi::fragment_state)};
}

struct FoundTable {
  UniqueFd fd;  // none: the tenant has no such table
  uint32_t entries = 0;
};

FoundTable find_table(const TenantTable& kind, uint32_t tenant) {
  FoundTable found;
  uint32_t id = 0;
  if (::bpf_map_lookup_elem(::bpf_map__fd(kind.tables), &tenant, &id) != 0) return found;
  found.fd.reset(::bpf_map_get_fd_by_id(id));
  bpf_map_info info{};
  uint32_t length = sizeof(info);
  if (found.fd && ::bpf_obj_get_info_by_fd(found.fd.get(), &info, &length) == 0)
    found.entries = info.max_entries;
  return found;
}

// A table of that size, with what `old` holds, if that is any.
Status publish_table(const TenantTable& kind, uint32_t tenant, uint32_t entries,
                     const UniqueFd& old) {
  const UniqueFd made(::bpf_map_create(BPF_MAP_TYPE_LRU_HASH, kind.name, kind.key_bytes,
                                       kind.value_bytes, entries, nullptr));
  if (!made)
    return fail_sys(errno, "tenant_table",
                    fmt::format("creating {} of {} entries", kind.name, entries));
  std::vector<uint8_t> at(kind.key_bytes), value(kind.value_bytes);
  for (const void* last = nullptr; old && ::bpf_map_get_next_key(old.get(), last, at.data()) == 0;
       last = at.data())
    if (::bpf_map_lookup_elem(old.get(), at.data(), value.data()) == 0)
      ::bpf_map_update_elem(made.get(), at.data(), value.data(), BPF_ANY);  // a full one evicts
  const int fd = made.get();
  if (const int err = ::bpf_map_update_elem(::bpf_map__fd(kind.tables), &tenant, &fd, BPF_ANY);
      err != 0)
    return fail_sys(-err, "tenant_table", fmt::format("publishing a tenant's {}", kind.name));
  return {};
}

}  // namespace

Status ensure_tenant_tables(DataPlane& plane, uint32_t tenant, uint32_t flows_max) {
  for (const auto& [kind, entries] :
       {std::pair(flow_tables(plane), flows_max),
        std::pair(fragment_tables(plane), static_cast<uint32_t>(abi::HF_FRAGMENTS_MAX))})
    if (!find_table(kind, tenant).fd)
      if (Status ok = publish_table(kind, tenant, entries, UniqueFd()); !ok) return ok;
  return {};
}

Status resize_flow_table(DataPlane& plane, uint32_t tenant, uint32_t flows_max) {
  const FoundTable there = find_table(flow_tables(plane), tenant);
  if (there.fd && there.entries == flows_max) return {};
  return publish_table(flow_tables(plane), tenant, flows_max, there.fd);
}

Status finish_teardown(DataPlane& plane, std::span<const uint32_t> slots) {
  for (size_t begin = 0; begin < slots.size(); begin += elements_per_transaction) {
    const auto chunk =
        slots.subspan(begin, std::min(elements_per_transaction, slots.size() - begin));
    const nft::Changes changes = removal_of(plane, chunk);
    if (changes.empty()) continue;
    if (Status ok = plane.nft.apply(changes); !ok) return ok;
    if (Status ok = plane.nft.verify(changes); !ok) return ok;
  }
  for (const uint32_t slot : slots)
    if (Status ok = probe_denied(plane, slot); !ok) return ok;
  return {};
}

Result<SwapOutcome> swap_policy(DataPlane& plane, PolicyChange& change) {
  SwapOutcome outcome;
  guard(change.tenant_ports, change, outcome.dark,
        [&](const Interface& at) { return plane.attachments.attach_tenant_port(at); });
  guard(change.uplinks, change, outcome.dark, [&](const Interface& at) {
    Status ok = plane.attachments.attach_uplink(at);
    if (ok || !plane.may_go_unenforced.contains(Layer::uplinks)) return ok;
    outcome.unenforced.push_back({Layer::uplinks, at.name, std::move(ok.error())});
    return Status{};
  });
  if (change.insist && !outcome.dark.empty())
    return std::unexpected(std::move(outcome.dark.front().second));
  for (const Interface& at : change.shut_ports)
    if (Status ok = plane.attachments.attach_tenant_port(at); !ok)
      log::error("port_unguarded", {{"interface", at.name}, {"cause", ok.error().text()}});

  if (Status ok = plane.banks.stage(*change.tables); !ok) return pass_on(ok);
  if (Status ok = plane.nft.ensure(change.host); !ok) return pass_on(ok);
  if (Status ok = plane.nft.apply(change.narrow); !ok) return pass_on(ok);
  if (Status ok = plane.nft.verify(change.narrow); !ok) return pass_on(ok);
  plane.banks.flip(change.generation, change.digest);
  outcome.widened = plane.nft.apply(change.widen);
  if (outcome.widened) outcome.widened = plane.nft.verify(change.widen);
  return outcome;
}

}  // namespace holdfast
