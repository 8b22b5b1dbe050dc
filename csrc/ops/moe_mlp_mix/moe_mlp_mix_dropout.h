// Dropout masks on the CPU: one bit a unit, drawn once and used for as many tensors as share the mask.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__BMI2__)
#define XFER_DROPOUT_AVX512 1
#include <immintrin.h>
#endif

#include "common/parallel.h"
#include "common/philox.h"
#include "ops/moe_mlp_mix/moe_mlp_mix.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

inline int64_t moe_mask_words(int64_t units) { return ceil_div(units, 64); }

#if defined(XFER_DROPOUT_AVX512)
// High and low halves of sixteen 32 x 32-bit products: even lanes, odd lanes, put together again.
XFER_HD void philox_multiply(__m512i a, __m512i factor, __m512i& high, __m512i& low) {
  const __m512i even = _mm512_mul_epu32(a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
  high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
  low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
}
#endif

class MoeDropout {
 public:
  bool on = false;

  static MoeDropout make(const MoeMlpMixForwardArgs& a) {
    MoeDropout out;
    if (a.dropout_p <= 0.0) return out;
    // p < 1, so the threshold is below 2^32 unless p rounds to 1: then all but one word in 2^32 are dropped.
    const uint64_t threshold = drop_threshold(a.dropout_p);
    out.on = true;
    out.state_ = {a.seed_offset[0], a.seed_offset[1]};
    out.threshold_ = static_cast<uint32_t>(threshold > 0xFFFFFFFFu ? 0xFFFFFFFFu : threshold);
    out.scale_ = 1.0 / (1.0 - a.dropout_p);
    return out;
  }

  // Bit u % 64 of bits[r * moe_mask_words(units) + u / 64] is set where unit u of token first_token + r is kept.
  void draw(uint32_t stream, int64_t first_token, int64_t num_experts, int64_t expert, int64_t rows, int64_t units,
            uint64_t* bits) const {
    const int64_t words = moe_mask_words(units);
    const uint64_t groups = static_cast<uint64_t>(ceil_div(units, 4));
    for (int64_t r = 0; r < rows; ++r) {
      const uint64_t row = static_cast<uint64_t>((first_token + r) * num_experts + expert);
      for (int64_t w = 0; w < words; ++w) {  // 64 units are 16 groups; bits past the last unit are never read
        bits[r * words + w] = keep_bits(stream, row * groups + static_cast<uint64_t>(16 * w));
      }
    }
  }

  // out = source / (1 - p) where kept, 0 elsewhere; in place where out is source.
  template <typename C>
  void apply(const uint64_t* bits, int64_t rows, int64_t units, const C* source, int64_t ld_source, C* out,
             int64_t ld_out) const {
    const int64_t words = moe_mask_words(units);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t w = 0; w < words; ++w) {
        const int64_t count = units - 64 * w < 64 ? units - 64 * w : 64;
        apply_word(bits[r * words + w], count, source + r * ld_source + 64 * w, out + r * ld_out + 64 * w);
      }
    }
  }

 private:
  uint64_t keep_bits(uint32_t stream, uint64_t first_group) const {
#if defined(XFER_DROPOUT_AVX512)
    // A carry out of the low counter word would need 2^32 groups to be crossed inside one word of bits.
    if (static_cast<uint32_t>(first_group) <= 0xFFFFFFFFu - 16u) return keep_bits_avx512(stream, first_group);
#endif
    uint64_t bits = 0;
    for (uint64_t g = 0; g < 16; ++g) {
      const Philox4 random = philox_words(state_, stream, first_group + g);
      for (int i = 0; i < 4; ++i) bits |= static_cast<uint64_t>(random.word[i] >= threshold_) << (4 * g + i);
    }
    return bits;
  }

#if defined(XFER_DROPOUT_AVX512)
  // philox_words for sixteen groups at once. The compiler's own vectoriser takes 64-bit products here, 5x slower.
  uint64_t keep_bits_avx512(uint32_t stream, uint64_t first_group) const {
    const auto all = [](uint64_t word) { return _mm512_set1_epi32(static_cast<int>(static_cast<uint32_t>(word))); };
    const uint64_t seed = static_cast<uint64_t>(state_.seed), offset = static_cast<uint64_t>(state_.offset);
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i factor0 = all(0xD2511F53u), factor1 = all(0xCD9E8D57u);
    __m512i c0 = _mm512_add_epi32(all(first_group), lanes), c1 = all(first_group >> 32);
    __m512i c2 = all(offset), c3 = all((offset >> 32) ^ (static_cast<uint64_t>(stream) << 24));
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      __m512i high0, low0, high1, low1;
      philox_multiply(c0, factor0, high0, low0);
      philox_multiply(c2, factor1, high1, low1);
      c0 = _mm512_xor_si512(_mm512_xor_si512(high1, c1), all(k0));
      c1 = low1;
      c2 = _mm512_xor_si512(_mm512_xor_si512(high0, c3), all(k1));
      c3 = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    // Word i of group g belongs to unit 4 g + i: spread each word's sixteen answers to every fourth bit.
    const __m512i threshold = all(threshold_);
    constexpr uint64_t kEveryFourth = 0x1111111111111111u;
    return _pdep_u64(_mm512_cmpge_epu32_mask(c0, threshold), kEveryFourth) |
           _pdep_u64(_mm512_cmpge_epu32_mask(c1, threshold), kEveryFourth << 1) |
           _pdep_u64(_mm512_cmpge_epu32_mask(c2, threshold), kEveryFourth << 2) |
           _pdep_u64(_mm512_cmpge_epu32_mask(c3, threshold), kEveryFourth << 3);
  }
#endif

  void apply_word(uint64_t bits, int64_t count, const double* from, double* to) const {
    for (int64_t j = 0; j < count; ++j) to[j] = (bits >> j) & 1 ? from[j] * scale_ : 0.0;
  }
  void apply_word(uint64_t bits, int64_t count, const float* from, float* to) const {
    const float factor = static_cast<float>(scale_);
#if defined(XFER_DROPOUT_AVX512)
    for (int64_t j = 0; j < count; j += 16) {
      const __mmask16 inside = static_cast<__mmask16>(count - j >= 16 ? 0xFFFF : (1 << (count - j)) - 1);
      const __mmask16 keep = static_cast<__mmask16>(bits >> j) & inside;
      const __m512 kept = _mm512_maskz_mul_ps(keep, _mm512_maskz_loadu_ps(keep, from + j), _mm512_set1_ps(factor));
      _mm512_mask_storeu_ps(to + j, inside, kept);
    }
#else
    for (int64_t j = 0; j < count; ++j) to[j] = (bits >> j) & 1 ? from[j] * factor : 0.0f;
#endif
  }

  PhiloxState state_{};
  uint32_t threshold_ = 0;
  double scale_ = 1.0;
};

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
