"""A small model with three tasks, and gradient surgery written out vector by vector."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from xfercore.reference.gradient_surgery import surgery_order
from xferkit.surgery import MGDA, FixedTarget, GradNorm, GradVac, PCGrad, Sum

TASKS = ("de", "fr", "es")
METHODS = {
    "GradVac": lambda *a, **k: GradVac(*a, **k),
    "GradVac raw": lambda *a, **k: GradVac(*a, ema="raw", **k),
    "PCGrad": PCGrad,
    "FixedTarget": lambda *a, **k: FixedTarget(*a, target=0.3, **k),
    "MGDA": MGDA,
    "GradNorm": GradNorm,
}
ALL = {**METHODS, "Sum": Sum}


@pytest.fixture
def one_thread():
    """For tensors of a few numbers: threads would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ToyModel(nn.Module):
    """A shared encoder of odd sizes, and a head for each task."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.LayerNorm(6))
        self.heads = nn.ModuleDict({task: nn.Linear(6, 3) for task in TASKS})
        self.to(dtype)

    def losses(self, step: int = 0, tasks=TASKS, separate: bool = False) -> dict[str, Tensor]:
        """Losses that pull apart, on data drawn from the step; from one graph, or from one each."""
        generator = torch.Generator().manual_seed(step)
        dtype = self.encoder[0].weight.dtype
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64).to(dtype)
        shared = None if separate else self.encoder(x)
        found = {}
        for task in TASKS:
            target = torch.randint(0, 3, (8,), generator=generator)
            if task in tasks:
                logits = self.heads[task](self.encoder(x) if separate else shared)
                found[task] = nn.functional.cross_entropy(logits, target)
        return found


def gradients(model: ToyModel, losses: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Each task's gradients of the encoder by name."""
    names, parameters = zip(*model.encoder.named_parameters(), strict=True)
    return {
        task: dict(
            zip(
                names,
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True),
                strict=True,
            )
        )
        for task, loss in losses.items()
    }


def vectors(found: dict[str, dict[str, Tensor]], names: list[str]) -> list[Tensor]:
    """The tasks' gradients of a group of parameters, joined."""
    return [torch.cat([grads[name].flatten().double() for name in names]) for grads in found.values()]


def vaccinated(
    raw: list[Tensor],
    order: Tensor,
    ema: Tensor,
    *,
    beta: float = 0.0,
    target: float | None = None,
    apply_to: list[bool] | None = None,
) -> Tensor:
    """The combined gradient of a group by Algorithm 2, on vectors; ``ema [T, T]`` is updated in place."""
    changed = [g.clone() for g in raw]
    for i in range(len(raw)):
        if apply_to is not None and not apply_to[i]:
            continue
        for j in order[i].tolist():
            if j == i:
                continue
            norm_i, norm_j = changed[i].norm().item(), raw[j].norm().item()
            if norm_i == 0 or norm_j == 0:
                continue
            phi = (changed[i] @ raw[j]).item() / norm_i / norm_j
            hat = float(ema[i, j]) if target is None else target
            if phi < hat:
                up = norm_i * (hat * math.sqrt(1 - phi**2) - phi * math.sqrt(1 - hat**2))
                changed[i] = changed[i] + up / (norm_j * math.sqrt(1 - hat**2)) * raw[j]
            ema[i, j] = (1 - beta) * ema[i, j] + beta * phi
    return torch.stack(changed).sum(0)


def orders(seed: int, step: int, num_groups: int, num_tasks: int) -> Tensor:
    return surgery_order(torch.tensor([seed, step]), num_groups, num_tasks)


def encoder_gradient(model: ToyModel, names: list[str]) -> Tensor:
    of = dict(model.encoder.named_parameters())
    return torch.cat([of[name].grad.flatten().double() for name in names])


def grads_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same(got: dict, wanted: dict, **tolerance) -> None:
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, wanted[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


class NoVmap(torch.autograd.Function):
    """The identity, by a backward pass that vmap cannot look into."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.tensor(grad.tolist(), dtype=grad.dtype)
