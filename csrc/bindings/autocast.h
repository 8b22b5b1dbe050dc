// Autocast rules of the ops: what they cast is said in each op's docstring.
#pragma once

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>
#include <vector>

namespace xfer::bindings {

// The op called from an autocast rule must not enter that rule again.
struct AutocastOff {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

// Casts floating tensors other than fp64 to one dtype; weights are cast once per autocast region (cached).
class AutocastTo {
 public:
  explicit AutocastTo(c10::DeviceType device) : AutocastTo(device, at::autocast::get_autocast_dtype(device)) {}
  AutocastTo(c10::DeviceType device, at::ScalarType to) : device_(device), to_(to) {}

  at::Tensor operator()(const at::Tensor& t) const { return at::autocast::cached_cast(to_, t, device_); }
  std::optional<at::Tensor> operator()(const std::optional<at::Tensor>& t) const {
    return t.has_value() ? std::optional<at::Tensor>((*this)(*t)) : std::nullopt;
  }
  std::vector<at::Tensor> operator()(at::TensorList tensors) const {
    std::vector<at::Tensor> out;
    out.reserve(tensors.size());
    for (const at::Tensor& t : tensors) out.push_back((*this)(t));
    return out;
  }

 private:
  c10::DeviceType device_;
  at::ScalarType to_;
};

}  // namespace xfer::bindings
