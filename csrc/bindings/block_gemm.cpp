// block_gemm.h by ATen, and by MKL where ATen has no half product with an fp32 result on the CPU.
#include "bindings/block_gemm.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <limits>

// Part of the MKL inside x86 builds of torch, which export it. Null where torch has another BLAS.
extern "C" __attribute__((weak)) void cblas_gemm_bf16bf16f32(int layout, int trans_a, int trans_b, int m, int n, int k,
                                                             float alpha, const uint16_t* a, int lda, const uint16_t* b,
                                                             int ldb, float beta, float* c, int ldc);

namespace xfer::bindings {
namespace {

constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;
constexpr int64_t kFewestColumns = 64;

struct Operand {
  const uint16_t* data;
  int trans;
  int64_t ld;
};

// Rows side by side, or columns; a copy where it is neither. `held` keeps the copy alive.
Operand operand(const at::Tensor& t, at::Tensor& held) {
  held = t.stride(1) == 1 || t.size(1) == 1 || t.stride(0) == 1 || t.size(0) == 1 ? t : t.contiguous();
  const bool rows = held.stride(1) == 1 || held.size(1) == 1;
  const int64_t least = std::max<int64_t>(1, rows ? held.size(1) : held.size(0));
  const int64_t stride = rows ? held.stride(0) : held.stride(1);
  const bool single = (rows ? held.size(0) : held.size(1)) <= 1;  // its stride means nothing
  return {static_cast<const uint16_t*>(held.const_data_ptr()), rows ? kNoTrans : kTrans, single ? least : stride};
}

void bf16_gemm(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  at::Tensor held_a, held_b;
  const Operand x = operand(a, held_a), y = operand(b, held_b);
  const int64_t ldc = std::max(out.size(1), out.stride(0));
  const int64_t largest = std::max({a.size(0), a.size(1), b.size(1), x.ld, y.ld, ldc});
  TORCH_CHECK(largest <= std::numeric_limits<int>::max(), "xfercore: a matrix of bfloat16 with a dimension of ",
              largest, " is too large for the CPU's product; lower workspace_bytes");
  cblas_gemm_bf16bf16f32(kRowMajor, x.trans, y.trans, static_cast<int>(a.size(0)), static_cast<int>(b.size(1)),
                         static_cast<int>(a.size(1)), 1.0f, x.data, static_cast<int>(x.ld), y.data,
                         static_cast<int>(y.ld), accumulate ? 1.0f : 0.0f, out.mutable_data_ptr<float>(),
                         static_cast<int>(ldc));
}

}  // namespace

bool has_half_gemm(at::ScalarType dtype, const c10::Device& device) {
  return !device.is_cpu() || (dtype == at::kBFloat16 && cblas_gemm_bf16bf16f32 != nullptr);
}

void gemm_into(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool accumulate) {
  if (out.numel() == 0) return;
  at::Tensor result = out;
  if (a.size(1) == 0) {
    if (!accumulate) result.zero_();
    return;
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (a.scalar_type() == out.scalar_type()) {
    accumulate ? at::addmm_out(result, result, a, b) : at::mm_out(result, a, b);
  } else if (a.is_cpu()) {
    bf16_gemm(out, a, b, accumulate);
  } else {
    accumulate ? at::addmm_out(result, result, a, b, at::kFloat) : at::mm_out(result, a, b, at::kFloat);
  }
}

BlockPlan plan_blocks(int64_t num_rows, int64_t num_cols, int64_t itemsize, const c10::Device& device,
                      int64_t workspace_bytes) {
  const bool cpu = device.is_cpu();
  const int64_t bytes = workspace_bytes > 0 ? workspace_bytes : int64_t(1) << (cpu ? 25 : 30);
  const int64_t elements = std::max<int64_t>(1, bytes / itemsize);
  const int64_t all_rows = std::max<int64_t>(1, num_rows), all_cols = std::max<int64_t>(1, num_cols);
  // Below this the product that sums over the rows reads and writes its result more than it computes.
  const int64_t fewest = cpu ? 64 : 1024;
  int64_t rows = std::min(all_rows, elements / all_cols);
  if (rows >= std::min(all_rows, fewest) || (rows >= 1 && all_cols <= kFewestColumns)) {
    const int64_t blocks = (all_rows + rows - 1) / rows;
    return {(all_rows + blocks - 1) / blocks, all_cols, true};
  }
  rows = std::min<int64_t>(all_rows, cpu ? 512 : 4096);
  int64_t cols = elements / rows;
  if (cols < kFewestColumns) {
    cols = kFewestColumns;
    rows = std::max<int64_t>(1, elements / cols);
  }
  cols = std::min(cols, all_cols);
  return {rows, cols, cols == all_cols};
}

}  // namespace xfer::bindings
