"""Gradients of the tasks of a training, looked at from outside: cosines, norms, and what noise alone leaves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xfercore import task_gram
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.data.seeding import derive_seed
from xferkit.diagnosis.problem import Look
from xferkit.models import SharedPrivateClassifier, TokenSequences
from xferkit.objectives import classification_nll
from xferkit.surgery import group_names

__all__ = ["GradientObserver", "TaskHalves", "classifier_of", "halves_of", "look_steps", "task_loss"]

_LEAST_NORM = 1e-30


@dataclass(frozen=True)
class TaskHalves:
    """Two batches of a task that stay the same.

    Attributes:
        number: the task's number among those trained on; None: it is not one of them.
        batches: inputs and labels of each.
    """

    number: int | None
    batches: tuple[tuple[TokenSequences, Tensor], tuple[TokenSequences, Tensor]]


def halves_of(
    name: str, number: int | None, texts: Texts, labels: Tensor | RaggedLabels, size: int, seed: int
) -> TaskHalves:
    """Two batches of at most ``size`` different examples each, drawn by the task's name and the seed alone.

    Raises:
        ValueError: the task has a single example.
    """
    half = min(size, len(texts) // 2)
    if not half:
        raise ValueError(
            f"{name!r} has {len(texts)} examples to look at; expected at least 2, so that two batches differ"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "observe", name))
    rows = torch.randperm(len(texts), generator=generator)[: 2 * half]

    def batch(index: Tensor) -> tuple[TokenSequences, Tensor]:
        own = labels.select(index) if isinstance(labels, RaggedLabels) else labels[index]
        return texts.select(index), own

    return TaskHalves(number, (batch(rows[:half]), batch(rows[half:])))


def look_steps(steps: int, looks: int) -> tuple[int, ...]:
    """The steps after which to look: the middles of ``looks`` equal parts of the training."""
    return tuple(dict.fromkeys(max(1, round((i + 0.5) * steps / looks)) for i in range(looks)))


def classifier_of(method: Any) -> SharedPrivateClassifier:
    """The classifier that a method trains.

    Raises:
        ValueError: it has none.
    """
    for holder in (method, getattr(method, "pooled", None), getattr(method, "classifier", None)):
        model = getattr(holder, "model", None)
        if isinstance(model, SharedPrivateClassifier):
            return model
    raise ValueError(
        f"{type(method).__name__} has no classifier to look at; expected a SharedPrivateClassifier as its 'model'"
    )


def task_loss(method: Any, number: int | None, inputs: TokenSequences, labels: Tensor) -> Tensor:
    """Mean loss of examples of the task with this number, by the classifier as it is (dropout as its mode has it).

    Examples with a class that the model does not have are left out.
    """
    model = classifier_of(method)
    zeros = torch.zeros(len(inputs), dtype=torch.int64)
    bags = zeros if getattr(method, "target_gate", None) is not None else None
    domains = None if number is None else zeros + number
    log_probs = model(inputs, domains=domains, bags=bags).log_probs
    return classification_nll(log_probs, labels.masked_fill(labels >= log_probs.shape[-1], -1), zeros, 1)


class GradientObserver:
    r"""Takes the gradient of each task's loss on two fixed batches, and compares them.

    .. math:: \cos(g_{ai}, g_{bj}) = \frac{\langle g_{ai}, g_{bj} \rangle}{\lVert g_{ai} \rVert \lVert g_{bj} \rVert}

    with :math:`g_{ai}` the gradient of task a on batch i over the parameters of a group. A pair of tasks has the mean
    over the four pairs of batches, a task by itself (the null) that of its two batches: both have the same noise.
    Only the loss of the labels counts, not what a method adds to it. The training is not changed by being looked at.

    Args:
        method: a method of :mod:`xferkit.methods` with one classifier.
        tasks: batches by name, from :func:`halves_of`.
    """

    def __init__(self, method: Any, tasks: Mapping[str, TaskHalves]) -> None:
        self._method, self._tasks = method, dict(tasks)
        named = [(n, p) for n, p in classifier_of(method).named_parameters() if p.requires_grad]
        layers = group_names([name for name, _ in named], "layer")
        found = list(dict.fromkeys(layers))
        order = sorted(range(len(named)), key=lambda i: found.index(layers[i]))
        self._parameters = [named[i][1] for i in order]
        self._offsets = [0, *itertools.accumulate(layers.count(layer) for layer in found)]
        #: Groups of parameters: the whole, then the layers.
        self.groups = ["whole", *found]

    def look(self, step: int) -> Look:
        """What there is to see; call it in evaluation mode."""
        gradients: list[Sequence[Tensor | None]] = []
        losses: list[float] = []
        counts: list[int] = []
        with torch.enable_grad():
            for task in self._tasks.values():
                for inputs, labels in task.batches:
                    loss = task_loss(self._method, task.number, inputs, labels)
                    gradients.append(torch.autograd.grad(loss, self._parameters, allow_unused=True))
                    losses.append(float(loss.detach()))
                    counts.append(int((labels >= 0).sum()))
        layers = task_gram(gradients, self._offsets)
        gram = torch.cat([layers.sum(0, keepdim=True), layers])
        norms = gram.diagonal(dim1=1, dim2=2).clamp(min=_LEAST_NORM).sqrt()
        cosines = gram / (norms.unsqueeze(2) * norms.unsqueeze(1))
        names = list(self._tasks)
        null, norm, mean = {}, {}, {}
        for i, name in enumerate(names):
            own = slice(2 * i, 2 * i + 2)
            null[name] = _plain(cosines[:, 2 * i, 2 * i + 1])
            share = torch.tensor(counts[own], dtype=torch.float64)
            share /= share.sum()
            norm[name] = _plain((gram[:, own, own] @ share @ share).clamp(min=0).sqrt())
            mean[name] = sum(s * loss for s, loss in zip(share.tolist(), losses[own], strict=True))
        across: dict[str, dict[str, list[float]]] = {}
        for i, j in itertools.combinations(range(len(names)), 2):
            mean_cosine = cosines[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(dim=(1, 2))
            across.setdefault(names[i], {})[names[j]] = _plain(mean_cosine)
        return Look(step, list(self.groups), across, null, norm, mean)


def _plain(values: Tensor) -> list[float]:
    return [float(value) for value in values]
