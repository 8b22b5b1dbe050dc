// What the forward and backward kernels of moe_mlp_mix share: how a block's shared memory is laid out, and the steps
// that turn a tile of tokens into hidden units.
//
// A block owns kRows tokens and loops over the experts. Its 8 warps either multiply a panel together or take rows:
// row r belongs to warp r % 8, whose lanes go over columns.
#pragma once

#include "common/mma_tile.cuh"
#include "common/philox.h"
#include "ops/moe_mlp_mix/moe_mlp_mix.h"
#include "ops/moe_mlp_mix/moe_mlp_mix_math.h"

namespace xfer {

// Shared memory that a block can have, and that the blocks of a multiprocessor share.
struct SmemLimits {
  int64_t block;
  int64_t multiprocessor;
};

inline SmemLimits smem_limits() {
#if defined(XFER_SIMT)
  return {163 * 1024, 164 * 1024};  // sm_80's
#else
  int device = 0, block = 0, multiprocessor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  return {block, multiprocessor};
#endif
}

// Byte offsets into dynamic shared memory, and row lengths in elements. Backward-only parts are empty in the forward.
struct MoeTileLayout {
  int rows;
  int in_ld, hidden_ld, out_ld;  // rows of T, zero-filled up to a multiple of 16 columns
  int z_ld, sum_ld;              // rows of fp32
  int x;                         // T[rows, in_ld]          drop(x)
  int hidden;                    // T[rows, hidden_ld]      drop(hidden), then d loss / d (first layer's output)
  int kept;                      // bytes[rows, hidden_dim / 4]  which of four units dropout kept
  int grad_z;                    // T[rows, out_ld]         d loss / d z, at the end d loss / d gate_logits
  int z;                         // fp32[rows, z_ld]        a product's panel; second layer's output
  int sum;                       // fp32[rows, sum_ld]      forward: out; backward: d loss / d x
  int log_alpha;                 // fp32[rows, num_experts]
  int grad_log_alpha;            // fp32[rows, num_experts]
  int stage;                     // T[kStageElements]
  int64_t bytes;
};

inline MoeTileLayout moe_tile_layout(const MoeMlpMixShape& shape, int64_t element_size, int rows, bool backward) {
  const int pad = static_cast<int>(16 / element_size);
  const int64_t gate = shape.num_experts, in = shape.in_dim, hidden = shape.hidden_dim, out = shape.out_dim;
  MoeTileLayout layout = {};
  layout.rows = rows;
  layout.in_ld = round_up_to(in, 16) + pad;
  layout.hidden_ld = round_up_to(hidden, 16) + pad;
  layout.out_ld = round_up_to(out > gate ? out : gate, 16) + pad;
  layout.z_ld = round_up_to(out, kPanelColumns) + 4;
  layout.sum_ld = backward ? round_up_to(in, kPanelColumns) + 4 : round_up_to(out, 4);
  int64_t end = 0;
  const auto take = [&end](int64_t bytes) {
    const int64_t start = end;
    end += (bytes + 127) / 128 * 128;
    return static_cast<int>(start);
  };
  layout.x = take(rows * layout.in_ld * element_size);
  layout.hidden = take(rows * layout.hidden_ld * element_size);
  layout.kept = take(backward ? rows * (layout.hidden_ld / 4) : 0);
  layout.grad_z = take(backward ? rows * layout.out_ld * element_size : 0);
  layout.z = take(rows * layout.z_ld * static_cast<int64_t>(sizeof(float)));
  layout.sum = take(rows * layout.sum_ld * static_cast<int64_t>(sizeof(float)));
  layout.log_alpha = take(rows * gate * static_cast<int64_t>(sizeof(float)));
  layout.grad_log_alpha = take(backward ? rows * gate * static_cast<int64_t>(sizeof(float)) : 0);
  layout.stage =
      take(kPanelColumns * (element_size == 2 ? kStageDepth<bf16_t> + pad : kStageDepth<float> + pad) * element_size);
  layout.bytes = end;
  return layout;
}

// More dimensions than any tile could hold would overflow the layout's integers before they exceed its limit.
constexpr int64_t kMoeLargestDim = 4096;

inline bool moe_shape_in_range(const MoeMlpMixShape& shape) {
  const auto in_range = [](int64_t size) { return size >= 1 && size <= kMoeLargestDim; };
  return in_range(shape.num_experts) && in_range(shape.in_dim) && in_range(shape.hidden_dim) && in_range(shape.out_dim);
}

// The rows of a tile, 0 where not even the smallest fits. More rows read the weights less often, but a second block on
// the multiprocessor comes first: it computes while the other one waits for its weights.
inline int moe_tile_rows(const MoeMlpMixShape& shape, DType dtype, bool backward) {
  if (!moe_shape_in_range(shape)) return 0;
  const SmemLimits limits = smem_limits();
  const int64_t reserved = 1024;  // what the system takes of every block's share
  const auto fits = [&](int rows, int64_t limit) {
    return moe_tile_layout(shape, size_of(dtype), rows, backward).bytes <= limit;
  };
  for (const int rows : {64, 32}) {
    if (fits(rows, limits.multiprocessor / 2 - reserved)) return rows;
  }
  for (const int rows : {64, 32, 16}) {
    if (fits(rows, limits.block)) return rows;
  }
  return 0;
}

// Calls f(std::integral_constant<int, rows>).
template <typename F>
void moe_dispatch_rows(int rows, const F& f) {
  switch (rows) {
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 32:
      return f(std::integral_constant<int, 32>{});
    case 16:
      return f(std::integral_constant<int, 16>{});
    default:
      throw Error("moe_mlp_mix: a token's tile exceeds a block's shared memory; see moe_mlp_mix_supported_cuda");
  }
}

// Dropout of a call. The masks are random per token, expert, layer and unit; seed and offset lie on the device.
struct MoeDropout {
  PhiloxState state;
  uint64_t threshold;
  float scale;  // 1 / (1 - p); applied to sums, so that a dropped product stays exact in T
  bool active;

  __device__ __forceinline__ MoeDropout on_device(const int64_t* seed_offset) const {
    MoeDropout dropout = *this;
    if (active) dropout.state = {seed_offset[0], seed_offset[1]};
    return dropout;
  }
};

inline MoeDropout moe_dropout(double p) {
  return {{0, 0}, drop_threshold(p), static_cast<float>(1.0 / (1.0 - p)), p > 0.0};
}

// Bit j is set where unit 4 * quad + j of `row` = token * num_experts + expert is kept.
__device__ __forceinline__ unsigned moe_kept(const MoeDropout& dropout, uint32_t stream, int64_t row, int units,
                                             int quad) {
  const Philox4 bits = philox_words(dropout.state, stream, static_cast<uint64_t>(row * ((units + 3) / 4) + quad));
  unsigned kept = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) kept |= (bits.word[j] >= dropout.threshold ? 1u : 0u) << j;
  return kept;
}

// dst[rows, columns of T] = x of the given tokens with the input mask of `expert`; unscaled.
template <typename T>
__device__ __forceinline__ void moe_stage_dropped(T* dst, int dst_ld, const T* x, int64_t first_token, int rows,
                                                  int64_t valid_tokens, int in_dim, int first_column, int columns,
                                                  const MoeDropout& dropout, int64_t num_experts, int64_t expert) {
  const int per_row = columns / 4;
  for (int i = static_cast<int>(threadIdx.x); i < rows * per_row; i += kTileThreads) {
    const int row = i / per_row, column = first_column + i % per_row * 4;
    const int64_t token = first_token + row;
    const bool inside = row < valid_tokens && column < in_dim;
    const unsigned kept =
        inside ? moe_kept(dropout, kMoeInputStream, token * num_experts + expert, in_dim, column / 4) : 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      T value = {};
      if ((kept >> j & 1u) != 0 && column + j < in_dim) value = x[token * in_dim + column + j];
      dst[row * dst_ld + column - first_column + j] = value;
    }
  }
}

// Calls f(row, column) for every fourth column of a panel's kRows x 64 results, always by the same thread.
template <int kRows, typename F>
__device__ __forceinline__ void moe_for_quads(const F& f) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * (kPanelColumns / 4); i += kTileThreads) {
    f(i / (kPanelColumns / 4), i % (kPanelColumns / 4) * 4);
  }
}

// The first layer of one expert: x in shared memory, drop(act1(...)) into `hidden`, act1's output to global memory
// where it is kept. f(row, column, four kept bits) is called for what a backward pass needs besides.
template <typename T, int kRows, typename F>
__device__ __forceinline__ void moe_first_layer(const MoeMlpMixForwardArgs& args, const MoeTileLayout& layout,
                                                unsigned char* smem, const MoeDropout& dropout, int64_t first_token,
                                                int64_t valid_tokens, int64_t expert, T* keep, const F& f) {
  const int in_dim = static_cast<int>(args.shape.in_dim), hidden_dim = static_cast<int>(args.shape.hidden_dim);
  const T* weight = static_cast<const T*>(args.w1) + expert * hidden_dim * in_dim;
  const T* bias = static_cast<const T*>(args.b1) + expert * hidden_dim;
  float* z = reinterpret_cast<float*>(smem + layout.z);
  T* hidden = reinterpret_cast<T*>(smem + layout.hidden);
  const int filled = round_up_to(hidden_dim, 16);
  for (int first = 0; first < hidden_dim; first += kPanelColumns) {
    multiply_panel<T, kRows, true>(reinterpret_cast<const T*>(smem + layout.x), layout.in_ld,
                                   weight + static_cast<int64_t>(first) * in_dim, in_dim, hidden_dim - first, in_dim,
                                   reinterpret_cast<T*>(smem + layout.stage), z, layout.z_ld);
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
        if (column + j < hidden_dim) {
          const float sum = z[row * layout.z_ld + panel_column + j];
          store_as(value, moe_activate(args.act1, fmaf(sum, dropout.scale, float(load_as(bias[column + j])))));
          if (keep != nullptr && row < valid_tokens) keep[place * hidden_dim + column + j] = value;
          if ((kept >> j & 1u) == 0) value = T{};
        }
        hidden[row * layout.hidden_ld + column + j] = value;
      }
      f(row, column, kept);
    });
  }
}

// z = (second layer's product without scale and bias) for all of out_dim.
template <typename T, int kRows>
__device__ __forceinline__ void moe_second_layer(const MoeMlpMixForwardArgs& args, const MoeTileLayout& layout,
                                                 unsigned char* smem, int64_t expert) {
  const int hidden_dim = static_cast<int>(args.shape.hidden_dim), out_dim = static_cast<int>(args.shape.out_dim);
  const T* weight = static_cast<const T*>(args.w2) + expert * out_dim * hidden_dim;
  float* z = reinterpret_cast<float*>(smem + layout.z);
  for (int first = 0; first < out_dim; first += kPanelColumns) {
    multiply_panel<T, kRows, true>(reinterpret_cast<const T*>(smem + layout.hidden), layout.hidden_ld,
                                   weight + static_cast<int64_t>(first) * hidden_dim, hidden_dim, out_dim - first,
                                   hidden_dim, reinterpret_cast<T*>(smem + layout.stage), z + first, layout.z_ld);
  }
}

// y = act2(z * scale + bias) in place for one row, by one warp.
template <typename T>
__device__ __forceinline__ void moe_activate_row(Act act, float* z, const T* bias, float scale, int out_dim, int lane) {
  float maximum = -INFINITY;
  for (int column = lane; column < out_dim; column += 32) {
    const float value = moe_activate(act, fmaf(z[column], scale, float(load_as(bias[column]))));
    z[column] = value;
    maximum = fmaxf(maximum, value);
  }
  if (act != Act::softmax && act != Act::log_softmax) return;
  maximum = group_max<32>(maximum);
  float sum = 0.0f;
  for (int column = lane; column < out_dim; column += 32) sum += expf(z[column] - maximum);
  sum = group_sum<32>(sum);
  const float inverse = reciprocal(sum), log_sum = logf(sum);
  for (int column = lane; column < out_dim; column += 32) {
    z[column] = act == Act::softmax ? expf(z[column] - maximum) * inverse : z[column] - maximum - log_sum;
  }
}

}  // namespace xfer
