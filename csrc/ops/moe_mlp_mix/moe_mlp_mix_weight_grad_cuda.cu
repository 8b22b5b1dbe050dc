// CUDA kernels that sum a chunk's token products into the gradients of moe_mlp_mix's weights and biases.
#include "ops/moe_mlp_mix/moe_mlp_mix_backward.cuh"

namespace xfer {
namespace {

constexpr int kTile = kPanelColumns;  // of m and of n
constexpr int kColumnThreads = 128;

// The tokens [begin, end) of slice `slice`, in whole steps; the last slices may be empty.
XFER_HD void slice_range(int64_t num_tokens, int slices, int slice, int step, int64_t& begin, int64_t& end) {
  const int64_t length = ((num_tokens + slices - 1) / slices + step - 1) / step * step;
  begin = length * slice < num_tokens ? length * slice : num_tokens;
  end = begin + length < num_tokens ? begin + length : num_tokens;
}

// grid: x tiles of [m, n], y experts, z slices.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2)
    moe_weight_grad_kernel(const __grid_constant__ MoeWeightGradArgs args) {
  constexpr int kDepth = kStageDepth<T>;
  constexpr int kLd = kTile + kRowPadding<T>;
  XFER_DYNAMIC_SMEM(unsigned char, smem);
  T* a_stage = reinterpret_cast<T*>(smem);
  T* b_stage = a_stage + kDepth * kLd;
  float* sums = reinterpret_cast<float*>(b_stage + kDepth * kLd);
  const int64_t tiles_n = (args.n + kTile - 1) / kTile;
  const int64_t m0 = blockIdx.x / tiles_n * kTile, n0 = blockIdx.x % tiles_n * kTile;
  const int64_t expert = blockIdx.y;
  const T* a = static_cast<const T*>(args.a) + expert * args.a_expert_stride + m0;
  const T* b = static_cast<const T*>(args.b) + expert * args.b_expert_stride;
  const MoeDropout dropout = args.dropout.on_device(args.seed_offset);
  int64_t begin, end;
  slice_range(args.num_tokens, args.slices, static_cast<int>(blockIdx.z), kDepth, begin, end);

  Panel<T, kTile> panel;
  for (int64_t token = begin; token < end; token += kDepth) {
    stage_matrix(a_stage, kLd, a + token * args.a_token_stride, args.a_token_stride, end - token, args.m - m0, kDepth,
                 kTile);
    if (dropout.active) {
      // The mask counts tokens over the whole call, x from the start of the chunk.
      moe_stage_dropped(b_stage, kLd, b - args.first_token * args.n, args.first_token + token, kDepth, end - token,
                        static_cast<int>(args.n), static_cast<int>(n0), kTile, dropout, args.num_experts, expert);
    } else {
      stage_matrix(b_stage, kLd, b + token * args.b_token_stride + n0, args.b_token_stride, end - token, args.n - n0,
                   kDepth, kTile);
    }
    __syncthreads();
    panel.template add<true, false>(a_stage, kLd, b_stage, kLd, kDepth);
    __syncthreads();
  }
  panel.store(sums, kPanelLd);
  __syncthreads();
  float* out = args.partial + (static_cast<int64_t>(blockIdx.z) * args.num_experts + expert) * args.m * args.n;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kTileThreads) {
    const int row = i / kTile, column = i % kTile;
    if (m0 + row >= args.m || n0 + column >= args.n) continue;
    float& total = out[(m0 + row) * args.n + n0 + column];
    total = args.accumulate ? total + sums[row * kPanelLd + column] : sums[row * kPanelLd + column];
  }
}

// A thread takes a column of one slice.
template <typename T>
__global__ void __launch_bounds__(kColumnThreads) moe_bias_grad_kernel(const MoeBiasGradArgs args) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (column >= args.columns) return;
  int64_t begin, end;
  slice_range(args.num_tokens, args.slices, static_cast<int>(blockIdx.y), 1, begin, end);
  const T* a = static_cast<const T*>(args.a) + column;
  float& out = args.partial[blockIdx.y * args.columns + column];
  float total = args.accumulate ? out : 0.0f;
#pragma unroll 8
  for (int64_t token = begin; token < end; ++token) total += load_as(a[token * args.columns]);
  out = total;
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) moe_finish_grad_kernel(const MoeFinishGradArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (i >= args.numel) return;
  float total = 0.0f;
  for (int slice = 0; slice < args.slices; ++slice) total += args.partial[slice * args.numel + i];
  store_as(static_cast<T*>(args.out)[i], args.scale * total);
}

unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace

void moe_weight_grad_cuda(const MoeWeightGradArgs& args) {
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const size_t smem =
        2 * kStageDepth<T> * (kTile + kRowPadding<T>)*sizeof(T) + static_cast<size_t>(kTile) * kPanelLd * sizeof(float);
    const dim3 grid(blocks_for(args.m, kTile) * blocks_for(args.n, kTile), static_cast<unsigned>(args.num_experts),
                    static_cast<unsigned>(args.slices));
    launch_kernel("moe_weight_grad_kernel", moe_weight_grad_kernel<T>, grid, dim3(kTileThreads), smem, args.stream,
                  args);
  });
}

void moe_bias_grad_cuda(const MoeBiasGradArgs& args) {
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_kernel("moe_bias_grad_kernel", moe_bias_grad_kernel<T>,
                  dim3(blocks_for(args.columns, kColumnThreads), static_cast<unsigned>(args.slices)),
                  dim3(kColumnThreads), 0, args.stream, args);
  });
}

void moe_finish_grad_cuda(const MoeFinishGradArgs& args) {
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_kernel("moe_finish_grad_kernel", moe_finish_grad_kernel<T>, dim3(blocks_for(args.numel, kTileThreads)),
                  dim3(kTileThreads), 0, args.stream, args);
  });
}

}  // namespace xfer
