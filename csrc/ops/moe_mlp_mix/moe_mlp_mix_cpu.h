// What the forward and the backward pass of moe_mlp_mix share on the CPU: block sizes, scratch, row passes.
#pragma once

#include "common/arena.h"
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/row_softmax.h"
#include "ops/moe_mlp_mix/moe_mlp_mix_dropout.h"
#include "ops/moe_mlp_mix/moe_mlp_mix_math.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

// Tokens go through in blocks whose hidden states of all experts fit the second-level cache.
inline int64_t moe_block_rows(const MoeMlpMixShape& s) {
  constexpr int64_t kHiddenElements = 256 * 1024;
  const int64_t widest = s.num_experts * (s.hidden_dim > s.out_dim ? s.hidden_dim : s.out_dim);
  int64_t rows = kHiddenElements / (widest > 0 ? widest : 1) / 16 * 16;
  rows = rows < 32 ? 32 : (rows > 512 ? 512 : rows);
  return rows < s.num_tokens ? rows : (s.num_tokens > 0 ? s.num_tokens : 1);
}

inline int64_t moe_num_blocks(const MoeMlpMixShape& s) { return ceil_div(s.num_tokens, moe_block_rows(s)); }

inline int64_t moe_num_parameters(const MoeMlpMixShape& s) {
  return s.num_experts * (s.in_dim + 1 + s.hidden_dim * (s.in_dim + 1) + s.out_dim * (s.hidden_dim + 1));
}

// Weight gradients are summed over slices of blocks, each with accumulators of its own; their number is a function of
// the shape alone, so the order of additions does not depend on threads.
inline int64_t moe_num_slices(const MoeMlpMixShape& s) {
  constexpr int64_t kMaxAccumulators = 16 * 1024 * 1024;  // elements over all slices
  const int64_t blocks = moe_num_blocks(s);
  int64_t slices = blocks < 16 ? blocks : 16;
  while (slices > 2 && slices * moe_num_parameters(s) > kMaxAccumulators) slices /= 2;
  return slices > 1 ? slices : 1;
}

// Views the weights as compute type: in place, or converted once into scratch.
template <typename T>
struct MoeWeights {
  using C = compute_t<T>;
  const C *gate_weight, *gate_bias, *w1, *b1, *w2, *b2;

  static MoeWeights make(const MoeMlpMixForwardArgs& a, Arena& arena) {
    const MoeMlpMixShape& s = a.shape;
    MoeWeights out;
    out.gate_weight = view(a.gate_weight, s.num_experts * s.in_dim, arena);
    out.gate_bias = view(a.gate_bias, s.num_experts, arena);
    out.w1 = view(a.w1, s.num_experts * s.hidden_dim * s.in_dim, arena);
    out.b1 = view(a.b1, s.num_experts * s.hidden_dim, arena);
    out.w2 = view(a.w2, s.num_experts * s.out_dim * s.hidden_dim, arena);
    out.b2 = view(a.b2, s.num_experts * s.out_dim, arena);
    return out;
  }

 private:
  static const C* view(const void* data, int64_t count, Arena& arena) {
    if constexpr (sizeof(T) == sizeof(C)) {
      return static_cast<const C*>(data);
    } else {
      C* out = arena.take<C>(count);
      if (out != nullptr) {
        for (int64_t i = 0; i < count; ++i) out[i] = load_as(static_cast<const T*>(data)[i]);
      }
      return out;
    }
  }
};

// `rows` x `cols` elements of T at row stride `ld`, as compute type: in place, or converted into `buffer` (packed).
template <typename T>
struct MoeRows {
  using C = compute_t<T>;
  const C* data;
  int64_t ld;

  static MoeRows load(const void* source, int64_t first_row, int64_t rows, int64_t cols, C* buffer) {
    const T* from = static_cast<const T*>(source) + first_row * cols;
    if constexpr (sizeof(T) == sizeof(C)) {
      return {from, cols};
    } else {
      for (int64_t i = 0; i < rows * cols; ++i) buffer[i] = load_as(from[i]);
      return {buffer, cols};
    }
  }
};

template <typename C>
struct MoeGemm {
  HostGemm run;

  // C[m, n] = beta C + op(A) op(B)
  void operator()(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const C* a, int64_t lda, const C* b,
                  int64_t ldb, double beta, C* c, int64_t ldc) const {
    run(sizeof(C) == 8, trans_a, trans_b, m, n, k, a, lda, b, ldb, beta, c, ldc);
  }
};

// z += bias, then the activation, row by row in place.
template <typename C>
void moe_bias_activate(Act act, const C* bias, int64_t rows, int64_t cols, C* z, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r) {
    C* row = z + r * ld;
    switch (act) {
      case Act::none:
        for (int64_t j = 0; j < cols; ++j) row[j] += bias[j];
        break;
      case Act::relu:
        for (int64_t j = 0; j < cols; ++j) row[j] = moe_activate(Act::relu, row[j] + bias[j]);
        break;
      case Act::tanh:
        for (int64_t j = 0; j < cols; ++j) row[j] = moe_activate(Act::tanh, row[j] + bias[j]);
        break;
      case Act::softmax:
      case Act::log_softmax: {
        for (int64_t j = 0; j < cols; ++j) row[j] += bias[j];
        const RowNormaliser<C> norm = normalise_row(row, cols);
        if (act == Act::softmax) {
          for (int64_t j = 0; j < cols; ++j) row[j] = norm.probability(row[j]);
        } else {
          for (int64_t j = 0; j < cols; ++j) row[j] = norm.log_probability(row[j]);
        }
        break;
      }
    }
  }
}

template <typename T, typename C>
void moe_store_rows(const C* source, int64_t ld, int64_t rows, int64_t cols, T* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) store_as(out[r * cols + j], source[r * ld + j]);
  }
}

// alpha = softmax(logits) of a block, and log alpha where asked for.
template <typename C>
void moe_gate_softmax(const C* logits, int64_t rows, int64_t num_experts, C* alpha, C* log_alpha) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* row = logits + r * num_experts;
    const RowNormaliser<C> norm = normalise_row(row, num_experts);
    for (int64_t k = 0; k < num_experts; ++k) alpha[r * num_experts + k] = norm.probability(row[k]);
    if (log_alpha == nullptr) continue;
    for (int64_t k = 0; k < num_experts; ++k) log_alpha[r * num_experts + k] = norm.log_probability(row[k]);
  }
}

// out_d = log sum_k exp(log_alpha_k + y_kd) of one row, y at stride `ld_expert` between experts. `terms` holds
// num_experts * dim elements: the exponentials of all experts run through one loop, however few columns there are.
template <typename C>
void moe_logsumexp_row(const C* log_alpha, const C* y, int64_t ld_expert, int64_t num_experts, int64_t dim, C* terms,
                       C* out) {
  for (int64_t d = 0; d < dim; ++d) out[d] = -C(INFINITY);
  for (int64_t k = 0; k < num_experts; ++k) {
    for (int64_t d = 0; d < dim; ++d) {
      const C value = log_alpha[k] + y[k * ld_expert + d];
      terms[k * dim + d] = value;
      out[d] = value > out[d] ? value : out[d];
    }
  }
  // An infinite maximum is not subtracted: inf - inf would be NaN where the result is that infinity.
  for (int64_t d = 0; d < dim; ++d) out[d] = out[d] == C(INFINITY) || out[d] == -C(INFINITY) ? C(0) : out[d];
  for (int64_t k = 0; k < num_experts; ++k) {
    for (int64_t d = 0; d < dim; ++d) terms[k * dim + d] -= out[d];
  }
#pragma omp simd
  for (int64_t i = 0; i < num_experts * dim; ++i) terms[i] = vector_exp(terms[i]);
  for (int64_t d = 0; d < dim; ++d) {
    C sum = C(0);
    for (int64_t k = 0; k < num_experts; ++k) sum += terms[k * dim + d];
    out[d] += std::log(sum);
  }
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
