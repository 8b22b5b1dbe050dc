// CUDA kernels of hard_concrete. A gate an element: one pass of 16-byte accesses, the noise drawn again in backward,
// four gates a thread from one Philox counter. Gates of groups: their curves first (a few KiB, read through the cache),
// then one pass over theta.
#include "common/reduce.cuh"
#include "ops/hard_concrete/hard_concrete.h"
#include "ops/hard_concrete/hard_concrete_math.h"

namespace xfer {
namespace {

constexpr int kThreads = 256;
constexpr int kGates = 4;              // of one Philox counter
constexpr int64_t kMostBlocks = 1024;  // parts of the penalty; a block goes on to the next run of gates

using Constants = HardConcreteConstants<float>;

__device__ __forceinline__ float block_sum(float value) {
  __shared__ float warps[kThreads / 32];
  value = group_sum<32>(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) total += warps[warp];
  __syncthreads();
  return total;
}

// Four gates from `first` on of count; the last ones are padded with 0.
template <typename T>
__device__ __forceinline__ void load_four(const T* from, int64_t first, int64_t count, bool aligned,
                                          float (&out)[kGates]) {
  if (aligned && first + kGates <= count) {
    const Vector<T, kGates> four = reinterpret_cast<const Vector<T, kGates>*>(from)[first / kGates];
#pragma unroll
    for (int i = 0; i < kGates; ++i) out[i] = load_as(four.at[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kGates; ++i) out[i] = first + i < count ? load_as(from[first + i]) : 0.0f;
}

template <typename T>
__device__ __forceinline__ void store_four(T* to, int64_t first, int64_t count, bool aligned,
                                           const float (&values)[kGates]) {
  if (aligned && first + kGates <= count) {
    Vector<T, kGates> four;
#pragma unroll
    for (int i = 0; i < kGates; ++i) store_as(four.at[i], values[i]);
    reinterpret_cast<Vector<T, kGates>*>(to)[first / kGates] = four;
    return;
  }
#pragma unroll
  for (int i = 0; i < kGates; ++i) {
    if (first + i < count) store_as(to[first + i], values[i]);
  }
}

template <HardConcreteCurve kCurve>
__device__ __forceinline__ Philox4 four_words(const int64_t* seed_offset, int64_t first) {
  if constexpr (kCurve == HardConcreteCurve::evaluation) {
    return {};
  } else {
    return philox_words({seed_offset[0], seed_offset[1]}, 0, static_cast<uint64_t>(first) / kGates);
  }
}

__device__ __forceinline__ int64_t first_gate() {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kGates;
}
__device__ __forceinline__ int64_t gate_stride() { return static_cast<int64_t>(gridDim.x) * kThreads * kGates; }

// theta null: out = z. parts [gridDim.x] of the penalty, or null.
template <typename T, HardConcreteCurve kCurve>
__global__ void __launch_bounds__(kThreads)
    hard_concrete_forward_kernel(const float* log_alpha, const int64_t* seed_offset, Constants k, const T* theta,
                                 T* out, int64_t count, bool aligned, float* parts) {
  double total = 0.0;  // equal values in a running fp32 sum would all be rounded the same way
  for (int64_t first = first_gate(); first < count; first += gate_stride()) {
    float la[kGates], value[kGates], sum = 0.0f;
    load_four(log_alpha, first, count, aligned, la);
    if (theta != nullptr) load_four(theta, first, count, aligned, value);
    const Philox4 words = four_words<kCurve>(seed_offset, first);
#pragma unroll
    for (int i = 0; i < kGates; ++i) {
      const HardConcreteGate<float> gate = hard_concrete_gate<kCurve>(la[i], words.word[i], k);
      if (first + i < count) sum += hard_concrete_keep(gate.w, k);
      value[i] = theta != nullptr ? value[i] * gate.z : gate.z;
    }
    store_four(out, first, count, aligned, value);
    total += static_cast<double>(sum);
  }
  if (parts == nullptr) return;
  const float sum = block_sum(static_cast<float>(total));
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block: the parts in a fixed order. The grid writes at most kMostBlocks of them.
__global__ void __launch_bounds__(kThreads)
    hard_concrete_penalty_kernel(const float* parts, int count, float size, float* penalty) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *penalty = sum * size;
}

template <typename T, HardConcreteCurve kCurve>
__global__ void __launch_bounds__(kThreads)
    hard_concrete_backward_kernel(const float* log_alpha, const int64_t* seed_offset, Constants k, const T* theta,
                                  const T* grad, const float* grad_penalty, float size, float* grad_log_alpha,
                                  T* grad_theta, int64_t count, bool aligned) {
  const float for_keep = grad_penalty != nullptr ? *grad_penalty * size : 0.0f;
  for (int64_t first = first_gate(); first < count; first += gate_stride()) {
    float la[kGates], value[kGates], g[kGates] = {}, d[kGates];
    load_four(log_alpha, first, count, aligned, la);
    if (theta != nullptr) load_four(theta, first, count, aligned, value);
    if (grad != nullptr) load_four(grad, first, count, aligned, g);
    const Philox4 words = four_words<kCurve>(seed_offset, first);
#pragma unroll
    for (int i = 0; i < kGates; ++i) {
      const HardConcreteGate<float> gate = hard_concrete_gate<kCurve>(la[i], words.word[i], k);
      const float through = g[i] * hard_concrete_slope(gate, k);
      const float keep = hard_concrete_keep(gate.w, k);
      d[i] = (theta != nullptr ? through * value[i] : through) + for_keep * hard_concrete_keep_slope(gate.w, keep, k);
      g[i] *= gate.z;
    }
    if (grad_theta != nullptr) store_four(grad_theta, first, count, aligned, g);
    if (grad_log_alpha != nullptr) store_four(grad_log_alpha, first, count, aligned, d);
  }
}

// Rows of [num_gates], null where not wanted: z, z', z'', q, q', q''.
struct CurveRows {
  float* row[6];
};

template <HardConcreteCurve kCurve>
__global__ void __launch_bounds__(kThreads)
    hard_concrete_curves_kernel(const float* log_alpha, const int64_t* seed_offset, Constants k, CurveRows rows,
                                int64_t count) {
  for (int64_t first = first_gate(); first < count; first += gate_stride()) {
    float la[kGates];
    load_four(log_alpha, first, count, false, la);
    const Philox4 words = four_words<kCurve>(seed_offset, first);
#pragma unroll
    for (int i = 0; i < kGates; ++i) {
      if (first + i >= count) continue;
      const HardConcreteGate<float> gate = hard_concrete_gate<kCurve>(la[i], words.word[i], k);
      const float slope = hard_concrete_slope(gate, k), keep = hard_concrete_keep(gate.w, k);
      const float keep_slope = hard_concrete_keep_slope(gate.w, keep, k);
      const float found[6] = {gate.z, slope,      hard_concrete_bend(gate.s, slope, k),
                              keep,   keep_slope, keep_slope * (1.0f - (keep + keep))};
#pragma unroll
      for (int row = 0; row < 6; ++row) {
        if (rows.row[row] != nullptr) rows.row[row][first + i] = found[row];
      }
    }
  }
}

// out[outer, gates, inner] = theta z.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    hard_concrete_scale_kernel(const T* theta, const float* z, T* out, int64_t num_gates, int64_t inner,
                               int64_t total) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    store_as(out[i], load_as(theta[i]) * z[i / inner % num_gates]);
  }
}

// A block takes one part of one gate's group: sums[gate * per_gate + part] is its share of <grad, theta>, and
// grad_theta = grad z. For groups whose elements lie side by side: lanes read neighbours.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    hard_concrete_row_kernel(const T* theta, const T* grad, const float* z, T* grad_theta, float* sums, int64_t outer,
                             int64_t num_gates, int64_t inner, HardConcreteParts parts) {
  const int64_t gate = blockIdx.x;
  for (int64_t part = blockIdx.y; part < parts.per_gate(); part += gridDim.y) {
    const int64_t r0 = part / parts.parts_q * parts.r_size, q0 = part % parts.parts_q * parts.q_size;
    const int64_t r1 = r0 + parts.r_size < outer ? r0 + parts.r_size : outer;
    const int64_t q1 = q0 + parts.q_size < inner ? q0 + parts.q_size : inner;
    const float factor = z[gate];
    float sum = 0.0f;
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t row = (r * num_gates + gate) * inner;
      for (int64_t q = q0 + threadIdx.x; q < q1; q += kThreads) {
        const float g = load_as(grad[row + q]);
        sum += g * load_as(theta[row + q]);
        if (grad_theta != nullptr) store_as(grad_theta[row + q], g * factor);
      }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[gate * parts.per_gate() + part] = sum;
  }
}

// The same for short rows: a thread takes one gate and walks down its part of `outer`, so that lanes read neighbouring
// gates (whole rows of them where inner is 1).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    hard_concrete_column_kernel(const T* theta, const T* grad, const float* z, T* grad_theta, float* sums,
                                int64_t outer, int64_t num_gates, int64_t inner, HardConcreteParts parts) {
  const int64_t gate = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (gate >= num_gates) return;
  const float factor = z[gate];
  for (int64_t part = blockIdx.y; part < parts.parts_r; part += gridDim.y) {
    const int64_t r0 = part * parts.r_size;
    const int64_t r1 = r0 + parts.r_size < outer ? r0 + parts.r_size : outer;
    float sum = 0.0f;
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t row = (r * num_gates + gate) * inner;
      for (int64_t q = 0; q < inner; ++q) {
        const float g = load_as(grad[row + q]);
        sum += g * load_as(theta[row + q]);
        if (grad_theta != nullptr) store_as(grad_theta[row + q], g * factor);
      }
    }
    sums[gate * parts.parts_r + part] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) hard_concrete_zero_kernel(T* out, int64_t total) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    store_as(out[i], 0.0f);
  }
}

__global__ void __launch_bounds__(kThreads)
    hard_concrete_group_kernel(const float* sums, int64_t per_gate, const float* slope, const float* keep_slope,
                               const float* grad_penalty, float size, float* grad_log_alpha, int64_t num_gates) {
  const float for_keep = grad_penalty != nullptr ? *grad_penalty * size : 0.0f;
  for (int64_t gate = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; gate < num_gates;
       gate += static_cast<int64_t>(gridDim.x) * kThreads) {
    float sum = 0.0f;
    for (int64_t part = 0; part < per_gate && sums != nullptr; ++part) sum += sums[gate * per_gate + part];
    grad_log_alpha[gate] = sum * slope[gate] + for_keep * keep_slope[gate];
  }
}

// ---- launchers

int blocks_for(int64_t items, int64_t most = kMostBlocks) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

template <typename F>
void dispatch_curve(const HardConcreteGates& gates, const F& f) {
  switch (hard_concrete_curve(gates)) {
    case HardConcreteCurve::evaluation:
      return f(std::integral_constant<HardConcreteCurve, HardConcreteCurve::evaluation>{});
    case HardConcreteCurve::two_thirds:
      return f(std::integral_constant<HardConcreteCurve, HardConcreteCurve::two_thirds>{});
    case HardConcreteCurve::any:
      return f(std::integral_constant<HardConcreteCurve, HardConcreteCurve::any>{});
  }
}

template <typename T>
bool four_aligned(const T* pointer) {
  return pointer == nullptr || is_aligned(pointer, sizeof(Vector<T, kGates>));
}

int gate_blocks(int64_t num_gates) { return blocks_for((num_gates + kGates - 1) / kGates); }

template <typename T>
void forward_gates(const HardConcreteGates& gates, const T* theta, T* out, float* parts, stream_t stream) {
  const float* log_alpha = static_cast<const float*>(gates.log_alpha);
  const bool aligned = four_aligned(log_alpha) && four_aligned(theta) && four_aligned(out);
  dispatch_curve(gates, [&](auto curve) {
    launch_kernel("hard_concrete_forward", hard_concrete_forward_kernel<T, curve()>, dim3(gate_blocks(gates.num_gates)),
                  dim3(kThreads), 0, stream, log_alpha, gates.seed_offset, hard_concrete_constants<float>(gates), theta,
                  out, gates.num_gates, aligned, parts);
  });
}

void curves_of(const HardConcreteGates& gates, const CurveRows& rows, stream_t stream) {
  dispatch_curve(gates, [&](auto curve) {
    launch_kernel("hard_concrete_curves", hard_concrete_curves_kernel<curve()>, dim3(gate_blocks(gates.num_gates)),
                  dim3(kThreads), 0, stream, static_cast<const float*>(gates.log_alpha), gates.seed_offset,
                  hard_concrete_constants<float>(gates), rows, gates.num_gates);
  });
}

// Workspace: kMostBlocks floats for the penalty, then z, z' and q' [K] each, then the sums of the groups.
float* curve_space(void* workspace) { return static_cast<float*>(workspace) + kMostBlocks; }

template <typename T>
void backward_groups(const HardConcreteBackwardArgs& a) {
  const int64_t gates = a.gates.num_gates, total = a.outer * gates * a.inner;
  float* z = curve_space(a.workspace);
  float *slope = z + gates, *keep_slope = z + 2 * gates, *sums = z + 3 * gates;
  curves_of(a.gates, {{z, slope, nullptr, nullptr, keep_slope, nullptr}}, a.stream);
  const HardConcreteParts parts = hard_concrete_parts(a.outer, gates, a.inner, kHardConcreteChunk);
  const T* grad = static_cast<const T*>(a.grad_out);
  const T* theta = static_cast<const T*>(a.theta);
  T* grad_theta = static_cast<T*>(a.grad_theta);
  constexpr int64_t kShortRow = 32, kMostY = 65535;
  const int64_t per_gate = a.inner < kShortRow ? parts.parts_r : parts.per_gate();
  const int y = static_cast<int>(per_gate < kMostY ? per_gate : kMostY);
  const bool any = grad != nullptr && total > 0;
  if (any && a.inner < kShortRow) {
    launch_kernel("hard_concrete_column", hard_concrete_column_kernel<T>, dim3(blocks_for(gates, INT32_MAX), y),
                  dim3(kThreads), 0, a.stream, theta, grad, static_cast<const float*>(z), grad_theta, sums, a.outer,
                  gates, a.inner, parts);
  } else if (any) {
    launch_kernel("hard_concrete_row", hard_concrete_row_kernel<T>, dim3(static_cast<unsigned>(gates), y),
                  dim3(kThreads), 0, a.stream, theta, grad, static_cast<const float*>(z), grad_theta, sums, a.outer,
                  gates, a.inner, parts);
  } else if (grad_theta != nullptr && total > 0) {
    launch_kernel("hard_concrete_zero", hard_concrete_zero_kernel<T>, dim3(blocks_for(total, INT32_MAX)),
                  dim3(kThreads), 0, a.stream, grad_theta, total);
  }
  if (a.grad_log_alpha == nullptr) return;
  launch_kernel("hard_concrete_group", hard_concrete_group_kernel, dim3(blocks_for(gates)), dim3(kThreads), 0, a.stream,
                static_cast<const float*>(any ? sums : nullptr), per_gate, static_cast<const float*>(slope),
                static_cast<const float*>(keep_slope), static_cast<const float*>(a.grad_penalty),
                static_cast<float>(a.size), static_cast<float*>(a.grad_log_alpha), gates);
}

template <typename T>
void backward_elements(const HardConcreteBackwardArgs& a) {
  const float* log_alpha = static_cast<const float*>(a.gates.log_alpha);
  const T* theta = static_cast<const T*>(a.theta);
  const T* grad = static_cast<const T*>(a.grad_out);
  T* grad_theta = static_cast<T*>(a.grad_theta);
  float* grad_log_alpha = static_cast<float*>(a.grad_log_alpha);
  const bool aligned = four_aligned(log_alpha) && four_aligned(theta) && four_aligned(grad) &&
                       four_aligned(grad_theta) && four_aligned(grad_log_alpha);
  dispatch_curve(a.gates, [&](auto curve) {
    launch_kernel("hard_concrete_backward", hard_concrete_backward_kernel<T, curve()>,
                  dim3(gate_blocks(a.gates.num_gates)), dim3(kThreads), 0, a.stream, log_alpha, a.gates.seed_offset,
                  hard_concrete_constants<float>(a.gates), theta, grad, static_cast<const float*>(a.grad_penalty),
                  static_cast<float>(a.size), grad_log_alpha, grad_theta, a.gates.num_gates, aligned);
  });
}

}  // namespace

void hard_concrete_forward_cuda(const HardConcreteForwardArgs& a) {
  const int64_t gates = a.gates.num_gates, total = a.outer * gates * a.inner;
  if (gates == 0) return;
  float* parts = a.penalty != nullptr ? static_cast<float*>(a.workspace) : nullptr;
  dispatch_device_dtype(a.gates.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* theta = static_cast<const T*>(a.theta);
    if (theta == nullptr) {
      forward_gates<float>(a.gates, nullptr, static_cast<float*>(a.out), parts, a.stream);
    } else if (a.outer == 1 && a.inner == 1) {
      forward_gates<T>(a.gates, theta, static_cast<T*>(a.out), parts, a.stream);
    } else {
      float* z = curve_space(a.workspace);
      forward_gates<float>(a.gates, nullptr, z, parts, a.stream);
      if (total == 0) return;
      launch_kernel("hard_concrete_scale", hard_concrete_scale_kernel<T>, dim3(blocks_for(total, INT32_MAX)),
                    dim3(kThreads), 0, a.stream, theta, static_cast<const float*>(z), static_cast<T*>(a.out), gates,
                    a.inner, total);
    }
  });
  if (parts == nullptr) return;
  launch_kernel("hard_concrete_penalty", hard_concrete_penalty_kernel, dim3(1), dim3(kThreads), 0, a.stream,
                static_cast<const float*>(parts), gate_blocks(gates), static_cast<float>(a.size),
                static_cast<float*>(a.penalty));
}

void hard_concrete_backward_cuda(const HardConcreteBackwardArgs& a) {
  if (a.gates.num_gates == 0) return;
  dispatch_device_dtype(a.gates.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (a.theta == nullptr) {
      backward_elements<float>(a);
    } else if (a.outer == 1 && a.inner == 1) {
      backward_elements<T>(a);
    } else {
      backward_groups<T>(a);
    }
  });
}

void hard_concrete_curves_cuda(const HardConcreteCurvesArgs& a) {
  float* curves = static_cast<float*>(a.curves);
  const int64_t gates = a.gates.num_gates;
  if (gates == 0) return;
  curves_of(a.gates,
            {{curves, curves + gates, curves + 2 * gates, curves + 3 * gates, curves + 4 * gates, curves + 5 * gates}},
            a.stream);
}

}  // namespace xfer
