// Who may ask for what: the one place where it is decided.
//
// A signed request may what its key's anchor lists, or the operator grant that was shown, whoever
// brought it; what widens stands on a challenge of the last five minutes. Without a signature it is
// who connected: reading takes group holdfast, changing takes group holdfast-operator, ending
// enforcement takes root, and so does beginning or ending an enrollment, signed or not. A holder
// may renew and release its own lease and report its checkpoint, and whoever has a token for it may
// be granted one, or renew it. A connection that has shown a bearer token may read what that is
// for, and nothing else.
#pragma once

#include <string_view>
#include <vector>

#include "userspace/base/result.hpp"
#include "userspace/wire/server.hpp"

namespace holdfast {

enum class Reach : uint8_t {
  reading,     // also every verb there is not: what it is, is found out later
  proving,     // says who asks
  own_lease,   // of a holder, else changing
  tightening,  // less may pass afterwards
  widening,    // more may
  founding,    // it is another whose signatures count: widening, and root's alone
  ending,      // nothing is enforced any more
};
Reach reach_of(std::string_view verb);

// One that is there, and reads.
bool is_reading(std::string_view verb);
std::vector<std::string_view> reading_verbs();

// What a token, a signed bundle or a preempt says, it says for its signer, whoever brings it.
bool brings_its_own_signature(const wire::Request& request);

// Errors: denied, with the cause as code. A signer's tenants are not looked at: in_scope() does.
// `signatures_needed`: without a signature nobody widens. Errors also: denied / step_up_required.
Status may_ask(const wire::Peer& peer, const wire::Request& request, Reach reach,
               bool signatures_needed);

// The refusal of a signer that may not ask about this tenant; "*" is all of them.
Error not_in_scope(const wire::Principal& signer, std::string_view tenant);

}  // namespace holdfast
