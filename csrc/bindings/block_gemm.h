// Matrix products of a block of rows, and how large a block the workspace allows.
#pragma once

#include <ATen/core/Tensor.h>

namespace xfer::bindings {

// out [m, n] = a b, or out += a b. `out` is fp32, or fp64 where a and b are; half operands are multiplied as they are
// and summed into `out` in fp32, never rounded to half. a and b may be transposed or have rows further apart.
void gemm_into(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate);

// Whether gemm_into takes operands of this dtype on this device; else they are to be converted to fp32 first.
bool has_half_gemm(at::ScalarType dtype, const c10::Device& device);

struct BlockPlan {
  int64_t rows, cols;  // of a block
  bool whole_rows;     // every block holds its whole rows
};

// The blocks of a [num_rows, num_cols] matrix of `itemsize` bytes an element; workspace_bytes = 0: the default of the
// device, 32 MiB on the CPU and 1 GiB on CUDA. Whole rows, unless so few would fit that the products would suffer:
// then tiles. Fewer than 64 columns are never cut, so a smaller workspace than that is exceeded.
BlockPlan plan_blocks(int64_t num_rows, int64_t num_cols, int64_t itemsize, const c10::Device& device,
                      int64_t workspace_bytes);

}  // namespace xfer::bindings
