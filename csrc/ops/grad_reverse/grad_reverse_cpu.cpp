// CPU kernel of grad_reverse's backward pass.
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "ops/grad_reverse/grad_reverse.h"
#include "ops/grad_reverse/grad_reverse_math.h"

XFER_CPU_DISPATCH(grad_reverse_backward_cpu, GradReverseBackwardArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kElementsPerChunk = 64 * 1024;  // long enough to hide a thread's start, short enough to balance

template <typename T>
void scale_range(const T* grad, T* out, int64_t count, compute_t<T> coefficient) {
  for (int64_t i = 0; i < count; ++i) store_as(out[i], grad_reverse_scale(load_as(grad[i]), coefficient));
}

template <typename T>
void grad_reverse_backward(const GradReverseBackwardArgs& args) {
  using C = compute_t<T>;
  const T* grad = static_cast<const T*>(args.grad);
  const C* lam = static_cast<const C*>(args.lam);
  T* out = static_cast<T*>(args.out);
  const C scale = static_cast<C>(args.scale);
  const int64_t total = args.num_rows * args.row_size;
  const int64_t chunks = ceil_div(total, kElementsPerChunk);
  parallel_chunks(chunks, chunks > 1 ? max_workers() : 1, [&](int64_t chunk, int) {
    int64_t begin = chunk * kElementsPerChunk;
    const int64_t end = begin + kElementsPerChunk < total ? begin + kElementsPerChunk : total;
    if (!args.lam_per_row) {
      return scale_range(grad + begin, out + begin, end - begin, lam ? scale * lam[0] : scale);
    }
    while (begin < end) {
      const int64_t row = begin / args.row_size;
      const int64_t row_end = (row + 1) * args.row_size;
      const int64_t stop = row_end < end ? row_end : end;
      scale_range(grad + begin, out + begin, stop - begin, scale * lam[row]);
      begin = stop;
    }
  });
}

}  // namespace

void grad_reverse_backward_cpu_isa(const GradReverseBackwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { grad_reverse_backward<typename decltype(tag)::type>(args); });
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
