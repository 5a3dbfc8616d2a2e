// Who this node is: the key whose name tokens are made out to, and the epoch they are made for.
// Both live in the state directory. The epoch grows whenever it is not certain that the node still
// knows what it took: with every boot of the machine, and with lost, restored or damaged state. So
// a token of before is refused by its epoch, and no list of tokens has to outlive that.
//
// The key may be on a PKCS#11 token instead (`holdfastd --node-key`). Then nothing secret is in the
// state directory, and an epoch key, which lives in memory and no longer than the process, signs
// what the node mints: a token is too slow for that, and may be gone for a while. For the epoch key
// the node's own signs a certificate, once an epoch (userspace/token/node_identity.hpp). A node
// with a file has one too, for that key itself, so that who checks has to know nothing of it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

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

  // Reads STATE_DIR/node.key and STATE_DIR/identity, or makes what is not there. `key_uri`: the
  // "pkcs11:" URI of the key, instead of the file. Errors: those of read_node_key(), or of
  // open_pkcs11_signer() and of signing; conflict / node_key_changed, node_key_in_file.
  static Result<Identity> open(const std::string& state_dir, const Moment& now,
                               const std::string& key_uri = {});

  // What the node is named for; it signs certificates and requests to be enrolled.
  const token::Signer& key() const { return *key_; }
  // What signs all else.
  const token::Signer& epoch_key() const { return epoch_key_ ? *epoch_key_ : *key_; }
  bool is_on_token() const { return epoch_key_ != nullptr; }
  // That the epoch key signs for the node in this epoch; empty if the key could not sign that when
  // the epoch began.
  const std::vector<uint8_t>& certificate() const { return certificate_; }
  const std::string& name() const { return name_; }  // "ni:///sha-256;..."
  uint64_t epoch() const { return epoch_; }
  bool epoch_is_new() const { return epoch_is_new_; }  // begun by this process
  // Wall time was there already: it does not go back behind this by itself.
  uint64_t wall_floor_ms() const { return wall_floor_ms_; }

  // Tokens of before are refused from here on. Whether there is a certificate, certificate() says.
  Status begin_epoch(const Moment& now);
  // Raises the floor, durably.
  Status remember_time(uint64_t wall_ms);

 private:
  Identity(std::string state_dir, std::unique_ptr<const token::Signer> key,
           std::unique_ptr<const token::Signer> epoch_key);
  void advance(const Moment& now);
  Status certify(const Moment& now);
  Status save() const;

  std::string state_dir_;
  std::unique_ptr<const token::Signer> key_;
  std::unique_ptr<const token::Signer> epoch_key_;  // of a key on a token
  std::vector<uint8_t> certificate_;
  std::string name_;
  std::string boot_id_;
  uint64_t epoch_ = 0;
  bool epoch_is_new_ = false;
  uint64_t wall_floor_ms_ = 0;
};

}  // namespace holdfast
