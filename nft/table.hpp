// Table: nftables as the second opinion (DESIGN.md 4). One table of ours in family inet holds the
// whole tenancy predicate, default deny; leases are timed set elements, so they die in the kernel
// by themselves (G2), and every change is one transaction that is in force whole or not at all (G4,
// G14).
//
// How a lease lives here:
//   grant   writes its element into side a;
//   renew   writes it into the side that is not live, deleting what may be left there in the same
//           transaction; the live side's element is left alone and dies of its own timeout. A
//           packet asks both sides, so it finds one at any instant;
//   revoke  deletes it from both sides.
// nf_tables fails a transaction that deletes what is not there, and elements expire on their own:
// apply() asks for what it is about to remove and leaves out what is gone; if something expires in
// between, or a renewal's guess was wrong, the kernel refuses, nothing has changed, and apply()
// asks again for all. Likewise an element that is in the way of a timed one is replaced. So the
// choice of side is about never deleting the only live element, and `replaces` about speed; neither
// is about success.
//
// On registering: the kernel hooks a new base chain before its rules are in force. Our chains begin
// with policy drop, so the first ensure() drops what the host receives and forwards for the
// milliseconds the transaction takes; later ones leave the chains in place and replace rules
// without a gap.
//
// Ownership: a Table owns a netlink socket of the namespace it was opened in; the kernel's table
// outlives it. Thread: one at a time. Errors: kind internal with the kernel's errno unless said.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nft/netlink.hpp"
#include "nft/rules.hpp"
#include "nft/sets.hpp"
#include "userspace/base/result.hpp"

namespace holdfast::nft {

// No element outlives the longest lease (G3); sets carry it as their default timeout too, so that
// an element another program adds without one dies as well.
constexpr uint32_t element_timeout_max_ms = 300'000;

struct LeaseKey {
  LeaseElement element;
  Side side = Side::a;
};

struct LeaseWrite {
  LeaseElement element;
  Side side = Side::a;
  uint32_t timeout_ms = 0;  // 1 to element_timeout_max_ms; nft's clock stops during suspend
  bool replaces = false;  // an older element is expected on that side; a wrong guess costs a retry
};

// What one transaction does. An interface or address may be added again and deleted when it is
// gone.
struct Changes {
  std::vector<uint32_t> arm, disarm;                  // interface indexes: uplinks and tenant ports
  std::vector<uint32_t> add_tenants, remove_tenants;  // interface indexes: tenant ports
  std::vector<OwnedAddress> own, disown;
  std::vector<LeaseWrite> writes;
  std::vector<LeaseKey> removals;

  void grant(LeaseElement element, uint32_t timeout_ms);
  // Writes the side that is not live; returns it: the next renewal's `live`. `stale_expected`: an
  // older element has not expired there yet, as is so from the second renewal on where terms
  // overlap.
  Side renew(LeaseElement element, Side live, uint32_t timeout_ms, bool stale_expected = true);
  void revoke(const LeaseElement& element);

  bool empty() const;
};

class Table {
 public:
  // Opens the socket and sees that nf_tables answers; changes nothing. `name` is the table's. Code
  // no_nf_tables: this kernel has none.
  static Result<Table> open(std::string name);
  // Where the operator goes on without nftables: every change succeeds, and nothing is enforced.
  static Table off(std::string name) { return Table(std::move(name), NlSocket{}); }

  // Our table with these host rules is in force when this succeeds. Creates what is missing in one
  // transaction; where rules differ, from the policy or by another's hand, replaces them all in one
  // transaction; where nothing differs, does nothing. Elements are left as they are. Kind conflict
  // if a table of that name is not ours, or one of our sets has been replaced by another kind of
  // set.
  Status ensure(const HostRules& host);

  // The kernel's chains, hooks, policies, set types and rules are exactly what ensure() wrote (G6).
  Status check_rules(const HostRules& host);

  // One transaction. Kind invalid: an element no set can hold, nothing was sent. Kind exhausted:
  // too large. Kind conflict: an element overlaps another one's peer prefix. The error names the
  // element.
  Status apply(const Changes& changes);

  // Reads back what `changes` touched, and nothing else: everything added is there, with no more
  // time left than it was given, and everything removed is gone. Kind conflict names what is not
  // so.
  Status verify(const Changes& changes);

  // Milliseconds each element has left; nothing where it is absent or expired.
  Result<std::vector<std::optional<uint32_t>>> remaining_ms(std::span<const LeaseKey> leases);

  Result<bool> is_armed(uint32_t ifindex);
  Result<bool> is_tenant(uint32_t ifindex);
  Result<bool> is_owned(const OwnedAddress& owned);

  // Live elements of the set of this name, by dumping it: for tests. The kernel starts each part of
  // a dump from the beginning, so a million elements take minutes.
  Result<uint64_t> count(std::string_view set);

  // Deletes our table, which ends this layer's enforcement: only for `holdfast node detach`. No
  // table is success; another's is refused.
  Status remove();

  // Deletes the table of boot-deny.nft, once ours is in force. No table is success.
  Status remove_boot_deny();

  bool is_off() const { return socket_.fd() < 0; }
  const std::string& name() const { return name_; }
  uint32_t port_id() const { return socket_.port_id(); }  // for Watch: whose changes are our own

 private:
  Table(std::string name, NlSocket socket) : name_(std::move(name)), socket_(std::move(socket)) {}

  struct Found {
    std::string comment;
    uint32_t flags = 0;
  };
  Result<std::optional<Found>> find_table(const std::string& table);  // nothing: no such table
  Status delete_table(const std::string& table, std::string_view comment);
  Status install(const HostRules& host, bool create);
  Status check_sets();
  Status check_chains();

  // The remaining milliseconds of `count` elements, 0 in sets that are not timed; nothing: not
  // there.
  Result<std::vector<std::optional<uint32_t>>> read_elements(
      size_t count, const std::function<ElementKey(size_t)>& key_at);

  Result<bool> has(const ElementKey& key);

  std::string name_;
  NlSocket socket_;
};

constexpr std::string_view table_comment_ours = "holdfast abi 1";
constexpr std::string_view boot_deny_table = "holdfast_boot";
constexpr std::string_view boot_deny_comment = "holdfast boot deny";

}  // namespace holdfast::nft
