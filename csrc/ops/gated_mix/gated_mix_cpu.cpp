// CPU kernels of gated_mix: every token's experts are read once (forward) or read and written once (backward).
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/row_softmax.h"
#include "ops/gated_mix/gated_mix.h"
#include "ops/gated_mix/gated_mix_math.h"

XFER_CPU_DISPATCH(gated_mix_forward_cpu, GatedMixForwardArgs)
XFER_CPU_DISPATCH(gated_mix_backward_cpu, GatedMixBackwardArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kElementsPerChunk = 64 * 1024;  // expert elements a chunk of tokens should cover
constexpr int64_t kTile = 128;                    // output columns kept in registers over the loop of experts
constexpr int64_t kStackExperts = 256;            // weights of one token on the stack; more go through blocks

int64_t tokens_per_chunk(int64_t num_experts, int64_t dim) {
  const int64_t tokens = kElementsPerChunk / (num_experts * (dim > 0 ? dim : 1) + 1);
  return tokens > 1 ? tokens : 1;
}

template <typename T>
const T* expert_row(const GatedMixExperts& experts, int64_t k, int64_t token) {
  return experts.stacked ? static_cast<const T*>(experts.pointers[0]) + token * experts.row_stride[0] +
                               k * experts.expert_stride
                         : static_cast<const T*>(experts.pointers[k]) + token * experts.row_stride[k];
}

// softmax(logits)_k for k in [first, first + count) into `weights`.
template <typename T>
void softmax_block(const T* logits, RowNormaliser<compute_t<T>> norm, int64_t first, int64_t count,
                   compute_t<T>* weights) {
  for (int64_t k = 0; k < count; ++k) weights[k] = norm.probability(load_as(logits[first + k]));
}

template <typename T>
void mix_row(const GatedMixExperts& experts, int64_t token, const T* logits, RowNormaliser<compute_t<T>> norm,
             int64_t num_experts, int64_t dim, T* mixed) {
  using C = compute_t<T>;
  C weights[kStackExperts];
  for (int64_t first = 0; first < num_experts; first += kStackExperts) {
    const int64_t count = num_experts - first < kStackExperts ? num_experts - first : kStackExperts;
    softmax_block(logits, norm, first, count, weights);
    for (int64_t column = 0; column < dim; column += kTile) {
      const int64_t width = dim - column < kTile ? dim - column : kTile;
      C sums[kTile];
      for (int64_t j = 0; j < width; ++j) sums[j] = first == 0 ? C(0) : C(load_as(mixed[column + j]));
      for (int64_t k = 0; k < count; ++k) {
        const T* row = expert_row<T>(experts, first + k, token) + column;
        const C weight = weights[k];
        for (int64_t j = 0; j < width; ++j) sums[j] += weight * load_as(row[j]);
      }
      for (int64_t j = 0; j < width; ++j) store_as(mixed[column + j], sums[j]);
    }
  }
}

template <typename T>
void gated_mix_forward(const GatedMixForwardArgs& args) {
  using C = compute_t<T>;
  const int64_t num_experts = args.num_experts;
  const int64_t step = tokens_per_chunk(num_experts, args.dim);
  const int64_t chunks = ceil_div(args.num_tokens, step);
  parallel_chunks(chunks, chunks > 1 ? max_workers() : 1, [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * step < args.num_tokens ? (chunk + 1) * step : args.num_tokens;
    for (int64_t token = chunk * step; token < end; ++token) {
      const T* logits = static_cast<const T*>(args.logits) + token * num_experts;
      const RowNormaliser<C> norm = normalise_row(logits, num_experts);
      mix_row(args.experts, token, logits, norm, num_experts, args.dim,
              static_cast<T*>(args.mixed) + token * args.dim);
      C nll = C(0);
      if (args.targets != nullptr) {
        const int64_t target = args.targets[token];
        const TargetKind kind = gated_mix_target_kind(target, num_experts, args.ignore_index);
        if (kind == TargetKind::valid) nll = -norm.log_probability(load_as(logits[target]));
        if (kind == TargetKind::out_of_range) nll = C(NAN);
      }
      static_cast<C*>(args.gate_nll)[token] = nll;
    }
  });
}

template <typename T>
void gated_mix_backward(const GatedMixBackwardArgs& args) {
  using C = compute_t<T>;
  const int64_t num_experts = args.num_experts;
  const int64_t dim = args.dim;
  const int64_t step = tokens_per_chunk(num_experts, dim);
  const int64_t chunks = ceil_div(args.num_tokens, step);
  parallel_chunks(chunks, chunks > 1 ? max_workers() : 1, [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * step < args.num_tokens ? (chunk + 1) * step : args.num_tokens;
    for (int64_t token = chunk * step; token < end; ++token) {
      const T* logits = static_cast<const T*>(args.logits) + token * num_experts;
      const T* grad = static_cast<const T*>(args.grad_mixed) + token * dim;
      const RowNormaliser<C> norm = normalise_row(logits, num_experts);
      const int64_t target = args.targets != nullptr ? args.targets[token] : 0;
      const bool counted = args.targets != nullptr && args.grad_nll != nullptr && target != args.ignore_index;
      const C grad_nll = counted ? static_cast<const C*>(args.grad_nll)[token] : C(0);
      T* grad_logits = static_cast<T*>(args.grad_logits) + token * num_experts;
      C grad_alpha[kStackExperts];
      // With more experts than the stack holds, <g, e_k> is taken twice: once for the mean, once for the gradient.
      const bool fits = num_experts <= kStackExperts;
      C mean = C(0);
      for (int64_t k = 0; k < num_experts; ++k) {
        const T* row = expert_row<T>(args.experts, k, token);
        const C alpha = norm.probability(load_as(logits[k]));
        T* grad_row = args.need_grad_experts ? const_cast<T*>(expert_row<T>(args.grad_experts, k, token)) : nullptr;
        C dot = C(0);
        if (grad_row != nullptr) {
#pragma omp simd reduction(+ : dot)
          for (int64_t j = 0; j < dim; ++j) {
            const C g = load_as(grad[j]);
            dot += g * load_as(row[j]);
            store_as(grad_row[j], alpha * g);
          }
        } else {
#pragma omp simd reduction(+ : dot)
          for (int64_t j = 0; j < dim; ++j) dot += C(load_as(grad[j])) * load_as(row[j]);
        }
        if (fits) grad_alpha[k] = dot;
        mean += alpha * dot;
      }
      for (int64_t k = 0; k < num_experts; ++k) {
        C dot = fits ? grad_alpha[k] : C(0);
        if (!fits) {
          const T* row = expert_row<T>(args.experts, k, token);
#pragma omp simd reduction(+ : dot)
          for (int64_t j = 0; j < dim; ++j) dot += C(load_as(grad[j])) * load_as(row[j]);
        }
        const C alpha = norm.probability(load_as(logits[k]));
        store_as(grad_logits[k], gated_mix_grad_logit(alpha, dot, mean, grad_nll, counted && k == target));
      }
    }
  });
}

}  // namespace

void gated_mix_forward_cpu_isa(const GatedMixForwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { gated_mix_forward<typename decltype(tag)::type>(args); });
}

void gated_mix_backward_cpu_isa(const GatedMixBackwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { gated_mix_backward<typename decltype(tag)::type>(args); });
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
