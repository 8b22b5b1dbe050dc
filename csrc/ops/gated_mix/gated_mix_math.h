// The formulas of gated_mix, for CPU and CUDA; C is the compute type (fp32, or fp64 for fp64).
#pragma once

#include "common/host_device.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

enum class TargetKind { valid, ignored, out_of_range };

XFER_HD TargetKind gated_mix_target_kind(int64_t target, int64_t num_experts, int64_t ignore_index) {
  if (target == ignore_index) return TargetKind::ignored;
  return target >= 0 && target < num_experts ? TargetKind::valid : TargetKind::out_of_range;
}

// d loss / d logit_k for alpha = softmax(logits):
// grad_alpha_k = <grad_mixed, expert_k>, mean_grad_alpha = sum_j alpha_j grad_alpha_j.
template <typename C>
XFER_HD C gated_mix_grad_logit(C alpha, C grad_alpha, C mean_grad_alpha, C grad_nll, bool is_target) {
  return alpha * (grad_alpha - mean_grad_alpha) + grad_nll * (alpha - (is_target ? C(1) : C(0)));
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
