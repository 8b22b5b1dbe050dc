// torch binding of the coefficients of gradient surgery: gradvac_coef (and pcgrad_coef, its case), mgda_coef,
// gradnorm_stats, agem_coef.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/threads.h"
#include "ops/gradient_surgery/gradient_surgery.h"

namespace xfer::bindings {
namespace {

using Optional = std::optional<at::Tensor>;

// Checks the arguments of one op against its Gram matrices, and keeps what had to be copied.
class Coefficients {
 public:
  Coefficients(const char* op, const at::Tensor& gram) : check_(op) {
    check_.rank(gram, "gram", 3, "[num_groups, num_tasks, num_tasks]");
    float64(gram, "gram");
    TORCH_CHECK_VALUE(gram.size(1) == gram.size(2), op,
                      "(): gram must have shape [num_groups, num_tasks, num_tasks], got ", gram.sizes());
    TORCH_CHECK_VALUE(gram.size(1) > 0, op, "(): gram must have at least one task, got shape ", gram.sizes());
    gram_ = gram.contiguous();
  }

  int64_t num_groups() const { return gram_.size(0); }
  int64_t num_tasks() const { return gram_.size(1); }
  const double* gram() const { return gram_.const_data_ptr<double>(); }
  const at::Tensor& like() const { return gram_; }
  const ArgChecks& check() const { return check_; }

  std::vector<int64_t> row_sizes() const { return {num_groups(), num_tasks()}; }
  std::vector<int64_t> square_sizes() const { return {num_groups(), num_tasks(), num_tasks()}; }

  // A float64 argument of that shape, or null.
  const double* numbers(const Optional& value, const char* arg, at::IntArrayRef sizes, const char* shape) {
    if (!value.has_value()) return nullptr;
    check_.sizes(*value, arg, sizes, shape);
    float64(*value, arg);
    check_.device(*value, arg, gram_, "gram");
    held_.push_back(value->contiguous());
    return held_.back().const_data_ptr<double>();
  }
  const bool* flags(const Optional& value, const char* arg) {
    if (!value.has_value()) return nullptr;
    check_.sizes(*value, arg, {num_tasks()}, "[num_tasks]");
    TORCH_CHECK_VALUE(value->scalar_type() == at::kBool, check_.op(), "(): ", arg, " must be bool, got ",
                      value->scalar_type());
    check_.device(*value, arg, gram_, "gram");
    held_.push_back(value->contiguous());
    return held_.back().const_data_ptr<bool>();
  }
  const int64_t* integers(const at::Tensor& value, const char* arg) {
    check_.int64(value, arg);
    check_.device(value, arg, gram_, "gram");
    held_.push_back(value);
    return held_.back().const_data_ptr<int64_t>();
  }

  at::Tensor empty_rows() const { return at::empty(row_sizes(), gram_.options()); }
  at::Tensor empty_square() const { return at::empty(square_sizes(), gram_.options()); }
  at::Tensor empty_groups() const { return at::empty({num_groups()}, gram_.options()); }

  template <typename Args, typename Cpu, typename Cuda>
  void run(Args& args, Cpu cpu, Cuda cuda) {
    args.num_groups = num_groups();
    args.num_tasks = num_tasks();
    args.gram = gram();
    if (num_groups() == 0) return;
    if (gram_.is_cuda()) {
      launch_cuda(cuda, check_.op(), gram_, args, args.stream);
    } else {
      adopt_thread_count();
      cpu(args);
    }
  }

 private:
  void float64(const at::Tensor& value, const char* arg) const {
    TORCH_CHECK_VALUE(value.scalar_type() == at::kDouble, check_.op(), "(): ", arg, " must be float64, got ",
                      value.scalar_type());
  }

  ArgChecks check_;
  at::Tensor gram_;
  std::vector<at::Tensor> held_;
};

constexpr const char* kSquare = "[num_groups, num_tasks, num_tasks]";

// Broadcast to [num_groups, num_tasks, num_tasks] by strides; the last dimension contiguous.
SurgeryOrder take_order(Coefficients& c, const Optional& order, const Optional& seed_step) {
  SurgeryOrder out{};
  if (seed_step.has_value()) {
    c.check().sizes(*seed_step, "seed_step", {2}, "[2]");
    out.seed_step = c.integers(seed_step->contiguous(), "seed_step");
    return out;
  }
  TORCH_CHECK_VALUE(order.has_value(), c.check().op(),
                    "(): exactly one of order and seed_step must be given, got neither");
  bool fits = order->dim() >= 1 && order->dim() <= 3 && order->size(-1) == c.num_tasks();
  for (int64_t d = 2; fits && d <= order->dim(); ++d) {
    const int64_t size = order->size(-d);
    fits = size == 1 || size == (d == 2 ? c.num_tasks() : c.num_groups());
  }
  TORCH_CHECK_VALUE(fits, c.check().op(), "(): order must be broadcastable to [num_groups, num_tasks, num_tasks] = ",
                    at::IntArrayRef(c.square_sizes()), ", got ", order->sizes());
  const at::Tensor rows = order->contiguous();
  out.order = c.integers(rows, "order");
  out.row_stride = rows.dim() >= 2 && rows.size(-2) > 1 ? rows.stride(-2) : 0;
  out.group_stride = rows.dim() == 3 && rows.size(0) > 1 ? rows.stride(0) : 0;
  if (!rows.is_cpu()) return out;
  std::vector<bool> seen(c.num_tasks());
  for (int64_t row = 0; row < rows.numel() / c.num_tasks(); ++row) {
    seen.assign(seen.size(), false);
    for (int64_t p = 0; p < c.num_tasks(); ++p) {
      const int64_t task = out.order[row * c.num_tasks() + p];
      TORCH_CHECK_VALUE(task >= 0 && task < c.num_tasks() && !seen[task], c.check().op(),
                        "(): order must hold permutations ", "of 0 to num_tasks - 1 = ", c.num_tasks() - 1,
                        ", but row ", row, " has ", task, task >= 0 && task < c.num_tasks() ? " twice" : "");
      seen[task] = true;
    }
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gradvac_coef(
    const at::Tensor& gram, const Optional& ema, double beta, const Optional& order, const Optional& seed_step,
    const Optional& target, std::optional<double> target_value, const Optional& task_weights, const Optional& task_mask,
    const Optional& apply_to, double target_clip, double residual_eps) {
  Coefficients c("gradvac_coef", gram);
  at::Tensor weights = c.empty_rows(), new_ema = c.empty_square(), cosine = c.empty_square();
  at::Tensor coefficients = c.empty_square();
  at::Tensor moved = at::empty(c.square_sizes(), gram.options().dtype(at::kBool));
  GradVacCoefArgs args{};
  args.ema = c.numbers(ema, "ema", c.square_sizes(), kSquare);
  args.beta = beta;
  args.order = take_order(c, order, seed_step);
  args.target = c.numbers(target, "target", c.square_sizes(), kSquare);
  args.use_target_value = target_value.has_value();
  args.target_value = target_value.value_or(0.0);
  args.target_clip = target_clip;
  args.residual_eps = residual_eps;
  args.task_weights = c.numbers(task_weights, "task_weights", {c.num_tasks()}, "[num_tasks]");
  args.task_mask = c.flags(task_mask, "task_mask");
  args.apply_to = c.flags(apply_to, "apply_to");
  args.weights = weights.mutable_data_ptr<double>();
  args.new_ema = new_ema.mutable_data_ptr<double>();
  args.cosine = cosine.mutable_data_ptr<double>();
  args.moved = moved.mutable_data_ptr<bool>();
  args.coefficients = coefficients.mutable_data_ptr<double>();
  c.run(args, gradvac_coef_cpu, XFER_CUDA_LAUNCHER(gradvac_coef_cuda));
  return {weights, new_ema, cosine, moved, coefficients};
}

std::tuple<at::Tensor, at::Tensor> mgda_coef(const at::Tensor& gram, const Optional& scale, const Optional& task_mask,
                                             double tolerance, int64_t max_iterations) {
  Coefficients c("mgda_coef", gram);
  at::Tensor weights = c.empty_rows(), gap = c.empty_groups();
  MgdaCoefArgs args{};
  args.scale = c.numbers(scale, "scale", c.row_sizes(), "[num_groups, num_tasks]");
  args.task_mask = c.flags(task_mask, "task_mask");
  args.tolerance = tolerance;
  args.max_iterations = max_iterations;
  args.weights = weights.mutable_data_ptr<double>();
  args.gap = gap.mutable_data_ptr<double>();
  c.run(args, mgda_coef_cpu, XFER_CUDA_LAUNCHER(mgda_coef_cuda));
  return {weights, gap};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gradnorm_stats(const at::Tensor& gram, const at::Tensor& losses,
                                                              const at::Tensor& initial_losses,
                                                              const at::Tensor& weights, double alpha,
                                                              const Optional& task_mask) {
  Coefficients c("gradnorm_stats", gram);
  at::Tensor grad_weights = c.empty_rows(), loss = c.empty_groups(), norms = c.empty_rows();
  GradNormStatsArgs args{};
  args.losses = c.numbers(losses, "losses", {c.num_tasks()}, "[num_tasks]");
  args.initial_losses = c.numbers(initial_losses, "initial_losses", {c.num_tasks()}, "[num_tasks]");
  TORCH_CHECK_VALUE(weights.dim() == 2 || (weights.dim() == 1 && weights.size(0) == c.num_tasks()),
                    "gradnorm_stats(): weights must have shape [num_groups, num_tasks] or [num_tasks], got ",
                    weights.sizes());
  const at::Tensor per_group = weights.dim() == 1 ? weights.expand(c.row_sizes()) : weights;
  args.weights = c.numbers(per_group, "weights", c.row_sizes(), "[num_groups, num_tasks]");
  args.task_mask = c.flags(task_mask, "task_mask");
  args.alpha = alpha;
  args.grad_weights = grad_weights.mutable_data_ptr<double>();
  args.loss = loss.mutable_data_ptr<double>();
  args.norms = norms.mutable_data_ptr<double>();
  c.run(args, gradnorm_stats_cpu, XFER_CUDA_LAUNCHER(gradnorm_stats_cuda));
  return {grad_weights, loss, norms};
}

std::tuple<at::Tensor, at::Tensor> agem_coef(const at::Tensor& gram, int64_t reference) {
  Coefficients c("agem_coef", gram);
  TORCH_CHECK_VALUE(reference >= -c.num_tasks() && reference < c.num_tasks(),
                    "agem_coef(): reference must be a task's number below num_tasks = ", c.num_tasks(), ", got ",
                    reference);
  at::Tensor weights = c.empty_rows(), cosine = c.empty_groups();
  AgemCoefArgs args{};
  args.reference = reference < 0 ? reference + c.num_tasks() : reference;
  args.weights = weights.mutable_data_ptr<double>();
  args.cosine = cosine.mutable_data_ptr<double>();
  c.run(args, agem_coef_cpu, XFER_CUDA_LAUNCHER(agem_coef_cuda));
  return {weights, cosine};
}

}  // namespace
}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def(
      "gradvac_coef(Tensor gram, Tensor? ema, float beta, Tensor? order, Tensor? seed_step, Tensor? target, "
      "float? target_value, Tensor? task_weights, Tensor? task_mask, Tensor? apply_to, float target_clip, "
      "float residual_eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "mgda_coef(Tensor gram, Tensor? scale, Tensor? task_mask, float tolerance, int max_iterations) -> (Tensor, "
      "Tensor)");
  m.def(
      "gradnorm_stats(Tensor gram, Tensor losses, Tensor initial_losses, Tensor weights, float alpha, Tensor? "
      "task_mask) -> (Tensor, Tensor, Tensor)");
  m.def("agem_coef(Tensor gram, int reference) -> (Tensor, Tensor)");
}
#define XFER_IMPL(key)                                         \
  TORCH_LIBRARY_IMPL(xfercore, key, m) {                       \
    m.impl("gradvac_coef", &xfer::bindings::gradvac_coef);     \
    m.impl("mgda_coef", &xfer::bindings::mgda_coef);           \
    m.impl("gradnorm_stats", &xfer::bindings::gradnorm_stats); \
    m.impl("agem_coef", &xfer::bindings::agem_coef);           \
  }
XFER_IMPL(CPU)
XFER_IMPL(CUDA)
