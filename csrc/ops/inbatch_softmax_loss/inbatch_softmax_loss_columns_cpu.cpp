// CPU pass of inbatch_softmax_loss for symmetric = true: the columns' softmax, a run of columns after another.
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss_math.h"

XFER_CPU_DISPATCH(inbatch_softmax_columns_cpu, InbatchColumnsArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kColumnsPerChunk = 8 * kLanes;

// Columns [begin, begin + width) of the columns' softmax, over all rows of the block.
template <typename C>
void add_columns(const InbatchColumnsArgs& args, int64_t begin, int64_t width) {
  const C scale = *static_cast<const C*>(args.scale), margin = static_cast<C>(args.margin);
  C z[kColumnsPerChunk], maximum[kColumnsPerChunk], rest[kColumnsPerChunk];
  C* maxima = static_cast<C*>(args.max) + begin;
  C* rests = static_cast<C*>(args.rest) + begin;
  C* positives = static_cast<C*>(args.positive) + begin;
  const auto logits = [&](int64_t i) {  // returns the place of the row's positive, -1 where it is elsewhere
    const C* sim = static_cast<const C*>(args.sim) + i * args.num_columns + begin;
    for (int64_t l = 0; l < width; ++l) z[l] = scale * sim[l];
    if (args.col_ids != nullptr) {
      const int64_t row_id = args.row_ids != nullptr ? args.row_ids[i] : -1;
      for (int64_t l = 0; l < width; ++l) {
        z[l] = inbatch_masked(row_id, args.col_ids[begin + l], kInbatchAbsent) ? -C(INFINITY) : z[l];
      }
    }
    const int64_t target = args.targets != nullptr ? args.targets[i] : args.first_target + i;
    const int64_t local = target - args.first_column - begin;
    if (local < 0 || local >= width) return int64_t(-1);
    z[local] = scale * (sim[local] - margin);
    return local;
  };
  for (int64_t l = 0; l < width; ++l) maximum[l] = maxima[l];
  for (int64_t i = 0; i < args.num_rows; ++i) {
    logits(i);
    for (int64_t l = 0; l < width; ++l) maximum[l] = z[l] > maximum[l] ? z[l] : maximum[l];
  }
  for (int64_t l = 0; l < width; ++l) {
    const C factor = inbatch_weight(maxima[l], maximum[l]);
    rest[l] = rests[l] * factor;
    positives[l] *= factor;
  }
  for (int64_t i = 0; i < args.num_rows; ++i) {
    const int64_t local = logits(i);
    if (local >= 0) {
      positives[local] += inbatch_weight(z[local], maximum[local]);
      static_cast<C*>(args.count)[begin + local] += C(1);
      static_cast<C*>(args.coef_sum)[begin + local] += static_cast<const C*>(args.coef)[i];
      z[local] = -C(INFINITY);
    }
    for (int64_t l = 0; l < width; ++l) rest[l] += inbatch_weight(z[l], maximum[l]);
  }
  for (int64_t l = 0; l < width; ++l) {
    maxima[l] = maximum[l];
    rests[l] = rest[l];
  }
}

}  // namespace

void inbatch_softmax_columns_cpu_isa(const InbatchColumnsArgs& args) {
  const auto run = [&](auto zero) {
    parallel_chunks(ceil_div(args.num_columns, kColumnsPerChunk), max_workers(), [&](int64_t chunk, int) {
      const int64_t begin = chunk * kColumnsPerChunk;
      const int64_t left = args.num_columns - begin;
      add_columns<decltype(zero)>(args, begin, left < kColumnsPerChunk ? left : kColumnsPerChunk);
    });
  };
  args.dtype == DType::f64 ? run(double{}) : run(float{});
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
