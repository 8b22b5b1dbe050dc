// The order of candidates of topk_similarity, for CPU and CUDA.
#pragma once

#include "common/host_device.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

// Whether candidate (a, i) comes before (b, j): NaN first, then larger values, then lower indices.
template <typename C>
XFER_HD bool topk_before(C a, int64_t i, C b, int64_t j) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan != b_nan) return a_nan;
  if (a > b) return true;
  return !(a < b) && i < j;
}

// The quick test of a whole vector: false only where the value comes after `worst` whatever their indices.
template <typename C>
XFER_HD bool topk_may_enter(C value, C worst) {
  return !(value < worst);
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
