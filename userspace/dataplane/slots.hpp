// The lease slots and their records, as the daemon writes them (DESIGN.md section 4, "The gate
// word").
//
// One writer: the daemon's event loop. Readers: every CPU's packets, at any time. So a slot is
// bound while its gate denies, opened by one store, renewed by compare-and-exchange and closed by
// one store. The record is the daemon's own memory of the lease as well: there is no second copy,
// and adoption after a crash reads the same bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

#include "bpf/abi.h"
#include "userspace/dataplane/mapped_array.hpp"

namespace holdfast {

// What bind() needs to know; see lease_record for units.
struct Binding {
  abi::lease_record record{};  // incarnation and the slot chain are filled in by bind()
  uint32_t tenant = 0;         // index
  uint32_t tenant_epoch = 0;
  bool has_peer = false;
};

class Slots {
 public:
  Slots(MappedArray<abi::lease_slot> slots, MappedArray<abi::lease_record> records)
      : slots_(std::move(slots)), records_(std::move(records)) {}

  uint32_t size() const { return slots_.size(); }
  size_t mapped_bytes() const { return slots_.mapped_bytes() + records_.mapped_bytes(); }

  uint64_t gate(uint32_t slot) const { return word(slot).load(std::memory_order_acquire); }
  const abi::lease_record& record(uint32_t slot) const { return records_[slot]; }
  const abi::lease_slot& slot(uint32_t slot) const { return slots_[slot]; }

  // Whether a finished binding stands here: its record is complete and its gate was opened and not
  // closed.
  bool bound(uint32_t slot) const {
    const uint64_t g = gate(slot);
    return g >> abi::HF_GATE_INCARNATION_BITS != 0 &&
           records_[slot].incarnation == abi::hf_gate_incarnation(g);
  }

  // A slot whose incarnations are used up is never bound again: an old flow could otherwise match.
  bool retired(uint32_t slot) const {
    return abi::hf_gate_incarnation(gate(slot)) >= HF_GATE_INCARNATION_MASK - 1;
  }

  // Writes slot and record with the gate denying under a new incarnation. The kernel still denies.
  void bind(uint32_t slot, const Binding& binding) {
    const uint32_t incarnation = abi::hf_gate_incarnation(gate(slot)) + 1;
    CHECK(incarnation < HF_GATE_INCARNATION_MASK);
    word(slot).store(abi::hf_gate(0, incarnation), std::memory_order_seq_cst);
    abi::lease_slot& s = slots_[slot];
    s.tenant = binding.tenant;
    s.tenant_epoch = binding.tenant_epoch;
    s.flags = binding.has_peer ? static_cast<uint32_t>(abi::HF_SLOT_PEER) : 0U;
    abi::lease_record& r = records_[slot];
    commit_word(r).store(0, std::memory_order_release);
    const uint32_t none = 0;
    r = binding.record;
    r.incarnation = none;
    commit_word(r).store(incarnation, std::memory_order_release);
  }

  // The flip to allow. False if the slot was closed since it was bound.
  bool open(uint32_t slot, uint64_t deadline_boot_ns) {
    uint64_t expected = abi::hf_gate(0, records_[slot].incarnation);
    return word(slot).compare_exchange_strong(
        expected, abi::hf_gate(deadline_boot_ns, records_[slot].incarnation));
  }

  // Moves the deadline. False if the slot was closed or rebound since `seen` was read.
  bool renew(uint32_t slot, uint64_t seen, uint64_t deadline_boot_ns) {
    return word(slot).compare_exchange_strong(
        seen, abi::hf_gate(deadline_boot_ns, abi::hf_gate_incarnation(seen)));
  }

  // The one store that revokes: deny, and a new incarnation, so that its flows never match again.
  void close(uint32_t slot) { close(std::span(&slot, 1)); }
  // Many at once: a store each, none of which waits for the one before to be seen; all are when
  // this returns.
  void close(std::span<const uint32_t> slots) {
    // Their memory is asked for early enough: most gates of many are in nobody's cache.
    constexpr size_t ahead = 32;
    for (size_t i = 0; i < slots.size(); ++i) {
      if (i + ahead < slots.size()) __builtin_prefetch(&slots_[slots[i + ahead]], 1);
      const uint32_t slot = slots[i];
      const uint32_t incarnation = abi::hf_gate_incarnation(gate(slot));
      const uint32_t next = incarnation < HF_GATE_INCARNATION_MASK ? incarnation + 1 : incarnation;
      word(slot).store(abi::hf_gate(0, next), std::memory_order_release);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }

  // What a thread that is not the writer's may know of a slot.
  struct Reading {
    uint64_t lease_id[2];
    uint64_t generation;
    uint64_t deadline_boot_ns;
    uint32_t tenant;
    uint32_t tenant_epoch;
  };
  // Nothing if no open binding stands there, or it changed while it was read. bind() voids the
  // record's incarnation before it writes, so what is read under one incarnation belongs together.
  std::optional<Reading> read(uint32_t slot) const {
    const abi::lease_record& r = records_[slot];
    const abi::lease_slot& s = slots_[slot];
    const auto load = [](const auto& field) {
      using T = std::remove_cvref_t<decltype(field)>;
      return std::atomic_ref<T>(const_cast<T&>(field)).load(std::memory_order_relaxed);
    };
    const uint32_t incarnation =
        commit_word(const_cast<abi::lease_record&>(r)).load(std::memory_order_acquire);
    const Reading reading{.lease_id = {load(r.lease_id[0]), load(r.lease_id[1])},
                          .generation = load(r.generation),
                          .deadline_boot_ns = 0,
                          .tenant = load(s.tenant),
                          .tenant_epoch = load(s.tenant_epoch)};
    std::atomic_thread_fence(std::memory_order_acquire);
    const uint64_t g = gate(slot);
    if (incarnation == 0 || abi::hf_gate_incarnation(g) != incarnation) return std::nullopt;
    Reading whole = reading;
    whole.deadline_boot_ns = abi::hf_gate_deadline_boot_ns(g);
    return whole;
  }

  // Has the memory that read() looks at fetched.
  void ask_for(uint32_t slot) const {
    __builtin_prefetch(&slots_[slot]);
    __builtin_prefetch(&records_[slot]);
  }

  // Fields of a live lease that change without rebinding.
  void set_generation(uint32_t slot, uint64_t generation) {
    std::atomic_ref<decltype(abi::lease_record::generation)>(records_[slot].generation)
        .store(generation, std::memory_order_relaxed);
  }
  void set_origin(uint32_t slot, uint64_t issuer, uint64_t head, uint64_t token,
                  uint64_t issued_s) {
    abi::lease_record& r = records_[slot];
    r.issuer = issuer;
    r.head = head;
    r.token = token;
    r.issued_s = issued_s;
  }
  void link(uint32_t slot, uint32_t next) { records_[slot].next_slot = next; }
  void set_phase(uint32_t slot, uint32_t phase) { records_[slot].phase = phase; }
  void set_interface(uint32_t slot, uint32_t ifindex) { records_[slot].ifindex = ifindex; }

  // Bound in this very batch, not yet opened.
  bool binding(uint32_t slot) const {
    const uint64_t g = gate(slot);
    return g >> abi::HF_GATE_INCARNATION_BITS == 0 && records_[slot].incarnation != 0 &&
           records_[slot].incarnation == abi::hf_gate_incarnation(g);
  }

 private:
  std::atomic_ref<uint64_t> word(uint32_t slot) const {
    // A load through a const Slots is still a load of shared memory that the daemon owns.
    return std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t*>(
        const_cast<decltype(abi::lease_slot::gate)*>(&slots_[slot].gate)));
  }
  static std::atomic_ref<uint32_t> commit_word(abi::lease_record& r) {
    return std::atomic_ref<uint32_t>(r.incarnation);
  }

  MappedArray<abi::lease_slot> slots_;
  MappedArray<abi::lease_record> records_;
};

}  // namespace holdfast
