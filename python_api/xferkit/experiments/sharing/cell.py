"""The runs of the study: a model a seed, and on it the masks of each half of each language's texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["HALVES", "GradientLook", "MaskFound", "ModelTrained", "SharingCell", "SharingOutcome"]

#: Halves of a language's texts, which its two masks are trained on.
HALVES = ("A", "B")


@dataclass(frozen=True)
class SharingCell:
    """One run.

    Attributes:
        part: "model": its training, with looks at its gradients; "masks": those of one half of a language on it.
        seed: of everything that is drawn.
        language: of the masks; empty for the model.
        half: "A" or "B", of the masks.
    """

    part: Literal["model", "masks"]
    seed: int
    language: str = ""
    half: str = ""

    @property
    def method(self) -> str:
        """Runs of one part take about the same time."""
        return self.part

    def describe(self) -> str:
        """One phrase for progress and messages."""
        what = "the model" if self.part == "model" else f"masks of {self.language}, half {self.half}"
        return f"{what}, seed {self.seed}"

    @property
    def stem(self) -> str:
        """Begin of its file's name."""
        return "-".join(filter(None, (self.part, self.language, self.half, f"s{self.seed}")))


@dataclass(frozen=True)
class GradientLook:
    """Cosines of gradients at one moment; each list has a number for each group of parameters.

    Attributes:
        step: training steps made.
        within: by language, of two batches of it.
        across: by pair ``"en-de"``, of a batch of each; the mean over the four pairs of batches.
    """

    step: int
    within: dict[str, list[float]]
    across: dict[str, list[float]]


@dataclass(frozen=True)
class ModelTrained:
    """The training of a model.

    Attributes:
        groups: groups of parameters whose gradients were looked at, the whole first.
        looks: at the gradients, in the order of steps.
        nll: of held-out texts by language, at the end.
        unigram: entropy of the same tokens under the training texts' token counts, by language.
        sizes: counts by language: ``texts``, ``tokens``, ``held_out`` texts.
        parameters: trained numbers.
        steps: made.
    """

    groups: list[str]
    looks: list[GradientLook]
    nll: dict[str, float]
    unigram: dict[str, float]
    sizes: dict[str, dict[str, int]]
    parameters: int
    steps: int


@dataclass(frozen=True)
class MaskFound:
    """Masks of one half of a language's texts.

    Attributes:
        log_alpha: by site, in the order of its gates.
        nll: of the language's held-out texts under the masks, with the gates of evaluation.
        nll_unmasked: of the same without masks.
        expected_sparsity: of the masked parameters, over draws.
        eval_sparsity: of the masked parameters, with the gates of evaluation.
        steps: made.
    """

    log_alpha: dict[str, list[float]]
    nll: float
    nll_unmasked: float
    expected_sparsity: float
    eval_sparsity: float
    steps: int


@dataclass(frozen=True)
class SharingOutcome:
    """What came out of a run: one of the two, and the seconds it took."""

    seconds: float
    model: ModelTrained | None = None
    masks: MaskFound | None = None

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> SharingOutcome:
        """Build from plain values; ValueError says which one cannot be."""
        model, masks = values["model"], values["masks"]
        if (model is None) == (masks is None):
            raise ValueError("a run holds a model or masks, one of the two")
        found = cls(
            float(values["seconds"]),
            None if model is None else _model(model),
            None if masks is None else MaskFound(**masks),
        )
        numbers = [found.seconds]
        if found.model is not None:
            numbers += [*found.model.nll.values(), *found.model.unigram.values()]
            for look in found.model.looks:
                for cosines in (*look.within.values(), *look.across.values()):
                    if len(cosines) != len(found.model.groups):
                        raise ValueError(
                            f"looks: expected {len(found.model.groups)} cosines, got {len(cosines)}"
                        )
                    numbers += cosines
        if found.masks is not None:
            numbers += [value for row in found.masks.log_alpha.values() for value in row]
            numbers += [found.masks.nll, found.masks.nll_unmasked, found.masks.eval_sparsity]
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
            raise ValueError("expected finite numbers")
        return found


def _model(values: Mapping[str, Any]) -> ModelTrained:
    looks = [GradientLook(int(v["step"]), dict(v["within"]), dict(v["across"])) for v in values["looks"]]
    return ModelTrained(**{**values, "looks": looks})
