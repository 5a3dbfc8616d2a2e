// Drives the nft layer alone, in the network namespace it is started in:
//   nft_apply ensure [failsafe=PORT] [listen=tcp|udp|icmp_echo,PORT[,PREFIX]]...
//   nft_apply apply  [arm|disarm|tenant|untenant=INTERFACE] [own|disown=INTERFACE,ADDRESS]
//                    [lease=SIDE,TTL_MS,INTERFACE,ADDRESS,PROTOCOL,PORT[,PREFIX]]
//                    [egress=SIDE,TTL_MS,INTERFACE]
//                    [revoke=INTERFACE,ADDRESS,PROTOCOL,PORT[,PREFIX]] [revoke-egress=INTERFACE]...
//   nft_apply remove
// Each apply is one transaction, read back afterwards. Exit code 1 and a line on stderr on failure.
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <net/if.h>

#include "nft/table.hpp"
#include "policy/address.hpp"

namespace {

using namespace holdfast;
using namespace holdfast::nft;

[[noreturn]] void quit(std::string_view why) {
  fmt::print(stderr, "nft_apply: {}\n", why);
  std::exit(1);
}

template <typename T>
T need(Result<T> result) {
  if (!result) quit(result.error().text());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

uint32_t number(std::string_view text) {
  uint32_t value = 0;
  auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc{} || end.ptr != text.data() + text.size())
    quit(fmt::format("no number: {}", text));
  return value;
}

uint32_t interface_index(const std::string& name) {
  uint32_t index = ::if_nametoindex(name.c_str());
  if (index == 0) quit("no interface " + name);
  return index;
}

Protocol protocol(std::string_view text) {
  if (text == "tcp") return Protocol::tcp;
  if (text == "udp") return Protocol::udp;
  if (text == "icmp_echo") return Protocol::icmp_echo;
  quit(fmt::format("no protocol: {}", text));
}

std::vector<std::string> split(std::string_view text, char by) {
  std::vector<std::string> out;
  for (;;) {
    size_t at = text.find(by);
    out.emplace_back(text.substr(0, at));
    if (at == std::string_view::npos) return out;
    text.remove_prefix(at + 1);
  }
}

LeaseElement endpoint(std::span<const std::string> fields) {
  if (fields.size() < 4) quit("an endpoint is INTERFACE,ADDRESS,PROTOCOL,PORT[,PREFIX]");
  LeaseElement out{.ifindex = interface_index(fields[0]),
                   .address = need(parse_address(fields[1])),
                   .protocol = protocol(fields[2]),
                   .port = static_cast<uint16_t>(number(fields[3])),
                   .peer = {}};
  if (fields.size() > 4) out.peer = need(parse_prefix(fields[4]));
  return out;
}

LeaseElement egress(const std::string& interface) {
  return {.kind = LeaseElement::Kind::egress,
          .ifindex = interface_index(interface),
          .address = {},
          .peer = {}};
}

void add(Changes& changes, std::string_view word) {
  size_t at = word.find('=');
  if (at == std::string_view::npos) quit(fmt::format("no KEY=VALUE: {}", word));
  std::string_view key = word.substr(0, at);
  std::vector<std::string> fields = split(word.substr(at + 1), ',');
  std::span<const std::string> rest(fields);
  auto owned = [&] {
    if (fields.size() != 2) quit("an owned address is INTERFACE,ADDRESS");
    return OwnedAddress{interface_index(fields[0]), need(parse_address(fields[1]))};
  };
  auto write = [&](const LeaseElement& element) {
    Side side = fields[0] == "b" ? Side::b : Side::a;
    changes.writes.push_back({element, side, number(fields[1]), true});
  };
  if (key == "arm")
    changes.arm.push_back(interface_index(fields[0]));
  else if (key == "disarm")
    changes.disarm.push_back(interface_index(fields[0]));
  else if (key == "tenant")
    changes.add_tenants.push_back(interface_index(fields[0]));
  else if (key == "untenant")
    changes.remove_tenants.push_back(interface_index(fields[0]));
  else if (key == "own")
    changes.own.push_back(owned());
  else if (key == "disown")
    changes.disown.push_back(owned());
  else if (key == "lease" && fields.size() > 2)
    write(endpoint(rest.subspan(2)));
  else if (key == "egress" && fields.size() == 3)
    write(egress(fields[2]));
  else if (key == "revoke")
    changes.revoke(endpoint(rest));
  else if (key == "revoke-egress")
    changes.revoke(egress(fields[0]));
  else
    quit(fmt::format("not understood: {}", word));
}

HostRules host_rules(std::span<const std::string> words) {
  HostRules out;
  for (const std::string& word : words) {
    std::string_view text = word;
    if (text.starts_with("failsafe=")) {
      out.failsafe_ports.push_back(static_cast<uint16_t>(number(text.substr(9))));
    } else if (text.starts_with("listen=")) {
      auto fields = split(text.substr(7), ',');
      if (fields.size() < 2) quit("a listener is PROTOCOL,PORT[,PREFIX]");
      Listener listener{protocol(fields[0]), static_cast<uint16_t>(number(fields[1])), {}};
      for (size_t i = 2; i < fields.size(); ++i)
        listener.from.push_back(need(parse_prefix(fields[i])));
      out.listeners.push_back(std::move(listener));
    } else {
      quit("not understood: " + word);
    }
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty()) quit("say ensure, apply or remove");
  std::span<const std::string> rest(words.begin() + 1, words.end());
  Table table = need(Table::open("holdfast"));
  if (words[0] == "ensure") {
    need(table.ensure(host_rules(rest)));
  } else if (words[0] == "remove") {
    need(table.remove());
  } else if (words[0] == "apply") {
    Changes changes;
    for (const std::string& word : rest) add(changes, word);
    need(table.apply(changes));
    need(table.verify(changes));
  } else {
    quit("not understood: " + words[0]);
  }
  return 0;
}
