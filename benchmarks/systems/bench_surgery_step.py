"""A training step of a Transformer encoder with eight tasks: what gradient surgery costs on top of the plain sum.

Ten million shared parameters, a head a task, AdamW. ``shared``: one batch, whose features all tasks read, so that
everyone who wants the tasks' gradients goes backward through the encoder once a task. ``own``: a batch for each task,
as with languages, where these passes are no more than the sum's own; only surgery comes on top.

- ``surgery``: ours. ``sum``: no competitor but the step without surgery.
- ``torchjd``: ``mtl_backward`` as it comes, all tasks in one vectorised pass, and ``jac_to_grad``.
- ``torchjd.best``: one task at a time, Gram matrices without joining the Jacobians.
- ``torchjd.engine`` (``shared``): its Gram matrix without Jacobians, then a pass with the weighted losses.
- ``torchjd.by_task`` (``own``): gradients of each task by `torch.autograd.grad`, stacked by hand for ``jac_to_grad``:
  spares it the passes of every task through all batches.

TorchJD's order of visits is another, so gradients are compared with two tasks, where there is but one (see the tests).
Memory is the peak of a new model's first two steps, so that what is kept from step to step counts: the gradients of all
tasks are one block that ours keeps, and are made anew by TorchJD in each step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import record_function

from benchmarks.harness import Bench, Case, Options, Variant
from benchmarks.measures import Run, peak_memory
from benchmarks.systems.steps import Groups, profile_step

__all__ = ["cases"]

_VOCABULARY, _LENGTH, _TAGS = 1000, 16, 17
_ROW_SECONDS = 30.0

_GROUPS: Groups = (
    ("surgery (xfercore ops)", ("xfercore::",)),
    ("autograd engine", ("autograd::engine", "Backward", "AccumulateGrad")),
    ("optimiser", ("adam", "Optimizer")),
    ("attention", ("scaled_dot_product",)),
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "linear")),
    ("norms, activations, losses", ("layer_norm", "relu", "softmax", "nll", "embedding")),
    ("Python between operators", ("phase:",)),
)


class _Encoder(nn.Module):
    def __init__(self, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Features ``[batch, length, dim]``."""
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Stepper:
    """A model and an optimiser of its own, trained one step at a call; ``kind`` names the variant."""

    def __init__(self, case: Case, kind: str) -> None:
        tasks, dim, layers, batch = (int(case.shape[key]) for key in ("tasks", "dim", "layers", "batch"))
        device = case.options.device
        torch.manual_seed(0)
        self.kind, self.method = kind, str(case.shape["method"])
        self.encoder = _Encoder(dim, layers, max(1, dim // 64)).to(device)
        self.heads = nn.ModuleList(nn.Linear(dim, _TAGS) for _ in range(tasks)).to(device)
        self.names = [f"task{t}" for t in range(tasks)]
        batches = tasks if case.shape["data"] == "own" else 1
        self.ids = [
            torch.randint(0, _VOCABULARY, (batch, _LENGTH)).to(device).clone() for _ in range(batches)
        ]
        self.targets = [torch.randint(0, _TAGS, (batch * _LENGTH,)).to(device) for _ in range(tasks)]
        parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        self.made: Any = None
        self.engine: Any = None

    def losses(self) -> tuple[list[Tensor], list[Tensor]]:
        """The features of each batch, and the loss of each task."""
        features = [self.encoder(ids) for ids in self.ids]
        losses = []
        for t, (head, target) in enumerate(zip(self.heads, self.targets, strict=True)):
            read = features[t if len(features) > 1 else 0]
            losses.append(cross_entropy(head(read).flatten(0, 1), target))
        return features, losses

    def gradients(self) -> None:
        """Forward and backward: fills every ``.grad``."""
        if self.kind == "torchjd.engine" and self.engine is None:
            from torchjd.autogram import Engine

            self.engine = Engine(self.encoder, batch_dim=None)  # hooks the modules before they run
        with record_function("phase:forward"):
            features, losses = self.losses()
        with record_function("phase:backward and surgery"):
            _BACKWARD[self.kind](self, features, losses)

    def __call__(self) -> Sequence[Tensor]:
        """One step."""
        self.optimizer.zero_grad()
        self.gradients()
        with record_function("phase:optimiser"):
            self.optimizer.step()
        return ()

    def aggregator(self) -> Any:
        """TorchJD's, kept from step to step."""
        if self.made is None:
            from torchjd import aggregation

            self.made = aggregation.GradVac(beta=1e-2) if self.method == "GradVac" else aggregation.PCGrad()
        return self.made


def _surgery(step: Stepper, _: list[Tensor], losses: list[Tensor]) -> None:
    if step.made is None:
        from xferkit import surgery

        step.made = getattr(surgery, step.method)(step.encoder, tasks=step.names)
    step.made.backward(dict(zip(step.names, losses, strict=True)))


def _sum(_: Stepper, __: list[Tensor], losses: list[Tensor]) -> None:
    torch.stack(losses).sum().backward()


def _mtl_backward(step: Stepper, features: list[Tensor], losses: list[Tensor], best: bool) -> None:
    from torchjd.autojac import jac_to_grad, mtl_backward

    shared = list(step.encoder.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that vmap loops over
        mtl_backward(losses, features, shared_params=shared, parallel_chunk_size=1 if best else None)
    jac_to_grad(shared, step.aggregator(), optimize_gramian_computation=best)


def _by_task(step: Stepper, _: list[Tensor], losses: list[Tensor]) -> None:
    from torchjd.autojac import jac_to_grad

    shared = list(step.encoder.parameters())
    rows = []
    for head, loss in zip(step.heads, losses, strict=True):
        own = list(head.parameters())
        found = torch.autograd.grad(loss, [*shared, *own])
        rows.append(found[: len(shared)])
        for parameter, gradient in zip(own, found[len(shared) :], strict=True):
            parameter.grad = gradient
    for parameter, column in zip(shared, zip(*rows, strict=True), strict=True):
        vars(parameter)["jac"] = torch.stack(column)
    del rows
    jac_to_grad(shared, step.aggregator(), optimize_gramian_computation=True)


def _engine(step: Stepper, _: list[Tensor], losses: list[Tensor]) -> None:
    stacked = torch.stack(losses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that vmap loops over
        gram = step.engine.compute_gramian(stacked)
    weights = step.aggregator().gramian_weighting(gram)
    shared, heads = list(step.encoder.parameters()), list(step.heads.parameters())
    torch.autograd.backward(stacked.sum(), inputs=heads, retain_graph=True)  # heads get plain gradients
    torch.autograd.backward(stacked, weights, inputs=shared)


_BACKWARD: dict[str, Callable[[Stepper, list[Tensor], list[Tensor]], None]] = {
    "surgery": _surgery,
    "sum": _sum,
    "torchjd": lambda step, features, losses: _mtl_backward(step, features, losses, best=False),
    "torchjd.best": lambda step, features, losses: _mtl_backward(step, features, losses, best=True),
    "torchjd.by_task": _by_task,
    "torchjd.engine": _engine,
}


def kinds(data: str) -> list[str]:
    """The variants of a row, ours first."""
    return [*list(_BACKWARD)[:4], "torchjd.by_task" if data == "own" else "torchjd.engine"]


def _memory(case: Case) -> dict[str, int | None]:
    """Peak bytes of two first steps of each variant: activations, gradients, optimiser, everything that is kept."""
    peaks: dict[str, int | None] = {}
    for kind in kinds(str(case.shape["data"])):
        stepper = Stepper(case, kind)
        peaks[kind] = peak_memory(lambda step=stepper: [*step(), *step()], case.options.device)  # type: ignore[misc]
        del stepper
    return peaks


def _profile(case: Case, ours: Run) -> dict[str, Any]:
    found = profile_step(ours, case.options.device, _GROUPS, calls=3)
    found["peak_bytes_of_first_steps"] = peaks = _memory(case)
    if None not in peaks.values():
        parts = ", ".join(f"{kind} {bytes_ / 2**20:.0f}" for kind, bytes_ in peaks.items())  # type: ignore[operator]
        found["table"] += f"\n  peak MiB of the first two steps, all that is kept included: {parts}"
    return found


def _setup(case: Case) -> Bench:
    variants = []
    first: dict[str, float] = {}
    for kind in kinds(str(case.shape["data"])):
        stepper = Stepper(case, kind)
        with torch.no_grad():
            first[kind] = float(torch.stack(stepper.losses()[1]).sum())
        role = {"surgery": "ours", "sum": "part"}.get(kind, "eager")
        variants.append(Variant(kind, role, stepper))  # type: ignore[arg-type]
    if len(set(first.values())) != 1:
        raise RuntimeError(f"{case.name}: the variants' first losses differ: {first}")
    ours = variants[0].run
    return Bench(variants, profile=lambda: _profile(case, ours))


def cases(options: Options) -> list[Case]:
    """Rows: both methods, one batch for all tasks and a batch for each."""
    tasks, dim, layers, batch = (3, 16, 2, 2) if options.quick else (8, 320, 8, 4)
    return [
        Case(
            op="surgery_step",
            passes="step",
            shape={
                "tasks": tasks,
                "dim": dim,
                "layers": layers,
                "batch": batch,
                "data": data,
                "method": method,
            },
            options=replace(options, memory=False),  # of one call: it would not see what is kept
            setup=_setup,
            seconds=_ROW_SECONDS,
        )
        for data in ("own", "shared")
        for method in ("GradVac", "PCGrad")
    ]
