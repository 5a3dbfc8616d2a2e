// The data plane's parser, compiled for the host: the very text the kernel runs. It is C, hence the
// switched-off warnings, here and nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include <linux/if_ether.h>
#include <linux/types.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wold-style-cast"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wenum-compare"
#include "bpf/abi.h"
#include "bpf/parser.h"
#pragma GCC diagnostic pop

namespace holdfast::test {

struct Parsed {
  abi::hf_reason reason = abi::HF_REASON_unclassified;  // HF_PARSED, or why not
  abi::packet packet = {};
};

// Parses `frame` of which only the first `linear` bytes may be read, in a heap copy of exactly that
// size, so that a sanitizer sees any read beyond it.
inline Parsed parse(std::span<const std::uint8_t> frame, std::size_t linear) {
  Parsed out;
  auto* copy = static_cast<std::uint8_t*>(std::malloc(linear ? linear : 1));
  if (linear) std::memcpy(copy, frame.data(), linear);
  out.reason = static_cast<abi::hf_reason>(
      abi::hf_parse(&out.packet, copy, copy + linear, static_cast<__u32>(frame.size())));
  std::free(copy);
  return out;
}
inline Parsed parse(std::span<const std::uint8_t> frame) {
  return parse(frame, frame.size());
}

}  // namespace holdfast::test
