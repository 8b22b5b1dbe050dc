// CPU kernel of task_gram: gradients are read once, widened to fp64 block by block in cache, and multiplied in register
// tiles.
//
// Segments are cut into chunks of a fixed number of columns; each chunk has a partial Gram of its own and partials are
// added in the order of the columns, so that bits do not depend on the number of threads.
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "ops/gradient_surgery/gradient_surgery.h"

XFER_CPU_DISPATCH(task_gram_cpu, TaskGramArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kChunkColumns = 16 * 1024;

// Columns widened at once: with 25 tasks 25 KiB, which leave room in the first cache for what comes in.
constexpr int64_t kBlockColumns = 128;

// fp64 lanes and tile sides that fill the registers: 25 sums, 5 rows and a column of 32 registers, or 9, 3 and 1 of 16.
#if defined(__AVX512F__)
constexpr int64_t kDoubles = 8;
constexpr int kSide = 5;
#elif defined(__AVX__)
constexpr int64_t kDoubles = 4;
constexpr int kSide = 3;
#else
constexpr int64_t kDoubles = 2;
constexpr int kSide = 3;
#endif
typedef double double_lanes __attribute__((vector_size(8 * kDoubles)));

int64_t padded_tasks(int64_t num_tasks) { return ceil_div(num_tasks, kSide) * kSide; }

const void* first_element(const TaskGradientsView& grads, int64_t segment, int64_t task) {
  if (grads.pointers != nullptr) return grads.pointers[segment * grads.num_tasks + task];
  return static_cast<const char*>(grads.base) +
         (task * grads.row_stride + grads.offsets[segment]) * size_of(grads.dtype);
}

// What a worker computes in: widened rows [padded T, kBlockColumns], zeros where a task or a column is missing, and
// sums of products [tiles, side, side] that are kept as lanes over the whole chunk.
struct Scratch {
  double* rows;
  double_lanes* sums;
  const char** next;  // [T] where each row's next block starts
};

int64_t num_tiles(int64_t num_tasks) {
  const int64_t sides = padded_tasks(num_tasks) / kSide;
  return sides * (sides + 1) / 2;
}

int64_t scratch_bytes(int64_t num_tasks) {
  return 64 + padded_tasks(num_tasks) * (kBlockColumns * 8 + 8) +
         num_tiles(num_tasks) * kSide * kSide * static_cast<int64_t>(sizeof(double_lanes));
}

Scratch scratch_at(void* memory, int64_t num_tasks) {
  const uintptr_t base = (reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64;
  double* rows = reinterpret_cast<double*>(base);
  double_lanes* sums = reinterpret_cast<double_lanes*>(rows + padded_tasks(num_tasks) * kBlockColumns);
  return {rows, sums, reinterpret_cast<const char**>(sums + num_tiles(num_tasks) * kSide * kSide)};
}

template <typename T>
void widen(const T* from, int64_t count, double* to) {
  int64_t c = 0;
  if constexpr (__is_same(T, float)) {
    typedef float float_lanes __attribute__((vector_size(4 * kDoubles)));
    for (; c + kDoubles <= count; c += kDoubles) {
      float_lanes narrow;
      memcpy(&narrow, from + c, sizeof(narrow));
      const double_lanes wide = __builtin_convertvector(narrow, double_lanes);
      memcpy(to + c, &wide, sizeof(wide));
    }
  } else if constexpr (!__is_same(T, double)) {
    for (; c + kLanes <= count; c += kLanes) {
      lanes_t<T> narrow;
      load_lanes(from + c, narrow);
      const double16_lanes wide = __builtin_convertvector(narrow, double16_lanes);
      memcpy(to + c, &wide, sizeof(wide));
    }
  }
  for (; c < count; ++c) to[c] = load_as(from[c]);
  for (; c < kBlockColumns; ++c) to[c] = 0.0;
}

// The cache lines of the next block, asked for one by one while this one is multiplied: the products hide the way to
// memory, and 25 rows are more streams than the hardware follows by itself.
struct NextBlock {
  const char* const* rows;  // [num_rows] where each row's next block starts
  int64_t num_rows;
  int64_t lines;  // cache lines of a row's block
  int64_t row = 0, line = 0;

  void ask(int64_t count) {
    for (; count > 0 && row < num_rows; --count) {
      if (rows[row] != nullptr) __builtin_prefetch(rows[row] + 64 * line);
      if (++line == lines) line = 0, ++row;
    }
  }
};

// sums[a][b] += <row a of the left strip, row b of the right strip> over the block, lane by lane.
template <bool kDiagonal>
void multiply_tile(const double* left, const double* right, double_lanes* sums, NextBlock& next, int64_t asked) {
  double_lanes acc[kSide][kSide];
#pragma GCC unroll 8
  for (int a = 0; a < kSide; ++a) {
#pragma GCC unroll 8
    for (int b = kDiagonal ? a : 0; b < kSide; ++b) acc[a][b] = sums[a * kSide + b];
  }
  for (int64_t c = 0; c < kBlockColumns; c += kDoubles) {
    next.ask(asked);
    double_lanes l[kSide];
#pragma GCC unroll 8
    for (int a = 0; a < kSide; ++a) memcpy(&l[a], left + a * kBlockColumns + c, sizeof(double_lanes));
#pragma GCC unroll 8
    for (int b = 0; b < kSide; ++b) {
      double_lanes r;
      if constexpr (kDiagonal) {
        r = l[b];
      } else {
        memcpy(&r, right + b * kBlockColumns + c, sizeof(double_lanes));
      }
#pragma GCC unroll 8
      for (int a = 0; a < (kDiagonal ? b + 1 : kSide); ++a) acc[a][b] += l[a] * r;
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < kSide; ++a) {
#pragma GCC unroll 8
    for (int b = kDiagonal ? a : 0; b < kSide; ++b) sums[a * kSide + b] = acc[a][b];
  }
}

// The chunk's partial Gram, upper triangle row by row.
template <typename T>
void gram_of_chunk(const TaskGradientsView& grads, int64_t segment, int64_t begin, int64_t count,
                   const Scratch& scratch, double* partial) {
  const int64_t num_tasks = grads.num_tasks;
  const int64_t sides = padded_tasks(num_tasks) / kSide;
  const int64_t steps = num_tiles(num_tasks) * (kBlockColumns / kDoubles);
  const int64_t asked = ceil_div(num_tasks * kBlockColumns * static_cast<int64_t>(sizeof(T)) / 64, steps);
  memset(static_cast<void*>(scratch.sums), 0,
         static_cast<size_t>(num_tiles(num_tasks)) * kSide * kSide * sizeof(double_lanes));
  for (int64_t start = 0; start < count; start += kBlockColumns) {
    const int64_t width = count - start < kBlockColumns ? count - start : kBlockColumns;
    for (int64_t t = 0; t < num_tasks; ++t) {
      const T* row = static_cast<const T*>(first_element(grads, segment, t));
      double* to = scratch.rows + t * kBlockColumns;
      if (row == nullptr) {
        memset(to, 0, kBlockColumns * sizeof(double));
        scratch.next[t] = nullptr;
        continue;
      }
      row += begin + start;
      scratch.next[t] = reinterpret_cast<const char*>(row + kBlockColumns);
      widen(row, width, to);
    }
    NextBlock next{scratch.next, num_tasks, kBlockColumns * static_cast<int64_t>(sizeof(T)) / 64};
    double_lanes* sums = scratch.sums;
    for (int64_t i = 0; i < sides; ++i) {
      const double* left = scratch.rows + i * kSide * kBlockColumns;
      multiply_tile<true>(left, left, sums, next, asked);
      sums += kSide * kSide;
      for (int64_t j = i + 1; j < sides; ++j, sums += kSide * kSide) {
        multiply_tile<false>(left, scratch.rows + j * kSide * kBlockColumns, sums, next, asked);
      }
    }
  }
  const double_lanes* sums = scratch.sums;
  for (int64_t i = 0; i < sides; ++i) {
    for (int64_t j = i; j < sides; ++j, sums += kSide * kSide) {
      for (int64_t a = i * kSide; a < (i + 1) * kSide && a < num_tasks; ++a) {
        for (int64_t b = j == i ? a : j * kSide; b < (j + 1) * kSide && b < num_tasks; ++b) {
          const double_lanes& lanes = sums[(a - i * kSide) * kSide + b - j * kSide];
          double total = 0.0;
          for (int64_t lane = 0; lane < kDoubles; ++lane) total += lanes[lane];
          partial[a * num_tasks - a * (a - 1) / 2 + b - a] = total;
        }
      }
    }
  }
}

int64_t chunks_of(const TaskGradientsView& grads, int64_t segment) {
  return ceil_div(grads.offsets[segment + 1] - grads.offsets[segment], kChunkColumns);
}

// The chunk `index` of all segments' chunks: its segment and its place there.
struct ChunkTable {
  const TaskGradientsView& grads;
  int64_t* first;  // [S + 1] first chunk of each segment

  int64_t segment_of(int64_t chunk) const {
    int64_t low = 0, high = grads.num_segments;  // first[low] <= chunk < first[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first[middle] <= chunk ? low : high) = middle;
    }
    return low;
  }
};

}  // namespace

void task_gram_cpu_isa(const TaskGramArgs& args) {
  const TaskGradientsView& grads = args.grads;
  const int64_t num_tasks = grads.num_tasks;
  const int64_t pairs = num_tasks * (num_tasks + 1) / 2;
  char* memory = static_cast<char*>(args.workspace);
  const ChunkTable table{grads, reinterpret_cast<int64_t*>(memory)};
  table.first[0] = 0;
  for (int64_t s = 0; s < grads.num_segments; ++s) table.first[s + 1] = table.first[s] + chunks_of(grads, s);
  const int64_t num_chunks = table.first[grads.num_segments];
  double* partials = reinterpret_cast<double*>(memory + (grads.num_segments + 1) * 8);
  char* scratch = reinterpret_cast<char*>(partials + num_chunks * pairs);
  const int workers = num_chunks > 1 ? max_workers() : 1;
  dispatch_dtype(grads.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_chunks(num_chunks, workers, [&](int64_t chunk, int worker) {
      const Scratch own = scratch_at(scratch + worker * scratch_bytes(num_tasks), num_tasks);
      memset(own.rows + num_tasks * kBlockColumns, 0,
             static_cast<size_t>(padded_tasks(num_tasks) - num_tasks) * kBlockColumns * sizeof(double));
      const int64_t segment = table.segment_of(chunk);
      const int64_t begin = (chunk - table.first[segment]) * kChunkColumns;
      const int64_t size = grads.offsets[segment + 1] - grads.offsets[segment];
      const int64_t count = size - begin < kChunkColumns ? size - begin : kChunkColumns;
      gram_of_chunk<T>(grads, segment, begin, count, own, partials + chunk * pairs);
    });
  });
  for (int64_t k = 0; k < args.num_groups; ++k) {
    const int64_t first = args.group_offsets != nullptr ? args.group_offsets[k] : k;
    const int64_t last = args.group_offsets != nullptr ? args.group_offsets[k + 1] : k + 1;
    double* gram = args.gram + k * num_tasks * num_tasks;
    for (int64_t i = 0, pair = 0; i < num_tasks; ++i) {
      for (int64_t j = i; j < num_tasks; ++j, ++pair) {
        double total = 0.0;
        for (int64_t c = table.first[first]; c < table.first[last]; ++c) total += partials[c * pairs + pair];
        gram[i * num_tasks + j] = gram[j * num_tasks + i] = total;
      }
    }
  }
}

#if !defined(XFER_CPU_ISA)
}  // namespace XFER_ISA_NAMESPACE

// Enough for the widest tiles of any level; asked before the level is chosen.
int64_t task_gram_workspace_bytes_cpu(const TaskGramArgs& args) {
  const TaskGradientsView& grads = args.grads;
  const int64_t num_tasks = grads.num_tasks;
  int64_t chunks = 0;
  for (int64_t s = 0; s < grads.num_segments; ++s) chunks += chunks_of(grads, s);
  constexpr int64_t kWidestSide = 5, kWidestLanes = 64;
  const int64_t tasks = num_tasks + kWidestSide;
  const int64_t tiled = tasks * (kBlockColumns + 1) * 8 + tasks * tasks * kWidestLanes + 64;
  return (grads.num_segments + 1) * 8 + chunks * num_tasks * (num_tasks + 1) / 2 * 8 + max_workers() * tiled;
}

inline namespace XFER_ISA_NAMESPACE {
#endif

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
