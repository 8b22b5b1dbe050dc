// What the CUDA passes of inbatch_softmax_loss share.
#pragma once

#include "common/reduce.cuh"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss_math.h"

namespace xfer {

// inbatch_weight with the device's exp: half the instructions.
__device__ __forceinline__ float weigh(float logit, float maximum) {
  return logit == -INFINITY ? 0.0f : expf(logit - maximum);
}

// What is subtracted from logits, none of which is above `maximum`: exp of a masked one is 0, never NaN.
__device__ __forceinline__ float finite_or_zero(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

}  // namespace xfer
