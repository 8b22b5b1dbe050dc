// torch binding of linear_grad_reverse. It has no kernel of its own: three of ATen's GEMMs, with the reversal folded
// into the smallest operand of the one that makes the input's gradient.
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <limits>
#include <tuple>

#include "bindings/autocast.h"
#include "bindings/checks.h"
#include "bindings/grad_reverse.h"

namespace xfer::bindings {
namespace {

constexpr const char* kOp = "linear_grad_reverse";

void check_arguments(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& lam) {
  const ArgChecks check(kOp);
  check.dtype(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1, kOp, "(): x must have shape [..., in_dim], got ", x.sizes());
  check.rank(weight, "weight", 2, "[out_dim, in_dim]");
  TORCH_CHECK_VALUE(weight.size(1) == x.size(-1), kOp,
                    "(): weight must have shape [out_dim, in_dim] with in_dim = ", x.size(-1), " as in x, got ",
                    weight.sizes());
  check.like(weight, "weight", x, "x");
  if (bias.has_value()) {
    check.sizes(*bias, "bias", {weight.size(0)}, "[out_dim]");
    check.like(*bias, "bias", x, "x");
  }
  if (lam.has_value()) {
    TORCH_CHECK_VALUE(lam->dim() == 0 || (lam->dim() == 1 && x.dim() > 1 && lam->size(0) == x.size(0)), kOp,
                      "(): lam must be a number, a 0-dim tensor or of shape [num_rows] = [", x.size(0), "], got ",
                      lam->sizes());
    TORCH_CHECK_VALUE(at::isFloatingType(lam->scalar_type()), kOp, "(): lam must be floating point, got ",
                      lam->scalar_type());
  }
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   const std::optional<at::Tensor>& lam, double scale) {
  (void)scale;
  check_arguments(x, weight, bias, lam);
  return at::linear(x, weight, bias);
}

// [..., cols] as [rows, cols]; reshape({-1, cols}) is ambiguous where cols = 0.
at::Tensor as_rows(const at::Tensor& t) {
  const int64_t cols = t.size(-1);
  return t.reshape({c10::multiply_integers(t.sizes().slice(0, t.dim() - 1)), cols});
}

// -(scale * lam) grad W, the product taken on the side with the fewest elements.
at::Tensor input_gradient(const at::Tensor& grad, const at::Tensor& weight, const std::optional<at::Tensor>& lam,
                          double scale, int64_t lam_rows) {
  if (!lam.has_value() || (lam->dim() == 0 && lam->is_cpu())) {
    double factor = lam.has_value() ? scale * lam->item<double>() : scale;
    if (grad.scalar_type() != at::kDouble && std::abs(factor) > std::numeric_limits<float>::max()) {
      factor = std::copysign(std::numeric_limits<double>::infinity(), factor);  // ATen refuses to round alpha up to it
    }
    const at::Tensor no_bias = at::empty({1}, grad.options());  // beta = 0: never read
    return at::addmm(no_bias, grad, weight, /*beta=*/0, /*alpha=*/-factor);
  }
  // In fp16 a small lam would push the operand below the smallest number; the product is scaled instead.
  const bool after = grad.scalar_type() == at::kHalf;
  if (lam->dim() == 0 && weight.numel() <= grad.numel() && !after) {
    return at::mm(grad, grad_reverse_backward(weight, lam, scale));
  }
  // One lam a leading row: every row of the flattened gradient that belongs to it.
  const auto scaled = [&](const at::Tensor& t) {
    return grad_reverse_backward(t.reshape({lam_rows, t.numel() / lam_rows}), lam, scale).reshape(t.sizes());
  };
  return grad.size(1) <= weight.size(1) && !after ? at::mm(scaled(grad), weight) : scaled(at::mm(grad, weight));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x,
                                                        const at::Tensor& weight, const std::optional<at::Tensor>& lam,
                                                        double scale, std::array<bool, 3> wanted) {
  check_arguments(x, weight, std::nullopt, lam);
  const at::Tensor grad2d = as_rows(grad);
  const auto none = [&] { return at::empty({0}, grad.options()); };
  const int64_t lam_rows = lam.has_value() && lam->dim() == 1 ? x.size(0) : 1;
  const bool empty = grad2d.size(0) == 0;  // no row to divide by, nothing to scale
  at::Tensor grad_x = !wanted[0] ? none()
                      : empty    ? at::empty(x.sizes(), x.options())
                                 : input_gradient(grad2d, weight, lam, scale, lam_rows).reshape(x.sizes());
  at::Tensor grad_weight = wanted[1] ? at::mm(grad2d.t(), as_rows(x)) : none();
  at::Tensor grad_bias = wanted[2] ? grad2d.sum(0) : none();
  return {grad_x, grad_weight, grad_bias};
}

at::Tensor autocast_forward(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                            const std::optional<at::Tensor>& lam, double scale) {
  const AutocastOff guard;
  const AutocastTo cast(x.device().type());
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("xfercore::linear_grad_reverse", "").typed<decltype(forward)>();
  return op.call(cast(x), cast(weight), cast(bias), lam, scale);
}

}  // namespace
}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def("linear_grad_reverse(Tensor x, Tensor weight, Tensor? bias, Tensor? lam, float scale) -> Tensor");
  m.def(
      "linear_grad_reverse_backward(Tensor grad, Tensor x, Tensor weight, Tensor? lam, float scale, "
      "bool[3] wanted) -> (Tensor, Tensor, Tensor)");
}
#define XFER_IMPL(key)                                                 \
  TORCH_LIBRARY_IMPL(xfercore, key, m) {                               \
    m.impl("linear_grad_reverse", &xfer::bindings::forward);           \
    m.impl("linear_grad_reverse_backward", &xfer::bindings::backward); \
  }
XFER_IMPL(CPU)
XFER_IMPL(CUDA)
TORCH_LIBRARY_IMPL(xfercore, AutocastCPU, m) { m.impl("linear_grad_reverse", &xfer::bindings::autocast_forward); }
TORCH_LIBRARY_IMPL(xfercore, AutocastCUDA, m) { m.impl("linear_grad_reverse", &xfer::bindings::autocast_forward); }
