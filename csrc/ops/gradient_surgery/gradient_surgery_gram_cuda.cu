// CUDA kernels of task_gram: chunks of columns give partial sums in fp64, which are added per group in a fixed order.
//
// Up to 32 tasks a warp holds all of the matrix and every gradient is read once. Beyond, tasks are cut into tiles of
// 32; a chunk's pairs of tiles run side by side and find the gradients in the L2 cache.
#include "ops/gradient_surgery/gradient_surgery_gram.cuh"

namespace xfer {
namespace {

constexpr int kPairThreads = 128;
constexpr int kSumEntries = 16;  // 128 bytes of a slot
constexpr int kSumThreads = 1024;

// Few tasks: memory binds, and many warps keep enough loads under way. Many: the tensor cores bind, fewer warps do, and
// each has the registers it needs.
template <typename T, int kStrips, int kTail>
struct TileShape {
  static constexpr int kTotal = kStrips + kTail;
  static constexpr int kBlocks = kTotal * (kTotal + 1) / 2;
  static constexpr bool kFewWarps = kTotal == kTileStrips && (kTail == 0 || sizeof(T) == 2);
  static constexpr int kThreads = kFewWarps ? 128 : 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBlocksPerSm = kFewWarps ? 3 : kTotal == 1 ? 4 : kTotal == 2 ? 3 : 2;
  // 16 bytes of a 16-bit type make twice the doubles.
  static constexpr int kUnroll = sizeof(T) == 2         ? (kTotal == 1 ? 2 : 1)
                                 : kTotal == 1          ? 4
                                 : kTotal < kTileStrips ? 2
                                                        : 1;
};

// Calls visit(segment, begin, end, slot) for every segment that chunk `chunk` visits; begin >= end: no columns there.
template <typename F>
__device__ __forceinline__ void for_visits(const GramKernelArgs& args, int64_t chunk, const F& visit) {
  const TaskGradientsView& grads = args.grads;
  const int64_t chunk_begin = chunk * args.plan.chunk_columns, chunk_end = chunk_begin + args.plan.chunk_columns;
  int64_t segment = chunk == 0 ? 0 : last_at_most(grads.offsets, grads.num_segments, chunk_begin);
  if (segment < 0) segment = 0;
  int64_t from = segment_bound(grads, segment);
  do {
    const int64_t to = segment_bound(grads, segment + 1);
    visit(segment, from > chunk_begin ? from : chunk_begin, to < chunk_end ? to : chunk_end,
          args.slots + (chunk + segment) * args.plan.slot_size);
    from = to;
  } while (++segment < grads.num_segments && from <= chunk_end);
}

// Joined columns [begin, end) of a segment as columns of the rows' pointers.
template <typename T>
__device__ __forceinline__ GramPiece piece_of(const TaskGradientsView& grads, int64_t segment, int64_t begin,
                                              int64_t end) {
  const int64_t first = grads.pointers != nullptr ? begin - segment_bound(grads, segment) : begin;
  const int64_t head = misalignment(gradient_row<T>(grads, segment, 0), first);
  return {first - head, static_cast<int>(head), static_cast<int>(head + end - begin)};
}

// This lane's row of a strip, from the piece's start on; null: zeros.
template <typename T>
__device__ __forceinline__ const T* piece_row(const TaskGradientsView& grads, int64_t segment, int64_t task,
                                              const GramPiece& piece) {
  const T* row = task < grads.num_tasks ? gradient_row<T>(grads, segment, task) : nullptr;
  return row != nullptr ? row + piece.start : nullptr;
}

// Adds up what the block's warps hold in stage[warps, kBlocks, 8, 8] and writes it to the slot.
//
// place(block) gives the two strips of a block. Of few tasks a warp's block holds several copies on its diagonal, for
// different columns, `copy_rows` apart.
template <int kBlocks, typename Place>
__device__ __forceinline__ void write_slot(const GramKernelArgs& args, const double* stage, int warps, int copies,
                                           int copy_rows, double* slot, const Place& place) {
  for (int entry = static_cast<int>(threadIdx.x); entry < kBlocks * kBlockSize; entry += static_cast<int>(blockDim.x)) {
    int64_t row_strip, column_strip;
    place(entry / kBlockSize, row_strip, column_strip);
    const int within = entry % kBlockSize;
    const int64_t i = row_strip * kStripRows + within / kStripRows, j = column_strip * kStripRows + within % kStripRows;
    if (i > j || j >= args.grads.num_tasks) continue;
    double total = 0.0;
    for (int copy = 0; copy < copies; ++copy) {
      const int shifted = entry + copy * copy_rows * (kStripRows + 1);
      for (int warp = 0; warp < warps; ++warp) total += stage[warp * kBlocks * kBlockSize + shifted];
    }
    slot[upper_block(row_strip, column_strip, args.plan.strips) * kBlockSize + within] = total;
  }
}

__device__ __forceinline__ void stage_block(double* stage, const double (&c)[2]) {
  stage[threadIdx.x % 32 * 2] = c[0];
  stage[threadIdx.x % 32 * 2 + 1] = c[1];
}

// A chunk's part of the blocks on the diagonal of 32 x 32 tiles: all of the matrix up to 32 tasks.
//
// kTail: the last task is alone in its strip (9, 17, 25 tasks). Every lane multiplies it with its own rows by fused
// multiply-adds, which cost a fraction of a strip on the tensor cores.
template <typename T, int kStrips, int kTail>
__global__ void __launch_bounds__(TileShape<T, kStrips, kTail>::kThreads, TileShape<T, kStrips, kTail>::kBlocksPerSm)
    task_gram_tile_kernel(const __grid_constant__ GramKernelArgs args) {
  using Shape = TileShape<T, kStrips, kTail>;
  constexpr int kTotal = Shape::kTotal, kBlocks = Shape::kBlocks;
  XFER_DYNAMIC_SMEM(double, stage);  // [warps, kBlocks, 8, 8]
  const TaskGradientsView& grads = args.grads;
  const int64_t tiles = (args.plan.strips + kTileStrips - 1) / kTileStrips;
  const int64_t first_strip = blockIdx.x % tiles * kTileStrips;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // Fewer than five tasks: a block's eight rows are several columns' copies of them.
  int copy_rows = kStripRows;
  if (kTotal == 1 && grads.num_tasks <= 4) copy_rows = grads.num_tasks > 2 ? 4 : static_cast<int>(grads.num_tasks);
  const int copies = kStripRows / copy_rows;
  const int place_in_step = lane / 4 / copy_rows * 4 + lane % 4;
  const auto place = [=](int block, int64_t& row_strip, int64_t& column_strip) {
    int row = 0;
    for (; block >= kTotal - row; ++row) block -= kTotal - row;
    row_strip = first_strip + row;
    column_strip = first_strip + row + block;
  };
  const auto visit = [&](int64_t segment, int64_t begin, int64_t end, double* slot) {
    if (begin >= end) return write_slot<kBlocks>(args, stage, 0, 0, 0, slot, place);
    const GramPiece piece = piece_of<T>(grads, segment, begin, end);
    const T* rows[kTotal];
#pragma unroll
    for (int s = 0; s < kTotal; ++s) {
      const int64_t task = (first_strip + s) * kStripRows + (s < kStrips ? lane / 4 % copy_rows : 0);
      rows[s] = piece_row<T>(grads, segment, task, piece);
    }
    double sums[kStrips * (kStrips + 1) / 2][2] = {};
    double tail_sums[kTotal] = {};
    const auto multiply = [&](const Columns<T>(&values)[kTotal]) {
#pragma unroll
      for (int k = 0; k < kWidestVector<T>; ++k) {
        double x[kTotal];
#pragma unroll
        for (int s = 0; s < kTotal; ++s) x[s] = static_cast<double>(load_as(values[s].at[k]));
#pragma unroll
        for (int p = 0; p < kStrips; p += 2) {
          block_product(sums[upper_block(p, p, kStrips)], x[p], x[p]);
#pragma unroll
          for (int q = p + 1; q < kStrips; ++q) {
            block_products(sums[upper_block(p, q, kStrips)], sums[upper_block(p + 1, q, kStrips)], x[p], x[p + 1],
                           x[q]);
          }
        }
        if constexpr (kTail == 1) {
#pragma unroll
          for (int s = 0; s < kTotal; ++s) tail_sums[s] = fma(x[s], x[kStrips], tail_sums[s]);
        }
      }
    };
    for_columns<Shape::kUnroll, Shape::kWarps, true>(piece, rows, copies, place_in_step, multiply);
    double* own = stage + threadIdx.x / 32 * (kBlocks * kBlockSize);
#pragma unroll
    for (int p = 0; p < kStrips; ++p) {
#pragma unroll
      for (int q = p; q < kStrips; ++q) {
        stage_block(own + upper_block(p, q, kTotal) * kBlockSize, sums[upper_block(p, q, kStrips)]);
      }
    }
    if constexpr (kTail == 1) {
#pragma unroll
      for (int s = 0; s < kTotal; ++s) {
        const double total = tail_sums[s] + __shfl_xor_sync(kFullWarp, tail_sums[s], 1);
        const double row_total = total + __shfl_xor_sync(kFullWarp, total, 2);
        if (lane % 4 == 0) own[upper_block(s, kStrips, kTotal) * kBlockSize + lane / 4 * kStripRows] = row_total;
      }
    }
    __syncthreads();
    write_slot<kBlocks>(args, stage, Shape::kWarps, copies, copy_rows, slot, place);
    __syncthreads();
  };
  for_visits(args, blockIdx.x / tiles, visit);
}

// A chunk's part of the blocks of two different tiles of 32 tasks.
template <typename T>
__global__ void __launch_bounds__(kPairThreads, 2) task_gram_pair_kernel(const __grid_constant__ GramKernelArgs args) {
  constexpr int kBlocks = kTileStrips * kTileStrips;
  XFER_DYNAMIC_SMEM(double, stage);  // [warps, kBlocks, 8, 8]
  const TaskGradientsView& grads = args.grads;
  const int64_t tiles = (args.plan.strips + kTileStrips - 1) / kTileStrips;
  const int64_t pairs = tiles * (tiles - 1) / 2;
  int64_t row_tile = 0, column_tile = blockIdx.x % pairs;
  for (; column_tile >= tiles - 1 - row_tile; ++row_tile) column_tile -= tiles - 1 - row_tile;
  column_tile += row_tile + 1;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto place = [=](int block, int64_t& row_strip, int64_t& column_strip) {
    row_strip = row_tile * kTileStrips + block / kTileStrips;
    column_strip = column_tile * kTileStrips + block % kTileStrips;
  };
  const auto visit = [&](int64_t segment, int64_t begin, int64_t end, double* slot) {
    if (begin >= end) return write_slot<kBlocks>(args, stage, 0, 0, 0, slot, place);
    const GramPiece piece = piece_of<T>(grads, segment, begin, end);
    const T* rows[2 * kTileStrips];
#pragma unroll
    for (int s = 0; s < 2 * kTileStrips; ++s) {
      const int64_t tile = s < kTileStrips ? row_tile : column_tile;
      const int64_t task = tile * kTileRows + s % kTileStrips * kStripRows + lane / 4;
      rows[s] = piece_row<T>(grads, segment, task, piece);
    }
    double sums[kTileStrips][kTileStrips][2] = {};
    const auto multiply = [&](const Columns<T>(&values)[2 * kTileStrips]) {
#pragma unroll
      for (int k = 0; k < kWidestVector<T>; ++k) {
        double x[2 * kTileStrips];
#pragma unroll
        for (int s = 0; s < 2 * kTileStrips; ++s) x[s] = static_cast<double>(load_as(values[s].at[k]));
#pragma unroll
        for (int p = 0; p < kTileStrips; p += 2) {
#pragma unroll
          for (int q = 0; q < kTileStrips; ++q) {
            block_products(sums[p][q], sums[p + 1][q], x[p], x[p + 1], x[kTileStrips + q]);
          }
        }
      }
    };
    for_columns<1, kPairThreads / 32, sizeof(T) == 4>(piece, rows, 1, lane % 4, multiply);
    double* own = stage + threadIdx.x / 32 * (kBlocks * kBlockSize);
#pragma unroll
    for (int p = 0; p < kTileStrips; ++p) {
#pragma unroll
      for (int q = 0; q < kTileStrips; ++q) stage_block(own + (p * kTileStrips + q) * kBlockSize, sums[p][q]);
    }
    __syncthreads();
    write_slot<kBlocks>(args, stage, kPairThreads / 32, 1, 0, slot, place);
    __syncthreads();
  };
  for_visits(args, blockIdx.x / pairs, visit);
}

// gram[group] = the sum of the group's slots. A block takes 16 entries of one group; its threads in y share the slots.
//
// Offsets out of order leave no column where it can be trusted to have been counted once: every group is NaN then.
__global__ void __launch_bounds__(kSumThreads)
    task_gram_sum_kernel(const __grid_constant__ GramKernelArgs args, const int64_t* group_offsets, double* gram,
                         int32_t* status) {
  XFER_DYNAMIC_SMEM(double, partial);  // [blockDim.y, 16]
  __shared__ int wrong;
  const TaskGradientsView& grads = args.grads;
  const int64_t parts = args.plan.slot_size / kSumEntries, group = blockIdx.x / parts;
  const int thread = static_cast<int>(threadIdx.y * kSumEntries + threadIdx.x);
  if (thread == 0) wrong = 0;
  __syncthreads();
  const int64_t num_segments = grads.num_segments;
  int64_t first = group_offsets != nullptr ? group_offsets[group] : group;
  int64_t last = group_offsets != nullptr ? group_offsets[group + 1] : group + 1;
  bool bad = first < 0 || last > num_segments || first > last;
  for (int64_t s = thread; s < num_segments; s += static_cast<int64_t>(blockDim.y) * kSumEntries) {
    const int64_t from = grads.offsets[s], to = grads.offsets[s + 1];
    bad = bad || from < 0 || from > to || to > grads.num_columns;
  }
  if (bad) wrong = 1;
  __syncthreads();
  const bool invalid = wrong != 0;
  if (invalid) first = last = 0;

  const int64_t entry = blockIdx.x % parts * kSumEntries + threadIdx.x;
  int64_t block = entry / kBlockSize, strip = 0;
  for (; block >= args.plan.strips - strip; ++strip) block -= args.plan.strips - strip;
  const int64_t i = strip * kStripRows + entry % kBlockSize / kStripRows;
  const int64_t j = (strip + block) * kStripRows + entry % kStripRows;
  const bool used = i <= j && j < grads.num_tasks;
  double total = 0.0;
  if (used && first < last && args.plan.num_slots > 0) {
    const int64_t end = first_visit(grads, args.plan, last) + last;
    const double* slots = args.slots + entry;
#pragma unroll 8
    for (int64_t slot = first_visit(grads, args.plan, first) + first + threadIdx.y; slot < end; slot += blockDim.y) {
      total += slots[slot * args.plan.slot_size];
    }
  }
  partial[thread] = total;
  for (int half = static_cast<int>(blockDim.y) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.y) < half) partial[thread] += partial[thread + half * kSumEntries];
  }
  if (threadIdx.y == 0 && used) {
    const double sum = invalid ? NAN : partial[thread];
    double* out = gram + group * grads.num_tasks * grads.num_tasks;
    out[i * grads.num_tasks + j] = sum;
    out[j * grads.num_tasks + i] = sum;
  }
  if (invalid && status != nullptr && thread == 0 && blockIdx.x % parts == 0) atomicOr(status, 2);
}

template <typename T, int kStrips, int kTail>
void launch_tiles(const GramKernelArgs& args, stream_t stream) {
  using Shape = TileShape<T, kStrips, kTail>;
  const int64_t tiles = (args.plan.strips + kTileStrips - 1) / kTileStrips;
  launch_kernel("task_gram_tile_kernel", task_gram_tile_kernel<T, kStrips, kTail>,
                dim3(static_cast<unsigned>(args.plan.num_chunks * tiles)), dim3(Shape::kThreads),
                Shape::kWarps * Shape::kBlocks * kBlockSize * sizeof(double), stream, args);
}

template <typename T>
void launch_chunks(const GramKernelArgs& args, stream_t stream) {
  const int64_t num_tasks = args.grads.num_tasks;
  if (num_tasks <= 8) return launch_tiles<T, 1, 0>(args, stream);
  if (num_tasks == 9) return launch_tiles<T, 1, 1>(args, stream);
  if (num_tasks <= 16) return launch_tiles<T, 2, 0>(args, stream);
  if (num_tasks == 17) return launch_tiles<T, 2, 1>(args, stream);
  if (num_tasks <= 24) return launch_tiles<T, 3, 0>(args, stream);
  if (num_tasks == 25) return launch_tiles<T, 3, 1>(args, stream);
  launch_tiles<T, 4, 0>(args, stream);
  const int64_t tiles = (args.plan.strips + kTileStrips - 1) / kTileStrips;
  if (tiles == 1) return;
  launch_kernel("task_gram_pair_kernel", task_gram_pair_kernel<T>,
                dim3(static_cast<unsigned>(args.plan.num_chunks * (tiles * (tiles - 1) / 2))), dim3(kPairThreads),
                kPairThreads / 32 * kTileStrips * kTileStrips * kBlockSize * sizeof(double), stream, args);
}

}  // namespace

int64_t task_gram_workspace_bytes_cuda(const TaskGramArgs& args) {
  const GramPlan plan = plan_gram(args.grads);
  return plan.num_slots * plan.slot_size * static_cast<int64_t>(sizeof(double));
}

void task_gram_cuda(const TaskGramArgs& args) {
  if (args.num_groups == 0 || args.grads.num_tasks == 0) return;
  const GramKernelArgs kernel = {args.grads, plan_gram(args.grads), static_cast<double*>(args.workspace)};
  dispatch_device_dtype(args.grads.dtype, [&](auto tag) {
    if (kernel.plan.num_slots > 0) launch_chunks<typename decltype(tag)::type>(kernel, args.stream);
  });
  // Enough threads for the slots of an average group, eight each.
  const int64_t average = kernel.plan.num_slots / args.num_groups;
  unsigned rows = 2;  // a whole warp
  while (rows < kSumThreads / kSumEntries && rows * 8 < average) rows *= 2;
  const int64_t parts = kernel.plan.slot_size / kSumEntries;
  launch_kernel("task_gram_sum_kernel", task_gram_sum_kernel, dim3(static_cast<unsigned>(args.num_groups * parts)),
                dim3(kSumEntries, rows), rows * kSumEntries * sizeof(double), args.stream, kernel, args.group_offsets,
                args.gram, args.status);
}

}  // namespace xfer
