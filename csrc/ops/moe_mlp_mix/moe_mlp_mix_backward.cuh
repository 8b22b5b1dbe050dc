// The backward pass of moe_mlp_mix in two kinds of kernels, chunk of tokens by chunk of tokens:
//   tokens   (moe_mlp_mix_token_grad_cuda.cu)   recompute a tile's hidden units, write d loss / d x, and for the chunk
//                                               drop(hidden), d loss / d hidden layer, d / d z, d / d gate_logits
//   weights  (moe_mlp_mix_weight_grad_cuda.cu)  sum products of those over the chunk's tokens
// The workspace is bounded by the chunk, whatever num_tokens. Every sum has a fixed order: slices of a chunk add up in
// fp32 copies of their own over the chunks, and the slices are summed at the end, in order.
#pragma once

#include "ops/moe_mlp_mix/moe_mlp_mix_tile.cuh"

namespace xfer {

// How far the workspace may grow. Tests lower both, so that a few tokens make several chunks and long slices.
struct MoeBackwardLimits {
  int64_t chunk_bytes = 160LL * 1024 * 1024;  // of intermediate gradients kept for one chunk of tokens
  int64_t slices = 32;                        // of a chunk, each with its own sums
};
inline MoeBackwardLimits& moe_backward_limits() {
  static MoeBackwardLimits limits;
  return limits;
}

// Where the tokens' kernel leaves what the weights' kernels read; rows count from the chunk's first token.
struct MoeChunk {
  int64_t first_token, end_token;
  void* hidden;       // T[., num_experts, hidden_dim]; null: not needed
  void* grad_hidden;  // T[., num_experts, hidden_dim]
  void* grad_z;       // T[., num_experts, out_dim]
  void* grad_gate;    // T[., num_experts]
};
void moe_token_grad_cuda(const MoeMlpMixBackwardArgs& args, const MoeChunk& chunk);

// sum over tokens of A^T B, for every expert: a[token, expert, m], b[token, (expert,) n].
struct MoeWeightGradArgs {
  DType dtype;
  int64_t num_tokens;   // in this chunk
  int64_t first_token;  // of this chunk within the call, for the dropout mask
  int64_t num_experts;  // products
  int64_t m, n;
  const void* a;
  int64_t a_token_stride, a_expert_stride;
  const void* b;
  int64_t b_token_stride, b_expert_stride;
  MoeDropout dropout;  // active: b is x and takes the input mask of its expert
  const int64_t* seed_offset;
  int slices;       // of the chunk's tokens
  bool accumulate;  // false for the first chunk
  float* partial;   // [slices, num_experts, m, n]
  stream_t stream;
};
void moe_weight_grad_cuda(const MoeWeightGradArgs& args);

// sum over tokens of a[token, column].
struct MoeBiasGradArgs {
  DType dtype;
  int64_t num_tokens;
  int64_t columns;
  const void* a;
  int slices;
  bool accumulate;
  float* partial;  // [slices, columns]
  stream_t stream;
};
void moe_bias_grad_cuda(const MoeBiasGradArgs& args);

// out[i] = scale * sum over slices of partial[slice, i]; zero where there are no slices.
struct MoeFinishGradArgs {
  DType dtype;
  int64_t numel;
  int slices;
  float scale;
  const float* partial;
  void* out;
  stream_t stream;
};
void moe_finish_grad_cuda(const MoeFinishGradArgs& args);

}  // namespace xfer
