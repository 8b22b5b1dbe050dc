"""A multilingual table as files: Markdown and LaTeX to read, CSV and JSON to go on with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from xferkit.experiments.multilingual.claims import check_claims, watched
from xferkit.experiments.multilingual.config import MultilingualConfig
from xferkit.experiments.multilingual.figures import MEAN_TITLES
from xferkit.experiments.multilingual.summary import Records, RowResult, Score, TableResult
from xferkit.experiments.multilingual.training import batch_shares
from xferkit.experiments.tables.grid import (
    DASH,
    Grid,
    csv_number,
    csv_text,
    gain_words,
    grid_markdown,
    grid_tex,
    mean_sd,
)
from xferkit.metrics import Interval, interval_record, verdict
from xferkit.report.format import signed
from xferkit.runs.schema import plain

__all__ = ["cells_csv", "languages", "pairs_csv", "results_json", "table_csv", "table_markdown", "table_tex"]


def _seeds(config: MultilingualConfig) -> str:
    return f"{len(config.seeds)} seed{'s' if len(config.seeds) != 1 else ''}"


def _step(row: RowResult) -> str:
    if row.step_seconds is None:
        return DASH
    relative = "" if row.cost is None else f" ({row.cost.mean:.1f}x)"
    return f"{1000 * row.step_seconds.mean:.0f} ms{relative}"


def _alike(before: Interval | None, after: Interval | None) -> str:
    if before is None:
        return DASH
    return signed(before.mean, 3) + ("" if after is None else f" → {signed(after.mean, 3)}")


def _seen(row: RowResult) -> list[str]:
    pairs = row.pairs
    if pairs is None:
        return [DASH] * 3
    active = DASH if pairs.active is None else f"{100 * pairs.active.mean:.0f}"
    return [
        active,
        _alike(pairs.before, pairs.after),
        _alike(pairs.before_groups, pairs.after_groups) if len(pairs.groups) > 1 else DASH,
    ]


def _grids(config: MultilingualConfig, result: TableResult) -> list[Grid]:
    base = result.row(config.baseline)
    assert base is not None
    header = ["Method"]
    for key in result.means:
        title = MEAN_TITLES[key].lower()
        header += [title, f"{title}, against {base.label}"]
    header += ["active, %", "cosine, model", "cosine, groups", "step"]
    means = [
        [
            row.label,
            *(
                text
                for key in result.means
                for text in (_score(row.test[key]), gain_words(row.test[key].gain, row.test[key].verdict))
            ),
            *_seen(row),
            _step(row),
        ]
        for row in result.rows
    ]
    caption = (
        f"{config.settings.score_words} on test sentences: mean over languages, mean ± sd over {_seeds(config)}; "
        f"differences to {base.label} in points, paired by seed, with 95 % t-intervals. Active: visited pairs of "
        "languages whose gradient was turned. Cosines of the languages' gradients, mean over pairs and steps, before "
        "→ after surgery: of the whole model, and mean over the groups of the method where it has several. Step: "
        f"processor time of a training step, and relative to {base.label}."
    )
    single = [[row.label, *(_single(row.test[lang]) for lang in config.languages)] for row in result.rows]
    titles = [f"{name} (low)" if language.low else name for name, language in config.languages.items()]
    marks = (
        f"Each language: mean over {_seeds(config)}; ▲ and ▼: the 95 % t-interval of the difference to {base.label} "
        "leaves out 0 (none is corrected for the number of comparisons)."
    )
    return [
        Grid(caption, header, means),
        Grid(marks, ["Method", *titles], single),
        languages(config, result),
    ]


def _score(score: Score) -> str:
    return mean_sd(score.interval, score.sd)


def _single(score: Score) -> str:
    mark = {"helps": " ▲", "hurts": " ▼"}.get(str(score.verdict), "")
    return f"{100 * score.interval.mean:.1f}{mark}"


def languages(config: MultilingualConfig, result: TableResult) -> Grid:
    """The languages, their data and their share of a batch."""
    shares = batch_shares(config.settings, {lang: sizes["train"] for lang, sizes in result.sizes.items()})
    header = ["Language", "family", "resource", "train sentences", "tokens", "share of a batch, %"]
    header += ["test tokens", "of these unseen, %"]
    if result.joint_gain:
        header += ["joint against alone"]
    rows = []
    for name, language in config.languages.items():
        sizes = result.sizes[name]
        row = [name, language.family, "low" if language.low else "high", str(sizes["train"])]
        row += [str(sizes["train_tokens"]), f"{100 * shares[name]:.0f}", str(sizes["test_tokens"])]
        row += [f"{100 * sizes['unknown'] / sizes['test_tokens']:.0f}"]
        if result.joint_gain:
            gain = result.joint_gain[name]
            row += [gain_words(gain, verdict(gain))]
        rows.append(row)
    caption = "Languages: what is trained on, and test tokens whose word the language's own training sentences lack."
    if result.joint_gain:
        base = result.row(config.baseline)
        assert base is not None
        caption += f" Joint against alone: {base.label} less a model of the language by itself, points."
    return Grid(caption, header, rows)


def table_markdown(config: MultilingualConfig, result: TableResult) -> str:
    """All tables, the claims and the notes."""
    parts = [f"# {config.title}", f"{config.task}. One model for {', '.join(config.languages)}."]
    parts += [grid_markdown(grid) for grid in _grids(config, result)]
    claims = check_claims(config, result)
    if claims:
        rows = [[claim.text, claim.figures, claim.holds] for claim in claims]
        parts.append(
            grid_markdown(Grid("What is claimed, and what came out.", ["Claim", "Measured", "Here"], rows))
        )
    row = watched(result)
    if row is not None and row.pairs is not None and len(row.pairs.groups) > 1:
        parts.append(grid_markdown(_groups(row)))
    return "\n\n".join([*parts, *config.notes]) + "\n"


def _groups(row: RowResult) -> Grid:
    assert row.pairs is not None
    rows = [
        [group, *(DASH if value is None else signed(value, 3) for value in values)]
        for group, values in row.pairs.groups.items()
    ]
    caption = f"{row.label}: mean cosine of raw gradients by group of parameters."
    return Grid(caption, ["Group", "pairs of one family", "other pairs"], rows)


def table_tex(config: MultilingualConfig, result: TableResult) -> str:
    """The first two tables."""
    signs = {"▲": r"$\uparrow$", "▼": r"$\downarrow$", "→": r"$\to$"}
    text = "\n\n".join(grid_tex(grid) for grid in _grids(config, result)[:2]) + "\n"
    for sign, command in signs.items():
        text = text.replace(sign, command)
    return text


def table_csv(config: MultilingualConfig, result: TableResult) -> str:
    """One line a row and language or mean; shares and differences in [-1, 1], empty where there is none."""
    header = ["method", "language", "resource", "seeds", "score", "sd", "low", "high", "against_baseline"]
    header += [
        "against_baseline_low",
        "against_baseline_high",
        "verdict",
        "dev",
        "active",
        "cosine",
        "cosine_after",
    ]
    header += ["step_seconds", "relative_step"]
    rows: list[list[Any]] = []
    for row in result.rows:
        for key, score in row.test.items():
            language = config.languages.get(key)
            kind = "mean" if language is None else "low" if language.low else "high"
            gain, i = score.gain, score.interval
            pairs = row.pairs if language is None else None
            rows.append(
                [
                    *[row.name, key, kind, i.n, i.mean, csv_number(score.sd)],
                    *[csv_number(i.low), csv_number(i.high)],
                    *[csv_number(v) for v in ((gain.mean, gain.low, gain.high) if gain else (None,) * 3)],
                    *[score.verdict or "", row.dev[key].interval.mean],
                    *[_mean(getattr(pairs, name, None)) for name in ("active", "before", "after")],
                    *[_mean(row.step_seconds), _mean(row.cost)],
                ]
            )
    return csv_text(header, rows)


def _mean(interval: Interval | None) -> float | str:
    return "" if interval is None else interval.mean


def cells_csv(config: MultilingualConfig, records: Records) -> str:
    """One line a run and language."""
    score = config.settings.score_name
    header = ["method", "seed", "language", "test", "dev", "steps", "step_seconds", "seconds"]
    rows = [
        [
            *[cell.method, cell.seed, lang, scores[score], run.dev[lang][score]],
            *[run.steps, run.cpu_seconds / run.steps if run.steps else "", run.seconds],
        ]
        for cell, run in records.items()
        for lang, scores in run.test.items()
    ]
    return csv_text(header, rows)


def pairs_csv(config: MultilingualConfig, result: TableResult) -> str:
    """One line a row and pair of languages: mean cosines of the whole model's gradients."""
    names = list(config.languages)
    header = ["method", "one", "other", "related", "cosine", "cosine_after"]
    rows = [
        [
            *[row.name, one, other, int(config.related(one, other)), csv_number(row.pairs.matrix[i][j])],
            csv_number(row.pairs.matrix_after[i][j]) if row.pairs.matrix_after else "",
        ]
        for row in result.rows
        if row.pairs is not None
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if i < j
    ]
    return csv_text(header, rows)


def results_json(
    config: MultilingualConfig, result: TableResult, records: Records, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything: settings, rows, claims, and every run as it stands on the disk."""
    return {
        "format": 1,
        "title": config.title,
        "task": config.task,
        "score": config.settings.score_words,
        "interval": "Student t over seeds, 95 %",
        **facts,
        "baseline": config.baseline,
        "languages": {name: asdict(language) for name, language in config.languages.items()},
        "methods": {name: asdict(row) for name, row in config.methods.items()},
        "settings": plain(config.settings),
        "rows": [_row_json(row) for row in result.rows],
        "joint_against_alone": {key: interval_record(gain) for key, gain in result.joint_gain.items()},
        "claims": [asdict(claim) for claim in check_claims(config, result)],
        "cells": [{**asdict(cell), **asdict(run)} for cell, run in records.items()],
    }


def _row_json(row: RowResult) -> dict[str, Any]:
    return {
        "name": row.name,
        "label": row.label,
        "test": {key: _score_json(score) for key, score in row.test.items()},
        "dev": {key: _score_json(score) for key, score in row.dev.items()},
        "step_seconds": interval_record(row.step_seconds),
        "relative_step": interval_record(row.cost),
        "parameters": row.parameters,
        "pairs": None if row.pairs is None else _pairs_json(row.pairs),
    }


def _pairs_json(pairs: Any) -> dict[str, Any]:
    return {
        name: interval_record(value) if isinstance(value, Interval) else value
        for name, value in vars(pairs).items()
    }


def _score_json(score: Score) -> dict[str, Any]:
    return {
        "runs": score.runs,
        "score": interval_record(score.interval),
        "sd": None if math.isnan(score.sd) else score.sd,
        "against_baseline": interval_record(score.gain),
        "verdict": score.verdict,
    }
