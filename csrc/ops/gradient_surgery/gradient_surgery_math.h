// The formulas of gradient surgery on Gram matrices, for CPU and CUDA, all in fp64.
//
// A `Team` runs one row or group: one thread on the CPU, a warp on CUDA. It has lane(), size(), sync(), sum(x) (the
// same total in every lane, added in a fixed order) and best(value, index) (the index of the smallest value, the lowest
// one among equals). Scalars that all lanes compute alike need no exchange.
#pragma once

#include <cmath>

#include "common/host_device.h"
#include "common/philox.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

constexpr uint32_t kSurgeryStream = 0x53;

struct OneThread {
  XFER_HD int64_t lane() const { return 0; }
  XFER_HD int64_t size() const { return 1; }
  XFER_HD void sync() const {}
  XFER_HD double sum(double value) const { return value; }
  XFER_HD int64_t best(double, int64_t index) const { return index; }
};

// A uniform permutation of 0 .. num_tasks-1 for row `row` (group * T + task), the same on every device and process:
// Fisher-Yates, word p % 4 of Philox group row * ceil(T / 4) + p / 4 deciding the swap of place p.
XFER_HD void surgery_permutation(const PhiloxState& seed_step, int64_t row, int64_t num_tasks, int32_t* order) {
  for (int64_t p = 0; p < num_tasks; ++p) order[p] = static_cast<int32_t>(p);
  const uint64_t groups = static_cast<uint64_t>((num_tasks + 3) / 4);
  Philox4 words{};
  int64_t drawn = -1;
  for (int64_t p = num_tasks - 1; p > 0; --p) {
    if (drawn != p / 4) {
      drawn = p / 4;
      words =
          philox_words(seed_step, kSurgeryStream, static_cast<uint64_t>(row) * groups + static_cast<uint64_t>(drawn));
    }
    const int64_t other = static_cast<int64_t>((static_cast<uint64_t>(words.word[p % 4]) * (p + 1)) >> 32);
    const int32_t kept = order[p];
    order[p] = order[other];
    order[other] = kept;
  }
}

XFER_HD double surgery_clamp(double value, double bound) {
  return value > bound ? bound : value < -bound ? -bound : value;
}

XFER_HD double surgery_sine(double cosine) { return std::sqrt((1.0 - cosine) * (1.0 + cosine)); }

// The step along g_j that lifts the cosine of g'_i with g_j from phi to phi_hat (Eq. 6.4 of the thesis).
XFER_HD double gradvac_step(double norm_i, double norm_j, double phi, double phi_hat) {
  return norm_i * (phi_hat * surgery_sine(phi) - phi * surgery_sine(phi_hat)) / (norm_j * surgery_sine(phi_hat));
}

struct GradVacRow {
  const double* gram;  // [T, T] of the group
  int64_t num_tasks;
  int64_t task;
  const int64_t* order;    // [T], or null: order32
  const int32_t* order32;  // [T]
  const double* ema;       // [T] or null: zeros
  const double* target;    // [T] or null
  bool use_target_value;
  double target_value;
  double target_clip;
  double beta;
  double residual_eps;
  const bool* task_mask;  // [T] or null
  const bool* apply_to;   // [T] or null
  double* dots;           // [T] scratch: <g'_i, g_j>
  double* coefficients;   // [T] written
  double* new_ema;        // [T] written, or null
  double* cosine;         // [T] written
  bool* moved;            // [T] written
};

// Algorithm 2 of the thesis for one task of one group, on coefficients: g'_i = sum_j c_j g_j.
//
// phi is taken between g'_i as modified so far and the raw g_j; the EMA takes that phi whether or not it moved. A pair
// is passed over, its EMA untouched, where a gradient is absent, zero or not finite, or where g'_i has all but
// vanished.
template <typename Team>
XFER_HD void gradvac_row(const Team& team, const GradVacRow& row) {
  const int64_t T = row.num_tasks, i = row.task;
  const double* gram_i = row.gram + i * T;
  const bool present = row.task_mask == nullptr || row.task_mask[i];
  for (int64_t j = team.lane(); j < T; j += team.size()) {
    row.coefficients[j] = present && j == i ? 1.0 : 0.0;
    row.dots[j] = gram_i[j];
    if (row.new_ema != nullptr) row.new_ema[j] = row.ema != nullptr ? row.ema[j] : 0.0;
    row.cosine[j] = NAN;
    row.moved[j] = false;
  }
  team.sync();
  const double raw = gram_i[i];  // |g_i|^2
  if (!present || (row.apply_to != nullptr && !row.apply_to[i]) || !(raw > 0.0) || !std::isfinite(raw)) return;
  double square = raw;  // |g'_i|^2
  for (int64_t p = 0; p < T; ++p) {
    const int64_t j = row.order != nullptr ? row.order[p] : row.order32[p];
    if (j == i || (row.task_mask != nullptr && !row.task_mask[j])) continue;
    const double square_j = row.gram[j * T + j];
    if (!(square_j > 0.0) || !std::isfinite(square_j)) continue;
    if (!(square > row.residual_eps * row.residual_eps * raw)) continue;
    const double norm = std::sqrt(square), norm_j = std::sqrt(square_j);
    const double ratio = row.dots[j] / norm / norm_j;
    if (!std::isfinite(ratio)) continue;
    const double phi = surgery_clamp(ratio, 1.0);
    const double past = row.ema != nullptr ? row.ema[j] : 0.0;
    const double wanted = row.target != nullptr ? row.target[j] : row.use_target_value ? row.target_value : past;
    const double phi_hat = surgery_clamp(wanted, row.target_clip);
    const bool move = phi < phi_hat;
    team.sync();  // every lane has read dots[j]
    if (move) {
      const double step = gradvac_step(norm, norm_j, phi, phi_hat);
      double partial = 0.0;
      for (int64_t n = team.lane(); n < T; n += team.size()) {
        if (n == j) row.coefficients[n] += step;
        row.dots[n] += step * row.gram[j * T + n];
        partial += row.coefficients[n] != 0.0 ? row.coefficients[n] * row.dots[n] : 0.0;
      }
      square = team.sum(partial);
    }
    if (j % team.size() == team.lane()) {
      row.cosine[j] = phi;
      row.moved[j] = move;
      if (row.new_ema != nullptr) row.new_ema[j] = (1.0 - row.beta) * past + row.beta * phi;
    }
    team.sync();
  }
}

// weights_j = sum_i task_weight_i c_ij over the rows of a group, in order of i.
XFER_HD double surgery_column_sum(const double* coefficients, int64_t num_tasks, int64_t j,
                                  const double* task_weights) {
  double total = 0.0;
  for (int64_t i = 0; i < num_tasks; ++i) {
    total += (task_weights != nullptr ? task_weights[i] : 1.0) * coefficients[i * num_tasks + j];
  }
  return total;
}

// Weights beyond float32 belong to gradients that have all but vanished: the product may well be finite. Sums are then
// taken with weights * 2^-exponent, and multiplied by 2^exponent when they are written. 0 for all others.
XFER_HD int combine_exponent(double weight) {
  const double size = std::fabs(weight);
  constexpr double kLargest = 8.507059173023462e37;  // 2^126
  if (!(size > kLargest) || !std::isfinite(size)) return 0;
  const int exponent = std::ilogb(size) - 125;
  return exponent < 126 ? exponent : 126;  // 2^exponent is a float, too
}

struct MgdaGroup {
  const double* gram;   // [T, T]
  const double* scale;  // [T] or null
  int64_t num_tasks;
  const bool* task_mask;  // [T] or null
  double tolerance;
  int64_t max_iterations;
  double* slope;    // [T] scratch: (G alpha)_j
  double* inverse;  // [T] scratch: 1 / scale_j, 0 for tasks that take no part
  double* weights;  // [T] written
};

// Pairwise Frank-Wolfe with exact line search: mass moves from the vertex with the steepest slope to the one with the
// least, which converges linearly on a polytope. Returns the duality gap relative to the largest squared norm.
//
// Tasks that are absent, or whose gradient is zero, take no part. Where any gradient is not finite, all weights are
// NaN.
template <typename Team>
XFER_HD double mgda_group(const Team& team, const MgdaGroup& group) {
  constexpr int64_t kRefresh = 64;  // steps after which the slopes are computed anew
  const int64_t T = group.num_tasks;
  double wrong = 0.0;  // tasks that take part and have no finite norm
  for (int64_t j = team.lane(); j < T; j += team.size()) {
    const bool present = group.task_mask == nullptr || group.task_mask[j];
    const double square = group.gram[j * T + j];
    const double inverse = group.scale != nullptr ? 1.0 / group.scale[j] : 1.0;
    group.inverse[j] = present && square != 0.0 ? inverse : 0.0;
    group.weights[j] = 0.0;
    const double scaled = group.inverse[j] * group.inverse[j] * square;
    wrong += group.inverse[j] != 0.0 && !std::isfinite(scaled) ? 1.0 : 0.0;
  }
  wrong = team.sum(wrong);
  team.sync();
  if (wrong > 0.0) {
    for (int64_t j = team.lane(); j < T; j += team.size()) group.weights[j] = NAN;
    team.sync();
    return NAN;
  }
  const auto entry = [&](int64_t a, int64_t b) { return group.gram[a * T + b] * group.inverse[a] * group.inverse[b]; };
  // Index of the smallest value(j) over tasks that take part, or -1.
  const auto smallest = [&](const auto& value) {
    double least = INFINITY;
    int64_t index = -1;
    for (int64_t j = team.lane(); j < T; j += team.size()) {
      const double v = group.inverse[j] != 0.0 ? value(j) : INFINITY;
      if (v < least) least = v, index = j;
    }
    return team.best(least, index);
  };
  const int64_t first = smallest([&](int64_t j) { return entry(j, j); });
  if (first < 0) return 0.0;
  const int64_t longest = smallest([&](int64_t j) { return -entry(j, j); });
  const double unit = entry(longest, longest);
  if (first % team.size() == team.lane()) group.weights[first] = 1.0;
  team.sync();
  double gap = 0.0;
  for (int64_t iteration = 0;; ++iteration) {
    if (iteration % kRefresh == 0) {
      for (int64_t j = team.lane(); j < T; j += team.size()) {
        double slope = 0.0;
        for (int64_t n = 0; n < T; ++n) {
          if (group.weights[n] != 0.0) slope += group.weights[n] * entry(j, n);
        }
        group.slope[j] = slope;
      }
      team.sync();
    }
    const int64_t to = smallest([&](int64_t j) { return group.slope[j]; });
    const int64_t from = smallest([&](int64_t j) { return group.weights[j] > 0.0 ? -group.slope[j] : INFINITY; });
    if (to < 0 || from < 0) {  // products of finite gradients that overflow, or a matrix that is not of gradients
      team.sync();
      for (int64_t j = team.lane(); j < T; j += team.size()) group.weights[j] = NAN;
      team.sync();
      return NAN;
    }
    double square = 0.0;
    for (int64_t j = team.lane(); j < T; j += team.size()) {
      if (group.weights[j] != 0.0) square += group.weights[j] * group.slope[j];  // an absent task's slope may be NaN
    }
    gap = (team.sum(square) - group.slope[to]) / unit;
    if (gap <= group.tolerance || to == from || iteration >= group.max_iterations) break;
    const double curvature = entry(to, to) - 2.0 * entry(to, from) + entry(from, from);
    const double mass = group.weights[from];
    double step = curvature > 0.0 ? (group.slope[from] - group.slope[to]) / curvature : mass;
    step = step < mass ? step : mass;
    team.sync();  // every lane has read weights and slopes
    for (int64_t j = team.lane(); j < T; j += team.size()) {
      if (j == to) group.weights[j] += step;
      if (j == from) group.weights[j] = step == mass ? 0.0 : mass - step;
      group.slope[j] += step * (entry(j, to) - entry(j, from));
    }
    team.sync();
  }
  team.sync();  // every lane has read what it returns by
  // Weights of the gradients as they are: alpha holds for g / scale, and its solution weighs the raw losses (the
  // authors' code), so it is returned as it stands.
  return gap > 0.0 ? gap : 0.0;
}

struct GradNormGroup {
  const double* gram;            // [T, T]
  const double* losses;          // [T]
  const double* initial_losses;  // [T]
  const double* weights;         // [T]
  const bool* task_mask;         // [T] or null
  int64_t num_tasks;
  double alpha;
  double* grad_weights;  // [T] written
  double* norms;         // [T] written
};

// L_grad = sum_i |w_i |g_i| - mean_j(w_j |g_j|) r_i^alpha|, r_i = (L_i / L_i0) / mean_j(L_j / L_j0); the target is a
// constant to the derivative. Absent tasks count nowhere and get gradient 0.
XFER_HD double gradnorm_group(const GradNormGroup& group) {
  const int64_t T = group.num_tasks;
  double mean_norm = 0.0, mean_ratio = 0.0;
  int64_t count = 0;
  for (int64_t i = 0; i < T; ++i) {
    const bool present = group.task_mask == nullptr || group.task_mask[i];
    group.norms[i] = present ? group.weights[i] * std::sqrt(group.gram[i * T + i]) : 0.0;
    group.grad_weights[i] = 0.0;
    if (!present) continue;
    mean_norm += group.norms[i];
    mean_ratio += group.losses[i] / group.initial_losses[i];
    ++count;
  }
  if (count == 0) return 0.0;
  mean_norm /= static_cast<double>(count);
  mean_ratio /= static_cast<double>(count);
  double total = 0.0;
  for (int64_t i = 0; i < T; ++i) {
    if (group.task_mask != nullptr && !group.task_mask[i]) continue;
    const double rate = group.losses[i] / group.initial_losses[i] / mean_ratio;
    const double off = group.norms[i] - mean_norm * std::pow(rate, group.alpha);
    total += std::fabs(off);
    const double sign = off > 0.0 ? 1.0 : off < 0.0 ? -1.0 : off;  // off itself where it is 0 or NaN
    group.grad_weights[i] = sign * std::sqrt(group.gram[i * T + i]);
  }
  return total;
}

// g + c g_ref with g the sum of the other tasks' gradients and c = -<g, g_ref> / |g_ref|^2 where <g, g_ref> < 0, else
// 0.
XFER_HD double agem_group(const double* gram, int64_t num_tasks, int64_t reference, double* weights) {
  const double* ref = gram + reference * num_tasks;
  double dot = 0.0, square = 0.0;
  for (int64_t i = 0; i < num_tasks; ++i) {
    weights[i] = i == reference ? 0.0 : 1.0;
    if (i == reference) continue;
    dot += ref[i];
    for (int64_t j = 0; j < num_tasks; ++j) square += j == reference ? 0.0 : gram[i * num_tasks + j];
  }
  if (!(dot >= 0.0) && ref[reference] > 0.0) weights[reference] = -dot / ref[reference];
  return dot / std::sqrt(square) / std::sqrt(ref[reference]);
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
