// Sums and maxima over a group of lanes, and 16-byte accesses. The order of additions is fixed: same bits run to run.
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;

// Elements of T in the widest access a thread makes.
template <typename T>
constexpr int kWidestVector = 16 / static_cast<int>(sizeof(T));

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T at[kSize];
};

inline bool is_aligned(const void* pointer, uintptr_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Correctly rounded on the CPU, within 1 ulp on a device: the exact quotient is a call there, which spills registers.
__device__ __forceinline__ float reciprocal(float value) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, value);
#else
  return 1.0f / value;
#endif
}

// Groups are aligned runs of kGroup lanes; every lane of the warp must call, every lane of a group gets the result.
template <int kGroup>
__device__ __forceinline__ float group_sum(float value) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset, kGroup);
  return value;
}

template <int kGroup>
__device__ __forceinline__ float group_max(float value) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset, kGroup));
  }
  return value;
}

// What softmax and log-softmax of a row need beside the element itself. A NaN in the row turns the sum into NaN.
struct RowSoftmax {
  float maximum;
  float inverse_sum;
  float log_sum;

  __device__ __forceinline__ float probability(float logit) const { return expf(logit - maximum) * inverse_sum; }
  __device__ __forceinline__ float log_probability(float logit) const { return (logit - maximum) - log_sum; }
};

template <int kGroup, typename T>
__device__ __forceinline__ RowSoftmax group_softmax(const T* row, int64_t count, int lane) {
  float maximum = -INFINITY;
  for (int64_t k = lane; k < count; k += kGroup) maximum = fmaxf(maximum, load_as(row[k]));
  maximum = group_max<kGroup>(maximum);
  float sum = 0.0f;
  for (int64_t k = lane; k < count; k += kGroup) sum += expf(load_as(row[k]) - maximum);
  sum = group_sum<kGroup>(sum);
  return {maximum, reciprocal(sum), logf(sum)};
}

}  // namespace xfer
