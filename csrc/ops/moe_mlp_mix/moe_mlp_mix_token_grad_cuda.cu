// CUDA kernel of moe_mlp_mix's backward pass over the tokens of a chunk: recomputes what the forward pass did not keep,
// writes d loss / d x, and leaves what the weights' gradients are made of.
#include "ops/moe_mlp_mix/moe_mlp_mix_backward.cuh"

namespace xfer {
namespace {

// act1's output as the forward pass kept it, with its mask, instead of a product.
template <typename T, int kRows, typename F>
__device__ __forceinline__ void load_hidden(const MoeMlpMixForwardArgs& args, const MoeTileLayout& layout,
                                            unsigned char* smem, const MoeDropout& dropout, int64_t first_token,
                                            int64_t valid_tokens, int64_t expert, const F& f) {
  const int hidden_dim = static_cast<int>(args.shape.hidden_dim), filled = round_up_to(hidden_dim, 16);
  T* hidden = reinterpret_cast<T*>(smem + layout.hidden);
  for (int first = 0; first < hidden_dim; first += kPanelColumns) {
    moe_for_quads<kRows>([&](int row, int panel_column) {
      const int column = first + panel_column;
      if (column >= filled) return;
      const int64_t place = (first_token + row) * args.shape.num_experts + expert;
      unsigned kept = 0xFu;
      if (dropout.active && column < hidden_dim) {
        kept = moe_kept(dropout, kMoeHiddenStream, place, hidden_dim, column / 4);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        T value = {};
        if (row < valid_tokens && column + j < hidden_dim && (kept >> j & 1u) != 0) {
          value = static_cast<const T*>(args.hidden)[place * hidden_dim + column + j];
        }
        hidden[row * layout.hidden_ld + column + j] = value;
      }
      f(row, column, kept);
    });
  }
}

// One row's d loss / d z and d loss / d log alpha of one expert, by one warp. y holds act2's output.
template <typename T>
__device__ __forceinline__ void mixture_row_backward(const MoeMlpMixBackwardArgs& args, float* y, int64_t token,
                                                     float log_weight, float* grad_log_alpha, T* grad_z_tile,
                                                     int filled, T* grad_z_out, int lane) {
  const int out_dim = static_cast<int>(args.forward.shape.out_dim);
  const Act act = args.forward.act2;
  const T* grad_out = static_cast<const T*>(args.grad_out) + token * out_dim;
  // The mix as the forward pass had it: the rounding of `out` would be an error of 2^-9 |out| in every share.
  const float* lse = args.forward.lse + token * out_dim;
  const float weight = expf(log_weight);
  const bool log_sum_exp = args.forward.mix == Mix::logsumexp;
  // d loss / d y_j; the share of this expert in a logsumexp stands where alpha stands in a sum.
  const auto grad_y = [&](int column) {
    const float share = log_sum_exp ? expf(log_weight + y[column] - lse[column]) : weight;
    return share * load_as(grad_out[column]);
  };
  float of_gate = 0.0f, total = 0.0f;
  for (int column = lane; column < out_dim; column += 32) {
    const float grad = grad_y(column);
    of_gate += log_sum_exp ? grad : load_as(grad_out[column]) * y[column];
    total += act == Act::softmax ? grad * y[column] : grad;
  }
  of_gate = group_sum<32>(of_gate);
  if (lane == 0) *grad_log_alpha = of_gate;
  const bool whole_row = act == Act::softmax || act == Act::log_softmax;
  if (whole_row) total = group_sum<32>(total);
  for (int column = lane; column < filled; column += 32) {
    T value = {};
    if (column < out_dim) {
      const float grad = grad_y(column);
      store_as(value, whole_row ? moe_row_activation_grad(act, y[column], grad, total)
                                : grad * moe_activation_slope(act, y[column]));
      grad_z_out[column] = value;
    }
    grad_z_tile[column] = value;
  }
}

// d loss / d gate_logits of the tile's rows, from d loss / d log alpha (logsumexp) or d alpha (sum).
template <typename T>
__device__ __forceinline__ void gate_backward(const MoeMlpMixBackwardArgs& args, const MoeTileLayout& layout,
                                              unsigned char* smem, const MoeChunk& chunk, int64_t first_token,
                                              int64_t valid_tokens) {
  const int num_experts = static_cast<int>(args.forward.shape.num_experts);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int filled = round_up_to(num_experts, 16);
  const bool of_alpha = args.forward.mix == Mix::sum;
  for (int row = warp; row < valid_tokens; row += kTileWarps) {
    const float* log_alpha = reinterpret_cast<const float*>(smem + layout.log_alpha) + row * num_experts;
    const float* grad = reinterpret_cast<const float*>(smem + layout.grad_log_alpha) + row * num_experts;
    T* tile = reinterpret_cast<T*>(smem + layout.grad_z) + row * layout.out_ld;
    const int64_t token = first_token + row;
    float total = 0.0f;
    for (int k = lane; k < num_experts; k += 32) total += of_alpha ? expf(log_alpha[k]) * grad[k] : grad[k];
    total = group_sum<32>(total);
    for (int k = lane; k < filled; k += 32) {
      T value = {};
      if (k < num_experts) {
        const float alpha = expf(log_alpha[k]);
        float logit = of_alpha ? alpha * (grad[k] - total) : grad[k] - alpha * total;
        if (args.grad_gate_logits != nullptr) {
          logit += load_as(static_cast<const T*>(args.grad_gate_logits)[token * num_experts + k]);
        }
        store_as(value, logit);
        static_cast<T*>(chunk.grad_gate)[(token - chunk.first_token) * num_experts + k] = value;
      }
      tile[k] = value;
    }
  }
}

// grad_x of the tile += A[rows, depth] B[depth, in_dim], with the input mask of `expert` where `dropped`.
template <typename T, int kRows>
__device__ __forceinline__ void add_to_grad_x(const MoeMlpMixForwardArgs& args, const MoeTileLayout& layout,
                                              unsigned char* smem, const T* a, int lda, const T* b, int depth,
                                              const MoeDropout& dropout, bool dropped, int64_t first_token,
                                              int64_t expert) {
  const int in_dim = static_cast<int>(args.shape.in_dim);
  float* panel = reinterpret_cast<float*>(smem + layout.z);
  float* sum = reinterpret_cast<float*>(smem + layout.sum);
  for (int first = 0; first < in_dim; first += kPanelColumns) {
    multiply_panel<T, kRows, false>(a, lda, b + first, in_dim, in_dim - first, depth,
                                    reinterpret_cast<T*>(smem + layout.stage), panel, layout.z_ld);
    moe_for_quads<kRows>([&](int row, int panel_column) {
      const int column = first + panel_column;
      if (column >= in_dim) return;
      unsigned kept = 0xFu;
      if (dropped) {
        kept = moe_kept(dropout, kMoeInputStream, (first_token + row) * args.shape.num_experts + expert, in_dim,
                        column / 4);
      }
      const float scale = dropped ? dropout.scale : 1.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float product = panel[row * layout.z_ld + panel_column + j];
        if ((kept >> j & 1u) != 0) sum[row * layout.sum_ld + column + j] += scale * product;
      }
    });
  }
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kTileThreads, 2)
    moe_token_grad_kernel(const __grid_constant__ MoeMlpMixBackwardArgs args,
                          const __grid_constant__ MoeTileLayout layout, const __grid_constant__ MoeChunk chunk,
                          MoeDropout dropout_on_host) {
  XFER_DYNAMIC_SMEM(unsigned char, smem);
  const MoeMlpMixForwardArgs& forward = args.forward;
  const int num_experts = static_cast<int>(forward.shape.num_experts);
  const int in_dim = static_cast<int>(forward.shape.in_dim);
  const int hidden_dim = static_cast<int>(forward.shape.hidden_dim);
  const int out_dim = static_cast<int>(forward.shape.out_dim);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first_token = chunk.first_token + static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t left = chunk.end_token - first_token, valid_tokens = left < kRows ? left : kRows;
  const MoeDropout dropout = dropout_on_host.on_device(forward.seed_offset);
  const T* x = static_cast<const T*>(forward.x);
  T* x_tile = reinterpret_cast<T*>(smem + layout.x);
  T* hidden = reinterpret_cast<T*>(smem + layout.hidden);
  T* grad_z = reinterpret_cast<T*>(smem + layout.grad_z);
  T* stage = reinterpret_cast<T*>(smem + layout.stage);
  unsigned char* kept_units = smem + layout.kept;
  float* z = reinterpret_cast<float*>(smem + layout.z);
  float* sum = reinterpret_cast<float*>(smem + layout.sum);
  float* log_alpha = reinterpret_cast<float*>(smem + layout.log_alpha);
  float* grad_log_alpha = reinterpret_cast<float*>(smem + layout.grad_log_alpha);

  for (int row = warp; row < valid_tokens; row += kTileWarps) {
    const T* logits = static_cast<const T*>(forward.gate_logits) + (first_token + row) * num_experts;
    const RowSoftmax norm = group_softmax<32>(logits, num_experts, lane);
    for (int k = lane; k < num_experts; k += 32) {
      log_alpha[row * num_experts + k] = norm.log_probability(load_as(logits[k]));
    }
  }
  for (int first = 0; first < in_dim; first += kPanelColumns) {
    moe_for_quads<kRows>([&](int row, int column) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[row * layout.sum_ld + first + column + j] = 0.0f;
    });
  }
  if (forward.hidden == nullptr && !dropout.active) {
    stage_matrix(x_tile, layout.in_ld, x + first_token * in_dim, in_dim, valid_tokens, in_dim, kRows,
                 round_up_to(in_dim, 16));
  }
  __syncwarp();

  for (int expert = 0; expert < num_experts; ++expert) {
    // Place of (row, expert) in the chunk's buffers.
    const auto chunk_place = [&](int row) {
      return (first_token - chunk.first_token + row) * num_experts + static_cast<int64_t>(expert);
    };
    const auto note_hidden = [&](int row, int column, unsigned kept) {
      kept_units[row * (layout.hidden_ld / 4) + column / 4] = static_cast<unsigned char>(kept);
      if (chunk.hidden == nullptr || row >= valid_tokens) return;
      T* out = static_cast<T*>(chunk.hidden) + chunk_place(row) * hidden_dim;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (column + j < hidden_dim) out[column + j] = hidden[row * layout.hidden_ld + column + j];
      }
    };
    if (forward.hidden != nullptr) {
      load_hidden<T, kRows>(forward, layout, smem, dropout, first_token, valid_tokens, expert, note_hidden);
    } else {
      if (dropout.active) {
        moe_stage_dropped(x_tile, layout.in_ld, x, first_token, kRows, valid_tokens, in_dim, 0, round_up_to(in_dim, 16),
                          dropout, num_experts, expert);
      }
      moe_first_layer<T, kRows>(forward, layout, smem, dropout, first_token, valid_tokens, expert,
                                static_cast<T*>(nullptr), note_hidden);
    }
    if (forward.expert_out == nullptr) moe_second_layer<T, kRows>(forward, layout, smem, expert);
    // Without a product in between, z may still be read as the previous expert's panel.
    if (forward.expert_out != nullptr) __syncthreads();
    const T* bias = static_cast<const T*>(forward.b2) + static_cast<int64_t>(expert) * out_dim;
    for (int row = warp; row < valid_tokens; row += kTileWarps) {
      float* y = z + row * layout.z_ld;
      if (forward.expert_out == nullptr) {
        moe_activate_row(forward.act2, y, bias, dropout.scale, out_dim, lane);
      } else {
        const T* from =
            static_cast<const T*>(forward.expert_out) + ((first_token + row) * num_experts + expert) * out_dim;
        for (int column = lane; column < out_dim; column += 32) y[column] = load_as(from[column]);
      }
      mixture_row_backward(args, y, first_token + row, log_alpha[row * num_experts + expert],
                           grad_log_alpha + row * num_experts + expert, grad_z + row * layout.out_ld,
                           round_up_to(out_dim, 16), static_cast<T*>(chunk.grad_z) + chunk_place(row) * out_dim, lane);
    }
    for (int first = 0; first < hidden_dim; first += kPanelColumns) {
      multiply_panel<T, kRows, false>(
          grad_z, layout.out_ld,
          static_cast<const T*>(forward.w2) + static_cast<int64_t>(expert) * out_dim * hidden_dim + first, hidden_dim,
          hidden_dim - first, out_dim, stage, z, layout.z_ld);
      moe_for_quads<kRows>([&](int row, int panel_column) {
        const int column = first + panel_column;
        if (column >= hidden_dim) return;
        const unsigned kept = kept_units[row * (layout.hidden_ld / 4) + column / 4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (column + j >= hidden_dim) continue;
          T& unit = hidden[row * layout.hidden_ld + column + j];
          const float grad = z[row * layout.z_ld + panel_column + j] * dropout.scale;
          T value = {};
          if ((kept >> j & 1u) != 0) store_as(value, grad * moe_activation_slope(forward.act1, float(load_as(unit))));
          unit = value;
          if (row < valid_tokens)
            static_cast<T*>(chunk.grad_hidden)[chunk_place(row) * hidden_dim + column + j] = value;
        }
      });
    }
    if (args.grad_x != nullptr) {
      add_to_grad_x<T, kRows>(forward, layout, smem, hidden, layout.hidden_ld,
                              static_cast<const T*>(forward.w1) + static_cast<int64_t>(expert) * hidden_dim * in_dim,
                              hidden_dim, dropout, dropout.active, first_token, expert);
    }
  }

  gate_backward<T>(args, layout, smem, chunk, first_token, valid_tokens);
  if (args.grad_x == nullptr) return;
  if (!args.detach_gate_input) {
    add_to_grad_x<T, kRows>(forward, layout, smem, grad_z, layout.out_ld, static_cast<const T*>(forward.gate_weight),
                            num_experts, dropout, false, first_token, 0);
  }
  for (int first = 0; first < in_dim; first += kPanelColumns) {
    moe_for_quads<kRows>([&](int row, int panel_column) {
      const int column = first + panel_column;
      if (row >= valid_tokens) return;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (column + j >= in_dim) continue;
        store_as(static_cast<T*>(args.grad_x)[(first_token + row) * in_dim + column + j],
                 sum[row * layout.sum_ld + column + j]);
      }
    });
  }
}

}  // namespace

void moe_token_grad_cuda(const MoeMlpMixBackwardArgs& args, const MoeChunk& chunk) {
  const MoeMlpMixForwardArgs& forward = args.forward;
  const int64_t tokens = chunk.end_token - chunk.first_token;
  dispatch_device_dtype(forward.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    moe_dispatch_rows(moe_tile_rows(forward.shape, forward.dtype, true), [&](auto rows) {
      const MoeTileLayout layout = moe_tile_layout(forward.shape, sizeof(T), rows(), true);
      launch_kernel("moe_token_grad_kernel", moe_token_grad_kernel<T, rows()>,
                    dim3(static_cast<unsigned>((tokens + rows() - 1) / rows())), dim3(kTileThreads),
                    static_cast<size_t>(layout.bytes), forward.stream, args, layout, chunk,
                    moe_dropout(forward.dropout_p));
    });
  });
}

}  // namespace xfer
