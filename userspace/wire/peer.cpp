#include "userspace/wire/peer.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>

#include <fmt/format.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "userspace/base/cgroup2.hpp"
#include "userspace/base/clock.hpp"

namespace holdfast::wire {
namespace {

// What the kernel shows in place of users that have no number here.
uid_t overflow_uid() {
  static const uid_t uid = [] {
    unsigned value = 65534;
    if (std::FILE* file = std::fopen("/proc/sys/kernel/overflowuid", "re"); file != nullptr) {
      if (std::fscanf(file, "%u", &value) != 1) value = 65534;
      std::fclose(file);
    }
    return value;
  }();
  return uid;
}

}  // namespace

std::string_view name_of(Role role) {
  switch (role) {
    case Role::none: return "none";
    case Role::reads: return "reader";
    case Role::operates: return "operator";
  }
  return "none";
}

std::string_view name_of(Offence offence) {
  switch (offence) {
    case Offence::rate: return "rate";
    case Offence::frame: return "frame";
    case Offence::signature: return "signature";
    case Offence::proof: return "proof";
    case Offence::authority: return "authority";
  }
  return "?";
}

Status renew_challenge(Peer& peer) {
  if (::getrandom(peer.challenge.data(), peer.challenge.size(), 0) !=
      static_cast<ssize_t>(peer.challenge.size()))
    return fail_sys(errno, "random", "asking the kernel for random bytes");
  peer.challenge_boot_ns = boot_now_ns();
  return {};
}

Result<Peer> read_peer(int fd, const RoleGroups& groups) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return fail_sys(errno, "peer_unknown", "the kernel does not say who connected");
  }
  if (credentials.uid == overflow_uid()) {
    // Several users may hide behind it: no budget, no role and no log line would name one of them.
    return fail(
        ErrorKind::denied, "unmapped_uid",
        fmt::format("uid {} stands for users this namespace does not know", credentials.uid),
        "connect as a user that is mapped in the daemon's user namespace");
  }
  Peer peer;
  peer.uid = credentials.uid;
  peer.gid = credentials.gid;
  peer.pid = credentials.pid;
  if (Result<std::vector<uint64_t>> cgroups = cgroups_of_peer(fd))
    peer.cgroups = std::move(*cgroups);
  if (Status ok = renew_challenge(peer); !ok) return pass_on(ok);
  peer.connected_boot_ns = peer.challenge_boot_ns;
  peer.groups.resize(32);
  for (;;) {
    size = static_cast<socklen_t>(peer.groups.size() * sizeof(gid_t));
    const int got = ::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, peer.groups.data(), &size);
    if (got != 0 && errno != ERANGE) {
      return fail_sys(errno, "peer_unknown", "the kernel does not say which groups the peer has");
    }
    // ERANGE says how much room is needed, and a process's groups are bounded.
    if (size / sizeof(gid_t) > NGROUPS_MAX) {
      return fail(ErrorKind::internal, "peer_unknown", "the kernel reports too many groups");
    }
    peer.groups.resize(size / sizeof(gid_t));
    if (got == 0) break;
  }
  const auto member = [&peer](std::optional<gid_t> gid) {
    return gid && (peer.gid == *gid ||
                   std::find(peer.groups.begin(), peer.groups.end(), *gid) != peer.groups.end());
  };
  if (peer.uid == 0 || member(groups.operators)) {
    peer.role = Role::operates;
  } else if (member(groups.readers)) {
    peer.role = Role::reads;
  }
  return peer;
}

}  // namespace holdfast::wire
