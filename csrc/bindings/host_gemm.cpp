// host_gemm.h by ATen.
#include "bindings/host_gemm.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace xfer::bindings {
namespace {

at::Tensor matrix(const void* data, bool transposed, int64_t rows, int64_t cols, int64_t ld,
                  const at::TensorOptions& options) {
  // from_blob wants a mutable pointer; operands are only read.
  void* pointer = const_cast<void*>(data);
  return transposed ? at::from_blob(pointer, {rows, cols}, {1, ld}, options)
                    : at::from_blob(pointer, {rows, cols}, {ld, 1}, options);
}

}  // namespace

void host_gemm(bool is_double, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
               const void* b, int64_t ldb, double beta, void* c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  // Raw memory: no autograd, and a worker thread has not inherited the caller's guards.
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const at::TensorOptions options(is_double ? at::kDouble : at::kFloat);
  const at::Tensor a_ = matrix(a, trans_a, m, k, lda, options);
  const at::Tensor b_ = matrix(b, trans_b, k, n, ldb, options);
  at::Tensor c_ = matrix(c, false, m, n, ldc, options);
  if (beta == 0.0) {
    at::mm_out(c_, a_, b_);
  } else {
    at::addmm_out(c_, c_, a_, b_, beta, 1.0);
  }
}

}  // namespace xfer::bindings
