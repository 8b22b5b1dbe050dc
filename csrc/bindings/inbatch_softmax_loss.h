// The walk of inbatch_softmax_loss over row blocks and column tiles, behind its ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"

namespace xfer::bindings {

using OptionalTensor = std::optional<at::Tensor>;

// What every op of the family is given, checked and contiguous.
struct InbatchProblem {
  at::Tensor u;            // [B, d]
  at::Tensor v;            // [N, d]
  OptionalTensor hard;     // [B, H, d], H > 0
  OptionalTensor targets;  // [B]
  at::Tensor scale;        // [] compute type
  double margin;
  OptionalTensor row_ids;   // [B]
  OptionalTensor col_ids;   // [N]
  OptionalTensor hard_ids;  // [B, H]
  at::Tensor coef;          // [B] compute type, d loss / d loss_i
  OptionalTensor columns;   // [5, N]: max, rest, positive, count, sum of coef / 2; with it the loss is symmetric
  int64_t workspace_bytes;

  DType dtype() const;
  at::TensorOptions compute() const { return scale.options(); }
  int64_t num_hard() const { return hard.has_value() ? hard->size(1) : 0; }
};

struct InbatchNeeds {
  bool u, v, hard, scale, stats;
  bool grads() const { return u || v || hard || scale; }
};

struct InbatchResult {
  at::Tensor rows, lse, pos_logit;                   // [B]
  at::Tensor rank, argmax;                           // [B] int64, or empty
  at::Tensor grad_u, grad_v, grad_hard, grad_scale;  // or empty
};

// [5, N] statistics of the columns over these rows; see InbatchProblem::columns. `kept` receives the similarities
// where the workspace holds all of them.
at::Tensor inbatch_columns(const InbatchProblem& problem, at::Tensor* kept = nullptr);

// grad_dtype: of grad_u, grad_v and grad_hard. `kept`: the similarities that inbatch_columns left, if any.
InbatchResult inbatch_run(const InbatchProblem& problem, const InbatchNeeds& needs, at::ScalarType grad_dtype,
                          const at::Tensor& kept = {});

}  // namespace xfer::bindings
