"""The page of a multilingual table: the content of report/templates/multilingual.html."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xferkit.experiments.multilingual.claims import check_claims, sentences, watched
from xferkit.experiments.multilingual.config import MultilingualConfig
from xferkit.experiments.multilingual.figures import MEAN_TITLES, cosine_maps, difference_rows, score_figure
from xferkit.experiments.multilingual.files import languages
from xferkit.experiments.multilingual.summary import Records, TableResult
from xferkit.experiments.tables.facts import facts_shown
from xferkit.experiments.tables.grid import mean_sd
from xferkit.report.axes import difference_ticks
from xferkit.report.heat_map import heat_maps_svg
from xferkit.report.html import render_page
from xferkit.report.svg import bar_panels, difference_plot
from xferkit.runs.schema import plain

__all__ = ["multilingual_html"]


def multilingual_html(
    config: MultilingualConfig, result: TableResult, records: Records, facts: Mapping[str, Any]
) -> str:
    """The page as text.

    Args:
        config: the table.
        result: what came out.
        records: every run.
        facts: date, machine and versions.
    """
    base = result.row(config.baseline)
    assert base is not None
    seen = watched(result)
    maps = cosine_maps(config, result)
    return render_page(
        "multilingual.html",
        title=config.title,
        task=config.task,
        score=config.settings.score_words,
        num_seeds=len(config.seeds),
        base=base,
        languages=config.languages,
        why=[(name, language.why) for name, language in config.languages.items() if language.why],
        sentences=sentences(config, result),
        claims=check_claims(config, result),
        means=result.means,
        mean_titles=MEAN_TITLES,
        rows=result.rows,
        score_svg=bar_panels("Mean scores", *score_figure(config, result)),
        differences=[_difference(config, result, key) for key in result.means],
        cosine_svg=heat_maps_svg("Mean cosines of the languages' gradients", maps) if maps else None,
        watched=seen,
        data=languages(config, result),
        notes=[*config.notes, *_notes(config, result, records)],
        facts=[*facts_shown(facts), *((name, str(value)) for name, value in plain(config.settings).items())],
        mean_sd=mean_sd,
    )


def _difference(config: MultilingualConfig, result: TableResult, key: str) -> dict[str, Any]:
    base = result.row(config.baseline)
    assert base is not None
    rows = difference_rows(config, result, key)
    return {
        "title": MEAN_TITLES[key],
        "svg": difference_plot(
            f"{MEAN_TITLES[key]}, against {base.label}",
            rows,
            ticks=difference_ticks(rows),
            low_text=f"worse than {base.label}",
            high_text=f"better than {base.label}",
        )
        if rows
        else None,
    }


def _notes(config: MultilingualConfig, result: TableResult, records: Records) -> list[str]:
    comparisons = sum(
        score.gain is not None
        for row in result.rows
        if row.name in config.methods
        for score in row.test.values()
    )
    notes = [
        f"Seeds: {len(config.seeds)}. Intervals are 95 % Student t-intervals over seeds: they hold the luck of "
        "training, not the choice of test sentences. With few seeds they are wide, and their coverage rests on "
        "scores that spread like a normal distribution.",
        f"{comparisons} differences to the baseline stand in the tables (means and single languages) and none is "
        f"corrected for their number; if nothing differed, about {max(1, round(comparisons * 0.05))} of them would "
        "still leave out 0 by chance.",
        "The last weights of a fixed number of steps are tested: nothing is selected, and no setting was chosen by a "
        "score on test sentences.",
        "For one seed all methods begin with the same parameters and get the same batches. Methods that take "
        "gradients apart read each language by itself, the plain sum all together, so that dropout draws other masks "
        "in the two.",
        "The time of a step is processor time of this machine, which was shared with others; the table compares equal "
        "steps, not equal time.",
    ]
    broken = [cell.describe() for cell, run in records.items() if any(v is None for v in run.losses.values())]
    if broken:
        notes.append(f"{len(broken)} runs ended with a loss that is not finite: {', '.join(broken)}.")
    return notes
