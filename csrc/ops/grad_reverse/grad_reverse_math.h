// The formula of grad_reverse's backward pass, for CPU and CUDA.
#pragma once

#include "common/host_device.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

// -coefficient * grad. Adding +0 turns the -0 that a zero coefficient gives into 0, and leaves NaN and inf alone.
template <typename C>
XFER_HD C grad_reverse_scale(C grad, C coefficient) {
  return -coefficient * grad + C(0);
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
