"""Why a source hurts: every cause that the problem's data and the looks at its gradients allow, each with its null."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from xferkit.diagnosis.problem import Look, Problem, RunResult
from xferkit.transfer.causes import (
    Cause,
    RankedCauses,
    SourceClusters,
    TextPart,
    cluster_sources,
    domination,
    gradient_conflict,
    input_shift,
    label_shift,
    leakage,
    missing_classes,
    rank_causes,
    token_costs,
    word_coverage,
)

__all__ = ["find_causes", "source_clusters"]

_MOST_TEXTS = 2000  # of a part, for causes that compare texts


def _whole(looks: Sequence[Look], a: str, b: str) -> list[float]:
    return [look.cosine[f"{a}-{b}" if f"{a}-{b}" in look.cosine else f"{b}-{a}"][0] for look in looks]


def source_clusters(problem: Problem, observed: Sequence[RunResult]) -> SourceClusters:
    """Sources by the mean cosine of their gradients over the looks of a training of all tasks, seed by seed.

    Args:
        problem: whose tasks.
        observed: trainings of all tasks with looks, one a seed.
    """
    sources = [task for task in problem.tasks if task != problem.target]
    size = len(sources)
    matrices = np.ones((len(observed), size, size))
    to_target = np.zeros((len(observed), size))
    for number, result in enumerate(observed):
        for i in range(size):
            for j in range(i):
                mean = float(np.mean(_whole(result.looks, sources[i], sources[j])))
                matrices[number, i, j] = matrices[number, j, i] = np.clip(mean, -1.0, 1.0)
            if problem.target in problem.tasks:
                to_target[number, i] = np.mean(_whole(result.looks, sources[i], problem.target))
    labelled = problem.target in problem.tasks
    return cluster_sources(matrices, sources, target_cosines=to_target.mean(0).tolist() if labelled else None)


def find_causes(
    problem: Problem,
    observed: Sequence[RunResult],
    groups: Mapping[str, Sequence[str]],
    clusters: SourceClusters,
    extra: Sequence[Cause] = (),
    not_measured: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, RankedCauses]:
    """Causes by group of sources, and ``""`` for those of all tasks together.

    Args:
        problem: the problem.
        observed: trainings of all tasks with looks, one a seed.
        groups: sources by the name of their group.
        clusters: how the groups came about.
        extra: causes that were measured by further trainings (capacity).
        not_measured: reasons for what was not.
        note: told what failed.
    """
    reasons = {
        "gate weights": "no gate was trained; --try-fixes trains some",
        "mask overlap": "no masks were trained",
    }
    everything: list[Cause] = [clusters, *_dominations(problem, observed), *extra]
    everything += [cause for cause in (_leakage(problem, note), _tokens(problem, note)) if cause is not None]
    found = {"": _ranked(everything, {**reasons, **(not_measured or {})}, "measured by group")}
    for name, members in groups.items():
        causes: list[Cause] = []
        if problem.target in problem.tasks:
            causes.append(_conflict(problem, observed, name, members))
        causes += _data_causes(problem, members, note)
        found[name] = _ranked(causes, {}, "measured for all tasks together")
    return found


def _ranked(causes: Sequence[Cause], reasons: Mapping[str, str], why: str) -> RankedCauses:
    from xferkit.transfer.causes import CAUSES

    measured = {cause.cause for cause in causes}
    kept = {name: text for name, text in reasons.items() if name in CAUSES and name not in measured}
    return rank_causes(causes, kept, why_not=why)


def _conflict(problem: Problem, observed: Sequence[RunResult], name: str, members: Sequence[str]) -> Cause:
    """Of the target with the mean of a group's members, by group of parameters."""
    groups = observed[0].looks[0].groups
    target = problem.target

    def of(look: Look) -> tuple[list[float], list[float], list[float]]:
        pairs = [look.cosine.get(f"{target}-{m}") or look.cosine[f"{m}-{target}"] for m in members]
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


def _dominations(problem: Problem, observed: Sequence[RunResult]) -> list[Cause]:
    tasks = [task for task in problem.tasks if task in observed[0].looks[0].norm]
    if len(tasks) < 2:
        return []
    norms = [[[look.norm[task][0] for task in tasks] for look in result.looks] for result in observed]
    losses = [[[look.loss[task] for task in tasks] for look in result.looks] for result in observed]
    samples = [observed[0].examples.get(task, 0) for task in tasks]
    target = problem.target if problem.target in tasks else None
    return [domination(norms, tasks, losses=losses, samples=samples, target=target)]


def _leakage(problem: Problem, note: Callable[[str], None]) -> Cause | None:
    texts = list(problem.texts(problem.target, "test"))
    if not texts or not isinstance(texts[0], str):
        return None
    others = [
        TextPart(f"{task} train", [str(text) for text in problem.texts(task, "train")][:_MOST_TEXTS])
        for task in problem.tasks
    ]
    try:
        return leakage(TextPart(f"{problem.target} test", texts[:_MOST_TEXTS]), others)
    except ValueError as error:
        note(f"duplicates were not measured: {error}")
        return None


def _tokens(problem: Problem, note: Callable[[str], None]) -> Cause | None:
    """Unknown words and their number, of every task's texts."""
    texts = {
        task: list(problem.texts(task, "train"))[:_MOST_TEXTS] for task in {*problem.tasks, problem.target}
    }
    texts = {task: found for task, found in sorted(texts.items()) if found and isinstance(found[0], str)}
    if problem.target not in texts or len(texts) < 2:
        return None
    try:
        return token_costs(texts, problem.target)
    except ValueError as error:
        note(f"the costs of tokens were not measured: {error}")
        return None


def _data_causes(problem: Problem, members: Sequence[str], note: Callable[[str], None]) -> list[Cause]:
    part = "train" if problem.target in problem.tasks else "dev"
    own_labels = list(problem.labels(problem.target, part))  # type: ignore[arg-type]
    labels = [label for member in members for label in problem.labels(member, "train")]
    measures: list[Callable[[], Cause]] = []
    if own_labels and labels:
        measures += [lambda: label_shift(own_labels, labels), lambda: missing_classes(own_labels, labels)]
    texts = list(problem.texts(problem.target, "train"))
    if texts and isinstance(texts[0], str):
        others = [str(text) for member in members for text in problem.texts(member, "train")]
        measures.append(lambda: word_coverage(texts[:_MOST_TEXTS], others[: 4 * _MOST_TEXTS]))
    features = problem.encode(problem.target)
    if features is not None and importlib.util.find_spec("sklearn") is not None:
        rows: list[npt.NDArray[np.float32]] = []
        for member in members:
            encoded = problem.encode(member)
            rows += [] if encoded is None else [encoded]
        if rows:
            measures.append(lambda: input_shift(features, np.concatenate(rows), splits=5, max_rows=400))
    found: list[Cause] = []
    for measure in measures:
        try:
            found.append(measure())
        except ValueError as error:
            note(f"a cause was not measured: {error}")
    return found
