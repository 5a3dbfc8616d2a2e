#include "userspace/token/sha256.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace holdfast::token {
namespace {

constexpr size_t block_size = 64;
constexpr Sha256State initial{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                              0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
alignas(16) constexpr std::array<uint32_t, 64> round_constants{
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t big_endian(const uint8_t* at) {
  uint32_t word = 0;
  std::memcpy(&word, at, sizeof(word));
  return std::endian::native == std::endian::little ? __builtin_bswap32(word) : word;
}

void store_big_endian(uint8_t* at, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) at[i] = static_cast<uint8_t>(value >> (8 * (bytes - 1 - i)));
}

#if defined(__x86_64__)
bool has_sha_ni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_SSE4_1) == 0 || (c & bit_SSSE3) == 0)
    return false;
  constexpr unsigned sha_bit = 1U << 29;  // CPUID.7.0:EBX
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & sha_bit) != 0;
}

// Four rounds at a time; the instructions want the state as ABEF and CDGH, the highest lane first.
[[gnu::target("sha,sse4.1,ssse3")]] void sha256_ni(Sha256State& state,
                                                   std::span<const uint8_t> blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const auto word = [&state](size_t i) { return static_cast<int>(state[i]); };
  __m128i abef = _mm_set_epi32(word(0), word(1), word(4), word(5));
  __m128i cdgh = _mm_set_epi32(word(2), word(3), word(6), word(7));
  for (size_t at = 0; at + block_size <= blocks.size(); at += block_size) {
    const __m128i abef_before = abef;
    const __m128i cdgh_before = cdgh;
    const auto* words = reinterpret_cast<const __m128i*>(blocks.data() + at);
    const auto* constants = reinterpret_cast<const __m128i*>(round_constants.data());
    __m128i schedule[4];
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; ++i) {
      __m128i& next = schedule[i % 4];
      if (i < 4) {
        next = _mm_shuffle_epi8(_mm_loadu_si128(words + i), swap);
      } else {
        const __m128i last = schedule[(i + 3) % 4];
        const __m128i seven_back = _mm_alignr_epi8(last, schedule[(i + 2) % 4], 4);
        next = _mm_sha256msg2_epu32(
            _mm_add_epi32(_mm_sha256msg1_epu32(next, schedule[(i + 1) % 4]), seven_back), last);
      }
      const __m128i keyed = _mm_add_epi32(next, _mm_load_si128(constants + i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  alignas(16) std::array<uint32_t, 4> left{};
  alignas(16) std::array<uint32_t, 4> right{};
  _mm_store_si128(reinterpret_cast<__m128i*>(left.data()), abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(right.data()), cdgh);
  state = {left[3], left[2], right[3], right[2], left[1], left[0], right[1], right[0]};
}
// As above, for two messages of as many blocks, step by step beside one another.
struct NiState {
  __m128i abef, cdgh;
};

[[gnu::target("sha,sse4.1,ssse3"), gnu::always_inline]] inline NiState load_ni(
    const Sha256State& state) {
  const auto word = [&state](size_t i) { return static_cast<int>(state[i]); };
  return {_mm_set_epi32(word(0), word(1), word(4), word(5)),
          _mm_set_epi32(word(2), word(3), word(6), word(7))};
}

[[gnu::target("sha,sse4.1,ssse3"), gnu::always_inline]] inline void store_ni(const NiState& from,
                                                                             Sha256State& state) {
  alignas(16) std::array<uint32_t, 4> left{};
  alignas(16) std::array<uint32_t, 4> right{};
  _mm_store_si128(reinterpret_cast<__m128i*>(left.data()), from.abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(right.data()), from.cdgh);
  state = {left[3], left[2], right[3], right[2], left[1], left[0], right[1], right[0]};
}

[[gnu::target("sha,sse4.1,ssse3")]] void sha256_ni_two(Sha256State& a_state, const uint8_t* a,
                                                       Sha256State& b_state, const uint8_t* b,
                                                       size_t blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const auto* constants = reinterpret_cast<const __m128i*>(round_constants.data());
  std::array<NiState, 2> now{load_ni(a_state), load_ni(b_state)};
  for (size_t block = 0; block < blocks; ++block) {
    const std::array<NiState, 2> before = now;
    const __m128i* const words[2] = {reinterpret_cast<const __m128i*>(a + block * block_size),
                                     reinterpret_cast<const __m128i*>(b + block * block_size)};
    __m128i schedule[2][4];
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; ++i) {
      const __m128i constant = _mm_load_si128(constants + i);
#pragma GCC unroll 2
      for (size_t m = 0; m < 2; ++m) {
        __m128i& next = schedule[m][i % 4];
        if (i < 4) {
          next = _mm_shuffle_epi8(_mm_loadu_si128(words[m] + i), swap);
        } else {
          const __m128i last = schedule[m][(i + 3) % 4];
          const __m128i seven_back = _mm_alignr_epi8(last, schedule[m][(i + 2) % 4], 4);
          next = _mm_sha256msg2_epu32(
              _mm_add_epi32(_mm_sha256msg1_epu32(next, schedule[m][(i + 1) % 4]), seven_back),
              last);
        }
        const __m128i keyed = _mm_add_epi32(next, constant);
        now[m].cdgh = _mm_sha256rnds2_epu32(now[m].cdgh, now[m].abef, keyed);
        now[m].abef =
            _mm_sha256rnds2_epu32(now[m].abef, now[m].cdgh, _mm_shuffle_epi32(keyed, 0x0e));
      }
    }
#pragma GCC unroll 2
    for (size_t m = 0; m < 2; ++m) {
      now[m].abef = _mm_add_epi32(now[m].abef, before[m].abef);
      now[m].cdgh = _mm_add_epi32(now[m].cdgh, before[m].cdgh);
    }
  }
  store_ni(now[0], a_state);
  store_ni(now[1], b_state);
}
#else
bool has_sha_ni() {
  return false;
}
void sha256_ni_two(Sha256State& a_state, const uint8_t* a, Sha256State& b_state, const uint8_t* b,
                   size_t blocks) {
  sha256_portable(a_state, {a, blocks * block_size});
  sha256_portable(b_state, {b, blocks * block_size});
}
void sha256_ni(Sha256State& state, std::span<const uint8_t> blocks) {
  sha256_portable(state, blocks);
}
#endif

const bool use_sha_ni = has_sha_ni();

void compress(Sha256State& state, std::span<const uint8_t> blocks) {
  if (use_sha_ni) {
    sha256_ni(state, blocks);
  } else {
    sha256_portable(state, blocks);
  }
}

Digest digest_of(const Sha256State& state) {
  Digest digest;
  for (size_t i = 0; i < state.size(); ++i) store_big_endian(digest.data() + 4 * i, state[i], 4);
  return digest;
}

// A short message with its padding, in one piece.
struct Padded {
  static constexpr size_t blocks_max = 9;
  std::array<uint8_t, blocks_max * block_size> bytes;
  size_t blocks = 0;  // 0: it did not fit

  explicit Padded(std::initializer_list<std::span<const uint8_t>> parts) {
    size_t size = 0;
    for (const std::span<const uint8_t> part : parts) size += part.size();
    if (size + 9 > bytes.size()) return;
    uint8_t* end = bytes.data();
    for (const std::span<const uint8_t> part : parts)
      end = std::copy_n(part.data(), part.size(), end);
    blocks = (size + 9 + block_size - 1) / block_size;
    uint8_t* length = bytes.data() + blocks * block_size - 8;
    *end++ = 0x80;
    std::fill(end, length, 0);
    store_big_endian(length, 8 * size, 8);
  }
};

}  // namespace

void sha256_portable(Sha256State& state, std::span<const uint8_t> blocks) {
  for (size_t at = 0; at + block_size <= blocks.size(); at += block_size) {
    std::array<uint32_t, 64> w;
    for (size_t i = 0; i < 16; ++i) w[i] = big_endian(blocks.data() + at + 4 * i);
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
      const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + round_constants[i] + w[i];
      const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g;
      g = f;
      f = e;
      e = d + t1;
      d = c;
      c = b;
      b = a;
      a = t1 + t2;
    }
    const Sha256State added{a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < state.size(); ++i) state[i] += added[i];
  }
}

Digest sha256(std::initializer_list<std::span<const uint8_t>> parts) {
  Sha256State state = initial;
  if (const Padded whole(parts); whole.blocks != 0) {
    compress(state, std::span(whole.bytes).first(whole.blocks * block_size));
    return digest_of(state);
  }
  std::array<uint8_t, 2 * block_size> tail;  // what is not a whole block yet, and the padding
  size_t kept = 0;
  uint64_t total = 0;
  for (std::span<const uint8_t> part : parts) {
    total += part.size();
    if (kept > 0) {
      const size_t taken = std::min(part.size(), block_size - kept);
      std::copy_n(part.data(), taken, tail.data() + kept);
      kept += taken;
      part = part.subspan(taken);
      if (kept < block_size) continue;
      compress(state, std::span(tail).first(block_size));
      kept = 0;
    }
    const size_t whole = part.size() / block_size * block_size;
    compress(state, part.first(whole));
    kept = part.size() - whole;
    std::copy_n(part.data() + whole, kept, tail.data());
  }
  const size_t padded = kept < block_size - 8 ? block_size : 2 * block_size;
  tail[kept] = 0x80;
  std::fill(tail.begin() + static_cast<ptrdiff_t>(kept) + 1,
            tail.begin() + static_cast<ptrdiff_t>(padded) - 8, 0);
  store_big_endian(tail.data() + padded - 8, 8 * total, 8);
  compress(state, std::span(tail).first(padded));
  return digest_of(state);
}

void sha256_two(std::initializer_list<std::span<const uint8_t>> a, Digest& a_digest,
                std::initializer_list<std::span<const uint8_t>> b, Digest& b_digest) {
  if (use_sha_ni) {
    const Padded first(a);
    const Padded second(b);
    const size_t both = std::min(first.blocks, second.blocks);
    if (both != 0) {
      Sha256State a_state = initial;
      Sha256State b_state = initial;
      sha256_ni_two(a_state, first.bytes.data(), b_state, second.bytes.data(), both);
      const auto rest = [&](Sha256State& state, const Padded& message) {
        compress(
            state,
            std::span(message.bytes).first(message.blocks * block_size).subspan(both * block_size));
      };
      rest(a_state, first);
      rest(b_state, second);
      a_digest = digest_of(a_state);
      b_digest = digest_of(b_state);
      return;
    }
  }
  a_digest = sha256(a);
  b_digest = sha256(b);
}

std::string_view sha256_code() {
  return use_sha_ni ? "sha-ni" : "portable";
}

}  // namespace holdfast::token
