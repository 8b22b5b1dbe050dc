// Checks of task gradients and their offsets, and the tables that kernels read.
#include "bindings/task_gradients.h"

#include <ATen/ops/empty.h>

#include <cstring>

namespace xfer::bindings {
namespace {

void check_offsets(const ArgChecks& check, const at::Tensor& offsets) {
  check.rank(offsets, "offsets", 1, "[num_groups + 1]");
  check.int64(offsets, "offsets");
  TORCH_CHECK_VALUE(offsets.size(0) >= 1, check.op(), "(): offsets must have shape [num_groups + 1], got ",
                    offsets.sizes());
}

// Host offsets: ascending, from 0 to `end` at most.
void check_ascending(const ArgChecks& check, const at::Tensor& offsets, int64_t end) {
  const int64_t* at = offsets.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < offsets.size(0); ++k) {
    const int64_t least = k == 0 ? 0 : at[k - 1];
    TORCH_CHECK_VALUE(at[k] >= least && at[k] <= end, check.op(), "(): offsets[", k, "] = ", at[k],
                      " is out of order or range: expected ascending numbers from 0 to ", end);
  }
}

}  // namespace

at::Tensor table_on_device(const std::vector<int64_t>& table, const at::Tensor& like) {
  at::Tensor host = at::empty({static_cast<int64_t>(table.size())}, at::TensorOptions().dtype(at::kLong));
  if (!table.empty()) std::memcpy(host.mutable_data_ptr(), table.data(), table.size() * sizeof(int64_t));
  return like.is_cpu() ? host : host.to(like.device(), /*non_blocking=*/true);
}

TaskGradients arena_gradients(const ArgChecks& check, const at::Tensor& grads, const at::Tensor& offsets) {
  TaskGradients out;
  check.rank(grads, "grads", 2, "[num_tasks, numel]");
  check_offsets(check, offsets);
  check.device(offsets, "offsets", grads, "grads");
  TORCH_CHECK_VALUE(grads.size(0) > 0, check.op(), "(): grads must have at least one task, got shape ", grads.sizes());
  out.view.dtype = check.dtype(grads, "grads");
  out.like = grads;
  const at::Tensor rows = grads.stride(1) == 1 || grads.size(1) <= 1 ? grads : grads.contiguous();
  out.held = {rows};
  out.offsets = offsets.contiguous();
  if (grads.is_cpu()) check_ascending(check, out.offsets, grads.size(1));
  out.num_groups = offsets.size(0) - 1;
  out.view.num_tasks = grads.size(0);
  out.view.num_columns = grads.size(1);
  out.view.num_segments = out.num_groups;
  out.view.offsets = out.offsets.const_data_ptr<int64_t>();
  out.view.base = rows.const_data_ptr();
  out.view.row_stride = rows.stride(0);
  return out;
}

TaskGradients list_gradients(const ArgChecks& check, const OptionalTensors& grads, int64_t num_tasks,
                             const at::Tensor& offsets, const at::Tensor& like) {
  TaskGradients out;
  const int64_t entries = static_cast<int64_t>(grads.size());
  TORCH_CHECK_VALUE(num_tasks > 0 && entries % num_tasks == 0, check.op(),
                    "(): grads must hold num_tasks = ", num_tasks, " lists of the same length, got ", entries,
                    " gradients");
  check_offsets(check, offsets);
  TORCH_CHECK_VALUE(offsets.is_cpu(), check.op(), "(): offsets of the list form must be on the CPU, got ",
                    offsets.device());
  const int64_t num_params = entries / num_tasks;
  out.view.dtype = check.dtype(like, "grads");
  out.like = like;
  const at::Tensor groups = offsets.contiguous();
  check_ascending(check, groups, num_params);
  out.num_groups = groups.size(0) - 1;
  out.first_of_param.resize(num_params);
  std::vector<int64_t> columns(num_params + 1, 0), pointers(entries, 0);
  for (int64_t t = 0; t < num_tasks; ++t) {
    for (int64_t n = 0; n < num_params; ++n) {
      const std::optional<at::Tensor> given = grads.get(t * num_params + n);
      if (!given.has_value() || !given->defined()) continue;
      check.like(*given, "grads[t][n]", like, "the others");
      std::optional<at::Tensor>& first = out.first_of_param[n];
      if (!first.has_value()) {
        first = *given;
        columns[n + 1] = given->numel();
      }
      TORCH_CHECK_VALUE(given->sizes() == first->sizes(), check.op(), "(): grads[", t, "][", n,
                        "] must have the shape of the other tasks' (", first->sizes(), "), got ", given->sizes());
      out.held.push_back(given->contiguous());
      pointers[n * num_tasks + t] = reinterpret_cast<int64_t>(out.held.back().const_data_ptr());
    }
  }
  for (int64_t n = 0; n < num_params; ++n) columns[n + 1] += columns[n];
  out.offsets = table_on_device(columns, like);
  out.pointers = table_on_device(pointers, like);
  out.host_group_offsets = groups;
  out.device_group_offsets = like.is_cpu() ? groups : groups.to(like.device(), /*non_blocking=*/true);
  out.group_offsets = out.device_group_offsets.const_data_ptr<int64_t>();
  out.view.num_tasks = num_tasks;
  out.view.num_columns = columns[num_params];
  out.view.num_segments = num_params;
  out.view.offsets = out.offsets.const_data_ptr<int64_t>();
  out.view.pointers = reinterpret_cast<const void* const*>(out.pointers.const_data_ptr<int64_t>());
  return out;
}

}  // namespace xfer::bindings
