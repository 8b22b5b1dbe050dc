"""One training of the multilingual experiment: what decides it, and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ALONE", "LOOKUP", "Matrix", "MultilingualCell", "MultilingualOutcome", "PairRecord"]

#: The row of models of one language each.
ALONE = "alone"
#: The row without training: each word's most frequent tag in the language's own training sentences.
LOOKUP = "most_frequent_tag"

#: A number for each pair of languages, None where they never met.
Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class MultilingualCell:
    """One training.

    Attributes:
        method: name of the table's row, or :data:`ALONE` or :data:`LOOKUP`.
        uses: the method that is trained, a name of :func:`xferkit.methods.method_names`; empty for no training.
        options: its options as JSON.
        languages: languages of the model; one for :data:`ALONE`.
        seed: seed of parameters, dropout and batches.
    """

    method: str
    uses: str
    options: str
    languages: tuple[str, ...]
    seed: int

    def describe(self) -> str:
        """One phrase for progress and messages."""
        which = f" on {self.languages[0]}" if len(self.languages) == 1 else ""
        return f"{self.method}{which}" + (f" seed {self.seed}" if self.uses else "")

    @property
    def stem(self) -> str:
        """Begin of its file's name."""
        which = f"-{self.languages[0]}" if len(self.languages) == 1 else ""
        return f"{self.method}{which}-s{self.seed}"


@dataclass(frozen=True)
class PairRecord:
    """What surgery saw of the languages' gradients, over the steps that were looked at.

    Cosines are means over steps in which both languages were in the batch.

    Attributes:
        steps: number of steps.
        groups: groups of parameters, as the surgery has them.
        before: cosines of the raw gradients of the whole model.
        before_groups: the same of each group, in the order of ``groups``.
        after: cosines of the gradients after surgery; None for methods that turn none.
        after_groups: the same of each group; empty for methods that turn none.
        visited: pairs (a gradient, one that it is held against) over all groups and steps.
        active: those in which the gradient was turned.
    """

    steps: int
    groups: tuple[str, ...]
    before: Matrix
    before_groups: tuple[Matrix, ...]
    after: Matrix | None
    after_groups: tuple[Matrix, ...]
    visited: int
    active: int

    @classmethod
    def checked(cls, values: Mapping[str, Any], num_languages: int) -> PairRecord:
        """Build from plain values; ValueError says which one cannot be."""
        after = values["after"]
        visited, active = int(values["visited"]), int(values["active"])
        if not 0 <= active <= visited:
            raise ValueError(f"pairs.active must be at most pairs.visited, got {active} and {visited}")

        def all_of(name: str) -> tuple[Matrix, ...]:
            return tuple(_matrix(f"pairs.{name}", m, num_languages) for m in values[name])

        return cls(
            steps=int(values["steps"]),
            groups=tuple(str(group) for group in values["groups"]),
            before=_matrix("pairs.before", values["before"], num_languages),
            before_groups=all_of("before_groups"),
            after=None if after is None else _matrix("pairs.after", after, num_languages),
            after_groups=all_of("after_groups"),
            visited=visited,
            active=active,
        )


def _matrix(name: str, rows: Sequence[Sequence[float | None]], size: int) -> Matrix:
    found = tuple(tuple(None if v is None else float(v) for v in row) for row in rows)
    if len(found) != size or any(len(row) != size for row in found):
        raise ValueError(f"{name} must have a number for each pair of {size} languages")
    if any(v is not None and not -1.001 <= v <= 1.001 for row in found for v in row):
        raise ValueError(f"{name} must hold cosines")
    return found


@dataclass(frozen=True)
class MultilingualOutcome:
    """What came out of one training.

    Attributes:
        test: scores on each language's test sentences by name, in [0, 1]: ``accuracy`` over tokens and, for spans,
            ``precision``, ``recall`` and ``f1``.
        dev: the same on its development sentences, with the same weights.
        sizes: counts by language: ``train`` sentences and ``train_tokens``, ``dev`` and ``test`` sentences,
            ``test_tokens``, and ``unknown`` of these whose word the language's training sentences lack.
        start: SHA-256 of the first parameters, to see that methods begin alike.
        parameters: trained numbers.
        pairs: what surgery saw; None for methods that take no gradients apart.
        cpu_seconds: processor time of the training steps, without the looking at pairs.
        seconds: wall time of reading, training and tests.
        steps: training steps made.
        losses: last value of each loss by name; None where it was not finite.
    """

    test: dict[str, dict[str, float]]
    dev: dict[str, dict[str, float]]
    sizes: dict[str, dict[str, int]]
    start: str
    parameters: int
    pairs: PairRecord | None
    cpu_seconds: float
    seconds: float
    steps: int
    losses: dict[str, float | None]

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> MultilingualOutcome:
        """Build from plain values; ValueError says which one cannot be."""

        def scores(name: str) -> dict[str, dict[str, float]]:
            return {
                str(lang): {str(k): _share(f"{name}[{lang}].{k}", v) for k, v in found.items()}
                for lang, found in values[name].items()
            }

        times = {name: float(values[name]) for name in ("cpu_seconds", "seconds")}
        for name, value in times.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
        test = scores("test")
        pairs = values["pairs"]
        return cls(
            test=test,
            dev=scores("dev"),
            sizes={
                str(lang): {str(k): int(v) for k, v in counts.items()}
                for lang, counts in values["sizes"].items()
            },
            start=str(values["start"]),
            parameters=int(values["parameters"]),
            pairs=None if pairs is None else PairRecord.checked(pairs, len(test)),
            steps=int(values["steps"]),
            losses={
                str(k): float(v) if v is not None and math.isfinite(v) else None
                for k, v in values["losses"].items()
            },
            **times,
        )


def _share(name: str, value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and -1e-6 <= number <= 1.0 + 1e-6):
        raise ValueError(f"{name} must be a finite number in [0, 1], got {number}")
    return min(1.0, max(0.0, number))
