// Sixteen Philox counters at once on AVX-512, and the words of 64 consecutive elements on any machine.
#pragma once

#if defined(__AVX512F__)
#define XFER_PHILOX_AVX512 1
#include <immintrin.h>
#endif

#include "common/philox.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

#if defined(XFER_PHILOX_AVX512)
// High and low halves of sixteen 32 x 32-bit products: even lanes, odd lanes, put together again. The compiler's own
// vectoriser takes 64-bit products here, 5x slower.
XFER_HD void philox_multiply(__m512i a, __m512i factor, __m512i& high, __m512i& low) {
  const __m512i even = _mm512_mul_epu32(a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
  high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
  low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
}

XFER_HD __m512i philox_all(uint64_t word) { return _mm512_set1_epi32(static_cast<int>(static_cast<uint32_t>(word))); }

// philox_words for the groups first_group + lanes[i]: word w of all in words[w]. The low counter words must not
// overflow: first_group <= 2^32 - 17 modulo 2^32.
XFER_HD void philox_words_16(const PhiloxState& state, uint32_t stream, uint64_t first_group, __m512i lanes,
                             __m512i (&words)[4]) {
  const uint64_t seed = static_cast<uint64_t>(state.seed), offset = static_cast<uint64_t>(state.offset);
  const __m512i factor0 = philox_all(0xD2511F53u), factor1 = philox_all(0xCD9E8D57u);
  __m512i c0 = _mm512_add_epi32(philox_all(first_group), lanes), c1 = philox_all(first_group >> 32);
  __m512i c2 = philox_all(offset), c3 = philox_all((offset >> 32) ^ (static_cast<uint64_t>(stream) << 24));
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    __m512i high0, low0, high1, low1;
    philox_multiply(c0, factor0, high0, low0);
    philox_multiply(c2, factor1, high1, low1);
    c0 = _mm512_ternarylogic_epi32(high1, c1, philox_all(k0), 0x96);  // exclusive or of the three
    c1 = low1;
    c2 = _mm512_ternarylogic_epi32(high0, c3, philox_all(k1), 0x96);
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}
#endif

// Whether sixteen groups from first_group on keep the high word of their counters.
XFER_HD bool philox_low_words_fit(uint64_t first_group) {
  return static_cast<uint32_t>(first_group) <= 0xFFFFFFFFu - 16u;
}

// words[4 g + w] = word w of group first_group + g, for g < 16.
inline void philox_block(const PhiloxState& state, uint32_t stream, uint64_t first_group, uint32_t (&words)[64]) {
#if defined(XFER_PHILOX_AVX512)
  if (philox_low_words_fit(first_group)) {
    // Groups are dealt to lanes such that 4 x 4 transpositions within 128 bits leave whole runs of elements.
    const __m512i lanes = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    __m512i c[4];
    philox_words_16(state, stream, first_group, lanes, c);
    const __m512i low01 = _mm512_unpacklo_epi32(c[0], c[1]), high01 = _mm512_unpackhi_epi32(c[0], c[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(c[2], c[3]), high23 = _mm512_unpackhi_epi32(c[2], c[3]);
    _mm512_storeu_si512(words, _mm512_unpacklo_epi64(low01, low23));
    _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(low01, low23));
    _mm512_storeu_si512(words + 32, _mm512_unpacklo_epi64(high01, high23));
    _mm512_storeu_si512(words + 48, _mm512_unpackhi_epi64(high01, high23));
    return;
  }
#endif
  Philox4 groups[16];
  for (uint64_t g = 0; g < 16; ++g) groups[g] = philox_words(state, stream, first_group + g);
  for (int g = 0; g < 16; ++g) {
    for (int w = 0; w < 4; ++w) words[4 * g + w] = groups[g].word[w];
  }
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
