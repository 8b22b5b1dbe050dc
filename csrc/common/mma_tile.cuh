// Products of small matrices by one block: C[kRows, 64] += A B in fp32, with A and B in shared memory.
//
// bf16 and fp16 go through the tensor cores by way of nvcuda::wmma (its emulation is tests/simt/simt_wmma.h), fp32
// through fused multiply-adds: TF32 would round the inputs to 10 bits. Both add along the depth in a fixed order.
#pragma once

#include "common/dtype.h"
#include "common/reduce.cuh"

#if defined(XFER_SIMT)
#include "simt_wmma.h"
#else
#include <mma.h>
#endif

namespace xfer {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / 32;
constexpr int kPanelColumns = 64;

// Depth of a piece of B in shared memory.
template <typename T>
constexpr int kStageDepth = sizeof(T) == 2 ? 64 : 32;

// Rows in shared memory are longer than their data by one 16-byte access, or columns would share a bank.
template <typename T>
constexpr int kRowPadding = kWidestVector<T>;

template <typename T>
constexpr int kStageElements = kPanelColumns * (kStageDepth<T> + kRowPadding<T>);

constexpr int kPanelLd = kPanelColumns + 4;  // of a C panel in fp32

XFER_HD constexpr int round_up_to(int64_t value, int unit) {
  return static_cast<int>((value + unit - 1) / unit * unit);
}

// dst[rows, columns] = src[rows, columns], zero outside [valid_rows, valid_columns]; columns % (16 / sizeof(T)) == 0.
template <typename T>
__device__ __forceinline__ void stage_matrix(T* dst, int dst_ld, const T* src, int64_t src_ld, int64_t valid_rows,
                                             int64_t valid_columns, int rows, int columns) {
  constexpr int kSize = kWidestVector<T>;
  using Packed = Vector<T, kSize>;
  const bool aligned = reinterpret_cast<uintptr_t>(src) % 16 == 0 && src_ld % kSize == 0;
  const int per_row = columns / kSize;
  for (int i = static_cast<int>(threadIdx.x); i < rows * per_row; i += kTileThreads) {
    const int row = i / per_row, column = i % per_row * kSize;
    Packed values = {};
    if (row < valid_rows) {
      const T* from = src + row * src_ld + column;
      if (aligned && column + kSize <= valid_columns) {
        values = *reinterpret_cast<const Packed*>(from);
      } else {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          if (column + j < valid_columns) values.at[j] = from[j];
        }
      }
    }
    *reinterpret_cast<Packed*>(dst + row * dst_ld + column) = values;
  }
}

// A [64, kStageDepth] or [kStageDepth, 64] piece of B on its way from global to shared memory: it waits in registers
// while the block multiplies the piece before it.
template <typename T>
class StagedPiece {
 public:
  // Rows of `columns` elements (64 or kStageDepth); what lies outside [valid_rows, valid_columns] is zero.
  template <int kColumns>
  __device__ __forceinline__ void load(const T* src, int64_t src_ld, int64_t valid_rows, int64_t valid_columns) {
    const bool aligned = reinterpret_cast<uintptr_t>(src) % 16 == 0 && src_ld % kSize == 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = place<kColumns>(i) / kColumns, column = place<kColumns>(i) % kColumns;
      values_[i] = {};
      if (row >= valid_rows) continue;
      const T* from = src + row * src_ld + column;
      if (aligned && column + kSize <= valid_columns) {
        values_[i] = *reinterpret_cast<const Packed*>(from);
      } else {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          if (column + j < valid_columns) values_[i].at[j] = from[j];
        }
      }
    }
  }

  template <int kColumns>
  __device__ __forceinline__ void store(T* dst, int dst_ld) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = place<kColumns>(i) / kColumns, column = place<kColumns>(i) % kColumns;
      *reinterpret_cast<Packed*>(dst + row * dst_ld + column) = values_[i];
    }
  }

  // dst[column, row]: the fp32 product reads B along n.
  template <int kColumns>
  __device__ __forceinline__ void store_transposed(T* dst, int dst_ld) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = place<kColumns>(i) / kColumns, column = place<kColumns>(i) % kColumns;
#pragma unroll
      for (int j = 0; j < kSize; ++j) dst[(column + j) * dst_ld + row] = values_[i].at[j];
    }
  }

 private:
  static constexpr int kSize = kWidestVector<T>;
  static constexpr int kCount = kPanelColumns * kStageDepth<T> / kSize / kTileThreads;
  using Packed = Vector<T, kSize>;

  template <int kColumns>
  static __device__ __forceinline__ int place(int i) {
    return (static_cast<int>(threadIdx.x) + i * kTileThreads) * kSize;
  }

  Packed values_[kCount];
};

#if defined(XFER_SIMT)
template <typename T>
using wmma_element = T;
#else
template <typename T>
using wmma_element = std::conditional_t<std::is_same_v<T, bf16_t>, __nv_bfloat16, __half>;
#endif

// The part of C[kRows, 64] that this thread's warp keeps in registers. kRows is 16, 32, 64 or 128.
template <typename T, int kRows>
class Panel {
 public:
  __device__ __forceinline__ Panel() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row_ = warp / (4 / kTiles) * 16;
    column_ = warp % (4 / kTiles) * kTiles * 16;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) nvcuda::wmma::fill_fragment(sums_[i], 0.0f);
  }

  // A is a[row, k] or, kTransA, a[k, row]; B is b[k, column] or, kTransB, b[column, k]; depth a multiple of 16.
  template <bool kTransA, bool kTransB>
  __device__ __forceinline__ void add(const T* a, int lda, const T* b, int ldb, int depth) {
    namespace wmma = nvcuda::wmma;
    using Element = wmma_element<T>;
    using LayoutA = std::conditional_t<kTransA, wmma::col_major, wmma::row_major>;
    using LayoutB = std::conditional_t<kTransB, wmma::col_major, wmma::row_major>;
    if (row_ >= kRows) return;  // 16 rows occupy half of the warps
    for (int k = 0; k < depth; k += 16) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, Element, LayoutA> left;
      const T* from_a = kTransA ? a + k * lda + row_ : a + row_ * lda + k;
      wmma::load_matrix_sync(left, reinterpret_cast<const Element*>(from_a), static_cast<unsigned>(lda));
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int column = column_ + i * 16;
        wmma::fragment<wmma::matrix_b, 16, 16, 16, Element, LayoutB> right;
        const T* from_b = kTransB ? b + column * ldb + k : b + k * ldb + column;
        wmma::load_matrix_sync(right, reinterpret_cast<const Element*>(from_b), static_cast<unsigned>(ldb));
        wmma::mma_sync(sums_[i], left, right, sums_[i]);
      }
    }
  }

  __device__ __forceinline__ void store(float* c, int ldc) const {
    if (row_ >= kRows) return;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      nvcuda::wmma::store_matrix_sync(c + row_ * ldc + column_ + i * 16, sums_[i], static_cast<unsigned>(ldc),
                                      nvcuda::wmma::mem_row_major);
    }
  }

 private:
  static constexpr int kTiles = kRows > 32 ? kRows / 32 : 1;  // 16 x 16 tiles of a warp, side by side
  int row_, column_;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums_[kTiles];
};

// fp32: a thread keeps kRows / 16 rows of four columns. B is always b[k, column].
template <int kRows>
class Panel<float, kRows> {
 public:
  __device__ __forceinline__ Panel() {
    row_ = static_cast<int>(threadIdx.x) / 16 * kOwnRows;
    column_ = static_cast<int>(threadIdx.x) % 16 * 4;
  }

  template <bool kTransA, bool kTransB>
  __device__ __forceinline__ void add(const float* a, int lda, const float* b, int ldb, int depth) {
    static_assert(!kTransB);
#pragma unroll 4
    for (int k = 0; k < depth; ++k) {
      const Vector<float, 4> right = *reinterpret_cast<const Vector<float, 4>*>(b + k * ldb + column_);
#pragma unroll
      for (int i = 0; i < kOwnRows; ++i) {
        const float left = kTransA ? a[k * lda + row_ + i] : a[(row_ + i) * lda + k];
#pragma unroll
        for (int j = 0; j < 4; ++j) sums_[i].at[j] = fmaf(left, right.at[j], sums_[i].at[j]);
      }
    }
  }

  __device__ __forceinline__ void store(float* c, int ldc) const {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      *reinterpret_cast<Vector<float, 4>*>(c + (row_ + i) * ldc + column_) = sums_[i];
    }
  }

 private:
  static constexpr int kOwnRows = kRows / 16;
  int row_, column_;
  Vector<float, 4> sums_[kOwnRows] = {};
};

// c[kRows, 64] = A[kRows, depth] B[depth, 64]. A lies in shared memory, its rows filled with zeros up to a multiple of
// 16; B in global memory as b[k, column] or, kTransB, b[column, k], with `columns` (at most 64 are used) in bounds.
// Every thread of the block calls it; on return c is complete and `stage` free. Between a caller's last reads of c and
// the writes here lies a barrier, so no caller needs one before.
template <typename T, int kRows, bool kTransB>
__device__ __forceinline__ void multiply_panel(const T* a, int lda, const T* b, int64_t ldb, int64_t columns, int depth,
                                               T* stage, float* c, int ldc) {
  constexpr int kDepth = kStageDepth<T>;
  constexpr bool kStageTransposed = kTransB && sizeof(T) == 2;
  constexpr int kStageLd = (kStageTransposed ? kDepth : kPanelColumns) + kRowPadding<T>;
  Panel<T, kRows> panel;
  StagedPiece<T> piece;
  const auto load = [&](int k) {
    if constexpr (kTransB) {
      piece.template load<kDepth>(b + k, ldb, columns, depth - k);
    } else {
      piece.template load<kPanelColumns>(b + k * ldb, ldb, depth - k, columns);
    }
  };
  load(0);
  for (int k = 0; k < depth; k += kDepth) {
    if constexpr (!kTransB) {
      piece.template store<kPanelColumns>(stage, kStageLd);
    } else if constexpr (kStageTransposed) {
      piece.template store<kDepth>(stage, kStageLd);
    } else {
      piece.template store_transposed<kDepth>(stage, kStageLd);
    }
    __syncthreads();
    if (k + kDepth < depth) load(k + kDepth);
    const int left = round_up_to(depth - k, 16);
    panel.template add<false, kStageTransposed>(a + k, lda, stage, kStageLd, left < kDepth ? left : kDepth);
    __syncthreads();
  }
  panel.store(c, ldc);
  __syncthreads();
}

}  // namespace xfer
