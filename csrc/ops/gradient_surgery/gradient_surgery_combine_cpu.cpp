// CPU kernel of combine_gradients: every gradient is read once and the result written once; sums stay in registers.
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "ops/gradient_surgery/gradient_surgery.h"
#include "ops/gradient_surgery/gradient_surgery_math.h"

XFER_CPU_DISPATCH(combine_gradients_cpu, CombineGradientsArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kChunkColumns = 16 * 1024;
constexpr int64_t kTile = 4 * kLanes;  // columns summed at once, in registers or the first cache
constexpr int64_t kBytesAhead = 1024;  // distance of the prefetch: many rows are more streams than the hardware follows

// One segment: where each task's gradient starts (null: zeros) and where the result goes.
template <typename T>
struct Segment {
  const CombineGradientsArgs& args;
  int64_t index;
  const double* weights;  // [T]
  T* out;
  double down = 1.0;  // weights are multiplied by this, sums by `up`: see combine_exponent
  double up = 1.0;

  void scale() {
    if (sizeof(compute_t<T>) == sizeof(double)) return;
    int exponent = 0;
    for (int64_t t = 0; t < args.grads.num_tasks; ++t) {
      const int own = combine_exponent(weights[t]);
      exponent = own > exponent ? own : exponent;
    }
    down = std::ldexp(1.0, -exponent), up = std::ldexp(1.0, exponent);
  }

  compute_t<T> weight(int64_t task) const { return static_cast<compute_t<T>>(weights[task] * down); }

  const T* row(int64_t task) const {
    const TaskGradientsView& grads = args.grads;
    if (grads.pointers != nullptr) return static_cast<const T*>(grads.pointers[index * grads.num_tasks + task]);
    return static_cast<const T*>(grads.base) + task * grads.row_stride + grads.offsets[index];
  }
};

template <typename T>
void combine_columns(const Segment<T>& segment, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const int64_t num_tasks = segment.args.grads.num_tasks;
  const C up = static_cast<C>(segment.up);
  int64_t c = begin;
  for (; c + kTile <= end; c += kTile) {
    C sums[kTile] = {};
    for (int64_t t = 0; t < num_tasks; ++t) {
      const T* row = segment.row(t);
      if (row == nullptr) continue;
      row += c;
      for (int64_t b = 0; b < kTile * static_cast<int64_t>(sizeof(T)); b += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(row) + kBytesAhead + b);
      }
      const C weight = segment.weight(t);
      if constexpr (!__is_same(T, f16_t)) {
        for (int64_t v = 0; v < kTile; ++v) sums[v] += weight * load_as(row[v]);
      } else {  // the vectoriser leaves half precision to one conversion at a time
        for (int64_t v = 0; v < kTile; v += kLanes) {
          lanes_t<T> wide, sum;
          load_lanes(row + v, wide);
          memcpy(&sum, sums + v, sizeof(sum));
          sum += weight * wide;
          memcpy(sums + v, &sum, sizeof(sum));
        }
      }
    }
    for (int64_t v = 0; v < kTile; v += kLanes) {
      lanes_t<T> sum;
      memcpy(&sum, sums + v, sizeof(sum));
      sum *= up;
      store_lanes(segment.out + c + v, sum);
    }
  }
  for (; c < end; ++c) {
    C sum = C(0);
    for (int64_t t = 0; t < num_tasks; ++t) {
      const T* row = segment.row(t);
      if (row != nullptr) sum += segment.weight(t) * load_as(row[c]);
    }
    store_as(segment.out[c], up * sum);
  }
}

// Index of the run of sorted bounds that holds `value`: bounds[i] <= value < bounds[i + 1].
int64_t find_run(const int64_t* bounds, int64_t count, int64_t value) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (bounds[middle] <= value ? low : high) = middle;
  }
  return low;
}

template <typename T>
void combine(const CombineGradientsArgs& args) {
  const TaskGradientsView& grads = args.grads;
  const int64_t begin_all = grads.offsets[0];
  const int64_t total = grads.offsets[grads.num_segments] - begin_all;
  const int64_t chunks = ceil_div(total, kChunkColumns);
  parallel_chunks(chunks, chunks > 1 ? max_workers() : 1, [&](int64_t chunk, int) {
    int64_t column = begin_all + chunk * kChunkColumns;
    const int64_t last = begin_all + ((chunk + 1) * kChunkColumns < total ? (chunk + 1) * kChunkColumns : total);
    int64_t index = find_run(grads.offsets, grads.num_segments, column);
    for (; column < last; ++index) {
      const int64_t start = grads.offsets[index];
      const int64_t end = grads.offsets[index + 1] < last ? grads.offsets[index + 1] : last;
      if (end <= column) continue;  // an empty segment
      const int64_t group =
          args.group_offsets == nullptr ? index : find_run(args.group_offsets, args.num_groups, index);
      T* out =
          grads.pointers != nullptr ? static_cast<T*>(args.out_pointers[index]) : static_cast<T*>(args.out) + start;
      if (out != nullptr) {
        Segment<T> segment{args, index, args.weights + group * grads.num_tasks, out};
        segment.scale();
        combine_columns(segment, column - start, end - start);
      }
      column = end;
    }
  });
}

}  // namespace

void combine_gradients_cpu_isa(const CombineGradientsArgs& args) {
  dispatch_dtype(args.grads.dtype, [&](auto tag) { combine<typename decltype(tag)::type>(args); });
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
