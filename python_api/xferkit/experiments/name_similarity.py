"""Which languages' gradients point the same way while one model learns the names of all of them together.

The model is that of pooling, trained as :mod:`xferkit.experiments.name_transfer` trains it, and not changed by being
looked at. A language's gradient is that of its mean loss over *all* its training names, without dropout: the exact
gradient of what training makes small, not one step's sample of it. Samples are looked at as well, because they are
what a step of gradient surgery sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from xfercore import task_gram
from xferkit.data.seeding import derive_seed, seeded
from xferkit.data.streams import DomainData, DomainStream
from xferkit.experiments.name_transfer import NameSettings, NameSource, name_encoder, read_sources
from xferkit.methods import ClassifierSpec, Pooled
from xferkit.models import CharCNNEncoder, TokenSequences
from xferkit.objectives import classification_nll
from xferkit.surgery import group_names
from xferkit.surgery.similarity import SimilarityRecord, SimilarityRecorder
from xferkit.trainers import Trainer

__all__ = ["SimilarityCell", "SimilarityResult", "measure_similarity"]

Pairs = tuple[float | None, ...]
"""Cosines of the pairs (i, j), i < j, of languages, row by row: 0-1, 0-2, ..., 1-2, ...; None where one is zero."""


@dataclass(frozen=True)
class SimilarityCell:
    """One training, and when it is looked at.

    Attributes:
        languages: those that are trained on together, at least two.
        seed: seed of parameters, dropout and batches.
        focus: steps that the figures of this moment are means over.
        course: more steps at which the whole model is looked at.
        samples: numbers of names a language of which gradients are looked at as well, at the steps of `focus`; 0
            stands for those of a training batch, with its dropout.
        lowercase: drop the case of all names, as a control.
        steps: training steps.
    """

    languages: tuple[str, ...]
    seed: int
    focus: tuple[int, ...]
    course: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()
    lowercase: bool = False
    steps: int = 400


@dataclass(frozen=True)
class SimilarityResult:
    """What came out.

    Attributes:
        model: mean over the steps of `focus`: the whole model's cosines.
        layers: the same of each layer by itself.
        samples: the same of gradients over fewer names, by number of names.
        course: the whole model's cosines by step, those of `focus` included.
        seconds: wall time.
        steps: steps made.
        losses: last logged value of every loss.
    """

    model: Pairs
    layers: dict[str, Pairs]
    samples: dict[int, Pairs]
    course: dict[int, Pairs]
    seconds: float
    steps: int
    losses: dict[str, float]


def measure_similarity(
    cell: SimilarityCell, data: NameSource, settings: NameSettings | None = None
) -> SimilarityResult:
    """Train one model on all languages together and record the cosines of their gradients.

    The same cell gives the same result to the bit on the same machine with one thread, and its training is that of
    :func:`~xferkit.experiments.name_transfer.run_cell` of ``pooled`` on these sources.

    Raises:
        ValueError: fewer than two languages, one twice, or a step outside the training.
    """
    settings = settings or NameSettings()
    _check(cell)
    start = time.perf_counter()
    with seeded(derive_seed(cell.seed, "cell")):
        vocabulary, _, labelled = read_sources(cell.languages, data, settings, lowercase=cell.lowercase)
        per_language = max(1, round(settings.batch_size / len(cell.languages)))
        stream = DomainStream(labelled, per_language, seed=cell.seed, name="labelled")
        method = Pooled(
            ClassifierSpec(
                make_encoder=lambda: name_encoder(settings, len(vocabulary)),
                num_classes=len(data.classes),
                num_sources=len(cell.languages),
                dropout=settings.dropout,
                learning_rate=settings.learning_rate,
            )
        )
        look = _Look(cell, method.model, labelled, per_language)
        trainer = Trainer(
            schedule="cosine",
            progress=settings.progress,
            title=f"similarity {cell.seed}",
            eval_every=1,
            select="last",
        )
        history = trainer.fit(method, {"labelled": stream}, cell.steps, evaluate=look)
    whole = look.whole.record()
    last, first = max(cell.focus), min(cell.focus)
    return SimilarityResult(
        model=_pairs(whole.mean(first=first, last=last)),
        layers={name: _pairs(whole.mean(name, first=first, last=last)) for name in whole.groups},
        samples={size: _pairs(recorder.record().mean()) for size, recorder in look.samples.items()},
        course=_course(whole),
        seconds=time.perf_counter() - start,
        steps=history.steps,
        losses=history.last,
    )


class _Look:
    """Looks at the model after each step that is asked for; the trainer keeps its random numbers out of training."""

    def __init__(
        self, cell: SimilarityCell, model: nn.Module, labelled: Sequence[DomainData], per_language: int
    ) -> None:
        self.cell, self.model = cell, model
        self.names = [_own(domain) for domain in labelled]
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        layers = group_names([name for name, _ in named], "layer")
        self.groups = tuple(dict.fromkeys(layers))
        order = sorted(range(len(named)), key=lambda n: self.groups.index(layers[n]))
        self.parameters = [named[n][1] for n in order]
        sizes = [layers.count(group) for group in self.groups]
        self.offsets = np.cumsum([0, *sizes]).tolist()
        self.whole = SimilarityRecorder(window=1, max_windows=cell.steps + 1)
        self.samples = {
            size: SimilarityRecorder(window=1, max_windows=cell.steps + 1) for size in cell.samples
        }
        self.streams = {
            size: DomainStream(labelled, size or per_language, seed=cell.seed, name=f"sample {size}")
            for size in cell.samples
        }
        self.step = 0

    def __call__(self) -> Mapping[str, float]:
        self.step += 1
        cell = self.cell
        if self.step in cell.focus or self.step in cell.course:
            with _fast_pooling(self.model):
                gram = self._gram(self.names)
            self.whole.add(gram, cell.languages, self.groups, step=self.step)
        if self.step in cell.focus:
            for size, stream in self.streams.items():
                batch = stream.next()
                assert batch.labels is not None
                rows = [(batch.domains == n).nonzero().squeeze(1) for n in range(len(cell.languages))]
                own = ((batch.inputs.select(index), batch.labels[index]) for index in rows)
                self.model.train(size == 0)
                self.samples[size].add(self._gram(own), cell.languages, self.groups, step=self.step)
                self.model.eval()
        return {}

    def _gram(self, parts: Iterable[tuple[TokenSequences, Tensor]]) -> Tensor:
        gradients = []
        with torch.enable_grad():
            for inputs, labels in parts:
                log_probs = self.model(inputs).log_probs
                loss = classification_nll(log_probs, labels, torch.zeros_like(labels), 1)
                gradients.append(torch.autograd.grad(loss, self.parameters))
        return task_gram(gradients, self.offsets)


@contextmanager
def _fast_pooling(model: nn.Module) -> Iterator[None]:
    """Character encoders pool in the way that is made for many texts, which is the same function without dropout."""
    encoders = [(m, m.fast) for m in model.modules() if isinstance(m, CharCNNEncoder)]
    for encoder, _ in encoders:
        encoder.fast = True
    try:
        yield
    finally:
        for encoder, fast in encoders:
            encoder.fast = fast


def _own(domain: DomainData) -> tuple[TokenSequences, Tensor]:
    if not isinstance(domain.inputs, TokenSequences) or not isinstance(domain.labels, Tensor):
        raise TypeError(f"measure_similarity: expected encoded names with a class each, got {domain.name!r}")
    return domain.inputs, domain.labels


def _course(record: SimilarityRecord) -> dict[int, Pairs]:
    steps = record.first.tolist()
    return {step: _pairs(matrix) for step, matrix in zip(steps, record.of(), strict=True)}


def _pairs(matrix: np.ndarray) -> Pairs:
    rows, columns = np.triu_indices(len(matrix), 1)
    return tuple(None if np.isnan(value) else round(float(value), 6) for value in matrix[rows, columns])


def _check(cell: SimilarityCell) -> None:
    if len(cell.languages) < 2 or len(set(cell.languages)) != len(cell.languages):
        raise ValueError(
            f"measure_similarity: languages must be at least two different ones, got {cell.languages}"
        )
    if not cell.focus:
        raise ValueError("measure_similarity: focus must be at least one step, got none")
    for step in (*cell.focus, *cell.course):
        if not 1 <= step <= cell.steps:
            raise ValueError(f"measure_similarity: step {step} is outside the training's 1 to {cell.steps}")
