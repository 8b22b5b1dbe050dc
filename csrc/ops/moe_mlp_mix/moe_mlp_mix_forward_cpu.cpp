// Forward pass of moe_mlp_mix on the CPU: block by block, so that no hidden state leaves the cache unless it is kept.
#include "ops/moe_mlp_mix/moe_mlp_mix_cpu.h"

XFER_CPU_DISPATCH(moe_mlp_mix_forward_cpu, MoeMlpMixForwardArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

// One worker's scratch.
template <typename C>
struct ForwardScratch {
  C *x, *x_dropped, *logits, *alpha, *log_alpha, *hidden, *hidden_dropped, *y, *terms, *out;
  uint64_t* mask;

  static ForwardScratch make(const MoeMlpMixShape& s, Arena& arena) {
    const int64_t rows = moe_block_rows(s);
    const int64_t widest = s.in_dim > s.hidden_dim ? s.in_dim : s.hidden_dim;
    ForwardScratch out;
    out.x = arena.take<C>(rows * s.in_dim);
    out.x_dropped = arena.take<C>(rows * s.in_dim);
    out.logits = arena.take<C>(rows * s.num_experts);
    out.alpha = arena.take<C>(rows * s.num_experts);
    out.log_alpha = arena.take<C>(rows * s.num_experts);
    out.hidden = arena.take<C>(rows * s.num_experts * s.hidden_dim);
    out.hidden_dropped = arena.take<C>(rows * s.hidden_dim);
    out.y = arena.take<C>(rows * s.num_experts * s.out_dim);
    out.terms = arena.take<C>(s.num_experts * s.out_dim);
    out.out = arena.take<C>(rows * s.out_dim);
    out.mask = arena.take<uint64_t>(rows * moe_mask_words(widest));
    return out;
  }
};

template <typename C>
void add_weighted(const C* alpha, int64_t num_experts, const C* y, int64_t ld_y, int64_t rows, int64_t dim, bool first,
                  C* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const C weight = alpha[r * num_experts];
    const C* from = y + r * ld_y;
    C* to = out + r * dim;
    if (first) {
      for (int64_t j = 0; j < dim; ++j) to[j] = weight * from[j];
    } else {
      for (int64_t j = 0; j < dim; ++j) to[j] += weight * from[j];
    }
  }
}

template <typename T>
void forward_block(const MoeMlpMixForwardArgs& a, const MoeWeights<T>& w, const MoeDropout& dropout,
                   const ForwardScratch<compute_t<T>>& scratch, int64_t begin, int64_t rows) {
  using C = compute_t<T>;
  constexpr bool kInPlace = sizeof(T) == sizeof(C);
  const MoeMlpMixShape& s = a.shape;
  const int64_t K = s.num_experts, d = s.in_dim, h = s.hidden_dim, D = s.out_dim;
  const MoeGemm<C> gemm{a.gemm};
  const auto x = MoeRows<T>::load(a.x, begin, rows, d, scratch.x);

  gemm(false, true, rows, K, d, x.data, x.ld, w.gate_weight, d, 0.0, scratch.logits, K);
  moe_bias_activate(Act::none, w.gate_bias, rows, K, scratch.logits, K);
  moe_store_rows(scratch.logits, K, rows, K, static_cast<T*>(a.gate_logits) + begin * K);
  // The softmax of the logits as they are returned: the backward pass and CUDA have no others.
  const auto logits = MoeRows<T>::load(a.gate_logits, begin, rows, K, scratch.logits);
  moe_gate_softmax(logits.data, rows, K, scratch.alpha, a.mix == Mix::logsumexp ? scratch.log_alpha : nullptr);

  // Hidden states of all experts side by side, straight into the tensor that is kept where there is one.
  const bool keep = a.hidden != nullptr;
  C* hidden = keep && kInPlace ? static_cast<C*>(a.hidden) + begin * K * h : scratch.hidden;
  if (!dropout.on) {  // one product for all experts
    gemm(false, true, rows, K * h, d, x.data, x.ld, w.w1, d, 0.0, hidden, K * h);
    moe_bias_activate(a.act1, w.b1, rows, K * h, hidden, K * h);
  }
  // Without logsumexp an expert's output is added at once and its place used again.
  const bool keep_y = a.expert_out != nullptr;
  const bool all_y = keep_y || a.mix == Mix::logsumexp;
  C* y_base = keep_y && kInPlace ? static_cast<C*>(a.expert_out) + begin * K * D : scratch.y;
  const int64_t ld_y = all_y ? K * D : D;
  C* out = kInPlace ? static_cast<C*>(a.out) + begin * D : scratch.out;
  for (int64_t k = 0; k < K; ++k) {
    C* hidden_k = hidden + k * h;
    const C* second_input = hidden_k;
    int64_t ld_second = K * h;
    if (dropout.on) {
      dropout.draw(kMoeInputStream, begin, K, k, rows, d, scratch.mask);
      dropout.apply(scratch.mask, rows, d, x.data, x.ld, scratch.x_dropped, d);
      gemm(false, true, rows, h, d, scratch.x_dropped, d, w.w1 + k * h * d, d, 0.0, hidden_k, K * h);
      moe_bias_activate(a.act1, w.b1 + k * h, rows, h, hidden_k, K * h);
      dropout.draw(kMoeHiddenStream, begin, K, k, rows, h, scratch.mask);
      dropout.apply(scratch.mask, rows, h, hidden_k, K * h, scratch.hidden_dropped, h);
      second_input = scratch.hidden_dropped;
      ld_second = h;
    }
    C* y = all_y ? y_base + k * D : y_base;
    gemm(false, true, rows, D, h, second_input, ld_second, w.w2 + k * D * h, h, 0.0, y, ld_y);
    moe_bias_activate(a.act2, w.b2 + k * D, rows, D, y, ld_y);
    if (a.mix == Mix::sum) add_weighted(scratch.alpha + k, K, y, ld_y, rows, D, k == 0, out);
  }
  if (a.mix == Mix::logsumexp) {
    for (int64_t r = 0; r < rows; ++r) {
      moe_logsumexp_row(scratch.log_alpha + r * K, y_base + r * K * D, D, K, D, scratch.terms, out + r * D);
    }
  }
  if constexpr (!kInPlace) {
    moe_store_rows(out, D, rows, D, static_cast<T*>(a.out) + begin * D);
    if (keep) moe_store_rows(hidden, K * h, rows, K * h, static_cast<T*>(a.hidden) + begin * K * h);
    if (keep_y) moe_store_rows(y_base, K * D, rows, K * D, static_cast<T*>(a.expert_out) + begin * K * D);
  }
}

template <typename T>
int64_t forward_scratch(const MoeMlpMixForwardArgs& a, int workers, void* base, MoeWeights<T>* weights,
                        ForwardScratch<compute_t<T>>* slots) {
  Arena arena(base);
  const auto w = MoeWeights<T>::make(a, arena);
  if (weights != nullptr) *weights = w;
  for (int worker = 0; worker < workers; ++worker) {
    const auto slot = ForwardScratch<compute_t<T>>::make(a.shape, arena);
    if (slots != nullptr) slots[worker] = slot;
  }
  return arena.used();
}

template <typename T>
void forward(const MoeMlpMixForwardArgs& a) {
  using C = compute_t<T>;
  const MoeDropout dropout = MoeDropout::make(a);
  MoeWeights<T> weights;
  ForwardScratch<C> slots[kMoeMaxWorkers];
  forward_scratch<T>(a, a.workers, a.scratch, &weights, slots);
  const int64_t step = moe_block_rows(a.shape);
  parallel_chunks(moe_num_blocks(a.shape), a.workers, [&](int64_t block, int worker) {
    const int64_t begin = block * step;
    const int64_t rows = begin + step < a.shape.num_tokens ? step : a.shape.num_tokens - begin;
    forward_block<T>(a, weights, dropout, slots[worker], begin, rows);
  });
}

}  // namespace

void moe_mlp_mix_forward_cpu_isa(const MoeMlpMixForwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { forward<typename decltype(tag)::type>(args); });
}

// Not dispatched: sizes are the same on every instruction set, so the portable copy answers for all.
#if !defined(XFER_CPU_ISA)
}  // namespace XFER_ISA_NAMESPACE
int64_t moe_mlp_mix_forward_scratch_bytes(const MoeMlpMixShape& shape, DType dtype, int workers) {
  MoeMlpMixForwardArgs a{};
  a.shape = shape;
  int64_t bytes = 0;
  dispatch_dtype(dtype, [&](auto tag) {
    bytes = forward_scratch<typename decltype(tag)::type>(a, workers, nullptr, nullptr, nullptr);
  });
  return bytes;
}
inline namespace XFER_ISA_NAMESPACE {
#endif

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
