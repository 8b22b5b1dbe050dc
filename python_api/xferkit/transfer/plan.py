"""The transfer matrix as runs: which task sets are trained, how long, and which two of them each cell compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Literal, get_args

__all__ = ["Budget", "Comparison", "Kind", "Matching", "Plan", "Run", "counted", "make_plan"]

#: How much training a task has in company, S being the steps of a task alone. ``per_task_steps``: S for each task, so
#: the target has what it had alone and what changes is the company; ``total_steps``: S in all, S / k for each of k
#: tasks, so the source takes training from the target; ``own``: whatever the training function does.
Matching = Literal["per_task_steps", "total_steps", "own"]

#: What a cell compares. ``pair``: target and one source against target alone; ``group``: target and several sources
#: against target alone; ``all``: all tasks against target alone; ``leave_one_out``: all tasks against all but one
#: source; ``leave_group_out``: all tasks against all but a group. A comparison that two kinds share has the first
#: of ``pair``, ``all``, ``group``, ``leave_one_out``, ``leave_group_out``.
Kind = Literal["pair", "group", "all", "leave_one_out", "leave_group_out"]

#: Which cells are planned. ``groups``: groups alone; ``pairs``: pairs (and groups where given); ``full``: all kinds;
#: ``leave_out``: all tasks against all but a source or a group, for a target that has no labels and so is never trained
#: alone; ``leave_groups_out``: groups alone of these.
Budget = Literal["groups", "pairs", "full", "leave_out", "leave_groups_out"]

_MATCHINGS: tuple[Matching, ...] = get_args(Matching)


def counted(number: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Run:
    """One training: these tasks together, from this seed. Its score on each of its tasks is used.

    Attributes:
        tasks: in the order in which they were given to the plan.
        seed: the same in the runs that are compared.
        matching: how long; for a single task ``per_task_steps`` and ``total_steps`` are the same training, which
            is planned once and called ``per_task_steps``.
    """

    tasks: tuple[str, ...]
    seed: int
    matching: Matching

    @property
    def method(self) -> str:
        """Runs of one name take about the same time."""
        return f"{len(self.tasks)} {self.matching}"

    @property
    def cost(self) -> float:
        """Steps of the run in units of S; for ``own``, as if every task had S."""
        return 1.0 if self.matching == "total_steps" else float(len(self.tasks))

    def describe(self) -> str:
        """The run in a phrase."""
        how = "" if self.matching == "own" or len(self.tasks) == 1 else f", {self.matching}"
        return f"{' + '.join(self.tasks)}{how}, seed {self.seed}"

    def steps(self, alone: int) -> dict[str, int]:
        """Steps of each task when a task alone has `alone`.

        Under ``total_steps`` they add up to `alone`; what does not divide goes to the first tasks.

        Raises:
            ValueError: `alone` is below 1, or the matching is ``own``.
        """
        if alone < 1:
            raise ValueError(f"Run.steps: alone must be 1 or more, got {alone}")
        if self.matching == "own":
            raise ValueError("Run.steps: the run has no matching; plan it with one")
        if self.matching == "per_task_steps":
            return dict.fromkeys(self.tasks, alone)
        each, left = divmod(alone, len(self.tasks))
        return {task: each + (i < left) for i, task in enumerate(self.tasks)}


@dataclass(frozen=True)
class Comparison:
    """One cell of the matrix: the target's score in one task set against that in another, seed by seed.

    Attributes:
        target: the task whose score is compared.
        sources: what the first set has and the second has not.
        kind: see :data:`Kind`.
        matching: see :data:`Matching`.
        with_tasks: the set with the sources.
        without_tasks: the set without.
        group: name of the sources where they are a group.
    """

    target: str
    sources: tuple[str, ...]
    kind: Kind
    matching: Matching
    with_tasks: tuple[str, ...]
    without_tasks: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class Plan:
    """All comparisons and the runs that they need; a task set is trained once a seed, however many cells use it."""

    tasks: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    matchings: tuple[Matching, ...]
    budget: Budget
    comparisons: tuple[Comparison, ...]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs, seed after seed, small sets first: after one seed every cell has its first pair."""
        found: dict[Run, None] = {}
        for seed in self.seeds:
            of_seed = {
                self.run(tasks, seed, c.matching)
                for c in self.comparisons
                for tasks in (c.with_tasks, c.without_tasks)
            }
            positions = {task: i for i, task in enumerate(self.tasks)}
            order = sorted(of_seed, key=lambda r: (len(r.tasks), [positions[t] for t in r.tasks], r.matching))
            found.update(dict.fromkeys(order))
        return tuple(found)

    @property
    def num_runs(self) -> int:
        """How many trainings there are."""
        return len(self.runs)

    def run(self, tasks: tuple[str, ...], seed: int, matching: Matching) -> Run:
        """The run that trains `tasks` from `seed`; a single task has one, whichever the matching."""
        if len(tasks) == 1 and matching == "total_steps":
            matching = "per_task_steps"
        return Run(tasks, seed, matching)

    def pairs(self, comparison: Comparison) -> tuple[tuple[Run, Run], ...]:
        """For each seed the run with the sources and the run without."""
        c = comparison
        return tuple(
            (self.run(c.with_tasks, seed, c.matching), self.run(c.without_tasks, seed, c.matching))
            for seed in self.seeds
        )

    def describe(self) -> str:
        """The size of the plan in a sentence."""
        sets = counted(len(self.runs) // len(self.seeds), "task set")
        return (
            f"{counted(len(self.comparisons), 'comparison')} of {sets}, {counted(len(self.seeds), 'seed')}: "
            f"{counted(self.num_runs, 'run')}."
        )


def make_plan(
    tasks: Sequence[str],
    seeds: int | Sequence[int] = 5,
    *,
    target: str | Sequence[str] | None = None,
    budget: Budget = "pairs",
    groups: Mapping[str, Sequence[str]] | None = None,
    matchings: Matching | Sequence[Matching] = ("per_task_steps",),
    trained: bool = True,
) -> Plan:
    """Which runs answer the question for these tasks.

    For N tasks that are all targets, ``pairs`` trains N + N(N-1)/2 task sets a seed, ``full`` up to N + 1 more, and all
    but the N single ones once per matching.

    Args:
        tasks: two or more names.
        seeds: a number n (seeds 1 to n), or the seeds.
        target: the task in question, or several; None: each one.
        budget: see :data:`Budget`.
        groups: sources by the name of their group; a target is left out of its own group.
        matchings: see :data:`Matching`; ``own`` stands alone.
        trained: False: targets have no labels, and are scored in every run and trained in none. Then the budget is
            ``leave_out`` or ``leave_groups_out``.

    Raises:
        ValueError: names that are missing, twice there or unknown, no seed or one twice, or no comparison at all.
    """
    if isinstance(
        tasks, (set, frozenset)
    ):  # its order, which runs are known by, is another one in each process
        raise ValueError("tasks must be a list of names, got a set, which has no order")
    names = _names(tasks, "tasks", at_least=2)
    wanted = names if target is None else _names([target] if isinstance(target, str) else target, "target")
    _known(wanted, names, "target")
    grouped = {label: _names(members, f"groups[{label!r}]") for label, members in (groups or {}).items()}
    for label, members in grouped.items():
        _known(members, names, f"groups[{label!r}]")
    if budget not in get_args(Budget):
        raise ValueError(f"budget must be one of {', '.join(get_args(Budget))}, got {budget!r}")
    if budget in ("groups", "leave_groups_out") and not grouped:
        raise ValueError(
            f"budget {budget!r} compares groups of sources; give them as groups={{name: [task, ...]}}"
        )
    if not trained and budget not in ("leave_out", "leave_groups_out"):
        raise ValueError(f"budget {budget!r} trains the target alone; expected leave_out or leave_groups_out")
    chosen = _matchings(matchings)
    found: dict[tuple[str, Matching, tuple[str, ...], tuple[str, ...]], Comparison] = {}
    for matching in chosen:
        for name in wanted:
            for c in _comparisons(name, names, budget, grouped, matching, () if trained else wanted):
                found.setdefault((c.target, c.matching, c.with_tasks, c.without_tasks), c)
    if not found:
        raise ValueError("nothing to compare: every group holds its target alone")
    return Plan(names, wanted, _seeds(seeds), chosen, budget, tuple(found.values()))


def _comparisons(
    target: str,
    tasks: tuple[str, ...],
    budget: Budget,
    groups: Mapping[str, tuple[str, ...]],
    matching: Matching,
    untrained: tuple[str, ...],
) -> Iterator[Comparison]:
    tasks = tuple(task for task in tasks if task not in untrained)

    def among(chosen: Sequence[str]) -> tuple[str, ...]:
        return tuple(task for task in tasks if task in chosen)

    def cell(kind: Kind, sources: Sequence[str], base: tuple[str, ...], group: str = "") -> Comparison:
        return Comparison(
            target, among(sources), kind, matching, among((*base, *sources)), among(base), group
        )

    others = tuple(task for task in tasks if task != target)
    inner = {label: rest for label, all_ in groups.items() if (rest := tuple(t for t in all_ if t != target))}
    alone = budget in ("groups", "pairs", "full")
    if budget in ("pairs", "full"):
        for source in others:
            yield cell("pair", (source,), (target,))
    if budget == "full":
        yield cell("all", others, (target,))
    for label, members in inner.items() if alone else ():
        yield cell("group", members, (target,), label)
    if budget in ("full", "leave_out"):
        for source in others:
            yield cell("leave_one_out", (source,), tuple(t for t in tasks if t != source))
    if budget in ("full", "leave_out", "leave_groups_out"):
        for label, members in inner.items():
            yield cell("leave_group_out", members, tuple(t for t in tasks if t not in members), label)


def _names(given: Sequence[str], what: str, at_least: int = 1) -> tuple[str, ...]:
    if isinstance(given, str):
        raise ValueError(
            f"{what} must be a list of names, got the single text {given!r}; expected [{given!r}, ...]"
        )
    if not isinstance(given, Iterable):
        raise ValueError(f"{what} must be a list of names, got {given!r}")
    names = tuple(given)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{what} must be a list of names, got {given!r}")
    if len(names) < at_least:
        raise ValueError(f"{what} must hold {counted(at_least, 'name')} or more, got {list(names)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} holds {twice[0]!r} more than once")
    return names


def _known(names: Sequence[str], tasks: Sequence[str], what: str) -> None:
    for name in names:
        if name not in tasks:
            raise ValueError(f"{what}: {name!r} is none of the tasks {', '.join(tasks)}")


def _matchings(given: Matching | Sequence[Matching]) -> tuple[Matching, ...]:
    names: tuple[str, ...] = (given,) if isinstance(given, str) else tuple(given)
    chosen = tuple(known for known in _MATCHINGS if known in names)
    if not chosen or any(name not in _MATCHINGS for name in names):
        raise ValueError(f"matchings must be some of {', '.join(_MATCHINGS)}, got {given!r}")
    if "own" in chosen and len(chosen) > 1:
        raise ValueError("matchings: 'own' is no matching and stands alone")
    return chosen


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 1:
            raise ValueError(f"seeds must be 1 or more, got {given}")
        return tuple(range(1, given + 1))
    try:
        if isinstance(given, (bool, str, bytes)):
            raise TypeError
        values = tuple(index(seed) for seed in given)
    except TypeError as error:
        raise ValueError(f"seeds must be a number or a list of whole numbers, got {given!r}") from error
    if not values or len(set(values)) < len(values):
        raise ValueError(f"seeds must be one or more, and differ from each other, got {list(values)}")
    return values
