// Leases to grant, from a command line or a file, to the body of the verb `lease.grant`: a CBOR
// array with a map for each lease. A file of a million lines takes about a second, so it goes from
// the JSON reader straight into the CBOR writer.
//
// The file is JSON Lines (an object a line) or one JSON array of objects:
//   {"tenant": "acme/shop/prod", "endpoints": ["web@10.1.0.2:443"], "ttl": "90s"}
// Keys: tenant, and at least one of endpoints and egress (lists); peer, holder, ttl, grace, and
// each (true: one lease for every member of the endpoints). Any other key, the same key twice, and
// null are errors. Pure but for cgroup paths in `holder`.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"

namespace holdfast::cli {

// 100 bytes a lease and a million leases, five times over.
constexpr size_t bulk_bytes_max = size_t{512} << 20;
constexpr uint64_t default_ttl_ns = 60'000'000'000;

// One lease as it goes over the wire. Views are the caller's.
struct LeaseEntry {
  std::string_view tenant;
  std::span<const std::string_view> endpoints;
  std::span<const std::string_view> egress;
  std::string_view peer;    // empty: any
  std::string_view holder;  // as parse_holder made it; empty: whoever asks
  uint64_t ttl_ns = default_ttl_ns;
  std::optional<uint64_t> grace_ns;
  bool each = false;
};

class GrantBody {
 public:
  GrantBody();

  void reserve(size_t bytes) { bytes_.reserve(bytes); }
  void add(const LeaseEntry& entry);
  uint64_t count() const { return count_; }
  // The whole array. Add nothing after it.
  std::span<const uint8_t> finish();

 private:
  std::vector<uint8_t> bytes_;  // room for the array's head, then the maps
  uint64_t count_ = 0;
};

// For entries that do not say.
struct BulkDefaults {
  uint64_t ttl_ns = default_ttl_ns;
  std::optional<uint64_t> grace_ns;
  std::string holder = {};
};

// Errors: invalid / bulk_syntax, bulk_entry, bulk_empty, each naming file:line, what is wrong and
// how to mend it; the first one only. `file` is for messages.
Result<GrantBody> parse_bulk(const std::string& text, std::string_view file,
                             const BulkDefaults& defaults);

// A whole file, or the standard input for "-", of at most `bytes_max`. Errors: not_found /
// file_missing, invalid / file_too_large, internal / file_read.
Result<std::string> read_file(const std::string& path, size_t bytes_max);
// What is no secret; a file that is there is replaced. Errors: file_write.
Status write_file(const std::string& path, std::span<const uint8_t> bytes);

// What messages call it: "-" is "standard input".
std::string shown_name(const std::string& path);

}  // namespace holdfast::cli
