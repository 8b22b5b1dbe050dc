// CUDA pass over the rows of inbatch_softmax_loss: a block takes a row. It reads the row once for statistics and ranks,
// raising the maximum on the way, and once more for the gradients; what fits stays in shared memory between the two,
// the rest comes from L2.
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss_device.cuh"

namespace xfer {
namespace {

constexpr int kMaxThreads = 512;  // of a row
constexpr int kMaxWarps = kMaxThreads / 32;
constexpr int kBlocksPerSm = 2;             // 64 registers a thread; one block computes while the other loads
constexpr int64_t kCacheBytes = 96 * 1024;  // of shared memory for a row: two blocks fit on sm_90, one on sm_80

// Similarities a thread has in registers at a time. Single ones need more registers for their places.
template <int kSize>
constexpr int kPerThread = kSize == 1 ? 8 : 16;

// What the first reading of a row finds, of a thread, a warp or the block.
struct RowFound {
  float maximum, rest;  // the largest logit, sum of exp(logit - maximum)
  float best;           // the largest similarity
  int64_t place;        // the lowest index that has it
  int64_t beaten;       // number of competitors that the positive does not beat
};
__device__ __forceinline__ RowFound nothing_found() { return {-INFINITY, 0.0f, -INFINITY, INT64_MAX, 0}; }

// Adds competitors' similarities, masked ones as -inf.
template <int kCount>
__device__ __forceinline__ void add_statistics(RowFound& found, const float (&s)[kCount], float scale) {
  float top = -INFINITY;
#pragma unroll
  for (int k = 0; k < kCount; ++k) top = fmaxf(top, inbatch_logit(scale, s[k]));
  if (top > found.maximum) {
    found.rest *= weigh(found.maximum, top);
    found.maximum = top;
  }
  const float shift = finite_or_zero(found.maximum);
#pragma unroll
  for (int k = 0; k < kCount; ++k) found.rest += expf(inbatch_logit(scale, s[k]) - shift);
}

// place(k) ascends with k. A NaN counts against the positive but is never the best.
template <int kCount, typename Place>
__device__ __forceinline__ void add_ranks(RowFound& found, const float (&s)[kCount], float pos_sim,
                                          const Place& place) {
  float top = -INFINITY;
  int beaten = 0;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    beaten += inbatch_beats(s[k], pos_sim) && s[k] != -INFINITY ? 1 : 0;
    top = fmaxf(top, s[k]);
  }
  found.beaten += beaten;
  if (top > found.best) {
    found.best = top;
    int first = 0;
#pragma unroll
    for (int k = kCount - 1; k >= 0; --k) first = s[k] == top ? k : first;
    found.place = place(first);
  }
}

// The butterfly adds the same pairs in every lane, so all have the same bits.
__device__ __forceinline__ void join_warp(RowFound& found, bool stats, bool ranks) {
  if (stats) {
    const float maximum = group_max<32>(found.maximum);
    found.rest = group_sum<32>(found.rest * weigh(found.maximum, maximum));
    found.maximum = maximum;
  }
  if (!ranks) return;
  for (int offset = 16; offset > 0; offset /= 2) {
    const float best = __shfl_xor_sync(kFullWarp, found.best, offset);
    const int64_t place = __shfl_xor_sync(kFullWarp, found.place, offset);
    found.beaten += __shfl_xor_sync(kFullWarp, found.beaten, offset);
    if (best > found.best || (best == found.best && place < found.place)) {
      found.best = best;
      found.place = place;
    }
  }
}

__device__ __forceinline__ void join_block(RowFound& found, bool stats, bool ranks, RowFound* by_warp) {
  join_warp(found, stats, ranks);
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (lane == 0) by_warp[threadIdx.x / 32] = found;
  __syncthreads();
  found = lane < warps ? by_warp[lane] : nothing_found();
  join_warp(found, stats, ranks);
}

// The part of a row that the block has in registers, without the row's positive. Vectors of kSize similarities are
// dealt out to the threads in turn. Places within it take 32 bits: 64 would cost the registers that hide the loads.
template <int kSize>
struct Piece {
  static constexpr int kCount = kPerThread<kSize>;
  using Packed = Vector<float, kSize>;

  int64_t begin;  // its first column in the tile
  int count;      // columns of it
  int local;      // where in it the positive is, or -1

  __device__ __forceinline__ Piece(int64_t begin_, int64_t num_columns, int64_t positive) : begin(begin_) {
    const int64_t left = num_columns - begin, at = positive - begin;
    count = static_cast<int>(left < size() ? left : size());
    local = at >= 0 && at < count ? static_cast<int>(at) : -1;
  }
  static __device__ __forceinline__ int size() { return static_cast<int>(blockDim.x) * kCount; }
  // Of similarity k of this thread.
  static __device__ __forceinline__ int place(int k) {
    return static_cast<int>((k / kSize * blockDim.x + threadIdx.x) * kSize) + k % kSize;
  }

  // From `row`, which is at the piece's first column.
  __device__ __forceinline__ void copy_in(const float* row, float (&s)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; k += kSize) {
      Packed values;
#pragma unroll
      for (int l = 0; l < kSize; ++l) values.at[l] = -INFINITY;
      if (place(k) < count) values = *reinterpret_cast<const Packed*>(row + place(k));
#pragma unroll
      for (int l = 0; l < kSize; ++l) s[k + l] = values.at[l];
    }
  }
  template <typename T>
  __device__ __forceinline__ void copy_out(T* row, const float (&s)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; k += kSize) {
      Vector<T, kSize> values;
#pragma unroll
      for (int l = 0; l < kSize; ++l) store_as(values.at[l], s[k + l]);
      if (place(k) < count) *reinterpret_cast<Vector<T, kSize>*>(row + place(k)) = values;
    }
  }
  __device__ __forceinline__ void set_positive(float value, float (&s)[kCount]) const {
    if (local < 0) return;
#pragma unroll
    for (int k = 0; k < kCount; ++k) s[k] = place(k) == local ? value : s[k];
  }
  // Competitors: -inf for the positive and for masked columns.
  __device__ __forceinline__ void load(const InbatchRowsArgs& args, const float* row, float (&s)[kCount]) const {
    copy_in(row + begin, s);
    if (args.col_ids != nullptr) {
      const int64_t row_id = args.row_ids != nullptr ? args.row_ids[blockIdx.x] : -1;
      const int64_t* ids = args.col_ids + begin;
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (place(k) < count && inbatch_masked(row_id, ids[place(k)], kInbatchAbsent)) s[k] = -INFINITY;
      }
    }
    set_positive(-INFINITY, s);
  }
};

// Similarity h of the row's own hard negatives.
__device__ __forceinline__ float hard_competitor(const InbatchRowsArgs& args, int64_t h) {
  const int64_t at = blockIdx.x * args.num_hard + h, row_id = args.row_ids != nullptr ? args.row_ids[blockIdx.x] : -1;
  if (args.hard_ids != nullptr && inbatch_hard_masked(row_id, args.hard_ids[at])) return -INFINITY;
  return static_cast<const float*>(args.hard_sim)[at];
}

// By one thread: the positive is the best until a competitor is not below it; then larger similarities, lower indices.
__device__ __forceinline__ void store_ranks(const InbatchRowsArgs& args, int64_t i, const RowFound& found,
                                            float pos_sim, int64_t target, bool first) {
  float* best_sim = static_cast<float*>(args.best_sim);
  const int64_t argmax = first ? target : args.argmax[i];
  const float best = first ? pos_sim : best_sim[i];
  const bool takes = found.place != INT64_MAX &&
                     (found.best > best || (found.best == best && (argmax == target || found.place < argmax)));
  args.rank[i] = (first ? 1 : args.rank[i]) + found.beaten;
  args.argmax[i] = takes ? found.place : argmax;
  best_sim[i] = takes ? found.best : best;
}

// What the gradients of a row are made from.
struct RowGrad {
  float scale, shift;       // e = exp(scale sim - shift)
  float weight, out_scale;  // d = weight e, stored times out_scale
  float own;                // the positive's, as stored
  float pos_shifted;
};

// Gradients take the place of similarities. Returns this thread's share of their product with the similarities, in
// which a factor of 0 may meet an infinity.
template <typename T, int kSize>
__device__ __forceinline__ float grad_row(const InbatchRowsArgs& args, const RowGrad& grad, int64_t positive,
                                          const float* cache, int64_t cached) {
  using Columns = Piece<kSize>;
  float* sim = static_cast<float*>(args.sim) + blockIdx.x * args.num_columns;
  T* out = reinterpret_cast<T*>(sim);
  float own_moment = 0.0f, col_moment = 0.0f;
  for (int64_t begin = 0; begin < args.num_columns; begin += Columns::size()) {
    const Columns piece(begin, args.num_columns, positive);
    float d[Columns::kCount];
    if (begin < cached) {
      piece.copy_in(cache + begin, d);
    } else {
      piece.load(args, sim, d);
    }
#pragma unroll
    for (int k = 0; k < Columns::kCount; ++k) {
      const float s = d[k], z = inbatch_logit(grad.scale, s), e = expf(z - grad.shift);
      own_moment += e == 0.0f ? 0.0f : e * (s - grad.pos_shifted);
      d[k] = grad.weight * e;
      if (args.col_lse != nullptr && piece.place(k) < piece.count) {
        const int64_t j = begin + piece.place(k);
        const float q =
            static_cast<const float*>(args.col_coef)[j] * weigh(z, static_cast<const float*>(args.col_lse)[j]);
        col_moment += q == 0.0f ? 0.0f : q * s;
        d[k] += q;
      }
      d[k] *= grad.out_scale;
    }
    piece.set_positive(grad.own, d);
    // Half gradients lie further to the front than what they replace: the whole piece must have been read.
    if (sizeof(T) < sizeof(float) && begin >= cached) __syncthreads();
    piece.copy_out(out + begin, d);
  }
  return grad.weight * own_moment + col_moment;
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerSm)
    inbatch_softmax_rows_kernel(const __grid_constant__ InbatchRowsArgs args, int64_t cached) {
  using Columns = Piece<kSize>;
  XFER_DYNAMIC_SMEM(float, cache);  // [cached]: no barrier, a thread reads back what it wrote itself
  __shared__ RowFound found_by_warp[kMaxWarps];
  __shared__ float moment_by_warp[kMaxWarps];
  const int64_t i = blockIdx.x;
  const bool first = (args.passes & kInbatchFirst) != 0, stats = (args.passes & kInbatchStats) != 0;
  const bool ranks = (args.passes & kInbatchRanks) != 0, grads = (args.passes & kInbatchGrads) != 0;
  const int64_t target = args.targets != nullptr ? args.targets[i] : args.first_target + i;
  const bool wrong = target < 0 || target >= args.num_all;
  const int64_t local = target - args.first_column;
  const bool here = !wrong && local >= 0 && local < args.num_columns;
  const int64_t positive = here ? local : -1, num_hard = first ? args.num_hard : 0;
  const float scale = *static_cast<const float*>(args.scale);
  const float* sim = static_cast<const float*>(args.sim) + i * args.num_columns;
  float* pos_sims = static_cast<float*>(args.pos_sim);
  // Of a wrong target NaN, which makes everything of the row NaN: it never trains silently.
  const float pos_sim = wrong ? NAN : stats && here ? sim[local] : pos_sims[i];
  const float pos_shifted = pos_sim - static_cast<float>(args.margin), pos_logit = scale * pos_shifted;
  float* row_max = static_cast<float*>(args.row_max);
  float* row_rest = static_cast<float*>(args.row_rest);
  // Read before the barrier after which thread 0 writes them.
  float maximum = stats && first ? -INFINITY : row_max[i], rest = stats && first ? 0.0f : row_rest[i];

  if (stats || ranks) {
    RowFound found = nothing_found();
    for (int64_t begin = 0; begin < args.num_columns; begin += Columns::size()) {
      const Columns piece(begin, args.num_columns, positive);
      float s[Columns::kCount];
      piece.load(args, sim, s);
      if (begin < cached) piece.copy_out(cache + begin, s);
      if (stats) add_statistics(found, s, scale);
      if (ranks) add_ranks(found, s, pos_sim, [&](int k) { return args.first_column + begin + piece.place(k); });
    }
    for (int64_t h = threadIdx.x; h < num_hard; h += blockDim.x) {
      const float s[1] = {hard_competitor(args, h)};
      if (stats) add_statistics(found, s, scale);
      if (ranks) add_ranks(found, s, pos_sim, [&](int) { return args.num_all + h; });
    }
    join_block(found, stats, ranks, found_by_warp);
    if (stats) {
      float largest = fmaxf(maximum, found.maximum);
      if (here) largest = fmaxf(largest, pos_logit);
      rest = rest * weigh(maximum, largest) + found.rest * weigh(found.maximum, largest);
      maximum = largest;
    }
    if (threadIdx.x == 0) {
      if (stats) {
        row_max[i] = maximum;
        row_rest[i] = rest;
        if (here || wrong) pos_sims[i] = pos_sim;
      }
      if (ranks) store_ranks(args, i, found, pos_sim, target, first);
      if (wrong && args.status != nullptr) atomicOr(args.status, args.status_bit);
    }
  }
  if (!grads && (args.passes & kInbatchFinish) == 0) return;
  const InbatchRow<float> norm = inbatch_row(maximum, rest, pos_logit);
  if ((args.passes & kInbatchFinish) != 0 && threadIdx.x == 0) {
    static_cast<float*>(args.lse)[i] = norm.lse;
    static_cast<float*>(args.pos_logit)[i] = pos_logit;
    static_cast<float*>(args.loss)[i] = norm.loss;
  }
  if (!grads) return;

  const float coef = static_cast<const float*>(args.coef)[i];
  const float extra = here && args.pos_extra != nullptr ? static_cast<const float*>(args.pos_extra)[i] : 0.0f;
  RowGrad grad = {scale,      finite_or_zero(maximum), coef * norm.inverse_sum, args.scaled ? scale : 1.0f, 0.0f,
                  pos_shifted};
  grad.own = (extra - coef * (rest * norm.inverse_sum)) * grad.out_scale;
  float moment = grad_row<T, kSize>(args, grad, positive, cache, cached);
  for (int64_t h = threadIdx.x; h < num_hard; h += blockDim.x) {
    const float s = hard_competitor(args, h), d = grad.weight * expf(inbatch_logit(scale, s) - grad.shift);
    moment += d == 0.0f ? 0.0f : d * (s - pos_shifted);
    static_cast<float*>(args.hard_sim)[i * args.num_hard + h] = d * grad.out_scale;
  }
  if (args.grad_scale == nullptr) return;
  moment = group_sum<32>(moment);
  if (threadIdx.x % 32 == 0) moment_by_warp[threadIdx.x / 32] = moment;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  moment = group_sum<32>(threadIdx.x < blockDim.x / 32 ? moment_by_warp[threadIdx.x] : 0.0f);
  if (threadIdx.x != 0) return;
  float& grad_scale = static_cast<float*>(args.grad_scale)[i];
  if (here) moment += extra * pos_shifted;
  grad_scale = (first ? 0.0f : grad_scale) + moment;
}

// Columns that a row keeps in shared memory: it is read twice in one call, and whole pieces of it fit.
int64_t columns_kept(const InbatchRowsArgs& args, int64_t piece) {
  const bool twice = (args.passes & kInbatchGrads) != 0 && (args.passes & (kInbatchStats | kInbatchRanks)) != 0;
  const int64_t room = kCacheBytes / static_cast<int64_t>(sizeof(float)) / piece * piece;
  return !twice ? 0 : args.num_columns < room ? args.num_columns : room;
}

}  // namespace

void inbatch_softmax_rows_cuda(const InbatchRowsArgs& args) {
  if (args.num_rows == 0) return;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto launch = [&](auto size) {
      constexpr int kSize = size();
      int threads = 32;
      while (threads < kMaxThreads && threads * kPerThread<kSize> < args.num_columns) threads *= 2;
      const int64_t cached = columns_kept(args, static_cast<int64_t>(threads) * kPerThread<kSize>);
      launch_kernel("inbatch_softmax_rows_kernel", inbatch_softmax_rows_kernel<T, kSize>,
                    dim3(static_cast<unsigned>(args.num_rows)), dim3(threads),
                    static_cast<size_t>(cached) * sizeof(float), args.stream, args, cached);
    };
    const bool aligned = args.num_columns % 4 == 0 && is_aligned(args.sim);
    aligned ? launch(std::integral_constant<int, 4>{}) : launch(std::integral_constant<int, 1>{});
  });
}

}  // namespace xfer
