// The formulas of hard_concrete, for CPU and CUDA: the same bits on both (see common/exact_math.h), so that a mask
// drawn on one device is the mask of the other. C is the compute type (fp32, or fp64 for fp64).
//
//   w = e^-la, e^-t = (w (1 - u) / u)^(1/beta), s = 1 / (1 + e^-t), z = clip(s (zeta - gamma) + gamma, 0, 1)
//   q = P(z > 0) = 1 / (1 + w c) with c = (-gamma / zeta)^beta
#pragma once

#include <cmath>

#include "common/exact_math.h"
#include "common/philox.h"
#include "ops/hard_concrete/hard_concrete.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

// The noise, and the power that its curve takes: 3/2 costs a square root, another one a logarithm.
enum class HardConcreteCurve { evaluation, two_thirds, any };

template <typename C>
struct HardConcreteConstants {
  C inverse_beta, gamma, span, keep;  // 1 / beta, gamma, zeta - gamma, (-gamma / zeta)^beta
  C slope;                            // dz/dt of the stretched sigmoid: span / beta
};

inline bool is_two_thirds(double beta) { return std::abs(beta - 2.0 / 3.0) < 1e-15; }

inline HardConcreteCurve hard_concrete_curve(const HardConcreteGates& gates) {
  if (gates.seed_offset == nullptr) return HardConcreteCurve::evaluation;
  return is_two_thirds(gates.beta) ? HardConcreteCurve::two_thirds : HardConcreteCurve::any;
}

template <typename C>
HardConcreteConstants<C> hard_concrete_constants(const HardConcreteGates& gates) {
  const double beta = gates.seed_offset == nullptr ? 1.0 : gates.beta;
  return {static_cast<C>(1.0 / beta), static_cast<C>(gates.gamma), static_cast<C>(gates.zeta - gates.gamma),
          static_cast<C>(std::pow(-gates.gamma / gates.zeta, beta)), static_cast<C>((gates.zeta - gates.gamma) / beta)};
}

// 23 bits of the word and a half: u and 1 - u are exact in fp32 and never 0 or 1, which 24 bits would round to.
template <typename C>
XFER_HD C hard_concrete_uniform(uint32_t word) {
  return static_cast<C>(static_cast<int32_t>((word >> 9) * 2u + 1u)) * C(5.9604644775390625e-8);  // 2^-24
}

template <typename C>
struct HardConcreteGate {
  C w;  // e^-la
  C s;  // the sigmoid before it is stretched
  C z;  // the gate
};

template <HardConcreteCurve kCurve, typename C>
XFER_HD HardConcreteGate<C> hard_concrete_gate(C log_alpha, uint32_t word, const HardConcreteConstants<C>& k) {
  HardConcreteGate<C> out;
  out.w = exact_exp(-log_alpha);
  C below = C(1) + out.w;  // 1 + e^-t
  if constexpr (kCurve != HardConcreteCurve::evaluation) {
    const C u = hard_concrete_uniform<C>(word);
    if constexpr (kCurve == HardConcreteCurve::two_thirds) {
      const C r = exact_divide(out.w * (C(1) - u), u);
      below = exact_fma(r, exact_sqrt(r), C(1));
    } else {
      below = C(1) + exact_exp((exact_log(C(1) - u) - exact_log(u) - log_alpha) * k.inverse_beta);
    }
  }
  out.s = exact_divide(C(1), below);
  const C stretched = exact_fma(out.s, k.span, k.gamma);
  const C capped = stretched >= C(1) ? C(1) : stretched;
  out.z = stretched <= C(0) ? C(0) : capped;
  return out;
}

// dz/dla, which is 0 where z is 0 or 1 (a NaN is neither). Elsewhere s is between 1/12 and 11/12 (for the usual gamma
// and zeta), so 1 - s is exact enough. Both sides of every choice are computed first: a branch would keep loops from
// vectorising.
template <typename C>
XFER_HD C hard_concrete_slope(const HardConcreteGate<C>& gate, const HardConcreteConstants<C>& k) {
  const C moving = k.slope * gate.s * (C(1) - gate.s);
  const C below_one = gate.z == C(1) ? C(0) : moving;
  return gate.z == C(0) ? C(0) : below_one;
}

// d2z/dla2 from dz/dla.
template <typename C>
XFER_HD C hard_concrete_bend(C s, C slope, const HardConcreteConstants<C>& k) {
  return slope * ((C(1) - s) - s) * k.inverse_beta;
}

// P(z > 0).
template <typename C>
XFER_HD C hard_concrete_keep(C w, const HardConcreteConstants<C>& k) {
  return exact_divide(C(1), exact_fma(w, k.keep, C(1)));
}

// dq/dla = q (1 - q), where 1 - q would cancel near q = 1 and q w c does not. An infinite w c, whose q is 0, becomes
// large.
template <typename C>
XFER_HD C hard_concrete_keep_slope(C w, C keep, const HardConcreteConstants<C>& k) {
  const C large = sizeof(C) == 8 ? C(1e308) : C(1e38);
  const C odds = w * k.keep;
  return keep * (keep * (odds > large ? large : odds));
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
