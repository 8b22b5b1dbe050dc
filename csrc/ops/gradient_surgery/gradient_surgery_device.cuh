// How a block finds its way among segments and groups that only the device knows.
#pragma once

#include "common/reduce.cuh"
#include "ops/gradient_surgery/gradient_surgery.h"

namespace xfer {

// Index of the last of `count` ascending values that is at most `key`, or -1. A warp looks at 32 places at once: the
// loads depend on each other once for every factor of 32, not of 2. All lanes must call; values out of order give an
// index that is wrong, never one out of range.
__device__ inline int64_t last_at_most(const int64_t* values, int64_t count, int64_t key) {
  const int64_t lane = threadIdx.x % 32;
  int64_t first = 0;  // values[first - 1] <= key
  while (count > 0) {
    const int64_t step = (count + 31) / 32;
    const bool below = lane * step < count && values[first + lane * step] <= key;
    const int found = __popc(__ballot_sync(kFullWarp, below));
    if (found == 0) break;
    const int64_t place = (found - 1) * step;
    first += place + 1;
    count = (count - place < step ? count - place : step) - 1;
  }
  return first - 1;
}

// First column of segment `segment`, or the end of the last one: within the columns whatever the array says.
__device__ __forceinline__ int64_t segment_bound(const TaskGradientsView& grads, int64_t segment) {
  const int64_t column = grads.offsets[segment];
  return column < 0 ? 0 : column > grads.num_columns ? grads.num_columns : column;
}

// Where the gradient of `task` in `segment` starts, and the joined column it starts at; null: zeros.
template <typename T>
__device__ __forceinline__ const T* gradient_row(const TaskGradientsView& grads, int64_t segment, int64_t task) {
  return grads.pointers != nullptr ? static_cast<const T*>(grads.pointers[segment * grads.num_tasks + task])
                                   : static_cast<const T*>(grads.base) + task * grads.row_stride;
}

// Elements from the last 16-byte boundary to `row + column`. Null counts as aligned.
template <typename T>
__device__ __forceinline__ int64_t misalignment(const T* row, int64_t column) {
  return static_cast<int64_t>((reinterpret_cast<uintptr_t>(row) / sizeof(T) + static_cast<uintptr_t>(column)) %
                              kWidestVector<T>);
}

}  // namespace xfer
