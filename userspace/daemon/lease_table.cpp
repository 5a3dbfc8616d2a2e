#include "userspace/daemon/lease_table.hpp"

#include <cerrno>
#include <charconv>

#include <fmt/format.h>
#include <sys/random.h>

#include "userspace/base/check.hpp"

namespace holdfast {

LeaseId LeaseId::random() {
  // Drawn from the kernel a page at a time: a system call for every lease is the cost of a bulk
  // grant.
  static std::array<uint64_t, 512> pool;
  static size_t used = pool.size();
  if (used + 2 > pool.size()) {
    auto* bytes = reinterpret_cast<char*>(pool.data());
    for (size_t filled = 0; filled < sizeof(pool);) {
      const ssize_t got = ::getrandom(bytes + filled, sizeof(pool) - filled, 0);
      CHECK(got > 0 || errno == EINTR);
      if (got > 0) filled += static_cast<size_t>(got);
    }
    used = 0;
  }
  const LeaseId id{{pool[used], pool[used + 1]}};
  used += 2;
  return id;
}

std::string format_lease_id(const LeaseId& id) {
  return fmt::format("{:016x}{:016x}", id.words[0], id.words[1]);
}

Result<LeaseId> parse_lease_id(std::string_view text) {
  LeaseId id;
  if (text.size() == 32) {
    const char* begin = text.data();
    const auto first = std::from_chars(begin, begin + 16, id.words[0], 16);
    const auto second = std::from_chars(begin + 16, begin + 32, id.words[1], 16);
    if (first.ptr == begin + 16 && second.ptr == begin + 32) return id;
  }
  return fail(ErrorKind::invalid, "bad_lease_id", fmt::format("\"{}\" is not a lease id", text),
              "a lease id is 32 hex digits: see `holdfast lease ls`");
}

void LeaseTable::add(const LeaseId& id, uint32_t first_slot, uint32_t incarnation,
                     uint64_t deadline_boot_ns, uint32_t tenant) {
  by_id_.emplace(id, first_slot);
  if (tenant >= by_tenant_.size()) by_tenant_.resize(tenant + 1);
  ++by_tenant_[tenant];
  moved(first_slot, incarnation, deadline_boot_ns);
}

void LeaseTable::remove(const LeaseId& id, uint32_t tenant) {
  if (by_id_.erase(id) != 0) --by_tenant_[tenant];
}

void LeaseTable::moved(uint32_t first_slot, uint32_t incarnation, uint64_t deadline_boot_ns) {
  expiries_.push({deadline_boot_ns, first_slot, incarnation});
}

std::optional<uint32_t> LeaseTable::find(const LeaseId& id) const {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return std::nullopt;
  return found->second;
}

std::optional<LeaseTable::Expiry> LeaseTable::earliest() const {
  if (expiries_.empty()) return std::nullopt;
  return expiries_.top();
}

}  // namespace holdfast
