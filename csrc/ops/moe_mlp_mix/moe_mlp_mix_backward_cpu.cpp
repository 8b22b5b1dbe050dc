// Backward pass of moe_mlp_mix on the CPU. Each slice of blocks sums its weight gradients in accumulators of its own;
// the slices are added in order at the end, so the bits do not depend on the number of threads.
#include "ops/moe_mlp_mix/moe_mlp_mix_cpu.h"

XFER_CPU_DISPATCH(moe_mlp_mix_backward_cpu, MoeMlpMixBackwardArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

// Gradients of all parameters, one after the other as in moe_num_parameters.
template <typename C>
struct Accumulators {
  C *gate_weight, *gate_bias, *w1, *b1, *w2, *b2;

  static Accumulators at(C* base, const MoeMlpMixShape& s) {
    const int64_t K = s.num_experts;
    Accumulators out;
    out.gate_weight = base;
    out.gate_bias = out.gate_weight + K * s.in_dim;
    out.w1 = out.gate_bias + K;
    out.b1 = out.w1 + K * s.hidden_dim * s.in_dim;
    out.w2 = out.b1 + K * s.hidden_dim;
    out.b2 = out.w2 + K * s.out_dim * s.hidden_dim;
    return out;
  }
};

template <typename C>
struct BackwardScratch {
  C *x, *x_dropped, *grad_out, *logits, *alpha, *log_alpha, *grad_alpha, *hidden, *hidden_dropped, *y, *lse, *terms;
  C *grad_z, *grad_hidden, *grad_x, *grad_x_expert;
  uint64_t *input_mask, *hidden_mask;

  static BackwardScratch make(const MoeMlpMixShape& s, Arena& arena) {
    const int64_t rows = moe_block_rows(s), K = s.num_experts;
    BackwardScratch out;
    out.x = arena.take<C>(rows * s.in_dim);
    out.x_dropped = arena.take<C>(rows * s.in_dim);
    out.grad_out = arena.take<C>(rows * s.out_dim);
    out.logits = arena.take<C>(rows * K);
    out.alpha = arena.take<C>(rows * K);
    out.log_alpha = arena.take<C>(rows * K);
    out.grad_alpha = arena.take<C>(rows * K);
    out.hidden = arena.take<C>(rows * K * s.hidden_dim);
    out.hidden_dropped = arena.take<C>(rows * s.hidden_dim);
    out.y = arena.take<C>(rows * K * s.out_dim);
    out.lse = arena.take<C>(rows * s.out_dim);
    out.terms = arena.take<C>(K * s.out_dim);
    out.grad_z = arena.take<C>(rows * s.out_dim);
    out.grad_hidden = arena.take<C>(rows * K * s.hidden_dim);
    out.grad_x = arena.take<C>(rows * s.in_dim);
    out.grad_x_expert = arena.take<C>(rows * s.in_dim);
    out.input_mask = arena.take<uint64_t>(rows * moe_mask_words(s.in_dim));
    out.hidden_mask = arena.take<uint64_t>(rows * moe_mask_words(s.hidden_dim));
    return out;
  }
};

template <typename C>
void add_column_sums(const C* rows_of, int64_t ld, int64_t rows, int64_t cols, bool first, C* sums) {
  if (first) {
    for (int64_t j = 0; j < cols; ++j) sums[j] = C(0);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) sums[j] += rows_of[r * ld + j];
  }
}

// grad_z of expert k for a block: through the mix and act2. Also d loss / d alpha_k, or d log alpha_k for logsumexp.
template <typename C>
void expert_output_grad(const MoeMlpMixForwardArgs& f, int64_t k, int64_t rows, const C* grad_out, const C* alpha,
                        const C* log_alpha, const C* lse, const C* y, int64_t ld_y, C* grad_alpha, C* grad_z) {
  const int64_t K = f.shape.num_experts, D = f.shape.out_dim;
  for (int64_t r = 0; r < rows; ++r) {
    const C* g = grad_out + r * D;
    const C* y_row = y + r * ld_y;
    C* dz = grad_z + r * D;
    C dot = C(0);
    if (f.mix == Mix::sum) {
      const C weight = alpha[r * K + k];
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < D; ++j) {
        dot += g[j] * y_row[j];
        dz[j] = weight * g[j];
      }
    } else {
      const C log_weight = log_alpha[r * K + k];
      const C* row_lse = lse + r * D;
#pragma omp simd reduction(+ : dot)
      for (int64_t j = 0; j < D; ++j) {
        dz[j] = g[j] * vector_exp(log_weight + y_row[j] - row_lse[j]);
        dot += dz[j];
      }
    }
    grad_alpha[r * K + k] = dot;
    if (f.act2 == Act::softmax || f.act2 == Act::log_softmax) {
      C total = C(0);
      for (int64_t j = 0; j < D; ++j) total += f.act2 == Act::softmax ? dz[j] * y_row[j] : dz[j];
      for (int64_t j = 0; j < D; ++j) dz[j] = moe_row_activation_grad(f.act2, y_row[j], dz[j], total);
    } else if (f.act2 == Act::tanh) {
      for (int64_t j = 0; j < D; ++j) dz[j] *= moe_activation_slope(Act::tanh, y_row[j]);
    } else if (f.act2 == Act::relu) {
      for (int64_t j = 0; j < D; ++j) dz[j] *= moe_activation_slope(Act::relu, y_row[j]);
    }
  }
}

template <typename C>
void multiply_by_slope(Act act, const C* output, int64_t rows, int64_t cols, int64_t ld, C* grad) {
  if (act == Act::none) return;
  for (int64_t r = 0; r < rows; ++r) {
    const C* out_row = output + r * ld;
    C* row = grad + r * ld;
    if (act == Act::relu) {
      for (int64_t j = 0; j < cols; ++j) row[j] *= moe_activation_slope(Act::relu, out_row[j]);
    } else {
      for (int64_t j = 0; j < cols; ++j) row[j] *= moe_activation_slope(Act::tanh, out_row[j]);
    }
  }
}

template <typename T>
class BackwardBlock {
  using C = compute_t<T>;

 public:
  BackwardBlock(const MoeMlpMixBackwardArgs& args, const MoeWeights<T>& weights, const MoeDropout& dropout,
                const BackwardScratch<C>& scratch, const Accumulators<C>& sums, int64_t begin, int64_t rows, bool first)
      : b(args),
        f(args.forward),
        w(weights),
        drop(dropout),
        t(scratch),
        acc(sums),
        begin(begin),
        rows(rows),
        first(first),
        beta(first ? 0.0 : 1.0),
        gemm{args.forward.gemm} {}

  void run() {
    x = MoeRows<T>::load(f.x, begin, rows, d, t.x);
    grad_out = MoeRows<T>::load(b.grad_out, begin, rows, D, t.grad_out);
    const auto logits = MoeRows<T>::load(f.gate_logits, begin, rows, K, t.logits);
    moe_gate_softmax(logits.data, rows, K, t.alpha, f.mix == Mix::logsumexp ? t.log_alpha : nullptr);
    load_hidden();
    if (f.mix == Mix::logsumexp) {
      for (int64_t k = 0; k < K; ++k) expert_output(k, f.expert_out != nullptr ? MoeRows<C>{} : dropped_hidden(k));
      for (int64_t r = 0; r < rows; ++r) {
        moe_logsumexp_row(t.log_alpha + r * K, y_of(0) + r * ld_y(), D, K, D, t.terms, t.lse + r * D);
      }
    }
    for (int64_t k = 0; k < K; ++k) second_layer(k);
    first_layer();
    gate();
    if (b.grad_x != nullptr) moe_store_rows(t.grad_x, d, rows, d, static_cast<T*>(b.grad_x) + begin * d);
  }

 private:
  static constexpr bool kInPlace = sizeof(T) == sizeof(C);

  void load_hidden() {
    if (f.hidden != nullptr) {
      hidden = MoeRows<T>::load(f.hidden, begin, rows, K * h, t.hidden).data;
      return;
    }
    hidden = t.hidden;
    if (!drop.on) {
      gemm(false, true, rows, K * h, d, x.data, x.ld, w.w1, d, 0.0, t.hidden, K * h);
      moe_bias_activate(f.act1, w.b1, rows, K * h, t.hidden, K * h);
      return;
    }
    for (int64_t k = 0; k < K; ++k) {
      drop.draw(kMoeInputStream, begin, K, k, rows, d, t.input_mask);
      drop.apply(t.input_mask, rows, d, x.data, x.ld, t.x_dropped, d);
      gemm(false, true, rows, h, d, t.x_dropped, d, w.w1 + k * h * d, d, 0.0, t.hidden + k * h, K * h);
      moe_bias_activate(f.act1, w.b1 + k * h, rows, h, t.hidden + k * h, K * h);
    }
  }

  // act1's output after dropout, the second layer's input. Leaves the mask in hidden_mask.
  MoeRows<C> dropped_hidden(int64_t k) {
    if (!drop.on) return {hidden + k * h, K * h};
    drop.draw(kMoeHiddenStream, begin, K, k, rows, h, t.hidden_mask);
    drop.apply(t.hidden_mask, rows, h, hidden + k * h, K * h, t.hidden_dropped, h);
    return {t.hidden_dropped, h};
  }

  int64_t ld_y() const { return K * D; }
  const C* y_of(int64_t k) const {
    return (f.expert_out != nullptr && kInPlace ? static_cast<const C*>(f.expert_out) + begin * K * D : t.y) + k * D;
  }

  // Leaves act2's output of expert k where y_of finds it.
  void expert_output(int64_t k, const MoeRows<C>& input) {
    if (f.expert_out != nullptr) {
      if constexpr (!kInPlace) {
        const T* kept = static_cast<const T*>(f.expert_out) + (begin * K + k) * D;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t j = 0; j < D; ++j) t.y[r * K * D + k * D + j] = load_as(kept[r * K * D + j]);
        }
      }
      return;
    }
    gemm(false, true, rows, D, h, input.data, input.ld, w.w2 + k * D * h, h, 0.0, t.y + k * D, K * D);
    moe_bias_activate(f.act2, w.b2 + k * D, rows, D, t.y + k * D, K * D);
  }

  void second_layer(int64_t k) {
    const MoeRows<C> input = dropped_hidden(k);
    if (f.mix == Mix::sum) expert_output(k, input);
    expert_output_grad(f, k, rows, grad_out.data, t.alpha, t.log_alpha, t.lse, y_of(k), ld_y(), t.grad_alpha, t.grad_z);
    if (b.grad_w2 != nullptr) {
      gemm(true, false, D, h, rows, t.grad_z, D, input.data, input.ld, beta, acc.w2 + k * D * h, h);
    }
    if (b.grad_b2 != nullptr) add_column_sums(t.grad_z, D, rows, D, first, acc.b2 + k * D);
    if (!below_needed()) return;
    C* grad_hidden = t.grad_hidden + k * h;
    gemm(false, false, rows, h, D, t.grad_z, D, w.w2 + k * D * h, h, 0.0, grad_hidden, K * h);
    if (drop.on) drop.apply(t.hidden_mask, rows, h, grad_hidden, K * h, grad_hidden, K * h);
    multiply_by_slope(f.act1, hidden + k * h, rows, h, K * h, grad_hidden);
  }

  void first_layer() {
    if (!below_needed()) return;
    if (b.grad_b1 != nullptr) add_column_sums(t.grad_hidden, K * h, rows, K * h, first, acc.b1);
    if (!drop.on) {  // one product over all experts
      if (b.grad_w1 != nullptr) {
        gemm(true, false, K * h, d, rows, t.grad_hidden, K * h, x.data, x.ld, beta, acc.w1, d);
      }
      if (b.grad_x != nullptr) gemm(false, false, rows, d, K * h, t.grad_hidden, K * h, w.w1, d, 0.0, t.grad_x, d);
      return;
    }
    for (int64_t k = 0; k < K; ++k) {
      const C* grad_hidden = t.grad_hidden + k * h;
      drop.draw(kMoeInputStream, begin, K, k, rows, d, t.input_mask);
      if (b.grad_w1 != nullptr) {
        drop.apply(t.input_mask, rows, d, x.data, x.ld, t.x_dropped, d);
        gemm(true, false, h, d, rows, grad_hidden, K * h, t.x_dropped, d, beta, acc.w1 + k * h * d, d);
      }
      if (b.grad_x == nullptr) continue;
      gemm(false, false, rows, d, h, grad_hidden, K * h, w.w1 + k * h * d, d, 0.0, t.grad_x_expert, d);
      drop.apply(t.input_mask, rows, d, t.grad_x_expert, d, t.grad_x_expert, d);
      for (int64_t i = 0; i < rows * d; ++i) t.grad_x[i] = (k == 0 ? C(0) : t.grad_x[i]) + t.grad_x_expert[i];
    }
  }

  // d logit_k = alpha_k (d alpha_k - sum_j alpha_j d alpha_j), or with log alpha: d la_k - alpha_k sum_j d la_j.
  void gate() {
    C* grad_logits = t.grad_alpha;
    const T* incoming = static_cast<const T*>(b.grad_gate_logits);
    for (int64_t r = 0; r < rows; ++r) {
      C* row = grad_logits + r * K;
      const C* alpha = t.alpha + r * K;
      C total = C(0);
      for (int64_t k = 0; k < K; ++k) total += f.mix == Mix::sum ? alpha[k] * row[k] : row[k];
      for (int64_t k = 0; k < K; ++k) {
        row[k] = f.mix == Mix::sum ? alpha[k] * (row[k] - total) : row[k] - alpha[k] * total;
        if (incoming != nullptr) row[k] += load_as(incoming[(begin + r) * K + k]);
      }
    }
    if (b.grad_gate_weight != nullptr) {
      gemm(true, false, K, d, rows, grad_logits, K, x.data, x.ld, beta, acc.gate_weight, d);
    }
    if (b.grad_gate_bias != nullptr) add_column_sums(grad_logits, K, rows, K, first, acc.gate_bias);
    if (b.grad_x != nullptr && !b.detach_gate_input) {
      gemm(false, false, rows, d, K, grad_logits, K, w.gate_weight, d, 1.0, t.grad_x, d);
    }
  }

  bool below_needed() const { return b.grad_x != nullptr || b.grad_w1 != nullptr || b.grad_b1 != nullptr; }

  const MoeMlpMixBackwardArgs& b;
  const MoeMlpMixForwardArgs& f;
  const MoeWeights<T>& w;
  const MoeDropout& drop;
  const BackwardScratch<C>& t;
  const Accumulators<C>& acc;
  const int64_t begin, rows;
  const bool first;
  const double beta;  // 0 for a slice's first block: accumulators are never cleared
  const MoeGemm<C> gemm;
  const int64_t K = f.shape.num_experts, d = f.shape.in_dim, h = f.shape.hidden_dim, D = f.shape.out_dim;
  MoeRows<T> x{}, grad_out{};
  const C* hidden = nullptr;
};

template <typename T>
int64_t backward_scratch(const MoeMlpMixForwardArgs& a, int workers, void* base, MoeWeights<T>* weights,
                         compute_t<T>** sums, BackwardScratch<compute_t<T>>* slots) {
  using C = compute_t<T>;
  Arena arena(base);
  const auto w = MoeWeights<T>::make(a, arena);
  if (weights != nullptr) *weights = w;
  for (int64_t slice = 0; slice < moe_num_slices(a.shape); ++slice) {
    C* slice_sums = arena.take<C>(moe_num_parameters(a.shape));
    if (sums != nullptr) sums[slice] = slice_sums;
  }
  for (int worker = 0; worker < workers; ++worker) {
    const auto slot = BackwardScratch<C>::make(a.shape, arena);
    if (slots != nullptr) slots[worker] = slot;
  }
  return arena.used();
}

// Adds the slices in order and stores one parameter's gradient.
template <typename T, typename C>
void store_sum(C* const* sums, int64_t num_slices, int64_t offset, int64_t count, void* out, int workers) {
  if (out == nullptr) return;
  constexpr int64_t kStep = 16 * 1024;
  const int64_t chunks = ceil_div(count, kStep);
  parallel_chunks(chunks, chunks > 1 ? workers : 1, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kStep;
    const int64_t end = begin + kStep < count ? begin + kStep : count;
    C* total = sums[0] + offset;
    for (int64_t slice = 1; slice < num_slices; ++slice) {
      const C* more = sums[slice] + offset;
      for (int64_t i = begin; i < end; ++i) total[i] += more[i];
    }
    for (int64_t i = begin; i < end; ++i) store_as(static_cast<T*>(out)[i], total[i]);
  });
}

template <typename T>
void backward(const MoeMlpMixBackwardArgs& args) {
  using C = compute_t<T>;
  const MoeMlpMixForwardArgs& f = args.forward;
  const MoeMlpMixShape& s = f.shape;
  const MoeDropout dropout = MoeDropout::make(f);
  const int64_t num_slices = moe_num_slices(s);
  MoeWeights<T> weights;
  C* sums[16];
  BackwardScratch<C> slots[kMoeMaxWorkers];
  backward_scratch<T>(f, f.workers, f.scratch, &weights, sums, slots);
  const int64_t step = moe_block_rows(s);
  const int64_t blocks = moe_num_blocks(s);
  parallel_chunks(num_slices, f.workers, [&](int64_t slice, int worker) {
    const auto acc = Accumulators<C>::at(sums[slice], s);
    const int64_t first_block = blocks * slice / num_slices;
    const int64_t last_block = blocks * (slice + 1) / num_slices;
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t begin = block * step;
      const int64_t rows = begin + step < s.num_tokens ? step : s.num_tokens - begin;
      BackwardBlock<T>(args, weights, dropout, slots[worker], acc, begin, rows, block == first_block).run();
    }
  });
  const auto at = Accumulators<C>::at(sums[0], s);
  const auto store = [&](C* grad, int64_t count, void* out) {
    store_sum<T>(sums, num_slices, grad - sums[0], count, out, f.workers);
  };
  store(at.gate_weight, s.num_experts * s.in_dim, args.grad_gate_weight);
  store(at.gate_bias, s.num_experts, args.grad_gate_bias);
  store(at.w1, s.num_experts * s.hidden_dim * s.in_dim, args.grad_w1);
  store(at.b1, s.num_experts * s.hidden_dim, args.grad_b1);
  store(at.w2, s.num_experts * s.out_dim * s.hidden_dim, args.grad_w2);
  store(at.b2, s.num_experts * s.out_dim, args.grad_b2);
}

}  // namespace

void moe_mlp_mix_backward_cpu_isa(const MoeMlpMixBackwardArgs& args) {
  dispatch_dtype(args.forward.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(args); });
}

#if !defined(XFER_CPU_ISA)
}  // namespace XFER_ISA_NAMESPACE
int64_t moe_mlp_mix_backward_scratch_bytes(const MoeMlpMixShape& shape, DType dtype, int workers) {
  MoeMlpMixForwardArgs a{};
  a.shape = shape;
  int64_t bytes = 0;
  dispatch_dtype(dtype, [&](auto tag) {
    bytes = backward_scratch<typename decltype(tag)::type>(a, workers, nullptr, nullptr, nullptr, nullptr);
  });
  return bytes;
}
inline namespace XFER_ISA_NAMESPACE {
#endif

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
