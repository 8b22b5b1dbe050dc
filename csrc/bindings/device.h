// What differs between devices, without a single CUDA header of torch: the guard, the stream and the status flag.
//
// c10's device-generic guard reaches the CUDA implementation that a CUDA build of torch registers; with a CPU-only
// torch the same code builds and links and is never called.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "common/error.h"
#include "common/launch.h"

namespace xfer::bindings {

// The stream that torch currently uses on the tensor's device. The caller holds a DeviceGuard for it.
inline stream_t current_stream(const at::Tensor& t) {
  const c10::impl::VirtualGuardImpl guard(t.device().type());
  return guard.getStream(t.device()).native_handle();
}

// Calls the CUDA launcher on t's device and torch's current stream there (stored in `stream`, a member of args), or
// explains why there is none in this build.
template <typename Launcher, typename Args>
void launch_cuda(Launcher launcher, [[maybe_unused]] const char* op, const at::Tensor& t, const Args& args,
                 stream_t& stream) {
#if defined(XFER_WITH_CUDA)
  const c10::DeviceGuard guard(t.device());
  stream = current_stream(t);
  launcher(args);
#else
  (void)launcher, (void)args, (void)stream;
  TORCH_CHECK(false, op, "(): got a tensor on ", t.device(),
              ", but xfercore was built without CUDA kernels; build it again where nvcc is installed (XFER_CUDA=1)");
#endif
}

// Kernels set a bit of this int32 on the tensor's device where data they read was out of range; nobody waits for it.
at::Tensor device_status(const at::Tensor& like);
constexpr int32_t kStatusTargetOutOfRange = 1;
constexpr int32_t kStatusRankingTargetOutOfRange = 4;

// XFER_CHECK=1: such data raises at once, at the price of a synchronisation per call.
bool check_requested();

}  // namespace xfer::bindings

#if defined(XFER_WITH_CUDA)
#define XFER_CUDA_LAUNCHER(name) name
#else
#define XFER_CUDA_LAUNCHER(name) nullptr
#endif
