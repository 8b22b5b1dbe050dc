// Argument checks of the bindings: every sentence names the op, the argument, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "common/dtype.h"

namespace xfer::bindings {

class ArgChecks {
 public:
  explicit ArgChecks(const char* op) : op_(op) {}

  // `shape` is the documented one, e.g. "[num_tokens, num_experts]".
  void rank(const at::Tensor& t, const char* arg, int64_t rank, const char* shape) const {
    TORCH_CHECK_VALUE(t.dim() == rank, op_, "(): ", arg, " must have shape ", shape, ", got ", t.sizes());
  }
  void sizes(const at::Tensor& t, const char* arg, at::IntArrayRef expected, const char* shape) const {
    TORCH_CHECK_VALUE(t.sizes() == expected, op_, "(): ", arg, " must have shape ", shape, " = ", expected, ", got ",
                      t.sizes());
  }
  void like(const at::Tensor& t, const char* arg, const at::Tensor& model, const char* model_arg) const {
    TORCH_CHECK_VALUE(t.scalar_type() == model.scalar_type(), op_, "(): ", arg, " must have the dtype of ", model_arg,
                      " (", model.scalar_type(), "), got ", t.scalar_type());
    device(t, arg, model, model_arg);
  }
  void device(const at::Tensor& t, const char* arg, const at::Tensor& model, const char* model_arg) const {
    TORCH_CHECK_VALUE(t.device() == model.device(), op_, "(): ", arg, " must be on the device of ", model_arg, " (",
                      model.device(), "), got ", t.device());
  }
  // One of the dtypes that the kernels of this device know.
  DType dtype(const at::Tensor& t, const char* arg) const {
    switch (t.scalar_type()) {
      case at::kFloat:
        return DType::f32;
      case at::kBFloat16:
        return DType::bf16;
      case at::kHalf:
        return DType::f16;
      case at::kDouble:
        TORCH_CHECK_VALUE(t.is_cpu(), op_, "(): ", arg, " is float64, which only the CPU kernel takes; on ", t.device(),
                          " use float32, bfloat16 or float16");
        return DType::f64;
      default:
        TORCH_CHECK_VALUE(false, op_, "(): ", arg, " must be float32, bfloat16, float16 or (CPU) float64, got ",
                          t.scalar_type());
    }
  }
  void int64(const at::Tensor& t, const char* arg) const {
    TORCH_CHECK_VALUE(t.scalar_type() == at::kLong, op_, "(): ", arg, " must be int64, got ", t.scalar_type());
  }
  // The enumerator whose name is `value`.
  template <typename Enum, size_t Count>
  Enum choice(std::string_view value, const char* arg,
              const std::array<std::pair<const char*, Enum>, Count>& choices) const {
    for (const auto& [name, enumerator] : choices) {
      if (value == name) return enumerator;
    }
    std::string names;
    for (const auto& [name, enumerator] : choices) names += (names.empty() ? "" : ", ") + std::string(name);
    TORCH_CHECK_VALUE(false, op_, "(): ", arg, " must be one of ", names, ", got '", value, "'");
  }
  const char* op() const { return op_; }

 private:
  const char* op_;
};

// The dtype of sums and losses: fp32, or fp64 for fp64.
inline at::ScalarType compute_scalar_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace xfer::bindings
