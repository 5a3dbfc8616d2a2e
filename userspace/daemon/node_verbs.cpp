// node.drain, node.disable, node.quarantine, node.resume, node.release: the node's own state.
#include "userspace/daemon/inventory.hpp"
#include "userspace/daemon/verbs.hpp"

namespace holdfast {

using cbor::Value;

// Narrower is always possible, and never widens: draining a node that is disabled leaves it
// disabled. A quarantine ends by a verb of its own, so that nothing which drains and resumes nodes
// ends one by accident; with it begins an epoch, so that no token of before is good any more (G12).
Verbs::Answer Verbs::node_state(const wire::Peer& peer, const wire::Request& request) {
  if (Status ok = request.args.only_keys({}); !ok) return pass_on(ok);
  size_t ended = 0;
  if (request.verb == "node.resume" || request.verb == "node.release") {
    const bool release = request.verb == "node.release";
    if (release && node_.standing().state == NodeState::quarantined)
      if (Status ok = tokens_.begin_epoch(); !ok) return pass_on(ok, "the node stays quarantined");
    if (Status ok = release ? node_.release_quarantine(peer.uid) : node_.resume(peer.uid); !ok)
      return pass_on(ok);
  } else {
    const NodeState to = request.verb == "node.drain"     ? NodeState::draining
                         : request.verb == "node.disable" ? NodeState::disabled
                                                          : NodeState::quarantined;
    const Result<size_t> done = node_.narrow(to, peer.uid);
    if (!done) return std::unexpected(done.error());
    ended = *done;
  }
  return Value::map({{"state", name_of(node_.standing().state)},
                     {"leases", node_.lease_count()},
                     {"leases_ended", ended},
                     {"epoch", tokens_.epoch()}});
}

}  // namespace holdfast
