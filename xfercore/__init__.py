"""Fused PyTorch operators for transfer and multi-task learning.

Every op is ``torch.ops.xfercore.<op>`` with CPU and CUDA kernels and has a plain-PyTorch definition of the same
signature in :mod:`xfercore.reference`.
"""

from xfercore._build import build_info
from xfercore.ops import gated_mix, grad_reverse, linear_grad_reverse, moe_mlp_mix
from xfercore.schedules import GradReverseSchedule
from xfercore.status import device_status

__all__ = [
    "GradReverseSchedule",
    "build_info",
    "device_status",
    "gated_mix",
    "grad_reverse",
    "linear_grad_reverse",
    "moe_mlp_mix",
]
__version__ = "0.1.0"
