// Banks: the policy tables, published whole (G4).
//
// A policy is two freshly made maps, exactly as large as they need to be, and a filter before the
// first, in the bank's half of one array. They are put into the bank that no packet reads; one
// store then turns `control.active_bank` to it; a grace period later no packet reads the old bank,
// whose maps the kernel frees by itself. A table that a packet can see is never written. Owned by
// the daemon's event loop.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "bpf/abi.h"
#include "policy/compile.hpp"
#include "userspace/base/result.hpp"
#include "userspace/base/unique_fd.hpp"
#include "userspace/dataplane/mapped_array.hpp"
#include "userspace/dataplane/object.hpp"

namespace holdfast {

// Waits until every packet that began before this call is through: an RCU grace period, 8-16 ms.
// Where check_grace_period() succeeded it cannot fail.
void wait_grace_period();

// Waits for one, or says why this kernel has none for us: unsupported / no_grace_period. Called
// once, before anything else.
Status check_grace_period();

class Banks {
 public:
  static Result<Banks> open(const KernelObject& object);

  // Makes the tables and puts them into the idle bank. Nothing a packet sees changes. The idle
  // bank's last reader is gone: flip() waited for it.
  Status stage(const PolicyTables& tables);

  // The turn: from here on packets read the staged tables. Returns after the grace period.
  void flip(uint64_t generation, const uint8_t (&digest)[32]);

  size_t mapped_bytes() const {
    return filter_.mapped_bytes() + (current_.lines ? current_.lines->mapped_bytes() : 0);
  }
  uint32_t active() const { return control_[0].active_bank; }
  const abi::control& control() const { return control_[0]; }

  // Reads back from the active bank, through the map itself.
  std::optional<abi::endpoint_entry> endpoint(const abi::endpoint_key& key) const;
  std::optional<abi::tenant_port> port(uint32_t ifindex) const;

 private:
  struct Tables {
    UniqueFd endpoints, ports;
    std::optional<MappedArray<abi::endpoint_line>> lines;  // `endpoints`, mapped
  };
  Banks(MappedArray<abi::control> control, MappedArray<uint64_t> filter, int endpoints, int ports)
      : control_(std::move(control)), filter_(std::move(filter)), outer_{endpoints, ports} {}
  Status adopt_active();
  static Result<Tables> make_tables(const PolicyTables& tables, std::span<uint64_t> filter,
                                    abi::endpoint_hash& hash);

  MappedArray<abi::control> control_;
  MappedArray<uint64_t> filter_;  // both banks' halves
  struct {
    int endpoints, ports;
  } outer_;         // borrowed from the skeleton
  Tables current_;  // the active bank's
  Tables staged_;
};

}  // namespace holdfast
