"""What the paper says, held against what came out: each claim with its figures, whichever way they fall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xferkit.experiments.tables.figures import GATE_TITLES
from xferkit.experiments.tables.plan import METHODS
from xferkit.experiments.tables.summary import PanelResult, TargetResult
from xferkit.metrics import Interval, verdict
from xferkit.report.format import difference, percent, points

__all__ = ["Claim", "check_claims", "sentences"]

_METHOD = "man_moe"


@dataclass(frozen=True)
class Claim:
    """A claim on one source set.

    Attributes:
        panel: name of the source set.
        text: what is claimed.
        figures: what was measured.
        holds: "yes" or "no" where the figures decide, else what they leave open.
    """

    panel: str
    text: str
    figures: str
    holds: str


def check_claims(panels: Sequence[PanelResult]) -> list[Claim]:
    """All claims on all source sets for which there are figures."""
    return [claim for panel in panels for claim in _panel_claims(panel)]


def _panel_claims(panel: PanelResult) -> Iterator[Claim]:
    for target in panel.targets:
        method = target.method(_METHOD)
        if target.kind == "related" and method is not None and method.man_gain is not None:
            yield Claim(
                panel.name,
                f"MAN-MoE is better than MAN on the related target, {target.target}",
                f"{difference(method.man_gain)} points",
                _decided(method.man_gain),
            )
    for gate, accuracy in panel.gate_accuracy.get(_METHOD, {}).items():
        chance = 1 / len(panel.panel.sources)
        low = accuracy.mean if accuracy.n == 1 else accuracy.low
        yield Claim(
            panel.name,
            f"{GATE_TITLES.get(gate, gate)}: the largest weight on held-out source tokens is their own language's",
            f"{percent(accuracy.mean)} % of the tokens, {percent(chance)} % by chance",
            "yes" if low > chance else "no",
        )
    for gate, rows in panel.gates.get(_METHOD, {}).items():
        for row in rows:
            if row.kind == "related" and row.preference is not None:
                sisters = ", ".join(row.sisters)
                yield Claim(
                    panel.name,
                    f"{GATE_TITLES.get(gate, gate)}: {row.language} leans on its sisters ({sisters})",
                    f"a sister weighs {points(row.preference)} points more than another source",
                    "yes" if row.preference > 0 else "no",
                )
    for target in panel.targets:
        yield from _probe(panel, target)


def _probe(panel: PanelResult, target: TargetResult) -> Iterator[Claim]:
    with_adversary, without = target.method(_METHOD), target.method("pooled")
    if with_adversary is None or without is None or with_adversary.probe is None or without.probe is None:
        return
    adversary = with_adversary.discriminator
    own = f"; its own adversary {percent(adversary.mean)} %" if adversary else ""
    yield Claim(
        panel.name,
        f"Shared features tell the languages less apart with an adversary than pooled ones ({target.target})",
        f"a fresh classifier is right on {percent(with_adversary.probe.mean)} % of held-out sentences with "
        f"MAN-MoE, {percent(without.probe.mean)} % with pooled{own}",
        "yes" if with_adversary.probe.mean < without.probe.mean else "no",
    )


def _decided(gain: Interval) -> str:
    return {"helps": "yes", "hurts": "no, worse"}.get(verdict(gain), verdict(gain))


def sentences(panels: Sequence[PanelResult]) -> list[str]:
    """What came out for each method in a sentence: where it helped, where it hurt, where it is open."""
    found = []
    for name in dict.fromkeys(m.name for panel in panels for m in panel.targets[0].methods if m.gain):
        where: dict[str, list[str]] = {}
        for panel in panels:
            for target in panel.targets:
                method = target.method(name)
                if method is not None and method.verdict is not None and method.gain is not None:
                    place = f"{target.target} ({panel.name}, {target.kind}) {points(method.gain.mean)}"
                    where.setdefault(method.verdict, []).append(place)
        label = METHODS[name].label if name in METHODS else name
        parts = [f"{kind}: {', '.join(places)}" for kind, places in where.items()]
        found.append(f"{label} against pooled, points. {'; '.join(parts)}.")
    return found
