// torch binding of hard_concrete and hard_concrete_eval, which is the same op without noise.
#include "ops/hard_concrete/hard_concrete.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/large_tensor.h"
#include "bindings/threads.h"

namespace xfer::bindings {
namespace {

const ArgChecks check("hard_concrete");

// Holds the contiguous tensors alive while their pointers are in gates.
struct Checked {
  at::Tensor log_alpha, theta, seed_offset;
  HardConcreteGates gates{};
  int64_t outer, inner;
  double size;
  bool masks_nothing;  // theta has no elements: the kernels see the gates alone
};

Checked check_arguments(const at::Tensor& log_alpha, const std::optional<at::Tensor>& theta,
                        const std::optional<at::Tensor>& seed_offset, double beta, double gamma, double zeta,
                        int64_t outer, int64_t inner, bool per_element) {
  Checked c{};
  const at::ScalarType compute = compute_scalar_type(log_alpha.scalar_type());
  const at::Tensor& model = theta.has_value() ? *theta : log_alpha;
  c.gates.dtype = check.dtype(model, theta.has_value() ? "theta" : "log_alpha");
  TORCH_CHECK_VALUE(log_alpha.scalar_type() == compute && compute == compute_scalar_type(model.scalar_type()),
                    "hard_concrete(): log_alpha must be ", compute_scalar_type(model.scalar_type()),
                    " where the result is ", model.scalar_type(), ", got ", log_alpha.scalar_type());
  TORCH_CHECK_VALUE(outer >= 0 && inner >= 0, "hard_concrete(): outer and inner must not be negative, got ", outer,
                    " and ", inner);
  c.gates.num_gates = log_alpha.numel();
  c.outer = outer, c.inner = inner, c.size = per_element ? static_cast<double>(outer) * static_cast<double>(inner) : 1;
  if (theta.has_value()) {
    check.device(*theta, "theta", log_alpha, "log_alpha");
    TORCH_CHECK_VALUE(theta->numel() == outer * c.gates.num_gates * inner, "hard_concrete(): theta must have outer * ",
                      "num_gates * inner = ", outer, " * ", c.gates.num_gates, " * ", inner, " elements, got shape ",
                      theta->sizes());
    c.theta = theta->contiguous();
    c.masks_nothing = theta->numel() == 0 && c.gates.num_gates > 0;
    if (c.masks_nothing) c.outer = c.inner = 1, c.gates.dtype = check.dtype(log_alpha, "log_alpha");
  } else {
    TORCH_CHECK_VALUE(outer == 1 && inner == 1, "hard_concrete(): outer and inner must be 1 without theta, got ", outer,
                      " and ", inner);
  }
  if (seed_offset.has_value()) {
    check.sizes(*seed_offset, "seed_offset", {2}, "[2]");
    check.int64(*seed_offset, "seed_offset");
    check.device(*seed_offset, "seed_offset", log_alpha, "log_alpha");
    c.seed_offset = seed_offset->contiguous();
    c.gates.seed_offset = c.seed_offset.const_data_ptr<int64_t>();
    TORCH_CHECK_VALUE(beta > 0 && std::isfinite(beta), "hard_concrete(): beta must be positive, got ", beta);
  }
  TORCH_CHECK_VALUE(gamma < 0 && std::isfinite(gamma), "hard_concrete(): gamma must be negative, got ", gamma);
  TORCH_CHECK_VALUE(zeta > 1 && std::isfinite(zeta), "hard_concrete(): zeta must be above 1, got ", zeta);
  c.log_alpha = log_alpha.contiguous();
  c.gates.log_alpha = c.log_alpha.const_data_ptr();
  c.gates.beta = beta, c.gates.gamma = gamma, c.gates.zeta = zeta;
  return c;
}

const void* theta_pointer(const Checked& c) {
  return c.theta.defined() && !c.masks_nothing ? c.theta.const_data_ptr() : nullptr;
}

at::Tensor workspace_for(const Checked& c) {
  return empty_large({hard_concrete_workspace_bytes(c.outer, c.gates.num_gates, c.inner)},
                     c.log_alpha.options().dtype(at::kByte));
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& log_alpha, const std::optional<at::Tensor>& theta,
                                           const std::optional<at::Tensor>& seed_offset, double beta, double gamma,
                                           double zeta, int64_t outer, int64_t inner, bool per_element) {
  const Checked c = check_arguments(log_alpha, theta, seed_offset, beta, gamma, zeta, outer, inner, per_element);
  const at::Tensor& model = theta.has_value() ? c.theta : c.log_alpha;
  at::Tensor out = empty_large(model.sizes(), model.options());
  at::Tensor penalty = at::empty({}, c.log_alpha.options());
  const bool counted = seed_offset.has_value() && c.gates.num_gates > 0;
  if (!counted) penalty.zero_();
  if (c.gates.num_gates == 0) return {out, penalty};
  const at::Tensor workspace = workspace_for(c);
  HardConcreteForwardArgs args{};
  args.gates = c.gates;
  args.outer = c.outer;
  args.inner = c.inner;
  args.theta = theta_pointer(c);
  at::Tensor unused = c.masks_nothing ? at::empty_like(c.log_alpha) : at::Tensor();
  args.out = c.masks_nothing ? unused.mutable_data_ptr() : out.mutable_data_ptr();
  args.size = c.size;
  args.penalty = counted ? penalty.mutable_data_ptr() : nullptr;
  args.workspace = workspace.mutable_data_ptr();
  if (log_alpha.is_cuda()) {
    launch_cuda(XFER_CUDA_LAUNCHER(hard_concrete_forward_cuda), check.op(), log_alpha, args, args.stream);
  } else {
    adopt_thread_count();
    hard_concrete_forward_cpu(args);
  }
  return {out, penalty};
}

// Gradients that are not needed come back empty, [0].
std::tuple<at::Tensor, at::Tensor> backward(const std::optional<at::Tensor>& grad_out,
                                            const std::optional<at::Tensor>& grad_penalty, const at::Tensor& log_alpha,
                                            const std::optional<at::Tensor>& theta,
                                            const std::optional<at::Tensor>& seed_offset, double beta, double gamma,
                                            double zeta, int64_t outer, int64_t inner, bool per_element,
                                            bool need_log_alpha, bool need_theta) {
  const Checked c = check_arguments(log_alpha, theta, seed_offset, beta, gamma, zeta, outer, inner, per_element);
  const at::Tensor& model = theta.has_value() ? c.theta : c.log_alpha;
  need_theta = need_theta && theta.has_value();
  at::Tensor grad_log_alpha =
      need_log_alpha ? empty_large(c.log_alpha.sizes(), c.log_alpha.options()) : at::empty({0}, c.log_alpha.options());
  at::Tensor grad_theta = need_theta ? empty_large(model.sizes(), model.options()) : at::empty({0}, model.options());
  at::Tensor grad_out_, grad_penalty_;
  HardConcreteBackwardArgs args{};
  if (grad_out.has_value()) {
    check.sizes(*grad_out, "grad_out", model.sizes(), "of the result");
    check.like(*grad_out, "grad_out", model, "the result");
    grad_out_ = grad_out->contiguous();
    args.grad_out = c.masks_nothing ? nullptr : grad_out_.const_data_ptr();
  }
  if (grad_penalty.has_value()) {
    check.sizes(*grad_penalty, "grad_penalty", {}, "[]");
    check.like(*grad_penalty, "grad_penalty", log_alpha, "log_alpha");
    grad_penalty_ = *grad_penalty;
    args.grad_penalty = grad_penalty_.const_data_ptr();
  }
  if (c.gates.num_gates == 0) return {grad_log_alpha, grad_theta};
  const at::Tensor workspace = workspace_for(c);
  args.gates = c.gates;
  args.outer = c.outer;
  args.inner = c.inner;
  args.theta = theta_pointer(c);
  args.size = c.size;
  args.grad_log_alpha = need_log_alpha ? grad_log_alpha.mutable_data_ptr() : nullptr;
  args.grad_theta = need_theta && !c.masks_nothing ? grad_theta.mutable_data_ptr() : nullptr;
  args.workspace = workspace.mutable_data_ptr();
  if (log_alpha.is_cuda()) {
    launch_cuda(XFER_CUDA_LAUNCHER(hard_concrete_backward_cuda), check.op(), log_alpha, args, args.stream);
  } else {
    adopt_thread_count();
    hard_concrete_backward_cpu(args);
  }
  return {grad_log_alpha, grad_theta};
}

// [6, *log_alpha.shape]: what a second derivative is put together from.
at::Tensor curves(const at::Tensor& log_alpha, const std::optional<at::Tensor>& seed_offset, double beta, double gamma,
                  double zeta) {
  const Checked c = check_arguments(log_alpha, std::nullopt, seed_offset, beta, gamma, zeta, 1, 1, false);
  std::vector<int64_t> shape{6};
  shape.insert(shape.end(), log_alpha.sizes().begin(), log_alpha.sizes().end());
  at::Tensor out = empty_large(shape, c.log_alpha.options());
  if (c.gates.num_gates == 0) return out;
  HardConcreteCurvesArgs args{c.gates, out.mutable_data_ptr(), nullptr};
  if (log_alpha.is_cuda()) {
    launch_cuda(XFER_CUDA_LAUNCHER(hard_concrete_curves_cuda), check.op(), log_alpha, args, args.stream);
  } else {
    adopt_thread_count();
    hard_concrete_curves_cpu(args);
  }
  return out;
}

}  // namespace
}  // namespace xfer::bindings

// seed_offset None: the gates of evaluation. theta is [outer, num_gates, inner] in memory.
TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def(
      "hard_concrete(Tensor log_alpha, Tensor? theta, Tensor? seed_offset, float beta, float gamma, float zeta, "
      "SymInt outer, SymInt inner, bool per_element) -> (Tensor, Tensor)");
  m.def(
      "hard_concrete_backward(Tensor? grad_out, Tensor? grad_penalty, Tensor log_alpha, Tensor? theta, "
      "Tensor? seed_offset, float beta, float gamma, float zeta, SymInt outer, SymInt inner, bool per_element, "
      "bool need_log_alpha, bool need_theta) -> (Tensor, Tensor)");
  m.def("hard_concrete_curves(Tensor log_alpha, Tensor? seed_offset, float beta, float gamma, float zeta) -> Tensor");
}
#define XFER_IMPL(key)                                           \
  TORCH_LIBRARY_IMPL(xfercore, key, m) {                         \
    m.impl("hard_concrete", &xfer::bindings::forward);           \
    m.impl("hard_concrete_backward", &xfer::bindings::backward); \
    m.impl("hard_concrete_curves", &xfer::bindings::curves);     \
  }
XFER_IMPL(CPU)
XFER_IMPL(CUDA)
