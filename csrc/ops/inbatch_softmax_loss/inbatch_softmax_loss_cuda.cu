// CUDA passes of inbatch_softmax_loss: a thread block takes a row, which after the first reading lies in L2; columns
// are 32 a block, their rows shared out over its warps.
#include <type_traits>

#include "common/reduce.cuh"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss_math.h"

namespace xfer {
namespace {

constexpr int kThreads = 256;
constexpr int kShortThreads = 64;  // of rows up to kShortRow columns
constexpr int64_t kShortRow = 1024;
constexpr int kPerThread = 4;  // columns of a thread in flight while gradients replace similarities
constexpr int kColumnThreads = 32, kRowLanes = 8;

// Sum or maximum over the block, in a fixed order; every thread gets it.
template <int kSize, bool kMaximum>
__device__ float block_reduce(float value, float* warps) {
  value = kMaximum ? group_max<32>(value) : group_sum<32>(value);
  __syncthreads();  // the last result has been read by all
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float out = warps[0];
  for (int w = 1; w < kSize / 32; ++w) out = kMaximum ? fmaxf(out, warps[w]) : out + warps[w];
  return out;
}

template <typename T>
struct Row {
  const InbatchRowsArgs& args;
  int64_t index, local, row_id;
  float scale, pos_sim, pos_shifted;

  __device__ float* sim() const { return static_cast<float*>(args.sim) + index * args.num_columns; }
  __device__ float* hard() const { return static_cast<float*>(args.hard_sim) + index * args.num_hard; }
  // What competes with the positive: -inf for the positive itself and for masked columns.
  __device__ float competitor(int64_t j, float sim) const {
    if (j == local) return -INFINITY;
    return args.col_ids != nullptr && inbatch_masked(row_id, args.col_ids[j], kInbatchAbsent) ? -INFINITY : sim;
  }
  __device__ float hard_competitor(int64_t h) const {
    const bool masked =
        args.hard_ids != nullptr && inbatch_hard_masked(row_id, args.hard_ids[index * args.num_hard + h]);
    return masked ? -INFINITY : hard()[h];
  }
};

struct Best {
  float sim;
  int64_t place;
};

__device__ __forceinline__ bool better(float sim, int64_t place, const Best& than) {
  return sim > than.sim || (sim == than.sim && place < than.place);
}

// Competitors not below the positive, and the best of them: partial results of all threads, halved again and again.
template <int kSize, typename T>
__device__ void rank_row(const Row<T>& row, bool first, int64_t num_hard, int64_t target) {
  __shared__ Best bests[kSize];
  __shared__ int64_t counts[kSize];
  const InbatchRowsArgs& args = row.args;
  Best best{-INFINITY, INT64_MAX};
  int64_t count = 0;
  const auto add = [&](float sim, int64_t place) {
    if (sim == -INFINITY || !inbatch_beats(sim, row.pos_sim)) return;
    ++count;
    if (better(sim, place, best)) best = {sim, place};
  };
  for (int64_t j = threadIdx.x; j < args.num_columns; j += kSize) {
    add(row.competitor(j, row.sim()[j]), args.first_column + j);
  }
  for (int64_t h = threadIdx.x; h < num_hard; h += kSize) add(row.hard_competitor(h), args.num_all + h);
  bests[threadIdx.x] = best;
  counts[threadIdx.x] = count;
  for (int half = kSize / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      const Best other = bests[threadIdx.x + half];
      if (better(other.sim, other.place, bests[threadIdx.x])) bests[threadIdx.x] = other;
      counts[threadIdx.x] += counts[threadIdx.x + half];
    }
  }
  if (threadIdx.x != 0) return;
  float* best_sim = static_cast<float*>(args.best_sim) + row.index;
  args.rank[row.index] = (first ? 1 : args.rank[row.index]) + counts[0];
  Best held{first ? row.pos_sim : *best_sim, first ? target : args.argmax[row.index]};
  const bool own = held.place == target;
  if (bests[0].place != INT64_MAX && (own ? bests[0].sim >= held.sim : better(bests[0].sim, bests[0].place, held))) {
    held = bests[0];
  }
  args.argmax[row.index] = held.place;
  *best_sim = held.sim;
}

// Gradients take the place of the similarities. A half row lies over the front of the row that is still being read:
// all threads read their columns before any writes.
template <int kSize, typename T>
__device__ float grad_row(const Row<T>& row, float maximum, float weight, float positive, float out_scale) {
  const InbatchRowsArgs& args = row.args;
  const float* col_lse = static_cast<const float*>(args.col_lse);
  const float* col_coef = static_cast<const float*>(args.col_coef);
  T* out = reinterpret_cast<T*>(row.sim());
  float moment = 0.0f;
  for (int64_t begin = 0; begin < args.num_columns; begin += kSize * kPerThread) {
    float sims[kPerThread];
#pragma unroll
    for (int p = 0; p < kPerThread; ++p) {
      const int64_t j = begin + p * kSize + threadIdx.x;
      sims[p] = j < args.num_columns ? row.sim()[j] : 0.0f;
    }
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
#pragma unroll
    for (int p = 0; p < kPerThread; ++p) {
      const int64_t j = begin + p * kSize + threadIdx.x;
      if (j >= args.num_columns) continue;
      const float sim = row.competitor(j, sims[p]);
      const float logit = inbatch_logit(row.scale, sim);
      float d = weight * inbatch_weight(logit, maximum);
      if (d != 0.0f) moment += d * (sim - row.pos_shifted);
      if (col_lse != nullptr) {
        const float q = col_coef[j] * inbatch_weight(logit, col_lse[j]);
        if (q != 0.0f) moment += q * sim;
        d += q;
      }
      store_as(out[j], (j == row.local ? positive : d) * out_scale);
    }
  }
  return moment;
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kSize, 1024 / kSize)
    inbatch_softmax_rows_kernel(const __grid_constant__ InbatchRowsArgs args) {
  __shared__ float warps[kSize / 32];
  const int64_t i = blockIdx.x;
  const bool first = (args.passes & kInbatchFirst) != 0;
  const int64_t num_hard = first ? args.num_hard : 0;
  const int64_t target = args.targets != nullptr ? args.targets[i] : args.first_target + i;
  const bool valid = target >= 0 && target < args.num_all;
  const float scale = *static_cast<const float*>(args.scale), margin = static_cast<float>(args.margin);
  Row<T> row{args, i, target - args.first_column, args.row_ids != nullptr ? args.row_ids[i] : -1, scale, 0.0f, 0.0f};
  const bool here = valid && row.local >= 0 && row.local < args.num_columns;
  if (!here) row.local = -1;
  float* stored_pos = static_cast<float*>(args.pos_sim) + i;
  // A wrong target makes everything of its row NaN: it never trains silently.
  row.pos_sim = !valid ? NAN : here ? row.sim()[row.local] : *stored_pos;
  row.pos_shifted = row.pos_sim - margin;
  const float pos_logit = scale * row.pos_shifted;
  if (threadIdx.x == 0 && (here || !valid)) *stored_pos = row.pos_sim;
  if (threadIdx.x == 0 && !valid && args.status != nullptr) atomicOr(args.status, args.status_bit);
  __syncthreads();  // the positive has been read before any gradient is written

  if (args.passes & kInbatchRanks) rank_row<kSize>(row, first, num_hard, target);
  float* row_max = static_cast<float*>(args.row_max) + i;
  float* row_rest = static_cast<float*>(args.row_rest) + i;
  float maximum = 0.0f, rest = 0.0f;
  if (args.passes & kInbatchStats) {
    const float before = first ? -INFINITY : *row_max, rest_before = first ? 0.0f : *row_rest;
    maximum = fmaxf(before, here ? pos_logit : -INFINITY);
    for (int64_t j = threadIdx.x; j < args.num_columns; j += kSize) {
      maximum = fmaxf(maximum, inbatch_logit(scale, row.competitor(j, row.sim()[j])));
    }
    for (int64_t h = threadIdx.x; h < num_hard; h += kSize) {
      maximum = fmaxf(maximum, inbatch_logit(scale, row.hard_competitor(h)));
    }
    maximum = block_reduce<kSize, true>(maximum, warps);
    for (int64_t j = threadIdx.x; j < args.num_columns; j += kSize) {
      rest += inbatch_weight(inbatch_logit(scale, row.competitor(j, row.sim()[j])), maximum);
    }
    for (int64_t h = threadIdx.x; h < num_hard; h += kSize) {
      rest += inbatch_weight(inbatch_logit(scale, row.hard_competitor(h)), maximum);
    }
    rest = block_reduce<kSize, false>(rest, warps) + rest_before * inbatch_weight(before, maximum);
    if (threadIdx.x == 0) {
      *row_max = maximum;
      *row_rest = rest;
    }
  } else {
    maximum = *row_max;
    rest = *row_rest;
  }
  if (!(args.passes & (kInbatchFinish | kInbatchGrads))) return;
  const InbatchRow<float> stats = inbatch_row(maximum, rest, pos_logit);
  if ((args.passes & kInbatchFinish) && threadIdx.x == 0) {
    static_cast<float*>(args.lse)[i] = stats.lse;
    static_cast<float*>(args.pos_logit)[i] = pos_logit;
    static_cast<float*>(args.loss)[i] = stats.loss;
  }
  if (!(args.passes & kInbatchGrads)) return;
  const float coef = valid ? static_cast<const float*>(args.coef)[i] : NAN;
  const float extra = args.pos_extra != nullptr ? static_cast<const float*>(args.pos_extra)[i] : 0.0f;
  const float out_scale = args.scaled ? scale : 1.0f, weight = coef * stats.inverse_sum;
  const float positive = extra - coef * (rest * stats.inverse_sum);
  float moment = 0.0f;
  for (int64_t h = threadIdx.x; h < num_hard; h += kSize) {
    const float sim = row.hard_competitor(h);
    const float d = weight * inbatch_weight(inbatch_logit(scale, sim), maximum);
    if (d != 0.0f) moment += d * (sim - row.pos_shifted);
    row.hard()[h] = d * out_scale;
  }
  moment += grad_row<kSize>(row, maximum, weight, positive, out_scale);
  if (args.grad_scale == nullptr) return;
  moment = block_reduce<kSize, false>(moment, warps);
  if (threadIdx.x != 0) return;
  float* grad_scale = static_cast<float*>(args.grad_scale) + i;
  *grad_scale = (first ? 0.0f : *grad_scale) + moment + (here ? extra * row.pos_shifted : 0.0f);
}

__global__ void __launch_bounds__(kColumnThreads* kRowLanes)
    inbatch_softmax_columns_kernel(const __grid_constant__ InbatchColumnsArgs args) {
  __shared__ float shared[kRowLanes][kColumnThreads];
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.y);
  const bool inside = j < args.num_columns;
  const float scale = *static_cast<const float*>(args.scale), margin = static_cast<float>(args.margin);
  const int64_t column = args.first_column + j, col_id = inside && args.col_ids != nullptr ? args.col_ids[j] : -1;
  const auto is_target = [&](int64_t i) {
    return (args.targets != nullptr ? args.targets[i] : args.first_target + i) == column;
  };
  const auto logit = [&](int64_t i) {
    const float sim = static_cast<const float*>(args.sim)[i * args.num_columns + j];
    if (is_target(i)) return scale * (sim - margin);
    const int64_t row_id = args.row_ids != nullptr ? args.row_ids[i] : -1;
    const bool masked = args.col_ids != nullptr && inbatch_masked(row_id, col_id, kInbatchAbsent);
    return masked ? -INFINITY : scale * sim;
  };
  const float before = inside ? static_cast<float*>(args.max)[j] : -INFINITY;
  float maximum = before;
  for (int64_t i = lane; inside && i < args.num_rows; i += kRowLanes) maximum = fmaxf(maximum, logit(i));
  shared[lane][threadIdx.x] = maximum;
  __syncthreads();
  for (int l = 0; l < kRowLanes; ++l) maximum = fmaxf(maximum, shared[l][threadIdx.x]);
  float rest = 0.0f, positive = 0.0f, count = 0.0f, coef = 0.0f;
  for (int64_t i = lane; inside && i < args.num_rows; i += kRowLanes) {
    const float e = inbatch_weight(logit(i), maximum);
    if (is_target(i)) {
      positive += e;
      count += 1.0f;
      coef += static_cast<const float*>(args.coef)[i];
    } else {
      rest += e;
    }
  }
  __syncthreads();  // the maxima have been read
  const float mine[4] = {rest, positive, count, coef};
  void* const results[4] = {args.rest, args.positive, args.count, args.coef_sum};
  for (int value = 0; value < 4; ++value) {
    shared[lane][threadIdx.x] = mine[value];
    __syncthreads();
    if (lane == 0 && inside) {
      float* result = static_cast<float*>(results[value]) + j;
      float total = *result * (value < 2 ? inbatch_weight(before, maximum) : 1.0f);
      for (int l = 0; l < kRowLanes; ++l) total += shared[l][threadIdx.x];
      *result = total;
    }
    __syncthreads();
  }
  if (lane == 0 && inside) static_cast<float*>(args.max)[j] = maximum;
}

}  // namespace

void inbatch_softmax_rows_cuda(const InbatchRowsArgs& args) {
  if (args.num_rows == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const dim3 grid(static_cast<unsigned>(args.num_rows));
    if (args.num_columns <= kShortRow) {
      launch_kernel("inbatch_softmax_rows_kernel", inbatch_softmax_rows_kernel<T, kShortThreads>, grid,
                    dim3(kShortThreads), 0, args.stream, args);
    } else {
      launch_kernel("inbatch_softmax_rows_kernel", inbatch_softmax_rows_kernel<T, kThreads>, grid, dim3(kThreads), 0,
                    args.stream, args);
    }
  });
}

void inbatch_softmax_columns_cuda(const InbatchColumnsArgs& args) {
  if (args.num_rows == 0 || args.num_columns == 0) return;
  const int64_t blocks = (args.num_columns + kColumnThreads - 1) / kColumnThreads;
  launch_kernel("inbatch_softmax_columns_kernel", inbatch_softmax_columns_kernel, dim3(static_cast<unsigned>(blocks)),
                dim3(kColumnThreads, kRowLanes), 0, args.stream, args);
}

}  // namespace xfer
