// The kernels of simt_planted.h.
#include "simt_planted.h"

#include "common/reduce.cuh"

namespace xfer {
namespace {

constexpr int kThreads = 256;

template <bool kBarrier>
__global__ void block_sum_kernel(const float* in, float* out, int64_t count) {
  __shared__ float partial[kThreads];
  float sum = 0.0f;
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    sum += in[i];
  }
  partial[threadIdx.x] = sum;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (kBarrier || half != kThreads / 2) __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) atomicAdd(out, partial[0]);
}

__global__ void copy_kernel(const float* in, float* out, int64_t count, int64_t read_to, int64_t write_from,
                            int64_t write_to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x + write_from;
  if (i >= write_to) return;
  out[i] = i < read_to && i >= 0 ? in[i] : static_cast<float>(count);
}

__global__ void read_kernel(const float* in, float* out, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const float value = in[i];
  out[i < count ? i : count - 1] = value;  // a use of every value, or the compiler drops the stray reads
}

__global__ void write_to_input_kernel(float* in) { in[0] = 1.0f; }

__global__ void shared_overrun_kernel(float* out, int64_t beyond) {
  XFER_DYNAMIC_SMEM(float, row);
  row[threadIdx.x + beyond] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = row[0];
}

__global__ void unreached_barrier_kernel(float* out) {
  if (threadIdx.x % 2 == 1) return;
  __syncthreads();
  out[0] = 1.0f;
}

__global__ void stale_shared_kernel(float* out) {
  __shared__ float never_written[kThreads];
  if (threadIdx.x == 0) out[0] = never_written[7];
  __syncthreads();
  never_written[threadIdx.x] = 1.0f;
}

__global__ void warp_votes_kernel(float* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned odd = __ballot_sync(kFullWarp, lane % 2);
  const int any = __any_sync(kFullWarp, lane == 31), none = __any_sync(kFullWarp, lane > 31);
  const int all = __all_sync(kFullWarp, lane < 32), not_all = __all_sync(kFullWarp, lane < 31);
  const int down = __shfl_down_sync(kFullWarp, lane, 3), up = __shfl_up_sync(kFullWarp, lane, 3);
  const int in_group = __shfl_sync(kFullWarp, lane, 1, 8), swapped = __shfl_xor_sync(kFullWarp, lane, 5);
  float total = 0.0f;
  if (lane < 16) total = static_cast<float>(__shfl_xor_sync(0xFFFFu, lane, 1));
  bool right = odd == 0xAAAAAAAAu && any && !none && all && !not_all;
  right = right && down == (lane < 29 ? lane + 3 : lane) && up == (lane < 3 ? lane : lane - 3);
  right = right && in_group == lane / 8 * 8 + 1 && swapped == (lane ^ 5);
  right = right && (lane >= 16 || total == static_cast<float>(lane ^ 1));
  right = right && group_sum<8>(static_cast<float>(lane)) == static_cast<float>(lane / 8 * 64 + 28);
  out[threadIdx.x] = right ? 1.0f : 0.0f;
}

__global__ void partial_shuffle_kernel(float* out) {
  float value = 0.0f;
  if (threadIdx.x < 16) value = __shfl_sync(kFullWarp, 1.0f, 0);
  out[threadIdx.x] = value;
}

}  // namespace

void planted_cuda(const PlantedArgs& args) {
  const auto blocks = static_cast<unsigned>((args.count + kThreads - 1) / kThreads);
  const int64_t n = args.count;
  switch (args.kernel) {
    case Planted::block_sum:
      return launch_kernel("block_sum_kernel", block_sum_kernel<true>, dim3(8), dim3(kThreads), 0, nullptr, args.in,
                           args.out, n);
    case Planted::missing_barrier:
      return launch_kernel("block_sum_kernel", block_sum_kernel<false>, dim3(8), dim3(kThreads), 0, nullptr, args.in,
                           args.out, n);
    case Planted::copy:
      return launch_kernel("copy_kernel", copy_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, args.in, args.out, n,
                           n, int64_t{0}, n);
    case Planted::read_overrun:
      return launch_kernel("read_kernel", read_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, args.in, args.out, n);
    case Planted::write_overrun:
      return launch_kernel("copy_kernel", copy_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, args.in, args.out, n,
                           n, int64_t{0}, n + 1);
    case Planted::write_underrun:
      return launch_kernel("copy_kernel", copy_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, args.in, args.out, n,
                           n, int64_t{-1}, n);
    case Planted::write_to_input:
      return launch_kernel("write_to_input_kernel", write_to_input_kernel, dim3(1), dim3(1), 0, nullptr,
                           const_cast<float*>(args.in));
    case Planted::shared_overrun:
      return launch_kernel("shared_overrun_kernel", shared_overrun_kernel, dim3(1), dim3(kThreads),
                           kThreads * sizeof(float), nullptr, args.out, int64_t{1});
    case Planted::unreached_barrier:
      return launch_kernel("unreached_barrier_kernel", unreached_barrier_kernel, dim3(1), dim3(kThreads), 0, nullptr,
                           args.out);
    case Planted::stale_shared:
      return launch_kernel("stale_shared_kernel", stale_shared_kernel, dim3(2), dim3(kThreads), 0, nullptr, args.out);
    case Planted::warp_votes:
      return launch_kernel("warp_votes_kernel", warp_votes_kernel, dim3(1), dim3(64), 0, nullptr, args.out);
    case Planted::partial_shuffle:
      return launch_kernel("partial_shuffle_kernel", partial_shuffle_kernel, dim3(1), dim3(32), 0, nullptr, args.out);
  }
}

}  // namespace xfer
