// CUDA kernel of topk_similarity: a warp keeps a row's k best sorted, and passes over candidates that come after the
// last of them 32 at a time. The list stays in global memory, hot in cache, so that k has no limit.
#include "common/reduce.cuh"
#include "ops/topk_similarity/topk_similarity.h"
#include "ops/topk_similarity/topk_similarity_math.h"

namespace xfer {
namespace {

constexpr int kWarp = 32;

// Candidate (value, index) takes its place; what comes after it moves back by one, and the last one drops out.
__device__ void insert(float* values, int64_t* indices, int64_t k, float value, int64_t index, int lane) {
  int64_t before = 0;  // entries that come before the candidate
  for (int64_t begin = 0; begin < k; begin += kWarp) {
    const int64_t at = begin + lane;
    const bool stays = at < k && topk_before(values[at], indices[at], value, index);
    before += __popc(__ballot_sync(kFullWarp, stays));
  }
  for (int64_t top = k - 1; top > before; top -= kWarp) {
    const int64_t at = top - lane;
    float moved = 0.0f;
    int64_t moved_index = 0;
    if (at > before) {
      moved = values[at - 1];
      moved_index = indices[at - 1];
    }
    __syncwarp();
    if (at > before) {
      values[at] = moved;
      indices[at] = moved_index;
    }
    __syncwarp();
  }
  if (lane == 0) {
    values[before] = value;
    indices[before] = index;
  }
  __syncwarp();
}

__global__ void __launch_bounds__(kWarp) topk_similarity_kernel(const __grid_constant__ TopkSimilarityArgs args) {
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* sim = static_cast<const float*>(args.sim) + row * args.num_columns;
  const float* offset = static_cast<const float*>(args.key_offset);
  const float factor = static_cast<float>(args.factor);
  float* values = static_cast<float*>(args.values) + row * args.k;
  int64_t* indices = args.indices + row * args.k;
  if (args.first) {
    for (int64_t n = lane; n < args.k; n += kWarp) {
      values[n] = -INFINITY;
      indices[n] = INT64_MAX;
    }
    __syncwarp();
  }
  float worst = values[args.k - 1];
  for (int64_t begin = 0; begin < args.num_columns; begin += kWarp) {
    const int64_t j = begin + lane;
    const bool inside = j < args.num_columns;
    const float value = inside ? factor * sim[j] - (offset != nullptr ? offset[j] : 0.0f) : 0.0f;
    unsigned entering = __ballot_sync(kFullWarp, inside && topk_may_enter(value, worst));
    while (entering != 0) {
      const int source = __ffs(static_cast<int>(entering)) - 1;
      entering &= entering - 1;
      const float candidate = __shfl_sync(kFullWarp, value, source);
      const int64_t index = args.first_column + begin + source;
      if (!topk_before(candidate, index, worst, indices[args.k - 1])) continue;
      insert(values, indices, args.k, candidate, index, lane);
      worst = values[args.k - 1];
    }
  }
}

}  // namespace

void topk_similarity_tile_cuda(const TopkSimilarityArgs& args) {
  if (args.num_rows == 0) return;
  launch_kernel("topk_similarity_kernel", topk_similarity_kernel, dim3(static_cast<unsigned>(args.num_rows)),
                dim3(kWarp), 0, args.stream, args);
}

}  // namespace xfer
