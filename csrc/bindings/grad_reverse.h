// The one pass that linear_grad_reverse shares with grad_reverse.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace xfer::bindings {

// -(scale * lam) * grad; lam 0-dim or one value a row.
at::Tensor grad_reverse_backward(const at::Tensor& grad, const std::optional<at::Tensor>& lam, double scale);

}  // namespace xfer::bindings
