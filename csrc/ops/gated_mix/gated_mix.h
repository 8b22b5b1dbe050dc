// gated_mix: mixed[n] = sum_k softmax(logits[n])_k * expert_k[n], with the gate's NLL in the same pass.
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

// Separate expert tensors are handed to a kernel by value, so their number is bounded; the bindings stack more.
constexpr int kGatedMixMaxPointers = 64;

// experts[k][n][j] lies at pointers[k] + n * row_stride[k] + j. A stacked [num_tokens, num_experts, dim] tensor is one
// base pointer: stacked = true, pointers[0], row_stride[0] between tokens and expert_stride between experts.
struct GatedMixExperts {
  const void* pointers[kGatedMixMaxPointers];
  int64_t row_stride[kGatedMixMaxPointers];
  int64_t expert_stride;
  bool stacked;
};

struct GatedMixForwardArgs {
  DType dtype;              // logits, experts, mixed
  int64_t num_tokens;       // N
  int64_t num_experts;      // K
  int64_t dim;              // D
  const void* logits;       // [N, K] contiguous
  GatedMixExperts experts;  // K x [N, D], last dimension contiguous
  const int64_t* targets;   // [N] or null
  int64_t ignore_index;     // a target of this value has gate_nll 0
  void* mixed;              // [N, D] contiguous
  void* gate_nll;           // [N] fp32 (fp64 where dtype is f64)
  int32_t* status;          // CUDA: bit 0 is set by a target out of range; null: no flag
  stream_t stream;          // CUDA only
};

struct GatedMixBackwardArgs {
  DType dtype;  // logits, experts, grad_mixed and their gradients
  int64_t num_tokens;
  int64_t num_experts;
  int64_t dim;
  const void* grad_mixed;  // [N, D] contiguous
  const void* grad_nll;    // [N] fp32 (fp64 where dtype is f64) or null
  const void* logits;      // [N, K] contiguous
  GatedMixExperts experts;
  const int64_t* targets;  // [N] or null
  int64_t ignore_index;
  void* grad_logits;             // [N, K] contiguous
  GatedMixExperts grad_experts;  // same layout rule; written, so its pointers are not really const
  bool need_grad_experts;
  stream_t stream;
};

// d logit_k = alpha_k (<g, e_k> - sum_j alpha_j <g, e_j>) + g_nll (alpha_k - [k = target]);  d e_k = alpha_k g.
void gated_mix_forward_cpu(const GatedMixForwardArgs& args);
void gated_mix_backward_cpu(const GatedMixBackwardArgs& args);
void gated_mix_forward_cuda(const GatedMixForwardArgs& args);
void gated_mix_backward_cuda(const GatedMixBackwardArgs& args);

}  // namespace xfer
