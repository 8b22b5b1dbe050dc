"""The public functions, one module an op, or a family of ops that work on each other's results."""

from xfercore.ops.gated_mix import gated_mix
from xfercore.ops.grad_reverse import grad_reverse
from xfercore.ops.gradient_surgery import agem_coef, gradnorm_stats, gradvac_coef, mgda_coef, pcgrad_coef
from xfercore.ops.hard_concrete import hard_concrete, hard_concrete_eval
from xfercore.ops.inbatch_softmax_loss import inbatch_softmax_loss
from xfercore.ops.linear_grad_reverse import linear_grad_reverse
from xfercore.ops.moe_mlp_mix import moe_mlp_mix
from xfercore.ops.task_gradients import combine_gradients, task_gram
from xfercore.ops.topk_similarity import topk_similarity

__all__ = [
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
