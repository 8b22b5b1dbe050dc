// hard_concrete: gates z in [0, 1] from log alpha and counter noise, times theta, and the expected number of kept ones.
//
// A gate may stand for a group of elements of theta: theta is [outer, num_gates, inner] in memory, and gate k scales
// theta[:, k, :]. With outer = inner = 1 every element has its own gate.
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

// C below is the compute type of dtype: float, or double for f64.
struct HardConcreteGates {
  DType dtype;                 // theta, out
  int64_t num_gates;           // K
  const void* log_alpha;       // C [K] contiguous
  const int64_t* seed_offset;  // [2]; null: the gates of evaluation, without noise
  double beta;                 // unused without noise
  double gamma;                // < 0
  double zeta;                 // > 1
};

struct HardConcreteForwardArgs {
  HardConcreteGates gates;
  int64_t outer;      // R
  int64_t inner;      // Q
  const void* theta;  // [R, K, Q] contiguous, or null: out is z [K], of type C
  void* out;          // [R, K, Q] contiguous
  double size;        // elements that a gate counts for in the penalty
  void* penalty;      // C [1], or null
  void* workspace;    // hard_concrete_workspace_bytes
  stream_t stream;    // CUDA only
};

struct HardConcreteBackwardArgs {
  HardConcreteGates gates;
  int64_t outer;
  int64_t inner;
  const void* theta;  // [R, K, Q] contiguous, or null
  double size;
  const void* grad_out;      // like out; null: zeros
  const void* grad_penalty;  // C [1]; null: zero
  void* grad_log_alpha;      // C [K], or null where it is not wanted
  void* grad_theta;          // [R, K, Q], or null where it is not wanted
  void* workspace;
  stream_t stream;
};

// z, dz/dla, d2z/dla2, q and its two derivatives, by gate, where q = P(z > 0): C [6, K].
struct HardConcreteCurvesArgs {
  HardConcreteGates gates;
  void* curves;
  stream_t stream;
};

void hard_concrete_forward_cpu(const HardConcreteForwardArgs& args);
void hard_concrete_backward_cpu(const HardConcreteBackwardArgs& args);
void hard_concrete_curves_cpu(const HardConcreteCurvesArgs& args);
void hard_concrete_forward_cuda(const HardConcreteForwardArgs& args);
void hard_concrete_backward_cuda(const HardConcreteBackwardArgs& args);
void hard_concrete_curves_cuda(const HardConcreteCurvesArgs& args);

// How the sums over a group are cut into parts, by the shape alone: part (r, k, q) covers r_size x k_size x q_size
// elements, and gate k has parts_r * parts_q partial sums.
struct HardConcreteParts {
  int64_t r_size, k_size, q_size;
  int64_t parts_r, parts_k, parts_q;
  XFER_HD int64_t per_gate() const { return parts_r * parts_q; }
  XFER_HD int64_t total() const { return parts_r * parts_k * parts_q; }
};

inline HardConcreteParts hard_concrete_parts(int64_t outer, int64_t num_gates, int64_t inner, int64_t elements) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto clamp = [](int64_t v, int64_t most) { return v > most && most > 0 ? most : v < 1 || most < 1 ? 1 : v; };
  constexpr int64_t kMostOuterParts = 64;  // bounds the partial sums by 64 to each gate where inner is small
  HardConcreteParts p{};
  p.q_size = clamp(elements, inner);
  p.k_size = clamp(elements / p.q_size, num_gates);
  p.r_size = clamp(elements / (p.q_size * p.k_size), outer);
  if (up(outer, p.r_size) > kMostOuterParts) p.r_size = up(outer, kMostOuterParts);
  p.parts_r = up(outer, p.r_size), p.parts_k = up(num_gates, p.k_size), p.parts_q = up(inner, p.q_size);
  return p;
}

constexpr int64_t kHardConcreteChunk = 64 * 1024;  // elements of a chunk or part, on the CPU and on CUDA

// Doubles for the parts of the penalty; for groups also curves [3, K] and the partial sums of the gates.
inline int64_t hard_concrete_workspace_bytes(int64_t outer, int64_t num_gates, int64_t inner) {
  const int64_t chunks = (num_gates + kHardConcreteChunk - 1) / kHardConcreteChunk;
  const int64_t penalty = (chunks > 1024 ? chunks : 1024) * 8;
  if (outer == 1 && inner == 1) return penalty;
  const HardConcreteParts parts = hard_concrete_parts(outer, num_gates, inner, kHardConcreteChunk);
  return penalty + 8 * num_gates * (3 + parts.per_gate()) + 6 * 64;  // every array starts on a cache line
}

}  // namespace xfer
