// CUDA kernel of moe_mlp_mix's forward pass: gate, experts and mixture of a tile of tokens in one block.
// Nothing of size [num_tokens, num_experts, ...] is written unless the caller keeps it for the backward pass.
#include "ops/moe_mlp_mix/moe_mlp_mix_tile.cuh"

namespace xfer {
namespace {

// log(exp(a) + exp(b)); -inf is the neutral element, NaN goes through.
__device__ __forceinline__ float log_add(float a, float b) {
  const float larger = fmaxf(a, b), smaller = fminf(a, b);
  if (a != a || b != b) return a + b;
  if (smaller == -INFINITY || larger == INFINITY) return larger;
  return larger + log1pf(expf(smaller - larger));
}

// gate_logits of the tile to global memory, their log-softmax, from the values as stored, to shared memory.
template <typename T, int kRows>
__device__ __forceinline__ void run_gate(const MoeMlpMixForwardArgs& args, const MoeTileLayout& layout,
                                         unsigned char* smem, int64_t first_token, int64_t valid_tokens) {
  const int num_experts = static_cast<int>(args.shape.num_experts), in_dim = static_cast<int>(args.shape.in_dim);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const T* weight = static_cast<const T*>(args.gate_weight);
  const T* bias = static_cast<const T*>(args.gate_bias);
  const float* z = reinterpret_cast<const float*>(smem + layout.z);
  float* log_alpha = reinterpret_cast<float*>(smem + layout.log_alpha);
  for (int first = 0; first < num_experts; first += kPanelColumns) {
    multiply_panel<T, kRows, true>(reinterpret_cast<const T*>(smem + layout.x), layout.in_ld,
                                   weight + static_cast<int64_t>(first) * in_dim, in_dim, num_experts - first, in_dim,
                                   reinterpret_cast<T*>(smem + layout.stage), reinterpret_cast<float*>(smem + layout.z),
                                   layout.z_ld);
    for (int row = warp; row < valid_tokens; row += kTileWarps) {
      for (int column = lane; column < kPanelColumns && first + column < num_experts; column += 32) {
        T logit;
        store_as(logit, z[row * layout.z_ld + column] + load_as(bias[first + column]));
        static_cast<T*>(args.gate_logits)[(first_token + row) * num_experts + first + column] = logit;
        log_alpha[row * num_experts + first + column] = load_as(logit);
      }
    }
  }
  for (int row = warp; row < valid_tokens; row += kTileWarps) {
    float* logits = log_alpha + row * num_experts;  // column k is written and read by lane k % 32 alone
    const RowSoftmax norm = group_softmax<32>(logits, num_experts, lane);
    for (int k = lane; k < num_experts; k += 32) logits[k] = norm.log_probability(logits[k]);
  }
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kTileThreads, 2)
    moe_mlp_mix_forward_kernel(const __grid_constant__ MoeMlpMixForwardArgs args,
                               const __grid_constant__ MoeTileLayout layout, MoeDropout dropout_on_host) {
  XFER_DYNAMIC_SMEM(unsigned char, smem);
  const int64_t num_experts = args.shape.num_experts;
  const int in_dim = static_cast<int>(args.shape.in_dim), out_dim = static_cast<int>(args.shape.out_dim);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t left = args.shape.num_tokens - first_token, valid_tokens = left < kRows ? left : kRows;
  const MoeDropout dropout = dropout_on_host.on_device(args.seed_offset);
  const T* x = static_cast<const T*>(args.x);
  T* x_tile = reinterpret_cast<T*>(smem + layout.x);
  float* z = reinterpret_cast<float*>(smem + layout.z);
  float* sum = reinterpret_cast<float*>(smem + layout.sum);
  const float* log_alpha = reinterpret_cast<const float*>(smem + layout.log_alpha);

  stage_matrix(x_tile, layout.in_ld, x + first_token * in_dim, in_dim, valid_tokens, in_dim, kRows,
               round_up_to(in_dim, 16));
  run_gate<T, kRows>(args, layout, smem, first_token, valid_tokens);
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    if (dropout.active) {
      moe_stage_dropped(x_tile, layout.in_ld, x, first_token, kRows, valid_tokens, in_dim, 0, round_up_to(in_dim, 16),
                        dropout, num_experts, expert);
    }
    moe_first_layer<T, kRows>(args, layout, smem, dropout, first_token, valid_tokens, expert,
                              static_cast<T*>(args.hidden), [](int, int, unsigned) {});
    moe_second_layer<T, kRows>(args, layout, smem, expert);
    const T* bias = static_cast<const T*>(args.b2) + expert * out_dim;
    for (int row = warp; row < valid_tokens; row += kTileWarps) {
      float* y = z + row * layout.z_ld;
      float* mixed = sum + row * layout.sum_ld;
      moe_activate_row(args.act2, y, bias, dropout.scale, out_dim, lane);
      const float log_weight = log_alpha[row * num_experts + expert], weight = expf(log_weight);
      const int64_t place = (first_token + row) * num_experts + expert;
      for (int column = lane; column < out_dim; column += 32) {
        if (args.expert_out != nullptr) store_as(static_cast<T*>(args.expert_out)[place * out_dim + column], y[column]);
        float total;
        if (args.mix == Mix::sum) {
          total = fmaf(weight, y[column], expert == 0 ? 0.0f : mixed[column]);
        } else {
          total = log_add(expert == 0 ? -INFINITY : mixed[column], log_weight + y[column]);
        }
        mixed[column] = total;
        if (expert == num_experts - 1) {
          const int64_t at = (first_token + row) * out_dim + column;
          store_as(static_cast<T*>(args.out)[at], total);
          if (args.lse != nullptr) args.lse[at] = total;
        }
      }
    }
  }
}

}  // namespace

bool moe_mlp_mix_supported_cuda(const MoeMlpMixShape& shape, DType dtype) {
  return dtype != DType::f64 && moe_tile_rows(shape, dtype, false) > 0 && moe_tile_rows(shape, dtype, true) > 0;
}

void moe_mlp_mix_forward_cuda(const MoeMlpMixForwardArgs& args) {
  if (args.shape.num_tokens == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    moe_dispatch_rows(moe_tile_rows(args.shape, args.dtype, false), [&](auto rows) {
      const MoeTileLayout layout = moe_tile_layout(args.shape, sizeof(T), rows(), false);
      const int64_t blocks = (args.shape.num_tokens + rows() - 1) / rows();
      launch_kernel("moe_mlp_mix_forward_kernel", moe_mlp_mix_forward_kernel<T, rows()>,
                    dim3(static_cast<unsigned>(blocks)), dim3(kTileThreads), static_cast<size_t>(layout.bytes),
                    args.stream, args, layout, moe_dropout(args.dropout_p));
    });
  });
}

}  // namespace xfer
