// torch binding of the two passes over task gradients, task_gram and combine_gradients.
#include "ops/gradient_surgery/gradient_surgery.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/task_gradients.h"
#include "bindings/threads.h"

namespace xfer::bindings {
namespace {

const ArgChecks gram_check("task_gram");
const ArgChecks combine_check("combine_gradients");

at::Tensor gram_of(const TaskGradients& grads) {
  const int64_t num_tasks = grads.view.num_tasks;
  at::Tensor gram = at::empty({grads.num_groups, num_tasks, num_tasks}, grads.like.options().dtype(at::kDouble));
  if (gram.numel() == 0) return gram;
  TaskGramArgs args{};
  args.grads = grads.view;
  args.num_groups = grads.num_groups;
  args.group_offsets = grads.group_offsets;
  args.gram = gram.mutable_data_ptr<double>();
  const auto workspace = [&](int64_t bytes) {
    at::Tensor memory = at::empty({bytes}, grads.like.options().dtype(at::kByte));
    args.workspace = memory.mutable_data_ptr();
    return memory;
  };
  if (grads.like.is_cuda()) {
#if defined(XFER_WITH_CUDA)
    const at::Tensor memory = workspace(task_gram_workspace_bytes_cuda(args));
    args.status = device_status(grads.like).mutable_data_ptr<int32_t>();
#endif
    launch_cuda(XFER_CUDA_LAUNCHER(task_gram_cuda), gram_check.op(), grads.like, args, args.stream);
  } else {
    adopt_thread_count();
    const at::Tensor memory = workspace(task_gram_workspace_bytes_cpu(args));
    task_gram_cpu(args);
  }
  return gram;
}

at::Tensor task_gram(const at::Tensor& grads, const at::Tensor& offsets) {
  return gram_of(arena_gradients(gram_check, grads, offsets));
}

at::Tensor task_gram_list(const OptionalTensors& grads, int64_t num_tasks, const at::Tensor& offsets,
                          const at::Tensor& like) {
  return gram_of(list_gradients(gram_check, grads, num_tasks, offsets, like));
}

void run_combine(const TaskGradients& grads, const at::Tensor& weights, void* out, const at::Tensor& out_pointers) {
  combine_check.sizes(weights, "weights", {grads.num_groups, grads.view.num_tasks}, "[num_groups, num_tasks]");
  TORCH_CHECK_VALUE(weights.scalar_type() == at::kDouble, "combine_gradients(): weights must be float64, got ",
                    weights.scalar_type());
  combine_check.device(weights, "weights", grads.like, "grads");
  if (grads.view.num_columns == 0 || grads.num_groups == 0) return;
  const at::Tensor weights_ = weights.contiguous();
  CombineGradientsArgs args{};
  args.grads = grads.view;
  args.num_groups = grads.num_groups;
  args.group_offsets = grads.group_offsets;
  args.weights = weights_.const_data_ptr<double>();
  args.out = out;
  if (out_pointers.defined())
    args.out_pointers = reinterpret_cast<void* const*>(out_pointers.const_data_ptr<int64_t>());
  if (grads.like.is_cuda()) {
    launch_cuda(XFER_CUDA_LAUNCHER(combine_gradients_cuda), combine_check.op(), grads.like, args, args.stream);
  } else {
    adopt_thread_count();
    combine_gradients_cpu(args);
  }
}

// Columns that belong to no group are zero. On CUDA only the kernel knows them.
void zero_uncovered(const TaskGradients& grads, const at::Tensor& out) {
  if (grads.num_groups == 0) {
    out.zero_();
  } else if (grads.like.is_cpu()) {
    const int64_t first = grads.view.offsets[0], last = grads.view.offsets[grads.num_groups];
    if (first > 0) out.narrow(0, 0, first).zero_();
    if (last < out.size(0)) out.narrow(0, last, out.size(0) - last).zero_();
  }
}

void combine_gradients_out(const at::Tensor& grads, const at::Tensor& offsets, const at::Tensor& weights,
                           at::Tensor out) {
  const TaskGradients taken = arena_gradients(combine_check, grads, offsets);
  combine_check.sizes(out, "out", {taken.view.num_columns}, "[numel]");
  combine_check.like(out, "out", grads, "grads");
  TORCH_CHECK_VALUE(out.is_contiguous(), "combine_gradients(): out must be contiguous, got strides ", out.strides());
  zero_uncovered(taken, out);
  run_combine(taken, weights, out.mutable_data_ptr(), {});
}

at::Tensor combine_gradients(const at::Tensor& grads, const at::Tensor& offsets, const at::Tensor& weights) {
  combine_check.rank(grads, "grads", 2, "[num_tasks, numel]");
  at::Tensor out = at::empty({grads.size(1)}, grads.options());
  combine_gradients_out(grads, offsets, weights, out);
  return out;
}

// `out` per parameter; undefined where no result is wanted.
void combine_list(const TaskGradients& grads, const at::Tensor& weights, const std::vector<at::Tensor>& out) {
  std::vector<int64_t> pointers(out.size(), 0);
  const int64_t* groups = grads.host_group_offsets.const_data_ptr<int64_t>();
  const int64_t first = groups[0], last = groups[grads.num_groups];
  for (int64_t n = 0; n < static_cast<int64_t>(out.size()); ++n) {
    if (!out[n].defined()) continue;
    if (n < first || n >= last || !grads.first_of_param[n].has_value()) {
      out[n].zero_();  // in no group, or no task has a gradient for it
    } else {
      pointers[n] = reinterpret_cast<int64_t>(out[n].mutable_data_ptr());
    }
  }
  run_combine(grads, weights, nullptr, table_on_device(pointers, grads.like));
}

std::vector<at::Tensor> combine_gradients_list(const OptionalTensors& grads, int64_t num_tasks,
                                               const at::Tensor& offsets, const at::Tensor& weights,
                                               const at::Tensor& like) {
  const TaskGradients taken = list_gradients(combine_check, grads, num_tasks, offsets, like);
  std::vector<at::Tensor> out;
  for (const std::optional<at::Tensor>& first : taken.first_of_param) {
    out.push_back(at::empty(first.has_value() ? first->sizes() : at::IntArrayRef({0}), like.options()));
  }
  combine_list(taken, weights, out);
  return out;
}

void combine_gradients_list_out(const OptionalTensors& grads, int64_t num_tasks, const at::Tensor& offsets,
                                const at::Tensor& weights, const at::Tensor& like, at::TensorList out,
                                at::IntArrayRef places) {
  const TaskGradients taken = list_gradients(combine_check, grads, num_tasks, offsets, like);
  std::vector<at::Tensor> wanted(taken.view.num_segments);
  for (size_t m = 0; m < out.size(); ++m) {
    const int64_t n = m < places.size() ? places[m] : -1;
    TORCH_CHECK_VALUE(n >= 0 && n < taken.view.num_segments, "combine_gradients(): out must have a place among the ",
                      "num_params = ", taken.view.num_segments, " parameters, got ", n);
    const std::optional<at::Tensor>& first = taken.first_of_param[n];
    combine_check.like(out[m], "out[n]", like, "grads");
    TORCH_CHECK_VALUE(!first.has_value() || out[m].sizes() == first->sizes(), "combine_gradients(): out[", n,
                      "] must have the shape of its gradients (", first.has_value() ? first->sizes() : out[m].sizes(),
                      "), got ", out[m].sizes());
    TORCH_CHECK_VALUE(out[m].is_contiguous(), "combine_gradients(): out[", n, "] must be contiguous, got strides ",
                      out[m].strides());
    wanted[n] = out[m];
  }
  combine_list(taken, weights, wanted);
}

}  // namespace
}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def("task_gram(Tensor grads, Tensor offsets) -> Tensor");
  m.def("task_gram_list(Tensor?[] grads, int num_tasks, Tensor offsets, Tensor like) -> Tensor");
  m.def("combine_gradients(Tensor grads, Tensor offsets, Tensor weights) -> Tensor");
  m.def("combine_gradients_out(Tensor grads, Tensor offsets, Tensor weights, Tensor(a!) out) -> ()");
  m.def(
      "combine_gradients_list(Tensor?[] grads, int num_tasks, Tensor offsets, Tensor weights, Tensor like) -> "
      "Tensor[]");
  m.def(
      "combine_gradients_list_out(Tensor?[] grads, int num_tasks, Tensor offsets, Tensor weights, Tensor like, "
      "Tensor(a!)[] out, int[] places) -> ()");
}
#define XFER_IMPL(key)                                                                 \
  TORCH_LIBRARY_IMPL(xfercore, key, m) {                                               \
    m.impl("task_gram", &xfer::bindings::task_gram);                                   \
    m.impl("task_gram_list", &xfer::bindings::task_gram_list);                         \
    m.impl("combine_gradients", &xfer::bindings::combine_gradients);                   \
    m.impl("combine_gradients_out", &xfer::bindings::combine_gradients_out);           \
    m.impl("combine_gradients_list", &xfer::bindings::combine_gradients_list);         \
    m.impl("combine_gradients_list_out", &xfer::bindings::combine_gradients_list_out); \
  }
XFER_IMPL(CPU)
XFER_IMPL(CUDA)
