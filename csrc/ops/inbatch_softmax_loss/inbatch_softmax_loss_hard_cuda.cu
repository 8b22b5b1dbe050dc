// CUDA kernels for a row's own hard negatives: a warp for an inner product, a block for a row's gradients. Each
// embedding is read once.
#include "common/reduce.cuh"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"

namespace xfer {
namespace {

constexpr int kWarps = 8;  // of a block of inner products
constexpr int kMaxThreads = 256;
constexpr int kGradSize = 4;  // elements of an access of the gradients, whose sums are fp32

template <typename T, int kSize>
__global__ void __launch_bounds__(32 * kWarps)
    inbatch_hard_sims_kernel(const __grid_constant__ InbatchHardSimsArgs args) {
  using Packed = Vector<T, kSize>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (pair >= args.num_rows * args.num_hard) return;  // whole warps
  const T* u = static_cast<const T*>(args.u) + pair / args.num_hard * args.dim;
  const T* hard = static_cast<const T*>(args.hard) + pair * args.dim;
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t j = lane * kSize; j < args.dim; j += 32 * kSize) {
    const Packed a = *reinterpret_cast<const Packed*>(u + j), b = *reinterpret_cast<const Packed*>(hard + j);
#pragma unroll
    for (int l = 0; l < kSize; ++l) sum = fmaf(load_as(a.at[l]), load_as(b.at[l]), sum);
  }
  sum = group_sum<32>(sum);
  if (lane == 0) static_cast<float*>(args.sims)[pair] = sum;
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kMaxThreads)
    inbatch_hard_grads_kernel(const __grid_constant__ InbatchHardGradsArgs args) {
  using Packed = Vector<T, kSize>;
  const int64_t i = blockIdx.x;
  const float factor = args.factor != nullptr ? *static_cast<const float*>(args.factor) : 1.0f;
  const float* d = static_cast<const float*>(args.d) + i * args.num_hard;
  for (int64_t j = threadIdx.x * kSize; j < args.dim; j += blockDim.x * kSize) {
    const Packed u = *reinterpret_cast<const Packed*>(static_cast<const T*>(args.u) + i * args.dim + j);
    float sums[kSize] = {};
#pragma unroll 4
    for (int64_t h = 0; h < args.num_hard; ++h) {
      const int64_t place = (i * args.num_hard + h) * args.dim + j;
      const float weight = d[h];
      if (args.grad_u != nullptr) {
        const Packed hard = *reinterpret_cast<const Packed*>(static_cast<const T*>(args.hard) + place);
#pragma unroll
        for (int l = 0; l < kSize; ++l) sums[l] = fmaf(weight, load_as(hard.at[l]), sums[l]);
      }
      if (args.grad_hard != nullptr) {
        Packed out;
#pragma unroll
        for (int l = 0; l < kSize; ++l) store_as(out.at[l], factor * weight * load_as(u.at[l]));
        *reinterpret_cast<Packed*>(static_cast<T*>(args.grad_hard) + place) = out;
      }
    }
    if (args.grad_u == nullptr) continue;
    auto* to = reinterpret_cast<Vector<float, kSize>*>(static_cast<float*>(args.grad_u) + i * args.dim + j);
    Vector<float, kSize> total = *to;
#pragma unroll
    for (int l = 0; l < kSize; ++l) total.at[l] += sums[l];
    *to = total;
  }
}

}  // namespace

void inbatch_hard_sims_cuda(const InbatchHardSimsArgs& args) {
  const int64_t pairs = args.num_rows * args.num_hard;
  if (pairs == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto launch = [&](auto kernel) {
      launch_kernel("inbatch_hard_sims_kernel", kernel, dim3(static_cast<unsigned>((pairs + kWarps - 1) / kWarps)),
                    dim3(32 * kWarps), 0, args.stream, args);
    };
    const bool aligned = args.dim % kWidestVector<T> == 0 && is_aligned(args.u) && is_aligned(args.hard);
    aligned ? launch(inbatch_hard_sims_kernel<T, kWidestVector<T>>) : launch(inbatch_hard_sims_kernel<T, 1>);
  });
}

void inbatch_hard_grads_cuda(const InbatchHardGradsArgs& args) {
  if (args.num_rows == 0 || args.num_hard == 0 || args.dim == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool aligned = args.dim % kGradSize == 0 && is_aligned(args.u) && is_aligned(args.hard) &&
                         is_aligned(args.grad_u) && is_aligned(args.grad_hard);
    const int64_t accesses = aligned ? args.dim / kGradSize : args.dim;
    int threads = 32;
    while (threads < kMaxThreads && threads < accesses) threads *= 2;
    const auto launch = [&](auto kernel) {
      launch_kernel("inbatch_hard_grads_kernel", kernel, dim3(static_cast<unsigned>(args.num_rows)), dim3(threads), 0,
                    args.stream, args);
    };
    aligned ? launch(inbatch_hard_grads_kernel<T, kGradSize>) : launch(inbatch_hard_grads_kernel<T, 1>);
  });
}

}  // namespace xfer
