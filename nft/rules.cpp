#include "nft/rules.hpp"

#include <cstring>
#include <initializer_list>
#include <span>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/udata.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tuple_common.h>
#include <linux/netfilter/nf_tables.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>

#include "nft/sets.hpp"
#include "policy/address.hpp"
#include "policy/metadata.hpp"
#include "userspace/base/check.hpp"

namespace holdfast::nft {
namespace {

Prefix prefix_of(std::string_view text) {
  const Result<Prefix> prefix = parse_prefix(text);
  CHECK(prefix);
  return *prefix;
}

enum class Family { v4, v6 };

// What a rule may put into a set key, side by side in registers.
enum class Load {
  iif,
  oif,
  source,
  destination,
  protocol,
  source_port,
  destination_port,
  // Of the flow an ICMP error quotes. Its endpoint as the tenant knows it (after DNAT) is where its
  // replies come from, its peer is who began it.
  flow_endpoint,
  flow_protocol,
  flow_port,
  flow_origin,
};

constexpr uint32_t state_established = NF_CT_STATE_BIT(IP_CT_ESTABLISHED);
constexpr uint32_t state_related = NF_CT_STATE_BIT(IP_CT_RELATED);
constexpr uint32_t state_new = NF_CT_STATE_BIT(IP_CT_NEW);

constexpr uint8_t tcp_syn = 0x02;
constexpr uint8_t tcp_ack = 0x10;

// The kernel names a register by the widest unit it starts: 0, 4, 8 and 12 are NFT_REG_1 to 4.
uint32_t register_at(uint32_t slot) {
  CHECK(slot < 16);
  return slot % 4 == 0 ? NFT_REG_1 + slot / 4 : NFT_REG32_00 + slot;
}

constexpr uint8_t icmp_of(Family family) {
  return family == Family::v4 ? uint8_t{IPPROTO_ICMP} : uint8_t{IPPROTO_ICMPV6};
}

class RuleWriter {
 public:
  RuleWriter(std::vector<RulePointer>& out, const std::string& table, const char* chain)
      : out_(out), rule_(nftnl_rule_alloc()) {
    CHECK(rule_);
    nftnl_rule_set_u32(rule_.get(), NFTNL_RULE_FAMILY, NFPROTO_INET);
    nftnl_rule_set_str(rule_.get(), NFTNL_RULE_TABLE, table.c_str());
    nftnl_rule_set_str(rule_.get(), NFTNL_RULE_CHAIN, chain);
  }

  RuleWriter& family(Family family) {
    family_ = family;
    load_meta(NFT_META_NFPROTO, 0);
    uint8_t value = family == Family::v4 ? NFPROTO_IPV4 : NFPROTO_IPV6;
    return compare(NFT_CMP_EQ, &value, sizeof(value));
  }

  RuleWriter& iif_is(uint32_t ifindex) {
    load_meta(NFT_META_IIF, 0);
    return compare(NFT_CMP_EQ, &ifindex, sizeof(ifindex));
  }

  RuleWriter& protocol_is(uint8_t protocol) {
    load_meta(NFT_META_L4PROTO, 0);
    return compare(NFT_CMP_EQ, &protocol, sizeof(protocol));
  }
  RuleWriter& protocol_is_not(uint8_t protocol) {
    load_meta(NFT_META_L4PROTO, 0);
    return compare(NFT_CMP_NEQ, &protocol, sizeof(protocol));
  }

  // ICMP of the family.
  RuleWriter& icmp_is(Family version, uint8_t type) {
    family(version);
    protocol_is(icmp_of(version));
    load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, 0);
    return compare(NFT_CMP_EQ, &type, sizeof(type));
  }

  RuleWriter& source_port_is(uint16_t port) { return port_is(0, port); }
  RuleWriter& destination_port_is(uint16_t port) { return port_is(2, port); }

  // A TCP segment that begins a connection.
  RuleWriter& tcp_begins() {
    protocol_is(IPPROTO_TCP);
    load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1, 0);
    uint8_t mask = tcp_syn | tcp_ack;
    bitwise(&mask, sizeof(mask));
    return compare(NFT_CMP_EQ, &tcp_syn, sizeof(tcp_syn));
  }

  RuleWriter& source_in(const Prefix& prefix) { return address_in(true, prefix); }
  RuleWriter& destination_in(const Prefix& prefix) { return address_in(false, prefix); }

  RuleWriter& in(SetId set, std::initializer_list<Load> key) { return lookup(set, key, 0); }
  RuleWriter& not_in(SetId set, std::initializer_list<Load> key) {
    return lookup(set, key, NFT_LOOKUP_F_INV);
  }

  RuleWriter& state_is(uint32_t states) { return state(states, NFT_CMP_NEQ); }
  RuleWriter& state_is_not(uint32_t states) { return state(states, NFT_CMP_EQ); }
  RuleWriter& direction_is(uint8_t direction) { return direction_test(direction, NFT_CMP_EQ); }
  RuleWriter& direction_is_not(uint8_t direction) { return direction_test(direction, NFT_CMP_NEQ); }

  // The flow an ICMP error quotes is of this protocol.
  RuleWriter& flow_protocol_is(uint8_t protocol) {
    load_ct(NFT_CT_PROTOCOL, -1, 0);
    return compare(NFT_CMP_EQ, &protocol, sizeof(protocol));
  }

  void accept() { finish(NF_ACCEPT, nullptr, {}); }
  void pass() { finish(NFT_RETURN, nullptr, {}); }
  void jump(const char* chain) { finish(NFT_JUMP, chain, {}); }
  void go_to(const char* chain) { finish(NFT_GOTO, chain, {}); }
  void drop(std::string_view reason) {
    add("counter");
    finish(NF_DROP, nullptr, reason);
  }

 private:
  nftnl_expr* add(const char* kind) {
    nftnl_expr* expression = nftnl_expr_alloc(kind);
    CHECK(expression != nullptr);
    nftnl_rule_add_expr(rule_.get(), expression);
    return expression;
  }

  void load_meta(uint32_t key, uint32_t slot) {
    nftnl_expr* e = add("meta");
    nftnl_expr_set_u32(e, NFTNL_EXPR_META_KEY, key);
    nftnl_expr_set_u32(e, NFTNL_EXPR_META_DREG, register_at(slot));
  }
  void load_payload(uint32_t base, uint32_t offset, uint32_t length, uint32_t slot) {
    nftnl_expr* e = add("payload");
    nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_DREG, register_at(slot));
    nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_BASE, base);
    nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_OFFSET, offset);
    nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_LEN, length);
  }
  void load_ct(uint32_t key, int direction, uint32_t slot) {
    nftnl_expr* e = add("ct");
    nftnl_expr_set_u32(e, NFTNL_EXPR_CT_KEY, key);
    nftnl_expr_set_u32(e, NFTNL_EXPR_CT_DREG, register_at(slot));
    if (direction >= 0) nftnl_expr_set_u8(e, NFTNL_EXPR_CT_DIR, static_cast<uint8_t>(direction));
  }
  RuleWriter& compare(uint32_t operation, const void* value, uint32_t length) {
    nftnl_expr* e = add("cmp");
    nftnl_expr_set_u32(e, NFTNL_EXPR_CMP_SREG, NFT_REG_1);
    nftnl_expr_set_u32(e, NFTNL_EXPR_CMP_OP, operation);
    nftnl_expr_set(e, NFTNL_EXPR_CMP_DATA, value, length);
    return *this;
  }
  void bitwise(const void* mask, uint32_t length) {
    constexpr std::array<uint8_t, 16> zero{};
    nftnl_expr* e = add("bitwise");
    nftnl_expr_set_u32(e, NFTNL_EXPR_BITWISE_SREG, NFT_REG_1);
    nftnl_expr_set_u32(e, NFTNL_EXPR_BITWISE_DREG, NFT_REG_1);
    nftnl_expr_set_u32(e, NFTNL_EXPR_BITWISE_OP, NFT_BITWISE_BOOL);
    nftnl_expr_set_u32(e, NFTNL_EXPR_BITWISE_LEN, length);
    nftnl_expr_set(e, NFTNL_EXPR_BITWISE_MASK, mask, length);
    nftnl_expr_set(e, NFTNL_EXPR_BITWISE_XOR, zero.data(), length);
  }

  RuleWriter& port_is(uint32_t offset, uint16_t port) {
    uint16_t value = htons(port);
    load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, offset, sizeof(value), 0);
    return compare(NFT_CMP_EQ, &value, sizeof(value));
  }

  RuleWriter& address_in(bool source, const Prefix& prefix) {
    bool v4 = prefix.address.is_v4() && prefix.bits >= v4_offset_bits;
    family(v4 ? Family::v4 : Family::v6);
    uint32_t skip = v4 ? 12 : 0;
    uint32_t length = 16 - skip;
    uint32_t bits = prefix.bits - (v4 ? v4_offset_bits : 0U);
    if (bits == 0) return *this;
    load_address(source, 0);
    std::array<uint8_t, 16> mask{};
    for (uint32_t i = 0; i < bits; ++i)
      mask[i / 8] = static_cast<uint8_t>(mask[i / 8] | 0x80U >> i % 8);
    if (bits < 8 * length) bitwise(mask.data(), length);
    return compare(NFT_CMP_EQ, &prefix.address.bytes[skip], length);
  }
  void load_address(bool source, uint32_t slot) {
    bool v4 = family_ == Family::v4;
    uint32_t offset = v4 ? (source ? 12U : 16U) : (source ? 8U : 24U);
    load_payload(NFT_PAYLOAD_NETWORK_HEADER, offset, v4 ? 4 : 16, slot);
  }

  RuleWriter& state(uint32_t states, uint32_t operation) {
    uint32_t none = 0;
    load_ct(NFT_CT_STATE, -1, 0);
    bitwise(&states, sizeof(states));
    return compare(operation, &none, sizeof(none));
  }
  RuleWriter& direction_test(uint8_t direction, uint32_t operation) {
    load_ct(NFT_CT_DIRECTION, -1, 0);
    return compare(operation, &direction, sizeof(direction));
  }

  RuleWriter& lookup(SetId set, std::initializer_list<Load> key, uint32_t flags) {
    std::span<const Part> parts = schema(set).key();
    CHECK(parts.size() == key.size());
    bool v4 = family_ == Family::v4;
    uint32_t slot = 0;
    const Part* part = parts.data();
    for (Load load : key) {
      switch (load) {
        case Load::iif:
        case Load::oif:
          load_meta(load == Load::iif ? NFT_META_IIF : NFT_META_OIF, slot);
          if (schema(set).interval) to_network_order(slot);
          break;
        case Load::source: load_address(true, slot); break;
        case Load::destination: load_address(false, slot); break;
        case Load::protocol: load_meta(NFT_META_L4PROTO, slot); break;
        case Load::source_port: load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, slot); break;
        case Load::destination_port: load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, slot); break;
        case Load::flow_endpoint:
          load_ct(v4 ? NFT_CT_SRC_IP : NFT_CT_SRC_IP6, IP_CT_DIR_REPLY, slot);
          break;
        case Load::flow_protocol: load_ct(NFT_CT_PROTOCOL, -1, slot); break;
        case Load::flow_port: load_ct(NFT_CT_PROTO_SRC, IP_CT_DIR_REPLY, slot); break;
        case Load::flow_origin:
          load_ct(v4 ? NFT_CT_SRC_IP : NFT_CT_SRC_IP6, IP_CT_DIR_ORIGINAL, slot);
          break;
      }
      slot += (part_bytes(*part++) + 3U) / 4;
    }
    nftnl_expr* e = add("lookup");
    nftnl_expr_set_u32(e, NFTNL_EXPR_LOOKUP_SREG, NFT_REG_1);
    nftnl_expr_set_str(e, NFTNL_EXPR_LOOKUP_SET, schema(set).name);
    nftnl_expr_set_u32(e, NFTNL_EXPR_LOOKUP_FLAGS, flags);
    return *this;
  }
  void to_network_order(uint32_t slot) {
    nftnl_expr* e = add("byteorder");
    nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_SREG, register_at(slot));
    nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_DREG, register_at(slot));
    nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_OP, NFT_BYTEORDER_HTON);
    nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_LEN, 4);
    nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_SIZE, 4);
  }

  void finish(int verdict, const char* chain, std::string_view comment) {
    nftnl_expr* e = add("immediate");
    nftnl_expr_set_u32(e, NFTNL_EXPR_IMM_DREG, NFT_REG_VERDICT);
    if (chain != nullptr) nftnl_expr_set_str(e, NFTNL_EXPR_IMM_CHAIN, chain);
    nftnl_expr_set_u32(e, NFTNL_EXPR_IMM_VERDICT, static_cast<uint32_t>(verdict));
    if (!comment.empty()) {
      // nft's user data: type, length with the terminator, text.
      std::string data;
      data.push_back(char{NFTNL_UDATA_RULE_COMMENT});
      data.push_back(static_cast<char>(comment.size() + 1));
      data.append(comment);
      data.push_back('\0');
      nftnl_rule_set_data(rule_.get(), NFTNL_RULE_USERDATA, data.data(),
                          static_cast<uint32_t>(data.size()));
    }
    out_.push_back(std::move(rule_));
  }

  std::vector<RulePointer>& out_;
  RulePointer rule_;
  Family family_ = Family::v4;
};

constexpr const char* forward = "forward";
constexpr const char* from_tenant = "from_tenant";
constexpr const char* from_tenant_begins = "from_tenant_begins";
constexpr const char* from_tenant_error = "from_tenant_error";
constexpr const char* to_tenant = "to_tenant";
constexpr const char* to_tenant_error = "to_tenant_error";
constexpr const char* input = "input";
constexpr const char* input_from_tenant = "input_from_tenant";

constexpr std::array families = {Family::v4, Family::v6};
constexpr std::array sides = {Side::a, Side::b};

constexpr std::array<uint8_t, 3> icmp_errors = {ICMP_DEST_UNREACH, ICMP_TIME_EXCEEDED,
                                                ICMP_PARAMETERPROB};
constexpr std::array<uint8_t, 4> icmp6_errors = {ICMP6_DST_UNREACH, ICMP6_PACKET_TOO_BIG,
                                                 ICMP6_TIME_EXCEEDED, ICMP6_PARAM_PROB};
constexpr std::array<uint8_t, 4> multicast_listener = {130, 131, 132, 143};  // RFC 2710, RFC 3810
constexpr uint8_t router_solicitation = 133;  // RFC 4861; 137, redirect, is nowhere accepted
constexpr uint8_t router_advertisement = 134;
constexpr uint8_t neighbour_solicitation = 135;
constexpr uint8_t neighbour_advertisement = 136;

SetId by_family(Family family, SetId v4, SetId v6) {
  return family == Family::v4 ? v4 : v6;
}
SetId on(Side side, SetId set_a) {
  return static_cast<SetId>(static_cast<uint8_t>(set_a) + static_cast<uint8_t>(side));
}

class Renderer {
 public:
  explicit Renderer(const std::string& table) : table_(table) {}

  std::vector<RulePointer> run(const HostRules& host) {
    forwarding();
    from_tenants();
    begun_by_tenants();
    to_tenants();
    errors(from_tenant_error, Load::iif, Load::oif);
    errors(to_tenant_error, Load::oif, Load::iif);
    host_input(host);
    return std::move(out_);
  }

 private:
  RuleWriter rule(const char* chain) { return RuleWriter(out_, table_, chain); }

  void forwarding() {
    rule(forward).in(SetId::tenants, {Load::iif}).jump(from_tenant);
    rule(forward).in(SetId::tenants, {Load::oif}).jump(to_tenant);
    rule(forward).in(SetId::armed, {Load::iif}).in(SetId::armed, {Load::oif}).accept();
    rule(forward).drop("unknown_port");
  }

  void only_known_protocols(const char* chain) {
    rule(chain)
        .protocol_is_not(IPPROTO_TCP)
        .protocol_is_not(IPPROTO_UDP)
        .protocol_is_not(IPPROTO_ICMP)
        .protocol_is_not(IPPROTO_ICMPV6)
        .drop("protocol");
  }

  void errors_go_to(const char* chain, const char* target) {
    for (uint8_t type : icmp_errors) rule(chain).icmp_is(Family::v4, type).go_to(target);
    for (uint8_t type : icmp6_errors) rule(chain).icmp_is(Family::v6, type).go_to(target);
  }

  void drop_destination(const Prefix& prefix, std::string_view reason) {
    rule(from_tenant).destination_in(prefix).drop(reason);
  }

  // Link-local addresses are not routable anyway (RFC 3927): one rule for all, and what else there
  // is of metadata addresses.
  void drop_metadata() {
    const Prefix link_local = prefix_of("169.254.0.0/16");
    drop_destination(link_local, "metadata");
    for (const std::string_view text : metadata_addresses) {
      const Prefix address = prefix_of(text);
      if (!link_local.contains(address.address)) drop_destination(address, "metadata");
    }
  }

  void from_tenants() {
    for (Family f : families) {
      rule(from_tenant)
          .family(f)
          .not_in(by_family(f, SetId::owned4, SetId::owned6), {Load::iif, Load::source})
          .drop("spoofed_address");
    }
    only_known_protocols(from_tenant);
    drop_metadata();
    drop_destination(prefix_of("224.0.0.0/3"),
                     "destination_denied");  // multicast, reserved, broadcast
    drop_destination(prefix_of("ff00::/8"), "destination_denied");
    errors_go_to(from_tenant, from_tenant_error);
    // Whoever sends a SYN begins something, from whatever port: that takes an egress lease.
    rule(from_tenant).tcp_begins().go_to(from_tenant_begins);
    for (Family f : families) {
      for (Side side : sides) {
        rule(from_tenant)
            .family(f)
            .in(on(side, by_family(f, SetId::lease4_peer_a, SetId::lease6_peer_a)),
                {Load::iif, Load::source, Load::protocol, Load::source_port, Load::destination})
            .pass();
        rule(from_tenant)
            .icmp_is(f, f == Family::v4 ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY)
            .in(on(side, by_family(f, SetId::echo4_peer_a, SetId::echo6_peer_a)),
                {Load::iif, Load::source, Load::destination})
            .pass();
      }
    }
    // Towards another tenant a lease counts only if it names that peer.
    rule(from_tenant).in(SetId::tenants, {Load::oif}).go_to(from_tenant_begins);
    for (Family f : families) {
      for (Side side : sides) {
        rule(from_tenant)
            .family(f)
            .in(on(side, by_family(f, SetId::lease4_a, SetId::lease6_a)),
                {Load::iif, Load::source, Load::protocol, Load::source_port})
            .pass();
        rule(from_tenant)
            .icmp_is(f, f == Family::v4 ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY)
            .in(on(side, by_family(f, SetId::echo4_a, SetId::echo6_a)), {Load::iif, Load::source})
            .pass();
      }
    }
    rule(from_tenant).go_to(from_tenant_begins);
  }

  // What is not an endpoint's traffic needs an egress lease, and the tenant must have begun the
  // flow: a packet in a flow's reply direction is the answer of an endpoint whose lease is gone.
  void begun_by_tenants() {
    const char* chain = from_tenant_begins;
    rule(chain).direction_is_not(IP_CT_DIR_ORIGINAL).drop("no_lease");
    rule(chain)
        .not_in(SetId::egress_a, {Load::iif})
        .not_in(SetId::egress_b, {Load::iif})
        .drop("no_egress_lease");
    // A TCP flow has to begin with a SYN: conntrack would otherwise take up, mid-stream and as
    // begun by the tenant, a connection into it whose lease was revoked and whose entry was
    // flushed.
    rule(chain)
        .tcp_begins()
        .direction_is(IP_CT_DIR_ORIGINAL)
        .state_is(state_new | state_related)
        .pass();
    rule(chain)
        .protocol_is(IPPROTO_TCP)
        .direction_is(IP_CT_DIR_ORIGINAL)
        .state_is(state_established)
        .pass();
    rule(chain)
        .protocol_is(IPPROTO_UDP)
        .direction_is(IP_CT_DIR_ORIGINAL)
        .state_is(state_new | state_established | state_related)
        .pass();
    for (Family f : families) {
      rule(chain)
          .icmp_is(f, f == Family::v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST)
          .direction_is(IP_CT_DIR_ORIGINAL)
          .state_is(state_new | state_established)
          .pass();
    }
    rule(chain).drop("no_lease");
  }

  void to_tenants() {
    for (Family f : families) {
      rule(to_tenant)
          .family(f)
          .not_in(by_family(f, SetId::owned4, SetId::owned6), {Load::oif, Load::destination})
          .drop("wrong_port");
    }
    only_known_protocols(to_tenant);
    errors_go_to(to_tenant, to_tenant_error);
    for (Side side : sides) {
      rule(to_tenant)
          .in(on(side, SetId::egress_a), {Load::oif})
          .direction_is(IP_CT_DIR_REPLY)
          .state_is(state_established)
          .pass();
    }
    for (Family f : families) {
      for (Side side : sides) {
        rule(to_tenant)
            .family(f)
            .in(on(side, by_family(f, SetId::lease4_peer_a, SetId::lease6_peer_a)),
                {Load::oif, Load::destination, Load::protocol, Load::destination_port,
                 Load::source})
            .pass();
        rule(to_tenant)
            .icmp_is(f, f == Family::v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST)
            .in(on(side, by_family(f, SetId::echo4_peer_a, SetId::echo6_peer_a)),
                {Load::oif, Load::destination, Load::source})
            .pass();
      }
    }
    rule(to_tenant).in(SetId::tenants, {Load::iif}).drop("lateral");
    for (Family f : families) {
      for (Side side : sides) {
        rule(to_tenant)
            .family(f)
            .in(on(side, by_family(f, SetId::lease4_a, SetId::lease6_a)),
                {Load::oif, Load::destination, Load::protocol, Load::destination_port})
            .pass();
        rule(to_tenant)
            .icmp_is(f, f == Family::v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST)
            .in(on(side, by_family(f, SetId::echo4_a, SetId::echo6_a)),
                {Load::oif, Load::destination})
            .pass();
      }
    }
    rule(to_tenant).drop("no_lease");
  }

  // ICMP errors, by the flow they quote (conntrack has checked that they go to that flow's end).
  // `near` is the tenant's side, `far` the other.
  void errors(const char* chain, Load near, Load far) {
    rule(chain).state_is_not(state_related).drop("icmp_unrelated");
    for (Family f : families) {
      for (Side side : sides) {
        rule(chain)
            .family(f)
            .in(on(side, by_family(f, SetId::lease4_peer_a, SetId::lease6_peer_a)),
                {near, Load::flow_endpoint, Load::flow_protocol, Load::flow_port,
                 Load::flow_origin})
            .pass();
        rule(chain)
            .family(f)
            .flow_protocol_is(icmp_of(f))
            .in(on(side, by_family(f, SetId::echo4_peer_a, SetId::echo6_peer_a)),
                {near, Load::flow_endpoint, Load::flow_origin})
            .pass();
        rule(chain)
            .family(f)
            .in(by_family(f, SetId::owned4, SetId::owned6), {near, Load::flow_origin})
            .in(on(side, SetId::egress_a), {near})
            .pass();
      }
    }
    rule(chain).in(SetId::tenants, {far}).drop("lateral");
    for (Family f : families) {
      for (Side side : sides) {
        rule(chain)
            .family(f)
            .in(on(side, by_family(f, SetId::lease4_a, SetId::lease6_a)),
                {near, Load::flow_endpoint, Load::flow_protocol, Load::flow_port})
            .pass();
        rule(chain)
            .family(f)
            .flow_protocol_is(icmp_of(f))
            .in(on(side, by_family(f, SetId::echo4_a, SetId::echo6_a)), {near, Load::flow_endpoint})
            .pass();
      }
    }
    rule(chain).drop("icmp_unrelated");
  }

  void listener(const Listener& listener, const Prefix* from) {
    if (listener.protocol == Protocol::icmp_echo) {
      for (Family f : families) {
        if (from != nullptr && (f == Family::v4) != from->address.is_v4()) continue;
        RuleWriter writer = rule(input);
        if (from != nullptr) writer.source_in(*from);
        writer.icmp_is(f, f == Family::v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST).accept();
      }
      return;
    }
    RuleWriter writer = rule(input);
    if (from != nullptr) writer.source_in(*from);
    writer.protocol_is(static_cast<uint8_t>(listener.protocol))
        .destination_port_is(listener.port)
        .accept();
  }

  void host_input(const HostRules& host) {
    constexpr uint32_t loopback = 1;  // the kernel's LOOPBACK_IFINDEX, in every network namespace
    rule(input).iif_is(loopback).accept();
    rule(input).in(SetId::tenants, {Load::iif}).jump(input_from_tenant);

    // Not removable by policy: without these IPv6 stops, or large packets vanish.
    rule(input).icmp_is(Family::v6, ICMP6_PACKET_TOO_BIG).accept();
    for (uint8_t type : {router_solicitation, router_advertisement, neighbour_solicitation,
                         neighbour_advertisement}) {
      rule(input).icmp_is(Family::v6, type).accept();
    }
    for (uint8_t type : multicast_listener) rule(input).icmp_is(Family::v6, type).accept();

    for (uint16_t port : host.failsafe_ports) {
      rule(input).protocol_is(IPPROTO_TCP).destination_port_is(port).accept();
    }
    for (const Listener& each : host.listeners) {
      if (each.from.empty()) listener(each, nullptr);
      for (const Prefix& from : each.from) listener(each, &from);
    }

    rule(input).direction_is(IP_CT_DIR_REPLY).state_is(state_established).accept();
    for (uint8_t type : icmp_errors) {
      rule(input).icmp_is(Family::v4, type).state_is(state_related).accept();
    }
    for (uint8_t type : icmp6_errors) {
      rule(input).icmp_is(Family::v6, type).state_is(state_related).accept();
    }
    // DHCP and DHCPv6 answers come from an address the request was not sent to.
    rule(input)
        .family(Family::v4)
        .protocol_is(IPPROTO_UDP)
        .source_port_is(67)
        .destination_port_is(68)
        .accept();
    rule(input).family(Family::v6).protocol_is(IPPROTO_UDP).destination_port_is(546).accept();
    for (Family f : families) {
      rule(input)
          .in(SetId::armed, {Load::iif})  // uplinks: tenant ports are dealt with above
          .icmp_is(f, f == Family::v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST)
          .accept();
    }
    rule(input).drop("host");

    for (uint8_t type : {neighbour_solicitation, neighbour_advertisement}) {
      rule(input_from_tenant).icmp_is(Family::v6, type).accept();
    }
    rule(input_from_tenant).drop("host");
  }

  const std::string& table_;
  std::vector<RulePointer> out_;
};

int append_expression(nftnl_expr* expression, void* data) {
  const char* name = nftnl_expr_get_str(expression, NFTNL_EXPR_NAME);
  auto& out = *static_cast<std::string*>(data);
  out += fmt::format("[ {} ", name);
  if (std::strcmp(name, "counter") != 0) {
    std::array<char, 512> text{};
    nftnl_expr_snprintf(text.data(), text.size(), expression, NFTNL_OUTPUT_DEFAULT, 0);
    out += text.data();
  }
  out += "] ";
  return 0;
}

}  // namespace

void RuleDelete::operator()(nftnl_rule* rule) const {
  nftnl_rule_free(rule);
}

std::vector<Chain> chains() {
  return {{from_tenant_begins, -1},   {from_tenant_error, -1},  {from_tenant, -1},
          {to_tenant_error, -1},      {to_tenant, -1},          {input_from_tenant, -1},
          {forward, NF_INET_FORWARD}, {input, NF_INET_LOCAL_IN}};
}

std::vector<RulePointer> render(const std::string& table, const HostRules& host) {
  return Renderer(table).run(host);
}

std::string canonical_text(nftnl_rule* rule) {
  std::string out;
  nftnl_expr_foreach(rule, append_expression, &out);
  if (nftnl_rule_is_set(rule, NFTNL_RULE_USERDATA)) {
    uint32_t length = 0;
    const void* data = nftnl_rule_get_data(rule, NFTNL_RULE_USERDATA, &length);
    if (length > 3) out.append(static_cast<const char*>(data) + 2, length - 3);
  }
  return out;
}

}  // namespace holdfast::nft
