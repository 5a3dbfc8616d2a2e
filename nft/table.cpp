#include "nft/table.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <libnftnl/chain.h>
#include <libnftnl/rule.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <libnftnl/udata.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>

#include "userspace/base/check.hpp"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wold-style-cast"  // the contract is C
#include "bpf/abi.h"
#pragma GCC diagnostic pop

namespace holdfast::nft {
namespace {

static_assert(element_timeout_max_ms == abi::HF_LEASE_TERM_MAX_S * 1000);

// Expired elements match nothing; collecting them walks the whole set, so it is done seldom.
constexpr uint32_t collect_interval_ms = 10'000;
// One message's list of elements is an attribute, whose length is 16 bits.
constexpr size_t elements_bytes_max = 60'000;
// The kernel accounts about 8 KiB of receive buffer for each element it answers with.
constexpr size_t read_back_max = 128;
constexpr size_t read_back_min = 4;
// Elements may expire between asking and acting; more rounds than this is something else.
constexpr int apply_attempts_max = 8;
constexpr int dump_attempts_max = 5;

template <typename T, void (*free_it)(const T*)>
struct Free {
  void operator()(T* value) const { free_it(value); }
};
using TablePointer = std::unique_ptr<nftnl_table, Free<nftnl_table, nftnl_table_free>>;
using SetPointer = std::unique_ptr<nftnl_set, Free<nftnl_set, nftnl_set_free>>;
using ChainPointer = std::unique_ptr<nftnl_chain, Free<nftnl_chain, nftnl_chain_free>>;

template <typename Pointer>
Pointer allocated(Pointer pointer) {
  CHECK(pointer != nullptr);
  return pointer;
}

// nft's user data: type, length, value.
std::string user_data(uint8_t type, std::string_view value) {
  std::string out;
  out.push_back(static_cast<char>(type));
  out.push_back(static_cast<char>(value.size()));
  out.append(value);
  return out;
}

uint32_t set_flags(const SetSchema& set) {
  uint32_t flags = set.timed ? uint32_t{NFT_SET_TIMEOUT} : 0;
  if (set.interval) flags |= NFT_SET_INTERVAL | NFT_SET_CONCAT;
  return flags;
}

SetPointer make_set(const std::string& table, const SetSchema& set) {
  auto out = allocated(SetPointer(nftnl_set_alloc()));
  nftnl_set_set_str(out.get(), NFTNL_SET_TABLE, table.c_str());
  nftnl_set_set_str(out.get(), NFTNL_SET_NAME, set.name);
  nftnl_set_set_u32(out.get(), NFTNL_SET_FAMILY, NFPROTO_INET);
  nftnl_set_set_u32(out.get(), NFTNL_SET_ID, static_cast<uint32_t>(set.id) + 1);
  nftnl_set_set_u32(out.get(), NFTNL_SET_FLAGS, set_flags(set));
  nftnl_set_set_u32(out.get(), NFTNL_SET_KEY_TYPE, set.key_type());
  nftnl_set_set_u32(out.get(), NFTNL_SET_KEY_LEN, set.key_bytes);
  if (set.interval) {
    std::array<uint8_t, parts_max> lengths{};
    std::transform(set.key().begin(), set.key().end(), lengths.begin(), part_bytes);
    nftnl_set_set_data(out.get(), NFTNL_SET_DESC_CONCAT, lengths.data(), set.parts_count);
  }
  if (set.timed) {
    nftnl_set_set_u64(out.get(), NFTNL_SET_TIMEOUT, element_timeout_max_ms);
    nftnl_set_set_u32(out.get(), NFTNL_SET_GC_INTERVAL, collect_interval_ms);
  }
  // The byte order of a key of one part, host's for an interface; concatenations say 0.
  uint32_t byte_order = set.parts_count == 1 ? 1 : 0;
  std::string data = user_data(NFTNL_UDATA_SET_KEYBYTEORDER,
                               {reinterpret_cast<const char*>(&byte_order), sizeof(byte_order)});
  nftnl_set_set_data(out.get(), NFTNL_SET_USERDATA, data.data(),
                     static_cast<uint32_t>(data.size()));
  return out;
}

nlmsghdr* new_request(std::span<char> buffer, uint16_t type, uint16_t flags) {
  CHECK(buffer.size() >= MNL_NLMSG_HDRLEN + sizeof(uint32_t));
  return nftnl_nlmsg_build_hdr(buffer.data(), type, NFPROTO_INET, flags, 1);
}

void put_data(nlmsghdr* message, uint16_t type, std::span<const uint8_t> bytes) {
  nlattr* nest = mnl_attr_nest_start(message, type);
  mnl_attr_put(message, NFTA_DATA_VALUE, bytes.size(), bytes.data());
  mnl_attr_nest_end(message, nest);
}

// One element of a list; returns its size.
size_t put_element(nlmsghdr* message, const ElementKey& key, uint32_t timeout_ms) {
  uint32_t before = message->nlmsg_len;
  nlattr* element = mnl_attr_nest_start(message, NFTA_LIST_ELEM);
  put_data(message, NFTA_SET_ELEM_KEY, key.key());
  if (schema(key.set).interval) put_data(message, NFTA_SET_ELEM_KEY_END, key.key_end());
  if (timeout_ms != 0)
    mnl_attr_put_u64(message, NFTA_SET_ELEM_TIMEOUT, __builtin_bswap64(timeout_ms));
  mnl_attr_nest_end(message, element);
  return message->nlmsg_len - before;
}
static_assert(std::endian::native == std::endian::little, "__builtin_bswap64 above");

void put_list_head(nlmsghdr* message, const std::string& table, SetId set) {
  mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_TABLE, table.c_str());
  mnl_attr_put_strz(message, NFTA_SET_ELEM_LIST_SET, schema(set).name);
}

struct ElementAnswer {
  std::span<const uint8_t> key, key_end;
  uint64_t expiration_ms = 0;
};

template <typename Visit>
void for_each_element(const nlmsghdr* message, Visit visit) {
  auto value = [](const nlattr* nest) {
    std::span<const uint8_t> bytes;
    for_each_nested(nest, [&](const nlattr* attribute) {
      if (attribute_type(attribute) == NFTA_DATA_VALUE) bytes = attribute_bytes(attribute);
    });
    return bytes;
  };
  for_each_in_message(message, [&](const nlattr* list) {
    if (attribute_type(list) != NFTA_SET_ELEM_LIST_ELEMENTS) return;
    for_each_nested(list, [&](const nlattr* element) {
      ElementAnswer answer;
      for_each_nested(element, [&](const nlattr* attribute) {
        switch (attribute_type(attribute)) {
          case NFTA_SET_ELEM_KEY: answer.key = value(attribute); break;
          case NFTA_SET_ELEM_KEY_END: answer.key_end = value(attribute); break;
          case NFTA_SET_ELEM_EXPIRATION: answer.expiration_ms = attribute_be(attribute); break;
          default: break;
        }
      });
      visit(answer);
    });
  });
}

// "ENOENT at rule 3 of chain input" for people who debug the bytecode, by the batch's sequence
// numbers.
Status refused(const std::vector<Refusal>& refusals, const std::vector<std::string>& objects,
               const std::string& table) {
  const Refusal& first = refusals.front();
  std::string what = first.sequence >= 1 && first.sequence <= objects.size()
                         ? objects[first.sequence - 1]
                         : std::string("the commit");
  std::string text = fmt::format("nftables refused table {}, at {}", table, what);
  if (!first.reason.empty()) text += " (" + first.reason + ")";
  return fail_sys(first.sys, "nft_refused", std::move(text), "nothing was changed");
}

}  // namespace

// ---- Changes -----------------------------------------------------------------------------------

void Changes::grant(LeaseElement element, uint32_t timeout_ms) {
  writes.push_back({element, Side::a, timeout_ms, false});
}

Side Changes::renew(LeaseElement element, Side live, uint32_t timeout_ms, bool stale_expected) {
  writes.push_back({element, other_side(live), timeout_ms, stale_expected});
  return other_side(live);
}

void Changes::revoke(const LeaseElement& element) {
  removals.push_back({element, Side::a});
  removals.push_back({element, Side::b});
}

bool Changes::empty() const {
  return arm.empty() && disarm.empty() && add_tenants.empty() && remove_tenants.empty() &&
         own.empty() && disown.empty() && writes.empty() && removals.empty();
}

// ---- the table, its chains and rules
// -------------------------------------------------------------

Result<Table> Table::open(std::string name) {
  if (name.empty() || name.size() > 64) {
    return fail(ErrorKind::invalid, "nft_table_name",
                fmt::format("\"{}\" cannot name an nftables table", name),
                "use 1 to 64 characters");
  }
  auto socket = NlSocket::open();
  if (!socket) return pass_on(socket);
  Table table(std::move(name), std::move(*socket));
  auto found = table.find_table(table.name_);
  if (found) return table;
  // What nfnetlink says of a subsystem that nobody registered.
  if (found.error().sys != EINVAL) return pass_on(found);
  return fail_sys(EINVAL, "no_nf_tables", "this kernel has no nf_tables",
                  "load the module: modprobe nf_tables");
}

Result<std::optional<Table::Found>> Table::find_table(const std::string& table) {
  std::array<char, 512> buffer{};
  nlmsghdr* message = new_request(buffer, NFT_MSG_GETTABLE, 0);
  mnl_attr_put_strz(message, NFTA_TABLE_NAME, table.c_str());
  Found found;
  std::string& comment = found.comment;
  auto ended = socket_.request(message, [&](const nlmsghdr* answer) {
    for_each_in_message(answer, [&](const nlattr* attribute) {
      if (attribute_type(attribute) == NFTA_TABLE_FLAGS) {
        found.flags = static_cast<uint32_t>(attribute_be(attribute));
      }
      if (attribute_type(attribute) != NFTA_TABLE_USERDATA) return;
      auto bytes = attribute_bytes(attribute);
      if (bytes.size() >= 2 && bytes[0] == NFTNL_UDATA_TABLE_COMMENT &&
          bytes.size() >= 2U + bytes[1]) {
        comment.assign(bytes.begin() + 2, bytes.begin() + 2 + bytes[1]);
        while (!comment.empty() && comment.back() == '\0') comment.pop_back();
      }
    });
  });
  if (!ended) return pass_on(ended);
  if (*ended == ENOENT) return std::optional<Found>{};
  if (*ended != 0)
    return fail_sys(*ended, "nft_read", fmt::format("cannot read table inet {}", table));
  return std::optional<Found>{std::move(found)};
}

Status Table::ensure(const HostRules& host) {
  if (is_off()) return {};
  auto found = find_table(name_);
  if (!found) return pass_on(found);
  bool create = !found->has_value();
  if (!create && (*found)->comment != table_comment_ours) {
    return fail(
        ErrorKind::conflict, "nft_table_foreign",
        fmt::format("table inet {} exists and is not ours: its comment is \"{}\", not \"{}\"",
                    name_, (*found)->comment, table_comment_ours),
        "delete it, or choose another name with --table");
  }
  if (!create && check_rules(host)) return {};
  if (auto installed = install(host, create); !installed) return installed;
  return check_rules(host);
}

Status Table::install(const HostRules& host, bool create) {
  Batch batch;
  std::vector<std::string> objects;

  auto table = allocated(TablePointer(nftnl_table_alloc()));
  nftnl_table_set_str(table.get(), NFTNL_TABLE_NAME, name_.c_str());
  nftnl_table_set_u32(table.get(), NFTNL_TABLE_FAMILY, NFPROTO_INET);
  nftnl_table_set_u32(table.get(), NFTNL_TABLE_FLAGS, 0);  // wakes one that was made dormant
  std::string comment =
      user_data(NFTNL_UDATA_TABLE_COMMENT, std::string(table_comment_ours) + '\0');
  nftnl_table_set_data(table.get(), NFTNL_TABLE_USERDATA, comment.data(),
                       static_cast<uint32_t>(comment.size()));
  // If another program made one of that name since we looked, NLM_F_EXCL has the kernel refuse.
  nftnl_table_nlmsg_build_payload(
      batch.begin(NFT_MSG_NEWTABLE,
                  static_cast<uint16_t>(NLM_F_CREATE | (create ? NLM_F_EXCL : 0))),
      table.get());
  objects.emplace_back("the table");

  for (size_t i = 0; i < sets_count; ++i) {
    const SetSchema& each = schema(static_cast<SetId>(i));
    SetPointer set = make_set(name_, each);
    nftnl_set_nlmsg_build_payload(batch.begin(NFT_MSG_NEWSET, NLM_F_CREATE), set.get());
    objects.push_back(fmt::format("set {}", each.name));
  }
  for (const Chain& each : chains()) {
    auto chain = allocated(ChainPointer(nftnl_chain_alloc()));
    nftnl_chain_set_str(chain.get(), NFTNL_CHAIN_TABLE, name_.c_str());
    nftnl_chain_set_str(chain.get(), NFTNL_CHAIN_NAME, each.name);
    if (each.hook >= 0) {
      nftnl_chain_set_str(chain.get(), NFTNL_CHAIN_TYPE, "filter");
      nftnl_chain_set_u32(chain.get(), NFTNL_CHAIN_HOOKNUM, static_cast<uint32_t>(each.hook));
      nftnl_chain_set_s32(chain.get(), NFTNL_CHAIN_PRIO, chain_priority);
      nftnl_chain_set_u32(chain.get(), NFTNL_CHAIN_POLICY, NF_DROP);
    }
    nftnl_chain_nlmsg_build_payload(batch.begin(NFT_MSG_NEWCHAIN, NLM_F_CREATE), chain.get());
    objects.push_back(fmt::format("chain {}", each.name));
  }
  for (const Chain& each : chains()) {
    nlmsghdr* message = batch.begin(NFT_MSG_DELRULE, 0);
    mnl_attr_put_strz(message, NFTA_RULE_TABLE, name_.c_str());
    mnl_attr_put_strz(message, NFTA_RULE_CHAIN, each.name);
    objects.push_back(fmt::format("flushing chain {}", each.name));
  }
  for (const RulePointer& rule : render(name_, host)) {
    nftnl_rule_nlmsg_build_payload(batch.begin(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
                                   rule.get());
    objects.push_back(fmt::format("chain {} rule {}",
                                  nftnl_rule_get_str(rule.get(), NFTNL_RULE_CHAIN),
                                  canonical_text(rule.get())));
  }

  auto answer = socket_.transact(batch);
  if (!answer) return pass_on(answer, fmt::format("table inet {}", name_));
  if (answer->empty()) return {};
  return refused(*answer, objects, name_);
}

Status Table::check_rules(const HostRules& host) {
  if (is_off()) return {};
  auto table = find_table(name_);
  if (!table) return pass_on(table);
  if (!table->has_value()) {
    return fail(ErrorKind::not_found, "nft_table_missing",
                fmt::format("there is no table inet {}", name_));
  }
  if ((*table)->flags != 0) {
    return fail(ErrorKind::conflict, "nft_table_flags",
                fmt::format("table inet {} has flags {:#x}: dormant, or owned by another program",
                            name_, (*table)->flags));
  }
  if (auto sets = check_sets(); !sets) return sets;
  if (auto all = check_chains(); !all) return all;

  std::map<std::string, std::vector<std::string>> wanted, found;
  for (const RulePointer& rule : render(name_, host)) {
    wanted[nftnl_rule_get_str(rule.get(), NFTNL_RULE_CHAIN)].push_back(canonical_text(rule.get()));
  }
  int ended = EINTR;
  for (int attempt = 0; attempt < dump_attempts_max && ended == EINTR; ++attempt) {
    found.clear();
    std::array<char, 512> buffer{};
    nlmsghdr* message = new_request(buffer, NFT_MSG_GETRULE, NLM_F_DUMP);
    mnl_attr_put_strz(message, NFTA_RULE_TABLE, name_.c_str());
    auto dumped = socket_.request(message, [&](const nlmsghdr* answer) {
      RulePointer rule(nftnl_rule_alloc());
      CHECK(rule);
      if (nftnl_rule_nlmsg_parse(answer, rule.get()) < 0) return;
      if (name_ != nftnl_rule_get_str(rule.get(), NFTNL_RULE_TABLE)) return;
      found[nftnl_rule_get_str(rule.get(), NFTNL_RULE_CHAIN)].push_back(canonical_text(rule.get()));
    });
    if (!dumped) return pass_on(dumped);
    ended = *dumped;
  }
  if (ended != 0)
    return fail_sys(ended, "nft_read", fmt::format("cannot read the rules of {}", name_));
  for (const auto& [chain, rules] : wanted) {
    const auto& there = found[chain];
    auto at = std::mismatch(rules.begin(), rules.end(), there.begin(), there.end());
    if (at.first == rules.end() && at.second == there.end()) continue;
    return fail(ErrorKind::conflict, "nft_rules_differ",
                fmt::format("table inet {}: rule {} of chain {} is \"{}\", not \"{}\"", name_,
                            at.first - rules.begin() + 1, chain,
                            at.second == there.end() ? "missing" : *at.second,
                            at.first == rules.end() ? "none" : *at.first),
                "another program changed it; the daemon puts it back");
  }
  return {};
}

Status Table::check_sets() {
  std::array<bool, sets_count> seen{};
  std::string different;
  int ended = EINTR;
  for (int attempt = 0; attempt < dump_attempts_max && ended == EINTR; ++attempt) {
    seen.fill(false);
    std::array<char, 512> buffer{};
    nlmsghdr* message = new_request(buffer, NFT_MSG_GETSET, NLM_F_DUMP);
    mnl_attr_put_strz(message, NFTA_SET_TABLE, name_.c_str());
    auto dumped = socket_.request(message, [&](const nlmsghdr* answer) {
      auto set = allocated(SetPointer(nftnl_set_alloc()));
      if (nftnl_set_nlmsg_parse(answer, set.get()) < 0) return;
      if (name_ != nftnl_set_get_str(set.get(), NFTNL_SET_TABLE)) return;
      auto id = find_set(nftnl_set_get_str(set.get(), NFTNL_SET_NAME));
      if (!id) return;
      const SetSchema& ours = schema(*id);
      seen[static_cast<size_t>(*id)] = true;
      if (nftnl_set_get_u32(set.get(), NFTNL_SET_FLAGS) != set_flags(ours) ||
          nftnl_set_get_u32(set.get(), NFTNL_SET_KEY_TYPE) != ours.key_type() ||
          nftnl_set_get_u32(set.get(), NFTNL_SET_KEY_LEN) != ours.key_bytes ||
          (ours.timed &&
           nftnl_set_get_u64(set.get(), NFTNL_SET_TIMEOUT) != element_timeout_max_ms)) {
        different = ours.name;
      }
    });
    if (!dumped) return pass_on(dumped);
    ended = *dumped;
  }
  if (ended != 0)
    return fail_sys(ended, "nft_read", fmt::format("cannot read the sets of {}", name_));
  if (!different.empty()) {
    return fail(ErrorKind::conflict, "nft_set_differs",
                fmt::format("table inet {}: set {} is not the set Holdfast made", name_, different),
                "another program replaced it; `holdfast node detach` and start again");
  }
  for (size_t i = 0; i < sets_count; ++i) {
    if (!seen[i]) {
      return fail(
          ErrorKind::conflict, "nft_set_missing",
          fmt::format("table inet {} has no set {}", name_, schema(static_cast<SetId>(i)).name));
    }
  }
  return {};
}

Status Table::check_chains() {
  std::map<std::string, bool> right;
  int ended = EINTR;
  for (int attempt = 0; attempt < dump_attempts_max && ended == EINTR; ++attempt) {
    right.clear();
    std::array<char, 512> buffer{};
    nlmsghdr* message = new_request(buffer, NFT_MSG_GETCHAIN, NLM_F_DUMP);
    mnl_attr_put_strz(message, NFTA_CHAIN_TABLE, name_.c_str());
    auto dumped = socket_.request(message, [&](const nlmsghdr* answer) {
      auto chain = allocated(ChainPointer(nftnl_chain_alloc()));
      if (nftnl_chain_nlmsg_parse(answer, chain.get()) < 0) return;
      if (name_ != nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_TABLE)) return;
      std::string_view name = nftnl_chain_get_str(chain.get(), NFTNL_CHAIN_NAME);
      for (const Chain& ours : chains()) {
        if (name != ours.name) continue;
        bool base = nftnl_chain_is_set(chain.get(), NFTNL_CHAIN_HOOKNUM);
        right[ours.name] =
            ours.hook < 0
                ? !base
                : base &&
                      nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_HOOKNUM) ==
                          static_cast<uint32_t>(ours.hook) &&
                      nftnl_chain_get_s32(chain.get(), NFTNL_CHAIN_PRIO) == chain_priority &&
                      nftnl_chain_get_u32(chain.get(), NFTNL_CHAIN_POLICY) == NF_DROP;
      }
    });
    if (!dumped) return pass_on(dumped);
    ended = *dumped;
  }
  if (ended != 0)
    return fail_sys(ended, "nft_read", fmt::format("cannot read the chains of {}", name_));
  for (const Chain& ours : chains()) {
    if (!right.contains(ours.name) || !right[ours.name]) {
      return fail(ErrorKind::conflict, "nft_chain_differs",
                  fmt::format("table inet {}: chain {} is missing or not as Holdfast made it",
                              name_, ours.name));
    }
  }
  return {};
}

Status Table::delete_table(const std::string& table, std::string_view comment) {
  auto found = find_table(table);
  if (!found) return pass_on(found);
  if (!found->has_value()) return {};
  if ((*found)->comment != comment) {
    return fail(ErrorKind::conflict, "nft_table_foreign",
                fmt::format("table inet {} is not ours: its comment is \"{}\", not \"{}\"", table,
                            (*found)->comment, comment),
                "it was left alone");
  }
  Batch batch;
  nlmsghdr* message = batch.begin(NFT_MSG_DELTABLE, 0);
  mnl_attr_put_strz(message, NFTA_TABLE_NAME, table.c_str());
  auto answer = socket_.transact(batch);
  if (!answer) return pass_on(answer);
  if (answer->empty() || answer->front().sys == ENOENT) return {};
  return fail_sys(answer->front().sys, "nft_refused",
                  fmt::format("cannot delete table inet {}", table));
}

Status Table::remove() {
  if (is_off()) return {};
  return delete_table(name_, table_comment_ours);
}

Status Table::remove_boot_deny() {
  if (is_off()) return {};
  return delete_table(std::string(boot_deny_table), boot_deny_comment);
}

// ---- elements
// --------------------------------------------------------------------------------------

namespace {

// Names one entry of Changes, so that a million leases are not copied.
enum class List : uint8_t {
  arm,
  disarm,
  add_tenants,
  remove_tenants,
  own,
  disown,
  writes,
  removals
};
struct Item {
  List list;
  uint32_t index;
};

ElementKey key_of(const Changes& changes, Item item) {
  switch (item.list) {
    case List::arm: return interface_key(SetId::armed, changes.arm[item.index]);
    case List::disarm: return interface_key(SetId::armed, changes.disarm[item.index]);
    case List::add_tenants: return interface_key(SetId::tenants, changes.add_tenants[item.index]);
    case List::remove_tenants:
      return interface_key(SetId::tenants, changes.remove_tenants[item.index]);
    case List::own: return owned_key(changes.own[item.index]);
    case List::disown: return owned_key(changes.disown[item.index]);
    case List::writes:
      return lease_key(changes.writes[item.index].element, changes.writes[item.index].side);
    case List::removals:
      return lease_key(changes.removals[item.index].element, changes.removals[item.index].side);
  }
  CHECK(false);
}

SetId set_of(const Changes& changes, Item item) {
  switch (item.list) {
    case List::arm:
    case List::disarm: return SetId::armed;
    case List::add_tenants:
    case List::remove_tenants: return SetId::tenants;
    case List::own: return owned_set(changes.own[item.index]);
    case List::disown: return owned_set(changes.disown[item.index]);
    case List::writes:
      return lease_set(changes.writes[item.index].element, changes.writes[item.index].side);
    case List::removals:
      return lease_set(changes.removals[item.index].element, changes.removals[item.index].side);
  }
  CHECK(false);
}

uint32_t timeout_of(const Changes& changes, Item item) {
  return item.list == List::writes ? changes.writes[item.index].timeout_ms : 0;
}

std::string describe(const Changes& changes, Item item) {
  switch (item.list) {
    case List::arm: return fmt::format("armed: interface {}", changes.arm[item.index]);
    case List::disarm: return fmt::format("armed: interface {}", changes.disarm[item.index]);
    case List::add_tenants:
      return fmt::format("tenants: interface {}", changes.add_tenants[item.index]);
    case List::remove_tenants:
      return fmt::format("tenants: interface {}", changes.remove_tenants[item.index]);
    case List::own: return describe(changes.own[item.index]);
    case List::disown: return describe(changes.disown[item.index]);
    case List::writes:
      return describe(changes.writes[item.index].element, changes.writes[item.index].side);
    case List::removals:
      return describe(changes.removals[item.index].element, changes.removals[item.index].side);
  }
  CHECK(false);
}

// What one transaction deletes and adds. Deletions come first, so that a set may lose and gain the
// same key: that is how a timeout is renewed.
struct Plan {
  using Items = std::array<std::vector<Item>, sets_count>;
  Items removals, additions;

  // Every entry of the list becomes an item of its set.
  template <typename Entries>
  static void add_all(Items& items, const Changes& changes, List list, const Entries& entries) {
    for (uint32_t i = 0; i < entries.size(); ++i) {
      Item item{list, i};
      items[static_cast<size_t>(set_of(changes, item))].push_back(item);
    }
  }

  static Plan of(const Changes& changes) {
    Plan plan;
    add_all(plan.removals, changes, List::disarm, changes.disarm);
    add_all(plan.removals, changes, List::remove_tenants, changes.remove_tenants);
    add_all(plan.removals, changes, List::disown, changes.disown);
    add_all(plan.removals, changes, List::removals, changes.removals);
    add_all(plan.additions, changes, List::arm, changes.arm);
    add_all(plan.additions, changes, List::add_tenants, changes.add_tenants);
    add_all(plan.additions, changes, List::own, changes.own);
    add_all(plan.additions, changes, List::writes, changes.writes);
    return plan;
  }
};

// Where in the batch which elements are, to name the one that was refused.
struct Sent {
  uint32_t sequence;
  SetId set;
  bool removal;
  size_t first;  // of the set's items
  size_t count;
  size_t first_offset;  // of the first element, from the message's start
  size_t element_bytes;
};

void append_elements(Batch& batch, std::vector<Sent>& sent, const std::string& table,
                     const Changes& changes, SetId set, const std::vector<Item>& items,
                     bool removal) {
  // EXCL: before Linux 6.12 adding a timed element that is there succeeds and refreshes nothing.
  uint16_t flags = removal
                       ? uint16_t{0}
                       : static_cast<uint16_t>(NLM_F_CREATE | (schema(set).timed ? NLM_F_EXCL : 0));
  size_t next = 0;
  while (next < items.size()) {
    nlmsghdr* message = batch.begin(removal ? NFT_MSG_DELSETELEM : NFT_MSG_NEWSETELEM, flags);
    put_list_head(message, table, set);
    nlattr* list = mnl_attr_nest_start(message, NFTA_SET_ELEM_LIST_ELEMENTS);
    Sent entry{batch.sequence(), set, removal, next, 0, message->nlmsg_len, 1};
    size_t bytes = 0;
    while (next < items.size() && bytes < elements_bytes_max) {
      Item item = items[next];
      entry.element_bytes =
          put_element(message, key_of(changes, item), removal ? 0 : timeout_of(changes, item));
      bytes += entry.element_bytes;
      ++next;
    }
    mnl_attr_nest_end(message, list);
    entry.count = next - entry.first;
    sent.push_back(entry);
  }
}

Status check(const Changes& changes) {
  for (const auto* list :
       {&changes.arm, &changes.disarm, &changes.add_tenants, &changes.remove_tenants}) {
    if (std::find(list->begin(), list->end(), 0U) != list->end()) {
      return fail(ErrorKind::invalid, "nft_element", "interface index 0 is none");
    }
  }
  for (const auto* list : {&changes.own, &changes.disown}) {
    for (const OwnedAddress& each : *list) {
      if (each.ifindex == 0) {
        return fail(ErrorKind::invalid, "nft_element", describe(each) + ": names no interface");
      }
    }
  }
  for (const LeaseWrite& each : changes.writes) {
    if (auto good = check(each.element); !good) return good;
    if (each.timeout_ms == 0 || each.timeout_ms > element_timeout_max_ms) {
      return fail(
          ErrorKind::invalid, "nft_timeout",
          fmt::format("{}: a timeout of {} ms is not within 1 to {}",
                      describe(each.element, each.side), each.timeout_ms, element_timeout_max_ms));
    }
  }
  for (const LeaseKey& each : changes.removals) {
    if (auto good = check(each.element); !good) return good;
  }
  return {};
}

Status refused_element(const std::vector<Refusal>& refusals, const std::vector<Sent>& sent,
                       const Plan& plan, const Changes& changes, const std::string& table) {
  const Refusal& first = refusals.front();
  std::string what = "the commit";
  bool removal = false;
  auto entry = std::find_if(sent.begin(), sent.end(),
                            [&](const Sent& each) { return each.sequence == first.sequence; });
  if (entry != sent.end()) {
    removal = entry->removal;
    size_t in_message = 0;
    bool exact = first.offset >= entry->first_offset;
    if (exact) in_message = (first.offset - entry->first_offset) / entry->element_bytes;
    exact = exact && in_message < entry->count;
    const auto& items = (removal ? plan.removals : plan.additions)[static_cast<size_t>(entry->set)];
    what = describe(changes, items[entry->first + (exact ? in_message : 0)]);
    if (!exact && entry->count > 1) {
      what = fmt::format("one of {} elements from {}", entry->count, what);
    }
  }
  std::string text =
      fmt::format("table inet {}: cannot {} {}", table, removal ? "delete" : "add", what);
  if (!first.reason.empty()) text += " (" + first.reason + ")";
  if (first.sys == EEXIST && entry != sent.end() && schema(entry->set).interval) {
    // nf_tables says this of overlapping ranges too, and the very element was looked for before.
    Error error{ErrorKind::conflict, "nft_peer_overlap", first.sys,
                text + ": another lease's peer prefix overlaps this one", "nothing was changed"};
    return std::unexpected(std::move(error));
  }
  return fail_sys(first.sys, "nft_refused", std::move(text), "nothing was changed");
}

// Refusals that only say that elements went since we asked, or are in the way and were not asked
// for.
bool only_stale(const std::vector<Refusal>& refusals, const std::vector<Sent>& sent,
                bool asked_for_all) {
  return std::all_of(refusals.begin(), refusals.end(), [&](const Refusal& refusal) {
    auto entry = std::find_if(sent.begin(), sent.end(),
                              [&](const Sent& each) { return each.sequence == refusal.sequence; });
    if (entry == sent.end()) return false;
    if (entry->removal) return refusal.sys == ENOENT;
    return refusal.sys == EEXIST && schema(entry->set).timed && !asked_for_all;
  });
}

}  // namespace

namespace {

// What is both removed and written, or removed twice, is deleted once.
void keep_first_of_each(std::vector<Item>& items, const Changes& changes) {
  std::vector<std::pair<ElementKey, Item>> keyed;
  keyed.reserve(items.size());
  for (Item item : items) keyed.emplace_back(key_of(changes, item), item);
  std::ranges::sort(keyed, {},
                    [](const auto& each) { return std::tie(each.first.start, each.first.end); });
  auto same = [](const auto& x, const auto& y) {
    return x.first.start == y.first.start && x.first.end == y.first.end;
  };
  keyed.erase(std::unique(keyed.begin(), keyed.end(), same), keyed.end());
  items.clear();
  for (const auto& [key, item] : keyed) items.push_back(item);
}

}  // namespace

Status Table::apply(const Changes& changes) {
  if (is_off()) return {};
  if (changes.empty()) return {};
  if (auto good = check(changes); !good) return good;
  Plan plan = Plan::of(changes);
  const Plan::Items every_removal = plan.removals;

  for (int attempt = 0;; ++attempt) {
    // What to delete: of the removals, and after a refusal of all that may be in the way of an
    // addition, what is there; at first also what a renewal expects to be in its way.
    for (size_t set = 0; set < sets_count; ++set) {
      std::vector<Item> asked = every_removal[set];
      std::vector<Item>& removals = plan.removals[set];
      removals.clear();
      if (schema(static_cast<SetId>(set)).timed) {
        for (Item item : plan.additions[set]) {
          if (attempt > 0) {
            asked.push_back(item);
          } else if (changes.writes[item.index].replaces) {
            removals.push_back(item);
          }
        }
      }
      if (asked.empty()) continue;
      auto there = read_elements(asked.size(), [&](size_t i) { return key_of(changes, asked[i]); });
      if (!there) return pass_on(there);
      for (size_t i = 0; i < asked.size(); ++i) {
        if ((*there)[i]) removals.push_back(asked[i]);
      }
      keep_first_of_each(removals, changes);
    }

    Batch batch;
    std::vector<Sent> sent;
    size_t elements = 0;
    for (size_t set = 0; set < sets_count; ++set) {
      elements += plan.removals[set].size() + plan.additions[set].size();
    }
    batch.reserve(elements * 56);
    for (size_t set = 0; set < sets_count; ++set) {
      auto id = static_cast<SetId>(set);
      append_elements(batch, sent, name_, changes, id, plan.removals[set], true);
      append_elements(batch, sent, name_, changes, id, plan.additions[set], false);
    }
    if (batch.empty()) return {};
    auto answer = socket_.transact(batch);
    if (!answer) return pass_on(answer, fmt::format("table inet {}", name_));
    if (answer->empty()) return {};
    if (attempt + 1 == apply_attempts_max || !only_stale(*answer, sent, attempt > 0)) {
      return refused_element(*answer, sent, plan, changes, name_);
    }
  }
}

Result<std::vector<std::optional<uint32_t>>> Table::read_elements(
    size_t count, const std::function<ElementKey(size_t)>& key_at) {
  std::vector<std::optional<uint32_t>> out(count);
  std::vector<char> buffer(MNL_NLMSG_HDRLEN + elements_bytes_max + 4096);
  std::vector<ElementKey> keys;
  size_t next = 0;
  // How many keys to ask for at once: an absent one ends the answer, and the rest was asked in
  // vain.
  size_t window = read_back_max;
  bool table_seen = false;
  while (next < count) {
    keys.clear();
    nlmsghdr* message = new_request(buffer, NFT_MSG_GETSETELEM, 0);
    ElementKey key = key_at(next);
    put_list_head(message, name_, key.set);
    nlattr* list = mnl_attr_nest_start(message, NFTA_SET_ELEM_LIST_ELEMENTS);
    size_t bytes = 0;
    while (keys.size() < window && bytes < elements_bytes_max) {
      bytes += put_element(message, key, 0);
      keys.push_back(key);
      if (next + keys.size() == count) break;
      key = key_at(next + keys.size());
      if (key.set != keys.front().set) break;
    }
    mnl_attr_nest_end(message, list);

    // The kernel answers key by key and stops at the first that is not there.
    size_t answered = 0;
    bool timed = schema(keys.front().set).timed;
    bool interval = schema(keys.front().set).interval;
    auto ended = socket_.request(message, [&](const nlmsghdr* answer) {
      for_each_element(answer, [&](const ElementAnswer& element) {
        if (answered >= keys.size()) return;
        const ElementKey& asked = keys[answered];
        // A set with intervals answers with whichever element holds the key.
        bool same = std::ranges::equal(element.key, asked.key()) &&
                    (!interval || std::ranges::equal(element.key_end, asked.key_end()));
        if (same && (!timed || element.expiration_ms > 0)) {
          out[next + answered] =
              static_cast<uint32_t>(std::min<uint64_t>(element.expiration_ms, UINT32_MAX));
        }
        ++answered;
      });
    });
    if (!ended) return pass_on(ended);
    if (*ended == 0) {
      if (answered != keys.size()) {
        return fail(ErrorKind::internal, "nft_read",
                    fmt::format("table inet {}: {} elements were asked for, {} answered", name_,
                                keys.size(), answered));
      }
      next += keys.size();
      window = std::min(window * 2, read_back_max);
    } else if (*ended == ENOENT && answered < keys.size()) {
      // The same errno says that there is no such table, which must not read as "absent, so
      // revoked".
      if (!table_seen) {
        auto exists = find_table(name_);
        if (!exists) return pass_on(exists);
        if (!exists->has_value()) {
          return fail(ErrorKind::not_found, "nft_table_missing",
                      fmt::format("there is no table inet {}", name_), "the daemon makes it again");
        }
        table_seen = true;
      }
      window = std::clamp<size_t>(answered * 2, read_back_min, read_back_max);
      next += answered + 1;
    } else {
      return fail_sys(*ended, "nft_read",
                      fmt::format("cannot read back set {} of table inet {}",
                                  schema(keys.front().set).name, name_));
    }
  }
  return out;
}

namespace {

bool is_written(const std::vector<Item>& additions, const Changes& changes, Item removal) {
  ElementKey key = key_of(changes, removal);
  return std::any_of(additions.begin(), additions.end(), [&](Item each) {
    ElementKey other = key_of(changes, each);
    return other.start == key.start && other.end == key.end;
  });
}

}  // namespace

Status Table::verify(const Changes& changes) {
  if (is_off()) return {};
  if (auto good = check(changes); !good) return good;
  Plan plan = Plan::of(changes);
  for (size_t set = 0; set < sets_count; ++set) {
    for (bool removal : {false, true}) {
      const auto& items = removal ? plan.removals[set] : plan.additions[set];
      auto there = read_elements(items.size(), [&](size_t i) { return key_of(changes, items[i]); });
      if (!there) return pass_on(there);
      for (size_t i = 0; i < items.size(); ++i) {
        const auto& left_ms = (*there)[i];
        const char* wrong = nullptr;
        if (removal && left_ms && !is_written(plan.additions[set], changes, items[i])) {
          wrong = "is still there";
        }
        if (!removal && !left_ms) wrong = "is not there";
        if (!removal && left_ms && *left_ms > timeout_of(changes, items[i]))
          wrong = "lives too long";
        if (wrong != nullptr) {
          return fail(
              ErrorKind::conflict, "nft_read_back",
              fmt::format("table inet {}: {} {}", name_, describe(changes, items[i]), wrong));
        }
      }
    }
  }
  return {};
}

Result<std::vector<std::optional<uint32_t>>> Table::remaining_ms(std::span<const LeaseKey> leases) {
  if (is_off()) return std::vector<std::optional<uint32_t>>(leases.size());
  for (const LeaseKey& each : leases) {
    if (auto good = check(each.element); !good) return pass_on(good);
  }
  return read_elements(leases.size(),
                       [&](size_t i) { return lease_key(leases[i].element, leases[i].side); });
}

Result<bool> Table::has(const ElementKey& key) {
  auto there = read_elements(1, [&](size_t) { return key; });
  if (!there) return pass_on(there);
  return there->front().has_value();
}

Result<bool> Table::is_armed(uint32_t ifindex) {
  return has(interface_key(SetId::armed, ifindex));
}
Result<bool> Table::is_tenant(uint32_t ifindex) {
  return has(interface_key(SetId::tenants, ifindex));
}
Result<bool> Table::is_owned(const OwnedAddress& owned) {
  return has(owned_key(owned));
}

Result<uint64_t> Table::count(std::string_view set) {
  auto id = find_set(set);
  if (!id) {
    return fail(ErrorKind::not_found, "nft_set",
                fmt::format("no set of ours is named \"{}\"", set));
  }
  for (int attempt = 0; attempt < dump_attempts_max; ++attempt) {
    uint64_t live = 0;
    std::array<char, 512> buffer{};
    nlmsghdr* message = new_request(buffer, NFT_MSG_GETSETELEM, NLM_F_DUMP);
    put_list_head(message, name_, *id);
    auto ended = socket_.request(message, [&](const nlmsghdr* answer) {
      for_each_element(answer, [&](const ElementAnswer& element) {
        if (!schema(*id).timed || element.expiration_ms > 0) ++live;
      });
    });
    if (!ended) return pass_on(ended);
    if (*ended == 0) return live;
    if (*ended != EINTR) {
      return fail_sys(*ended, "nft_read",
                      fmt::format("cannot list set {} of table inet {}", set, name_));
    }
  }
  return fail(ErrorKind::unavailable, "nft_busy",
              fmt::format("set {} of table inet {} changed each time it was listed", set, name_));
}

}  // namespace holdfast::nft
