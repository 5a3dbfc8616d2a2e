#include "userspace/daemon/identity.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <optional>

#include <fmt/format.h>
#include <sys/stat.h>

#include "userspace/base/clock.hpp"
#include "userspace/base/log.hpp"
#include "userspace/daemon/node_key.hpp"
#include "userspace/daemon/state_file.hpp"
#include "userspace/token/node_identity.hpp"
#include "userspace/token/pkcs11.hpp"

namespace holdfast {
namespace {

constexpr std::string_view file_name = "identity";
constexpr std::string_view first_line = "holdfast identity 1";
constexpr std::string_view on_token_line = "key pkcs11\n";

struct Stored {
  std::string node;
  std::string boot_id;
  uint64_t epoch = 0;
  uint64_t wall_ms = 0;
  bool on_token = false;  // its key
};

std::string sum_of(std::string_view text) {
  const token::Digest digest =
      token::sha256({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return fmt::format("{:02x}", fmt::join(digest, ""));
}

std::string render(const Stored& stored) {
  std::string text = fmt::format("{}\nnode {}\nepoch {}\nboot {}\nwall {}\n{}", first_line,
                                 stored.node, stored.epoch, stored.boot_id, stored.wall_ms,
                                 stored.on_token ? on_token_line : "");
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
  stored.on_token = rest.starts_with(on_token_line);
  if (stored.epoch == 0 || render(stored) != text) return std::nullopt;
  return stored;
}

std::unexpected<Error> key_changed(std::string what, const std::string& next_step,
                                   const std::string& state_dir) {
  return fail(
      ErrorKind::conflict, "node_key_changed", std::move(what),
      fmt::format("{}, or remove {}/{} to be another node", next_step, state_dir, file_name));
}

struct Keys {
  std::unique_ptr<const token::Signer> key;
  std::unique_ptr<const token::Signer> epoch_key;  // of a key on a token
  const token::SecretKey* to_rewrite = nullptr;    // `key`, if its file is of an earlier build
  bool is_new = false;
};

// Made, if there is none. One that was on a token is not missed in silence.
Result<Keys> keys_in_file(const std::string& state_dir, const std::optional<Stored>& stored) {
  Result<NodeKey> old = read_node_key(state_dir);
  const bool is_new = !old && old.error().code == "key_missing";
  if (!old && !is_new) return pass_on(old);
  if (is_new && stored && stored->on_token)
    return key_changed(
        fmt::format("the key of node {} is on a PKCS#11 token, and none is named", stored->node),
        "name it by --node-key", state_dir);
  Result<token::SecretKey> made =
      is_new ? token::SecretKey::make() : Result<token::SecretKey>(std::move(old->key));
  if (!made) return pass_on(made);
  if (is_new)
    if (Status ok = write_node_key(state_dir, *made); !ok) return pass_on(ok);
  auto key = std::make_unique<const token::SecretKey>(std::move(*made));
  const token::SecretKey* to_rewrite = !is_new && old->in_pem ? key.get() : nullptr;
  return Keys{.key = std::move(key), .epoch_key = {}, .to_rewrite = to_rewrite, .is_new = is_new};
}

Result<Keys> keys_on_token(const std::string& uri) {
  Result<std::unique_ptr<token::Signer>> key = token::open_pkcs11_signer(uri);
  if (!key) return pass_on(key, "the node's key");
  Result<token::SecretKey> epoch_key = token::SecretKey::make();
  if (!epoch_key) return pass_on(epoch_key);
  return Keys{.key = std::move(*key),
              .epoch_key = std::make_unique<const token::SecretKey>(std::move(*epoch_key))};
}

// Nothing secret is in the state directory of a node whose key is on a token.
Status check_no_file(const std::string& state_dir) {
  const std::string path = state_dir + "/node.key";
  struct stat found{};
  if (::lstat(path.c_str(), &found) != 0) return {};
  return fail(ErrorKind::conflict, "node_key_in_file",
              path + " is there, and --node-key says that the node's key is on a token",
              "remove the file, or leave --node-key out");
}

}  // namespace

Result<Identity::Moment> Identity::Moment::now() {
  Result<std::string> boot_id = read_state_file("/proc/sys/kernel/random/boot_id");
  if (!boot_id) return pass_on(boot_id);
  while (boot_id->ends_with('\n')) boot_id->pop_back();
  return Moment{wall_now_ns() / ns_per_ms, std::move(*boot_id)};
}

Identity::Identity(std::string state_dir, std::unique_ptr<const token::Signer> key,
                   std::unique_ptr<const token::Signer> epoch_key)
    : state_dir_(std::move(state_dir)),
      key_(std::move(key)),
      epoch_key_(std::move(epoch_key)),
      name_(token::node_name(key_->public_key())) {}

Result<Identity> Identity::open(const std::string& state_dir, const Moment& now,
                                const std::string& key_uri) {
  const std::string path = state_dir + "/" + std::string(file_name);
  const Result<std::string> text = read_state_file(path);
  if (!text && text.error().sys != ENOENT) return std::unexpected(text.error());
  const std::optional<Stored> stored = text ? parse(*text) : std::nullopt;
  const bool on_token = !key_uri.empty();
  Result<Keys> keys = on_token ? keys_on_token(key_uri) : keys_in_file(state_dir, stored);
  if (!keys) return pass_on(keys);
  const token::SecretKey* to_rewrite = keys->to_rewrite;
  Identity identity(state_dir, std::move(keys->key), std::move(keys->epoch_key));
  if (stored && stored->node != identity.name_ && !keys->is_new)
    return key_changed(fmt::format("{} is not the key of node {}",
                                   on_token ? key_uri : state_dir + "/node.key", stored->node),
                       on_token ? "name the node's own key by --node-key, or none if it is a file"
                                : "put the node's own key back",
                       state_dir);
  if (on_token)
    if (Status ok = check_no_file(state_dir); !ok) return pass_on(ok);
  if (to_rewrite != nullptr) {
    if (Status ok = write_node_key(state_dir, *to_rewrite); !ok) return pass_on(ok);
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
  const bool begins = !stored || keys->is_new || stored->boot_id != now.boot_id;
  if (begins) identity.advance(now);
  // A key that cannot sign keeps the daemon from starting, before anything is written.
  if (Status ok = identity.certify(now); !ok) return pass_on(ok, "the node's key");
  const Status saved = begins || stored->on_token != on_token ? identity.save()
                                                              : identity.remember_time(now.wall_ms);
  if (!saved) return std::unexpected(saved.error());
  return identity;
}

// At least the time of day in milliseconds: an epoch that was forgotten is behind it.
void Identity::advance(const Moment& now) {
  epoch_ = std::max(epoch_ + 1, now.wall_ms);
  epoch_is_new_ = true;
  boot_id_ = now.boot_id;
  wall_floor_ms_ = std::max(wall_floor_ms_, now.wall_ms);
  log::notice("node_epoch", {{"epoch", epoch_}, {"node", name_}});
}

Status Identity::certify(const Moment& now) {
  certificate_.clear();
  Result<std::vector<uint8_t>> made =
      token::certify(*key_, epoch_, epoch_key().public_key(), now.wall_ms / 1000);
  if (!made) return pass_on(made);
  certificate_ = std::move(*made);
  return {};
}

Status Identity::begin_epoch(const Moment& now) {
  advance(now);
  if (Status ok = certify(now); !ok)
    log::error("node_key_unavailable",
               {{"cause", ok.error().text()},
                {"effect", "nobody but this node can tell that its epoch key is its own"},
                {"next_step", "once the key is back: restart holdfastd"}});
  return save();
}

Status Identity::remember_time(uint64_t wall_ms) {
  if (wall_ms <= wall_floor_ms_) return {};
  wall_floor_ms_ = wall_ms;
  return save();
}

Status Identity::save() const {
  return write_state_file(state_dir_, file_name,
                          render({.node = name_,
                                  .boot_id = boot_id_,
                                  .epoch = epoch_,
                                  .wall_ms = wall_floor_ms_,
                                  .on_token = is_on_token()}));
}

}  // namespace holdfast
