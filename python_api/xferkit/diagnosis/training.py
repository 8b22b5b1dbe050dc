"""What all problems share: batches matched in compute, methods built from a recipe, one training, every task scored."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from xferkit.data.errors import close_name
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.data.seeding import derive_seed, seeded
from xferkit.data.streams import DomainData
from xferkit.diagnosis.batches import TaskStream, equal_shares, temperature_shares
from xferkit.diagnosis.masking import compare_task_masks
from xferkit.diagnosis.observe import GradientObserver, halves_of, look_steps
from xferkit.diagnosis.problem import Look, MaskRun, Metric, Part, RunResult, RunSpec, SplitName
from xferkit.diagnosis.recipe import Recipe, method_settings, scaled
from xferkit.methods import ClassifierMethod, ClassifierSpec, Pooled, build_method
from xferkit.metrics import macro_f1
from xferkit.models import Encoder
from xferkit.trainers import Trainer

__all__ = ["TaskData", "TrainedProblem", "known_task"]

Labels = Tensor | RaggedLabels


@dataclass(frozen=True)
class TaskData:
    """A task as numbers.

    Attributes:
        parts: inputs and labels that it is scored on; a label of -1 is one that no model can give.
        labelled: inputs and labels to train on; None: a target without labels.
        unlabelled: training inputs that methods may read without labels.
        classes: numbers of the classes that the task has; None: all of them.
    """

    parts: Mapping[Part, tuple[Texts, Labels]]
    labelled: tuple[Texts, Labels] | None
    unlabelled: Texts | None = None
    classes: tuple[int, ...] | None = None


def known_task(task: str, tasks: tuple[str, ...]) -> str:
    """The task itself.

    Raises:
        ValueError: there is none of that name; the sentence names the nearest one.
    """
    if task not in tasks:
        raise ValueError(f"no task {task!r}{close_name(task, tasks)}; expected one of {', '.join(tasks)}")
    return task


class TrainedProblem(ABC):
    """A problem that is trained by the methods of :mod:`xferkit.methods`.

    Args:
        name: short name.
        target: the task in question.
        tasks: what can be trained on.
        recipe: how.
        metric: the score.

    Raises:
        ValueError: an unknown score.
    """

    higher_is_better = True
    tagging = False
    #: What a task is, for a reader.
    unit = "task"

    def __init__(
        self, name: str, target: str, tasks: tuple[str, ...], recipe: Recipe, metric: Metric = "accuracy"
    ) -> None:
        if metric not in get_args(Metric):
            raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")
        self.name, self.target, self.tasks, self.recipe = name, target, tasks, recipe
        self.metric: str = metric

    @property
    def everything(self) -> tuple[str, ...]:
        """The tasks, and the target where it is none of them."""
        return self.tasks if self.target in self.tasks else (*self.tasks, self.target)

    def settings(self) -> dict[str, Any]:
        """Plain values that decide a run beside the data."""
        own = {"name": self.name, "target": self.target, "tasks": list(self.tasks), "metric": self.metric}
        return {**own, **asdict(self.recipe)}

    def trained(self) -> str:
        """How a task alone is trained, in a sentence."""
        r = self.recipe
        return (
            f"A task alone makes {r.steps} steps of {r.batch_size} examples with Adam at {r.learning_rate:g}, falling "
            "along a cosine; the last weights count."
        )

    @abstractmethod
    def _data(self, tasks: tuple[str, ...]) -> dict[str, TaskData]:
        """Every task as numbers, read with what is known from the training examples of ``tasks``."""

    @abstractmethod
    def _encoder(self, width: float) -> Encoder:
        """A new encoder, drawn from torch's generator."""

    @property
    @abstractmethod
    def _num_classes(self) -> int:
        """Classes, or tags, of all tasks together."""

    def train(self, spec: RunSpec) -> RunResult:
        """Train one model and score every task; the same spec gives the same result on the same machine.

        Raises:
            ValueError: a task or method that does not exist, or settings that do not go together.
        """
        for task in spec.tasks:
            known_task(task, self.tasks)
        tasks = tuple(task for task in self.tasks if task in spec.tasks)
        start = time.perf_counter()
        data = self._data(tasks)
        streams = self._streams(spec, tasks, data)
        labelled = streams["labelled"]
        with seeded(derive_seed(spec.seed, "run")):
            method = self._method(spec, tasks, data)
            look = _Looks(spec, self.recipe, method, self._looked_at(labelled.domains, data))
            trainer = Trainer(
                schedule="cosine",
                progress="silent",
                title=f"{self.name} {spec.method} {spec.seed}",
                clip_norm=self.recipe.clip_norm,
                device="cpu",
                log_every=self.recipe.steps,
                select="last",
                eval_every=1 if spec.observe else 0,
            )
            history = trainer.fit(method, streams, self.recipe.steps, evaluate=look if spec.observe else None)
            answers = {
                task: self._answers(method, data[task], spec.part, self._number(method, task, tasks))
                for task in self.everything
            }
            masks = self._masks(spec, method, data) if spec.masks else None
        gold, found = answers[self.target]
        return RunResult(
            scores={task: _score(self.metric, *of) for task, of in answers.items()},
            correct={self.target: self._per_example(gold, found, data[self.target], spec.part)},
            steps=history.steps,
            examples=dict(labelled.seen),
            seconds=time.perf_counter() - start,
            looks=look.found,
            gates=self._gates(method, data[self.target], spec.part, tasks),
            also={name: _score(name, gold, found) for name in get_args(Metric) if name != self.metric},
            masks=masks,
        )

    def _looked_at(
        self, domains: Sequence[DomainData], data: Mapping[str, TaskData]
    ) -> list[tuple[int | None, DomainData]]:
        """The tasks trained on by their numbers, and the target where it is none of them."""
        found: list[tuple[int | None, DomainData]] = [*enumerate(domains)]
        if all(domain.name != self.target for domain in domains):
            own = self._labelled(self.target, data[self.target], self.lent)
            found += [(None, own)] if len(own.inputs) > 1 else []
        return found

    @property
    def lent(self) -> SplitName:
        """The part whose labels tell of the target: training, or development where training has none."""
        return "train" if self.target in self.tasks else "dev"

    @staticmethod
    def _labelled(task: str, data: TaskData, split: SplitName) -> DomainData:
        """Examples of the training or the development part with their labels, as far as the model knows them."""
        part = data.labelled if split == "train" else data.parts["dev"]
        assert part is not None, "only tasks with labels are asked for their training part"
        texts, labels = part
        if isinstance(labels, Tensor):
            known = torch.nonzero(labels >= 0).squeeze(1)
            texts, labels = (
                (texts, labels) if len(known) == len(labels) else (texts.select(known), labels[known])
            )
        return DomainData(task, texts, labels)

    def _masks(self, spec: RunSpec, method: ClassifierMethod, data: Mapping[str, TaskData]) -> MaskRun | None:
        # Of one part for all: examples that the model was trained on could need other units than new ones.
        return compare_task_masks(
            method,
            self._labelled(self.target, data[self.target], self.lent),
            [[self._labelled(task, data[task], self.lent) for task in group] for group in spec.masks],
            batch_size=self.recipe.batch_size,
            seed=spec.seed,
        )

    def _gates(
        self, method: ClassifierMethod, data: TaskData, part: Part, tasks: tuple[str, ...]
    ) -> dict[str, float]:
        weigh = getattr(method, "source_weights", None)
        texts = data.parts[part][0]
        weights = weigh(texts.select(torch.arange(min(len(texts), 256)))) if weigh is not None else None
        return {} if weights is None else dict(zip(tasks, weights.tolist(), strict=True))

    def _streams(
        self, spec: RunSpec, tasks: tuple[str, ...], data: Mapping[str, TaskData]
    ) -> dict[str, TaskStream]:
        domains = []
        for task in tasks:
            labelled = data[task].labelled
            assert labelled is not None, "only tasks with labels are trained on"
            domains.append(DomainData(task, *labelled))
        size = self.recipe.batch_size * (len(tasks) if spec.matching == "per_task_steps" else 1)
        shares = equal_shares(len(domains))
        if spec.temperature is not None:
            shares = temperature_shares([len(d.inputs) for d in domains], spec.temperature)
        texts = []
        for domain in domains:
            free = data[domain.name].unlabelled
            texts.append(DomainData(domain.name, domain.inputs if free is None else free))
        own = data[self.target].unlabelled
        if self.target not in tasks and own is not None:
            texts.append(DomainData(self.target, own))
        # As many texts of each language as in the other stream, or about as many where they share a batch.
        count = round(size * len(texts) / len(tasks))
        return {
            "labelled": TaskStream(
                domains,
                size,
                shares,
                seed=spec.seed,
                name="labelled",
                shared_mean=spec.temperature is not None,
            ),
            "unlabelled": TaskStream(
                texts, count, equal_shares(len(texts)), seed=spec.seed, name="unlabelled"
            ),
        }

    def _method(
        self, spec: RunSpec, tasks: tuple[str, ...], data: Mapping[str, TaskData]
    ) -> ClassifierMethod:
        config = method_settings(spec, self.recipe)
        values = {
            name: getattr(config, name, getattr(self.recipe, name))
            for name in ("dropout", "learning_rate", "weight_decay")
        }
        built = build_method(
            spec.method,
            ClassifierSpec(
                make_encoder=lambda: self._encoder(spec.width),
                num_classes=self._num_classes,
                num_sources=len(tasks),
                target_inputs=data[self.target].unlabelled,
                hidden_dim=scaled(int(self.recipe.sizes.get("hidden_dim", 0)), spec.width) or None,
                tagging=self.tagging,
                source_names=tasks,
                **values,
            ),
            config,
        )
        weighed = spec.weights is not None or spec.temperature is not None
        if not isinstance(built, Pooled) and (weighed or spec.masks):
            raise ValueError(
                f"method {spec.method!r} does not weigh tasks and has no masks; expected 'pooled' where weights, a "
                "temperature or masks are given"
            )
        if isinstance(built, Pooled) and weighed:
            weights = equal_shares(len(tasks))
            if spec.temperature is not None:
                labelled = [data[task].labelled for task in tasks]
                weights = temperature_shares([len(x[0]) for x in labelled if x], spec.temperature)
            given = [float(w) * (spec.weights or {}).get(t, 1.0) for w, t in zip(weights, tasks, strict=True)]
            built.set_weights(torch.tensor(given) / sum(given))
        return built

    def _number(self, method: ClassifierMethod, task: str, tasks: tuple[str, ...]) -> int | None:
        # A gate per language was measured on the target's own training texts, with labels or without.
        gated = getattr(method, "target_gate", None) is not None
        return None if task not in tasks or (gated and task == self.target) else tasks.index(task)

    def _answers(
        self, method: ClassifierMethod, data: TaskData, part: Part, number: int | None
    ) -> tuple[Tensor, Tensor]:
        """Labels and answers, ``int64``, of each example (of a tagger: of each token)."""
        texts, labels = data.parts[part]
        gold = labels.flat.long() if isinstance(labels, RaggedLabels) else labels
        lengths = labels.lengths if isinstance(labels, RaggedLabels) else torch.ones(len(texts)).long()
        starts = lengths.cumsum(0) - lengths
        best = torch.full_like(gold, -2)
        barred = torch.zeros(self._num_classes, dtype=torch.bool)
        if data.classes is not None:
            barred[:] = True
            barred[list(data.classes)] = False
        for index in texts.lengths.argsort(stable=True).split(64 if self.tagging else 256):
            log_probs = method.predict(texts.select(index), number).masked_fill(barred, -torch.inf)
            found = log_probs.argmax(-1)
            if not self.tagging:
                best[index] = found
                continue
            mask = torch.arange(found.shape[1]) < lengths[index].unsqueeze(1)
            best[(starts[index].unsqueeze(1) + torch.arange(found.shape[1]))[mask]] = found[mask]
        return gold, best

    def _per_example(self, gold: Tensor, found: Tensor, data: TaskData, part: Part) -> list[float]:
        """Numbers that are independent of each other, whose mean is the accuracy; none for another score.

        The tokens of a sentence are not independent: a sentence counts as one example, with its number of right tokens
        over the mean length.
        """
        if self.metric != "accuracy":
            return []
        right = (gold == found).double()
        labels = data.parts[part][1]
        if isinstance(labels, RaggedLabels):
            sums = torch.zeros(len(labels), dtype=torch.float64)
            sums.index_add_(0, torch.arange(len(labels)).repeat_interleave(labels.lengths), right)
            right = sums * len(labels) / len(gold)
        return right.tolist()


def _score(metric: str, gold: Tensor, found: Tensor) -> float:
    if metric == "macro_f1":
        # Of the same classes for every model that is scored on these examples.
        return macro_f1(gold.numpy(), found.numpy(), gold.unique().numpy())
    return float((gold == found).double().mean())


class _Looks:
    """Looks at the training after some of its steps; to be called after each."""

    def __init__(
        self,
        spec: RunSpec,
        recipe: Recipe,
        method: ClassifierMethod,
        domains: Sequence[tuple[int | None, DomainData]],
    ) -> None:
        self.found: list[Look] = []
        self._step = 0
        self._due = frozenset(look_steps(recipe.steps, spec.observe)) if spec.observe else frozenset()
        self._observer: GradientObserver | None = None
        if spec.observe:
            halves = {}
            for number, d in domains:
                assert d.labels is not None
                halves[d.name] = halves_of(d.name, number, d.inputs, d.labels, recipe.observed, spec.seed)
            self._observer = GradientObserver(method, halves)

    def __call__(self) -> Mapping[str, float]:
        self._step += 1
        if self._observer is not None and self._step in self._due:
            self.found.append(self._observer.look(self._step))
        return {}
