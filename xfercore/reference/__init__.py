"""Every op again in plain PyTorch: the definition, the test oracle and the benchmark baseline."""

from xfercore.reference.gated_mix import gated_mix
from xfercore.reference.grad_reverse import grad_reverse
from xfercore.reference.gradient_surgery import (
    agem_coef,
    combine_gradients,
    gradnorm_stats,
    gradvac_coef,
    mgda_coef,
    pcgrad_coef,
    task_gram,
)
from xfercore.reference.hard_concrete import hard_concrete, hard_concrete_eval
from xfercore.reference.inbatch_softmax_loss import InBatchSoftmax, inbatch_softmax_loss
from xfercore.reference.linear_grad_reverse import linear_grad_reverse
from xfercore.reference.moe_mlp_mix import moe_mlp_mix
from xfercore.reference.topk_similarity import topk_similarity

__all__ = [
    "InBatchSoftmax",
    "agem_coef",
    "combine_gradients",
    "gated_mix",
    "grad_reverse",
    "gradnorm_stats",
    "gradvac_coef",
    "hard_concrete",
    "hard_concrete_eval",
    "inbatch_softmax_loss",
    "linear_grad_reverse",
    "mgda_coef",
    "moe_mlp_mix",
    "pcgrad_coef",
    "task_gram",
    "topk_similarity",
]
