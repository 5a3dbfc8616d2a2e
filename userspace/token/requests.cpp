#include "userspace/token/requests.hpp"

#include <utility>

#include "userspace/base/clock.hpp"
#include "userspace/token/holder.hpp"

namespace holdfast::token {

void sign_requests(wire::Client& node, std::shared_ptr<const Signer> signer) {
  node.seal_with([signer = std::move(signer)](const cbor::Value& hello, int socket,
                                              uint64_t sequence, std::span<const uint8_t> request)
                     -> Result<std::vector<uint8_t>> {
    const Result<ProofPlace> place = place_of(hello, socket);
    if (!place) return std::unexpected(place.error());
    return make_signed(*signer, Purpose::request,
                       {.audience = std::string(place->node),
                        .issued_s = wall_now_ns() / ns_per_s,
                        .epoch = place->epoch,
                        .challenge = place->challenge,
                        .sequence = sequence},
                       request, wire::memfd_body_bytes_from);
  });
}

}  // namespace holdfast::token
