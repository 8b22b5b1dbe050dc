// Task gradients as they come from Python (an arena, or a list per task) as the view that the kernels take.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "bindings/checks.h"
#include "ops/gradient_surgery/gradient_surgery.h"

namespace xfer::bindings {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

// Owns what `view` points to.
struct TaskGradients {
  TaskGradientsView view{};
  int64_t num_groups = 0;
  const int64_t* group_offsets = nullptr;  // where the kernel's device reads it; null for an arena

  at::Tensor like;                                        // dtype and device of the gradients
  std::vector<at::Tensor> held;                           // contiguous gradients
  std::vector<std::optional<at::Tensor>> first_of_param;  // list form: a gradient of each parameter, for its shape
  at::Tensor offsets, pointers;
  at::Tensor host_group_offsets, device_group_offsets;  // list form
};

// [num_tasks, numel] with columns contiguous; offsets int64[num_groups + 1] on the same device.
TaskGradients arena_gradients(const ArgChecks& check, const at::Tensor& grads, const at::Tensor& offsets);

// num_tasks x num_params gradients, task by task; offsets int64[num_groups + 1] on the CPU, in parameters.
TaskGradients list_gradients(const ArgChecks& check, const OptionalTensors& grads, int64_t num_tasks,
                             const at::Tensor& offsets, const at::Tensor& like);

// A host table where kernels on like's device can read it; nothing waits for the copy.
at::Tensor table_on_device(const std::vector<int64_t>& table, const at::Tensor& like);

}  // namespace xfer::bindings
