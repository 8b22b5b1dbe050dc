// Maximum and sum of exponentials of a row, from which its softmax and log-softmax follow element by element.
#pragma once

#include "common/dtype.h"
#include "common/vector_math.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

template <typename C>
struct RowNormaliser {
  C maximum;
  C inverse_sum;
  C log_sum;

  XFER_HD C probability(C logit) const { return vector_exp(logit - maximum) * inverse_sum; }
  XFER_HD C log_probability(C logit) const { return (logit - maximum) - log_sum; }
};

template <typename T>
XFER_HD RowNormaliser<compute_t<T>> normalise_row(const T* logits, int64_t count) {
  using C = compute_t<T>;
  C maximum = -C(INFINITY);
  for (int64_t k = 0; k < count; ++k) {
    const C value = load_as(logits[k]);
    maximum = value > maximum ? value : maximum;
  }
  // A NaN is never larger, so it is left to the sum, which it turns into NaN. All -inf: NaN, as in torch.softmax.
  C sum = C(0);
  for (int64_t k = 0; k < count; ++k) sum += vector_exp(C(load_as(logits[k])) - maximum);
  return {maximum, C(1) / sum, std::log(sum)};
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
