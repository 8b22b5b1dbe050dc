// CPU kernels of hard_concrete. A gate an element: one pass, and the noise drawn again in backward. Gates of groups:
// their curves first, then one pass over theta.
#include "common/arena.h"
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "ops/hard_concrete/hard_concrete.h"
#include "ops/hard_concrete/hard_concrete_blocks.h"

XFER_CPU_DISPATCH(hard_concrete_forward_cpu, HardConcreteForwardArgs)
XFER_CPU_DISPATCH(hard_concrete_backward_cpu, HardConcreteBackwardArgs)
XFER_CPU_DISPATCH(hard_concrete_curves_cpu, HardConcreteCurvesArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

template <typename F>
void over_chunks(int64_t count, const F& f) {
  const int64_t chunks = ceil_div(count, kHardConcreteChunk);
  parallel_chunks(chunks, chunks > 1 ? max_workers() : 1, [&](int64_t chunk, int) {
    f(chunk, chunk * kHardConcreteChunk, least((chunk + 1) * kHardConcreteChunk, count));
  });
}

// The value of gates.seed_offset and beta as a template argument of f.
template <typename F>
void dispatch_curve(const HardConcreteGates& gates, const F& f) {
  switch (hard_concrete_curve(gates)) {
    case HardConcreteCurve::evaluation:
      return f(std::integral_constant<HardConcreteCurve, HardConcreteCurve::evaluation>{});
    case HardConcreteCurve::two_thirds:
      return f(std::integral_constant<HardConcreteCurve, HardConcreteCurve::two_thirds>{});
    case HardConcreteCurve::any:
      return f(std::integral_constant<HardConcreteCurve, HardConcreteCurve::any>{});
  }
}

// out = theta z, or z where theta is null; parts of the penalty by chunk where it is asked for.
template <typename T, HardConcreteCurve kCurve>
void gate_forward(const HardConcreteGates& gates, const T* theta, T* out, double* penalty) {
  using C = compute_t<T>;
  const HardConcreteConstants<C> k = hard_concrete_constants<C>(gates);
  const C* log_alpha = static_cast<const C*>(gates.log_alpha);
  over_chunks(gates.num_gates, [&](int64_t chunk, int64_t begin, int64_t end) {
    alignas(64) C logits_pad[kBlock], theta_pad[kBlock], z[kBlock], keep[kBlock];
    KeepSum<C> sum;
    for_blocks(gates, begin, end, [&](int64_t first, int64_t count, const uint32_t* words) {
      const C* la = load_block(log_alpha + first, count, logits_pad);
      forward_block<kCurve>(la, words, k, z, keep);
      if (theta != nullptr) {
        const C* scaled = load_block(theta + first, count, theta_pad);
        for (int64_t i = 0; i < kBlock; ++i) z[i] *= scaled[i];
      }
      store_block(out + first, count, z);
      if (penalty != nullptr) sum.add(keep, count);
    });
    if (penalty != nullptr) penalty[chunk] = sum.total();
  });
}

// grad_theta = g z, grad_log_alpha = g theta z' + gp size q' for a gate an element; what is null is left out.
template <typename T, HardConcreteCurve kCurve>
void gate_backward(const HardConcreteBackwardArgs& args) {
  using C = compute_t<T>;
  const HardConcreteConstants<C> k = hard_concrete_constants<C>(args.gates);
  const C* log_alpha = static_cast<const C*>(args.gates.log_alpha);
  const T* theta = static_cast<const T*>(args.theta);
  const T* grad = static_cast<const T*>(args.grad_out);
  T* grad_theta = static_cast<T*>(args.grad_theta);
  C* grad_log_alpha = static_cast<C*>(args.grad_log_alpha);
  const C grad_penalty =
      args.grad_penalty != nullptr ? *static_cast<const C*>(args.grad_penalty) * static_cast<C>(args.size) : C(0);
  over_chunks(args.gates.num_gates, [&](int64_t, int64_t begin, int64_t end) {
    alignas(64) C logits_pad[kBlock], theta_pad[kBlock], grad_pad[kBlock], z[kBlock], d[kBlock];
    alignas(64) C zeros[kBlock] = {}, ones[kBlock];
    for (C& one : ones) one = C(1);
    for_blocks(args.gates, begin, end, [&](int64_t first, int64_t count, const uint32_t* words) {
      const C* la = load_block(log_alpha + first, count, logits_pad);
      const C* g = grad != nullptr ? load_block(grad + first, count, grad_pad) : zeros;
      const C* scaled = theta != nullptr ? load_block(theta + first, count, theta_pad) : ones;
      backward_block<kCurve>(la, words, k, g, scaled, grad_penalty, z, d);
      if (grad_theta != nullptr) store_block(grad_theta + first, count, z);
      if (grad_log_alpha != nullptr) store_block(grad_log_alpha + first, count, d);
    });
  });
}

// Rows of C [K], null where not wanted: z, z', z'', q, q', q''.
template <typename C>
void gate_curves(const HardConcreteGates& gates, C* (&rows)[6]) {
  dispatch_curve(gates, [&](auto curve) {
    const HardConcreteConstants<C> k = hard_concrete_constants<C>(gates);
    const C* log_alpha = static_cast<const C*>(gates.log_alpha);
    over_chunks(gates.num_gates, [&](int64_t, int64_t begin, int64_t end) {
      alignas(64) C pad[kBlock], found[6][kBlock];
      for_blocks(gates, begin, end, [&](int64_t first, int64_t count, const uint32_t* words) {
        const C* la = load_block(log_alpha + first, count, pad);
        curves_block<curve()>(la, words, k, found);
        for (int row = 0; row < 6; ++row) {
          if (rows[row] != nullptr) store_block(rows[row] + first, count, found[row]);
        }
      });
    });
  });
}

template <typename C>
void sum_penalty(double size, const double* parts, int64_t num_gates, C* penalty) {
  double total = 0.0;
  const int64_t chunks = ceil_div(num_gates, kHardConcreteChunk);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += parts[chunk];
  *penalty = static_cast<C>(total * size);
}

// ---- groups

// f(part number, first and last r, first and last k, first and last q) for every part of a group's sum.
template <typename F>
void over_parts(const HardConcreteParts& p, int64_t outer, int64_t num_gates, int64_t inner, const F& f) {
  parallel_chunks(p.total(), p.total() > 1 ? max_workers() : 1, [&](int64_t part, int) {
    const int64_t q = part % p.parts_q, k = part / p.parts_q % p.parts_k, r = part / (p.parts_q * p.parts_k);
    f(r, q, r * p.r_size, least((r + 1) * p.r_size, outer), k * p.k_size, least((k + 1) * p.k_size, num_gates),
      q * p.q_size, least((q + 1) * p.q_size, inner));
  });
}

template <typename T, typename C = compute_t<T>>
void scale_row(const T* from, C factor, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) store_as(to[i], load_as(from[i]) * factor);
}

template <typename T>
void group_forward(const HardConcreteForwardArgs& a, const compute_t<T>* z) {
  const int64_t gates = a.gates.num_gates, inner = a.inner;
  const T* theta = static_cast<const T*>(a.theta);
  T* out = static_cast<T*>(a.out);
  const HardConcreteParts parts = hard_concrete_parts(a.outer, gates, inner, kHardConcreteChunk);
  over_parts(parts, a.outer, gates, inner,
             [&](int64_t, int64_t, int64_t r0, int64_t r1, int64_t k0, int64_t k1, int64_t q0, int64_t q1) {
               for (int64_t r = r0; r < r1; ++r) {
                 if (inner == 1) {
                   const int64_t row = r * gates;
                   for (int64_t k = k0; k < k1; ++k) store_as(out[row + k], load_as(theta[row + k]) * z[k]);
                   continue;
                 }
                 for (int64_t k = k0; k < k1; ++k) {
                   const int64_t at = (r * gates + k) * inner + q0;
                   scale_row(theta + at, z[k], q1 - q0, out + at);
                 }
               }
             });
}

// <grad, theta> of a row, summed in sixteen lanes.
template <typename T>
compute_t<T> row_dot(const T* grad, const T* theta, int64_t count) {
  using C = compute_t<T>;
  lanes_t<T> sum{}, g, t;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    load_lanes(grad + i, g), load_lanes(theta + i, t);
    sum += g * t;
  }
  C total = sum_lanes<C>(sum);
  for (; i < count; ++i) total += load_as(grad[i]) * load_as(theta[i]);
  return total;
}

// sums[k * per_gate + part] = the part's share of <grad, theta> over gate k's group; grad_theta = grad z.
template <typename T>
void group_backward(const HardConcreteBackwardArgs& a, const HardConcreteParts& parts, const compute_t<T>* z,
                    compute_t<T>* sums) {
  using C = compute_t<T>;
  const int64_t gates = a.gates.num_gates, inner = a.inner;
  const T* theta = static_cast<const T*>(a.theta);
  const T* grad = static_cast<const T*>(a.grad_out);
  T* grad_theta = static_cast<T*>(a.grad_theta);
  const int64_t per_gate = parts.per_gate();
  over_parts(
      parts, a.outer, gates, inner,
      [&](int64_t r_part, int64_t q_part, int64_t r0, int64_t r1, int64_t k0, int64_t k1, int64_t q0, int64_t q1) {
        C* out = sums + r_part * parts.parts_q + q_part;
        if (a.grad_log_alpha != nullptr) {
          for (int64_t k = k0; k < k1; ++k) out[k * per_gate] = C(0);
        }
        for (int64_t r = r0; r < r1; ++r) {
          for (int64_t k = k0; k < k1; ++k) {
            const int64_t at = (r * gates + k) * inner + q0;
            if (a.grad_log_alpha != nullptr) out[k * per_gate] += row_dot(grad + at, theta + at, q1 - q0);
            if (grad_theta != nullptr) scale_row(grad + at, z[k], q1 - q0, grad_theta + at);
          }
        }
      });
}

// The same for inner = 1, where neighbours belong to different gates: the sums of a part lie beside each other.
template <typename T>
void column_backward(const HardConcreteBackwardArgs& a, const HardConcreteParts& parts, const compute_t<T>* z,
                     compute_t<T>* sums) {
  using C = compute_t<T>;
  const int64_t gates = a.gates.num_gates;
  const T* theta = static_cast<const T*>(a.theta);
  const T* grad = static_cast<const T*>(a.grad_out);
  T* grad_theta = static_cast<T*>(a.grad_theta);
  over_parts(parts, a.outer, gates, 1,
             [&](int64_t r_part, int64_t, int64_t r0, int64_t r1, int64_t k0, int64_t k1, int64_t, int64_t) {
               C* out = sums + r_part * gates;
               for (int64_t k = k0; k < k1; ++k) out[k] = C(0);
               for (int64_t r = r0; r < r1; ++r) {
                 const T* g = grad + r * gates;
                 const T* t = theta + r * gates;
                 for (int64_t k = k0; k < k1; ++k) out[k] += load_as(g[k]) * load_as(t[k]);
                 if (grad_theta == nullptr) continue;
                 for (int64_t k = k0; k < k1; ++k) store_as(grad_theta[r * gates + k], load_as(g[k]) * z[k]);
               }
             });
}

template <typename T>
void forward(const HardConcreteForwardArgs& a) {
  using C = compute_t<T>;
  Arena arena(a.workspace);
  double* parts = arena.take<double>(ceil_div(a.gates.num_gates, kHardConcreteChunk));
  double* penalty = a.penalty != nullptr ? parts : nullptr;
  const T* theta = static_cast<const T*>(a.theta);
  const bool grouped = theta != nullptr && (a.outer != 1 || a.inner != 1);
  dispatch_curve(a.gates, [&](auto curve) {
    if (theta == nullptr) {
      gate_forward<C, curve()>(a.gates, nullptr, static_cast<C*>(a.out), penalty);
    } else if (!grouped) {
      gate_forward<T, curve()>(a.gates, theta, static_cast<T*>(a.out), penalty);
    } else {
      C* z = arena.take<C>(a.gates.num_gates);
      gate_forward<C, curve()>(a.gates, nullptr, z, penalty);
      group_forward<T>(a, z);
    }
  });
  if (penalty != nullptr) sum_penalty(a.size, parts, a.gates.num_gates, static_cast<C*>(a.penalty));
}

template <typename T>
void backward(const HardConcreteBackwardArgs& a) {
  using C = compute_t<T>;
  const bool grouped = a.theta != nullptr && (a.outer != 1 || a.inner != 1);
  if (!grouped) {
    dispatch_curve(a.gates, [&](auto curve) {
      if (a.theta == nullptr) {
        gate_backward<C, curve()>(a);
      } else {
        gate_backward<T, curve()>(a);
      }
    });
    return;
  }
  const int64_t gates = a.gates.num_gates;
  const HardConcreteParts parts = hard_concrete_parts(a.outer, gates, a.inner, kHardConcreteChunk);
  Arena arena(a.workspace);
  C* rows[6] = {arena.take<C>(gates), arena.take<C>(gates), nullptr, nullptr, arena.take<C>(gates), nullptr};
  C* sums = arena.take<C>(gates * parts.per_gate());
  gate_curves<C>(a.gates, rows);
  if (a.grad_out != nullptr) {
    if (a.inner == 1) {
      column_backward<T>(a, parts, rows[0], sums);
    } else {
      group_backward<T>(a, parts, rows[0], sums);
    }
  } else if (a.grad_theta != nullptr) {
    memset(a.grad_theta, 0, static_cast<size_t>(a.outer * gates * a.inner) * sizeof(T));
  }
  if (a.grad_log_alpha == nullptr) return;
  const C grad_penalty =
      a.grad_penalty != nullptr ? *static_cast<const C*>(a.grad_penalty) * static_cast<C>(a.size) : C(0);
  C* out = static_cast<C*>(a.grad_log_alpha);
  const int64_t part_stride = a.inner == 1 ? gates : 1, gate_stride = a.inner == 1 ? 1 : parts.per_gate();
  for (int64_t k = 0; k < gates; ++k) {
    C sum = C(0);
    if (a.grad_out != nullptr) {
      for (int64_t part = 0; part < parts.per_gate(); ++part) sum += sums[k * gate_stride + part * part_stride];
    }
    out[k] = sum * rows[1][k] + grad_penalty * rows[4][k];
  }
}

}  // namespace

void hard_concrete_forward_cpu_isa(const HardConcreteForwardArgs& args) {
  dispatch_dtype(args.gates.dtype, [&](auto tag) { forward<typename decltype(tag)::type>(args); });
}

void hard_concrete_backward_cpu_isa(const HardConcreteBackwardArgs& args) {
  dispatch_dtype(args.gates.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(args); });
}

void hard_concrete_curves_cpu_isa(const HardConcreteCurvesArgs& args) {
  dispatch_dtype(args.gates.dtype, [&](auto tag) {
    using C = compute_t<typename decltype(tag)::type>;
    C* curves = static_cast<C*>(args.curves);
    C* rows[6];
    for (int row = 0; row < 6; ++row) rows[row] = curves + row * args.gates.num_gates;
    gate_curves<C>(args.gates, rows);
  });
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
