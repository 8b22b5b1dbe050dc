"""``moe_mlp_mix``: gate, K two-layer experts for every token, and their mix, against how people write it.

The reference draws its dropout masks from an emulated counter generator, which no one would train with, so
with dropout its layout runs on ``torch.nn.functional.dropout`` here. The other baseline is a ``ModuleList``
of experts. FLOPs at the floor are those of the matrix products: forward once, backward twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

import xfercore
from benchmarks.harness import Bench, Candidate, Case, Options, Work, bind, make_variants
from xfercore import reference

__all__ = ["batched_mixture", "cases"]

_PASSES = ("forward", "forward_backward")
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "log_softmax": lambda z: torch.log_softmax(z, dim=-1),
}
_MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "log_softmax": lambda: nn.LogSoftmax(dim=-1),
}


def _mix(gate_logits: Tensor, y: Tensor, mix: str, dim: int) -> Tensor:
    """Mixes ``y`` over its expert dimension ``dim``: ``[K, N, D]`` for 0, ``[N, K, D]`` for 1."""
    gate = gate_logits.t().unsqueeze(-1) if dim == 0 else gate_logits.unsqueeze(-1)
    if mix == "logsumexp":
        return torch.logsumexp(torch.log_softmax(gate, dim=dim) + y, dim=dim)
    return (torch.softmax(gate, dim=dim) * y).sum(dim)


def batched_mixture(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    act1: str,
    act2: str,
    mix: str,
    dropout_p: float,
    detach_gate_input: bool = False,
    seed_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The op on batched products and torch's own dropout, whose generator takes no ``seed_offset``."""
    del seed_offset
    gate_logits = linear(x.detach() if detach_gate_input else x, gate_weight, gate_bias)
    per_expert = dropout(x.expand(w1.shape[0], *x.shape), dropout_p)
    hidden = _FUNCTIONS[act1](torch.baddbmm(b1.unsqueeze(1), per_expert, w1.transpose(1, 2)))
    z = torch.baddbmm(b2.unsqueeze(1), dropout(hidden, dropout_p), w2.transpose(1, 2))
    return _mix(gate_logits, _FUNCTIONS[act2](z), mix, dim=0), gate_logits


class _ExpertLoop(nn.Module):
    """As users write it: a ModuleList of experts, their outputs stacked and weighted by the gate."""

    def __init__(self, weights: list[Tensor], act1: str, act2: str, mix: str, p: float) -> None:
        super().__init__()
        self.mix = mix
        wg, bg, w1, b1, w2, b2 = weights
        self.gate = self._linear(wg, bg)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(p) if p else nn.Identity(),
                self._linear(w1[k], b1[k]),
                _MODULES[act1](),
                nn.Dropout(p) if p else nn.Identity(),
                self._linear(w2[k], b2[k]),
                _MODULES[act2](),
            )
            for k in range(w1.shape[0])
        )

    @staticmethod
    def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate_logits = self.gate(x)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return _mix(gate_logits, outputs, self.mix, dim=1), gate_logits


def _setup(case: Case) -> Bench:
    n, k, d, h, out = (int(case.shape[key]) for key in ("N", "K", "d", "h", "D"))
    act1, act2, mix, p = (case.shape[key] for key in ("act1", "act2", "mix", "p"))
    act1, act2, mix, p = str(act1), str(act2), str(mix), float(p)
    device, dtype = case.options.device, case.options.dtype

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=device, dtype=dtype) * scale).requires_grad_()

    x = tensor(n, d)
    weights = [
        tensor(k, d, scale=d**-0.5),
        tensor(k, scale=0.1),
        tensor(k, h, d, scale=d**-0.5),
        tensor(k, h, scale=0.1),
        tensor(k, out, h, scale=h**-0.5),
        tensor(k, out, scale=0.1),
    ]
    leaves = [x, *weights]
    cotangents = [torch.randn(n, width, device=device, dtype=dtype) for width in (out, k)]
    settings: dict[str, Any] = {"act1": act1, "act2": act2, "mix": mix, "dropout_p": p}
    if p:
        settings["seed_offset"] = torch.tensor([20, 0], device=device)

    def ours(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return xfercore.moe_mlp_mix(*tensors, **settings)

    def plain(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return reference.moe_mlp_mix(*tensors, **settings)

    loop = _ExpertLoop(weights, act1, act2, mix, p)
    same = p == 0.0  # with dropout only ours and the oracle share their masks
    batched = plain if same else functools.partial(batched_mixture, **settings)
    baselines = {
        "reference" if same else "reference_layout": Candidate(batched, leaves, leaves, same),
        "expert_loop": Candidate(loop, [x], [x, *loop.parameters()], same),
    }
    double = [t.detach().double().requires_grad_() for t in leaves]
    return Bench(
        make_variants(case, Candidate(ours, leaves, leaves), baselines, cotangents),
        # Outputs and the gradient of x: the loop holds the weights in other tensors.
        oracle=lambda: bind(Candidate(plain, double, double[:1]), case.passes, cotangents)(),
    )


def _work(case_shape: dict[str, Any], passes: str, itemsize: int) -> Work:
    n, k, d, h, out = (case_shape[key] for key in ("N", "K", "d", "h", "D"))
    products = 2.0 * n * k * (d * h + h * out) + 2.0 * n * k * d
    weights = k * (d + 1 + h * d + h + out * h + out)
    forward = n * d + weights + n * (out + k)
    backward = n * d + weights + n * (out + k) + n * d + weights
    both = passes == "forward_backward"
    return Work(
        flops=products * (3 if both else 1),
        bytes=float((forward + (backward if both else 0)) * itemsize),
        matmul=(n, d, k * h),
    )


def cases(options: Options) -> list[Case]:
    """Rows: the target shape without and with dropout, a MAN-MoE batch, and its label predictor."""
    n, width = (512, 32) if options.quick else (65536 if options.device == "cuda" else 32768, 128)
    large = {"N": n, "K": 8, "d": width, "h": width, "D": width}
    batch = {"N": 208, "K": 13, "d": 64, "h": 32, "D": 32}
    predictor = {"N": 208, "K": 13, "d": 96, "h": 64, "D": 6}
    tanh = {"act1": "relu", "act2": "tanh", "mix": "sum"}
    label = {"act1": "relu", "act2": "log_softmax", "mix": "logsumexp"}
    shapes: list[dict[str, Any]] = [
        {**large, **tanh, "p": 0.0},
        {**large, **tanh, "p": 0.5},
        {**batch, **tanh, "p": 0.0},
        {**batch, **tanh, "p": 0.5},
        {**predictor, **label, "p": 0.0},
    ]
    return [
        Case(
            op="moe_mlp_mix",
            passes=passes,
            shape=shape,
            options=options,
            setup=_setup,
            work=_work(shape, passes, options.dtype.itemsize),
        )
        for shape in shapes
        for passes in _PASSES
    ]
