#include "userspace/token/holder.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include "userspace/token/proof.hpp"

namespace holdfast::token {

Result<ProofPlace> place_of(const cbor::Value& hello, int socket) {
  ucred server{};
  socklen_t size = sizeof(server);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &server, &size) != 0)
    return fail_sys(errno, "peer_unknown", "the kernel does not say who serves the socket");
  if (server.uid != 0 && server.uid != ::geteuid())
    return fail(
        ErrorKind::denied, "not_the_node",
        fmt::format("uid {} serves this socket, and could pass on what is signed", server.uid),
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
                "the daemon asks for other signatures than this version makes",
                "use the client and the daemon of one release");
  std::ranges::copy(*challenge, place.challenge.begin());
  return place;
}

Status prove_key(wire::Client& node, const Signer& signer) {
  const Result<ProofPlace> place = place_of(node.hello(), node.fd());
  if (!place) return std::unexpected(place.error());
  Result<std::vector<uint8_t>> proof = make_proof(signer, *place);
  if (!proof) return pass_on(proof);
  const Result<cbor::Value> reply =
      node.call("holder.prove", cbor::Value::map({{"proof", std::move(*proof)}}));
  if (!reply) return std::unexpected(reply.error());
  return {};
}

Status prove_key(wire::VerifyClient& node, const Signer& signer) {
  const Result<ProofPlace> place = place_of(node.hello(), node.fd());
  if (!place) return std::unexpected(place.error());
  Result<std::vector<uint8_t>> proof = make_proof(signer, *place);
  if (!proof) return pass_on(proof);
  return node.prove(*proof);
}

}  // namespace holdfast::token
