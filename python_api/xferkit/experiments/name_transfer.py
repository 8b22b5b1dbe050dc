"""Which kind of thing does a name name? Classified in a language without labels, from other languages.

A *cell* is one training: a target, a method, a seed and the sources. The target gives its unlabelled
training names (and its labels only where it is among the sources); its test names are looked at once,
after the fixed number of steps. Nothing is selected on the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from xferkit.data.seeding import derive_seed, seeded
from xferkit.data.streams import DomainData, DomainStream
from xferkit.methods import (
    ClassifierMethod,
    ClassifierSpec,
    MANMoEConfig,
    build_method,
    method_config,
    method_names,
)
from xferkit.methods.surgery import GradVacConfig, PCGradConfig
from xferkit.metrics import accuracy, macro_f1
from xferkit.models import (
    BiLSTMEncoder,
    CharCNNEncoder,
    CharVocabulary,
    Encoder,
    OpsName,
    TokenSequences,
)
from xferkit.surgery import GroupingName
from xferkit.trainers import ProgressKind, Trainer

__all__ = [
    "NAME_CONFIG",
    "Cell",
    "CellResult",
    "LabelledNames",
    "NameSettings",
    "NameSource",
    "name_encoder",
    "read_sources",
    "run_cell",
]


class LabelledNames(Protocol):
    """Names with their classes."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The names."""
        ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """``int64[n]``, their classes."""
        ...


class NameSource(Protocol):
    """Names of several languages, split into training and test."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        ...

    def train(self, language: str, /) -> LabelledNames:
        """Training names of a language."""
        ...

    def test(self, language: str, /) -> LabelledNames:
        """Test names of a language."""
        ...


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        target: language that is tested.
        method: one of :func:`xferkit.methods.method_names`.
        seed: seed of parameters, dropout and batches.
        sources: languages with labels.
        lowercase: drop the case of all names, as a control.
        steps: training steps.
    """

    target: str
    method: str
    seed: int
    sources: tuple[str, ...]
    lowercase: bool = False
    steps: int = 400


@dataclass(frozen=True)
class CellResult:
    """What came out.

    Attributes:
        accuracy: share of the target's test names classified right, in [0, 1].
        macro_f1: mean over classes of F1, in [0, 1].
        seconds: wall time of training and prediction.
        gate: weight of each source for the target, summing to 1, for methods that weigh sources.
        steps: steps made, those of a gate's own stage included.
        losses: last logged value of every loss, by ``phase/metric``.
    """

    accuracy: float
    macro_f1: float
    seconds: float
    gate: dict[str, float] | None
    steps: int
    losses: dict[str, float]


#: The gate losses reach the encoders, as in the paper: with a detached gate input the gates of this task stay
#: at chance on their own sources (mean NLL 2.53 of log 13 = 2.56).
NAME_CONFIG = MANMoEConfig(
    lambda1=0.1,
    lambda2=0.5,
    k=2,
    private_dim=32,
    expert_hidden=32,
    predictor_hidden=64,
    discriminator_hidden=64,
    dropout=0.3,
    detach_gate_input=False,
)


@dataclass(frozen=True)
class NameSettings:
    """Settings of every cell, fixed beforehand and the same for all methods.

    Attributes:
        batch_size: names per step, split equally over the sources.
        encoder: ``"char_cnn"``, or ``"bilstm"`` over characters with attention pooling.
        feature_dim: size of an encoder's features.
        channels: units of the convolution (``char_cnn``).
        width: width of the convolution (``char_cnn``).
        dropout: dropout probability everywhere.
        learning_rate: Adam's, falling to 0 along a cosine.
        max_length: characters of a name that are read.
        min_count: rarer characters of the sources count as unknown.
        config: settings of the MAN-MoE family.
        pcgrad_grouping: parameters that PCGrad treats together: the whole model, as its paper does.
        gradvac_grouping: the same of GradVac: each layer, as its paper does.
        ops: ``"fused"`` or ``"reference"``.
        progress: how a cell shows its progress.
    """

    batch_size: int = 208
    encoder: Literal["char_cnn", "bilstm"] = "char_cnn"
    feature_dim: int = 64
    channels: int = 96
    width: int = 4
    dropout: float = 0.3
    learning_rate: float = 3e-3
    max_length: int = 48
    min_count: int = 5
    config: MANMoEConfig = field(default_factory=lambda: NAME_CONFIG)
    pcgrad_grouping: GroupingName = "model"
    gradvac_grouping: GroupingName = "layer"
    ops: OpsName = "fused"
    progress: ProgressKind = "silent"


def run_cell(cell: Cell, data: NameSource, settings: NameSettings | None = None) -> CellResult:
    """Train and test one cell; the same cell gives the same result to the bit on the same machine.

    Args:
        cell: what to train.
        data: names by language.
        settings: the fixed settings.

    Raises:
        ValueError: for an unknown method, no sources, repeated sources, or the target among the sources of
            any method but ``own``.
    """
    settings = settings or NameSettings()
    _check(cell)
    start = time.perf_counter()
    with seeded(derive_seed(cell.seed, "cell")):
        vocabulary, encode, labelled = read_sources(cell.sources, data, settings, lowercase=cell.lowercase)
        target_inputs = encode(data.train(cell.target).texts)
        unlabelled = [
            *(replace(domain, labels=None) for domain in labelled),
            DomainData(cell.target, target_inputs),
        ]
        per_language = max(1, round(settings.batch_size / len(cell.sources)))
        streams = {
            name: DomainStream(domains, per_language, seed=cell.seed, name=name)
            for name, domains in (("labelled", labelled), ("unlabelled", unlabelled))
        }
        method = _build(cell, settings, len(vocabulary), len(data.classes), target_inputs)
        trainer = Trainer(
            schedule="cosine", progress=settings.progress, title=f"{cell.target} {cell.method} {cell.seed}"
        )
        history = trainer.fit(method, streams, cell.steps)
        test = data.test(cell.target)
        test_inputs = encode(test.texts)
        predicted = method.predict(test_inputs).argmax(1).numpy()
        weights = method.source_weights(test_inputs)
    return CellResult(
        accuracy=accuracy(test.labels, predicted),
        macro_f1=macro_f1(test.labels, predicted),
        seconds=time.perf_counter() - start,
        gate=None if weights is None else dict(zip(cell.sources, weights.tolist(), strict=True)),
        steps=history.steps,
        losses=history.last,
    )


def read_sources(
    sources: Sequence[str], data: NameSource, settings: NameSettings, *, lowercase: bool
) -> tuple[CharVocabulary, Callable[[tuple[str, ...]], TokenSequences], list[DomainData]]:
    """The characters of the sources' training names, how names are encoded with them, and the sources' own names."""
    names = [data.train(language) for language in sources]
    vocabulary = CharVocabulary((text for part in names for text in part.texts), min_count=settings.min_count)

    def encode(texts: tuple[str, ...]) -> TokenSequences:
        return vocabulary.encode(texts, lowercase=lowercase, max_length=settings.max_length)

    labelled = [
        DomainData(language, encode(part.texts), torch.tensor(part.labels))
        for language, part in zip(sources, names, strict=True)
    ]
    return vocabulary, encode, labelled


def _check(cell: Cell) -> None:
    if cell.method not in method_names():
        raise ValueError(
            f"run_cell: unknown method {cell.method!r}, expected one of {', '.join(method_names())}"
        )
    if not cell.sources or len(set(cell.sources)) != len(cell.sources):
        raise ValueError(f"run_cell: sources must be different languages, at least one, got {cell.sources}")
    if cell.target in cell.sources and cell.method != "own":
        raise ValueError(
            f"run_cell: the target {cell.target!r} is among the sources; only method 'own' may see its labels"
        )


def _build(
    cell: Cell, settings: NameSettings, num_tokens: int, num_classes: int, target_inputs: TokenSequences
) -> ClassifierMethod:
    spec = ClassifierSpec(
        make_encoder=lambda: name_encoder(settings, num_tokens),
        num_classes=num_classes,
        num_sources=len(cell.sources),
        target_inputs=target_inputs,
        dropout=settings.dropout,
        learning_rate=settings.learning_rate,
        ops=settings.ops,
        source_names=cell.sources,
    )
    return build_method(cell.method, spec, _config(cell, settings))


def _config(cell: Cell, settings: NameSettings) -> object | None:
    """The method's own settings; None: its defaults, with the sizes of the cell's."""
    kind = method_config(cell.method)
    if issubclass(kind, MANMoEConfig):
        return settings.config
    if issubclass(kind, (PCGradConfig, GradVacConfig)):
        grouping = settings.gradvac_grouping if issubclass(kind, GradVacConfig) else settings.pcgrad_grouping
        return kind(hidden_dim=0, dropout=settings.dropout, grouping=grouping, seed=cell.seed)
    return None


def name_encoder(settings: NameSettings, num_tokens: int) -> Encoder:
    """A new encoder of names, as the settings have it.

    Raises:
        ValueError: an encoder of another name.
    """
    if settings.encoder == "char_cnn":
        return CharCNNEncoder(
            num_tokens,
            settings.feature_dim,
            channels=settings.channels,
            widths=(settings.width,),
            dropout=settings.dropout,
        )
    if settings.encoder == "bilstm":
        embedding = nn.Embedding(num_tokens, 32, padding_idx=0)
        return BiLSTMEncoder(embedding, settings.feature_dim, flag_dim=8, dropout=settings.dropout)
    raise ValueError(f"NameSettings: encoder must be 'char_cnn' or 'bilstm', got {settings.encoder!r}")
