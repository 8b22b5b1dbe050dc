// Sixteen-lane arithmetic in the compiler's own vector types, for the loops that its vectoriser leaves in memory.
//
// On AVX-512 a float vector is one register, elsewhere the compiler splits it. Half types widen to fp32 on load.
#pragma once

#include <cstring>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/dtype.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

constexpr int64_t kLanes = 16;

typedef float float16_lanes __attribute__((vector_size(64)));
typedef double double16_lanes __attribute__((vector_size(128)));
typedef uint32_t uint16_lanes __attribute__((vector_size(64)));
typedef uint16_t half_bits_lanes __attribute__((vector_size(32)));
typedef _Float16 half_lanes __attribute__((vector_size(32)));

template <typename C>
struct lanes_of {
  using type = float16_lanes;
};
template <>
struct lanes_of<double> {
  using type = double16_lanes;
};
template <typename T>
using lanes_t = typename lanes_of<compute_t<T>>::type;

// Loads and stores go through references, never by value: vectors as arguments would depend on the ABI.
template <typename T>
XFER_HD void load_lanes(const T* from, lanes_t<T>& out) {
  if constexpr (sizeof(T) >= 4) {
    memcpy(&out, from, sizeof(out));
  } else if constexpr (__is_same(T, bf16_t)) {
    half_bits_lanes bits;
    memcpy(&bits, from, sizeof(bits));
    const uint16_lanes wide = __builtin_convertvector(bits, uint16_lanes) << 16;
    memcpy(&out, &wide, sizeof(out));
  } else {
    // By hand: GCC 12 converts vectors of _Float16 one element at a time.
#if defined(__AVX512F__)
    const __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    memcpy(&out, &wide, sizeof(out));
#elif defined(__F16C__)
    const __m128i* half = reinterpret_cast<const __m128i*>(from);
    const __m256 wide[2] = {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
    memcpy(&out, wide, sizeof(out));
#else
    half_lanes half;
    memcpy(&half, from, sizeof(half));
    out = __builtin_convertvector(half, float16_lanes);
#endif
  }
}

template <typename T>
XFER_HD void store_lanes(T* to, const lanes_t<T>& value) {
  if constexpr (sizeof(T) >= 4) {
    memcpy(to, &value, sizeof(value));
#if defined(__AVX512F__)
  } else if constexpr (__is_same(T, f16_t)) {
    __m512 wide;
    memcpy(&wide, &value, sizeof(wide));
    const __m256i half = _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    memcpy(to, &half, sizeof(half));
#endif
  } else {
    for (int64_t i = 0; i < kLanes; ++i) store_as(to[i], value[i]);
  }
}

template <typename C, typename Lanes>
XFER_HD C sum_lanes(const Lanes& value) {
  C total = C(0);
  for (int64_t i = 0; i < kLanes; ++i) total += value[i];
  return total;
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
