#include "userspace/daemon/identity.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/node_key.hpp"
#include "userspace/daemon/state_file.hpp"
#include "userspace/token/token.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "identity";
constexpr std::string_view first_line = "holdfast identity 1";

struct Stored {
  std::string node;
  std::string boot_id;
  uint64_t epoch = 0;
  uint64_t wall_ms = 0;
};

std::string sum_of(std::string_view text) {
  const token::Digest digest =
      token::sha256({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return fmt::format("{:02x}", fmt::join(digest, ""));
}

std::string render(const Stored& stored) {
  std::string text = fmt::format("{}\nnode {}\nepoch {}\nboot {}\nwall {}\n", first_line,
                                 stored.node, stored.epoch, stored.boot_id, stored.wall_ms);
  return text + "sha256 " + sum_of(text) + "\n";
}

// What render() wrote, to the byte; anything else is damage.
std::optional<Stored> parse(std::string_view text) {
  Stored stored;
  std::string_view rest = text;
  const auto line = [&](std::string_view name) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view value = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    value.remove_prefix(value.starts_with(name) ? name.size() : value.size());
    return value;
  };
  const auto number = [](std::string_view digits) {
    uint64_t value = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return value;
  };
  line(first_line);
  stored.node = line("node ");
  stored.epoch = number(line("epoch "));
  stored.boot_id = line("boot ");
  stored.wall_ms = number(line("wall "));
  if (stored.epoch == 0 || render(stored) != text) return std::nullopt;
  return stored;
}

Result<NodeKey> read_or_make_key(const std::string& state_dir, bool& is_new) {
  Result<NodeKey> old = read_node_key(state_dir);
  is_new = !old && old.error().code == "key_missing";
  if (!is_new) return old;
  Result<token::SecretKey> key = token::SecretKey::make();
  if (!key) return pass_on(key);
  if (Status ok = write_node_key(state_dir, *key); !ok) return pass_on(ok);
  return NodeKey{std::move(*key)};
}

}  // namespace

Result<Identity::Moment> Identity::Moment::now() {
  Result<std::string> boot_id = read_state_file("/proc/sys/kernel/random/boot_id");
  if (!boot_id) return pass_on(boot_id);
  while (boot_id->ends_with('\n')) boot_id->pop_back();
  return Moment{wall_now_ns() / ns_per_ms, std::move(*boot_id)};
}

Identity::Identity(std::string state_dir, token::SecretKey key)
    : state_dir_(std::move(state_dir)),
      key_(std::move(key)),
      name_(token::node_name(key_.public_key())) {}

Result<Identity> Identity::open(const std::string& state_dir, const Moment& now) {
  bool is_new = false;
  Result<NodeKey> key = read_or_make_key(state_dir, is_new);
  if (!key) return pass_on(key);
  const bool in_pem = key->in_pem;
  Identity identity(state_dir, std::move(key->key));

  const std::string path = state_dir + "/" + std::string(file_name);
  const Result<std::string> text = read_state_file(path);
  if (!text && text.error().sys != ENOENT) return std::unexpected(text.error());
  const std::optional<Stored> stored = text ? parse(*text) : std::nullopt;
  if (stored && stored->node != identity.name_ && !is_new)
    return fail(ErrorKind::conflict, "node_key_changed",
                fmt::format("{}/node.key is not the key of node {}", state_dir, stored->node),
                fmt::format("put the node's own key back, or remove {} to be another node", path));
  if (in_pem) {
    if (Status ok = write_node_key(state_dir, identity.key_); !ok) return pass_on(ok);
    log::notice("node_key_rewritten",
                {{"file", state_dir + "/node.key"}, {"from", "PEM"}, {"node", identity.name_}});
  }
  if (text && !stored)
    log::error("identity_damaged", {{"file", path}, {"effect", "tokens of before are refused"}});
  if (stored) {
    identity.epoch_ = stored->epoch;
    identity.wall_floor_ms_ = stored->wall_ms;
    identity.boot_id_ = stored->boot_id;
  }
  if (!stored || is_new || stored->boot_id != now.boot_id) {
    if (Status ok = identity.begin_epoch(now); !ok) return pass_on(ok);
  } else if (Status ok = identity.remember_time(now.wall_ms); !ok) {
    return pass_on(ok);
  }
  return identity;
}

// At least the time of day in milliseconds: an epoch that was forgotten is behind it.
Status Identity::begin_epoch(const Moment& now) {
  epoch_ = std::max(epoch_ + 1, now.wall_ms);
  epoch_is_new_ = true;
  boot_id_ = now.boot_id;
  wall_floor_ms_ = std::max(wall_floor_ms_, now.wall_ms);
  log::notice("node_epoch", {{"epoch", epoch_}, {"node", name_}});
  return save();
}

Status Identity::remember_time(uint64_t wall_ms) {
  if (wall_ms <= wall_floor_ms_) return {};
  wall_floor_ms_ = wall_ms;
  return save();
}

Status Identity::save() const {
  return write_state_file(
      state_dir_, file_name,
      render({.node = name_, .boot_id = boot_id_, .epoch = epoch_, .wall_ms = wall_floor_ms_}));
}

}  // namespace holdfast
