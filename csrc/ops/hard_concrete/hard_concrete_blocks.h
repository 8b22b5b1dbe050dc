// What hard_concrete's CPU kernels do with a block of 64 gates: their noise, loads and stores, and the loops over them.
#pragma once

#include "common/philox_lanes.h"
#include "common/simd.h"
#include "ops/hard_concrete/hard_concrete.h"
#include "ops/hard_concrete/hard_concrete_math.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 64;  // gates at once: sixteen Philox counters

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// f(block's first gate, gates in it, noise) over [begin, end); begin is a multiple of kBlock.
template <typename F>
void for_blocks(const HardConcreteGates& gates, int64_t begin, int64_t end, const F& f) {
  alignas(64) uint32_t words[kBlock] = {};
  PhiloxState state{};
  if (gates.seed_offset != nullptr) state = {gates.seed_offset[0], gates.seed_offset[1]};
  for (int64_t first = begin; first < end; first += kBlock) {
    if (gates.seed_offset != nullptr) philox_block(state, 0, static_cast<uint64_t>(first) / 4, words);
    f(first, least(kBlock, end - first), words);
  }
}

// A block of T as compute type: the values themselves where they are whole and of that type, else a copy, padded with
// 0.
template <typename T>
const compute_t<T>* load_block(const T* from, int64_t count, compute_t<T>* buffer) {
  if constexpr (__is_same(T, compute_t<T>)) {
    if (count == kBlock) return from;
    for (int64_t i = 0; i < kBlock; ++i) buffer[i] = i < count ? from[i] : compute_t<T>(0);
  } else if (count == kBlock) {
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      lanes_t<T> lanes;
      load_lanes(from + i, lanes);
      memcpy(buffer + i, &lanes, sizeof(lanes));
    }
  } else {
    for (int64_t i = 0; i < kBlock; ++i) buffer[i] = i < count ? load_as(from[i]) : compute_t<T>(0);
  }
  return buffer;
}

template <typename T>
void store_block(T* to, int64_t count, const compute_t<T>* values) {
  if (count < kBlock) {
    for (int64_t i = 0; i < count; ++i) store_as(to[i], values[i]);
    return;
  }
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    lanes_t<T> lanes;
    memcpy(&lanes, values + i, sizeof(lanes));
    store_lanes(to + i, lanes);
  }
}

// Sums of four in fp32, all else in doubles: equal values in a running fp32 sum would all be rounded the same way.
template <typename C>
class KeepSum {
 public:
  void add(const C* values, int64_t count) {
    if (count < kBlock) {
      for (int64_t i = 0; i < count; ++i) rest_ += static_cast<double>(values[i]);
      return;
    }
    typename lanes_of<C>::type lanes[kBlock / kLanes];
    memcpy(lanes, values, sizeof(lanes));
    const typename lanes_of<C>::type sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    lanes_ += __builtin_convertvector(sum, double16_lanes);
  }
  double total() const { return rest_ + sum_lanes<double>(lanes_); }

 private:
  double16_lanes lanes_{};
  double rest_ = 0.0;
};

// The loops over a block, each a function of its own: inlined, the choices around them become branches inside, and then
// they do not vectorise.
#define XFER_BLOCK_LOOP                           \
  template <HardConcreteCurve kCurve, typename C> \
  __attribute__((noinline)) void

XFER_BLOCK_LOOP forward_block(const C* __restrict la, const uint32_t* __restrict words,
                              const HardConcreteConstants<C>& k, C* __restrict z, C* __restrict keep) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const HardConcreteGate<C> gate = hard_concrete_gate<kCurve>(la[i], words[i], k);
    z[i] = gate.z;
    keep[i] = hard_concrete_keep(gate.w, k);
  }
}

XFER_BLOCK_LOOP backward_block(const C* __restrict la, const uint32_t* __restrict words,
                               const HardConcreteConstants<C>& k, const C* __restrict g, const C* __restrict theta,
                               C grad_penalty, C* __restrict grad_theta, C* __restrict grad_log_alpha) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const HardConcreteGate<C> gate = hard_concrete_gate<kCurve>(la[i], words[i], k);
    const C keep = hard_concrete_keep(gate.w, k);
    grad_theta[i] = g[i] * gate.z;
    grad_log_alpha[i] =
        g[i] * theta[i] * hard_concrete_slope(gate, k) + grad_penalty * hard_concrete_keep_slope(gate.w, keep, k);
  }
}

XFER_BLOCK_LOOP curves_block(const C* __restrict la, const uint32_t* __restrict words,
                             const HardConcreteConstants<C>& k, C (*__restrict found)[kBlock]) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const HardConcreteGate<C> gate = hard_concrete_gate<kCurve>(la[i], words[i], k);
    const C slope = hard_concrete_slope(gate, k), keep = hard_concrete_keep(gate.w, k);
    const C keep_slope = hard_concrete_keep_slope(gate.w, keep, k);
    found[0][i] = gate.z;
    found[1][i] = slope;
    found[2][i] = hard_concrete_bend(gate.s, slope, k);
    found[3][i] = keep;
    found[4][i] = keep_slope;
    found[5][i] = keep_slope * (C(1) - (keep + keep));
  }
}
#undef XFER_BLOCK_LOOP

}  // namespace
}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
