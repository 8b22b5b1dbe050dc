// inbatch_softmax_loss.h: matrix products by ATen, everything between them by the kernels of the op.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "bindings/block_gemm.h"
#include "bindings/device.h"
#include "bindings/inbatch_softmax_loss.h"
#include "bindings/large_tensor.h"
#include "bindings/threads.h"

namespace xfer::bindings {
namespace {

void* data(const at::Tensor& t) { return t.defined() && t.numel() > 0 ? t.mutable_data_ptr() : nullptr; }
const void* read(const at::Tensor& t) { return t.defined() && t.numel() > 0 ? t.const_data_ptr() : nullptr; }
const int64_t* read_ids(const OptionalTensor& t, int64_t first) {
  return t.has_value() && t->numel() > 0 ? t->const_data_ptr<int64_t>() + first : nullptr;
}

// From statistics of the columns to what the rows need of them.
struct ColumnTerms {
  at::Tensor lse, coef;                       // [N]
  at::Tensor pos_extra;                       // [B]
  at::Tensor maximum, rest, positive, count;  // [B], of each row's own positive
};

ColumnTerms column_terms(const InbatchProblem& p) {
  const at::Tensor &columns = *p.columns, sum = columns[1] + columns[2];
  const at::Tensor mine = p.targets.has_value() ? columns.index_select(1, p.targets->clamp(0, p.v.size(0) - 1))
                                                : columns.narrow(1, 0, p.u.size(0));
  ColumnTerms out;
  out.lse = columns[0] + sum.log();
  out.coef = columns[4].contiguous();
  out.maximum = mine[0];
  out.rest = mine[1];
  out.positive = mine[2];
  out.count = mine[3];
  const at::Tensor coef = p.coef * 0.5, my_sum = out.rest + out.positive;
  // A document that is one row's positive: minus the mass of the others, as in the rows. Of several rows': the plain
  // difference, which may cancel.
  const at::Tensor v =
      p.targets.has_value() ? p.v.index_select(0, p.targets->clamp(0, p.v.size(0) - 1)) : p.v.narrow(0, 0, p.u.size(0));
  const at::ScalarType type = p.scale.scalar_type();
  const at::Tensor logit = p.scale * ((p.u.to(type) * v.to(type)).sum(1) - p.margin);
  const at::Tensor shared = mine[4] * (logit - out.maximum - my_sum.log()).exp() - coef;
  out.pos_extra = at::where(out.count > 1, shared, -coef * (out.rest / my_sum)).contiguous();
  return out;
}

// log(sum over the column / own share), without cancellation where the document is this row's alone.
at::Tensor column_loss(const ColumnTerms& c, const at::Tensor& pos_logit) {
  const at::Tensor own = (pos_logit - c.maximum).exp();
  const at::Tensor others = at::where(c.count > 1, (c.positive - own).clamp_min(0) + c.rest, c.rest);
  const at::Tensor plain = (c.maximum - pos_logit) + (c.rest + c.positive).log();
  return at::where(own > 1e-30, at::log1p(others / own), plain);
}

// The part of a [B, d] or [B] tensor that belongs to a block, or an undefined tensor of an undefined one.
at::Tensor block_of(const at::Tensor& t, int64_t first, int64_t count) {
  return t.defined() ? t.narrow(0, first, count) : t;
}

template <typename Args, typename Cpu, typename Cuda>
void launch(const char* op, const at::Tensor& on, Args& args, Cpu cpu, Cuda cuda) {
  if (on.is_cuda()) {
    launch_cuda(cuda, op, on, args, args.stream);
  } else {
    cpu(args);
  }
}

class Walk {
 public:
  Walk(const InbatchProblem& problem, const InbatchNeeds& needs, at::ScalarType grad_dtype)
      : p_(problem),
        needs_(needs),
        num_rows_(problem.u.size(0)),
        num_cols_(problem.v.size(0)),
        dim_(problem.u.size(1)),
        half_(problem.u.scalar_type() != problem.scale.scalar_type()),
        plan_(
            plan_blocks(num_rows_, num_cols_, problem.scale.itemsize(), problem.u.device(), problem.workspace_bytes)) {
    const at::TensorOptions c = p_.compute(), grad = c.dtype(grad_dtype), index = c.dtype(at::kLong);
    const int64_t counted = needs.stats ? num_rows_ : 0;
    out_.rows = at::empty({num_rows_}, c);
    out_.lse = at::empty({num_rows_}, c);
    out_.pos_logit = at::empty({num_rows_}, c);
    out_.rank = at::empty({counted}, index);
    out_.argmax = at::empty({counted}, index);
    // No rows: nothing will be written, and the gradients are zeros.
    const bool none = num_rows_ == 0;
    const auto gradient = [&](bool need, const at::Tensor& like) {
      if (!need) return at::empty({0}, grad);
      return none ? at::zeros(like.sizes(), grad) : empty_large(like.sizes(), grad);
    };
    out_.grad_u = gradient(needs.u, p_.u);
    out_.grad_v = gradient(needs.v, p_.v);
    out_.grad_hard = gradient(needs.hard && p_.hard.has_value(), p_.hard.value_or(p_.u));
    if (needs.scale) row_grad_scale_ = none ? at::zeros({0}, c) : at::empty({num_rows_}, c);
  }

  InbatchResult run(const at::Tensor& kept) {
    const at::TensorOptions c = p_.compute();
    const bool grads = needs_.grads();
    if (p_.columns.has_value()) terms_ = column_terms(p_);
    coef_ = p_.columns.has_value() ? p_.coef * 0.5 : p_.coef;
    if (grads && half_ && num_rows_ > 0) normalise_coefficients();
    scratch_ = at::empty({4, plan_.rows}, c);
    sim_ = kept.defined() ? kept : empty_large({plan_.rows * plan_.cols}, c);
    if (p_.num_hard() > 0) hard_sim_ = at::empty({plan_.rows, p_.num_hard()}, c);
    // Sums that half outputs would lose.
    sum_u_ = needs_.u && needs_own_sum(out_.grad_u) ? at::empty({plan_.rows, dim_}, c) : at::Tensor();
    sum_v_ = !needs_.v ? at::Tensor() : needs_own_sum(out_.grad_v) ? empty_large({num_cols_, dim_}, c) : out_.grad_v;
    for (int64_t first = 0; first < num_rows_; first += plan_.rows) {
      block(first, std::min(plan_.rows, num_rows_ - first), kept.defined());
    }
    if (needs_.v && num_rows_ > 0) finish(out_.grad_v, sum_v_);
    if (p_.columns.has_value()) out_.rows = (out_.rows + column_loss(terms_, out_.pos_logit)) * 0.5;
    out_.grad_scale = at::empty({0}, c);
    if (needs_.scale) {
      out_.grad_scale = row_grad_scale_.sum(at::kDouble).to(c.dtype());
      if (unit_.defined()) out_.grad_scale = out_.grad_scale * unit_;
    }
    return out_;
  }

 private:
  bool needs_own_sum(const at::Tensor& grad) const { return half_ || grad.scalar_type() != p_.scale.scalar_type(); }

  // Half gradients of the logits are kept at up to 1 in size, and their common factor is applied to the sums.
  void normalise_coefficients() {
    at::Tensor largest = coef_.abs().amax();
    if (p_.columns.has_value()) largest = largest.maximum(terms_.coef.abs().amax());
    unit_ = at::where(largest > 0, largest, at::ones({}, p_.compute()));
    factor_ = unit_ * p_.scale;
    coef_ = coef_ / unit_;
    if (p_.columns.has_value()) {
      terms_.coef = terms_.coef / unit_;
      terms_.pos_extra = terms_.pos_extra / unit_;
    }
  }

  void finish(at::Tensor& out, const at::Tensor& sum) const {
    if (sum.is_same(out)) return;
    factor_.defined() ? out.copy_(sum * factor_) : out.copy_(sum);
  }

  // One block of rows: products, passes over its tiles, gradients.
  void block(int64_t first, int64_t count, bool kept) {
    const at::Tensor u = p_.u.narrow(0, first, count);
    const bool grads = needs_.grads();
    if (p_.num_hard() > 0) hard_sims(u, first, count);
    const int late = (needs_.stats ? kInbatchRanks : 0) | (grads ? kInbatchGrads : 0);
    const int stats = kInbatchStats | (plan_.whole_rows ? late : 0);
    const bool again = !plan_.whole_rows && late != 0;
    for (int sweep = 0; sweep < (again ? 2 : 1); ++sweep) {
      for (int64_t begin = 0; begin < num_cols_; begin += plan_.cols) {
        const int64_t width = std::min(plan_.cols, num_cols_ - begin);
        const at::Tensor v = p_.v.narrow(0, begin, width);
        const at::Tensor sim = sim_.narrow(0, 0, count * width).view({count, width});
        if (!kept) gemm_into(sim, u, v.t(), false);
        int passes = sweep == 0 ? stats : late;
        if (begin == 0) passes |= kInbatchFirst;
        if (sweep == 0 && begin + width == num_cols_) passes |= kInbatchFinish;
        rows(sim, first, count, begin, width, passes);
        if (passes & kInbatchGrads) products(sim, u, v, first, count, begin, width);
      }
    }
    if (!grads) return;
    if (p_.num_hard() > 0) hard_grads(u, first, count);
    if (sum_u_.defined()) {
      at::Tensor out = out_.grad_u.narrow(0, first, count);
      finish(out, sum_u_.narrow(0, 0, count));
    }
  }

  at::Tensor grad_u_sum(int64_t first, int64_t count) const {
    return sum_u_.defined() ? sum_u_.narrow(0, 0, count) : out_.grad_u.narrow(0, first, count);
  }

  // dU += dS V, dV += dS^T U; a half dS lies at the front of every row of the similarities it replaced.
  void products(const at::Tensor& sim, const at::Tensor& u, const at::Tensor& v, int64_t first, int64_t count,
                int64_t begin, int64_t width) {
    at::Tensor grad = sim;
    if (half_) grad = sim.view(p_.u.scalar_type()).narrow(1, 0, width);
    if (needs_.u) gemm_into(grad_u_sum(first, count), grad, v, begin > 0);
    if (needs_.v) gemm_into(sum_v_.narrow(0, begin, width), grad.t(), u, first > 0);
  }

  void rows(const at::Tensor& sim, int64_t first, int64_t count, int64_t begin, int64_t width, int passes) {
    InbatchRowsArgs args{};
    args.dtype = p_.dtype();
    args.passes = passes;
    args.num_rows = count;
    args.num_columns = width;
    args.first_column = begin;
    args.num_all = num_cols_;
    args.sim = sim.mutable_data_ptr();
    args.num_hard = p_.num_hard();
    args.hard_sim = data(hard_sim_);
    args.scale = p_.scale.const_data_ptr();
    args.margin = p_.margin;
    args.targets = read_ids(p_.targets, first);
    args.first_target = first;
    args.row_ids = read_ids(p_.row_ids, first);
    args.col_ids = read_ids(p_.col_ids, begin);
    args.hard_ids = read_ids(p_.hard_ids, first * p_.num_hard());
    args.coef = read(block_of(coef_, first, count));
    args.scaled = !half_;
    if (p_.columns.has_value()) {
      args.col_lse = read(terms_.lse.narrow(0, begin, width));
      args.col_coef = read(terms_.coef.narrow(0, begin, width));
      args.pos_extra = read(terms_.pos_extra.narrow(0, first, count));
    }
    args.row_max = data(scratch_[0]);
    args.row_rest = data(scratch_[1]);
    args.pos_sim = data(scratch_[2]);
    args.best_sim = data(scratch_[3]);
    args.lse = data(out_.lse.narrow(0, first, count));
    args.pos_logit = data(out_.pos_logit.narrow(0, first, count));
    args.loss = data(out_.rows.narrow(0, first, count));
    args.grad_scale = data(block_of(row_grad_scale_, first, count));
    if (needs_.stats) {
      args.rank = out_.rank.mutable_data_ptr<int64_t>() + first;
      args.argmax = out_.argmax.mutable_data_ptr<int64_t>() + first;
    }
    if (sim.is_cuda() && p_.targets.has_value()) {
      args.status = device_status(sim).mutable_data_ptr<int32_t>();
      args.status_bit = kStatusRankingTargetOutOfRange;
    }
    launch("inbatch_softmax_loss", sim, args, inbatch_softmax_rows_cpu, XFER_CUDA_LAUNCHER(inbatch_softmax_rows_cuda));
  }

  void hard_sims(const at::Tensor& u, int64_t first, int64_t count) {
    const at::Tensor hard = p_.hard->narrow(0, first, count);
    InbatchHardSimsArgs args{p_.dtype(), count, p_.num_hard(), dim_, read(u), read(hard), data(hard_sim_), nullptr};
    launch("inbatch_softmax_loss", u, args, inbatch_hard_sims_cpu, XFER_CUDA_LAUNCHER(inbatch_hard_sims_cuda));
  }

  void hard_grads(const at::Tensor& u, int64_t first, int64_t count) {
    if (!needs_.u && !needs_.hard) return;
    const at::Tensor hard = p_.hard->narrow(0, first, count);
    // Where the gradient is kept wider than its operands, it is made as one of them and widened.
    at::Tensor out = block_of(needs_.hard ? out_.grad_hard : at::Tensor(), first, count);
    at::Tensor own = out;
    if (out.defined() && out.scalar_type() != hard.scalar_type()) {
      own = (hard_sim_.narrow(0, 0, count).unsqueeze(2) * u.to(out.scalar_type()).unsqueeze(1));
      if (factor_.defined()) own = own * factor_;
      out.copy_(own);
      own = at::Tensor();
    }
    InbatchHardGradsArgs args{p_.dtype(), count,         p_.num_hard(), dim_,      read(hard_sim_), read(u),
                              read(hard), read(factor_), nullptr,       data(own), nullptr};
    if (needs_.u) args.grad_u = data(grad_u_sum(first, count));
    if (args.grad_u == nullptr && args.grad_hard == nullptr) return;
    launch("inbatch_softmax_loss", u, args, inbatch_hard_grads_cpu, XFER_CUDA_LAUNCHER(inbatch_hard_grads_cuda));
  }

  const InbatchProblem& p_;
  const InbatchNeeds needs_;
  const int64_t num_rows_, num_cols_, dim_;
  const bool half_;
  const BlockPlan plan_;
  InbatchResult out_;
  ColumnTerms terms_;
  at::Tensor coef_, unit_, factor_, row_grad_scale_, scratch_, sim_, hard_sim_, sum_u_, sum_v_;
};

}  // namespace

DType InbatchProblem::dtype() const {
  switch (u.scalar_type()) {
    case at::kDouble:
      return DType::f64;
    case at::kBFloat16:
      return DType::bf16;
    case at::kHalf:
      return DType::f16;
    default:
      return DType::f32;
  }
}

at::Tensor inbatch_columns(const InbatchProblem& p, at::Tensor* kept) {
  const int64_t num_rows = p.u.size(0), num_cols = p.v.size(0);
  at::Tensor columns = at::zeros({5, num_cols}, p.compute());
  columns[0].fill_(-INFINITY);
  const BlockPlan plan = plan_blocks(num_rows, num_cols, p.scale.itemsize(), p.u.device(), p.workspace_bytes);
  const at::Tensor sims = empty_large({plan.rows * plan.cols}, p.compute()), coef = (p.coef * 0.5).contiguous();
  if (!p.u.is_cuda()) adopt_thread_count();
  for (int64_t first = 0; first < num_rows; first += plan.rows) {
    const int64_t count = std::min(plan.rows, num_rows - first);
    for (int64_t begin = 0; begin < num_cols; begin += plan.cols) {
      const int64_t width = std::min(plan.cols, num_cols - begin);
      const at::Tensor sim = sims.narrow(0, 0, count * width).view({count, width});
      gemm_into(sim, p.u.narrow(0, first, count), p.v.narrow(0, begin, width).t(), false);
      InbatchColumnsArgs args{};
      args.dtype = p.u.scalar_type() == at::kDouble ? DType::f64 : DType::f32;
      args.num_rows = count;
      args.num_columns = width;
      args.first_column = begin;
      args.num_all = num_cols;
      args.sim = sim.const_data_ptr();
      args.scale = p.scale.const_data_ptr();
      args.margin = p.margin;
      args.targets = read_ids(p.targets, first);
      args.first_target = first;
      args.row_ids = read_ids(p.row_ids, first);
      args.col_ids = read_ids(p.col_ids, begin);
      args.coef = read(coef.narrow(0, first, count));
      args.max = data(columns[0].narrow(0, begin, width));
      args.rest = data(columns[1].narrow(0, begin, width));
      args.positive = data(columns[2].narrow(0, begin, width));
      args.count = data(columns[3].narrow(0, begin, width));
      args.coef_sum = data(columns[4].narrow(0, begin, width));
      launch("inbatch_softmax_loss", sim, args, inbatch_softmax_columns_cpu,
             XFER_CUDA_LAUNCHER(inbatch_softmax_columns_cuda));
    }
  }
  if (kept != nullptr && plan.rows >= num_rows && plan.cols >= num_cols && num_rows > 0) *kept = sims;
  return columns;
}

InbatchResult inbatch_run(const InbatchProblem& problem, const InbatchNeeds& needs, at::ScalarType grad_dtype,
                          const at::Tensor& kept) {
  if (!problem.u.is_cuda()) adopt_thread_count();
  return Walk(problem, needs, grad_dtype).run(kept);
}

}  // namespace xfer::bindings
