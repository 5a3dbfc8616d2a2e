// Any bytes are refused as a datagram of verify.sock, or are the one encoding of what they ask.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "userspace/base/check.hpp"
#include "userspace/wire/check_frame.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast::wire;
  const std::span<const uint8_t> bytes(data, size);
  const holdfast::Result<Datagram> datagram = read_datagram(bytes);
  if (!datagram) return 0;
  if (datagram->type == FrameType::verdicts) {
    if (const auto verdicts = read_verdicts(datagram->body)) CHECK(verdicts->size() <= checks_max);
    return 0;
  }
  if (datagram->type != FrameType::check) return 0;
  CheckReader in(datagram->body);
  CheckFrame again;
  size_t heads = 0;
  for (CheckHead head; in.next_head(head); ++heads)
    again.add_head(head.header, head.signature.first<64>());
  in.begin_checks();
  for (Check check; in.next(check);) {
    CHECK(check.head < heads);
    again.add(check);
  }
  if (!in.finish()) return 0;
  CHECK(heads <= check_heads_max && again.checks() <= checks_max);
  const std::vector<uint8_t> made = again.finish(datagram->request_id);
  CHECK(std::vector<uint8_t>(bytes.begin(), bytes.end()) == made);
  return 0;
}
