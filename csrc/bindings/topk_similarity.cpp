// torch binding of topk_similarity: blocks of similarities by ATen's products, of which the kernel keeps the best.
#include "ops/topk_similarity/topk_similarity.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "bindings/block_gemm.h"
#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/large_tensor.h"
#include "bindings/threads.h"

namespace xfer::bindings {
namespace {

const ArgChecks check("topk_similarity");

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& queries, const at::Tensor& keys, int64_t k, double factor,
                                           const std::optional<at::Tensor>& key_offset, int64_t workspace_bytes) {
  check.rank(queries, "queries", 2, "[num_queries, dim]");
  check.dtype(queries, "queries");
  check.rank(keys, "keys", 2, "[num_keys, dim]");
  const int64_t num_queries = queries.size(0), num_keys = keys.size(0), dim = queries.size(1);
  check.sizes(keys, "keys", {num_keys, dim}, "[num_keys, dim]");
  check.like(keys, "keys", queries, "queries");
  TORCH_CHECK_VALUE(k >= 1 && k <= num_keys, "topk_similarity(): k must be between 1 and num_keys = ", num_keys,
                    ", got ", k);
  TORCH_CHECK_VALUE(workspace_bytes >= 0, "topk_similarity(): workspace_bytes must be positive, got ", workspace_bytes);
  const at::ScalarType compute = compute_scalar_type(queries.scalar_type());
  const bool widen = queries.scalar_type() != compute && !has_half_gemm(queries.scalar_type(), queries.device());
  const at::Tensor q = (widen ? queries.to(compute) : queries).contiguous();
  const at::Tensor all = (widen ? keys.to(compute) : keys).contiguous();
  const at::TensorOptions options = q.options().dtype(compute);
  at::Tensor values = at::empty({num_queries, k}, options);
  at::Tensor indices = at::empty({num_queries, k}, options.dtype(at::kLong));
  if (num_queries == 0) return {values, indices};
  at::Tensor offset;
  if (key_offset.has_value()) {
    check.sizes(*key_offset, "key_offset", {num_keys}, "[num_keys]");
    offset = key_offset->to(compute).contiguous();
  }
  // Tiles rather than whole rows: a tile that stays in cache is read for free.
  const bool cpu = queries.is_cpu();
  const int64_t bytes = workspace_bytes > 0 ? workspace_bytes : int64_t(1) << (cpu ? 23 : 30);
  const int64_t elements = std::max<int64_t>(1, bytes / static_cast<int64_t>(at::elementSize(compute)));
  const int64_t rows = std::min<int64_t>({num_queries, cpu ? 1024 : 8192, std::max<int64_t>(1, elements / 64)});
  const int64_t cols = std::min(num_keys, std::max<int64_t>(64, elements / rows));
  const at::Tensor sims = empty_large({rows * cols}, options);
  if (cpu) adopt_thread_count();
  for (int64_t row = 0; row < num_queries; row += rows) {
    const int64_t count = std::min(rows, num_queries - row);
    for (int64_t begin = 0; begin < num_keys; begin += cols) {
      const int64_t width = std::min(cols, num_keys - begin);
      const at::Tensor sim = sims.narrow(0, 0, count * width).view({count, width});
      gemm_into(sim, q.narrow(0, row, count), all.narrow(0, begin, width).t(), false);
      TopkSimilarityArgs args{};
      args.dtype = compute == at::kDouble ? DType::f64 : DType::f32;
      args.num_rows = count;
      args.num_columns = width;
      args.first_column = begin;
      args.k = k;
      args.first = begin == 0;
      args.last = begin + width == num_keys;
      args.sim = sim.const_data_ptr();
      args.factor = factor;
      if (offset.defined()) args.key_offset = offset.narrow(0, begin, width).const_data_ptr();
      args.values = values.narrow(0, row, count).mutable_data_ptr();
      args.indices = indices.mutable_data_ptr<int64_t>() + row * k;
      if (cpu) {
        topk_similarity_tile_cpu(args);
      } else {
        launch_cuda(XFER_CUDA_LAUNCHER(topk_similarity_tile_cuda), check.op(), q, args, args.stream);
      }
    }
  }
  return {values, indices};
}

}  // namespace
}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def(
      "topk_similarity(Tensor queries, Tensor keys, int k, float factor, Tensor? key_offset, int workspace_bytes) "
      "-> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(xfercore, CPU, m) { m.impl("topk_similarity", &xfer::bindings::forward); }
TORCH_LIBRARY_IMPL(xfercore, CUDA, m) { m.impl("topk_similarity", &xfer::bindings::forward); }
