// CPU passes of inbatch_softmax_loss: a row is read while it is in cache, its exponentials are taken once where the
// whole row is there, and its gradient takes its place.
#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss_math.h"

XFER_CPU_DISPATCH(inbatch_softmax_rows_cpu, InbatchRowsArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 2 * kLanes;            // columns whose partial results stay in registers
constexpr int64_t kRankBlock = 32 * kLanes;       // columns counted before the lanes are added up
constexpr int64_t kElementsPerChunk = 64 * 1024;  // of a chunk of rows

// Calls f(values, first, count) on runs of kBlock similarities; the last one is filled up with masked ones.
template <typename C, typename F>
void for_blocks(const C* row, int64_t count, const F& f) {
  int64_t j = 0;
  for (; j + kBlock <= count; j += kBlock) f(row + j, j, kBlock);
  if (j == count) return;
  C tail[kBlock];
  for (int64_t l = 0; l < kBlock; ++l) tail[l] = j + l < count ? row[j + l] : -C(INFINITY);
  f(tail, j, count - j);
}

template <typename C>
C sum_of(const C* partial) {
  C total = C(0);
  for (int64_t l = 0; l < kBlock; ++l) total += partial[l];
  return total;
}

// The largest similarity, or the smallest where scale is negative: the one with the largest logit. A NaN is left to the
// sums, which it turns into NaN.
template <bool kSmallest, typename C>
C extreme(const C* sim, int64_t count) {
  C best[kBlock];
  for (int64_t l = 0; l < kBlock; ++l) best[l] = kSmallest ? C(INFINITY) : -C(INFINITY);
  for_blocks(sim, count, [&](const C* s, int64_t, int64_t) {
    for (int64_t l = 0; l < kBlock; ++l) {
      if constexpr (kSmallest) {
        best[l] = s[l] < best[l] && s[l] != -C(INFINITY) ? s[l] : best[l];
      } else {
        best[l] = s[l] > best[l] ? s[l] : best[l];
      }
    }
  });
  C out = best[0];
  for (int64_t l = 1; l < kBlock; ++l) out = (kSmallest ? best[l] < out : best[l] > out) ? best[l] : out;
  return out;
}

template <typename C>
C largest_logit(const C* sim, int64_t count, C scale) {
  const C found = scale < C(0) ? extreme<true>(sim, count) : extreme<false>(sim, count);
  return found == -C(INFINITY) || (scale < C(0) && found == C(INFINITY)) ? -C(INFINITY) : scale * found;
}

// exp(z - maximum) of kLanes similarities. With a positive scale a masked one needs no test: its logit is -inf too.
// `maximum` is finite, or 0 where every logit is -inf.
template <bool kPositive, typename Lanes, typename C>
void weigh(const Lanes& s, C scale, C maximum, Lanes& e) {
  Lanes z = scale * s - maximum;
  if constexpr (!kPositive) z = s == -C(INFINITY) ? Lanes{} - C(INFINITY) : z;
  exp_lanes(z, e);
}

template <typename C>
C finite_or_zero(C maximum) {
  return maximum == -C(INFINITY) ? C(0) : maximum;
}

template <typename C>
struct ExpSum {
  C sum, moment;
};

// Sums of e = exp(z - maximum) and, with kMoment, of e (sim - origin); with kStore e replaces every similarity.
template <bool kStore, bool kMoment, bool kPositive, typename C>
ExpSum<C> exp_sum(C* sim, int64_t count, C scale, C maximum, C origin) {
  using Lanes = lanes_t<C>;
  Lanes sum{}, moment{}, s, e;
  const C shift = finite_or_zero(maximum);
  const auto add = [&](C* values) {
    load_lanes(values, s);
    weigh<kPositive>(s, scale, shift, e);
    sum += e;
    if constexpr (kMoment) moment += e == C(0) ? Lanes{} : e * (s - origin);  // a masked one would be 0 times infinity
    if constexpr (kStore) store_lanes(values, e);
  };
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) add(sim + j);
  if (j < count) {
    C tail[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) tail[l] = j + l < count ? sim[j + l] : -C(INFINITY);
    add(tail);
    if constexpr (kStore) memcpy(sim + j, tail, static_cast<size_t>(count - j) * sizeof(C));
  }
  return {sum_lanes<C>(sum), sum_lanes<C>(moment)};
}

// The same, with the choices made while running.
template <typename C>
ExpSum<C> exp_sum(bool store, bool moment, C* sim, int64_t count, C scale, C maximum, C origin) {
  if (!(scale > C(0))) {
    return store ? exp_sum<true, true, false>(sim, count, scale, maximum, origin)
                 : exp_sum<false, false, false>(sim, count, scale, maximum, origin);
  }
  if (!store) return exp_sum<false, false, true>(sim, count, scale, maximum, origin);
  return moment ? exp_sum<true, true, true>(sim, count, scale, maximum, origin)
                : exp_sum<true, false, true>(sim, count, scale, maximum, origin);
}

// Replaces kBlock values of C by kBlock of T further to the front of the same row, which has been read up to there.
template <typename T, typename C>
void store_block(T* out, const C* values, int64_t first, int64_t filled) {
  if (filled == kBlock) {
    for (int64_t l = 0; l < kBlock; l += kLanes) {
      lanes_t<T> lanes;
      memcpy(&lanes, values + l, sizeof(lanes));
      store_lanes(out + first + l, lanes);
    }
    return;
  }
  for (int64_t l = 0; l < filled; ++l) store_as(out[first + l], values[l]);
}

template <typename T, typename C>
void store_scaled(C* e, T* out, int64_t count, C factor) {
  if constexpr (sizeof(T) == sizeof(C)) {
    for (int64_t j = 0; j < count; ++j) e[j] *= factor;
  } else {
    int64_t j = 0;
    for (lanes_t<T> value; j + kLanes <= count; j += kLanes) {
      load_lanes(e + j, value);
      value *= factor;
      store_lanes(out + j, value);
    }
    for (; j < count; ++j) store_as(out[j], e[j] * factor);
  }
}

// Competitors that are not below the positive, and the best of them.
template <typename C>
class Ranking {
 public:
  Ranking(int64_t rank_, int64_t argmax_, C best_, bool own_) : rank(rank_), argmax(argmax_), best(best_), own(own_) {}

  int64_t rank, argmax;
  C best;
  bool own;  // the positive is still the best

  void add(const C* sim, int64_t count, C pos_sim, int64_t first_column) {
    if (pos_sim != pos_sim || pos_sim == -C(INFINITY)) {  // what a masked column would not lose to
      for (int64_t j = 0; j < count; ++j) rank += sim[j] != -C(INFINITY);
      return;
    }
    for (int64_t begin = 0; begin < count; begin += kRankBlock) {
      const int64_t left = count - begin, width = left < kRankBlock ? left : kRankBlock;
      lanes_t<C> value, top = lanes_t<C>{} - C(INFINITY);
      auto below = value < top;  // -1 in every lane whose similarity loses to the positive
      below = below ^ below;
      int64_t l = 0, losers = 0;
      for (; l + kLanes <= width; l += kLanes) {
        load_lanes(sim + begin + l, value);
        below += value < pos_sim;
        top = value > top ? value : top;
      }
      C largest = -C(INFINITY);
      for (int64_t m = 0; m < kLanes; ++m) {
        losers -= below[m];
        largest = top[m] > largest ? top[m] : largest;
      }
      for (; l < width; ++l) {
        losers += inbatch_beats(sim[begin + l], pos_sim) ? 0 : 1;
        largest = sim[begin + l] > largest ? sim[begin + l] : largest;
      }
      const int64_t beaten = width - losers;
      rank += beaten;
      if (beaten != 0 && largest >= best) take(sim + begin, width, largest, first_column + begin);
    }
  }

 private:
  void take(const C* sim, int64_t width, C largest, int64_t first_column) {
    int64_t place = 0;
    while (place < width && sim[place] != largest) ++place;
    place += first_column;
    // Hard negatives come with the first tile but have the highest indices: a later, equal column wins.
    if (largest == best && !own && argmax < place) return;
    best = largest;
    argmax = place;
    own = false;
  }
};

template <typename T>
class Rows {
 public:
  using C = compute_t<T>;
  explicit Rows(const InbatchRowsArgs& args)
      : args_(args), scale_(*static_cast<const C*>(args.scale)), margin_(static_cast<C>(args.margin)) {}

  void operator()(int64_t i) const {
    const bool first = (args_.passes & kInbatchFirst) != 0;
    C* sim = static_cast<C*>(args_.sim) + i * args_.num_columns;
    const int64_t target = args_.targets != nullptr ? args_.targets[i] : args_.first_target + i;
    const int64_t local = target - args_.first_column;
    const bool here = local >= 0 && local < args_.num_columns;
    const int64_t num_hard = first ? args_.num_hard : 0;
    C* hard = static_cast<C*>(args_.hard_sim) + i * args_.num_hard;
    // The positive leaves the row, so that no loop below has to look for it.
    if (here) at(args_.pos_sim, i) = sim[local];
    const C pos_sim = at(args_.pos_sim, i);
    mask(i, sim, hard, num_hard);
    if (here) sim[local] = -C(INFINITY);
    const C pos_shifted = pos_sim - margin_;
    const C pos_logit = scale_ * pos_shifted;

    if (args_.passes & kInbatchRanks) ranks(i, sim, hard, num_hard, target, pos_sim, first);
    const bool grads = (args_.passes & kInbatchGrads) != 0;
    const bool fused = grads && (args_.passes & kInbatchStats) && args_.col_lse == nullptr;
    ExpSum<C> own{};  // of a fused row: its moment
    if (args_.passes & kInbatchStats) {
      C maximum = first ? -C(INFINITY) : at(args_.row_max, i);
      C rest = first ? C(0) : at(args_.row_rest, i);
      const C before = maximum;
      const auto raise = [&maximum](C z) { maximum = z > maximum ? z : maximum; };
      raise(largest_logit(sim, args_.num_columns, scale_));
      for (int64_t h = 0; h < num_hard; ++h) raise(inbatch_logit(scale_, hard[h]));
      if (here) raise(pos_logit);
      rest *= inbatch_weight(before, maximum);
      own = exp_sum(fused, args_.grad_scale != nullptr, sim, args_.num_columns, scale_, maximum, pos_shifted);
      rest += own.sum;
      for (int64_t h = 0; h < num_hard; ++h) rest += inbatch_weight(inbatch_logit(scale_, hard[h]), maximum);
      at(args_.row_max, i) = maximum;
      at(args_.row_rest, i) = rest;
    }
    if (!(args_.passes & (kInbatchFinish | kInbatchGrads))) return;
    const C maximum = at(args_.row_max, i), rest = at(args_.row_rest, i);
    const InbatchRow<C> row = inbatch_row(maximum, rest, pos_logit);
    if (args_.passes & kInbatchFinish) {
      at(args_.lse, i) = row.lse;
      at(args_.pos_logit, i) = pos_logit;
      at(args_.loss, i) = row.loss;
    }
    if (!grads) return;
    const C coef = at(args_.coef, i);
    const C out_scale = args_.scaled ? scale_ : C(1);
    const C weight = coef * row.inverse_sum;
    T* out = reinterpret_cast<T*>(sim);
    C moment;
    if (fused) {
      moment = weight * own.moment;
      store_scaled(sim, out, args_.num_columns, weight * out_scale);
    } else {
      moment = columns_too(sim, out, maximum, weight, pos_shifted, out_scale);
    }
    for (int64_t h = 0; h < num_hard; ++h) {
      const C d = weight * inbatch_weight(inbatch_logit(scale_, hard[h]), maximum);
      if (d != C(0)) moment += d * (hard[h] - pos_shifted);
      hard[h] = d * out_scale;
    }
    if (here) {
      const C extra = args_.pos_extra != nullptr ? at(args_.pos_extra, i) : C(0);
      store_as(out[local], (extra - coef * (rest * row.inverse_sum)) * out_scale);
      moment += extra * pos_shifted;
    }
    if (args_.grad_scale != nullptr) at(args_.grad_scale, i) = (first ? C(0) : at(args_.grad_scale, i)) + moment;
  }

 private:
  static C& at(void* values, int64_t i) { return static_cast<C*>(values)[i]; }
  static C at(const void* values, int64_t i) { return static_cast<const C*>(values)[i]; }

  void mask(int64_t i, C* sim, C* hard, int64_t num_hard) const {
    const int64_t row_id = args_.row_ids != nullptr ? args_.row_ids[i] : -1;
    if (args_.col_ids != nullptr) {
      for (int64_t j = 0; j < args_.num_columns; ++j) {
        sim[j] = inbatch_masked(row_id, args_.col_ids[j], kInbatchAbsent) ? -C(INFINITY) : sim[j];
      }
    }
    if (args_.hard_ids == nullptr) return;
    for (int64_t h = 0; h < num_hard; ++h) {
      if (inbatch_hard_masked(row_id, args_.hard_ids[i * args_.num_hard + h])) hard[h] = -C(INFINITY);
    }
  }

  void ranks(int64_t i, const C* sim, const C* hard, int64_t num_hard, int64_t target, C pos_sim, bool first) const {
    Ranking<C> ranking(1, target, pos_sim, true);
    if (!first) ranking = {args_.rank[i], args_.argmax[i], at(args_.best_sim, i), args_.argmax[i] == target};
    ranking.add(sim, args_.num_columns, pos_sim, args_.first_column);
    if (num_hard > 0) ranking.add(hard, num_hard, pos_sim, args_.num_all);
    at(args_.best_sim, i) = ranking.best;
    args_.rank[i] = ranking.rank;
    args_.argmax[i] = ranking.argmax;
  }

  // Gradients of a tile from the row's final statistics, with the columns' softmax where there is one.
  C columns_too(C* sim, T* out, C maximum, C weight, C origin, C out_scale) const {
    C moment[kBlock] = {};
    const C* col_lse = static_cast<const C*>(args_.col_lse);
    const C* col_coef = static_cast<const C*>(args_.col_coef);
    for_blocks(static_cast<const C*>(sim), args_.num_columns, [&](const C* s, int64_t first, int64_t filled) {
      C d[kBlock];
      block_weights(s, finite_or_zero(maximum), d);
      for (int64_t l = 0; l < kBlock; ++l) {
        d[l] *= weight;
        moment[l] += d[l] == C(0) ? C(0) : d[l] * (s[l] - origin);
      }
      if (col_lse != nullptr) {
        C lse[kBlock] = {}, coef[kBlock] = {};
        memcpy(lse, col_lse + first, static_cast<size_t>(filled) * sizeof(C));
        memcpy(coef, col_coef + first, static_cast<size_t>(filled) * sizeof(C));
        for (int64_t l = 0; l < kBlock; ++l) {
          const C q = coef[l] * inbatch_weight(inbatch_logit(scale_, s[l]), lse[l]);
          moment[l] += q == C(0) ? C(0) : q * s[l];
          d[l] += q;
        }
      }
      for (int64_t l = 0; l < kBlock; ++l) d[l] *= out_scale;
      store_block(out, d, first, filled);
    });
    return sum_of(moment);
  }

  void block_weights(const C* s, C shift, C* e) const {
    lanes_t<C> in, out;
    for (int64_t l = 0; l < kBlock; l += kLanes) {
      load_lanes(s + l, in);
      scale_ > C(0) ? weigh<true>(in, scale_, shift, out) : weigh<false>(in, scale_, shift, out);
      store_lanes(e + l, out);
    }
  }

  const InbatchRowsArgs& args_;
  C scale_, margin_;
};

}  // namespace

void inbatch_softmax_rows_cpu_isa(const InbatchRowsArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    const Rows<typename decltype(tag)::type> rows(args);
    const int64_t per_chunk = kElementsPerChunk / (args.num_columns + 1) + 1;
    parallel_chunks(ceil_div(args.num_rows, per_chunk), max_workers(), [&](int64_t chunk, int) {
      const int64_t end = (chunk + 1) * per_chunk < args.num_rows ? (chunk + 1) * per_chunk : args.num_rows;
      for (int64_t i = chunk * per_chunk; i < end; ++i) rows(i);
    });
  });
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
