"""Fused PyTorch operators for transfer and multi-task learning.

Every op is ``torch.ops.xfercore.<op>`` with CPU and CUDA kernels and has a plain-PyTorch definition of the same
signature in :mod:`xfercore.reference`.
"""

from xfercore._build import build_info
from xfercore.ops import (
    agem_coef,
    combine_gradients,
    gated_mix,
    grad_reverse,
    gradnorm_stats,
    gradvac_coef,
    hard_concrete,
    hard_concrete_eval,
    inbatch_softmax_loss,
    linear_grad_reverse,
    mgda_coef,
    moe_mlp_mix,
    pcgrad_coef,
    task_gram,
    topk_similarity,
)
from xfercore.schedules import GradReverseSchedule
from xfercore.status import device_status

__all__ = [
    "GradReverseSchedule",
    "agem_coef",
    "build_info",
    "combine_gradients",
    "device_status",
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
__version__ = "0.1.0"
