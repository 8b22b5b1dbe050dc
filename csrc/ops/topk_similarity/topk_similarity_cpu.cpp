// CPU kernel of topk_similarity: every row keeps its k best in a heap whose root is the worst of them, and whole
// vectors of similarities that cannot enter are passed over.
#include <cmath>

#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "ops/topk_similarity/topk_similarity.h"
#include "ops/topk_similarity/topk_similarity_math.h"

XFER_CPU_DISPATCH(topk_similarity_tile_cpu, TopkSimilarityArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 64;                    // similarities of one quick test
constexpr int64_t kElementsPerChunk = 64 * 1024;  // of a chunk of rows

// A parent comes after its children in the order of candidates. Empty places hold -inf and the largest index, after
// which nothing comes.
template <typename C>
struct Heap {
  C* values;
  int64_t* indices;

  // Puts a candidate in place of the root of the first `size` places.
  void replace_root(int64_t size, C value, int64_t index) const {
    int64_t at = 0;
    for (;;) {
      int64_t child = 2 * at + 1;
      if (child >= size) break;
      if (child + 1 < size && topk_before(values[child], indices[child], values[child + 1], indices[child + 1]))
        ++child;
      if (!topk_before(value, index, values[child], indices[child])) break;
      values[at] = values[child];
      indices[at] = indices[child];
      at = child;
    }
    values[at] = value;
    indices[at] = index;
  }

  // Best first: the root is the last of those that are left, again and again.
  void sort(int64_t size) const {
    for (int64_t end = size - 1; end > 0; --end) {
      const C value = values[end];
      const int64_t index = indices[end];
      values[end] = values[0];
      indices[end] = indices[0];
      replace_root(end, value, index);
    }
  }
};

template <typename C>
void one_row(const TopkSimilarityArgs& args, int64_t row) {
  const C* sim = static_cast<const C*>(args.sim) + row * args.num_columns;
  const C* offset = static_cast<const C*>(args.key_offset);
  const C factor = static_cast<C>(args.factor);
  const Heap<C> heap{static_cast<C*>(args.values) + row * args.k, args.indices + row * args.k};
  if (args.first) {
    for (int64_t n = 0; n < args.k; ++n) {
      heap.values[n] = -C(INFINITY);
      heap.indices[n] = INT64_MAX;
    }
  }
  C block[kBlock];
  for (int64_t begin = 0; begin < args.num_columns; begin += kBlock) {
    const int64_t left = args.num_columns - begin, count = left < kBlock ? left : kBlock;
    const C* candidates = sim + begin;
    if (offset != nullptr || factor != C(1)) {
      for (int64_t l = 0; l < count; ++l) {
        block[l] = factor * candidates[l] - (offset != nullptr ? offset[begin + l] : C(0));
      }
      candidates = block;
    }
    C worst = heap.values[0];
    bool any = false;
    for (int64_t l = 0; l < count; ++l) any |= topk_may_enter(candidates[l], worst);
    if (!any) continue;
    for (int64_t l = 0; l < count; ++l) {
      if (!topk_may_enter(candidates[l], worst)) continue;
      const int64_t index = args.first_column + begin + l;
      if (!topk_before(candidates[l], index, worst, heap.indices[0])) continue;
      heap.replace_root(args.k, candidates[l], index);
      worst = heap.values[0];
    }
  }
  if (args.last) heap.sort(args.k);
}

}  // namespace

void topk_similarity_tile_cpu_isa(const TopkSimilarityArgs& args) {
  const int64_t per_chunk = kElementsPerChunk / (args.num_columns + 1) + 1;
  parallel_chunks(ceil_div(args.num_rows, per_chunk), max_workers(), [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * per_chunk < args.num_rows ? (chunk + 1) * per_chunk : args.num_rows;
    for (int64_t row = chunk * per_chunk; row < end; ++row) {
      args.dtype == DType::f64 ? one_row<double>(args, row) : one_row<float>(args, row);
    }
  });
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
