// torch binding of gated_mix. Experts come as one [num_tokens, num_experts, dim] tensor in a list of one, or as a list
// of num_experts [num_tokens, dim] tensors, which are never copied together.
#include "ops/gated_mix/gated_mix.h"

#include <ATen/ops/any.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "bindings/autocast.h"
#include "bindings/checks.h"
#include "bindings/threads.h"
#include "bindings/device.h"
#include "bindings/large_tensor.h"

namespace xfer::bindings {
namespace {

const ArgChecks check("gated_mix");

struct Checked {
  at::Tensor logits;                // contiguous
  std::vector<at::Tensor> experts;  // rows contiguous
  std::optional<at::Tensor> targets;
  DType dtype;
  int64_t num_tokens, num_experts, dim;
  bool stacked;
};

at::Tensor rows_contiguous(const at::Tensor& t) { return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous(); }

Checked check_arguments(const at::Tensor& logits, at::TensorList experts, const std::optional<at::Tensor>& targets) {
  check.rank(logits, "logits", 2, "[num_tokens, num_experts]");
  Checked out;
  out.dtype = check.dtype(logits, "logits");
  out.num_tokens = logits.size(0);
  out.num_experts = logits.size(1);
  TORCH_CHECK_VALUE(out.num_experts > 0, "gated_mix(): logits must have at least one expert, got shape ",
                    logits.sizes());
  TORCH_CHECK_VALUE(!experts.empty(), "gated_mix(): experts must be a tensor or a list of ", out.num_experts,
                    " tensors, got an empty list");
  out.stacked = experts.size() == 1 && experts[0].dim() == 3;
  out.dim = experts[0].dim() > 0 ? experts[0].size(-1) : 0;
  if (out.stacked) {
    check.sizes(experts[0], "experts", {out.num_tokens, out.num_experts, out.dim}, "[num_tokens, num_experts, dim]");
    check.like(experts[0], "experts", logits, "logits");
    out.experts = {rows_contiguous(experts[0])};
  } else {
    TORCH_CHECK_VALUE(static_cast<int64_t>(experts.size()) == out.num_experts,
                      "gated_mix(): experts must be a list of num_experts = ", out.num_experts,
                      " tensors (or one [num_tokens, num_experts, dim] tensor), got ", experts.size());
    for (const at::Tensor& expert : experts) {
      check.sizes(expert, "experts[k]", {out.num_tokens, out.dim}, "[num_tokens, dim]");
      check.like(expert, "experts[k]", logits, "logits");
      out.experts.push_back(rows_contiguous(expert));
    }
    if (out.num_experts > kGatedMixMaxPointers) {  // more pointers than a kernel's arguments hold
      out.experts = {at::stack(out.experts, 1)};
      out.stacked = true;
    }
  }
  if (targets.has_value()) {
    check.sizes(*targets, "targets", {out.num_tokens}, "[num_tokens]");
    check.int64(*targets, "targets");
    check.device(*targets, "targets", logits, "logits");
    out.targets = targets->contiguous();
  }
  out.logits = logits.contiguous();
  return out;
}

GatedMixExperts layout_of(const std::vector<at::Tensor>& experts, bool stacked) {
  GatedMixExperts out{};
  out.stacked = stacked;
  out.expert_stride = stacked ? experts[0].stride(1) : 0;
  for (size_t k = 0; k < experts.size(); ++k) {
    out.pointers[k] = experts[k].const_data_ptr();
    out.row_stride[k] = experts[k].stride(0);
  }
  return out;
}

// Values that only the device knows: on the CPU they raise; on CUDA the kernel gives NaN and sets the status flag.
void check_target_range(const Checked& c, int64_t ignore_index) {
  if (!c.targets.has_value() || c.num_tokens == 0 || !(c.logits.is_cpu() || check_requested())) return;
  const at::Tensor bad =
      (c.targets->ne(ignore_index)).logical_and((c.targets->lt(0)).logical_or(c.targets->ge(c.num_experts)));
  if (!bad.any().item<bool>()) return;
  const int64_t row = bad.nonzero()[0][0].item<int64_t>();
  TORCH_CHECK_VALUE(false, "gated_mix(): targets[", row, "] = ", (*c.targets)[row].item<int64_t>(),
                    " is out of range: expected 0 <= target < num_experts = ", c.num_experts,
                    " or ignore_index = ", ignore_index);
}

const int64_t* targets_pointer(const Checked& c) {
  return c.targets.has_value() ? c.targets->const_data_ptr<int64_t>() : nullptr;
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& logits, at::TensorList experts,
                                           const std::optional<at::Tensor>& targets, int64_t ignore_index) {
  const Checked c = check_arguments(logits, experts, targets);
  check_target_range(c, ignore_index);
  at::Tensor mixed = at::empty({c.num_tokens, c.dim}, c.logits.options());
  at::Tensor nll = at::empty({c.num_tokens}, c.logits.options().dtype(compute_scalar_type(logits.scalar_type())));
  if (c.num_tokens == 0) return {mixed, nll};
  GatedMixForwardArgs args{};
  args.dtype = c.dtype;
  args.num_tokens = c.num_tokens;
  args.num_experts = c.num_experts;
  args.dim = c.dim;
  args.logits = c.logits.const_data_ptr();
  args.experts = layout_of(c.experts, c.stacked);
  args.targets = targets_pointer(c);
  args.ignore_index = ignore_index;
  args.mixed = mixed.mutable_data_ptr();
  args.gate_nll = nll.mutable_data_ptr();
  if (c.logits.is_cuda()) {
    if (c.targets.has_value()) args.status = device_status(c.logits).mutable_data_ptr<int32_t>();
    launch_cuda(XFER_CUDA_LAUNCHER(gated_mix_forward_cuda), check.op(), c.logits, args, args.stream);
  } else {
    adopt_thread_count();
    gated_mix_forward_cpu(args);
  }
  return {mixed, nll};
}

std::tuple<at::Tensor, std::vector<at::Tensor>> backward(const at::Tensor& grad_mixed,
                                                         const std::optional<at::Tensor>& grad_nll,
                                                         const at::Tensor& logits, at::TensorList experts,
                                                         const std::optional<at::Tensor>& targets, int64_t ignore_index,
                                                         bool need_grad_experts) {
  const Checked c = check_arguments(logits, experts, targets);
  check.sizes(grad_mixed, "grad_mixed", {c.num_tokens, c.dim}, "[num_tokens, dim]");
  check.like(grad_mixed, "grad_mixed", logits, "logits");
  at::Tensor grad_logits = at::empty({c.num_tokens, c.num_experts}, c.logits.options());
  std::vector<at::Tensor> grad_experts;
  if (need_grad_experts) {
    for (const at::Tensor& expert : c.experts) grad_experts.push_back(empty_large(expert.sizes(), c.logits.options()));
  }
  const auto as_given = [&] {  // a list that was stacked for the kernel goes back as a list of its own tensors
    if (!need_grad_experts || grad_experts.size() == experts.size()) return grad_experts;
    std::vector<at::Tensor> list;
    for (const at::Tensor& slice : grad_experts[0].unbind(1)) list.push_back(slice.contiguous());
    return list;
  };
  if (c.num_tokens == 0) return {grad_logits, as_given()};
  const at::Tensor grad_mixed_ = grad_mixed.contiguous();
  at::Tensor grad_nll_;
  GatedMixBackwardArgs args{};
  if (grad_nll.has_value()) {
    check.sizes(*grad_nll, "grad_nll", {c.num_tokens}, "[num_tokens]");
    grad_nll_ = grad_nll->to(compute_scalar_type(logits.scalar_type())).contiguous();
    args.grad_nll = grad_nll_.const_data_ptr();
  }
  args.dtype = c.dtype;
  args.num_tokens = c.num_tokens;
  args.num_experts = c.num_experts;
  args.dim = c.dim;
  args.grad_mixed = grad_mixed_.const_data_ptr();
  args.logits = c.logits.const_data_ptr();
  args.experts = layout_of(c.experts, c.stacked);
  args.targets = targets_pointer(c);
  args.ignore_index = ignore_index;
  args.grad_logits = grad_logits.mutable_data_ptr();
  args.need_grad_experts = need_grad_experts;
  if (need_grad_experts) args.grad_experts = layout_of(grad_experts, c.stacked);
  if (c.logits.is_cuda()) {
    launch_cuda(XFER_CUDA_LAUNCHER(gated_mix_backward_cuda), check.op(), c.logits, args, args.stream);
  } else {
    adopt_thread_count();
    gated_mix_backward_cpu(args);
  }
  return {grad_logits, as_given()};
}

// Casts to the widest dtype among logits and experts: the mix itself never loses precision to autocast.
std::tuple<at::Tensor, at::Tensor> autocast_forward(const at::Tensor& logits, at::TensorList experts,
                                                    const std::optional<at::Tensor>& targets, int64_t ignore_index) {
  const AutocastOff guard;
  at::ScalarType widest = logits.scalar_type();
  for (const at::Tensor& expert : experts) widest = c10::promoteTypes(widest, expert.scalar_type());
  const AutocastTo cast(logits.device().type(), widest);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("xfercore::gated_mix", "").typed<decltype(forward)>();
  const std::vector<at::Tensor> cast_experts = cast(experts);
  return op.call(cast(logits), cast_experts, targets, ignore_index);
}

}  // namespace
}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def("gated_mix(Tensor logits, Tensor[] experts, Tensor? targets, int ignore_index) -> (Tensor, Tensor)");
  m.def(
      "gated_mix_backward(Tensor grad_mixed, Tensor? grad_nll, Tensor logits, Tensor[] experts, Tensor? targets, "
      "int ignore_index, bool need_grad_experts) -> (Tensor, Tensor[])");
}
#define XFER_IMPL(key)                                       \
  TORCH_LIBRARY_IMPL(xfercore, key, m) {                     \
    m.impl("gated_mix", &xfer::bindings::forward);           \
    m.impl("gated_mix_backward", &xfer::bindings::backward); \
  }
XFER_IMPL(CPU)
XFER_IMPL(CUDA)
TORCH_LIBRARY_IMPL(xfercore, AutocastCPU, m) { m.impl("gated_mix", &xfer::bindings::autocast_forward); }
TORCH_LIBRARY_IMPL(xfercore, AutocastCUDA, m) { m.impl("gated_mix", &xfer::bindings::autocast_forward); }
