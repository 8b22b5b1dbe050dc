// CUDA pass over the columns of inbatch_softmax_loss (symmetric = true): a block takes a run of columns, its threads
// share out the rows and join their sums in a fixed order. The similarities are read once.
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss_device.cuh"

namespace xfer {
namespace {

constexpr int kThreads = 512;
constexpr int kRowsUnderWay = 8;             // that a thread loads before it uses the first
constexpr int64_t kManyColumns = 32 * 1024;  // from here on blocks of 32 columns fill a device

// A column's softmax over some rows; see InbatchColumnsArgs.
struct ColumnFound {
  float maximum, rest, positive, count, coef_sum;

  __device__ __forceinline__ void raise(float to) {
    if (!(to > maximum)) return;
    const float factor = weigh(maximum, to);
    rest *= factor;
    positive *= factor;
    maximum = to;
  }
  __device__ __forceinline__ void join(const ColumnFound& other) {
    raise(other.maximum);
    const float factor = weigh(other.maximum, maximum);
    rest += other.rest * factor;
    positive += other.positive * factor;
    count += other.count;
    coef_sum += other.coef_sum;
  }
};

template <int kColumns>
__global__ void __launch_bounds__(kThreads)
    inbatch_softmax_columns_kernel(const __grid_constant__ InbatchColumnsArgs args) {
  constexpr int kTeams = kThreads / kColumns;  // threads of a column
  __shared__ ColumnFound found_by_team[kTeams][kColumns];
  const int x = threadIdx.x % kColumns, team = threadIdx.x / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + x;
  const bool inside = column < args.num_columns;
  const float scale = *static_cast<const float*>(args.scale), margin = static_cast<float>(args.margin);
  const float* sim = static_cast<const float*>(args.sim) + column;
  const int64_t col_id = args.col_ids != nullptr && inside ? args.col_ids[column] : -1;
  ColumnFound found = {-INFINITY, 0.0f, 0.0f, 0.0f, 0.0f};
  for (int64_t row0 = team; inside && row0 < args.num_rows; row0 += kTeams * kRowsUnderWay) {
    float z[kRowsUnderWay], top = -INFINITY;
    unsigned own = 0;  // rows whose positive the column is
#pragma unroll
    for (int r = 0; r < kRowsUnderWay; ++r) {
      const int64_t i = row0 + r * kTeams;
      z[r] = i < args.num_rows ? sim[i * args.num_columns] : -INFINITY;
    }
#pragma unroll
    for (int r = 0; r < kRowsUnderWay; ++r) {
      const int64_t i = row0 + r * kTeams;
      if (i >= args.num_rows) continue;
      const int64_t target = args.targets != nullptr ? args.targets[i] : args.first_target + i;
      if (target == args.first_column + column) {
        own |= 1u << r;
        z[r] = scale * (z[r] - margin);
        found.count += 1.0f;
        found.coef_sum += static_cast<const float*>(args.coef)[i];
      } else {
        const int64_t row_id = args.row_ids != nullptr && args.col_ids != nullptr ? args.row_ids[i] : -1;
        z[r] = inbatch_masked(row_id, col_id, kInbatchAbsent) ? -INFINITY : inbatch_logit(scale, z[r]);
      }
      top = fmaxf(top, z[r]);
    }
    found.raise(top);
    const float shift = finite_or_zero(found.maximum);
#pragma unroll
    for (int r = 0; r < kRowsUnderWay; ++r) {
      const float e = expf(z[r] - shift);
      found.positive += (own >> r & 1u) != 0 ? e : 0.0f;
      found.rest += (own >> r & 1u) != 0 ? 0.0f : e;
    }
  }
  found_by_team[team][x] = found;
  for (int half = kTeams / 2; half > 0; half /= 2) {
    __syncthreads();
    if (team < half) found_by_team[team][x].join(found_by_team[team + half][x]);
  }
  if (team != 0 || !inside) return;
  float* const to[5] = {static_cast<float*>(args.max) + column, static_cast<float*>(args.rest) + column,
                        static_cast<float*>(args.positive) + column, static_cast<float*>(args.count) + column,
                        static_cast<float*>(args.coef_sum) + column};
  ColumnFound total = {*to[0], *to[1], *to[2], *to[3], *to[4]};
  total.join(found_by_team[0][x]);
  *to[0] = total.maximum;
  *to[1] = total.rest;
  *to[2] = total.positive;
  *to[3] = total.count;
  *to[4] = total.coef_sum;
}

}  // namespace

void inbatch_softmax_columns_cuda(const InbatchColumnsArgs& args) {
  if (args.num_rows == 0 || args.num_columns == 0) return;
  if (args.dtype != DType::f32) throw Error("inbatch_softmax_loss: similarities on CUDA are float32");
  const auto launch = [&](auto kernel, int64_t columns) {
    launch_kernel("inbatch_softmax_columns_kernel", kernel,
                  dim3(static_cast<unsigned>((args.num_columns + columns - 1) / columns)), dim3(kThreads), 0,
                  args.stream, args);
  };
  if (args.num_columns >= kManyColumns) {
    launch(inbatch_softmax_columns_kernel<32>, 32);
  } else {
    launch(inbatch_softmax_columns_kernel<8>, 8);
  }
}

}  // namespace xfer
