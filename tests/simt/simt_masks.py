"""Arguments of the Hard-Concrete kernels, called as the bindings do."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from simt_harness import DTYPES, Arena, call
from torch import Tensor

_P, _I64 = ctypes.c_void_p, ctypes.c_int64


class HardConcreteGates(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("num_gates", _I64),
        ("log_alpha", _P),
        ("seed_offset", _P),
        ("beta", ctypes.c_double),
        ("gamma", ctypes.c_double),
        ("zeta", ctypes.c_double),
    ]


class HardConcreteForwardArgs(ctypes.Structure):
    _fields_ = [
        ("gates", HardConcreteGates),
        ("outer", _I64),
        ("inner", _I64),
        ("theta", _P),
        ("out", _P),
        ("size", ctypes.c_double),
        ("penalty", _P),
        ("workspace", _P),
        ("stream", _P),
    ]


class HardConcreteBackwardArgs(ctypes.Structure):
    _fields_ = [
        ("gates", HardConcreteGates),
        ("outer", _I64),
        ("inner", _I64),
        ("theta", _P),
        ("size", ctypes.c_double),
        ("grad_out", _P),
        ("grad_penalty", _P),
        ("grad_log_alpha", _P),
        ("grad_theta", _P),
        ("workspace", _P),
        ("stream", _P),
    ]


class HardConcreteCurvesArgs(ctypes.Structure):
    _fields_ = [("gates", HardConcreteGates), ("curves", _P), ("stream", _P)]


class Masks:
    """One set of gates on guarded buffers; theta is ``[outer, gates, inner]`` or None."""

    def __init__(
        self,
        log_alpha: Tensor,
        theta: Tensor | None = None,
        seed_offset: Tensor | None = None,
        *,
        beta: float = 2 / 3,
        layout: int = 0,
        seed: int = 0,
    ) -> None:
        self.log_alpha, self.theta, self.seed_offset = log_alpha, theta, seed_offset
        self.beta, self.layout, self.seed = beta, layout, seed
        self.outer, _, self.inner = (1, 0, 1) if theta is None else theta.shape
        self.dtype = torch.float32 if theta is None else theta.dtype
        self.shape = log_alpha.shape if theta is None else theta.shape

    def _gates(self, arena: Arena) -> HardConcreteGates:
        seed_offset = arena.input("seed_offset", self.seed_offset)
        log_alpha = arena.input("log_alpha", self.log_alpha)
        numbers = (self.beta, -0.1, 1.1)
        return HardConcreteGates(DTYPES[self.dtype], self.log_alpha.numel(), log_alpha, seed_offset, *numbers)

    def _workspace(self, arena: Arena) -> int:
        # hard_concrete_workspace_bytes, which bindings ask for.
        gates = self.log_alpha.numel()
        size = max(math.ceil(gates / 65536), 1024) * 8
        if (self.outer, self.inner) != (1, 1):
            q = min(65536, max(self.inner, 1))
            k = min(max(65536 // q, 1), max(gates, 1))
            r = min(max(65536 // (q * k), 1), max(self.outer, 1))
            parts = min(math.ceil(self.outer / r), 64) * math.ceil(self.inner / q)
            size += 8 * gates * (3 + parts) + 6 * 64
        return arena.output("workspace", (size,), torch.uint8)

    def forward(self) -> tuple[Tensor, Tensor]:
        arena = Arena(self.layout)
        args = HardConcreteForwardArgs(
            gates=self._gates(arena),
            outer=self.outer,
            inner=self.inner,
            theta=arena.input("theta", self.theta),
            out=arena.output("out", self.shape, self.dtype),
            size=float(self.outer * self.inner),
            penalty=None if self.seed_offset is None else arena.output("penalty", (), torch.float32),
            workspace=self._workspace(arena),
        )
        call("hard_concrete_forward", args, self.seed)
        penalty = arena.outputs.get("penalty", torch.zeros(()))
        return arena.outputs["out"].clone(), penalty.clone()

    def backward(self, grad_out: Tensor | None, grad_penalty: Tensor | None) -> tuple[Tensor, Tensor | None]:
        arena = Arena(self.layout)
        args = HardConcreteBackwardArgs(
            gates=self._gates(arena),
            outer=self.outer,
            inner=self.inner,
            theta=arena.input("theta", self.theta),
            size=float(self.outer * self.inner),
            grad_out=arena.input("grad_out", grad_out),
            grad_penalty=arena.input("grad_penalty", grad_penalty),
            grad_log_alpha=arena.output("grad_log_alpha", self.log_alpha.shape, torch.float32),
            grad_theta=None if self.theta is None else arena.output("grad_theta", self.shape, self.dtype),
            workspace=self._workspace(arena),
        )
        call("hard_concrete_backward", args, self.seed)
        grad_theta = arena.outputs.get("grad_theta")
        return arena.outputs["grad_log_alpha"].clone(), None if grad_theta is None else grad_theta.clone()

    def curves(self) -> Tensor:
        arena = Arena(self.layout)
        args: Any = HardConcreteCurvesArgs(
            self._gates(arena), arena.output("curves", (6, self.log_alpha.numel()), torch.float32)
        )
        call("hard_concrete_curves", args, self.seed)
        return arena.outputs["curves"].clone()
