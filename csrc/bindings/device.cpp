// The status flag of device.h: one int32 a device, made on first use and kept for the life of the process.
#include "bindings/device.h"

#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace xfer::bindings {

at::Tensor device_status(const at::Tensor& like) {
  // Never freed: at exit the device may be gone before static objects are.
  static auto& flags = *new std::map<c10::DeviceIndex, at::Tensor>();
  static auto& mutex = *new std::mutex();
  const std::lock_guard<std::mutex> lock(mutex);
  auto& flag = flags[like.device().index()];
  // Made outside inference mode, whose tensors could never be cleared; a graph must not be the first to need it.
  const c10::InferenceMode no_inference(false);
  if (!flag.defined()) flag = at::zeros({1}, like.options().dtype(at::kInt).requires_grad(false));
  return flag;
}

bool check_requested() {
  const char* value = std::getenv("XFER_CHECK");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace xfer::bindings

// The flag of like's device, for xfercore.device_status; reading its value is the caller's synchronisation.
TORCH_LIBRARY_FRAGMENT(xfercore, m) { m.def("device_status(Tensor like) -> Tensor"); }
TORCH_LIBRARY_IMPL(xfercore, CPU, m) { m.impl("device_status", &xfer::bindings::device_status); }
TORCH_LIBRARY_IMPL(xfercore, CUDA, m) { m.impl("device_status", &xfer::bindings::device_status); }
