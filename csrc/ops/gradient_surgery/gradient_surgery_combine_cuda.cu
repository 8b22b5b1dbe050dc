// CUDA kernel of combine_gradients: every gradient is read once, every output element written once.
//
// A block takes a run of the joined columns and goes through the segments that it meets. Warp 0 collects the gradients
// that a segment has, with their group's weights, in shared memory; then a thread adds up 16 bytes of columns at a
// time.
#include "ops/gradient_surgery/gradient_surgery_device.cuh"
#include "ops/gradient_surgery/gradient_surgery_math.h"

namespace xfer {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 2;  // 64 KiB under way on a multiprocessor; three blocks leave a register too few
constexpr int64_t kSmemBytes = 160 * 1024;  // what every device since sm_80 has
constexpr int64_t kManyBlocks = 132 * 16;   // beyond it a block takes more columns
constexpr int64_t kMostAccesses = 8;        // of a thread

// The gradients that a segment has, in the order of tasks.
template <typename T>
struct Sources {
  const T** rows;  // at column 0 of the segment (list form) or of all columns (arena form)
  float* weights;  // times 2^-exponent, see combine_exponent
  int* state;      // [3]: how many; whether 16-byte accesses of all of them and of the output begin at the same
                   // columns; 2^exponent as a float

  __device__ __forceinline__ int count() const { return state[0]; }
  __device__ __forceinline__ bool aligned() const { return state[1] != 0; }
  __device__ __forceinline__ float up() const {
    // Volatile: read where it is used, not kept in a register through the loads.
    return *reinterpret_cast<const volatile float*>(state + 2);
  }
};

// Row of the weights for `segment`, or -1 where no group has it. All lanes of a warp call.
__device__ __forceinline__ int64_t group_of(const CombineGradientsArgs& args, int64_t segment) {
  if (args.group_offsets == nullptr) return segment < args.num_groups ? segment : -1;
  const int64_t group = last_at_most(args.group_offsets, args.num_groups, segment);
  return group >= 0 && args.group_offsets[group + 1] > segment ? group : -1;
}

// 2^exponent of combine_exponent for a group's weights. All lanes of a warp call. Once for a segment: inlined, its
// registers would count against the loop over columns.
__device__ __attribute__((noinline)) float largest_scale(const double* weights, int64_t num_tasks) {
  float exponent = 0.0f;  // small whole numbers, for group_max
  for (int64_t task = threadIdx.x; task < num_tasks; task += 32) {
    exponent = fmaxf(exponent, static_cast<float>(combine_exponent(weights[task])));
  }
  return ldexpf(1.0f, static_cast<int>(group_max<32>(exponent)));
}

// By warp 0: `column` is where an access of the output begins.
template <typename T>
__device__ __forceinline__ void collect(const CombineGradientsArgs& args, int64_t segment, int64_t column,
                                        const Sources<T>& sources) {
  const TaskGradientsView& grads = args.grads;
  const unsigned lane = threadIdx.x;
  const int64_t group = group_of(args, segment);
  int count = 0;
  bool aligned = true;
  const float up = group >= 0 ? largest_scale(args.weights + group * grads.num_tasks, grads.num_tasks) : 1.0f;
  const double down = 1.0 / up;  // exact: powers of two
  for (int64_t task0 = 0; group >= 0 && task0 < grads.num_tasks; task0 += 32) {
    const int64_t task = task0 + lane;
    const T* row = task < grads.num_tasks ? gradient_row<T>(grads, segment, task) : nullptr;
    const unsigned present = __ballot_sync(kFullWarp, row != nullptr);
    if (row != nullptr) {
      const int place = count + __popc(present & ((1u << lane) - 1u));
      sources.rows[place] = row;
      sources.weights[place] = static_cast<float>(args.weights[group * grads.num_tasks + task] * down);
      aligned = aligned && misalignment(row, column) == 0;
    }
    count += __popc(present);
  }
  aligned = __all_sync(kFullWarp, aligned);
  if (lane == 0) {
    sources.state[0] = count;
    sources.state[1] = aligned;
    memcpy(sources.state + 2, &up, sizeof(up));
  }
}

// Pointers out of shared memory could lead anywhere; the streaming load says that these are global.
template <typename T, int kSize>
__device__ __forceinline__ Vector<T, kSize> load_once(const T* from) {
  Vector<T, kSize> values;
  if constexpr (sizeof(values) == sizeof(uint4)) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
    memcpy(&values, &bits, sizeof(values));
  } else {
    values = *reinterpret_cast<const Vector<T, kSize>*>(from);
  }
  return values;
}

// sums += the next kCount gradients' columns: all loads are under way before the first is used.
template <typename T, int kSize, int kCount>
__device__ __forceinline__ void add_batch(const Sources<T>& sources, int first, int64_t column, float (&sums)[kSize]) {
  Vector<T, kSize> values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = load_once<T, kSize>(sources.rows[first + i] + column);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float weight = sources.weights[first + i];
#pragma unroll
    for (int j = 0; j < kSize; ++j) sums[j] = fmaf(weight, load_as(values[i].at[j]), sums[j]);
  }
}

// Reads every gradient's elements before it writes: the output may be one of them.
template <typename T, int kSize>
__device__ __forceinline__ void combine_access(const Sources<T>& sources, int64_t column, T* out) {
  const int count = sources.count();
  float sums[kSize] = {};
  int first = 0;
  for (; first + 8 <= count; first += 8) add_batch<T, kSize, 8>(sources, first, column, sums);
  switch (count - first) {
    case 7:
      add_batch<T, kSize, 7>(sources, first, column, sums);
      break;
    case 6:
      add_batch<T, kSize, 6>(sources, first, column, sums);
      break;
    case 5:
      add_batch<T, kSize, 5>(sources, first, column, sums);
      break;
    case 4:
      add_batch<T, kSize, 4>(sources, first, column, sums);
      break;
    case 3:
      add_batch<T, kSize, 3>(sources, first, column, sums);
      break;
    case 2:
      add_batch<T, kSize, 2>(sources, first, column, sums);
      break;
    case 1:
      add_batch<T, kSize, 1>(sources, first, column, sums);
      break;
    default:
      break;
  }
  const float up = sources.up();
  Vector<T, kSize> combined;
#pragma unroll
  for (int j = 0; j < kSize; ++j) store_as(combined.at[j], up * sums[j]);
  *reinterpret_cast<Vector<T, kSize>*>(out + column) = combined;
}

// Columns [begin, end) of the rows' pointers and of `out`: whole accesses in the middle, single columns at the ends or,
// where the pointers are not aligned alike, throughout.
template <typename T>
__device__ __forceinline__ void combine_piece(const Sources<T>& sources, int64_t begin, int64_t end, T* out) {
  constexpr int kSize = kWidestVector<T>;
  int64_t first = end, last = end;  // of the middle
  if (sources.aligned()) {
    first = begin + (kSize - misalignment(out, begin)) % kSize;
    first = first < end ? first : end;
    last = end - (end - first) % kSize;
  }
  for (int64_t column = first + threadIdx.x * kSize; column < last; column += kThreads * kSize) {
    combine_access<T, kSize>(sources, column, out);
  }
  const int64_t singles = first - begin + end - last;
  for (int64_t i = threadIdx.x; i < singles; i += kThreads) {
    combine_access<T, 1>(sources, i < first - begin ? begin + i : last + (i - (first - begin)), out);
  }
}

template <typename T>
__device__ __forceinline__ void fill_zero(T* out, int64_t begin, int64_t end) {
  for (int64_t column = begin + threadIdx.x; column < end; column += kThreads) store_as(out[column], 0.0f);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    combine_gradients_kernel(const __grid_constant__ CombineGradientsArgs args, int64_t columns_per_block) {
  XFER_DYNAMIC_SMEM(unsigned char, smem);  // rows [num_tasks], weights [num_tasks]
  __shared__ int state[3];
  const TaskGradientsView& grads = args.grads;
  const bool list = grads.pointers != nullptr;
  const T** rows = reinterpret_cast<const T**>(smem);
  const Sources<T> sources = {rows, reinterpret_cast<float*>(rows + grads.num_tasks), state};
  int64_t cursor = static_cast<int64_t>(blockIdx.x) * columns_per_block;  // columns before it are written
  const int64_t end = cursor + columns_per_block < grads.num_columns ? cursor + columns_per_block : grads.num_columns;
  int64_t segment = last_at_most(grads.offsets, grads.num_segments, cursor);
  if (segment < 0) segment = 0;
  for (; segment < grads.num_segments && cursor < end; ++segment) {
    const int64_t from = segment_bound(grads, segment), bound = segment_bound(grads, segment + 1);
    const int64_t first = from > cursor ? from : cursor, last = bound < end ? bound : end;
    if (first >= last) continue;
    const int64_t origin = list ? from : 0;
    T* out = static_cast<T*>(list ? args.out_pointers[segment] : args.out);
    if (!list) fill_zero(out, cursor, first);
    cursor = last;
    if (out == nullptr) continue;
    __syncthreads();  // the segment before is through with its sources
    if (threadIdx.x < 32) collect(args, segment, first - origin - misalignment(out, first - origin), sources);
    __syncthreads();
    combine_piece(sources, first - origin, last - origin, out);
  }
  if (!list) fill_zero(static_cast<T*>(args.out), cursor, end);
}

}  // namespace

void combine_gradients_cuda(const CombineGradientsArgs& args) {
  if (args.grads.num_columns == 0) return;
  const int64_t bytes_per_task = sizeof(void*) + sizeof(float);
  if (args.grads.num_tasks * bytes_per_task > kSmemBytes) {
    throw Error("combine_gradients: num_tasks must be at most " + std::to_string(kSmemBytes / bytes_per_task) +
                " on CUDA, got " + std::to_string(args.grads.num_tasks));
  }
  dispatch_device_dtype(args.grads.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t unit = kThreads * kWidestVector<T>;
    int64_t accesses = args.grads.num_columns / (unit * kManyBlocks);
    accesses = accesses < 1 ? 1 : accesses > kMostAccesses ? kMostAccesses : accesses;
    const int64_t columns = unit * accesses;
    launch_kernel("combine_gradients_kernel", combine_gradients_kernel<T>,
                  dim3(static_cast<unsigned>((args.grads.num_columns + columns - 1) / columns)), dim3(kThreads),
                  static_cast<size_t>(args.grads.num_tasks * bytes_per_task), args.stream, args, columns);
  });
}

}  // namespace xfer
