// The formulas of moe_mlp_mix, for CPU and CUDA; C is the compute type.
#pragma once

#include "common/vector_math.h"
#include "ops/moe_mlp_mix/moe_mlp_mix.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

// Elementwise activations; softmax and log_softmax need a whole row and are not among them.
template <typename C>
XFER_HD C moe_activate(Act act, C z) {
  switch (act) {
    case Act::relu:
      return z > C(0) ? z : (z != z ? z : C(0));  // NaN goes through, as in torch.relu
    case Act::tanh:
      return vector_tanh(z);
    default:
      return z;
  }
}

// The derivative, from the activation's output: nothing else has to be kept.
template <typename C>
XFER_HD C moe_activation_slope(Act act, C output) {
  switch (act) {
    case Act::relu:
      return output > C(0) ? C(1) : C(0);
    case Act::tanh:
      return C(1) - output * output;
    default:
      return C(1);
  }
}

// d loss / d z of one row element through softmax or log_softmax, from the row's output y, the gradient dy and
// `total` = sum_j dy_j y_j (softmax) or sum_j dy_j (log_softmax).
template <typename C>
XFER_HD C moe_row_activation_grad(Act act, C y, C dy, C total) {
  return act == Act::softmax ? y * (dy - total) : dy - vector_exp(y) * total;
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
