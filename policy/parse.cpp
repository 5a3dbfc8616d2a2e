#include "policy/parse.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "policy/address.hpp"
#include "policy/document.hpp"
#include "policy/runs.hpp"
#include "policy/text.hpp"

namespace holdfast {
namespace {

// ---- what a scalar is
// ------------------------------------------------------------------------------------

enum class ScalarKind {
  text,
  null,
  boolean,
  integer,       // canonical decimal
  octal_like,    // 010: 10, or 8
  other_number,  // 0o17, 0x1f, +5, -0: an integer, but not as we write one
  fraction,      // 1.5, 1e3, .inf
  yaml11,        // text, which YAML 1.1 readers take for a boolean, a number or a date
};

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::ranges::find(words, text) != words.end();
}

// Takes what matches off the front; answers how many characters.
template <typename Predicate>
size_t skip(std::string_view& text, Predicate matches) {
  size_t count = 0;
  while (count < text.size() && matches(text[count])) ++count;
  text.remove_prefix(count);
  return count;
}

bool is_fraction(std::string_view number) {
  if (one_of(number, {".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"})) return true;
  size_t digits = skip(number, is_digit);
  if (number.starts_with('.')) {
    number.remove_prefix(1);
    digits += skip(number, is_digit);
  }
  if (digits == 0) return false;
  if (number.empty()) return true;
  if (number.front() != 'e' && number.front() != 'E') return false;
  number.remove_prefix(1);
  if (number.starts_with('+') || number.starts_with('-')) number.remove_prefix(1);
  return skip(number, is_digit) > 0 && number.empty();
}

// 1_000, 12:34:56 (base 60!) and 2026-11-22: numbers and dates to YAML 1.1 alone.
bool is_yaml11_number(std::string_view number) {
  auto digit_or_blank = [](char c) { return is_digit(c) || c == '_'; };
  bool in_base_60 = number.find(':') != std::string_view::npos && number.front() != '0';
  bool with_blanks = number.find('_') != std::string_view::npos;
  std::string_view rest = number;
  if (!is_digit(number.front())) return false;
  skip(rest, digit_or_blank);
  while (in_base_60 && rest.starts_with(':')) {
    rest.remove_prefix(1);
    size_t digits = skip(rest, is_digit);
    if (digits == 0 || digits > 2 || (digits == 2 && *(rest.data() - 2) > '5')) return false;
  }
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    skip(rest, digit_or_blank);
  }
  return rest.empty() && (in_base_60 || with_blanks);
}

bool is_yaml11_date(std::string_view text) {
  auto digits = [&](size_t least, size_t most) {
    size_t count = skip(text, is_digit);
    return count >= least && count <= most;
  };
  auto dash = [&] { return skip(text, [](char c) { return c == '-'; }) == 1; };
  if (!(digits(4, 4) && dash() && digits(1, 2) && dash() && digits(1, 2))) return false;
  return text.empty() || text.front() == 't' || text.front() == 'T' || text.front() == ' ';
}

ScalarKind kind_of_plain(std::string_view text) {
  if (text.empty() || one_of(text, {"~", "null", "Null", "NULL"})) return ScalarKind::null;
  if (one_of(text, {"true", "True", "TRUE", "false", "False", "FALSE"})) return ScalarKind::boolean;
  if (one_of(text, {"y", "Y", "yes", "Yes", "YES", "n", "N", "no", "No", "NO", "on", "On", "ON",
                    "off", "Off", "OFF"})) {
    return ScalarKind::yaml11;
  }
  bool negative = text.front() == '-';
  std::string_view number = negative || text.front() == '+' ? text.substr(1) : text;
  if (number.empty()) return ScalarKind::text;
  if (std::ranges::all_of(number, is_digit)) {
    if (number.size() > 1 && number.front() == '0') return ScalarKind::octal_like;
    bool canonical = text.front() != '+' && text != "-0";
    return canonical ? ScalarKind::integer : ScalarKind::other_number;
  }
  if (number.size() > 2 && number.front() == '0') {
    std::string_view digits = number.substr(2);
    auto is_hex = [](char c) {
      return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') || c == '_';
    };
    bool octal_or_binary =
        (number[1] == 'o' || number[1] == 'b') &&
        std::ranges::all_of(digits, [](char c) { return is_digit(c) || c == '_'; });
    bool hex = number[1] == 'x' && std::ranges::all_of(digits, is_hex);
    if (octal_or_binary || hex) return ScalarKind::other_number;
  }
  if (is_fraction(number)) return ScalarKind::fraction;
  if (is_yaml11_number(number) || is_yaml11_date(text)) return ScalarKind::yaml11;
  return ScalarKind::text;
}

// ---- names
// -------------------------------------------------------------------------------------------------

bool is_lower_or_digit(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z');
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= name_max && is_lower_or_digit(text.front()) &&
         std::ranges::all_of(
             text, [](char c) { return is_lower_or_digit(c) || c == '_' || c == '.' || c == '-'; });
}

bool is_tenant_name_part(std::string_view text) {
  return !text.empty() && text.size() <= name_max && is_lower_or_digit(text.front()) &&
         is_lower_or_digit(text.back()) &&
         std::ranges::all_of(text, [](char c) { return is_lower_or_digit(c) || c == '-'; });
}

bool is_tenant_name(std::string_view text) {
  for (int part = 0; part < 3; ++part) {
    size_t slash = text.find('/');
    if ((slash == std::string_view::npos) != (part == 2)) return false;
    if (!is_tenant_name_part(text.substr(0, slash))) return false;
    if (part < 2) text.remove_prefix(slash + 1);
  }
  return true;
}

// The kernel's own rule (dev_valid_name), less bytes that cannot be printed.
bool is_interface_name(std::string_view text) {
  return !text.empty() && text.size() <= interface_name_max && text != "." && text != ".." &&
         std::ranges::all_of(text,
                             [](char c) { return c > 0x20 && c < 0x7f && c != '/' && c != ':'; });
}

// Which addresses no tenant port can have, and why.
struct ForbiddenAddresses {
  std::string_view prefix;
  std::string_view why;
};
constexpr std::array forbidden_addresses = {
    ForbiddenAddresses{"0.0.0.0/8", "unspecified"},
    ForbiddenAddresses{"127.0.0.0/8", "loopback"},
    ForbiddenAddresses{"169.254.0.0/16", "link-local"},
    ForbiddenAddresses{"224.0.0.0/4", "multicast"},
    ForbiddenAddresses{"255.255.255.255/32", "broadcast"},
    ForbiddenAddresses{"::/128", "unspecified"},
    ForbiddenAddresses{"::1/128", "loopback"},
    ForbiddenAddresses{"ff00::/8", "multicast"},
};

// Ports no tenant publishes: what lives there harms others or cannot be protected.
struct DeniedPorts {
  PortRange ports;
  std::string_view why;
};
constexpr std::array denied_ports = {
    DeniedPorts{{23, 23}, "telnet sends passwords in clear"},
    DeniedPorts{{25, 25}, "an open mail relay harms others"},
    DeniedPorts{{137, 139}, "NetBIOS is not for other networks"},
};

// ---- errors
// --------------------------------------------------------------------------------------------------

// Where in the document a value stands; a chain on the stack, made into text only for a message.
struct Path {
  const Path* parent = nullptr;
  std::string_view key = {};  // or, if empty, an index
  size_t index = 0;

  std::string text() const {
    std::string out = parent == nullptr ? std::string{} : parent->text();
    if (!key.empty()) return out.empty() ? std::string(key) : out + "." + std::string(key);
    return parent == nullptr ? out : out + fmt::format("[{}]", index);
  }
};

struct Field {
  std::string_view key;
  std::string_view needed = {};  // for a required key: an example of its use
  const Node* value = nullptr;
  uint32_t line = 0;
};

class PolicyReader {
 public:
  PolicyReader(const Document& document, std::string_view file_name)
      : document_(document), file_name_(file_name) {}

  Result<Policy> read();

 private:
  struct FoundError {
    uint32_t line;
    size_t order;
    std::string text;
  };
  // What policy-wide rules need to know about each port and endpoint after it was read.
  struct PortSource {
    uint32_t tenant;
    uint32_t port;
  };
  struct EndpointSource {
    uint32_t tenant;
    uint32_t endpoint;
    uint32_t line;
  };
  // What the endpoints of a tenant need to know about its ports.
  struct PortRuns {
    std::vector<AddressRun> runs;    // sorted; empty after an error
    std::vector<AddressRun> joined;  // the same addresses, for covers()
    std::vector<AddressRun>
        reachable;  // runs without link-local ones: what an endpoint gets by default
    uint64_t reachable_addresses = 0;
  };
  struct TenantPorts {
    std::vector<PortRuns> runs;  // as Tenant::ports
    std::unordered_map<std::string, uint32_t> by_name;
  };

  bool full() const { return errors_.size() > policy_errors_max; }
  void error(uint32_t line, const Path& path, std::string_view what, std::string_view mend);
  void error(const Node& node, const Path& path, std::string_view what, std::string_view mend) {
    error(node.line, path, what, mend);
  }

  ScalarKind kind_of(const Node& node) const {
    return node.quoted ? ScalarKind::text : kind_of_plain(document_.text(node));
  }
  std::string describe(const Node& node) const;
  void wrong_type(const Node& node, const Path& path, std::string_view expected);

  bool read_map(const Node& node, const Path& path, std::span<Field> fields);
  // The items, or nothing after an error.
  std::optional<std::vector<const Node*>> read_list(const Node& node, const Path& path,
                                                    std::string_view expected, size_t items_min,
                                                    size_t items_max);
  std::optional<uint64_t> read_integer(const Node& node, const Path& path, uint64_t min,
                                       uint64_t max);
  std::optional<std::string_view> read_text(const Node& node, const Path& path,
                                            std::string_view expected);
  std::optional<std::string> read_name(const Node& node, const Path& path);
  std::optional<std::string> read_interface(const Node& node, const Path& path);
  std::optional<Prefix> read_prefix(const Node& node, const Path& path);
  std::optional<Protocol> read_protocol(const Node& node, const Path& path, bool with_icmp_echo);

  void read_uplinks(const Node& node, const Path& path);
  void read_failsafe_ports(const Node& node, const Path& path);
  void read_listeners(const Node& node, const Path& path);
  Listener read_listener(const Node& node, const Path& path);
  void read_node_limits(const Node& node, const Path& path);
  void read_tenants(const Node& node, const Path& path);
  void read_tenant(const Node& node, const Path& path);
  void read_tenant_limits(const Node& node, const Path& path, Tenant& tenant);
  void read_admission(const Node& node, const Path& path, Tenant& tenant);
  void read_port(const Node& node, const Path& path, Tenant& tenant, PortRuns& runs);
  std::optional<MacAddress> read_mac(const Node& node, const Path& path);
  void read_port_addresses(const Node& node, const Path& path, TenantPort& port, PortRuns& runs);
  std::optional<AddressRun> read_port_address(const Node& node, const Path& path);
  void read_endpoint(const Node& node, const Path& path, Tenant& tenant, const TenantPorts& ports);
  std::optional<PortRange> read_listen(const Node& node, const Path& path);
  std::vector<AddressRun> read_endpoint_addresses(const Node* node, const Path& path, uint32_t line,
                                                  const TenantPort& port,
                                                  const PortRuns& port_runs);
  bool within_run_overlaps(std::vector<AddressRun>& runs, const Path& path, std::string_view what);

  void check_totals(uint32_t line);
  void check_address_overlaps();
  void check_endpoint_overlaps();

  // Remembers who has a name that must be unique; reports the second owner.
  bool claim(std::unordered_map<std::string, uint32_t>& owners, const std::string& name,
             const Node& node, const Path& path, std::string_view what);

  std::string port_label(const PortSource& source) const {
    const Tenant& tenant = policy_.tenants[source.tenant];
    const std::string& name = tenant.ports[source.port].name;
    return fmt::format("port {}/{}", tenant.name, name.empty() ? "(not named)" : name);
  }
  std::string endpoint_label(const EndpointSource& source) const {
    const Tenant& tenant = policy_.tenants[source.tenant];
    return fmt::format("endpoint {}/{}", tenant.name, tenant.endpoints[source.endpoint].name);
  }

  const Document& document_;
  std::string_view file_name_;
  std::vector<FoundError> errors_;
  Policy policy_;

  struct InterfaceOwner {
    std::string what;
    uint32_t line;
  };
  std::unordered_map<std::string, InterfaceOwner> interfaces_;
  std::unordered_map<std::string, uint32_t> tenant_names_;
  std::unordered_map<uint64_t, uint32_t> tenant_ids_;
  std::vector<PortSource> port_sources_;
  std::vector<EndpointSource> endpoint_sources_;
  std::vector<AddressRun> address_runs_;  // owner: index into port_sources_
  std::vector<ListenRun> listen_runs_;    // owner: index into endpoint_sources_
  uint64_t ports_ = 0;
  uint64_t addresses_ = 0;
  uint64_t endpoints_ = 0;  // (address, listen port) pairs
};

std::string listen_text(PortRange listen) {
  return listen.first == listen.last ? fmt::format("{}", listen.first)
                                     : fmt::format("{}-{}", listen.first, listen.last);
}

uint64_t sum(uint64_t a, uint64_t b) {
  return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

void PolicyReader::error(uint32_t line, const Path& path, std::string_view what,
                         std::string_view mend) {
  if (full()) return;
  std::string where = path.text();
  std::string text = where.empty()
                         ? fmt::format("{}:{}: {}; {}", file_name_, line, what, mend)
                         : fmt::format("{}:{}: {}: {}; {}", file_name_, line, where, what, mend);
  errors_.push_back({line, errors_.size(), std::move(text)});
}

std::string PolicyReader::describe(const Node& node) const {
  if (node.kind == NodeKind::list) return "a list";
  if (node.kind == NodeKind::map) return "a map";
  std::string text = quote_text(document_.text(node));
  std::string_view plain = std::string_view(text).substr(1, text.size() - 2);
  switch (kind_of(node)) {
    case ScalarKind::text: return fmt::format("the text {}", text);
    case ScalarKind::null: return "nothing";
    case ScalarKind::boolean: return fmt::format("the boolean {}", plain);
    case ScalarKind::integer:
    case ScalarKind::octal_like:
    case ScalarKind::other_number: return fmt::format("the number {}", plain);
    case ScalarKind::fraction: return fmt::format("the fraction {}", plain);
    case ScalarKind::yaml11:
      return fmt::format("{}, which YAML 1.1 reads as a boolean, a number or a date", plain);
  }
  return text;
}

void PolicyReader::wrong_type(const Node& node, const Path& path, std::string_view expected) {
  error(node, path, fmt::format("{} where {} belongs", describe(node), expected),
        fmt::format("write {}", expected));
}

bool PolicyReader::read_map(const Node& node, const Path& path, std::span<Field> fields) {
  if (node.kind != NodeKind::map) {
    std::vector<std::string_view> keys;
    for (const Field& field : fields) keys.push_back(field.key);
    error(node, path, fmt::format("{} where a map belongs", describe(node)),
          fmt::format("write a map with the keys {}", fmt::join(keys, ", ")));
    return false;
  }
  bool good = true;
  for (const Node& key : document_.children(node)) {
    if (full()) return false;
    std::string_view text = document_.text(key);
    auto field = std::ranges::find(fields, text, &Field::key);
    if (field == fields.end()) {
      std::vector<std::string_view> keys;
      for (const Field& known : fields) keys.push_back(known.key);
      std::string_view nearest = nearest_word(text, keys);
      error(key, path, fmt::format("unknown key {}", quote_text(text)),
            nearest.empty() ? fmt::format("the keys here are {}", fmt::join(keys, ", "))
                            : fmt::format("did you mean {}?", nearest));
      good = false;
    } else if (field->value != nullptr) {
      error(key, path, fmt::format("the key {} stands twice, first at line {}", text, field->line),
            "remove one of the two");
      good = false;
    } else {
      field->value = &document_.value_of(key);
      field->line = key.line;
    }
  }
  for (const Field& field : fields) {
    if (field.value == nullptr && !field.needed.empty()) {
      error(node, path, fmt::format("the key {} is missing", field.key),
            fmt::format("add it, such as {}", field.needed));
      good = false;
    }
  }
  return good;
}

std::optional<std::vector<const Node*>> PolicyReader::read_list(const Node& node, const Path& path,
                                                                std::string_view expected,
                                                                size_t items_min,
                                                                size_t items_max) {
  if (node.kind != NodeKind::list) {
    wrong_type(node, path, expected);
    return {};
  }
  std::vector<const Node*> items;
  for (const Node& item : document_.children(node)) items.push_back(&item);
  if (items.size() < items_min) {
    error(node, path, "the list is empty", fmt::format("write {}", expected));
    return {};
  }
  if (items.size() > items_max) {
    error(node, path, fmt::format("{} items, over the limit of {}", items.size(), items_max),
          "remove some");
    return {};
  }
  return items;
}

std::optional<uint64_t> PolicyReader::read_integer(const Node& node, const Path& path, uint64_t min,
                                                   uint64_t max) {
  std::string expected = fmt::format("an integer from {} to {}", min, max);
  if (node.kind != NodeKind::scalar) {
    wrong_type(node, path, expected);
    return {};
  }
  std::string_view text = document_.text(node);
  std::string shown = quote_text(text);
  std::string_view plain = std::string_view(shown).substr(1, shown.size() - 2);
  switch (kind_of(node)) {
    case ScalarKind::integer: break;
    case ScalarKind::octal_like:
      error(node, path,
            fmt::format("{} has a leading zero, which some programs read as octal", plain),
            "write the number without it");
      return {};
    case ScalarKind::other_number:
      error(node, path, fmt::format("{} is not written as a plain decimal number", plain),
            fmt::format("write {} in decimal digits", expected));
      return {};
    case ScalarKind::text:
      if (node.quoted && kind_of_plain(text) == ScalarKind::integer) {
        error(node, path, fmt::format("the text {} where {} belongs", shown, expected),
              "remove the quotes");
        return {};
      }
      [[fallthrough]];
    default: wrong_type(node, path, expected); return {};
  }
  uint64_t value = 0;
  auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc{} || end != text.data() + text.size() || value < min || value > max) {
    error(node, path, fmt::format("{} is out of range", plain), fmt::format("write {}", expected));
    return {};
  }
  return value;
}

std::optional<std::string_view> PolicyReader::read_text(const Node& node, const Path& path,
                                                        std::string_view expected) {
  if (node.kind == NodeKind::scalar && kind_of(node) == ScalarKind::text)
    return document_.text(node);
  if (node.kind == NodeKind::scalar && kind_of(node) != ScalarKind::null) {
    error(
        node, path, fmt::format("{} where {} belongs", describe(node), expected),
        fmt::format("quote it, \"{}\", if that is what it is", document_.text(node).substr(0, 80)));
    return {};
  }
  wrong_type(node, path, expected);
  return {};
}

std::optional<std::string> PolicyReader::read_name(const Node& node, const Path& path) {
  auto text = read_text(node, path, "a name");
  if (!text) return {};
  if (!is_name(*text)) {
    error(node, path, fmt::format("{} is not a name", quote_text(*text)),
          "write 1 to 63 of a-z 0-9 _ . -, a letter or digit first");
    return {};
  }
  return std::string(*text);
}

std::optional<std::string> PolicyReader::read_interface(const Node& node, const Path& path) {
  auto text = read_text(node, path, "an interface name");
  if (!text) return {};
  if (!is_interface_name(*text)) {
    error(node, path, fmt::format("{} is not an interface name", quote_text(*text)),
          "write 1 to 15 printable ASCII characters without blanks, '/' or ':'");
    return {};
  }
  return std::string(*text);
}

std::optional<Prefix> PolicyReader::read_prefix(const Node& node, const Path& path) {
  auto text = read_text(node, path, "an address or prefix");
  if (!text) return {};
  Result<Prefix> prefix = parse_prefix(*text);
  if (!prefix) {
    error(node, path, prefix.error().message, prefix.error().next_step);
    return {};
  }
  return *prefix;
}

std::optional<Protocol> PolicyReader::read_protocol(const Node& node, const Path& path,
                                                    bool with_icmp_echo) {
  auto text = read_text(node, path, "a protocol");
  if (!text) return {};
  for (Protocol protocol : {Protocol::tcp, Protocol::udp, Protocol::icmp_echo}) {
    if (*text == name_of(protocol) && (with_icmp_echo || protocol != Protocol::icmp_echo)) {
      return protocol;
    }
  }
  error(node, path, fmt::format("{} is not a protocol that can be named here", quote_text(*text)),
        with_icmp_echo ? "write tcp, udp or icmp_echo" : "write tcp or udp");
  return {};
}

bool PolicyReader::claim(std::unordered_map<std::string, uint32_t>& owners, const std::string& name,
                         const Node& node, const Path& path, std::string_view what) {
  auto [first, fresh] = owners.emplace(name, node.line);
  if (!fresh) {
    error(node, path, fmt::format("{} {} is already named at line {}", what, name, first->second),
          "give each its own name");
  }
  return fresh;
}

// ---- the node
// ------------------------------------------------------------------------------------------------

Result<Policy> PolicyReader::read() {
  std::array fields = {
      Field{"version", "version: 1"},
      Field{"generation", "generation: 1"},
      Field{"uplinks", "uplinks: [uplink0]"},
      Field{"failsafe_ports"},
      Field{"listeners"},
      Field{"limits"},
      Field{"tenants", "tenants: []"},
  };
  auto& [version, generation, uplinks, failsafe_ports, listeners, limits, tenants] = fields;
  const Path root;
  read_map(document_.root(), root, fields);

  if (version.value != nullptr) read_integer(*version.value, {&root, "version"}, 1, 1);
  if (generation.value != nullptr) {
    policy_.generation =
        read_integer(*generation.value, {&root, "generation"}, 1, INT64_MAX).value_or(0);
  }
  if (uplinks.value != nullptr) read_uplinks(*uplinks.value, {&root, "uplinks"});
  policy_.failsafe_ports = {failsafe_port_default};
  if (failsafe_ports.value != nullptr) {
    read_failsafe_ports(*failsafe_ports.value, {&root, "failsafe_ports"});
  }
  if (listeners.value != nullptr) read_listeners(*listeners.value, {&root, "listeners"});
  policy_.leases_max = node_leases_default;
  if (limits.value != nullptr) read_node_limits(*limits.value, {&root, "limits"});
  if (tenants.value != nullptr) {
    read_tenants(*tenants.value, {&root, "tenants"});
    check_totals(tenants.line);
  }
  check_address_overlaps();
  check_endpoint_overlaps();

  if (errors_.empty()) return std::move(policy_);
  bool more = full();
  if (more) errors_.pop_back();
  std::ranges::sort(errors_, {}, [](const FoundError& e) { return std::pair(e.line, e.order); });
  std::string message;
  for (const FoundError& found : errors_) {
    if (!message.empty()) message += '\n';
    message += found.text;
  }
  if (more) message += fmt::format("\n{}: and more; mend these first", file_name_);
  return fail(ErrorKind::invalid, "policy_invalid", std::move(message));
}

void PolicyReader::read_uplinks(const Node& node, const Path& path) {
  auto items =
      read_list(node, path, "a list of at least one interface, such as [uplink0]", 1, uplinks_max);
  if (!items) return;
  for (size_t i = 0; i < items->size(); ++i) {
    Path here{&path, {}, i};
    auto name = read_interface(*(*items)[i], here);
    if (!name) continue;
    auto [owner, fresh] =
        interfaces_.emplace(*name, InterfaceOwner{"an uplink", (*items)[i]->line});
    if (!fresh) {
      error(*(*items)[i], here,
            fmt::format("interface {} is already an uplink at line {}", *name, owner->second.line),
            "remove one of the two");
    }
    policy_.uplinks.push_back(std::move(*name));
  }
}

void PolicyReader::read_failsafe_ports(const Node& node, const Path& path) {
  auto items =
      read_list(node, path, "a list of at least one TCP port, such as [22]", 1, failsafe_ports_max);
  if (!items) return;
  policy_.failsafe_ports.clear();
  for (size_t i = 0; i < items->size(); ++i) {
    Path here{&path, {}, i};
    auto value = read_integer(*(*items)[i], here, 1, 65535);
    if (!value) continue;
    auto port = static_cast<uint16_t>(*value);
    if (std::ranges::find(policy_.failsafe_ports, port) != policy_.failsafe_ports.end()) {
      error(*(*items)[i], here, fmt::format("port {} stands twice", port), "remove one of the two");
    }
    policy_.failsafe_ports.push_back(port);
  }
}

void PolicyReader::read_listeners(const Node& node, const Path& path) {
  auto items = read_list(node, path, "a list of listeners", 0, listeners_max);
  if (!items) return;
  std::map<std::pair<Protocol, uint16_t>, uint32_t> lines;
  for (size_t i = 0; i < items->size(); ++i) {
    const Node& item = *(*items)[i];
    Path here{&path, {}, i};
    Listener listener = read_listener(item, here);
    if (listener.port == 0) continue;
    auto [first, fresh] = lines.emplace(std::pair(listener.protocol, listener.port), item.line);
    std::string label = fmt::format("{} port {}", name_of(listener.protocol), listener.port);
    if (!fresh) {
      error(item, here, fmt::format("{} already has a listener at line {}", label, first->second),
            "make the two one, with both lists of sources");
    }
    if (listener.protocol == Protocol::tcp &&
        std::ranges::find(policy_.failsafe_ports, listener.port) != policy_.failsafe_ports.end()) {
      error(item, here,
            fmt::format(
                "{} is a failsafe port, which is reachable from anywhere, whatever stands here",
                label),
            "remove the listener, or name another failsafe port");
    }
    policy_.listeners.push_back(std::move(listener));
  }
}

// A listener whose port is 0 had errors.
Listener PolicyReader::read_listener(const Node& node, const Path& path) {
  std::array fields = {Field{"protocol", "protocol: tcp"}, Field{"port", "port: 9100"},
                       Field{"from"}};
  auto& [protocol, port, from] = fields;
  Listener listener;
  bool good = read_map(node, path, fields);
  if (protocol.value != nullptr) {
    auto value = read_protocol(*protocol.value, {&path, "protocol"}, false);
    good = good && value;
    listener.protocol = value.value_or(Protocol::tcp);
  }
  if (port.value != nullptr) {
    auto value = read_integer(*port.value, {&path, "port"}, 1, 65535);
    good = good && value;
    listener.port = static_cast<uint16_t>(value.value_or(0));
  }
  if (from.value != nullptr) {
    Path from_path{&path, "from"};
    auto items = read_list(*from.value, from_path,
                           "a list of source prefixes, or leave the key out for any source", 1,
                           listener_prefixes_max);
    std::vector<AddressRun> runs;
    for (size_t i = 0; items && i < items->size(); ++i) {
      auto prefix = read_prefix(*(*items)[i], {&from_path, {}, i});
      if (!prefix) continue;
      listener.from.push_back(*prefix);
      AddressRun run = run_of(*prefix);
      run.line = (*items)[i]->line;
      runs.push_back(run);
    }
    good = within_run_overlaps(runs, from_path, "source") && items && good;
  }
  if (!good) listener.port = 0;
  return listener;
}

void PolicyReader::read_node_limits(const Node& node, const Path& path) {
  std::array fields = {Field{"leases"}};
  auto& [leases] = fields;
  read_map(node, path, fields);
  if (leases.value == nullptr) return;
  auto value = read_integer(*leases.value, {&path, "leases"}, 1, node_leases_max);
  if (value) policy_.leases_max = static_cast<uint32_t>(*value);
}

// ---- tenants
// -------------------------------------------------------------------------------------------------

void PolicyReader::read_tenants(const Node& node, const Path& path) {
  auto items = read_list(node, path, "a list of tenants, which may be []", 0, tenants_max);
  if (!items) return;
  policy_.tenants.reserve(items->size());
  for (size_t i = 0; i < items->size() && !full(); ++i) read_tenant(*(*items)[i], {&path, {}, i});
}

void PolicyReader::read_tenant(const Node& node, const Path& path) {
  std::array fields = {Field{"id", "id: 1"}, Field{"name", "name: acme/shop/prod"},
                       Field{"limits"},      Field{"admission"},
                       Field{"ports"},       Field{"endpoints"}};
  auto& [id, name, limits, admission, ports, endpoints] = fields;
  read_map(node, path, fields);
  policy_.tenants.emplace_back();
  Tenant& tenant = policy_.tenants.back();

  if (id.value != nullptr) {
    if (auto value = read_integer(*id.value, {&path, "id"}, 1, INT64_MAX)) {
      tenant.id = *value;
      auto [first, fresh] = tenant_ids_.emplace(*value, id.value->line);
      if (!fresh) {
        error(*id.value, {&path, "id"},
              fmt::format("tenant id {} is already used at line {}", *value, first->second),
              "give each tenant an id of its own, and never use one again");
      }
    }
  }
  tenant.name = fmt::format("(tenant {})", policy_.tenants.size() - 1);
  if (name.value != nullptr) {
    Path here{&path, "name"};
    if (auto text = read_text(*name.value, here, "a tenant name")) {
      if (!is_tenant_name(*text)) {
        error(*name.value, here, fmt::format("{} is not a tenant name", quote_text(*text)),
              "write org/app/env, each of 1 to 63 of a-z 0-9 -, no '-' at its ends");
      } else {
        tenant.name = *text;
        claim(tenant_names_, tenant.name, *name.value, here, "tenant");
      }
    }
  }
  tenant.leases_max = std::min(tenant_leases_default, policy_.leases_max);
  tenant.flows_max = tenant_flows_default;
  if (limits.value != nullptr) read_tenant_limits(*limits.value, {&path, "limits"}, tenant);
  if (admission.value != nullptr) read_admission(*admission.value, {&path, "admission"}, tenant);

  TenantPorts tenant_ports;
  if (ports.value != nullptr) {
    Path ports_path{&path, "ports"};
    if (auto items = read_list(*ports.value, ports_path, "a list of ports", 0, SIZE_MAX)) {
      ports_ += items->size();
      std::unordered_map<std::string, uint32_t> names;
      // Over the limit is said once, by check_totals.
      if (ports_ > tenant_ports_max) items->clear();
      tenant_ports.runs.resize(items->size());
      for (size_t i = 0; i < items->size() && !full(); ++i) {
        Path here{&ports_path, {}, i};
        read_port(*(*items)[i], here, tenant, tenant_ports.runs[i]);
        const std::string& port_name = tenant.ports.back().name;
        if (port_name.empty()) continue;
        claim(names, port_name, *(*items)[i], here, "port");
        tenant_ports.by_name.emplace(port_name, static_cast<uint32_t>(i));
      }
    }
  }
  if (endpoints.value != nullptr) {
    Path endpoints_path{&path, "endpoints"};
    if (auto items =
            read_list(*endpoints.value, endpoints_path, "a list of endpoints", 0, SIZE_MAX)) {
      std::unordered_map<std::string, uint32_t> names;
      for (size_t i = 0; i < items->size() && !full(); ++i) {
        Path here{&endpoints_path, {}, i};
        read_endpoint(*(*items)[i], here, tenant, tenant_ports);
        const std::string& endpoint_name = tenant.endpoints.back().name;
        if (!endpoint_name.empty()) claim(names, endpoint_name, *(*items)[i], here, "endpoint");
      }
    }
  }
}

void PolicyReader::read_admission(const Node& node, const Path& path, Tenant& tenant) {
  const auto text = read_text(node, path, "none or required");
  if (!text) return;
  if (*text != "none" && *text != "required")
    error(node, path, fmt::format("{} is no kind of admission", quote_text(*text)),
          "none: a grant token is enough; required: a scheduler has to admit it");
  tenant.admission_required = *text == "required";
}

void PolicyReader::read_tenant_limits(const Node& node, const Path& path, Tenant& tenant) {
  std::array fields = {Field{"leases"}, Field{"flows"}};
  auto& [leases, flows] = fields;
  read_map(node, path, fields);
  if (leases.value != nullptr) {
    Path here{&path, "leases"};
    auto value = read_integer(*leases.value, here, 1, node_leases_max);
    if (value && *value > policy_.leases_max) {
      error(*leases.value, here,
            fmt::format("{} leases, but the whole node has {}", *value, policy_.leases_max),
            "lower this, or raise limits.leases of the node");
    } else if (value) {
      tenant.leases_max = static_cast<uint32_t>(*value);
    }
  }
  if (flows.value != nullptr) {
    auto value = read_integer(*flows.value, {&path, "flows"}, tenant_flows_min, tenant_flows_max);
    if (value) tenant.flows_max = static_cast<uint32_t>(*value);
  }
}

// Always adds a port to the tenant, so that later ones keep their index; its name stays empty after
// an error in it.
void PolicyReader::read_port(const Node& node, const Path& path, Tenant& tenant, PortRuns& runs) {
  std::array fields = {Field{"name", "name: web0"}, Field{"interface", "interface: veth-a"},
                       Field{"mac", "mac: 02:00:00:00:00:0a"},
                       Field{"addresses", "addresses: [10.1.0.2]"}};
  auto& [name, interface, mac, addresses] = fields;
  read_map(node, path, fields);
  tenant.ports.emplace_back();
  TenantPort& port = tenant.ports.back();
  if (name.value != nullptr) port.name = read_name(*name.value, {&path, "name"}).value_or("");
  if (interface.value != nullptr) {
    Path here{&path, "interface"};
    if (auto text = read_interface(*interface.value, here)) {
      auto label = fmt::format("the interface of port {}/{}", tenant.name, port.name);
      auto [owner, fresh] =
          interfaces_.emplace(*text, InterfaceOwner{label, interface.value->line});
      if (!fresh) {
        error(*interface.value, here,
              fmt::format("interface {} is already {} at line {}", *text, owner->second.what,
                          owner->second.line),
              "give each port an interface of its own");
      }
      port.interface = std::move(*text);
    }
  }
  if (mac.value != nullptr) {
    if (auto value = read_mac(*mac.value, {&path, "mac"})) port.mac = *value;
  }
  auto tenant_index = static_cast<uint32_t>(policy_.tenants.size() - 1);
  port_sources_.push_back({tenant_index, static_cast<uint32_t>(tenant.ports.size() - 1)});
  if (addresses.value != nullptr) {
    read_port_addresses(*addresses.value, {&path, "addresses"}, port, runs);
  }
}

std::optional<MacAddress> PolicyReader::read_mac(const Node& node, const Path& path) {
  auto text = read_text(node, path, "a MAC address");
  if (!text) return {};
  Result<MacAddress> mac = parse_mac(*text);
  if (!mac) {
    error(node, path, mac.error().message, mac.error().next_step);
    return {};
  }
  if ((mac->bytes[0] & 1) != 0) {
    error(node, path, fmt::format("{} is a multicast MAC address", format_mac(*mac)),
          "write the port's own, whose first byte is even");
    return {};
  }
  if (*mac == MacAddress{}) {
    error(node, path, "the MAC address is zero", "write the port's own");
    return {};
  }
  return *mac;
}

std::optional<AddressRun> PolicyReader::read_port_address(const Node& node, const Path& path) {
  auto prefix = read_prefix(node, path);
  if (!prefix) return {};
  AddressRun run = run_of(*prefix);
  run.line = node.line;
  uint64_t size = run_size(run);
  if (size > port_addresses_max) {
    error(node, path,
          fmt::format(
              "{} holds {} addresses, over the limit of {} for a port", format_prefix(*prefix),
              size == UINT64_MAX ? "2^64 or more" : fmt::format("{}", size), port_addresses_max),
          "name the addresses the port really has");
    return {};
  }
  static const auto ranges = [] {
    std::array<Prefix, forbidden_addresses.size()> out;
    std::ranges::transform(
        forbidden_addresses, out.begin(),
        [](const ForbiddenAddresses& forbidden) { return parse_prefix(forbidden.prefix).value(); });
    return out;
  }();
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (ranges[i].contains(run.first) || prefix->contains(ranges[i].address)) {
      const ForbiddenAddresses& forbidden = forbidden_addresses[i];
      error(node, path,
            fmt::format("{} is or holds {} addresses ({})", quote_text(document_.text(node)),
                        forbidden.why, forbidden.prefix),
            "a port has unicast addresses only");
      return {};
    }
  }
  return run;
}

void PolicyReader::read_port_addresses(const Node& node, const Path& path, TenantPort& port,
                                       PortRuns& runs) {
  auto items = read_list(node, path, "a list of at least one address or prefix, such as [10.1.0.2]",
                         1, port_addresses_max);
  if (!items) return;
  uint64_t total = 0;
  for (size_t i = 0; i < items->size() && !full(); ++i) {
    auto run = read_port_address(*(*items)[i], {&path, {}, i});
    if (!run) continue;
    total += run_size(*run);
    run->owner = static_cast<uint32_t>(port_sources_.size() - 1);
    runs.runs.push_back(*run);
  }
  addresses_ = sum(addresses_, total);
  if (total > port_addresses_max) {
    error(node, path,
          fmt::format("{} addresses, over the limit of {} for a port", total, port_addresses_max),
          "spread them over more ports");
    runs.runs.clear();
    return;
  }
  if (!within_run_overlaps(runs.runs, path, "address")) {
    runs.runs.clear();
    return;
  }
  runs.joined = joined(runs.runs);
  for (const AddressRun& run : runs.runs) {
    if (is_link_local_v6(run.first)) continue;
    runs.reachable.push_back(run);
    runs.reachable_addresses += run_size(run);
  }
  address_runs_.insert(address_runs_.end(), runs.runs.begin(), runs.runs.end());
  if (addresses_ > addresses_max) return;  // said by check_totals
  port.addresses.reserve(total);
  for (const AddressRun& run : runs.runs) expand(run, port.addresses);
}

// Whether nothing stands twice in one list. Sorts the runs.
bool PolicyReader::within_run_overlaps(std::vector<AddressRun>& runs, const Path& path,
                                       std::string_view what) {
  std::vector<Overlap> overlaps = find_overlaps(runs, 1);
  for (const Overlap& overlap : overlaps) {
    const AddressRun& later = runs[overlap.later];
    error(later.line, path,
          fmt::format("{} {} stands twice, first at line {}", what,
                      format_address(std::max(later.first, runs[overlap.earlier].first)),
                      runs[overlap.earlier].line),
          "remove one of the two");
  }
  return overlaps.empty();
}

// Always adds an endpoint to the tenant; its name stays empty after an error in it.
void PolicyReader::read_endpoint(const Node& node, const Path& path, Tenant& tenant,
                                 const TenantPorts& ports) {
  std::array fields = {Field{"name", "name: web"}, Field{"port", "port: web0"},
                       Field{"protocol", "protocol: tcp"}, Field{"listen"}, Field{"addresses"}};
  auto& [name, port, protocol, listen, addresses] = fields;
  bool good = read_map(node, path, fields);
  tenant.endpoints.emplace_back();
  Endpoint& endpoint = tenant.endpoints.back();
  if (name.value != nullptr) {
    endpoint.name = read_name(*name.value, {&path, "name"}).value_or("");
    good = good && !endpoint.name.empty();
  }
  const PortRuns* port_runs = nullptr;
  if (port.value != nullptr) {
    Path here{&path, "port"};
    if (auto port_name = read_name(*port.value, here)) {
      auto found = ports.by_name.find(*port_name);
      if (found == ports.by_name.end()) {
        std::vector<std::string_view> names;
        for (const TenantPort& known :
             std::span(tenant.ports).first(std::min<size_t>(tenant.ports.size(), 64))) {
          names.push_back(known.name);
        }
        std::string_view nearest = nearest_word(*port_name, names);
        error(*port.value, here, fmt::format("{} has no port {}", tenant.name, *port_name),
              nearest.empty() ? "name one of the tenant's own ports"
                              : fmt::format("did you mean {}?", nearest));
      } else {
        endpoint.port = found->second;
        port_runs = &ports.runs[endpoint.port];
      }
    }
  }
  std::optional<Protocol> read_protocol_value;
  if (protocol.value != nullptr) {
    read_protocol_value = read_protocol(*protocol.value, {&path, "protocol"}, true);
  }
  if (!read_protocol_value) {
    good = false;
  } else {
    endpoint.protocol = *read_protocol_value;
    if (endpoint.protocol == Protocol::icmp_echo) {
      if (listen.value != nullptr) {
        error(listen.line, path, "icmp_echo has no ports to listen on", "remove the key listen");
        good = false;
      }
    } else if (listen.value == nullptr) {
      error(node, path,
            fmt::format("the key listen is missing, which {} needs", name_of(endpoint.protocol)),
            "add it, such as listen: 443");
      good = false;
    }
  }
  if (listen.value != nullptr && read_protocol_value != Protocol::icmp_echo) {
    auto range = read_listen(*listen.value, {&path, "listen"});
    good = good && range;
    endpoint.listen = range.value_or(PortRange{});
  }
  if (port_runs == nullptr || port_runs->runs.empty())
    return;  // an error that was already reported

  uint64_t width = static_cast<uint64_t>(endpoint.listen.last - endpoint.listen.first) + 1;
  if (endpoints_ > endpoints_max && addresses.value == nullptr) {
    endpoints_ =
        sum(endpoints_, port_runs->reachable_addresses * width);  // only counted, for the message
    return;
  }
  std::vector<AddressRun> runs = read_endpoint_addresses(
      addresses.value, {&path, "addresses"}, node.line, tenant.ports[endpoint.port], *port_runs);
  if (!good || runs.empty()) return;

  auto tenant_index = static_cast<uint32_t>(policy_.tenants.size() - 1);
  endpoint_sources_.push_back(
      {tenant_index, static_cast<uint32_t>(tenant.endpoints.size() - 1), node.line});
  uint64_t count = 0;
  for (AddressRun& run : runs) {
    count += run_size(run);
    run.owner = static_cast<uint32_t>(endpoint_sources_.size() - 1);
    listen_runs_.push_back({run, endpoint.protocol, endpoint.listen});
  }
  endpoints_ = sum(endpoints_, count * width);
  if (endpoints_ > endpoints_max) return;  // said by check_totals
  endpoint.addresses.reserve(count);
  for (const AddressRun& run : runs) expand(run, endpoint.addresses);
}

std::optional<PortRange> PolicyReader::read_listen(const Node& node, const Path& path) {
  constexpr std::string_view expected = "a port from 1 to 65535, or a range such as 1024-2047";
  PortRange range;
  if (node.kind != NodeKind::scalar || kind_of(node) != ScalarKind::text) {
    if (node.kind != NodeKind::scalar || kind_of(node) == ScalarKind::null) {
      wrong_type(node, path, expected);
      return {};
    }
    auto value = read_integer(node, path, 1, 65535);
    if (!value) return {};
    range = {static_cast<uint16_t>(*value), static_cast<uint16_t>(*value)};
  } else {
    std::string_view text = document_.text(node);
    size_t dash = text.find('-');
    if (node.quoted && dash == std::string_view::npos &&
        kind_of_plain(text) == ScalarKind::integer) {
      error(node, path, fmt::format("the text {} where a port belongs", quote_text(text)),
            "remove the quotes");
      return {};
    }
    auto number = [](std::string_view digits) -> uint16_t {
      bool plain = kind_of_plain(digits) == ScalarKind::integer && digits.front() != '-';
      uint16_t value = 0;
      auto [end, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
      return plain && failed == std::errc{} ? value : uint16_t{0};
    };
    if (dash != std::string_view::npos)
      range = {number(text.substr(0, dash)), number(text.substr(dash + 1))};
    if (range.first == 0 || range.last == 0) {
      error(node, path, fmt::format("{} is not a port or a range of ports", quote_text(text)),
            fmt::format("write {}, without leading zeros", expected));
      return {};
    }
    if (range.first >= range.last) {
      error(node, path, fmt::format("the range {} does not go up", text),
            range.first == range.last ? fmt::format("write {}", range.first)
                                      : fmt::format("write {}-{}", range.last, range.first));
      return {};
    }
  }
  for (const DeniedPorts& denied : denied_ports) {
    uint16_t first = std::max(denied.ports.first, range.first);
    if (first > denied.ports.last || first > range.last) continue;
    error(
        node, path,
        fmt::format("listen {} covers port {}, which no tenant may publish: {}", listen_text(range),
                    first, denied.why),
        range.first == range.last ? "listen on another port" : "leave that port out of the range");
    return {};
  }
  return range;
}

// Sorted, without overlaps; empty after an error.
std::vector<AddressRun> PolicyReader::read_endpoint_addresses(const Node* node, const Path& path,
                                                              uint32_t line, const TenantPort& port,
                                                              const PortRuns& port_runs) {
  std::vector<AddressRun> runs;
  if (node == nullptr) {
    runs = port_runs.reachable;
    if (runs.empty()) {
      error(line, *path.parent, fmt::format("port {} has only link-local addresses", port.name),
            "give the port an address that others can reach, or name the endpoint's addresses");
    }
    for (AddressRun& run : runs) run.line = line;
    return runs;
  }
  auto items =
      read_list(*node, path, "a list of some of the port's addresses, or leave the key out for all",
                1, port_addresses_max);
  if (!items) return {};
  bool good = true;
  for (size_t i = 0; i < items->size() && !full(); ++i) {
    const Node& item = *(*items)[i];
    Path here{&path, {}, i};
    auto prefix = read_prefix(item, here);
    if (!prefix) {
      good = false;
      continue;
    }
    AddressRun run = run_of(*prefix);
    run.line = item.line;
    if (!covers(port_runs.joined, run)) {
      error(item, here,
            fmt::format("{} is not among the addresses of port {}",
                        quote_text(document_.text(item)), port.name),
            "name addresses that the port has, or add them to the port");
      good = false;
      continue;
    }
    runs.push_back(run);
  }
  if (!good || !within_run_overlaps(runs, path, "address")) return {};
  return runs;
}

// ---- rules over the whole policy
// -------------------------------------------------------------------------------

void PolicyReader::check_totals(uint32_t line) {
  Path path{nullptr, "tenants"};
  if (ports_ > tenant_ports_max) {
    error(line, path,
          fmt::format("{} ports over all tenants, over the limit of {}", ports_, tenant_ports_max),
          "spread the tenants over more nodes");
  }
  if (addresses_ > addresses_max) {
    error(
        line, path,
        fmt::format("{} addresses over all ports, over the limit of {}", addresses_, addresses_max),
        "name the addresses the ports really have");
  }
  if (endpoints_ > endpoints_max) {
    error(line, path,
          fmt::format("{} endpoints (addresses times listen ports), over the limit of {}",
                      endpoints_, endpoints_max),
          "narrow the widest endpoints");
  }
}

void PolicyReader::check_address_overlaps() {
  for (const Overlap& overlap : find_overlaps(address_runs_, policy_errors_max)) {
    const AddressRun& earlier = address_runs_[overlap.earlier];
    const AddressRun& later = address_runs_[overlap.later];
    error(later.line, {nullptr, "tenants"},
          fmt::format("address {} of {} already belongs to {} at line {}",
                      format_address(std::max(earlier.first, later.first)),
                      port_label(port_sources_[later.owner]),
                      port_label(port_sources_[earlier.owner]), earlier.line),
          "an address has one port; remove it from the other");
  }
}

void PolicyReader::check_endpoint_overlaps() {
  for (const Overlap& overlap : find_overlaps(listen_runs_, policy_errors_max)) {
    const ListenRun& earlier = listen_runs_[overlap.earlier];
    const ListenRun& later = listen_runs_[overlap.later];
    Address address = std::max(earlier.addresses.first, later.addresses.first);
    uint16_t port = std::max(earlier.listen.first, later.listen.first);
    std::string what =
        later.protocol == Protocol::icmp_echo
            ? fmt::format("icmp_echo {}", format_address(address))
            : fmt::format("{} {}", name_of(later.protocol), format_address_port({address, port}));
    const EndpointSource& other = endpoint_sources_[earlier.addresses.owner];
    error(later.addresses.line, {nullptr, "tenants"},
          fmt::format("{} covers {}, which {} at line {} already covers",
                      endpoint_label(endpoint_sources_[later.addresses.owner]), what,
                      endpoint_label(other), other.line),
          "narrow one of the two");
  }
}

}  // namespace

Result<Policy> parse_policy(std::string_view bytes, std::string_view file_name, size_t bytes_max) {
  Result<Document> document = read_document(bytes, file_name, bytes_max);
  if (!document) return pass_on(document);
  return PolicyReader(*document, file_name).read();
}

}  // namespace holdfast
