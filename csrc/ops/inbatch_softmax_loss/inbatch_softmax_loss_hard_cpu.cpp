// CPU kernels for a row's own hard negatives: inner products with its query, and their gradients; each embedding is
// read once.
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"

XFER_CPU_DISPATCH(inbatch_hard_sims_cpu, InbatchHardSimsArgs)
XFER_CPU_DISPATCH(inbatch_hard_grads_cpu, InbatchHardGradsArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kElementsPerChunk = 64 * 1024;

template <typename F>
void for_rows(int64_t num_rows, int64_t elements_per_row, const F& f) {
  const int64_t per_chunk = kElementsPerChunk / (elements_per_row + 1) + 1;
  parallel_chunks(ceil_div(num_rows, per_chunk), max_workers(), [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * per_chunk < num_rows ? (chunk + 1) * per_chunk : num_rows;
    for (int64_t i = chunk * per_chunk; i < end; ++i) f(i);
  });
}

template <typename T>
compute_t<T> inner_product(const T* a, const T* b, int64_t dim) {
  using C = compute_t<T>;
  lanes_t<T> sum{}, x, y;
  int64_t j = 0;
  for (; j + kLanes <= dim; j += kLanes) {
    load_lanes(a + j, x);
    load_lanes(b + j, y);
    sum += x * y;
  }
  C total = sum_lanes<C>(sum);
  for (; j < dim; ++j) total += load_as(a[j]) * load_as(b[j]);
  return total;
}

}  // namespace

void inbatch_hard_sims_cpu_isa(const InbatchHardSimsArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_rows(args.num_rows, args.num_hard * args.dim, [&](int64_t i) {
      const T* u = static_cast<const T*>(args.u) + i * args.dim;
      for (int64_t h = i * args.num_hard; h < (i + 1) * args.num_hard; ++h) {
        static_cast<compute_t<T>*>(args.sims)[h] =
            inner_product(u, static_cast<const T*>(args.hard) + h * args.dim, args.dim);
      }
    });
  });
}

void inbatch_hard_grads_cpu_isa(const InbatchHardGradsArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = compute_t<T>;
    const C factor = args.factor != nullptr ? *static_cast<const C*>(args.factor) : C(1);
    for_rows(args.num_rows, args.num_hard * args.dim, [&](int64_t i) {
      const T* u = static_cast<const T*>(args.u) + i * args.dim;
      for (int64_t h = i * args.num_hard; h < (i + 1) * args.num_hard; ++h) {
        const C d = static_cast<const C*>(args.d)[h];
        if (args.grad_u != nullptr) {
          C* out = static_cast<C*>(args.grad_u) + i * args.dim;
          const T* hard = static_cast<const T*>(args.hard) + h * args.dim;
          for (int64_t j = 0; j < args.dim; ++j) out[j] += d * load_as(hard[j]);
        }
        if (args.grad_hard != nullptr) {
          T* out = static_cast<T*>(args.grad_hard) + h * args.dim;
          for (int64_t j = 0; j < args.dim; ++j) store_as(out[j], factor * d * load_as(u[j]));
        }
      }
    });
  });
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
