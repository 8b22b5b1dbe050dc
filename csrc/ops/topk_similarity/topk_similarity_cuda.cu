// CUDA kernel of topk_similarity: a block takes a row and collects in shared memory the candidates that come before the
// worst of the k best so far; when there is no room for more it sorts them and keeps k. The order of candidates is
// total, so the result does not depend on which of them found its place first.
#include "common/reduce.cuh"
#include "ops/topk_similarity/topk_similarity.h"
#include "ops/topk_similarity/topk_similarity_math.h"

namespace xfer {
namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 512;
constexpr int64_t kFewestPlaces = 256;            // of a list
constexpr int64_t kMostPlaces = 8192;             // 96 KiB: what every device since sm_80 has
constexpr int64_t kLeastRoom = 64;                // beside the k best
constexpr int64_t kManyThreads = 132 * 2048 / 2;  // that keep a device's memory busy
template <int kSize>
constexpr int kPerThread = kSize == 1 ? 8 : 16;  // similarities a thread has in registers at a time

// Candidates in shared memory; `places` of them is a power of two.
struct Candidates {
  int64_t* indices;
  float* values;
  int64_t places;

  __device__ __forceinline__ void set(int64_t at, float value, int64_t index) const {
    values[at] = value;
    indices[at] = index;
  }

  // Best first, by all threads of the block: a bitonic network over the least power of two that holds `count`.
  __device__ __forceinline__ void sort(int64_t count) const {
    int size = 1;
    while (size < count) size *= 2;
    // What every candidate comes before.
    for (int64_t at = count + threadIdx.x; at < size; at += blockDim.x) set(at, -INFINITY, INT64_MAX);
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
      for (int stride = run / 2; stride > 0; stride /= 2) {
        for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += static_cast<int>(blockDim.x)) {
          const int a = 2 * pair - (pair & (stride - 1)), b = a + stride;
          const float value_a = values[a], value_b = values[b];
          const int64_t index_a = indices[a], index_b = indices[b];
          const bool best_first = (a & run) == 0;
          if (topk_before(value_b, index_b, value_a, index_a) == best_first) {
            set(a, value_b, index_b);
            set(b, value_a, index_a);
          }
        }
        __syncthreads();
      }
    }
  }
};

template <int kSize>
__global__ void __launch_bounds__(kMaxThreads, 2)
    topk_similarity_kernel(const __grid_constant__ TopkSimilarityArgs args, int64_t places) {
  using Packed = Vector<float, kSize>;
  constexpr int kCount = kPerThread<kSize>;
  XFER_DYNAMIC_SMEM(int64_t, smem);  // indices [places], values [places]
  __shared__ int taken;              // places asked for, perhaps more than there are
  const Candidates list = {smem, reinterpret_cast<float*>(smem + places), places};
  const int64_t k = args.k;
  const float* sim = static_cast<const float*>(args.sim) + blockIdx.x * args.num_columns;
  const float* offsets = static_cast<const float*>(args.key_offset);
  const float factor = static_cast<float>(args.factor);
  float* values = static_cast<float*>(args.values) + blockIdx.x * k;
  int64_t* indices = args.indices + blockIdx.x * k;
  for (int64_t n = threadIdx.x; n < k; n += blockDim.x) {
    list.set(n, args.first ? -INFINITY : values[n], args.first ? INT64_MAX : indices[n]);
  }
  if (threadIdx.x == 0) taken = static_cast<int>(k);
  __syncthreads();
  float worst = list.values[k - 1];
  int64_t worst_index = list.indices[k - 1];
  int64_t filled = k;
  // Keeps the k best of the list; by all threads, between barriers.
  const auto shrink = [&] {
    if (filled > k) list.sort(filled);
    worst = list.values[k - 1];
    worst_index = list.indices[k - 1];
    filled = k;
    if (threadIdx.x == 0) taken = static_cast<int>(k);
    __syncthreads();
  };

  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;
  for (int64_t begin = 0; begin < args.num_columns; begin += step) {
    const auto column = [&](int n) { return begin + (n / kSize * blockDim.x + threadIdx.x) * kSize + n % kSize; };
    float s[kCount];
    unsigned entering = 0;
#pragma unroll
    for (int n = 0; n < kCount; n += kSize) {
      const int64_t j = column(n);
      Packed sims = {}, offset = {};
      if (j < args.num_columns) {
        sims = *reinterpret_cast<const Packed*>(sim + j);
        if (offsets != nullptr) offset = *reinterpret_cast<const Packed*>(offsets + j);
      }
#pragma unroll
      for (int l = 0; l < kSize; ++l) {
        s[n + l] = factor * sims.at[l] - offset.at[l];
        if (j < args.num_columns && topk_may_enter(s[n + l], worst)) entering |= 1u << (n + l);
      }
    }
    for (;;) {
      if (entering != 0) {
        unsigned left = 0;  // those that found no room
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
          const int64_t index = args.first_column + column(n);
          if ((entering >> n & 1u) == 0 || !topk_before(s[n], index, worst, worst_index)) continue;
          const int at = atomicAdd(&taken, 1);
          if (at < places) {
            list.set(at, s[n], index);
          } else {
            left |= 1u << n;
          }
        }
        entering = left;
      }
      __syncthreads();
      const int64_t asked = taken;
      __syncthreads();  // all have read it before anyone asks for more
      filled = asked < places ? asked : places;
      if (asked <= places) break;
      shrink();
    }
  }
  shrink();
  for (int64_t n = threadIdx.x; n < k; n += blockDim.x) {
    values[n] = list.values[n];
    indices[n] = list.indices[n];
  }
}

// Candidate (value, index) takes its place; what comes after it moves back by one, and the last one drops out.
__device__ void insert(float* values, int64_t* indices, int64_t k, float value, int64_t index, int lane) {
  int64_t before = 0;  // entries that come before the candidate
  for (int64_t begin = 0; begin < k; begin += kWarpSize) {
    const int64_t at = begin + lane;
    const bool stays = at < k && topk_before(values[at], indices[at], value, index);
    before += __popc(__ballot_sync(kFullWarp, stays));
  }
  for (int64_t top = k - 1; top > before; top -= kWarpSize) {
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

// Lists longer than shared memory: a warp a row keeps its list sorted where it lies, in global memory, and passes over
// candidates that come after the last of them 32 at a time. Slow, but without a limit on k.
__global__ void __launch_bounds__(kWarpSize)
    topk_similarity_long_kernel(const __grid_constant__ TopkSimilarityArgs args) {
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* sim = static_cast<const float*>(args.sim) + row * args.num_columns;
  const float* offset = static_cast<const float*>(args.key_offset);
  const float factor = static_cast<float>(args.factor);
  float* values = static_cast<float*>(args.values) + row * args.k;
  int64_t* indices = args.indices + row * args.k;
  if (args.first) {
    for (int64_t n = lane; n < args.k; n += kWarpSize) {
      values[n] = -INFINITY;
      indices[n] = INT64_MAX;
    }
    __syncwarp();
  }
  float worst = values[args.k - 1];
  for (int64_t begin = 0; begin < args.num_columns; begin += kWarpSize) {
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
  if (args.dtype != DType::f32) throw Error("topk_similarity: similarities on CUDA are float32");
  if (args.k > kMostPlaces - kLeastRoom) {
    launch_kernel("topk_similarity_long_kernel", topk_similarity_long_kernel,
                  dim3(static_cast<unsigned>(args.num_rows)), dim3(kWarpSize), 0, args.stream, args);
    return;
  }
  // Room for as many again, so that a list is sorted about once for every time its k best are replaced.
  const int64_t room = args.k < kFewestPlaces / 2 ? kFewestPlaces / 2 : args.k;
  int64_t places = kFewestPlaces;
  while (places < kMostPlaces && places < args.k + room) places *= 2;
  const auto launch = [&](auto size) {
    constexpr int kSize = size();
    // A warp a row where there are many rows; more where there are few, or where the list is long to sort.
    int64_t threads = 32;
    while (threads < kMaxThreads && (args.num_rows * threads < kManyThreads || threads * 8 < places) &&
           threads * kPerThread<kSize> < args.num_columns) {
      threads *= 2;
    }
    launch_kernel("topk_similarity_kernel", topk_similarity_kernel<kSize>, dim3(static_cast<unsigned>(args.num_rows)),
                  dim3(static_cast<unsigned>(threads)), static_cast<size_t>(places) * (sizeof(int64_t) + sizeof(float)),
                  args.stream, args, places);
  };
  const bool aligned = args.num_columns % 4 == 0 && is_aligned(args.sim) && is_aligned(args.key_offset);
  aligned ? launch(std::integral_constant<int, 4>{}) : launch(std::integral_constant<int, 1>{});
}

}  // namespace xfer
