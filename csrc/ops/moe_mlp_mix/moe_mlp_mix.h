// moe_mlp_mix: a dense mixture of two-layer experts whose hidden states stay in cache or on chip.
//
//   alpha = softmax(gate_logits),  gate_logits = x Wg^T + bg
//   hidden_k = act1(W1_k drop(x) + b1_k),  z_k = W2_k drop(hidden_k) + b2_k,  y_k = act2(z_k)
//   mix "sum":       out = sum_k alpha_k y_k
//   mix "logsumexp": out = log sum_k alpha_k exp(y_k)
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

enum class Act : int32_t { none, relu, tanh, softmax, log_softmax };  // the last two over out_dim, act2 only
enum class Mix : int32_t { sum, logsumexp };

// Row-major C[m, n] = beta * C + op(A)[m, k] op(B)[k, n] in fp32 (is_double: fp64); serial where called in parallel.
// The host kernels own no GEMM: the bindings hand in ATen's.
using HostGemm = void (*)(bool is_double, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const void* a,
                          int64_t lda, const void* b, int64_t ldb, double beta, void* c, int64_t ldc);

// More threads than this share the work of so many; scratch slots live on the stack.
constexpr int kMoeMaxWorkers = 256;

// Dropout streams of philox.h: row = token * num_experts + expert, group = row * ceil(units / 4) + unit / 4.
constexpr uint32_t kMoeInputStream = 0;
constexpr uint32_t kMoeHiddenStream = 1;

struct MoeMlpMixShape {
  int64_t num_tokens;   // N
  int64_t num_experts;  // K
  int64_t in_dim;       // d
  int64_t hidden_dim;   // h
  int64_t out_dim;      // D
};

struct MoeMlpMixForwardArgs {
  DType dtype;  // x, weights, biases, out, gate_logits, hidden, expert_out
  MoeMlpMixShape shape;
  Act act1, act2;
  Mix mix;
  double dropout_p;
  const int64_t* seed_offset;  // [2] on the device of x; null where dropout_p = 0
  const void* x;               // [N, d]
  const void* gate_weight;     // [K, d]
  const void* gate_bias;       // [K]
  const void* w1;              // [K, h, d]
  const void* b1;              // [K, h]
  const void* w2;              // [K, D, h]
  const void* b2;              // [K, D]
  void* out;                   // [N, D]
  void* gate_logits;           // [N, K]
  void* hidden;                // [N, K, h] act1's output before dropout, or null: not kept
  void* expert_out;            // [N, K, D] act2's output, or null: not kept
  float* lse;                  // [N, D] CUDA, logsumexp: out before it is rounded, for the backward pass; else null
  HostGemm gemm;               // CPU only
  void* scratch;               // CPU: moe_mlp_mix_{forward,backward}_scratch_bytes; CUDA: null
  int workers;                 // CPU: threads that may run (<= kMoeMaxWorkers), the number of scratch slots
  stream_t stream;             // CUDA only
};

struct MoeMlpMixBackwardArgs {
  MoeMlpMixForwardArgs forward;  // as in the forward pass; hidden and expert_out null where they were not kept
  const void* grad_out;          // [N, D]
  const void* grad_gate_logits;  // [N, K] or null
  bool detach_gate_input;        // the gate's logits send no gradient into x
  // Gradients in the dtype of their tensor; any may be null: not wanted.
  void* grad_x;            // [N, d]
  void* grad_gate_weight;  // [K, d]
  void* grad_gate_bias;    // [K]
  void* grad_w1;           // [K, h, d]
  void* grad_b1;           // [K, h]
  void* grad_w2;           // [K, D, h]
  void* grad_b2;           // [K, D]
  void* workspace;         // CUDA: moe_mlp_mix_backward_workspace_bytes_cuda; CPU: null
};

// Bytes of scratch for a pass on the CPU.
int64_t moe_mlp_mix_forward_scratch_bytes(const MoeMlpMixShape& shape, DType dtype, int workers);
int64_t moe_mlp_mix_backward_scratch_bytes(const MoeMlpMixShape& shape, DType dtype, int workers);

void moe_mlp_mix_forward_cpu(const MoeMlpMixForwardArgs& args);
void moe_mlp_mix_backward_cpu(const MoeMlpMixBackwardArgs& args);

// True where the fused CUDA kernels take this shape and dtype; elsewhere the bindings compose ATen's GEMMs with them.
bool moe_mlp_mix_supported_cuda(const MoeMlpMixShape& shape, DType dtype);
int64_t moe_mlp_mix_backward_workspace_bytes_cuda(const MoeMlpMixShape& shape, DType dtype);
void moe_mlp_mix_forward_cuda(const MoeMlpMixForwardArgs& args);
void moe_mlp_mix_backward_cuda(const MoeMlpMixBackwardArgs& args);

}  // namespace xfer
