// Differential fuzzing of the data plane's parser: on every frame it must agree with the
// independent decoder (decoder.cpp) on whether to follow it and on every field it extracts, and it
// must never read outside the bytes it was given. What lies beyond HF_HEADERS_MAX, which the kernel
// may not have linear, must change nothing.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/difference.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace holdfast::test;
  const std::span<const std::uint8_t> frame(data, size);

  const Parsed parsed = parse(frame);
  const std::string wrong = difference(parsed, decode(frame));
  if (!wrong.empty()) {
    std::fprintf(stderr, "parser and decoder disagree: %s\n", wrong.c_str());
    std::abort();
  }

  const std::size_t linear = std::min<std::size_t>(size, holdfast::abi::HF_HEADERS_MAX);
  const Parsed head = parse(frame, linear);
  if (head.reason != parsed.reason ||
      std::memcmp(&head.packet, &parsed.packet, sizeof(parsed.packet)) != 0) {
    std::fprintf(stderr,
                 "the verdict depends on how much is linear: reason %d whole, %d of the head\n",
                 static_cast<int>(parsed.reason), static_cast<int>(head.reason));
    std::abort();
  }
  return 0;
}
