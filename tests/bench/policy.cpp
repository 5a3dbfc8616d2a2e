// The counting half of `scripts/bench policy`; policy.py starts this in the node's namespace.
//
//   bench_policy --table NAME --port IFACE --first KEY --keys N
//     asks the kernel for the element of each key of [KEY, KEY + N), and prints how many live
//
// Exit code 1 with a reason if it could not ask.
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <getopt.h>
#include <net/if.h>

#include "nft/table.hpp"
#include "tests/bench/dataplane.h"
#include "userspace/base/result.hpp"

namespace holdfast {
namespace {

struct Options {
  std::string table;
  std::string interface;
  uint32_t first = 0;
  uint32_t keys = 0;
};

nft::LeaseElement element_of(uint32_t ifindex, uint32_t key) {
  nft::LeaseElement element;
  element.ifindex = ifindex;
  const uint32_t address = BENCH_ADDRESS_FIRST + key % BENCH_ADDRESSES;
  element.address.bytes[10] = element.address.bytes[11] = 0xff;
  for (uint32_t i = 0; i < 4; i++)
    element.address.bytes[12 + i] = static_cast<uint8_t>(address >> (24 - 8 * i));
  element.protocol = Protocol::udp;
  element.port = static_cast<uint16_t>(BENCH_PORT_FIRST + key / BENCH_ADDRESSES);
  return element;
}

// A lease lives in one of two sets: those not found in the first are asked for in the other.
Result<uint64_t> count(const Options& options) {
  const uint32_t ifindex = ::if_nametoindex(options.interface.c_str());
  if (ifindex == 0) return fail_sys(errno, "interface", options.interface);
  Result<nft::Table> table = nft::Table::open(options.table);
  if (!table) return pass_on(table);
  uint64_t found = 0;
  std::vector<nft::LeaseKey> asked(options.keys);
  for (uint32_t i = 0; i < options.keys; i++)
    asked[i] = {element_of(ifindex, options.first + i), nft::Side::b};
  for (int side = 0; side < 2 && !asked.empty(); side++) {
    const auto left_ms = table->remaining_ms(asked);
    if (!left_ms) return std::unexpected(left_ms.error());
    std::vector<nft::LeaseKey> missing;
    for (size_t i = 0; i < asked.size(); i++) {
      if ((*left_ms)[i]) {
        found++;
      } else {
        missing.push_back({asked[i].element, nft::Side::a});
      }
    }
    asked = std::move(missing);
  }
  return found;
}

bool read_number(const char* text, uint32_t& out) {
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, out);
  return error == std::errc() && stop == end;
}

int main_of(int argc, char** argv) {
  constexpr option known[] = {{"table", required_argument, nullptr, 't'},
                              {"port", required_argument, nullptr, 'i'},
                              {"first", required_argument, nullptr, 'f'},
                              {"keys", required_argument, nullptr, 'n'},
                              {nullptr, 0, nullptr, 0}};
  Options options;
  bool good = true;
  for (int c = 0; (c = ::getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    switch (c) {
      case 't': options.table = optarg; break;
      case 'i': options.interface = optarg; break;
      case 'f': good = good && read_number(optarg, options.first); break;
      case 'n': good = good && read_number(optarg, options.keys); break;
      default: good = false;
    }
  }
  if (!good || options.table.empty() || options.keys == 0) {
    fmt::print(stderr,
               "usage: bench_policy --table NAME --port IFACE --first KEY --keys N; "
               "scripts/bench runs it\n");
    return 2;
  }
  const Result<uint64_t> found = count(options);
  if (!found) {
    fmt::print(stderr, "bench_policy: {}\n", found.error().text());
    return 1;
  }
  fmt::print("{{\"elements\": {}}}\n", *found);
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  return holdfast::main_of(argc, argv);
}
