// ATen's matrix product behind the plain function pointer that torch-free CPU kernels take.
#pragma once

#include <cstdint>

namespace xfer::bindings {

// Row-major C[m, n] = beta * C + op(A) op(B); see HostGemm in moe_mlp_mix.h. Callable from any thread.
void host_gemm(bool is_double, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
               const void* b, int64_t ldb, double beta, void* c, int64_t ldc);

}  // namespace xfer::bindings
