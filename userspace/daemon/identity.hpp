// Who this node is: the key whose name tokens are made out to, and the epoch they are made for.
// Both live in the state directory. The epoch grows whenever it is not certain that the node still
// knows what it took: with every boot of the machine, and with lost, restored or damaged state. So
// a token of before is refused by its epoch, and no list of tokens has to outlive that.
#pragma once

#include <cstdint>
#include <string>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"

namespace holdfast {

class Identity {
 public:
  struct Moment {
    uint64_t wall_ms = 0;
    std::string boot_id;  // /proc/sys/kernel/random/boot_id

    static Result<Moment> now();
  };

  // Reads STATE_DIR/node.key and STATE_DIR/identity, or makes what is not there. Errors: those of
  // read_node_key(); conflict / node_key_changed.
  static Result<Identity> open(const std::string& state_dir, const Moment& now);

  const token::SecretKey& key() const { return key_; }
  const std::string& name() const { return name_; }  // "ni:///sha-256;..."
  uint64_t epoch() const { return epoch_; }
  bool epoch_is_new() const { return epoch_is_new_; }  // begun by this process
  // Wall time was there already: it does not go back behind this by itself.
  uint64_t wall_floor_ms() const { return wall_floor_ms_; }

  // Tokens of before are refused from here on.
  Status begin_epoch(const Moment& now);
  // Raises the floor, durably.
  Status remember_time(uint64_t wall_ms);

 private:
  Identity(std::string state_dir, token::SecretKey key);
  Status save() const;

  std::string state_dir_;
  token::SecretKey key_;
  std::string name_;
  std::string boot_id_;
  uint64_t epoch_ = 0;
  bool epoch_is_new_ = false;
  uint64_t wall_floor_ms_ = 0;
};

}  // namespace holdfast
