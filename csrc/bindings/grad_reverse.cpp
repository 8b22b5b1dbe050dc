// torch binding of grad_reverse_backward and linear_grad_reverse's use of it.
#include "ops/grad_reverse/grad_reverse.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "bindings/checks.h"
#include "bindings/threads.h"
#include "bindings/device.h"
#include "bindings/grad_reverse.h"

namespace xfer::bindings {

at::Tensor grad_reverse_backward(const at::Tensor& grad, const std::optional<at::Tensor>& lam, double scale) {
  const ArgChecks check("grad_reverse");
  const at::Tensor grad_ = grad.contiguous();
  GradReverseBackwardArgs args{};
  args.dtype = check.dtype(grad_, "x");
  args.scale = scale;
  at::Tensor lam_;
  if (lam.has_value()) {
    TORCH_CHECK_VALUE(lam->dim() == 0 || (lam->dim() == 1 && grad.dim() > 0 && lam->size(0) == grad.size(0)),
                      "grad_reverse(): lam must be a number, a 0-dim tensor or of shape [num_rows] = [",
                      grad.dim() > 0 ? grad.size(0) : 1, "], got ", lam->sizes());
    TORCH_CHECK_VALUE(at::isFloatingType(lam->scalar_type()), "grad_reverse(): lam must be floating point, got ",
                      lam->scalar_type());
    if (lam->dim() == 0 && lam->is_cpu() && !grad.is_cpu()) {
      args.scale *= lam->item<double>();  // a number that happens to be a tensor: read on the host, nothing to wait for
    } else {
      check.device(*lam, "lam", grad, "x");
      lam_ = lam->to(compute_scalar_type(grad.scalar_type())).contiguous();
      args.lam = lam_.const_data_ptr();
      args.lam_per_row = lam->dim() == 1;
    }
  }
  args.num_rows = args.lam_per_row ? grad_.size(0) : 1;
  args.row_size = args.num_rows == 0 ? 0 : grad_.numel() / args.num_rows;
  at::Tensor out = at::empty_like(grad_, at::MemoryFormat::Contiguous);
  if (out.numel() == 0) return out;
  args.grad = grad_.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (grad_.is_cuda()) {
    launch_cuda(XFER_CUDA_LAUNCHER(grad_reverse_backward_cuda), check.op(), grad_, args, args.stream);
  } else {
    adopt_thread_count();
    grad_reverse_backward_cpu(args);
  }
  return out;
}

}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) { m.def("grad_reverse_backward(Tensor grad, Tensor? lam, float scale) -> Tensor"); }
TORCH_LIBRARY_IMPL(xfercore, CPU, m) { m.impl("grad_reverse_backward", &xfer::bindings::grad_reverse_backward); }
TORCH_LIBRARY_IMPL(xfercore, CUDA, m) { m.impl("grad_reverse_backward", &xfer::bindings::grad_reverse_backward); }
