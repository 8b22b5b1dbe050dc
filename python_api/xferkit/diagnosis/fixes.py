"""What repairs it, tried and not guessed: candidates race by successive halving, and the winner is measured anew.

The race is scored on development data with its own seeds; the winner and the plain sum are then trained with seeds that
the race has not seen, and scored on test data that nothing was chosen by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from xferkit.diagnosis.engine import Results
from xferkit.diagnosis.problem import Problem, RunSpec, metric_name
from xferkit.methods import method_names
from xferkit.metrics import Interval, paired_difference
from xferkit.transfer import Declined, Judgement, RunError, Verdict, judge
from xferkit.transfer.plan import counted

__all__ = ["Fix", "FixRace", "FixTried", "candidates", "race", "race_specs"]

RunAll = Callable[[list[RunSpec]], Results]

#: Weights that the tuned scalarisation tries for a group of sources, the others having 1.
_SCALES = (0.1, 0.3, 3.0)
_TEMPERATURES = (2.0, 5.0)


@dataclass(frozen=True)
class Fix:
    """A candidate.

    Attributes:
        name: in a few words.
        kind: what it is one of: "plain sum", "scalarisation", "temperature", "surgery", "dropping", "mixture".
        tasks: what is trained on.
        method, options, weights, temperature: as in :class:`~xferkit.diagnosis.problem.RunSpec`.
    """

    name: str
    kind: str
    tasks: tuple[str, ...]
    method: str = "pooled"
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] | None = None
    temperature: float | None = None

    def spec(self, seed: int, part: str, matching: str) -> RunSpec:
        """The run of a seed."""
        return RunSpec(
            self.tasks,
            seed,
            matching,  # type: ignore[arg-type]
            self.method,
            dict(self.options),
            self.weights,
            self.temperature,
            part=part,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class FixTried:
    """How a candidate did in the race.

    Attributes:
        fix: the candidate.
        scores: on development data, one a seed of the rounds that it was in.
        rounds: how many those were.
        problem: why it could not be tried, or "".
    """

    fix: Fix
    scores: list[float]
    rounds: int
    problem: str = ""


@dataclass(frozen=True)
class FixRace:
    """The race and the final measurement.

    Attributes:
        tried: all candidates, best first.
        winner: of the race; the plain sum where nothing beat it.
        seeds: of the final measurement, none of which the race has seen.
        plain: test scores of the plain sum, one a seed.
        won: test scores of the winner.
        judged: interval, p-value and verdict of the paired gains, positive: the winner is better.
        also: by other measures, test scores of the plain sum and of the winner, one a seed.
        alone: test scores of the target trained by itself, one a seed; empty where it has no labels.
        alone_gain: paired difference of these and the plain sum, positive: the sources hurt in the plain sum.
    """

    tried: list[FixTried]
    winner: Fix
    seeds: list[int]
    plain: list[float]
    won: list[float]
    judged: Judgement
    also: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    alone: list[float] = field(default_factory=list)
    alone_gain: Interval | None = None

    @property
    def gain(self) -> Interval:
        """Paired difference of the winner and the plain sum."""
        return self.judged.interval

    @property
    def verdict(self) -> Verdict:
        """HELPS, HURTS or INCONCLUSIVE: one comparison."""
        return self.judged.verdict

    @property
    def sentence(self) -> str:
        """What came out, in a sentence."""
        alone = ""
        if self.alone_gain is not None:
            alone = f" The target by itself against the plain sum: {_points(self.alone_gain)}."
        if self.winner.kind == "plain sum":
            return f"Plain sum is enough: no other candidate was better on development data.{alone}"
        note = f" ({self.judged.note})" if self.judged.note else ""
        fresh = f"on test data with {len(self.seeds)} fresh seeds"
        against = f"{self.winner.name} against the plain sum: {_points(self.gain)} {fresh}"
        words = {
            Verdict.HELPS: "it helps.",
            Verdict.HURTS: "what won on development data hurts there; the plain sum is better.",
            Verdict.INCONCLUSIVE: f"no clear difference{note}; the plain sum may be enough.",
        }
        others = [
            f"in {metric_name(name)} {_points(paired_difference(won, plain))}"
            for name, (plain, won) in self.also.items()
        ]
        return f"{against}: {words[self.verdict][:-1]}{''.join(f'; {other}' for other in others)}.{alone}"


def _points(gain: Interval) -> str:
    text = f"{100 * gain.mean:+.1f} points"
    return text if gain.n == 1 else f"{text} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def candidates(problem: Problem, groups: Mapping[str, Sequence[str]]) -> list[Fix]:
    """The plain sum and a tuned scalarisation, both always; temperatures, surgery, dropping, and gates."""
    tasks = problem.tasks
    labelled = problem.target in tasks
    sources = tuple(task for task in tasks if task != problem.target)
    found = [Fix("plain sum", "plain sum", tasks)]
    parts = {
        name: tuple(member for member in members if member in sources) for name, members in groups.items()
    }
    if len(parts) < 2:  # one group is all of them: source by source, then
        parts = {source: (source,) for source in sources}
    if labelled and sources not in parts.values():
        parts = {"all sources": sources, **parts}
    for name, members in parts.items():
        if members and len(members) < len(tasks):
            for scale in _SCALES:
                weights = dict.fromkeys(members, scale)
                found.append(Fix(f"weight {scale:g} for {name}", "scalarisation", tasks, weights=weights))
    if len({size.get("train", 0) for task, size in problem.sizes().items() if task in tasks}) > 1:
        found += [
            Fix(f"temperature sampling, T = {t:g}", "temperature", tasks, temperature=t)
            for t in _TEMPERATURES
        ]
    for name, members in parts.items():
        kept = tuple(task for task in tasks if task not in members)
        if members and kept:
            found.append(Fix(f"without {name}", "dropping", kept))
    known = method_names()
    for method, label, kind in (
        ("gradvac", "GradVac", "surgery"),
        ("pcgrad", "PCGrad", "surgery"),
        ("man_moe", "MAN-MoE", "mixture"),
        ("language_gate", f"MAN-MoE with a gate per {getattr(problem, 'unit', 'task')}", "mixture"),
        ("gate_weighted_pooling", "gate-weighted pooling", "mixture"),
    ):
        if method in known and len(tasks) > 1:
            found.append(Fix(label, kind, tasks, method))
    return list({(f.name, f.tasks): f for f in found}.values())


def race_specs(
    problem: Problem,
    fixes: Sequence[Fix],
    race_seeds: Sequence[int],
    fresh_seeds: Sequence[int],
    used: int = 0,
) -> list[RunSpec]:
    """Runs of a race from the round after ``used`` seeds on; every second candidate stands for the better half."""
    matching = _matching(problem)
    found, alive = [], list(fixes)
    while used < len(race_seeds) and len(alive) > 1:
        take = race_seeds[used : used + max(1, used)]
        used += len(take)
        found += [fix.spec(seed, "dev", matching) for fix in alive for seed in take]
        # Every second one, so that dear and cheap ones are left as they were.
        alive = alive[::2]
    last = [Fix("alone", "dropping", (problem.target,))] if problem.target in problem.tasks else []
    return found + [
        fix.spec(seed, "test", matching) for fix in (fixes[0], alive[-1], *last) for seed in fresh_seeds
    ]


def _matching(problem: Problem) -> str:
    return "per_task_steps" if problem.target in problem.tasks else "total_steps"


def race(
    problem: Problem,
    fixes: Sequence[Fix],
    run: RunAll,
    *,
    race_seeds: Sequence[int],
    fresh_seeds: Sequence[int],
    say: Callable[[str], None] = lambda text: None,
    expect: Callable[[list[RunSpec]], None] = lambda specs: None,
) -> FixRace:
    """Successive halving on development data, then the winner against the plain sum on test data with fresh seeds.

    The first round has one seed for every candidate, each next one as many as all before; the better half goes on, the
    plain sum always; of equal ones the first candidate is the better. (Jamieson and Talwalkar, "Non-stochastic Best Arm
    Identification and Hyperparameter Optimization", AISTATS 2016.)

    Args:
        problem: what is trained.
        fixes: candidates, the plain sum first.
        run: does runs.
        race_seeds: of the race, in the order in which rounds take them.
        fresh_seeds: of the final measurement; none of the race's.
        say: told what each round left.
        expect: told about what runs are still to come, as each round makes them known.

    Raises:
        ValueError: seeds in both, no plain sum, or the plain sum itself cannot be trained.
    """
    if set(race_seeds) & set(fresh_seeds) or not race_seeds or not fresh_seeds:
        raise ValueError("race: race_seeds and fresh_seeds must be different ones, at least one of each")
    if not fixes or fixes[0].kind != "plain sum":
        raise ValueError("race: the first candidate must be the plain sum")
    matching = _matching(problem)
    sign = 1.0 if problem.higher_is_better else -1.0
    plain, alive = fixes[0], list(fixes)
    scores: dict[str, list[float]] = {fix.name: [] for fix in fixes}
    rounds = dict.fromkeys(scores, 0)
    problems: dict[str, str] = {}
    used = 0
    while used < len(race_seeds) and len(alive) > 1:
        others = [fix for fix in alive if fix is not plain]
        expect(race_specs(problem, [plain, *others], race_seeds, fresh_seeds, used))
        take = list(race_seeds[used : used + max(1, used)])
        used += len(take)
        wanted = {fix.name: [fix.spec(seed, "dev", matching) for seed in take] for fix in alive}
        results = _results(alive, wanted, run, problems)
        alive = [fix for fix in fixes if fix.name in results]
        if plain not in alive:
            raise ValueError(f"the plain sum cannot be trained: {problems.get(plain.name, 'unknown')}")
        for fix in alive:
            scores[fix.name] += [results[fix.name][spec].scores[problem.target] for spec in wanted[fix.name]]
            rounds[fix.name] += 1
        ranked = sorted(alive, key=lambda fix: -sign * fmean(scores[fix.name]))
        alive = ranked[: max(1, (len(ranked) + 1) // 2)]
        alive += [plain] if plain not in alive else []
        if used < len(race_seeds) and len(alive) > 1:
            say(f"After {counted(used, 'seed')} {', '.join(fix.name for fix in alive)} go on.")
    tried = [FixTried(fix, scores[fix.name], rounds[fix.name], problems.get(fix.name, "")) for fix in fixes]
    # Of equal ones the first goes before: the plain sum before all others.
    tried.sort(key=lambda t: (-t.rounds, -sign * fmean(t.scores) if t.scores else 0.0))
    winner = tried[0].fix if tried[0].scores else plain
    expect([])
    say(f"Best on development data: {winner.name}. Now on test data, with fresh seeds.")
    return _final(problem, tried, plain, winner, run, list(fresh_seeds), matching, sign)


def _results(
    alive: Sequence[Fix],
    wanted: Mapping[str, list[RunSpec]],
    run: RunAll,
    problems: dict[str, str],
) -> dict[str, Results]:
    """All at once; where that fails, candidate by candidate, to tell which one it is."""
    try:
        every = run([spec for fix in alive for spec in wanted[fix.name]])
        return {fix.name: every for fix in alive}
    except Declined:
        raise
    except (RunError, ValueError):
        found: dict[str, Results] = {}
        for fix in alive:
            try:
                found[fix.name] = run(wanted[fix.name])
            except Declined:
                raise
            except (RunError, ValueError) as error:
                problems[fix.name] = str(error).partition("failed: ")[2] or str(error)
        return found


def _final(
    problem: Problem,
    tried: list[FixTried],
    plain: Fix,
    winner: Fix,
    run: RunAll,
    seeds: list[int],
    matching: str,
    sign: float,
) -> FixRace:
    ours = [winner.spec(seed, "test", matching) for seed in seeds]
    base = [plain.spec(seed, "test", matching) for seed in seeds]
    alone = (
        [RunSpec((problem.target,), seed, part="test") for seed in seeds]
        if problem.target in plain.tasks
        else []
    )
    results = run([*base, *ours, *alone])
    plain_scores = [results[spec].scores[problem.target] for spec in base]
    won = [results[spec].scores[problem.target] for spec in ours]
    gains = [sign * (a - b) for a, b in zip(won, plain_scores, strict=True)]
    judged = judge([gains])[0]
    also = {
        name: ([results[spec].also[name] for spec in base], [results[spec].also[name] for spec in ours])
        for name in results[base[0]].also
    }
    by_itself = [results[spec].scores[problem.target] for spec in alone]
    against = (
        paired_difference([sign * v for v in by_itself], [sign * v for v in plain_scores]) if alone else None
    )
    return FixRace(tried, winner, seeds, plain_scores, won, judged, also, by_itself, against)
