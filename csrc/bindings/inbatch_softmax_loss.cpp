// torch binding of inbatch_softmax_loss: checks, and the ops over the walk of inbatch_softmax_loss.h.
#include "bindings/inbatch_softmax_loss.h"

#include <ATen/ops/dot.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "bindings/autocast.h"
#include "bindings/block_gemm.h"
#include "bindings/checks.h"
#include "bindings/device.h"

namespace xfer::bindings {
namespace {

const ArgChecks check("inbatch_softmax_loss");

void check_ids(const OptionalTensor& ids, const char* name, at::IntArrayRef sizes, const char* shape,
               const at::Tensor& u) {
  if (!ids.has_value()) return;
  check.sizes(*ids, name, sizes, shape);
  check.int64(*ids, name);
  check.device(*ids, name, u, "u");
}

// Values that only the device knows: on the CPU they raise; on CUDA the kernel gives NaN and sets the status flag.
void check_target_range(const at::Tensor& targets, int64_t num_docs) {
  if (targets.numel() == 0 || !(targets.is_cpu() || check_requested())) return;
  const at::Tensor bad = targets.lt(0).logical_or(targets.ge(num_docs));
  if (!bad.any().item<bool>()) return;
  const int64_t row = bad.nonzero()[0][0].item<int64_t>();
  TORCH_CHECK_VALUE(false, "inbatch_softmax_loss(): targets[", row, "] = ", targets[row].item<int64_t>(),
                    " is out of range: expected 0 <= target < num_docs = ", num_docs);
}

struct Arguments {
  InbatchProblem problem;
  at::ScalarType dtype;  // of u as it was given
};

Arguments arguments(const at::Tensor& u, const at::Tensor& v, const OptionalTensor& hard_neg,
                    const OptionalTensor& targets, const at::Tensor& scale, double margin,
                    const OptionalTensor& row_ids, const OptionalTensor& doc_ids, const OptionalTensor& hard_neg_ids,
                    const at::Tensor& row_coef, const OptionalTensor& columns, int64_t workspace_bytes) {
  check.rank(u, "u", 2, "[num_queries, dim]");
  check.dtype(u, "u");
  const int64_t num_queries = u.size(0), dim = u.size(1);
  check.rank(v, "v", 2, "[num_docs, dim]");
  const int64_t num_docs = v.size(0);
  check.sizes(v, "v", {num_docs, dim}, "[num_docs, dim]");
  check.like(v, "v", u, "u");
  int64_t num_hard = 0;
  if (hard_neg.has_value()) {
    check.rank(*hard_neg, "hard_neg", 3, "[num_queries, num_hard, dim]");
    num_hard = hard_neg->size(1);
    check.sizes(*hard_neg, "hard_neg", {num_queries, num_hard, dim}, "[num_queries, num_hard, dim]");
    check.like(*hard_neg, "hard_neg", u, "u");
  }
  check_ids(targets, "targets", {num_queries}, "[num_queries]", u);
  check_ids(row_ids, "query_ids", {num_queries}, "[num_queries]", u);
  check_ids(doc_ids, "doc_ids", {num_docs}, "[num_docs]", u);
  check_ids(hard_neg_ids, "hard_neg_ids", {num_queries, num_hard}, "[num_queries, num_hard]", u);
  if (targets.has_value()) {
    check_target_range(*targets, num_docs);
  } else {
    TORCH_CHECK_VALUE(num_docs >= num_queries,
                      "inbatch_softmax_loss(): v must have at least num_queries = ", num_queries,
                      " documents, since targets is None and row i's positive is document i; got ", num_docs);
  }
  TORCH_CHECK_VALUE(num_docs > 0 || num_queries == 0,
                    "inbatch_softmax_loss(): v must have at least one document, got shape ", v.sizes());
  TORCH_CHECK_VALUE(workspace_bytes >= 0, "inbatch_softmax_loss(): workspace_bytes must be positive, got ",
                    workspace_bytes);
  const at::ScalarType compute = compute_scalar_type(u.scalar_type());
  check.sizes(scale, "scale", {}, "[]");
  check.sizes(row_coef, "row_weight", {num_queries}, "[num_queries]");
  TORCH_CHECK_VALUE(scale.scalar_type() == compute && row_coef.scalar_type() == compute,
                    "inbatch_softmax_loss(): scale and row_weight must be ", compute, " for u of ", u.scalar_type(),
                    ", got ", scale.scalar_type(), " and ", row_coef.scalar_type());
  if (columns.has_value()) check.sizes(*columns, "columns", {5, num_docs}, "[5, num_docs]");

  const auto ids = [](const OptionalTensor& t) { return t.has_value() ? OptionalTensor(t->contiguous()) : t; };
  // Where there is no product of halves with an fp32 result, everything runs on fp32 copies.
  const bool widen = u.scalar_type() != compute && !has_half_gemm(u.scalar_type(), u.device());
  const auto dense = [&](const at::Tensor& t) { return widen ? t.to(compute).contiguous() : t.contiguous(); };
  Arguments out;
  out.dtype = u.scalar_type();
  InbatchProblem& p = out.problem;
  p.u = dense(u);
  p.v = u.is_same(v) ? p.u : dense(v);
  if (num_hard > 0 && num_queries > 0) {
    p.hard = dense(*hard_neg);
    p.hard_ids = ids(hard_neg_ids);
  }
  p.targets = ids(targets);
  p.scale = scale;
  p.margin = margin;
  p.row_ids = ids(row_ids);
  p.col_ids = ids(doc_ids);
  p.coef = row_coef.contiguous();
  if (columns.has_value()) p.columns = columns->contiguous();
  p.workspace_bytes = workspace_bytes;
  return out;
}

// Bits of the ops' `flags`; torch looks at every argument of an op in Python, so seven of them would cost more time.
constexpr int64_t kFlagSymmetric = 1, kFlagU = 2, kFlagV = 4, kFlagHard = 8, kFlagScale = 16, kFlagStats = 32;

InbatchResult run(InbatchProblem& p, int64_t flags, at::ScalarType grad_dtype, const OptionalTensor& hard_neg) {
  const auto has = [flags](int64_t flag) { return (flags & flag) != 0; };
  InbatchNeeds needs{has(kFlagU), has(kFlagV), has(kFlagHard), has(kFlagScale), has(kFlagStats)};
  at::Tensor kept;
  if (has(kFlagSymmetric) && !p.columns.has_value()) p.columns = inbatch_columns(p, &kept);
  const bool empty_hard = needs.hard && hard_neg.has_value() && !p.hard.has_value();
  needs.hard = needs.hard && p.hard.has_value();
  InbatchResult out = inbatch_run(p, needs, grad_dtype, kept);
  if (empty_hard) out.grad_hard = at::empty(hard_neg->sizes(), out.grad_hard.options());
  return out;
}

// Gradients that a loss scaler will multiply are kept in fp32 where the inputs are fp16: 1/B of a small gradient would
// be below its range.
at::ScalarType kept_dtype(at::ScalarType dtype) { return dtype == at::kHalf ? at::kFloat : dtype; }

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                           at::Tensor, at::Tensor, at::Tensor>;

Forward forward(const at::Tensor& u, const at::Tensor& v, const OptionalTensor& hard_neg, const OptionalTensor& targets,
                const at::Tensor& scale, double margin, const OptionalTensor& row_ids, const OptionalTensor& doc_ids,
                const OptionalTensor& hard_neg_ids, const at::Tensor& row_coef, const OptionalTensor& columns,
                int64_t flags, int64_t workspace_bytes) {
  Arguments a = arguments(u, v, hard_neg, targets, scale, margin, row_ids, doc_ids, hard_neg_ids, row_coef, columns,
                          workspace_bytes);
  InbatchProblem& p = a.problem;
  InbatchResult out = run(p, flags, kept_dtype(a.dtype), hard_neg);
  return {at::dot(out.rows, p.coef),
          out.rows,
          out.lse,
          out.pos_logit,
          out.rank,
          out.argmax,
          out.grad_u,
          out.grad_v,
          out.grad_hard,
          out.grad_scale};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& row_grad, const at::Tensor& u, const at::Tensor& v, const OptionalTensor& hard_neg,
    const OptionalTensor& targets, const at::Tensor& scale, double margin, const OptionalTensor& row_ids,
    const OptionalTensor& doc_ids, const OptionalTensor& hard_neg_ids, const OptionalTensor& columns, int64_t flags,
    int64_t workspace_bytes) {
  Arguments a = arguments(u, v, hard_neg, targets, scale, margin, row_ids, doc_ids, hard_neg_ids, row_grad, columns,
                          workspace_bytes);
  InbatchResult out = run(a.problem, flags & ~kFlagStats, a.dtype, hard_neg);
  return {out.grad_u, out.grad_v, out.grad_hard, out.grad_scale};
}

at::Tensor column_statistics(const at::Tensor& u, const at::Tensor& v, const OptionalTensor& targets,
                             const at::Tensor& scale, double margin, const OptionalTensor& row_ids,
                             const OptionalTensor& doc_ids, const at::Tensor& row_coef, int64_t workspace_bytes) {
  const Arguments a = arguments(u, v, std::nullopt, targets, scale, margin, row_ids, doc_ids, std::nullopt, row_coef,
                                std::nullopt, workspace_bytes);
  return inbatch_columns(a.problem);
}

// Casts the embeddings to autocast's dtype; logits, softmax and sums stay in fp32 whatever that is.
Forward autocast_forward(const at::Tensor& u, const at::Tensor& v, const OptionalTensor& hard_neg,
                         const OptionalTensor& targets, const at::Tensor& scale, double margin,
                         const OptionalTensor& row_ids, const OptionalTensor& doc_ids,
                         const OptionalTensor& hard_neg_ids, const at::Tensor& row_coef, const OptionalTensor& columns,
                         int64_t flags, int64_t workspace_bytes) {
  const AutocastOff guard;
  const AutocastTo cast(u.device().type());
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("xfercore::inbatch_softmax_loss", "").typed<decltype(forward)>();
  return op.call(cast(u), cast(v), cast(hard_neg), targets, scale, margin, row_ids, doc_ids, hard_neg_ids, row_coef,
                 columns, flags, workspace_bytes);
}

}  // namespace
}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def(
      "inbatch_softmax_loss(Tensor u, Tensor v, Tensor? hard_neg, Tensor? targets, Tensor scale, float margin, "
      "Tensor? row_ids, Tensor? doc_ids, Tensor? hard_neg_ids, Tensor row_coef, Tensor? columns, int flags, "
      "int workspace_bytes) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "inbatch_softmax_loss_backward(Tensor row_grad, Tensor u, Tensor v, Tensor? hard_neg, Tensor? targets, "
      "Tensor scale, float margin, Tensor? row_ids, Tensor? doc_ids, Tensor? hard_neg_ids, Tensor? columns, "
      "int flags, int workspace_bytes) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "inbatch_softmax_columns(Tensor u, Tensor v, Tensor? targets, Tensor scale, float margin, Tensor? row_ids, "
      "Tensor? doc_ids, Tensor row_coef, int workspace_bytes) -> Tensor");
}
#define XFER_IMPL(key)                                                     \
  TORCH_LIBRARY_IMPL(xfercore, key, m) {                                   \
    m.impl("inbatch_softmax_loss", &xfer::bindings::forward);              \
    m.impl("inbatch_softmax_loss_backward", &xfer::bindings::backward);    \
    m.impl("inbatch_softmax_columns", &xfer::bindings::column_statistics); \
  }
XFER_IMPL(CPU)
XFER_IMPL(CUDA)
TORCH_LIBRARY_IMPL(xfercore, AutocastCPU, m) { m.impl("inbatch_softmax_loss", &xfer::bindings::autocast_forward); }
TORCH_LIBRARY_IMPL(xfercore, AutocastCUDA, m) { m.impl("inbatch_softmax_loss", &xfer::bindings::autocast_forward); }
