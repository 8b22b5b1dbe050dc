// grad_reverse: the backward pass alone needs a kernel, out = -(scale * lam) * grad; the forward pass is a view.
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

struct GradReverseBackwardArgs {
  DType dtype;       // grad, out
  int64_t num_rows;  // rows that share one lam
  int64_t row_size;  // contiguous elements a row
  const void* grad;  // [num_rows, row_size] contiguous
  const void* lam;   // [num_rows] (lam_per_row) or [1], fp32 (fp64 where dtype is f64), or null for 1
  bool lam_per_row;
  double scale;     // the coefficient where it is a plain number
  void* out;        // [num_rows, row_size] contiguous
  stream_t stream;  // CUDA only
};

void grad_reverse_backward_cpu(const GradReverseBackwardArgs& args);
void grad_reverse_backward_cuda(const GradReverseBackwardArgs& args);

}  // namespace xfer
