// CUDA kernel of grad_reverse's backward pass: one read and one write of the gradient.
#include "common/reduce.cuh"
#include "ops/grad_reverse/grad_reverse.h"
#include "ops/grad_reverse/grad_reverse_math.h"

namespace xfer {
namespace {

constexpr int kThreads = 256;
constexpr int kLoadsInFlight = 4;  // independent 16-byte loads of a thread before its first store

// grid.x and threadIdx.x go over the vectors of a row, grid.y and threadIdx.y over rows.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads)
    grad_reverse_backward_kernel(const T* grad, const float* lam, bool lam_per_row, float scale, T* out,
                                 int64_t num_rows, int64_t row_size) {
  using Packed = Vector<T, kSize>;
  const int64_t vectors = row_size / kSize;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x * kLoadsInFlight + threadIdx.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < num_rows;
       row += static_cast<int64_t>(gridDim.y) * blockDim.y) {
    const float coefficient = lam == nullptr ? scale : scale * lam[lam_per_row ? row : 0];
    const T* source = grad + row * row_size;
    T* target = out + row * row_size;
    Packed values[kLoadsInFlight];
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const int64_t v = first + static_cast<int64_t>(i) * blockDim.x;
      if (v < vectors) values[i] = reinterpret_cast<const Packed*>(source)[v];
    }
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const int64_t v = first + static_cast<int64_t>(i) * blockDim.x;
      if (v >= vectors) continue;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        store_as(values[i].at[j], grad_reverse_scale(load_as(values[i].at[j]), coefficient));
      }
      reinterpret_cast<Packed*>(target)[v] = values[i];
    }
    // What is left of the row when it is no whole number of vectors: only the flat case, which has one row.
    // A block may be narrower than a vector, so its threads take turns.
    if (blockIdx.x == 0) {
      for (int64_t tail = vectors * kSize + threadIdx.x; tail < row_size; tail += blockDim.x) {
        store_as(target[tail], grad_reverse_scale(load_as(source[tail]), coefficient));
      }
    }
  }
}

template <typename T, int kSize>
void launch_rows(const GradReverseBackwardArgs& args, int64_t num_rows, int64_t row_size) {
  const int64_t vectors = row_size / kSize > 0 ? row_size / kSize : 1;
  unsigned columns = 1;
  while (columns < kThreads && columns < vectors) columns *= 2;
  const unsigned rows = kThreads / columns;
  const int64_t row_blocks = (num_rows + rows - 1) / rows;
  const int64_t per_block = static_cast<int64_t>(columns) * kLoadsInFlight;
  const dim3 grid(static_cast<unsigned>((vectors + per_block - 1) / per_block),
                  static_cast<unsigned>(row_blocks < 65535 ? row_blocks : 65535));
  launch_kernel("grad_reverse_backward_kernel", grad_reverse_backward_kernel<T, kSize>, grid, dim3(columns, rows), 0,
                args.stream, static_cast<const T*>(args.grad), static_cast<const float*>(args.lam), args.lam_per_row,
                static_cast<float>(args.scale), static_cast<T*>(args.out), num_rows, row_size);
}

}  // namespace

void grad_reverse_backward_cuda(const GradReverseBackwardArgs& args) {
  const int64_t total = args.num_rows * args.row_size;
  if (total == 0) return;
  // One lam for all: the tensor is one long row.
  const int64_t num_rows = args.lam_per_row ? args.num_rows : 1;
  const int64_t row_size = args.lam_per_row ? args.row_size : total;
  dispatch_device_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool aligned = is_aligned(args.grad) && is_aligned(args.out);
    if (aligned && (num_rows == 1 || row_size % kWidestVector<T> == 0)) {
      launch_rows<T, kWidestVector<T>>(args, num_rows, row_size);
    } else {
      launch_rows<T, 1>(args, num_rows, row_size);
    }
  });
}

}  // namespace xfer
