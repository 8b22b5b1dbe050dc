"""What the page says of gradients: the content of report/templates/gradients.html and its items of honesty."""

from __future__ import annotations

from typing import Any

from xferkit.data.cldr import NameData
from xferkit.data.panels import CONVENTIONS
from xferkit.demo import similarity_figures as figures
from xferkit.demo.similarity import FAMILIES, SimilaritySummary, similarity_sentences
from xferkit.experiments.name_transfer import NameSettings
from xferkit.report.curves import curve_panels
from xferkit.report.dots import dot_panels
from xferkit.report.similarity_map import similarity_maps_svg

__all__ = ["similarity_content", "similarity_honesty"]


def similarity_content(summary: SimilaritySummary, data: NameData, names: dict[str, str]) -> dict[str, Any]:
    """Figures, tables and sentences of the section on gradients."""
    labels, panels = figures.layer_figure(summary)
    sizes = [len(data.train(lang)) for lang in summary.languages]
    batch = _per_step(summary)
    rows = [(figures.sample_label(size, batch), means) for size, means in sorted(summary.samples.items())]
    rows.append((f"all {min(sizes):,} to {max(sizes):,} names", summary.written))
    if summary.lower is not None:
        rows.append(("all names, lower-cased: the control", summary.lower))
    return {
        "num": len(summary.languages),
        "seeds": summary.seeds,
        "first": summary.focus[0],
        "last": summary.focus[-1],
        "steps": summary.steps,
        "sentences": similarity_sentences(summary, names),
        "map_svg": similarity_maps_svg(
            f"Cosines of the gradients of {len(summary.languages)} languages",
            figures.similarity_maps(summary, names),
        ),
        "course_svg": curve_panels("Mean cosines over the training", figures.course_panels(summary)),
        "layer_svg": dot_panels(
            "Mean cosines of each layer", labels, figures.SERIES, panels, ticks=figures.COSINE_TICKS
        ),
        "samples": rows,
        "conventions": [
            {
                "family": family,
                "languages": [
                    {"name": names[lang], "rule": CONVENTIONS[lang]}
                    for lang, own in zip(summary.languages, summary.families, strict=True)
                    if own == family
                ],
            }
            for family in FAMILIES
        ],
    }


def similarity_honesty(summary: SimilaritySummary) -> list[str]:
    """What the figures on gradients do not say."""
    steps = f"{summary.focus[0]} to {summary.focus[-1]}"
    return [
        f"Gradients: {summary.seeds} seed{'s' if summary.seeds != 1 else ''}, one moment of training (steps {steps}; "
        "chosen because the trial looked there) and one way to spell the question: names in Latin script. Languages "
        "in other scripts share no letters with the rest and Norwegian is spelled almost as Danish, so they were left "
        "out before anything was measured. A language counts by its orthography's rule for names of languages, even "
        "where CLDR spells another class otherwise (Hungarian scripts). Pairs share languages, so their means are not "
        "over independent things; the intervals are over seeds alone.",
        "A cosine says whether a step for one language helps another at that moment, not what training together "
        "does in the end; no model is better or worse in these figures. Language families were not compared.",
        "PCGrad and GradVac see the gradients of one batch and are used as their papers have them (all sources; "
        "PCGrad on the whole model; GradVac on each layer, β = 0.01). Larger batches, other groupings and "
        "low-resource sources alone were not tried here.",
    ]


def _per_step(summary: SimilaritySummary) -> int:
    return max(1, round(NameSettings().batch_size / len(summary.languages)))
