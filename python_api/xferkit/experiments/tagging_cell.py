"""One training of the tagging experiment: what decides it, and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xferkit.experiments.tagging_settings import TaggerSettings
from xferkit.methods import MANMoEConfig

__all__ = ["LOOKUPS", "TaggingCell", "TaggingOutcome", "TaggingSettings", "reads_target"]

#: What needs no training: the most frequent tag of the sources, and the most frequent one of each word there.
LOOKUPS = ("majority_tag", "most_frequent_tag")
#: Methods whose training never sees the target's texts, so that one training serves every target.
_TARGET_FREE = frozenset({"pooled", "moe", "no_man", *LOOKUPS})


def reads_target(method: str) -> bool:
    """Whether the training of `method` reads the target's unlabelled texts."""
    return method not in _TARGET_FREE


@dataclass(frozen=True)
class TaggingCell:
    """One training.

    Attributes:
        method: a name of :func:`xferkit.methods.method_names` or of :data:`LOOKUPS`.
        seed: seed of parameters, dropout and batches.
        sources: languages with labels.
        targets: languages that are tested; one alone for a method that reads its texts.
    """

    method: str
    seed: int
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def describe(self) -> str:
        """One phrase for progress and messages."""
        return f"{'+'.join(self.sources)} to {'/'.join(self.targets)} {self.method} seed {self.seed}"

    @property
    def stem(self) -> str:
        """Begin of its file's name."""
        return f"{'_'.join(self.sources)}-{'_'.join(self.targets)}-{self.method}-s{self.seed}"


@dataclass(frozen=True)
class TaggingSettings(TaggerSettings):
    """Settings of every training, the same for all methods, fixed before a target was scored.

    Attributes:
        probe_steps: steps of a fresh language classifier on the trained shared features; 0: none.
        method: settings of the MAN-MoE family.
    """

    probe_steps: int = 100
    method: MANMoEConfig = field(default_factory=MANMoEConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe_steps < 0:
            raise ValueError(f"settings.probe_steps must be at least 0, got {self.probe_steps}")


@dataclass(frozen=True)
class TaggingOutcome:
    """What came out of one training; every share lies in [0, 1].

    Attributes:
        targets: scores on each target's test sentences by name: ``accuracy`` over tokens and, for spans,
            ``precision``, ``recall`` and ``f1``.
        sources: the same on each source's development sentences.
        gates: by gate and language (targets on test, sources on development sentences), the mean weight of
            each source: over tokens, then over sentences.
        gate_accuracy: by gate, share of the sources' development tokens whose largest weight is that of their
            own language; mean over sources.
        discriminator_accuracy: of the adversary on sentences it was not trained on, mean over languages.
        probe_accuracy: the same of a fresh classifier of languages on the trained shared features, by target.
        sizes: counts by language: ``train``, ``dev``, ``unlabelled`` and ``test`` sentences, ``test_tokens``, and
            ``unknown`` of these whose word no source has.
        selected_step: step whose weights were kept.
        seconds: wall time of reading, training and tests.
        steps: training steps made.
        losses: last value of each loss by name; None where it was not finite.
    """

    targets: dict[str, dict[str, float]]
    sources: dict[str, dict[str, float]]
    gates: dict[str, dict[str, list[float]]]
    gate_accuracy: dict[str, float]
    discriminator_accuracy: float | None
    probe_accuracy: dict[str, float]
    sizes: dict[str, dict[str, int]]
    selected_step: int | None
    seconds: float
    steps: int
    losses: dict[str, float | None]

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> TaggingOutcome:
        """Build from plain values; ValueError says which one cannot be."""

        def scores(name: str) -> dict[str, dict[str, float]]:
            return {
                str(lang): {str(k): _share(f"{name}[{lang}].{k}", v) for k, v in found.items()}
                for lang, found in values[name].items()
            }

        accuracy, step = values["discriminator_accuracy"], values["selected_step"]
        seconds = float(values["seconds"])
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds must be a finite number, at least 0, got {seconds}")
        return cls(
            targets=scores("targets"),
            sources=scores("sources"),
            gates={
                str(gate): {
                    str(lang): [_share(f"gates[{gate}][{lang}]", w) for w in weights]
                    for lang, weights in rows.items()
                }
                for gate, rows in values["gates"].items()
            },
            gate_accuracy={
                str(gate): _share(f"gate_accuracy[{gate}]", v) for gate, v in values["gate_accuracy"].items()
            },
            discriminator_accuracy=None if accuracy is None else _share("discriminator_accuracy", accuracy),
            probe_accuracy={
                str(k): _share(f"probe_accuracy[{k}]", v) for k, v in values["probe_accuracy"].items()
            },
            sizes={
                str(lang): {str(k): int(v) for k, v in counts.items()}
                for lang, counts in values["sizes"].items()
            },
            selected_step=None if step is None else int(step),
            seconds=seconds,
            steps=int(values["steps"]),
            losses={
                str(k): float(v) if v is not None and math.isfinite(v) else None
                for k, v in values["losses"].items()
            },
        )


def _share(name: str, value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and -1e-6 <= number <= 1.0 + 1e-6):
        raise ValueError(f"{name} must be a finite number in [0, 1], got {number}")
    return min(1.0, max(0.0, number))
