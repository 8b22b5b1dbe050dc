// CUDA kernels of gated_mix: every expert is read once, a group of lanes takes a token.
#include "common/reduce.cuh"
#include "ops/gated_mix/gated_mix.h"
#include "ops/gated_mix/gated_mix_math.h"

namespace xfer {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 5;  // 48 registers a thread; left to itself ptxas takes 32 and spills
constexpr int kSmallGroup = 8;   // lanes a token where its row is short
constexpr int64_t kBackwardSmemBytes = 160 * 1024;

template <typename T>
__device__ __forceinline__ const T* expert_row(const GatedMixExperts& experts, int64_t k, int64_t token) {
  return experts.stacked
             ? static_cast<const T*>(experts.pointers[0]) + token * experts.row_stride[0] + k * experts.expert_stride
             : static_cast<const T*>(experts.pointers[k]) + token * experts.row_stride[k];
}

// The token of this lane's group. Groups behind the last token repeat it and write nothing: the warp stays whole.
template <int kGroup>
struct GroupPlace {
  int lane;
  int group;
  int64_t token;
  bool active;

  __device__ __forceinline__ explicit GroupPlace(int64_t num_tokens) {
    lane = static_cast<int>(threadIdx.x % kGroup);
    group = static_cast<int>(threadIdx.x / kGroup);
    const int64_t place = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kGroup) + group;
    active = place < num_tokens;
    token = active ? place : num_tokens - 1;
  }
};

template <typename T, int kSize, int kGroup>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    gated_mix_forward_kernel(const __grid_constant__ GatedMixForwardArgs args) {
  using Packed = Vector<T, kSize>;
  const GroupPlace<kGroup> place(args.num_tokens);
  const int64_t num_experts = args.num_experts, dim = args.dim, token = place.token;
  const T* logits = static_cast<const T*>(args.logits) + token * num_experts;
  const RowSoftmax norm = group_softmax<kGroup>(logits, num_experts, place.lane);
  for (int64_t column0 = 0; column0 < dim; column0 += kGroup * kSize) {
    const int64_t column = column0 + place.lane * kSize;
    const bool inside = column < dim;
    float sums[kSize] = {};
    for (int64_t k0 = 0; k0 < num_experts; k0 += kGroup) {
      const int64_t own = k0 + place.lane;
      const float weights = own < num_experts ? norm.probability(load_as(logits[own])) : 0.0f;
      const int count = static_cast<int>(num_experts - k0 < kGroup ? num_experts - k0 : kGroup);
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        const float weight = __shfl_sync(kFullWarp, weights, i, kGroup);
        if (!inside) continue;
        const Packed values = *reinterpret_cast<const Packed*>(expert_row<T>(args.experts, k0 + i, token) + column);
#pragma unroll
        for (int j = 0; j < kSize; ++j) sums[j] = fmaf(weight, load_as(values.at[j]), sums[j]);
      }
    }
    if (inside && place.active) {
      Packed mixed;
#pragma unroll
      for (int j = 0; j < kSize; ++j) store_as(mixed.at[j], sums[j]);
      *reinterpret_cast<Packed*>(static_cast<T*>(args.mixed) + token * dim + column) = mixed;
    }
  }
  if (place.lane == 0 && place.active) {
    float nll = 0.0f;
    if (args.targets != nullptr) {
      const int64_t target = args.targets[token];
      const TargetKind kind = gated_mix_target_kind(target, num_experts, args.ignore_index);
      if (kind == TargetKind::valid) nll = -norm.log_probability(load_as(logits[target]));
      if (kind == TargetKind::out_of_range) {
        nll = NAN;
        if (args.status != nullptr) atomicOr(args.status, 1);
      }
    }
    static_cast<float*>(args.gate_nll)[token] = nll;
  }
}

template <typename T, int kSize, int kGroup>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    gated_mix_backward_kernel(const __grid_constant__ GatedMixBackwardArgs args) {
  using Packed = Vector<T, kSize>;
  XFER_DYNAMIC_SMEM(float, all_grad_alpha);  // [groups of the block, num_experts]
  const GroupPlace<kGroup> place(args.num_tokens);
  const int64_t num_experts = args.num_experts, dim = args.dim, token = place.token;
  float* grad_alpha = all_grad_alpha + place.group * num_experts;
  const T* logits = static_cast<const T*>(args.logits) + token * num_experts;
  const T* grad = static_cast<const T*>(args.grad_mixed) + token * dim;
  const RowSoftmax norm = group_softmax<kGroup>(logits, num_experts, place.lane);
  for (int64_t k0 = 0; k0 < num_experts; k0 += kGroup) {
    const int64_t own = k0 + place.lane;
    const float weights = own < num_experts ? norm.probability(load_as(logits[own])) : 0.0f;
    const int count = static_cast<int>(num_experts - k0 < kGroup ? num_experts - k0 : kGroup);
    for (int i = 0; i < count; ++i) {
      const float weight = __shfl_sync(kFullWarp, weights, i, kGroup);
      const T* row = expert_row<T>(args.experts, k0 + i, token);
      T* grad_row = args.need_grad_experts ? const_cast<T*>(expert_row<T>(args.grad_experts, k0 + i, token)) : nullptr;
      float dot = 0.0f;
#pragma unroll 2
      for (int64_t column = place.lane * kSize; column < dim; column += kGroup * kSize) {
        const Packed g = *reinterpret_cast<const Packed*>(grad + column);
        const Packed values = *reinterpret_cast<const Packed*>(row + column);
        Packed scaled;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          dot = fmaf(load_as(g.at[j]), load_as(values.at[j]), dot);
          store_as(scaled.at[j], weight * load_as(g.at[j]));
        }
        if (grad_row != nullptr && place.active) *reinterpret_cast<Packed*>(grad_row + column) = scaled;
      }
      dot = group_sum<kGroup>(dot);
      if (place.lane == 0) grad_alpha[k0 + i] = dot;
    }
  }
  __syncwarp();
  float mean = 0.0f;
  for (int64_t k = place.lane; k < num_experts; k += kGroup) {
    mean = fmaf(norm.probability(load_as(logits[k])), grad_alpha[k], mean);
  }
  mean = group_sum<kGroup>(mean);
  if (!place.active) return;
  float grad_nll = 0.0f;
  int64_t target = -1;
  if (args.targets != nullptr && args.grad_nll != nullptr) {
    const TargetKind kind = gated_mix_target_kind(args.targets[token], num_experts, args.ignore_index);
    if (kind == TargetKind::valid) target = args.targets[token];
    if (kind != TargetKind::ignored) grad_nll = static_cast<const float*>(args.grad_nll)[token];
    // Its loss is NaN, and so is the gradient: a wrong target never trains silently.
    if (kind == TargetKind::out_of_range) grad_nll = NAN;
  }
  for (int64_t k = place.lane; k < num_experts; k += kGroup) {
    const float alpha = norm.probability(load_as(logits[k]));
    store_as(static_cast<T*>(args.grad_logits)[token * num_experts + k],
             gated_mix_grad_logit(alpha, grad_alpha[k], mean, grad_nll, k == target));
  }
}

// True where every row of every expert starts at a multiple of 16 bytes.
template <typename T>
bool rows_aligned(const GatedMixExperts& experts, int64_t num_experts) {
  constexpr int64_t kSize = kWidestVector<T>;
  if (experts.stacked) {
    return is_aligned(experts.pointers[0]) && experts.row_stride[0] % kSize == 0 && experts.expert_stride % kSize == 0;
  }
  for (int64_t k = 0; k < num_experts; ++k) {
    if (!is_aligned(experts.pointers[k]) || experts.row_stride[k] % kSize != 0) return false;
  }
  return true;
}

// Calls f(size, group) with the elements an access takes and the lanes a token takes, as compile-time constants.
template <typename T, typename F>
void choose_shape(bool aligned, int64_t dim, bool wide, const F& f) {
  const int64_t accesses = aligned ? dim / kWidestVector<T> : dim;
  const bool small = accesses <= kSmallGroup && !wide;
  using One = std::integral_constant<int, 1>;
  using Widest = std::integral_constant<int, kWidestVector<T>>;
  using Small = std::integral_constant<int, kSmallGroup>;
  using Warp = std::integral_constant<int, 32>;
  if (aligned) {
    small ? f(Widest{}, Small{}) : f(Widest{}, Warp{});
  } else {
    small ? f(One{}, Small{}) : f(One{}, Warp{});
  }
}

unsigned blocks_for(int64_t num_tokens, int64_t tokens_per_block) {
  return static_cast<unsigned>((num_tokens + tokens_per_block - 1) / tokens_per_block);
}

}  // namespace

void gated_mix_forward_cuda(const GatedMixForwardArgs& args) {
  if (args.num_tokens == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool aligned =
        args.dim % kWidestVector<T> == 0 && is_aligned(args.mixed) && rows_aligned<T>(args.experts, args.num_experts);
    choose_shape<T>(aligned, args.dim, false, [&](auto size, auto group) {
      launch_kernel("gated_mix_forward_kernel", gated_mix_forward_kernel<T, size(), group()>,
                    dim3(blocks_for(args.num_tokens, kThreads / group())), dim3(kThreads), 0, args.stream, args);
    });
  });
}

void gated_mix_backward_cuda(const GatedMixBackwardArgs& args) {
  if (args.num_tokens == 0 || args.num_experts == 0) return;
  const int64_t bytes_per_token = args.num_experts * static_cast<int64_t>(sizeof(float));
  if (bytes_per_token > kBackwardSmemBytes) {
    throw Error("gated_mix_backward: num_experts must be at most " +
                std::to_string(kBackwardSmemBytes / static_cast<int64_t>(sizeof(float))) + " on CUDA, got " +
                std::to_string(args.num_experts));
  }
  const bool wide = bytes_per_token * (32 / kSmallGroup) > kBackwardSmemBytes;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool aligned = args.dim % kWidestVector<T> == 0 && is_aligned(args.grad_mixed) &&
                         rows_aligned<T>(args.experts, args.num_experts) &&
                         (!args.need_grad_experts || rows_aligned<T>(args.grad_experts, args.num_experts));
    choose_shape<T>(aligned, args.dim, wide, [&](auto size, auto group) {
      // Fewer warps a block where the gate is so wide that their rows would crowd each other out.
      int threads = kThreads;
      while (threads > 32 && threads / group() * bytes_per_token > 32 * 1024) threads /= 2;
      const int64_t tokens = threads / group();
      launch_kernel("gated_mix_backward_kernel", gated_mix_backward_kernel<T, size(), group()>,
                    dim3(blocks_for(args.num_tokens, tokens)), dim3(threads),
                    static_cast<size_t>(tokens * bytes_per_token), args.stream, args);
    });
  });
}

}  // namespace xfer
