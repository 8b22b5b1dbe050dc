// The four element types, their compute types, and the one dispatcher from a run-time tag to a C++ type.
#pragma once

#include <cstring>
#include <stdexcept>

#include "common/host_device.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace xfer {

enum class DType : int32_t { f32, f64, bf16, f16 };

inline int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

inline namespace XFER_ISA_NAMESPACE {

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

// What sums, exponentials and products of T are computed in: never below fp32.
template <typename T>
struct compute_type {
  using type = float;
};
template <>
struct compute_type<double> {
  using type = double;
};
template <typename T>
using compute_t = typename compute_type<T>::type;

XFER_HD float load_as(const float& v) { return v; }
XFER_HD double load_as(const double& v) { return v; }

XFER_HD float load_as(const bf16_t& v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  memcpy(&out, &bits, sizeof(out));
  return out;
}

XFER_HD float load_as(const f16_t& v) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(v.bits));
#else
  _Float16 half;
  memcpy(&half, &v.bits, sizeof(half));
  return static_cast<float>(half);
#endif
}

XFER_HD void store_as(float& out, float v) { out = v; }
XFER_HD void store_as(double& out, double v) { out = v; }

// Round to nearest even; a NaN stays a NaN (its payload would otherwise round to infinity).
XFER_HD void store_as(bf16_t& out, float v) {
#if defined(__CUDA_ARCH__)
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
#else
  uint32_t bits;
  memcpy(&bits, &v, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(v != v ? 0x7FC0u : rounded);
#endif
}

XFER_HD void store_as(f16_t& out, float v) {
#if defined(__CUDA_ARCH__)
  out.bits = __half_as_ushort(__float2half_rn(v));
#else
  const _Float16 half = static_cast<_Float16>(v);
  memcpy(&out.bits, &half, sizeof(half));
#endif
}

template <typename T>
struct type_tag {
  using type = T;
};

// Calls f(type_tag<T>{}) with the C++ type of `dtype`.
template <typename F>
void dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(type_tag<float>{});
    case DType::f64:
      return f(type_tag<double>{});
    case DType::bf16:
      return f(type_tag<bf16_t>{});
    case DType::f16:
      return f(type_tag<f16_t>{});
  }
}

// The CUDA kernels' types: fp64 exists on the CPU alone, where gradcheck needs it.
template <typename F>
void dispatch_device_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(type_tag<float>{});
    case DType::bf16:
      return f(type_tag<bf16_t>{});
    case DType::f16:
      return f(type_tag<f16_t>{});
    case DType::f64:
      throw std::runtime_error("float64 has no CUDA kernel");
  }
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
