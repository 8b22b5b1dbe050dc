"""The public functions, one module an op."""

from xfercore.ops.gated_mix import gated_mix
from xfercore.ops.grad_reverse import grad_reverse
from xfercore.ops.linear_grad_reverse import linear_grad_reverse
from xfercore.ops.moe_mlp_mix import moe_mlp_mix

__all__ = ["gated_mix", "grad_reverse", "linear_grad_reverse", "moe_mlp_mix"]
