// The backward pass of moe_mlp_mix on CUDA: how tokens are cut into chunks, the workspace, and the order of kernels.
#include "ops/moe_mlp_mix/moe_mlp_mix_backward.cuh"

namespace xfer {
namespace {

constexpr int64_t kPartialBytes = 32LL * 1024 * 1024;  // of the slices of one weight's gradient beyond the first
constexpr int64_t kBlocksWanted = 512;                 // a few for each multiprocessor of the largest devices
constexpr int kBiasSlices = 64;

int64_t align_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// How tokens are cut into chunks, and byte offsets into the workspace.
struct BackwardPlan {
  int64_t chunk_tokens;
  int64_t hidden, grad_hidden, grad_z, grad_gate;  // T[chunk_tokens, num_experts, hidden | hidden | out | 1]
  int w1_slices, w2_slices, gate_slices;
  int64_t w1, w2, gate_weight;  // fp32[slices, ...] sums over chunks
  int64_t b1, b2, gate_bias;    // fp32[kBiasSlices, ...]
  int64_t bytes;
};

int slices_for(int64_t products, int64_t m, int64_t n) {
  const int64_t tiles =
      products * ((m + kPanelColumns - 1) / kPanelColumns) * ((n + kPanelColumns - 1) / kPanelColumns);
  const int64_t wanted = (kBlocksWanted + tiles - 1) / tiles;
  const int64_t affordable = 1 + kPartialBytes / (products * m * n * static_cast<int64_t>(sizeof(float)));
  const int64_t slices = wanted < affordable ? wanted : affordable;
  const int64_t most = moe_backward_limits().slices;
  return static_cast<int>(slices < most ? slices : most);
}

BackwardPlan backward_plan(const MoeMlpMixShape& shape, DType dtype) {
  const int64_t experts = shape.num_experts, in = shape.in_dim, hidden = shape.hidden_dim, out = shape.out_dim;
  const int64_t per_token = experts * (2 * hidden + out + 1) * size_of(dtype);
  const int64_t affordable = moe_backward_limits().chunk_bytes / per_token;
  // Chunks of equal length, in whole tiles.
  const int64_t tokens = shape.num_tokens > 0 ? shape.num_tokens : 1;
  const int64_t most = affordable > 64 ? affordable / 64 * 64 : 64;
  const int64_t chunks = (tokens + most - 1) / most;
  BackwardPlan plan = {};
  plan.chunk_tokens = ((tokens + chunks - 1) / chunks + 63) / 64 * 64;
  int64_t end = 0;
  const auto take = [&end](int64_t bytes) {
    const int64_t start = end;
    end += align_up(bytes);
    return start;
  };
  const int64_t rows = plan.chunk_tokens * experts * size_of(dtype);
  plan.hidden = take(rows * hidden);
  plan.grad_hidden = take(rows * hidden);
  plan.grad_z = take(rows * out);
  plan.grad_gate = take(rows);
  plan.w1_slices = slices_for(experts, hidden, in);
  plan.w2_slices = slices_for(experts, out, hidden);
  plan.gate_slices = slices_for(1, experts, in);
  const int64_t item = static_cast<int64_t>(sizeof(float));
  plan.w1 = take(plan.w1_slices * experts * hidden * in * item);
  plan.w2 = take(plan.w2_slices * experts * out * hidden * item);
  plan.gate_weight = take(plan.gate_slices * experts * in * item);
  plan.b1 = take(kBiasSlices * experts * hidden * item);
  plan.b2 = take(kBiasSlices * experts * out * item);
  plan.gate_bias = take(kBiasSlices * experts * item);
  plan.bytes = end;
  return plan;
}

// The tokens of one chunk: the tile kernel, then its weight gradients.
void run_chunk(const MoeMlpMixBackwardArgs& args, const BackwardPlan& plan, const MoeChunk& chunk) {
  const MoeMlpMixForwardArgs& forward = args.forward;
  const MoeMlpMixShape& shape = forward.shape;
  const MoeDropout dropout = moe_dropout(forward.dropout_p);
  const int64_t experts = shape.num_experts, in = shape.in_dim, hidden = shape.hidden_dim, out = shape.out_dim;
  const int64_t tokens = chunk.end_token - chunk.first_token;
  auto* workspace = static_cast<unsigned char*>(args.workspace);
  const bool accumulate = chunk.first_token > 0;
  moe_token_grad_cuda(args, chunk);

  const auto sums = [&](int64_t offset) { return reinterpret_cast<float*>(workspace + offset); };
  MoeWeightGradArgs weight = {};
  weight.dtype = forward.dtype;
  weight.num_tokens = tokens;
  weight.first_token = chunk.first_token;
  weight.num_experts = experts;
  weight.accumulate = accumulate;
  weight.stream = forward.stream;
  const void* x = static_cast<const unsigned char*>(forward.x) + chunk.first_token * in * size_of(forward.dtype);
  if (args.grad_w1 != nullptr) {
    MoeWeightGradArgs w1 = weight;
    w1.m = hidden;
    w1.n = in;
    w1.a = chunk.grad_hidden;
    w1.a_token_stride = experts * hidden;
    w1.a_expert_stride = hidden;
    w1.b = x;
    w1.b_token_stride = in;
    w1.dropout = dropout;
    w1.seed_offset = forward.seed_offset;
    w1.slices = plan.w1_slices;
    w1.partial = sums(plan.w1);
    moe_weight_grad_cuda(w1);
  }
  if (args.grad_w2 != nullptr) {
    MoeWeightGradArgs w2 = weight;
    w2.m = out;
    w2.n = hidden;
    w2.a = chunk.grad_z;
    w2.a_token_stride = experts * out;
    w2.a_expert_stride = out;
    w2.b = chunk.hidden != nullptr ? chunk.hidden
                                   : static_cast<unsigned char*>(forward.hidden) +
                                         chunk.first_token * experts * hidden * size_of(forward.dtype);
    w2.b_token_stride = experts * hidden;
    w2.b_expert_stride = hidden;
    w2.slices = plan.w2_slices;
    w2.partial = sums(plan.w2);
    moe_weight_grad_cuda(w2);
  }
  if (args.grad_gate_weight != nullptr) {
    MoeWeightGradArgs gate = weight;
    gate.num_experts = 1;
    gate.m = experts;
    gate.n = in;
    gate.a = chunk.grad_gate;
    gate.a_token_stride = experts;
    gate.b = x;
    gate.b_token_stride = in;
    gate.slices = plan.gate_slices;
    gate.partial = sums(plan.gate_weight);
    moe_weight_grad_cuda(gate);
  }
  const auto bias = [&](const void* wanted, const void* a, int64_t columns, int64_t offset) {
    if (wanted == nullptr) return;
    moe_bias_grad_cuda({forward.dtype, tokens, columns, a, kBiasSlices, accumulate, sums(offset), forward.stream});
  };
  bias(args.grad_b1, chunk.grad_hidden, experts * hidden, plan.b1);
  bias(args.grad_b2, chunk.grad_z, experts * out, plan.b2);
  bias(args.grad_gate_bias, chunk.grad_gate, experts, plan.gate_bias);
}

}  // namespace

int64_t moe_mlp_mix_backward_workspace_bytes_cuda(const MoeMlpMixShape& shape, DType dtype) {
  return moe_mlp_mix_supported_cuda(shape, dtype) ? backward_plan(shape, dtype).bytes : 0;
}

void moe_mlp_mix_backward_cuda(const MoeMlpMixBackwardArgs& args) {
  const MoeMlpMixForwardArgs& forward = args.forward;
  const MoeMlpMixShape& shape = forward.shape;
  const BackwardPlan plan = backward_plan(shape, forward.dtype);
  auto* workspace = static_cast<unsigned char*>(args.workspace);
  // Undropped units that the forward pass kept need no copy.
  const bool copy_hidden = forward.hidden == nullptr || forward.dropout_p > 0.0;
  for (int64_t first = 0; first < shape.num_tokens; first += plan.chunk_tokens) {
    const int64_t end = first + plan.chunk_tokens < shape.num_tokens ? first + plan.chunk_tokens : shape.num_tokens;
    run_chunk(args, plan,
              {first, end, copy_hidden ? workspace + plan.hidden : nullptr, workspace + plan.grad_hidden,
               workspace + plan.grad_z, workspace + plan.grad_gate});
  }
  const float scale = moe_dropout(forward.dropout_p).scale;
  const auto finish = [&](void* out, int64_t offset, int slices, int64_t numel, float factor) {
    if (out == nullptr || numel == 0) return;
    moe_finish_grad_cuda({forward.dtype, numel, shape.num_tokens > 0 ? slices : 0, factor,
                          reinterpret_cast<const float*>(workspace + offset), out, forward.stream});
  };
  const int64_t experts = shape.num_experts;
  finish(args.grad_w1, plan.w1, plan.w1_slices, experts * shape.hidden_dim * shape.in_dim, scale);
  finish(args.grad_w2, plan.w2, plan.w2_slices, experts * shape.out_dim * shape.hidden_dim, scale);
  finish(args.grad_gate_weight, plan.gate_weight, plan.gate_slices, experts * shape.in_dim, 1.0f);
  finish(args.grad_b1, plan.b1, kBiasSlices, experts * shape.hidden_dim, 1.0f);
  finish(args.grad_b2, plan.b2, kBiasSlices, experts * shape.out_dim, 1.0f);
  finish(args.grad_gate_bias, plan.gate_bias, kBiasSlices, experts, 1.0f);
}

}  // namespace xfer
