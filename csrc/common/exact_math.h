// exp and log that give the same bits on every instruction set and on CUDA, for ops whose results must not depend on
// the device.
//
// Compilers join a product and a sum into one rounding where the machine has the instruction, and not elsewhere. Here
// no product feeds a sum except through fma (and exactly, where it is one with a power of two), so nothing is left to
// join; division and square root are correctly rounded everywhere. Code that uses these functions for the same purpose
// must keep to that. fp32: exp within 1.1 ULP for normal results (smaller ones become 0), log within 1 ULP
// (tests/ops/test_vector_math.py). fp64 calls the C library: it serves gradcheck and lives on the CPU alone.
#pragma once

#include "common/vector_math.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

XFER_HD float exact_fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
XFER_HD double exact_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

XFER_HD float exact_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
XFER_HD double exact_sqrt(double x) { return std::sqrt(x); }

XFER_HD float exact_divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
XFER_HD double exact_divide(double a, double b) { return a / b; }

XFER_HD float exact_exp(float x) {
  // Beyond these bounds the result is 0 or infinity; NaN fails both comparisons and goes through.
  const float high = 88.72284f;
  const float low = -87.33654f;
  const float clamped = x > high ? high : (x < low ? low : x);
  // Adding 1.5 * 2^23 rounds to an integer in the low bits without a float-to-int conversion (undefined for NaN).
  const float shifted = exact_fma(clamped, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  const float r = exact_fma(n, -1.42860677e-6f, exact_fma(n, -0.693145752f, clamped));  // ln 2 in two parts
  // Taylor's polynomial for |r| <= ln(2)/2, error below 2^-25.
  float p = exact_fma(r, 1.98412698e-4f, 1.38888889e-3f);
  p = exact_fma(p, r, 8.33333333e-3f);
  p = exact_fma(p, r, 4.16666667e-2f);
  p = exact_fma(p, r, 1.66666667e-1f);
  p = exact_fma(p, r, 0.5f);
  p = exact_fma(p * r, r, r) + 1.0f;
  // 2^n in two steps: n = 128 has no float of its own.
  const uint32_t exponent = as_bits(shifted) - 0x4B400000u;
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  const float scaled = p * as_float((half + 127u) << 23) * as_float((exponent - half + 127u) << 23);
  return x > high ? as_float(0x7F800000u) : (x < low ? 0.0f : scaled);
}
XFER_HD double exact_exp(double x) { return std::exp(x); }

// For normal x > 0.
XFER_HD float exact_log(float x) {
  // x = 2^n m with m in [sqrt(1/2), sqrt(2)): the bits of sqrt(1/2) taken off carry into the exponent where m is above.
  const uint32_t shifted = as_bits(x) - 0x3F3504F3u;
  const int32_t n = static_cast<int32_t>(shifted) >> 23;
  const float f = as_float((shifted & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
  // log(1 + f) = f - f^2/2 + f^3 p(f); the polynomial of Cephes' logf.
  float p = exact_fma(f, 7.0376836292e-2f, -1.1514610310e-1f);
  p = exact_fma(p, f, 1.1676998740e-1f);
  p = exact_fma(p, f, -1.2420140846e-1f);
  p = exact_fma(p, f, 1.4249322787e-1f);
  p = exact_fma(p, f, -1.6668057665e-1f);
  p = exact_fma(p, f, 2.0000714765e-1f);
  p = exact_fma(p, f, -2.4999993993e-1f);
  p = exact_fma(p, f, 3.3333331174e-1f);
  const float square = f * f;
  const float count = static_cast<float>(n);
  const float small = exact_fma(count, -2.12194440e-4f, exact_fma(square, -0.5f, p * f * square));
  return exact_fma(count, 0.693359375f, f + small);
}
XFER_HD double exact_log(double x) { return std::log(x); }

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
