// exp and tanh as straight-line arithmetic, so that loops over them vectorise on the CPU.
//
// fp32: exp within 1.5 ULP, tanh within 3 ULP (tests/ops/test_vector_math.py); results below the smallest normal number
// become 0; NaN stays NaN. fp64 calls the C library: it serves gradcheck, where exactness counts and time does not.
#pragma once

#include <cmath>
#include <cstring>

#include "common/host_device.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

XFER_HD float as_float(uint32_t bits) {
  float out;
  memcpy(&out, &bits, sizeof(out));
  return out;
}
XFER_HD uint32_t as_bits(float v) {
  uint32_t out;
  memcpy(&out, &v, sizeof(out));
  return out;
}

XFER_HD float vector_exp(float x) {
  // Beyond these bounds the result is 0 or infinity; clamping keeps the scale below a valid exponent. NaN fails
  // both comparisons and goes through.
  const float high = 88.72284f;
  const float low = -87.33654f;
  const float clamped = x > high ? high : (x < low ? low : x);
  // Adding 1.5 * 2^23 rounds to an integer in the low bits without a float-to-int conversion (undefined for NaN).
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  // Taylor's polynomial for |r| <= ln(2)/2, error below 2^-25.
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  // 2^n in two steps: n = 128 has no float of its own.
  const uint32_t exponent = as_bits(shifted) - 0x4B400000u;
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(exponent) >> 1);
  const float scaled = p * as_float((half + 127u) << 23) * as_float((exponent - half + 127u) << 23);
  return x > high ? as_float(0x7F800000u) : (x < low ? 0.0f : scaled);
}
XFER_HD double vector_exp(double x) { return std::exp(x); }

XFER_HD float vector_tanh(float x) {
  const float magnitude = as_float(as_bits(x) & 0x7FFFFFFFu);
  // Near 0: an odd polynomial, fitted to relative error on |x| < 0.625 (1 - 2/(e^2x + 1) cancels there).
  const float z = x * x;
  float p = -0.00460292073f;
  p = p * z + 0.0196033604f;
  p = p * z + -0.0534054115f;
  p = p * z + 0.133272126f;
  p = p * z + -0.333331168f;
  const float near_zero = x + x * z * p;
  const float far = 1.0f - 2.0f / (vector_exp(2.0f * magnitude) + 1.0f);
  const float signed_far = as_float((as_bits(far) & 0x7FFFFFFFu) | (as_bits(x) & 0x80000000u));
  return magnitude < 0.625f ? near_zero : (x != x ? x : signed_far);
}
XFER_HD double vector_tanh(double x) { return std::tanh(x); }

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
