// One frame of checks, judged bit by bit: a token that is believed, what it allows, who shows it,
// and whether its lease is in force at this moment, read from the very words that packets meet.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "userspace/dataplane/slots.hpp"
#include "userspace/token/checker.hpp"
#include "userspace/token/proof.hpp"
#include "userspace/verifier/leased_names.hpp"
#include "userspace/wire/check_frame.hpp"

namespace holdfast {

// What all verifying threads read, and the daemon's loop writes.
struct VerifierState {
  const Slots& slots;
  const MappedArray<abi::tenant_state>& tenants;
  const LeasedNames& names;
  const std::atomic<std::shared_ptr<const token::Beliefs>>& beliefs;
  std::atomic<bool> clock_in_doubt = false;
};

// Who sent a frame.
struct Asker {
  std::vector<std::string> names;  // "uid:1000", of the cgroups that it is in, of a key it proved
  bool cgroups_known = false;
  bool relying = false;  // may name others as presenters: group holdfast, operators
  token::Challenge challenge{};
  std::optional<token::Digest> proved_key = {};
};

// What to answer to a frame `prove`; when it is an error the connection ends.
Result<std::vector<uint8_t>> take_proof(const wire::Datagram& frame, const token::Beliefs& beliefs,
                                        Asker& asker);

// By reason; index 0 is good.
using VerdictCounts = std::array<uint64_t, token::refusals + 1>;

class FrameJudge {
 public:
  // `body` must stay until done.
  FrameJudge(uint32_t request_id, std::span<const uint8_t> body);

  // Judges on for a while. True when the whole frame is done, or malformed.
  bool go_on(token::Checker& checker, const VerifierState& state, const token::Beliefs& beliefs,
             const Asker& asker, uint64_t budget_ns, VerdictCounts& counts);

  // The datagram to answer with, once done: verdicts, or an error.
  std::vector<uint8_t> answer();

 private:
  wire::Verdict judge_lease(uint64_t name, const token::Item& item,
                            const VerifierState& state) const;

  uint32_t request_id_;
  wire::CheckReader in_;
  std::vector<token::FramedHead> heads_;
  std::vector<wire::Verdict> verdicts_;
  uint64_t judged_by_ = 0;  // the version of the beliefs
  bool begun_ = false;
  bool malformed_ = false;
  uint64_t wall_ns_ = 0;
  uint64_t boot_ns_ = 0;
  uint64_t boot_less_wall_ns_ = 0;  // modulo 2^64
};

}  // namespace holdfast
