// STATE_DIR/node.key: the key that makes this node the one it is. 64 bytes (REQUIREMENTS H9):
//
//   32  the key (RFC 8032's seed)
//    8  "HFNODE1\n"
//   24  of the SHA-256 of all before, the first
//
// Whatever does not hold of the file or of its content keeps the daemon from starting, since it
// would be another node. Earlier builds wrote PEM: that is read, and once it is known to be
// this node's key, written anew as above.
#pragma once

#include <string>

#include "userspace/base/result.hpp"
#include "userspace/token/key.hpp"

namespace holdfast {

struct NodeKey {
  token::SecretKey key;
  bool in_pem = false;  // write_node_key() is due
};

// Errors: those of token::read_key_file(), with a mode of 0400 exactly; invalid / key_length;
// invalid / key_damaged.
Result<NodeKey> read_node_key(const std::string& state_dir);
// Replaces the file as a whole, durably.
Status write_node_key(const std::string& state_dir, const token::SecretKey& key);

}  // namespace holdfast
