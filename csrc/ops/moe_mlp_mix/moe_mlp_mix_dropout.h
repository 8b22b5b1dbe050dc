// Dropout masks on the CPU: one bit a unit, drawn once and used for as many tensors as share the mask.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__BMI2__)
#define XFER_DROPOUT_AVX512 1
#endif

#include "common/parallel.h"
#include "common/philox_lanes.h"
#include "ops/moe_mlp_mix/moe_mlp_mix.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

inline int64_t moe_mask_words(int64_t units) { return ceil_div(units, 64); }

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
    if (philox_low_words_fit(first_group)) return keep_bits_avx512(stream, first_group);
#endif
    uint64_t bits = 0;
    for (uint64_t g = 0; g < 16; ++g) {
      const Philox4 random = philox_words(state_, stream, first_group + g);
      for (int i = 0; i < 4; ++i) bits |= static_cast<uint64_t>(random.word[i] >= threshold_) << (4 * g + i);
    }
    return bits;
  }

#if defined(XFER_DROPOUT_AVX512)
  uint64_t keep_bits_avx512(uint32_t stream, uint64_t first_group) const {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i words[4];
    philox_words_16(state_, stream, first_group, lanes, words);
    // Word i of group g belongs to unit 4 g + i: spread each word's sixteen answers to every fourth bit.
    const __m512i threshold = philox_all(threshold_);
    constexpr uint64_t kEveryFourth = 0x1111111111111111u;
    return _pdep_u64(_mm512_cmpge_epu32_mask(words[0], threshold), kEveryFourth) |
           _pdep_u64(_mm512_cmpge_epu32_mask(words[1], threshold), kEveryFourth << 1) |
           _pdep_u64(_mm512_cmpge_epu32_mask(words[2], threshold), kEveryFourth << 2) |
           _pdep_u64(_mm512_cmpge_epu32_mask(words[3], threshold), kEveryFourth << 3);
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
