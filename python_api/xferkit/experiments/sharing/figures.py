"""The figures of the study: cosines over training, and how alike masks are by layer, kind and pair of languages."""

from __future__ import annotations

from statistics import fmean

from xferkit.experiments.sharing.config import SharingConfig
from xferkit.experiments.sharing.summary import SharingResult
from xferkit.report.curves import Curve, CurvePanel
from xferkit.report.heat_map import HeatMap

__all__ = ["gradient_panels", "language_map", "layer_panels", "mask_maps"]


def _curve(result: SharingResult, group: str, side: str, label: str) -> Curve:
    """Mean over seeds, languages and pairs at every look that all seeds had."""
    number = result.groups.index(group)
    by_step: dict[int, list[float]] = {}
    for looks in result.looks.values():
        for look in looks:
            values = [cosines[number] for cosines in getattr(look, side).values()]
            by_step.setdefault(look.step, []).append(fmean(values))
    points = [(float(step), fmean(v)) for step, v in sorted(by_step.items()) if len(v) == len(result.looks)]
    return Curve(label, tuple(points))


def gradient_panels(config: SharingConfig, result: SharingResult) -> list[CurvePanel]:
    """Within and across languages on the whole model; then every pair of languages."""
    both = (
        _curve(result, "whole", "within", "two batches of one language"),
        _curve(result, "whole", "across", "two languages"),
    )
    pairs = []
    for pair in result.looks[config.seeds[0]][0].across:
        by_step: dict[int, list[float]] = {}
        for looks in result.looks.values():
            for look in looks:
                by_step.setdefault(look.step, []).append(look.across[pair][0])
        pairs.append(Curve(pair, tuple((float(step), fmean(v)) for step, v in sorted(by_step.items()))))
    span = _span([*both, *pairs])
    return [
        CurvePanel("Whole model", both, span),
        CurvePanel("Pairs of languages, whole model", tuple(pairs), span),
    ]


def layer_panels(result: SharingResult) -> list[CurvePanel]:
    """The same by layer."""
    layers = [
        g
        for g in result.groups
        if g in ("embeddings", "head") or (g.startswith("layer ") and g.count(" ") == 1)
    ]
    found = [
        CurvePanel(title, tuple(_curve(result, layer, side, layer) for layer in layers))
        for title, side in (("Two batches of one language", "within"), ("Two languages", "across"))
    ]
    span = _span([curve for panel in found for curve in panel.curves])
    return [CurvePanel(panel.title, panel.curves, span) for panel in found]


def _span(curves: list[Curve]) -> tuple[float, float]:
    values = [value for curve in curves for _, value in curve.points]
    return min(0.0, *values), max(values)


def mask_maps(result: SharingResult) -> list[HeatMap]:
    """Centred cosines of masks: layers by kind, within languages and across them."""
    layers = [p.name for p in result.likeness if p.name.startswith("layer ") and p.name.count(" ") == 1]
    kinds = [kind for kind in ("attention", "feed-forward") if result.part(kind) is not None]
    rows = [*layers, "all layers"]
    maps = []
    for title, side in (("Two halves of one language", "within"), ("Two languages", "across")):
        values = []
        for row in rows:
            names = [row if row != "all layers" else "all"]
            names += [f"{row} {kind}" if row != "all layers" else kind for kind in kinds]
            parts = [result.part(name) for name in names]
            values.append(tuple(None if part is None else fmean(getattr(part, side)) for part in parts))
        maps.append(HeatMap(title, tuple(rows), ("both", *kinds), tuple(values)))
    return maps


def language_map(config: SharingConfig, result: SharingResult) -> HeatMap:
    """Centred cosines of all log alphas by pair; the diagonal: two halves of a language."""
    order = config.order
    values = tuple(tuple(result.pairs[one, other] for other in order) for one in order)
    marked = {
        (y, x)
        for y, one in enumerate(order)
        for x, other in enumerate(order)
        if one == other or (config.languages[one].family == config.languages[other].family != "")
    }
    return HeatMap("Masks of two languages", order, order, values, frozenset(marked))
