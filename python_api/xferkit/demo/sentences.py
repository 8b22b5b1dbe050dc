"""Three sentences about one target, written from the numbers: what helped, what did not, and why.

Every claim follows from an interval: "helps" and "worse" need one that leaves out 0. Each sentence has a form
for every way the numbers can fall, so that an unexpected result is told as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from xferkit.data.panels import capitalises
from xferkit.demo.plan import BASELINE, ORACLE, REFERENCE
from xferkit.demo.summary import MethodSummary, TargetSummary
from xferkit.metrics import Interval, verdict
from xferkit.report.format import difference, percent, points

__all__ = ["three_sentences", "what_did_not", "what_helped", "why"]

_GATED = "language_gate"


def three_sentences(summary: TargetSummary, language: str) -> tuple[str, str, str]:
    """What helped, what did not, and why, for `summary`'s target, whose English name is `language`."""
    return what_helped(summary, language), what_did_not(summary, language), why(summary, language)


def _candidates(summary: TargetSummary) -> list[tuple[MethodSummary, Interval]]:
    """Methods that know nothing about the target that pooled does not know, with their gain over it."""
    return [
        (m, m.accuracy_gain)
        for m in summary.methods
        if m.name not in (BASELINE, ORACLE, REFERENCE) and m.accuracy_gain is not None
    ]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _name(method: MethodSummary) -> str:
    """The label inside a sentence: only abbreviations keep their capitals."""
    label = method.label
    return label if label[1].isupper() or label.startswith("MoE") else label[0].lower() + label[1:]


def _with_gains(methods: Sequence[tuple[MethodSummary, Interval]]) -> str:
    return _listed([f"{_name(m)} ({difference(gain)})" for m, gain in methods])


def _macro_f1_clause(methods: Sequence[tuple[MethodSummary, Interval]]) -> str:
    """Whether macro-F1 says the same as accuracy, and of which methods it does not."""
    differing = [m for m, _ in methods if m.macro_f1_verdict != m.accuracy_verdict]
    if not differing:
        return "; so it is in macro-F1"
    told = [
        f"{m.macro_f1_verdict} for {_name(m)} ({difference(m.macro_f1_gain)})"
        for m in differing
        if m.macro_f1_gain is not None
    ]
    return f"; macro-F1 does not agree throughout: {_listed(told)}"


def what_helped(summary: TargetSummary, language: str) -> str:
    """Which methods without the target's labels beat pooling in accuracy beyond the spread over seeds."""
    pooled = next(m for m in summary.methods if m.name == BASELINE)
    reached = percent(pooled.accuracy.mean)
    base = f"pooling all {len(summary.sources)} sources, which reaches {reached} % accuracy"
    reference = summary.method(REFERENCE)
    ceiling = f" (its own labels: {percent(reference.accuracy.mean)} %)" if reference else ""
    candidates = _candidates(summary)
    if not candidates:
        return f"What helped: nothing was tried against {base}{ceiling}."
    if summary.seeds == 1:
        best = max((m for m, _ in candidates), key=lambda m: m.accuracy.mean)
        return (
            f"What helped: one run of each method tells nothing apart; {_name(best)} came out best with "
            f"{percent(best.accuracy.mean)} %, against {base}{ceiling}."
        )
    helpful = [(m, gain) for m, gain in candidates if verdict(gain) == "helps"]
    helpful.sort(key=lambda pair: -pair[1].mean)
    if not helpful:
        return (
            f"What helped: without {language} labels, none of {len(candidates)} methods clearly beats "
            f"{base}{ceiling}."
        )
    verb = "beats" if len(helpful) == 1 else "beat"
    return (
        f"What helped: without one {language} label, {_with_gains(helpful)} {verb} {base}{ceiling}; "
        "brackets are "
        f"95 % intervals in points{_macro_f1_clause(helpful)}."
    )


def what_did_not(summary: TargetSummary, language: str) -> str:
    """Which methods made no clear difference to pooling, and which were worse."""
    candidates = _candidates(summary)
    if summary.seeds == 1:
        return "What did not: that takes more than one seed to say."
    unclear = [(m, gain) for m, gain in candidates if verdict(gain) == "no clear difference"]
    worse = [(m, gain) for m, gain in candidates if verdict(gain) == "hurts"]
    parts = []
    if unclear:
        parts.append(f"{_with_gains(unclear)} {'makes' if len(unclear) == 1 else 'make'} no clear difference")
    if worse:
        parts.append(f"{_with_gains(worse)} {'is' if len(worse) == 1 else 'are'} worse than pooling")
    if not parts:
        return f"What did not: every method tried on {language} did better than pooling."
    return f"What did not: {'; '.join(parts)}."


def why(summary: TargetSummary, language: str) -> str:
    """Whether spelling convention explains it: by the oracle, the lower-cased control, the gate's weights."""
    habit = "capitalises" if capitalises(summary.target) else "does not capitalise"
    fact = (
        f"like {len(summary.same_convention)} of the {len(summary.sources)} sources, {language} {habit} the "
        "names of languages and scripts"
    )
    oracle = summary.method(ORACLE)
    if oracle is None or oracle.accuracy_gain is None:
        return f"Why: not shown here; the sources that capitalise as {language} does were not tried alone."
    gain, gate = difference(oracle.accuracy_gain), _gate_clause(summary)
    found = verdict(oracle.accuracy_gain)
    if found == "one run only":
        return (
            f"Why: one run cannot show it; {fact}, and training on those alone changes accuracy by "
            f"{gain}{gate}."
        )
    if found != "helps":
        outcome = "hurts" if found == "hurts" else "makes no clear difference"
        return (
            f"Why: these figures do not show it; {fact}, but training on those alone {outcome} "
            f"({gain}){gate}."
        )
    head = f"{fact}, and training on those alone helps ({gain})"
    control = summary.control(ORACLE)
    if control is None or control.lower_gain is None or control.change is None:
        return f"Why: spelling convention is likely, its control was not run; {head}{gate}."
    lowered = difference(control.lower_gain)
    if verdict(control.change) != "helps":
        return (
            f"Why: spelling convention is likely but not proven; {head}, but with all letters lower-cased "
            "the gain, "
            f"{lowered}, is not clearly smaller (by {points(control.change.mean)}){gate}."
        )
    left = {"helps": "shrinks to", "hurts": "turns into a loss,"}.get(verdict(control.lower_gain), "is gone:")
    return (
        f"Why: spelling convention; {head}, and once all letters are lower-cased that gain {left} "
        f"{lowered}{gate}."
    )


def _gate_clause(summary: TargetSummary) -> str:
    share = summary.gate_share(_GATED)
    if share is None:
        return ""
    even = len(summary.same_convention) / len(summary.sources)
    return (
        f"; the language-level gate puts {percent(share, 0)} % of its weight on these sources, where an even "
        f"split would put {percent(even, 0)} %"
    )
