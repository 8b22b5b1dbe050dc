// The formulas of inbatch_softmax_loss, for CPU and CUDA; C is the compute type (fp32, or fp64 for fp64).
#pragma once

#include <cmath>

#include "common/vector_math.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

// Whether row i does not see column j (never asked of its own positive).
XFER_HD bool inbatch_masked(int64_t row_id, int64_t col_id, int64_t absent) {
  return col_id == absent || (col_id == row_id && row_id >= 0);
}
XFER_HD bool inbatch_hard_masked(int64_t row_id, int64_t hard_id) {
  return hard_id < 0 || (hard_id == row_id && row_id >= 0);
}

// A masked column lies in the block as a similarity of -inf, and keeps a logit of -inf under any scale.
template <typename C>
XFER_HD C inbatch_logit(C scale, C sim) {
  return sim == -C(INFINITY) ? -C(INFINITY) : scale * sim;
}

// exp(z - m), where m is the row's largest logit: 0 where both are -inf.
template <typename C>
XFER_HD C inbatch_weight(C logit, C maximum) {
  return logit == -C(INFINITY) ? C(0) : vector_exp(logit - maximum);
}

// The statistics of a row from its largest logit m, t = sum of exp(z - m) over the others, and the positive's logit.
// loss = log(1 + t e^(m - z_y)): no cancellation as t goes to 0, and no overflow as the positive drops.
template <typename C>
struct InbatchRow {
  C lse, loss, inverse_sum;
};

template <typename C>
XFER_HD InbatchRow<C> inbatch_row(C maximum, C rest, C pos_logit) {
  const C own = vector_exp(pos_logit - maximum);
  const C sum = rest + own;
  InbatchRow<C> out;
  out.lse = maximum + std::log(sum);
  out.loss = pos_logit == maximum ? std::log1p(rest) : (maximum - pos_logit) + std::log(sum);
  out.inverse_sum = C(1) / sum;
  return out;
}

// Whether a competitor is not below the positive; NaN on either side counts against the positive.
template <typename C>
XFER_HD bool inbatch_beats(C sim, C pos_sim) {
  return !(sim < pos_sim);
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
