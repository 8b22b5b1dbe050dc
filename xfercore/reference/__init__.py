"""Every op again in plain PyTorch: the definition, the test oracle and the benchmark baseline."""

from xfercore.reference.gated_mix import gated_mix
from xfercore.reference.grad_reverse import grad_reverse
from xfercore.reference.linear_grad_reverse import linear_grad_reverse
from xfercore.reference.moe_mlp_mix import moe_mlp_mix

__all__ = ["gated_mix", "grad_reverse", "linear_grad_reverse", "moe_mlp_mix"]
