"""What a diagnosis needs of a problem: one model trained on any of its tasks, and every task scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Look",
    "MaskRun",
    "Matching",
    "Metric",
    "Part",
    "Problem",
    "RunResult",
    "RunSpec",
    "SplitName",
    "metric_name",
]

#: How a run of k tasks is matched with the run of one task, which makes S steps of b examples. ``per_task_steps``:
#: S steps of k * b examples, so that every task has what it has alone; ``total_steps``: S steps of b examples, shared
#: equally among the tasks, so that the whole costs what one task costs alone.
Matching = Literal["per_task_steps", "total_steps"]

#: Scores of classifiers and taggers: share of right answers, or the unweighted mean of F1 over the classes of the part.
Metric = Literal["accuracy", "macro_f1"]

#: What a run is scored on: ``"dev"`` for choosing what to do, ``"test"`` for the final measurement alone.
Part = Literal["dev", "test"]

SplitName = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class RunSpec:
    """One training, and what its model is scored on.

    Attributes:
        tasks: what is trained on, different tasks in any order; the order changes nothing.
        seed: of parameters, dropout and batches. Runs of one seed start from the same parameters (where the method
            has as many), and a task's examples come in the same order whatever other tasks there are.
        matching: see :data:`Matching`; of one task alone both are the same run.
        method: a name of :func:`xferkit.methods.method_names`.
        options: settings of the method (fields of :func:`xferkit.methods.method_config`) in place of the problem's.
        weights: weight of each task's loss, by task, 1 where a task is not named; only relative sizes count. Methods
            of the pooled kind alone.
        temperature: T: each task's share of a batch, and of the loss, is proportional to n^(1/T) with its n training
            examples; None: all alike. Methods of the pooled kind alone.
        width: factor of all hidden sizes.
        part: see :data:`Part`.
        observe: how many times gradients are looked at, evenly over the training.
        masks: sets of sources; after the training, masks of the model are trained for each and for two halves of the
            target. Methods of the pooled kind alone.

    Raises:
        ValueError: no task or one twice, or a value out of its range.
    """

    tasks: tuple[str, ...]
    seed: int
    matching: Matching = "per_task_steps"
    method: str = "pooled"
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] | None = None
    temperature: float | None = None
    width: float = 1.0
    part: Part = "dev"
    observe: int = 0
    masks: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"RunSpec: tasks must be different ones, at least one, got {list(self.tasks)}")
        for name, known in (("matching", Matching), ("part", Part)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"RunSpec: {name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}"
                )
        for name, value in (("width", self.width), ("temperature", self.temperature)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"RunSpec: {name} must be a number above 0, got {value!r}")
        if self.observe < 0:
            raise ValueError(f"RunSpec: observe must be at least 0, got {self.observe}")
        for group in self.masks:
            if not group or not set(group) <= set(self.tasks):
                raise ValueError(f"RunSpec: masks must be sets of its tasks, got {list(group)}")
        for task, weight in (self.weights or {}).items():
            if task not in self.tasks:
                raise ValueError(f"RunSpec: weights names {task!r}, which is none of {', '.join(self.tasks)}")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"RunSpec: the weight of {task!r} must be at least 0, got {weight!r}")
        if self.weights is not None and not any(self.weights.get(task, 1.0) for task in self.tasks):
            raise ValueError("RunSpec: weights are all 0; expected one above 0")


@dataclass(frozen=True)
class Look:
    """The tasks' gradients at one step, without dropout, on training examples that are the same at every look.

    Each task has two batches of equal size. A target that is not trained on is looked at too, where it has no labels
    to train on by those of its development part: they tell where it would want to go, and nothing is trained by them.
    A list holds a number for each group of parameters.

    Attributes:
        step: steps made before it.
        groups: names of the groups: ``"whole"``, then the layers.
        cosine: by two tasks, the mean of the four cosines between a batch of one and one of the other; each pair once,
            see :meth:`between`.
        null: by task, the cosine between its own two batches: what is left of the same task by noise alone.
        norm: by task, the norm of the gradient over both batches.
        loss: by task, the mean loss over both batches.
    """

    step: int
    groups: list[str]
    cosine: dict[str, dict[str, list[float]]]
    null: dict[str, list[float]]
    norm: dict[str, list[float]]
    loss: dict[str, float]

    def between(self, a: str, b: str) -> list[float]:
        """Cosines of two tasks by group, in either order; KeyError where one was not looked at."""
        return self.cosine[a][b] if b in self.cosine.get(a, {}) else self.cosine[b][a]


@dataclass(frozen=True)
class MaskRun:
    """Masks of one trained model, each for as many examples; see :func:`xferkit.diagnosis.masking.compare_task_masks`.

    Attributes:
        examples: of each mask.
        within: two halves of the target, as :meth:`xferkit.masks.MaskComparison.to_json` writes it.
        across: the target's first half with each set of sources, in the order asked for.
    """

    examples: int
    within: dict[str, Any]
    across: list[dict[str, Any]]


@dataclass(frozen=True)
class RunResult:
    """What came out of a run, in plain values.

    Attributes:
        scores: by task, also of tasks that were not trained on, the score on the part asked for.
        correct: by task, for the target alone, a number for each example whose mean is the score: 1 for one that was
            right, else 0, in the part's own order; empty where the score is no mean over examples.
        steps: updates made, those of a method's own stages included.
        examples: by task trained on, labelled examples drawn; one that came in two passes counts twice.
        seconds: wall time of training and scoring.
        looks: see :class:`Look`.
        gates: by task trained on, the mean weight that a method's gate puts on it for the target's texts; empty for
            methods without one.
        also: the target's scores by other measures, by name.
        masks: where they were asked for and the tasks have enough examples.
    """

    scores: dict[str, float]
    correct: dict[str, list[float]]
    steps: int
    examples: dict[str, int]
    seconds: float
    looks: list[Look] = field(default_factory=list)
    gates: dict[str, float] = field(default_factory=dict)
    also: dict[str, float] = field(default_factory=dict)
    masks: MaskRun | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunResult:
        """The result whose :func:`dataclasses.asdict` is ``values``; KeyError or TypeError where it is none."""
        looks = [Look(**look) for look in values.get("looks", [])]
        masks = None if values.get("masks") is None else MaskRun(**values["masks"])
        return cls(**{**values, "looks": looks, "masks": masks})


def metric_name(metric: str) -> str:
    """A score as a reader knows it."""
    return {"macro_f1": "macro-F1"}.get(metric, metric)


class Problem(Protocol):
    """Tasks with a target; everything that can train one model on any of them. Problems can be pickled."""

    @property
    def name(self) -> str:
        """Short name."""
        ...

    @property
    def metric(self) -> str:
        """Name of the score."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is better."""
        ...

    @property
    def target(self) -> str:
        """The task in question."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """Everything that can be trained on; the target among them only if it has labels."""
        ...

    def sizes(self) -> dict[str, dict[str, int]]:
        """Examples by task and split; ``"unlabelled"`` is what a target gives without labels."""
        ...

    def describe(self) -> str:
        """The problem in a few sentences: data, model and how a task alone is trained."""
        ...

    def settings(self) -> dict[str, Any]:
        """Plain values that decide a run beside the data."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 over the data, 64 hexadecimal digits."""
        ...

    def train(self, spec: RunSpec) -> RunResult:
        """Train one model and score every task; the same spec gives the same result on the same machine.

        Raises:
            ValueError: a task or method that does not exist, or settings that do not go together.
        """
        ...

    def texts(self, task: str, split: SplitName = "train") -> Iterable[Any]:
        """The inputs of a task as a person knows them: texts, or an array of images."""
        ...

    def labels(self, task: str, split: SplitName = "train") -> Iterable[str]:
        """The labels of a task by name, of a tagger one a token; none of a target's unlabelled training texts."""
        ...

    def encode(self, task: str) -> NDArray[np.float32] | None:
        """Features of the training inputs that no training made, ``float32[n, d]``; None: there are none."""
        ...
