#include "userspace/daemon/spent.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "userspace/daemon/state_file.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "spent";
constexpr size_t spent_max = size_t{1} << 20;  // 3500 grants a second for 300 s; about 80 MiB
constexpr size_t entries_min = 1024;           // a file so small is left alone
constexpr uint64_t kept_after_expiry_s = 60;

// Id, expiry (0: taken back), and the first 8 bytes of the hash of both.
struct Entry {
  token::Digest id;
  std::array<uint8_t, 8> expires_s;
  std::array<uint8_t, 8> sum;

  Entry() = default;
  Entry(const token::Digest& of, uint64_t expires) : id(of) {
    std::memcpy(expires_s.data(), &expires, sizeof(expires));
    sum = right_sum();
  }
  uint64_t expires() const {
    uint64_t value = 0;
    std::memcpy(&value, expires_s.data(), sizeof(value));
    return value;
  }
  std::array<uint8_t, 8> right_sum() const {
    std::array<uint8_t, 8> out;
    const token::Digest digest =
        token::sha256({reinterpret_cast<const uint8_t*>(this), sizeof(id) + sizeof(expires_s)});
    std::memcpy(out.data(), digest.data(), out.size());
    return out;
  }
};
static_assert(sizeof(Entry) == 48);

std::string_view bytes_of(const Entry& entry) {
  return {reinterpret_cast<const char*>(&entry), sizeof(entry)};
}

}  // namespace

size_t Spent::Hash::operator()(const token::Digest& id) const {
  size_t hash = 0;  // a hash already
  std::memcpy(&hash, id.data(), sizeof(hash));
  return hash;
}

Result<Spent> Spent::open(const std::string& state_dir, uint64_t now_s, bool& whole) {
  Spent spent;
  spent.state_dir_ = state_dir;
  const Result<std::string> content = read_state_file(state_dir + "/" + std::string(file_name));
  if (!content && content.error().sys != ENOENT) return std::unexpected(content.error());
  whole = content.has_value();
  for (std::string_view rest = content ? std::string_view(*content) : "";
       rest.size() >= sizeof(Entry); rest.remove_prefix(sizeof(Entry))) {
    Entry entry;
    std::memcpy(static_cast<void*>(&entry), rest.data(), sizeof(entry));
    if (entry.sum != entry.right_sum()) {
      // The last one may have been under way when the machine went down.
      whole = whole && rest.size() < 2 * sizeof(Entry);
    } else if (entry.expires() == 0) {
      spent.expiry_.erase(entry.id);
    } else {
      spent.expiry_[entry.id] = entry.expires();
    }
  }
  if (Status ok = spent.rewrite(now_s); !ok) return pass_on(ok);
  return spent;
}

Status Spent::add(const token::Digest& id, uint64_t expires_s, uint64_t now_s) {
  if (entries_ >= rewrite_at_ || expiry_.size() >= spent_max)
    if (Status ok = rewrite(now_s); !ok) return ok;
  if (expiry_.size() >= spent_max)
    return fail(ErrorKind::exhausted, "tokens_spent_max",
                fmt::format("{} used grant tokens have not expired yet", expiry_.size()),
                "try again in a few minutes");
  if (Status ok = append(id, expires_s); !ok) return ok;
  expiry_[id] = expires_s;
  return {};
}

Status Spent::take_back(const token::Digest& id) {
  if (Status ok = append(id, 0); !ok) return ok;
  expiry_.erase(id);
  return {};
}

Status Spent::append(const token::Digest& id, uint64_t expires_s) {
  const Entry entry(id, expires_s);
  const std::string_view bytes = bytes_of(entry);
  const off_t end = static_cast<off_t>(entries_ * sizeof(Entry));
  const ssize_t put = ::pwrite(file_.get(), bytes.data(), bytes.size(), end);
  if (put != static_cast<ssize_t>(bytes.size()) || ::fdatasync(file_.get()) != 0)
    return fail_sys(put < 0 ? errno : EIO, "state_write",
                    fmt::format("writing {}/{}", state_dir_, file_name));
  ++entries_;
  return {};
}

// Without what has expired, and without what was taken back.
Status Spent::rewrite(uint64_t now_s) {
  std::erase_if(expiry_,
                [&](const auto& each) { return each.second + kept_after_expiry_s < now_s; });
  std::string content;
  content.reserve(expiry_.size() * sizeof(Entry));
  for (const auto& [id, expires_s] : expiry_) content += bytes_of(Entry(id, expires_s));
  if (Status ok = write_state_file(state_dir_, file_name, content); !ok) return ok;
  const std::string path = state_dir_ + "/" + std::string(file_name);
  file_.reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file_) return fail_sys(errno, "state_write", "opening " + path);
  entries_ = expiry_.size();
  rewrite_at_ = std::max(entries_min, 2 * entries_);
  return {};
}

}  // namespace holdfast
