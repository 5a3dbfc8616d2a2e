// A byte stream gives the same frames however it is cut; frames encode to the bytes they came from;
// and so do the requests and errors in them. The input's first byte chooses how the stream is cut.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "userspace/base/check.hpp"
#include "userspace/wire/frame.hpp"

namespace {

using namespace holdfast;
using namespace holdfast::wire;

struct Outcome {
  std::vector<uint8_t> encoded;  // the frames, encoded again
  std::vector<std::vector<uint8_t>> bodies;
  std::string_view code;  // of the error that ended it
};

Outcome read_all(std::span<const uint8_t> stream, size_t step) {
  Outcome out;
  FrameReader reader;
  while (true) {
    Result<std::optional<Frame>> frame = reader.next();
    if (!frame) {
      out.code = frame.error().code;
      return out;
    }
    if (*frame) {
      append_frame(out.encoded, (*frame)->type, (*frame)->flags, (*frame)->request_id,
                   (*frame)->body);
      out.bodies.push_back(std::move((*frame)->body));
      continue;
    }
    if (stream.empty()) return out;
    const size_t size = std::min(step, stream.size());
    // A copy of its own, so that a read past the piece is seen.
    const std::vector<uint8_t> piece(stream.begin(), stream.begin() + static_cast<ptrdiff_t>(size));
    reader.feed(piece);
    stream = stream.subspan(size);
  }
}

void check_body(const std::vector<uint8_t>& body) {
  if (const Result<DecodedRequest> request = decode_request(body)) {
    const RequestParts parts =
        encode_request(request->verb, request->args,
                       request->has_body ? std::optional(request->body.size()) : std::nullopt);
    std::vector<uint8_t> again = parts.before;
    again.insert(again.end(), request->body.begin(), request->body.end());
    again.insert(again.end(), parts.after.begin(), parts.after.end());
    CHECK(again == body);
  }
  if (const Result<WireError> error = decode_error(body)) {
    const Result<WireError> again =
        decode_error(cbor::encode(encode_error(error->error, error->retry)));
    CHECK(again.has_value());
    CHECK(again->error.kind == error->error.kind && again->retry == error->retry);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const uint8_t> stream(data + 1, size - 1);
  const Outcome whole = read_all(stream, SIZE_MAX);
  const Outcome cut = read_all(stream, size_t{1} + data[0]);
  CHECK(whole.encoded == cut.encoded);
  CHECK(whole.code == cut.code);
  CHECK(whole.encoded.size() <= stream.size());
  CHECK(std::equal(whole.encoded.begin(), whole.encoded.end(), stream.begin()));
  for (const auto& body : whole.bodies) check_body(body);
  return 0;
}
