// CUDA kernels for a row's own hard negatives: a warp for an inner product, a block for a row's gradients.
#include "common/reduce.cuh"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"

namespace xfer {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

template <typename T>
__global__ void __launch_bounds__(kThreads) inbatch_hard_sims_kernel(const __grid_constant__ InbatchHardSimsArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const bool inside = pair < args.num_rows * args.num_hard;
  float sum = 0.0f;
  if (inside) {
    const T* u = static_cast<const T*>(args.u) + pair / args.num_hard * args.dim;
    const T* hard = static_cast<const T*>(args.hard) + pair * args.dim;
    for (int64_t j = lane; j < args.dim; j += 32) sum += load_as(u[j]) * load_as(hard[j]);
  }
  sum = group_sum<32>(sum);  // all lanes of the warp call, whether inside or not
  if (inside && lane == 0) static_cast<float*>(args.sims)[pair] = sum;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    inbatch_hard_grads_kernel(const __grid_constant__ InbatchHardGradsArgs args) {
  const int64_t i = blockIdx.x;
  const float factor = args.factor != nullptr ? *static_cast<const float*>(args.factor) : 1.0f;
  const float* d = static_cast<const float*>(args.d) + i * args.num_hard;
  for (int64_t j = threadIdx.x; j < args.dim; j += kThreads) {
    const float u = load_as(static_cast<const T*>(args.u)[i * args.dim + j]);
    float sum = 0.0f;
    for (int64_t h = 0; h < args.num_hard; ++h) {
      const int64_t place = (i * args.num_hard + h) * args.dim + j;
      if (args.grad_u != nullptr) sum += d[h] * load_as(static_cast<const T*>(args.hard)[place]);
      if (args.grad_hard != nullptr) store_as(static_cast<T*>(args.grad_hard)[place], factor * d[h] * u);
    }
    if (args.grad_u != nullptr) static_cast<float*>(args.grad_u)[i * args.dim + j] += sum;
  }
}

}  // namespace

void inbatch_hard_sims_cuda(const InbatchHardSimsArgs& args) {
  const int64_t pairs = args.num_rows * args.num_hard;
  if (pairs == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_kernel("inbatch_hard_sims_kernel", inbatch_hard_sims_kernel<T>,
                  dim3(static_cast<unsigned>((pairs + kWarps - 1) / kWarps)), dim3(kThreads), 0, args.stream, args);
  });
}

void inbatch_hard_grads_cuda(const InbatchHardGradsArgs& args) {
  if (args.num_rows == 0 || args.num_hard == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_kernel("inbatch_hard_grads_kernel", inbatch_hard_grads_kernel<T>, dim3(static_cast<unsigned>(args.num_rows)),
                  dim3(kThreads), 0, args.stream, args);
  });
}

}  // namespace xfer
