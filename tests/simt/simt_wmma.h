// nvcuda::wmma for 16 x 16 x 16 tiles on fibers: a fragment's elements lie spread over the lanes as on a device, in an
// order of the emulation's own, so code that relies on an order shows. Alignment rules are CUDA's.
#pragma once

#include "common/dtype.h"
#include "simt.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

constexpr int kElements = 8;  // of a lane

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16);
  static constexpr int num_elements = kElements;
  float x[kElements];
};

inline void place(unsigned lane, int element, int& row, int& column) {
  const unsigned index = (lane * kElements + static_cast<unsigned>(element)) * 37u % 256u;  // 37 is odd: a permutation
  row = static_cast<int>(index / 16);
  column = static_cast<int>(index % 16);
}

template <typename T>
void check_access(const T* pointer, unsigned ld) {
  if (reinterpret_cast<uintptr_t>(pointer) % 32 != 0) simt::fail("a wmma access whose pointer is not 32-byte aligned");
  if (ld * sizeof(T) % 16 != 0) simt::fail("a wmma access whose leading dimension is no multiple of 16 bytes");
}

template <typename Fragment>
void fill_fragment(Fragment& out, float value) {
  for (float& element : out.x) element = value;
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& out, const T* from, unsigned ld) {
  check_access(from, ld);
  for (int i = 0; i < kElements; ++i) {
    int row, column;
    place(simt::lane_id(), i, row, column);
    const bool by_column = std::is_same_v<Layout, col_major>;
    out.x[i] = xfer::load_as(from[by_column ? column * ld + row : row * ld + column]);
  }
}

inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 16, float>& from, unsigned ld,
                              layout_t layout) {
  check_access(to, ld);
  for (int i = 0; i < kElements; ++i) {
    int row, column;
    place(simt::lane_id(), i, row, column);
    to[layout == mem_row_major ? row * ld + column : column * ld + row] = from.x[i];
  }
}

inline void gather(simt::Lane* const* lanes, int operand, float (*tile)[16]) {
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    const float* x = static_cast<const float*>(lanes[lane]->operand[operand]);
    for (int i = 0; i < kElements; ++i) {
      int row, column;
      place(lane, i, row, column);
      tile[row][column] = x[i];
    }
  }
}

inline void finish_mma(simt::Lane* const* lanes, unsigned) {
  float a[16][16], b[16][16], c[16][16];
  gather(lanes, 0, a);
  gather(lanes, 1, b);
  gather(lanes, 2, c);
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 16; ++column) c[row][column] += a[row][k] * b[k][column];
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    float* x = const_cast<float*>(static_cast<const float*>(lanes[lane]->operand[3]));
    for (int i = 0; i < kElements; ++i) {
      int row, column;
      place(lane, i, row, column);
      x[i] = c[row][column];
    }
  }
}

template <typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d, const fragment<matrix_a, 16, 16, 16, T, LayoutA>& a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB>& b, const fragment<accumulator, 16, 16, 16, float>& c) {
  simt::Lane& lane = simt::own_lane();
  lane.operand[0] = a.x;
  lane.operand[1] = b.x;
  lane.operand[2] = c.x;
  lane.operand[3] = d.x;
  simt::meet(simt::kMatrix, 0xFFFFFFFFu, finish_mma, "mma_sync");
}

}  // namespace nvcuda::wmma
