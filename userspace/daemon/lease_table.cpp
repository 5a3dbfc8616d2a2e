#include "userspace/daemon/lease_table.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <utility>

#include <fmt/format.h>
#include <sys/random.h>

#include "userspace/base/check.hpp"

namespace holdfast {
namespace {

constexpr size_t places_min = 64;

// A quarter of them stays free.
size_t places_for(size_t leases) {
  return std::max(places_min, std::bit_ceil(leases + leases / 3 + 1));
}

}  // namespace

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

LeaseId LeaseId::of(const std::array<uint8_t, 16>& bytes) {
  LeaseId id;
  for (size_t i = 0; i < bytes.size(); ++i) id.words[i / 8] = id.words[i / 8] << 8 | bytes[i];
  return id;
}

std::array<uint8_t, 16> LeaseId::bytes() const {
  std::array<uint8_t, 16> out;
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<uint8_t>(words[i / 8] >> (56 - 8 * (i % 8)));
  return out;
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
  reserve(1);
  Place& place = places_[place_of(id)];
  CHECK(place.free());
  place = {id, first_slot};
  ++size_;
  if (tenant >= by_tenant_.size()) by_tenant_.resize(tenant + 1);
  ++by_tenant_[tenant];
  moved(first_slot, incarnation, deadline_boot_ns);
}

void LeaseTable::remove(const LeaseId& id, uint32_t tenant) {
  if (places_.empty()) return;
  size_t hole = place_of(id);
  if (places_[hole].free()) return;
  // What follows moves up, unless it belongs behind the hole: searches end at a free place.
  for (size_t at = after(hole); !places_[at].free(); at = after(at)) {
    const size_t mask = places_.size() - 1;
    if (((at - home_of(places_[at].id)) & mask) < ((at - hole) & mask)) continue;
    places_[hole] = places_[at];
    hole = at;
  }
  places_[hole] = {};
  --size_;
  --by_tenant_[tenant];
  // What a million leases took is given back when they are gone.
  if (places_for(size_ * 4) < places_.size()) rebuild(places_for(size_));
}

void LeaseTable::moved(uint32_t first_slot, uint32_t incarnation, uint64_t deadline_boot_ns) {
  expiries_.push({deadline_boot_ns, first_slot, incarnation});
}

void LeaseTable::reserve(size_t leases) {
  const size_t places = places_for(size_ + leases);
  if (places > places_.size()) rebuild(places);
}

void LeaseTable::rebuild(size_t places) {
  const std::vector<Place> old = std::exchange(places_, std::vector<Place>(places));
  for (const Place& place : old)
    if (!place.free()) places_[place_of(place.id)] = place;
}

size_t LeaseTable::place_of(const LeaseId& id) const {
  size_t at = home_of(id);
  while (!places_[at].free() && places_[at].id != id) at = after(at);
  return at;
}

std::optional<uint32_t> LeaseTable::find(const LeaseId& id) const {
  if (places_.empty()) return std::nullopt;
  const Place& place = places_[place_of(id)];
  if (place.free()) return std::nullopt;
  return place.first_slot;
}

std::optional<LeaseTable::Expiry> LeaseTable::earliest() const {
  if (expiries_.empty()) return std::nullopt;
  return expiries_.top();
}

}  // namespace holdfast
