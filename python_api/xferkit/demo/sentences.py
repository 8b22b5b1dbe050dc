"""Three sentences about one target, written from the numbers: what helped, what did not, and why.

Every claim follows from an interval: "helps" and "worse" need one that leaves out 0. Each sentence has a form
for every way the numbers can fall, so that an unexpected result is told as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xferkit.data.panels import capitalises
from xferkit.demo.plan import BASELINE, ORACLE, REFERENCE
from xferkit.demo.summary import MethodSummary, TargetSummary
from xferkit.metrics import Interval, verdict
from xferkit.report.format import difference, percent, points

__all__ = ["lowercase_effect", "three_sentences", "what_did_not", "what_helped", "why"]

_GATED = "language_gate"


def three_sentences(summary: TargetSummary, names: Mapping[str, str]) -> tuple[str, str, str]:
    """What helped, what did not, and why, for `summary`'s target; `names` are languages in English."""
    language = names[summary.target]
    return what_helped(summary, language), what_did_not(summary, language), why(summary, names)


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
    names = ("MoE", "GradVac")
    return label if label[1].isupper() or label.startswith(names) else label[0].lower() + label[1:]


def _with_gains(methods: Sequence[tuple[MethodSummary, Interval]]) -> str:
    return _listed([f"{_name(m)} ({difference(gain)})" for m, gain in methods])


def _macro_f1_clause(methods: Sequence[tuple[MethodSummary, Interval]]) -> str:
    """Whether macro-F1 says the same as accuracy, and of which methods it does not."""
    gains = [(m, m.macro_f1_gain) for m, _ in methods if m.macro_f1_gain is not None]
    if all(verdict(gain) == "helps" for _, gain in gains):
        return ", and in macro-F1 too"
    told = []
    for found, one, many in (
        ("helps", "helps", "help"),
        ("no clear difference", "makes no clear difference", "make no clear difference"),
        ("hurts", "hurts", "hurt"),
    ):
        group = [(m, gain) for m, gain in gains if verdict(gain) == found]
        if group:
            told.append(f"{_with_gains(group)} {one if len(group) == 1 else many}")
    return f", but by macro-F1 {'; '.join(told)}"


def what_helped(summary: TargetSummary, language: str) -> str:
    """Which methods without the target's labels beat pooling in accuracy beyond the spread over seeds."""
    pooled = next(m for m in summary.methods if m.name == BASELINE)
    reached = percent(pooled.accuracy.mean)
    base = f"pooling all {len(summary.sources)} sources, which reaches {reached} % accuracy"
    reference = summary.method(REFERENCE)
    ceiling = f" (with its own labels: {percent(reference.accuracy.mean)} %)" if reference else ""
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
        f"What helped: without one {language} label, {_with_gains(helpful)} {verb} {base}{ceiling}"
        f"{_macro_f1_clause(helpful)} (points, 95 % intervals in brackets)."
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


def why(summary: TargetSummary, names: Mapping[str, str]) -> str:
    """Whether spelling convention explains it: by the oracle, the lower-cased control, the gate's weights."""
    language = names[summary.target]
    habit = "capitalises" if capitalises(summary.target) else "does not capitalise"
    fact = (
        f"like {len(summary.same_convention)} of the {len(summary.sources)} sources, {language} {habit} the "
        "names of languages and scripts"
    )
    oracle = summary.method(ORACLE)
    if oracle is None or oracle.accuracy_gain is None:
        return f"Why: not shown here; the sources that capitalise as {language} does were not tried alone."
    gain, gate = difference(oracle.accuracy_gain), _gate_clause(summary, names)
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
            f"Why: spelling convention is likely but not proven; {head}, but with all letters lower-cased the "
            f"gain, {lowered}, is not clearly smaller (by {points(control.change.mean)}){gate}."
        )
    left = {
        "helps": f"the gain shrinks to {lowered}",
        "hurts": f"the gain turns into a loss ({lowered})",
    }.get(verdict(control.lower_gain), f"no clear gain is left ({lowered})")
    return (
        f"Why: spelling convention, as far as these runs show; {head}, and with all letters lower-cased "
        f"{left}{gate}."
    )


def _gate_clause(summary: TargetSummary, names: Mapping[str, str]) -> str:
    """Where the language-level gate puts its weight, and what lower-casing leaves of its gain."""
    method, share = summary.method(_GATED), summary.gate_share(_GATED)
    if method is None or not method.gate or share is None:
        return ""
    even = len(summary.same_convention) / len(summary.sources)
    best = sorted(method.gate.items(), key=lambda item: -item[1])[:2]
    favourites = _listed([f"{names[lang]} ({percent(weight, 0)} %)" for lang, weight in best])
    clause = (
        f"; the language-level gate puts {percent(share, 0)} % of its weight on sources that write so, where an "
        f"even split would put {percent(even, 0)} %, and most on {favourites}"
    )
    control = summary.control(_GATED)
    if control is None or control.lower_gain is None:
        return clause
    return f"{clause}; lower-cased, it gains {difference(control.lower_gain)}"


def lowercase_effect(summary: TargetSummary) -> str:
    """What dropping the case of letters does to pooled by itself; empty when the control was not run."""
    control = summary.control(BASELINE)
    if control is None:
        return ""
    told = {
        "helps": "so lower-casing is a remedy of its own here",
        "hurts": "so the case of letters tells more than it misleads",
        "no clear difference": "which is no clear difference",
        "one run only": "in one run",
    }[verdict(control.shift)]
    return f"Lower-casing by itself changes the accuracy of pooled by {difference(control.shift)} points, {told}."
