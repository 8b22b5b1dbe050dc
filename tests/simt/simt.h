// CUDA's execution model on one CPU thread: what a .cu needs so that the host compiler can build and run it.
//
// Every thread of a block is a fiber; blocks run one after another. A fiber runs until it waits at a barrier or a warp
// collective; which runnable fiber goes next, and which block, is drawn from a seed. Code that is right gives the same
// bits for every seed; a missing barrier does not. Shared memory is poisoned before each block, a barrier that some
// thread never reaches is reported, and so is every access outside the buffers that simt_buffer (simt.cpp) hands out.
// What this cannot show: races between two barriers that no thread order turns into a wrong value, memory ordering
// below the barriers, and speed.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// Thread-local, so that all of it lies in one block of memory which the scheduler finds and poisons.
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

constexpr unsigned kWarp = 32;

// Runs body once per thread of the grid. Throws std::runtime_error for every defect it finds.
void launch(const char* kernel, dim3 grid, dim3 block, size_t smem_bytes, const std::function<void()>& body);

void* dynamic_shared_memory();

// Ends the kernel with an error that names kernel, block and thread.
[[noreturn]] void fail(const char* what);

void sync_block(const char* file, int line);

// The meeting of all lanes in `mask`: the last to arrive calls finish(lanes), then all go on. `kind` must agree.
struct Lane {
  unsigned kind = 0;
  unsigned mask = 0;
  unsigned source = 0;
  uint64_t value = 0;
  uint64_t result = 0;
  const void* operand[4] = {};
};
unsigned lane_id();
Lane& own_lane();
void meet(unsigned kind, unsigned mask, void (*finish)(Lane* const* lanes, unsigned mask), const char* where);

enum Kind : unsigned { kSyncWarp, kShuffle, kVote, kMatrix };

void finish_shuffle(Lane* const* lanes, unsigned mask);
void finish_ballot(Lane* const* lanes, unsigned mask);

template <typename T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Lane& lane = own_lane();
  std::memcpy(&lane.value, &value, sizeof(T));
  lane.source = source;
  meet(kShuffle, mask, finish_shuffle, "a warp shuffle");
  T out;
  std::memcpy(&out, &lane.result, sizeof(T));
  return out;
}

inline unsigned ballot(unsigned mask, bool predicate) {
  Lane& lane = own_lane();
  lane.value = predicate;
  meet(kVote, mask, finish_ballot, "a warp vote");
  return static_cast<unsigned>(lane.result);
}

}  // namespace simt

#define __syncthreads() ::simt::sync_block(__FILE__, __LINE__)

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  simt::meet(simt::kSyncWarp, mask, [](simt::Lane* const*, unsigned) {}, "__syncwarp");
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned base = simt::lane_id() & ~static_cast<unsigned>(width - 1);
  return simt::shuffle(mask, value, base + (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const unsigned lane = simt::lane_id(), base = lane & ~static_cast<unsigned>(width - 1);
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  return simt::shuffle(mask, value, source >= base + static_cast<unsigned>(width) ? lane : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = simt::lane_id(), base = lane & ~static_cast<unsigned>(width - 1);
  return simt::shuffle(mask, value, lane + delta >= base + static_cast<unsigned>(width) ? lane : lane + delta);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = simt::lane_id(), base = lane & ~static_cast<unsigned>(width - 1);
  return simt::shuffle(mask, value, lane < base + delta ? lane : lane - delta);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return simt::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return simt::ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return simt::ballot(mask, predicate != 0) == mask; }

// One fiber runs at a time and is never interrupted, so a plain update is atomic.
#define SIMT_ATOMIC(name, update)                     \
  template <typename T>                               \
  T name(T* address, std::type_identity_t<T> value) { \
    const T old = *address;                           \
    *address = static_cast<T>(update);                \
    return old;                                       \
  }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicOr, old | value)
SIMT_ATOMIC(atomicAnd, old& value)
SIMT_ATOMIC(atomicExch, value)
SIMT_ATOMIC(atomicMax, old < value ? value : old)
SIMT_ATOMIC(atomicMin, value < old ? value : old)
#undef SIMT_ATOMIC

template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline void __threadfence() {}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
