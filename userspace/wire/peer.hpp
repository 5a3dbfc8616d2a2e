// Who connected to a Unix socket, and what that makes it here.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "userspace/base/result.hpp"

namespace holdfast::wire {

// What a peer may ask for is the handler's business; this is only who it is. `operates` is root or
// a member of holdfast-operator, `reads` a member of holdfast, `none` everyone else (holders of
// tokens).
enum class Role : uint8_t { none, reads, operates };
std::string_view name_of(Role role);

// What a peer does that costs others something, and that it could have known.
enum class Offence : uint8_t {
  rate,       // asks, or connects, more often than it may
  frame,      // sends what is no request
  signature,  // signs a request, and the signature is not believed
  proof,      // shows a key, a grant or a token that is not believed
  authority,  // asks for what it may not
};
constexpr size_t offences = 5;
std::string_view name_of(Offence offence);

// The groups behind the roles; none when there is no such group.
struct RoleGroups {
  std::optional<gid_t> operators;
  std::optional<gid_t> readers;
};

// Whose signature a request bears, and what that key may ask for. Or whose token a connection has
// shown, and what that is for.
struct Principal {
  std::string name;
  std::array<uint8_t, 32> key{};                   // its thumbprint; of a token the SHA-256
  std::vector<std::string> verbs;                  // exactly these; "*": every one
  std::vector<std::string> tenants;                // likewise
  std::optional<std::array<uint8_t, 32>> by = {};  // the key that granted it this, if one did
  uint64_t life_max_ns = UINT64_MAX;               // of a term that it gives
  bool is_bearer = false;                          // a token's

  bool may_ask(std::string_view verb) const { return lists(verbs, verb); }
  bool covers(std::string_view tenant) const { return lists(tenants, tenant); }
  bool covers_all() const { return lists(tenants, "*"); }

 private:
  static bool lists(const std::vector<std::string>& names, std::string_view name) {
    return std::ranges::any_of(
        names, [&](const std::string& each) { return each == "*" || each == name; });
  }
};

// What somebody may ask for on this connection beside what anchors say, until it expires.
struct Delegation {
  Principal principal;  // as it was granted; what its granter has now bounds it
  std::array<uint8_t, 32> public_key{};
  std::string application;  // of a security key
  uint64_t issued_s = 0;    // since 1970
  uint64_t expires_boot_ns = 0;
};

// Who connected (SO_PEERCRED, SO_PEERGROUPS): not necessarily who speaks now, a child may have
// inherited the socket. The pid is for logs only; it may have been reused.
struct Peer {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;
  std::vector<gid_t> groups;
  Role role = Role::none;
  std::optional<std::vector<uint64_t>> cgroups;  // its own and those around it, if they are known
  // Random, told in the hello. Whoever signs it proves a key on this connection, and is that key's
  // holder from then on.
  std::array<uint8_t, 32> challenge{};
  std::optional<std::array<uint8_t, 32>> proved_key = {};  // its thumbprint
  uint64_t challenge_boot_ns = 0;                          // when that was made
  uint64_t sequence = 0;  // of its last signed request that was believed
  std::vector<Delegation> delegations = {};
  std::shared_ptr<const Principal> signer = {};  // of that request
  uint64_t connected_boot_ns = 0;
  // The bearer token it has shown: from then on it may read what that is for, and nothing else.
  std::shared_ptr<const Principal> bearer = {};
};

// A new challenge for this connection. Errors: internal / random.
Status renew_challenge(Peer& peer);

// Errors: denied / unmapped_uid; internal / peer_unknown.
Result<Peer> read_peer(int fd, const RoleGroups& groups);

}  // namespace holdfast::wire
