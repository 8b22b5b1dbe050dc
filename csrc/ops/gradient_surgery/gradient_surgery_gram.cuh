// What the kernels of task_gram share: how the columns are cut, 8 x 8 blocks of the Gram matrix on the fp64 tensor
// cores, and the loads that feed them.
//
// Chunk c takes the columns [c, c + 1) * chunk_columns and visits every segment that has columns there: from the one
// that holds its first column (where none starts so early, segment 0) to the last that starts at or before its end. So
// the visits (c, s) form a staircase of chunks and segments, each c + s is the number of one visit, and the visits of a
// group are consecutive: partial sums lie in slot c + s, and every slot is written whatever the offsets.
#pragma once

#include "ops/gradient_surgery/gradient_surgery_device.cuh"

namespace xfer {

// Tests lower these, so that a few columns make many chunks.
struct GramLimits {
  int64_t chunk_unit = 1024;                // columns; chunks are multiples of it
  int64_t max_chunks = 2048;                // enough for 132 SMs to end at nearly the same time
  int64_t slot_bytes = 64LL * 1024 * 1024;  // of all chunks' slots, where T is large
};
inline GramLimits& gram_limits() {
  static GramLimits limits;
  return limits;
}

constexpr int kStripRows = 8;                        // of a tensor core's block
constexpr int kBlockSize = kStripRows * kStripRows;  // entries, row by row
constexpr int kTileStrips = 4;                       // a warp holds the blocks of 32 x 32 entries
constexpr int kTileRows = kTileStrips * kStripRows;

// Index of block (i, j), i <= j, among the upper blocks of `strips` strips.
XFER_HD constexpr int64_t upper_block(int64_t i, int64_t j, int64_t strips) {
  return i * strips - i * (i - 1) / 2 + (j - i);
}

constexpr int64_t kMaxChunkColumns = 1LL << 30;  // within a chunk columns are 32-bit numbers

// A function of the problem alone.
struct GramPlan {
  int64_t chunk_columns;
  int64_t num_chunks;
  int64_t strips;     // of eight tasks
  int64_t num_slots;  // visits
  int64_t slot_size;  // doubles: the upper blocks; entries below the diagonal or beyond T are never written
};

inline GramPlan plan_gram(const TaskGradientsView& grads) {
  const GramLimits& limits = gram_limits();
  GramPlan plan = {};
  plan.strips = (grads.num_tasks + kStripRows - 1) / kStripRows;
  plan.slot_size = plan.strips * (plan.strips + 1) / 2 * kBlockSize;
  int64_t chunks = limits.slot_bytes / (plan.slot_size * static_cast<int64_t>(sizeof(double)) + 1);
  chunks = chunks < 1 ? 1 : chunks > limits.max_chunks ? limits.max_chunks : chunks;
  int64_t columns = (grads.num_columns + chunks - 1) / chunks;
  if (columns > kMaxChunkColumns) columns = kMaxChunkColumns;
  plan.chunk_columns = (columns + limits.chunk_unit - 1) / limits.chunk_unit * limits.chunk_unit;
  if (grads.num_columns > 0 && grads.num_segments > 0) {
    plan.num_chunks = (grads.num_columns + plan.chunk_columns - 1) / plan.chunk_columns;
    plan.num_slots = plan.num_chunks + grads.num_segments - 1;
  }
  return plan;
}

// The chunk in which segment `segment` is visited first; for segment S, the last chunk.
__device__ __forceinline__ int64_t first_visit(const TaskGradientsView& grads, const GramPlan& plan, int64_t segment) {
  if (segment == 0 || plan.num_chunks == 0) return 0;
  if (segment == grads.num_segments) return plan.num_chunks - 1;
  const int64_t ends = (segment_bound(grads, segment) + plan.chunk_columns - 1) / plan.chunk_columns;
  return ends > 0 ? ends - 1 : 0;
}

struct GramKernelArgs {
  TaskGradientsView grads;
  GramPlan plan;
  double* slots;  // [num_slots, slot_size]
};

// c += a b^T over 4 columns of two strips. Lane l holds one column of row l / 4 of both strips, and of the sum the
// entries (l / 4, l % 4 * 2 + {0, 1}). Which columns these are does not matter, as long as lanes alike modulo 4 hold
// the same: so a strip's register serves as either factor.
__device__ __forceinline__ void block_product(double (&c)[2], double a, double b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
#else
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int column = 0; column < 4; ++column) {
    const double left = __shfl_sync(kFullWarp, a, lane / 4 * 4 + column);
    for (int i = 0; i < 2; ++i) {
      c[i] = fma(left, __shfl_sync(kFullWarp, b, (lane % 4 * 2 + i) * 4 + column), c[i]);
    }
  }
#endif
}

// The same for two strips on the left at once, which is Hopper's own shape.
__device__ __forceinline__ void block_products(double (&upper)[2], double (&lower)[2], double a_upper, double a_lower,
                                               double b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+d"(upper[0]), "+d"(upper[1]), "+d"(lower[0]), "+d"(lower[1])
      : "d"(a_upper), "d"(a_lower), "d"(b));
#else
  block_product(upper, a_upper, b);
  block_product(lower, a_lower, b);
#endif
}

// A strip's 16 bytes of columns in each lane.
template <typename T>
using Columns = Vector<T, kWidestVector<T>>;

// Columns outside [begin, end) and rows that are null are zeros.
template <typename T>
__device__ __forceinline__ Columns<T> load_columns(const T* row, int column, int begin, int end) {
  Columns<T> values = {};
  if (row == nullptr) return values;
#pragma unroll
  for (int i = 0; i < kWidestVector<T>; ++i) {
    if (column + i >= begin && column + i < end) values.at[i] = row[column + i];
  }
  return values;
}

// The same where the caller knows that all columns are inside and the row is aligned. The pointer comes out of memory,
// so only the read-only load tells the compiler that it is global.
template <typename T>
__device__ __forceinline__ Columns<T> load_whole(const T* row, int column) {
  uint4 bits = {};
  if (row != nullptr) bits = __ldg(reinterpret_cast<const uint4*>(row + column));
  Columns<T> values;
  memcpy(&values, &bits, sizeof(values));
  return values;
}

// The part of a segment that lies in a chunk. Columns count from a place where 16-byte accesses of the first row begin.
struct GramPiece {
  int64_t start;   // in columns of the rows' pointers
  int begin, end;  // from there; begin is less than an access
};

// Calls multiply(values) with 16 bytes of each row, until the block's warps have taken all columns of the piece.
//
// A warp takes `groups` x 4 x 16 bytes of a row in one access; `lane` is this thread's place among them. Whole tiles of
// kUnroll accesses are loaded while the tile before them is multiplied. What is left at the ends, and rows that are not
// aligned like the first, go element by element.
template <int kUnroll, int kWarps, bool kAhead, int kRows, typename T, typename F>
__device__ __forceinline__ void for_columns(const GramPiece& piece, const T* const (&rows)[kRows], int groups, int lane,
                                            const F& multiply) {
  constexpr int kSize = kWidestVector<T>;
  bool aligned = true, present = false;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    aligned = aligned && misalignment(rows[i], 0) == 0;
    present = present || rows[i] != nullptr;
  }
  aligned = __all_sync(kFullWarp, aligned);
  if (!__any_sync(kFullWarp, present)) return;
  const int step = groups * 4 * kSize;
  const int tile = kUnroll * step;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const auto load = [&](int first, Columns<T>(&values)[kUnroll][kRows]) {
    const int column = first + lane * kSize;
    if (aligned && first >= piece.begin && first + tile <= piece.end) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) values[u][i] = load_whole(rows[i], column + u * step);
      }
    } else {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) values[u][i] = load_columns(rows[i], column + u * step, piece.begin, piece.end);
      }
    }
  };
  int first = warp * tile;
  if (first >= piece.end) return;
  Columns<T> next[kUnroll][kRows];
  load(first, next);
#pragma unroll 1
  for (bool more = true; more;) {
    Columns<T> values[kUnroll][kRows];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) values[u][i] = next[u][i];
    }
    first += kWarps * tile;
    more = first < piece.end;
    if (kAhead && more) load(first, next);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) multiply(values[u]);
    if (!kAhead && more) load(first, next);
  }
}

}  // namespace xfer
