// CPU kernels of gated_mix: every token's experts are read once (forward) or read and written once (backward).
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/row_softmax.h"
#include "common/simd.h"
#include "ops/gated_mix/gated_mix.h"
#include "ops/gated_mix/gated_mix_math.h"

XFER_CPU_DISPATCH(gated_mix_forward_cpu, GatedMixForwardArgs)
XFER_CPU_DISPATCH(gated_mix_backward_cpu, GatedMixBackwardArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kElementsPerChunk = 64 * 1024;  // expert elements a chunk of tokens should cover
constexpr int64_t kTile = 4 * kLanes;             // output columns kept in registers over the loop of experts
constexpr int64_t kTokensAhead = 2;               // distance of the prefetch
constexpr int64_t kStackExperts = 256;            // weights of one token on the stack; more go through blocks

int64_t tokens_per_chunk(int64_t num_experts, int64_t dim) {
  const int64_t tokens = kElementsPerChunk / (num_experts * (dim > 0 ? dim : 1) + 1);
  return tokens > 1 ? tokens : 1;
}

template <typename T>
const T* expert_row(const GatedMixExperts& experts, int64_t k, int64_t token) {
  return experts.stacked
             ? static_cast<const T*>(experts.pointers[0]) + token * experts.row_stride[0] + k * experts.expert_stride
             : static_cast<const T*>(experts.pointers[k]) + token * experts.row_stride[k];
}

// softmax(logits)_k for k in [first, first + count) into `weights`.
template <typename T>
void softmax_block(const T* logits, RowNormaliser<compute_t<T>> norm, int64_t first, int64_t count,
                   compute_t<T>* weights) {
  for (int64_t k = 0; k < count; ++k) weights[k] = norm.probability(load_as(logits[first + k]));
}

// out[0 .. width) (+)= sum_k weights[k] expert_k[column .. column + width), for a width that is no whole tile.
template <typename T, typename Out>
void mix_columns(const GatedMixExperts& experts, int64_t token, int64_t first, int64_t count,
                 const compute_t<T>* weights, int64_t column, int64_t width, Out* out) {
  for (int64_t j = 0; j < width; ++j) {
    compute_t<T> sum = first == 0 ? 0 : load_as(out[j]);
    for (int64_t k = 0; k < count; ++k)
      sum += weights[k] * load_as(expert_row<T>(experts, first + k, token)[column + j]);
    store_as(out[j], sum);
  }
}

// The hardware's prefetcher stops at each page, which one token's stacked experts fill: what lies this many elements
// ahead is asked for by hand. A prefetch past the end of the tensor does nothing.
template <typename T>
int64_t elements_ahead(const GatedMixExperts& experts) {
  return kTokensAhead * experts.row_stride[0];
}

XFER_HD void prefetch_bytes(const void* address, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(address) + i);
}

// The same for one whole tile, summed in registers.
template <typename T, typename Out>
void mix_tile(const GatedMixExperts& experts, int64_t token, int64_t first, int64_t count, const compute_t<T>* weights,
              int64_t column, Out* out) {
  const int64_t ahead = elements_ahead<T>(experts);
  lanes_t<T> sum0{}, sum1{}, sum2{}, sum3{}, row0, row1, row2, row3;
  if (first != 0) {
    load_lanes(out, sum0), load_lanes(out + kLanes, sum1);
    load_lanes(out + 2 * kLanes, sum2), load_lanes(out + 3 * kLanes, sum3);
  }
  for (int64_t k = 0; k < count; ++k) {
    const T* row = expert_row<T>(experts, first + k, token) + column;
    prefetch_bytes(row + ahead, kTile * sizeof(T));
    load_lanes(row, row0), load_lanes(row + kLanes, row1);
    load_lanes(row + 2 * kLanes, row2), load_lanes(row + 3 * kLanes, row3);
    sum0 += weights[k] * row0, sum1 += weights[k] * row1;
    sum2 += weights[k] * row2, sum3 += weights[k] * row3;
  }
  store_lanes(out, sum0), store_lanes(out + kLanes, sum1);
  store_lanes(out + 2 * kLanes, sum2), store_lanes(out + 3 * kLanes, sum3);
}

template <typename T>
void mix_row(const GatedMixExperts& experts, int64_t token, const T* logits, RowNormaliser<compute_t<T>> norm,
             int64_t num_experts, int64_t dim, T* mixed) {
  compute_t<T> weights[kStackExperts];
  if (num_experts <= kStackExperts) {
    softmax_block(logits, norm, 0, num_experts, weights);
    int64_t column = 0;
    for (; column + kTile <= dim; column += kTile) {
      mix_tile<T>(experts, token, 0, num_experts, weights, column, mixed + column);
    }
    mix_columns<T>(experts, token, 0, num_experts, weights, column, dim - column, mixed + column);
    return;
  }
  // Between blocks of experts the sums wait in the compute type: a half type would round them every time.
  compute_t<T> sums[kTile];
  for (int64_t column = 0; column < dim; column += kTile) {
    const int64_t width = dim - column < kTile ? dim - column : kTile;
    for (int64_t first = 0; first < num_experts; first += kStackExperts) {
      const int64_t count = num_experts - first < kStackExperts ? num_experts - first : kStackExperts;
      softmax_block(logits, norm, first, count, weights);
      if (width == kTile) {
        mix_tile<T>(experts, token, first, count, weights, column, sums);
      } else {
        mix_columns<T>(experts, token, first, count, weights, column, width, sums);
      }
    }
    for (int64_t j = 0; j < width; ++j) store_as(mixed[column + j], sums[j]);
  }
}

// <grad, row>, and grad_row = alpha grad where it is wanted, in one pass over both.
template <typename T>
compute_t<T> dot_and_scale(const T* grad, const T* row, compute_t<T> alpha, int64_t dim, int64_t ahead, T* grad_row) {
  lanes_t<T> dots0{}, dots1{}, g0, g1, e0, e1;
  int64_t j = 0;
  for (; j + 2 * kLanes <= dim; j += 2 * kLanes) {
    prefetch_bytes(row + j + ahead, 2 * kLanes * sizeof(T));
    load_lanes(grad + j, g0), load_lanes(grad + j + kLanes, g1);
    load_lanes(row + j, e0), load_lanes(row + j + kLanes, e1);
    dots0 += g0 * e0, dots1 += g1 * e1;
    if (grad_row == nullptr) continue;
    const lanes_t<T> scaled0 = alpha * g0, scaled1 = alpha * g1;
    store_lanes(grad_row + j, scaled0), store_lanes(grad_row + j + kLanes, scaled1);
  }
  const lanes_t<T> dots = dots0 + dots1;
  compute_t<T> dot = sum_lanes<compute_t<T>>(dots);
  for (; j < dim; ++j) {
    const compute_t<T> g = load_as(grad[j]);
    dot += g * load_as(row[j]);
    if (grad_row != nullptr) store_as(grad_row[j], alpha * g);
  }
  return dot;
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
      mix_row(args.experts, token, logits, norm, num_experts, args.dim, static_cast<T*>(args.mixed) + token * args.dim);
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
  const int64_t ahead = elements_ahead<T>(args.experts);
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
        const C dot = dot_and_scale(grad, row, alpha, dim, ahead, grad_row);
        if (fits) grad_alpha[k] = dot;
        mean += alpha * dot;
      }
      for (int64_t k = 0; k < num_experts; ++k) {
        const C dot = fits ? grad_alpha[k]
                           : dot_and_scale<T>(grad, expert_row<T>(args.experts, k, token), C(0), dim, ahead, nullptr);
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
