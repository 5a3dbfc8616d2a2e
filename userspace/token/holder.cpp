#include "userspace/token/holder.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/token/proof.hpp"

namespace holdfast::token {
namespace {

// The proof that answers a hello.
Result<std::vector<uint8_t>> answer(const cbor::Value& hello, int socket, const SecretKey& key) {
  ucred server{};
  socklen_t size = sizeof(server);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &server, &size) != 0)
    return fail_sys(errno, "peer_unknown", "the kernel does not say who serves the socket");
  if (server.uid != 0 && server.uid != ::geteuid())
    return fail(ErrorKind::denied, "not_the_node",
                fmt::format("uid {} serves this socket, and could pass the proof on", server.uid),
                "connect to the socket of the node's own daemon");
  const Result<std::string_view> node = hello.get_text("node");
  const Result<uint64_t> epoch = hello.get_u64("epoch");
  const Result<std::span<const uint8_t>> challenge = hello.get_bytes("challenge");
  for (const Error* error : {node ? nullptr : &node.error(), epoch ? nullptr : &epoch.error(),
                             challenge ? nullptr : &challenge.error()})
    if (error != nullptr) return std::unexpected(*error);
  ProofPlace place{.node = *node, .epoch = *epoch};
  if (challenge->size() != place.challenge.size())
    return fail(ErrorKind::unsupported, "unknown_challenge",
                "the daemon asks for another proof than this version makes",
                "use the client and the daemon of one release");
  std::ranges::copy(*challenge, place.challenge.begin());
  return make_proof(key, place);
}

}  // namespace

Status prove_key(wire::Client& node, const SecretKey& key) {
  Result<std::vector<uint8_t>> proof = answer(node.hello(), node.fd(), key);
  if (!proof) return pass_on(proof);
  const Result<cbor::Value> reply =
      node.call("holder.prove", cbor::Value::map({{"proof", std::move(*proof)}}));
  if (!reply) return std::unexpected(reply.error());
  return {};
}

Status prove_key(wire::VerifyClient& node, const SecretKey& key) {
  const Result<std::vector<uint8_t>> proof = answer(node.hello(), node.fd(), key);
  if (!proof) return std::unexpected(proof.error());
  return node.prove(*proof);
}

}  // namespace holdfast::token
