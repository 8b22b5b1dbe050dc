// One C entry per launcher: arguments as a pointer to the struct, errors as text.
#include <exception>
#include <string>

#include "ops/gated_mix/gated_mix.h"
#include "ops/grad_reverse/grad_reverse.h"
#include "ops/gradient_surgery/gradient_surgery_gram.cuh"
#include "ops/hard_concrete/hard_concrete.h"
#include "ops/inbatch_softmax_loss/inbatch_softmax_loss.h"
#include "ops/moe_mlp_mix/moe_mlp_mix_backward.cuh"
#include "ops/topk_similarity/topk_similarity.h"
#include "simt_planted.h"

namespace {

std::string message;

template <typename F>
const char* guarded(const F& f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

#define SIMT_ENTRY(launcher, Args)                         \
  const char* launcher(const Args* args) {                 \
    return guarded([&] { xfer::launcher##_cuda(*args); }); \
  }                                                        \
  uint64_t launcher##_args_size() { return sizeof(Args); }

extern "C" {

SIMT_ENTRY(grad_reverse_backward, xfer::GradReverseBackwardArgs)
SIMT_ENTRY(gated_mix_forward, xfer::GatedMixForwardArgs)
SIMT_ENTRY(gated_mix_backward, xfer::GatedMixBackwardArgs)
SIMT_ENTRY(moe_mlp_mix_forward, xfer::MoeMlpMixForwardArgs)
SIMT_ENTRY(moe_mlp_mix_backward, xfer::MoeMlpMixBackwardArgs)
bool moe_mlp_mix_supported(const xfer::MoeMlpMixShape* shape, int32_t dtype) {
  return xfer::moe_mlp_mix_supported_cuda(*shape, static_cast<xfer::DType>(dtype));
}
int moe_mlp_mix_tile_rows(const xfer::MoeMlpMixShape* shape, int32_t dtype, bool backward) {
  return xfer::moe_tile_rows(*shape, static_cast<xfer::DType>(dtype), backward);
}
void moe_mlp_mix_backward_limits(int64_t chunk_bytes, int64_t slices) {
  xfer::moe_backward_limits() =
      chunk_bytes > 0 ? xfer::MoeBackwardLimits{chunk_bytes, slices} : xfer::MoeBackwardLimits{};
}
int64_t moe_mlp_mix_backward_workspace_bytes(const xfer::MoeMlpMixShape* shape, int32_t dtype) {
  return xfer::moe_mlp_mix_backward_workspace_bytes_cuda(*shape, static_cast<xfer::DType>(dtype));
}
SIMT_ENTRY(hard_concrete_forward, xfer::HardConcreteForwardArgs)
SIMT_ENTRY(hard_concrete_backward, xfer::HardConcreteBackwardArgs)
SIMT_ENTRY(hard_concrete_curves, xfer::HardConcreteCurvesArgs)
SIMT_ENTRY(task_gram, xfer::TaskGramArgs)
SIMT_ENTRY(combine_gradients, xfer::CombineGradientsArgs)
SIMT_ENTRY(gradvac_coef, xfer::GradVacCoefArgs)
SIMT_ENTRY(mgda_coef, xfer::MgdaCoefArgs)
SIMT_ENTRY(gradnorm_stats, xfer::GradNormStatsArgs)
SIMT_ENTRY(agem_coef, xfer::AgemCoefArgs)
int64_t task_gram_workspace_bytes(const xfer::TaskGramArgs* args) {
  return xfer::task_gram_workspace_bytes_cuda(*args);
}
void task_gram_chunk_unit(int64_t columns) {
  xfer::gram_limits() = xfer::GramLimits{};
  if (columns > 0) xfer::gram_limits().chunk_unit = columns;
}
SIMT_ENTRY(inbatch_softmax_rows, xfer::InbatchRowsArgs)
SIMT_ENTRY(inbatch_softmax_columns, xfer::InbatchColumnsArgs)
SIMT_ENTRY(inbatch_hard_sims, xfer::InbatchHardSimsArgs)
SIMT_ENTRY(inbatch_hard_grads, xfer::InbatchHardGradsArgs)
SIMT_ENTRY(topk_similarity_tile, xfer::TopkSimilarityArgs)
SIMT_ENTRY(planted, xfer::PlantedArgs)

}  // extern "C"
