// Sixteen-lane arithmetic in the compiler's own vector types, for the loops that its vectoriser leaves in memory.
//
// On AVX-512 a float vector is one register, elsewhere the compiler splits it. Half types widen to fp32 on load.
#pragma once

#include <cstring>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/dtype.h"
#include "common/vector_math.h"

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

typedef int32_t int16_lanes __attribute__((vector_size(64)));

// vector_exp of every lane, by the same arithmetic. Below AVX-512 a loop vectorises better than these vectors, which
// then spill.
XFER_HD void exp_lanes(const float16_lanes& x, float16_lanes& out) {
#if !defined(__AVX512F__)
  float in[kLanes], result[kLanes];
  memcpy(in, &x, sizeof(in));
  for (int64_t i = 0; i < kLanes; ++i) result[i] = vector_exp(in[i]);
  memcpy(&out, result, sizeof(result));
#else
  const float high = 88.72284f, low = -87.33654f;
  float16_lanes clamped = x > high ? float16_lanes{} + high : x;
  clamped = clamped < low ? float16_lanes{} + low : clamped;
  const float16_lanes shifted = clamped * 1.44269504f + 12582912.0f;
  const float16_lanes n = shifted - 12582912.0f;
  const float16_lanes r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float16_lanes p = r * 1.98412698e-4f + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  int16_lanes exponent;
  memcpy(&exponent, &shifted, sizeof(exponent));
  exponent -= 0x4B400000;
  const int16_lanes half = exponent >> 1;
  const int16_lanes first_bits = (half + 127) << 23, second_bits = (exponent - half + 127) << 23;
  float16_lanes first, second;
  memcpy(&first, &first_bits, sizeof(first));
  memcpy(&second, &second_bits, sizeof(second));
  const float16_lanes scaled = p * first * second;
  const float16_lanes capped = x > high ? float16_lanes{} + INFINITY : scaled;
  out = x < low ? float16_lanes{} : capped;
#endif
}
XFER_HD void exp_lanes(const double16_lanes& x, double16_lanes& out) {
  for (int64_t i = 0; i < kLanes; ++i) out[i] = vector_exp(x[i]);
}

template <typename C, typename Lanes>
XFER_HD C sum_lanes(const Lanes& value) {
  C total = C(0);
  for (int64_t i = 0; i < kLanes; ++i) total += value[i];
  return total;
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
