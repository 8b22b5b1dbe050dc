"""Why a source hurts: every cause that the problem's data and the looks at its gradients allow, each with its null."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from xferkit.data.seeding import derive_seed
from xferkit.diagnosis.problem import Look, Problem, RunResult, SplitName
from xferkit.transfer.causes import (
    CAUSES,
    Cause,
    Domination,
    GradientConflict,
    InputShift,
    LabelShift,
    Leakage,
    MaskOverlap,
    MissingClasses,
    RankedCauses,
    SourceClusters,
    TextPart,
    TokenCosts,
    WordCoverage,
    cluster_sources,
    domination,
    fold_text,
    gradient_conflict,
    input_shift,
    label_shift,
    leakage,
    mask_overlap,
    missing_classes,
    rank_causes,
    token_costs,
    word_coverage,
)

__all__ = ["ELSEWHERE", "find_causes", "mean_cosines", "repeated_texts", "source_clusters"]

#: How the reason begins of a cause that stands with all tasks, or with the groups.
ELSEWHERE = "measured for "
_SCORED: tuple[SplitName, ...] = ("dev", "test")
_MOST_TEXTS = 2000  # of a task, for causes that look at words


def _whole(looks: Sequence[Look], a: str, b: str) -> list[float]:
    return [look.between(a, b)[0] for look in looks]


def mean_cosines(problem: Problem, observed: Sequence[RunResult]) -> dict[str, dict[str, float]]:
    """Of each two tasks that were looked at, the mean cosine over looks and seeds; of a task by itself, its null."""
    looks = [look for result in observed for look in result.looks]
    tasks = [*dict.fromkeys([problem.target, *problem.tasks])]
    tasks = [task for task in tasks if looks and task in looks[0].null]
    return {
        a: {
            b: float(np.mean([look.null[a][0] if a == b else look.between(a, b)[0] for look in looks]))
            for b in tasks
        }
        for a in tasks
    }


def source_clusters(problem: Problem, observed: Sequence[RunResult]) -> SourceClusters:
    """Sources by the mean cosine of their gradients over the looks of a training of all tasks, seed by seed.

    Args:
        problem: whose tasks.
        observed: trainings of all tasks with looks, one a seed.
    """
    sources = [task for task in problem.tasks if task != problem.target]
    size, looked = len(sources), problem.target in observed[0].looks[0].null
    matrices = np.ones((len(observed), size, size))
    to_target = np.zeros((len(observed), size))
    for number, result in enumerate(observed):
        for i in range(size):
            for j in range(i):
                mean = float(np.mean(_whole(result.looks, sources[i], sources[j])))
                matrices[number, i, j] = matrices[number, j, i] = np.clip(mean, -1.0, 1.0)
            if looked:
                to_target[number, i] = np.mean(_whole(result.looks, sources[i], problem.target))
    return cluster_sources(matrices, sources, target_cosines=to_target.mean(0).tolist() if looked else None)


def find_causes(
    problem: Problem,
    observed: Sequence[RunResult],
    groups: Mapping[str, Sequence[str]],
    clusters: SourceClusters,
    masked: Sequence[RunResult] = (),
    extra: Sequence[Cause] = (),
    not_measured: Mapping[str, str] | None = None,
) -> dict[str, RankedCauses]:
    """Causes by group of sources, and ``""`` for those of all tasks together.

    Args:
        problem: the problem.
        observed: trainings of all tasks with looks, one a seed.
        groups: sources by the name of their group.
        clusters: how the groups came about.
        masked: trainings of all tasks with masks of the groups, one a seed.
        extra: causes that were measured by further trainings (capacity).
        not_measured: reasons for what was not.
    """
    scopes = {name: _Scope() for name in ("", *groups)}
    everything = scopes[""]
    everything.causes += [clusters, *extra]
    everything.missing.update(not_measured or {})
    everything.measure(Domination.cause, lambda: _domination(problem, observed))
    for part in _SCORED:
        everything.measure(Leakage.cause, partial(_leakage, problem, part))
    everything.measure(TokenCosts.cause, lambda: _tokens(problem))
    for place, (name, members) in enumerate(groups.items()):
        _of_group(scopes[name], problem, observed, masked, place, name, members)
    together = {cause.cause for cause in everything.causes}
    by_group = {cause.cause for name, scope in scopes.items() if name for cause in scope.causes}
    why_not = {name: why for group in groups for name, why in scopes[group].missing.items()}
    found = {"": everything.ranked(by_group, "each group", why_not)}
    return found | {
        name: scopes[name].ranked(together, "all tasks together", everything.missing) for name in groups
    }


class _Scope:
    """Causes of one group, or of all tasks together, and why others are not among them."""

    def __init__(self) -> None:
        self.causes: list[Cause] = []
        self.missing: dict[str, str] = {}

    def measure(self, name: str, measured: Callable[[], Cause]) -> None:
        """Add the cause, or say why there is none."""
        try:
            self.causes.append(measured())
        except ValueError as error:
            self.missing[name] = str(error)

    def ranked(self, elsewhere: set[str], where: str, why_not: Mapping[str, str]) -> RankedCauses:
        """What was measured, and for the others why not here, that it was ``elsewhere``, or why not there either."""
        own = {cause.cause for cause in self.causes}
        reasons = {**why_not, **{name: f"{ELSEWHERE}{where}" for name in elsewhere}, **self.missing}
        kept = {name: why for name, why in reasons.items() if name in CAUSES and name not in own}
        return rank_causes(self.causes, kept, why_not="it does not apply")


def _of_group(
    scope: _Scope,
    problem: Problem,
    observed: Sequence[RunResult],
    masked: Sequence[RunResult],
    place: int,
    name: str,
    members: Sequence[str],
) -> None:
    scope.measure(GradientConflict.cause, lambda: _conflict(problem, observed, name, members))
    if masked and all(result.masks is not None for result in masked):
        scope.measure(MaskOverlap.cause, lambda: _masks(masked, place))
    scope.measure(LabelShift.cause, lambda: label_shift(*_labels(problem, members)))
    scope.measure(MissingClasses.cause, lambda: missing_classes(*_labels(problem, members)))
    scope.measure(WordCoverage.cause, lambda: _words(problem, members))
    scope.measure(InputShift.cause, lambda: _inputs(problem, members))


def _conflict(problem: Problem, observed: Sequence[RunResult], name: str, members: Sequence[str]) -> Cause:
    """Of the target with the mean of a group's members, by group of parameters."""
    groups = observed[0].looks[0].groups
    target = problem.target
    if target not in observed[0].looks[0].null:
        raise ValueError("gradients of the target were not looked at")

    def of(look: Look) -> tuple[list[float], list[float], list[float]]:
        pairs = [look.between(target, m) for m in members]
        nulls = [look.null[m] for m in members]
        mean = [float(np.mean(column)) for column in zip(*pairs, strict=True)]
        null = [float(np.mean(column)) for column in zip(*nulls, strict=True)]
        return mean, list(look.null[target]), null

    rows = [[of(look) for look in result.looks] for result in observed]
    pair, own, theirs = (
        np.clip(np.array([[look[part] for look in looks] for looks in rows]), -1.0, 1.0) for part in range(3)
    )
    steps = [look.step for look in observed[0].looks]
    return gradient_conflict(pair, own, theirs, steps=steps, groups=groups, target=target, source=name)


def _masks(masked: Sequence[RunResult], place: int) -> Cause:
    """Of the group at that place among those that masks were trained for."""
    from xferkit.masks import MaskComparison

    found = [result.masks for result in masked if result.masks is not None]
    across = [MaskComparison.from_json(masks.across[place]) for masks in found]
    within = [MaskComparison.from_json(masks.within) for masks in found]
    return mask_overlap(across, within, examples=found[0].examples)


def _domination(problem: Problem, observed: Sequence[RunResult]) -> Cause:
    # A target that is not trained on is looked at too, and dominates nothing.
    tasks = [task for task in problem.tasks if task in observed[0].looks[0].norm]
    if len(tasks) < 2:
        raise ValueError("there are no two tasks to compare")
    norms = [[[look.norm[task][0] for task in tasks] for look in result.looks] for result in observed]
    losses = [[[look.loss[task] for task in tasks] for look in result.looks] for result in observed]
    samples = [observed[0].examples.get(task, 0) for task in tasks]
    target = problem.target if problem.target in tasks else None
    return domination(norms, tasks, losses=losses, samples=samples, target=target)


def _some(problem: Problem, tasks: Sequence[str], split: SplitName, most: int) -> list[str]:
    """At most so many texts of all these tasks, drawn at random, in their order; ValueError where there are none."""
    texts = [text for task in tasks for text in problem.texts(task, split)]
    if not texts or not isinstance(texts[0], str):
        raise ValueError(f"{', '.join(tasks)} has no texts" if not len(texts) else "the inputs are no texts")
    if len(texts) <= most:
        return texts
    rows = np.random.default_rng(derive_seed(0, "why", *tasks, split)).choice(len(texts), most, replace=False)
    return [texts[row] for row in np.sort(rows)]


def _all(problem: Problem, task: str, split: SplitName) -> TextPart:
    return TextPart(f"{task} {split}", _some(problem, [task], split, sys.maxsize))


def _leakage(problem: Problem, part: SplitName) -> Cause:
    """Of the part that the matrix is scored on (development), and of that of the last measurement (test)."""
    return leakage(
        _all(problem, problem.target, part), [_all(problem, task, "train") for task in problem.tasks]
    )


def repeated_texts(problem: Problem, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each group that holds a tenth or more of a labelled target's own training texts."""
    if problem.target not in problem.tasks:
        return []
    own = [text for text in problem.texts(problem.target, "train") if isinstance(text, str)]
    found = []
    for name, members in groups.items():
        theirs = {
            fold_text(text)
            for task in members
            for text in problem.texts(task, "train")
            if isinstance(text, str)
        }
        count = sum(fold_text(text) in theirs for text in own)
        if count and 10 * count >= len(own):
            found.append(
                f"{count} of {len(own)} training texts of {problem.target} stand in {name} too, which can teach little "
                "new by them."
            )
    return found


def _tokens(problem: Problem) -> Cause:
    """Unknown tokens, and tokens a word, under the problem's own tokenizer, on texts that it was not built from."""
    tokenizer = getattr(problem, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; unknown words tell of words")
    tasks = sorted({*problem.tasks, problem.target})
    texts = {task: _some(problem, [task], "dev", _MOST_TEXTS) for task in tasks}
    return token_costs(
        texts, problem.target, tokenizer=tokenizer, unknown=getattr(problem, "unknown_token", None)
    )


def _labels(problem: Problem, members: Sequence[str]) -> tuple[list[str], list[str]]:
    part: SplitName = "train" if problem.target in problem.tasks else "dev"
    own = list(problem.labels(problem.target, part))
    theirs = [label for member in members for label in problem.labels(member, "train")]
    if not own or not theirs:
        raise ValueError("there are no labels to compare")
    return own, theirs


def _words(problem: Problem, members: Sequence[str]) -> Cause:
    split: SplitName = "train" if any(True for _ in problem.texts(problem.target, "train")) else "dev"
    own = _some(problem, [problem.target], split, _MOST_TEXTS)
    return word_coverage(own, _some(problem, members, "train", 4 * _MOST_TEXTS))


def _inputs(problem: Problem, members: Sequence[str]) -> Cause:
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("scikit-learn is not installed")
    features = problem.encode(problem.target)
    others = [encoded for member in members if (encoded := problem.encode(member)) is not None]
    if features is None or not others:
        raise ValueError("the problem has no features that no training made")
    return input_shift(features, np.concatenate(others), max_rows=400)
