"""The page of the study: the content of report/templates/sharing.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xferkit.experiments.sharing.claims import EARLY, check_claims
from xferkit.experiments.sharing.config import SharingConfig
from xferkit.experiments.sharing.figures import gradient_panels, language_map, layer_panels, mask_maps
from xferkit.experiments.sharing.files import likeness_grid
from xferkit.experiments.sharing.summary import Records, SharingResult
from xferkit.experiments.tables.facts import facts_shown
from xferkit.report.curves import curve_panels
from xferkit.report.heat_map import heat_maps_svg
from xferkit.report.html import render_page
from xferkit.runs.schema import plain

__all__ = ["sharing_html"]


def sharing_html(
    config: SharingConfig, result: SharingResult, records: Records, facts: Mapping[str, Any]
) -> str:
    """The page as text.

    Args:
        config: the study.
        result: what came out.
        records: every run.
        facts: date, machine and versions.
    """
    claims = check_claims(config, result)
    first = config.seeds[0]
    return render_page(
        "sharing.html",
        title=config.title,
        languages=config.languages,
        parameters=result.parameters,
        seeds=config.seeds,
        claims=claims,
        gradients=curve_panels("Cosines of gradients over training", gradient_panels(config, result)),
        layers=curve_panels("Cosines of gradients over training, by layer", layer_panels(result)),
        masks=heat_maps_svg("Likeness of masks by layer and kind", mask_maps(result)),
        pairs=heat_maps_svg("Likeness of masks by pair of languages", [language_map(config, result)]),
        likeness=likeness_grid(config, result),
        found=result.languages,
        ranking=result.ranking[first],
        first=first,
        why=[(name, language.why) for name, language in config.languages.items() if language.why],
        notes=[*config.notes, *_notes(config, len(claims))],
        facts=[*facts_shown(facts), *((name, str(value)) for name, value in plain(config.settings).items())],
    )


def _notes(config: SharingConfig, comparisons: int) -> list[str]:
    settings = config.settings
    return [
        f"Seeds: {len(config.seeds)}. Intervals are 95 % Student t-intervals over seeds: with two seeds they are 13 "
        "times the standard error wide, so that little is decided by them; every seed's figure stands beside.",
        f"{comparisons} comparisons are made and none is corrected for their number.",
        f"“Early” is the first {100 * EARLY:.0f} % of the training steps. Cosines are of gradients without dropout, on "
        f"{settings.cosine_texts} texts a batch; a step trains on one language, so that cosines go up and down with "
        "the language that was last.",
        "The thesis compares log alphas by cosine. All masks here have one sparsity, so that even unrelated ones have "
        "a high cosine; the centred cosine (Pearson's) is what the claims are judged by, and both stand in the table.",
        "What two halves of one language leave apart is the noise of the training of masks. Few gates (heads) make a "
        "cosine noisy; the number of gates stands beside.",
        f"Gates: {', '.join(settings.granularity)}. The thesis names neither groups, penalty weight nor optimiser of "
        "its masks; other groups may share otherwise (settings.granularity).",
        "Masks are trained and judged on weights that are frozen; a model that is trained under its masks may need "
        "other gates.",
    ]
