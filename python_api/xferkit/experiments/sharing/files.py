"""The study's results as files: CSV to go on with, Markdown to read, JSON with everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from xferkit.experiments.sharing.claims import check_claims
from xferkit.experiments.sharing.config import SharingConfig
from xferkit.experiments.sharing.summary import Likeness, Records, SharingResult
from xferkit.experiments.tables.grid import Grid, csv_text, grid_markdown
from xferkit.metrics import interval_record
from xferkit.report.format import signed
from xferkit.runs.schema import plain

__all__ = ["cosines_csv", "gates_csv", "likeness_grid", "masks_csv", "results_json", "study_markdown"]

_FIELDS = (
    "within",
    "across",
    "gap",
    "plain_within",
    "plain_across",
    "universal",
    "specific",
    "iou_within",
    "iou_across",
    "iou_random",
)


def cosines_csv(result: SharingResult) -> str:
    """One line a seed, look, pair (a language with itself: two of its batches) and group of parameters."""
    rows = [
        [seed, look.step, pair, group, value]
        for seed, looks in result.looks.items()
        for look in looks
        for side in (look.within, look.across)
        for pair, values in side.items()
        for group, value in zip(result.groups, values, strict=True)
    ]
    return csv_text(["seed", "step", "pair", "group", "cosine"], rows)


def masks_csv(config: SharingConfig, result: SharingResult) -> str:
    """One line a seed and part of the model."""
    rows = [
        [seed, part.name, part.gates, *(getattr(part, name)[number] for name in _FIELDS)]
        for part in result.likeness
        for number, seed in enumerate(config.seeds)
    ]
    return csv_text(["seed", "part", "gates", *_FIELDS], rows)


def gates_csv(config: SharingConfig, result: SharingResult) -> str:
    """One line a gate at either end, by seed."""
    header = ["seed", "end", "site", "gate", "layer", "kind", "universal", "language", "difference", "z"]
    rows = [
        [
            *(seed, end, s.site, s.gate, "" if s.layer is None else s.layer + 1, s.kind, s.universal),
            *(s.language, s.difference, "" if s.z != s.z else s.z, *s.log_alpha.values()),
        ]
        for seed, ranking in result.ranking.items()
        for end, scores in (("universal", ranking.universal), ("specific", ranking.specific))
        for s in scores
    ]
    return csv_text([*header, *(f"log_alpha_{name}" for name in config.languages)], rows)


def likeness_grid(config: SharingConfig, result: SharingResult) -> Grid:
    """Every part of the model with its means over seeds."""
    header = ["Part", "gates", "within", "across", "within less across", "by seed"]
    header += ["thesis' cosine within", "across", "universal, %", "specific, %", "overlap", "random"]
    rows = [_likeness_row(part) for part in result.likeness]
    caption = (
        "Likeness of masks by part of the model, means over seeds "
        f"{', '.join(map(str, config.seeds))}. Within: two halves of one language's texts, mean over languages; "
        "across: two languages, mean over pairs and halves; centred cosine of log alpha. The thesis' cosine is not "
        "centred. "
        "Universal: open in both languages of a pair; specific: in one alone. Overlap: intersection over union of two "
        "languages' open gates, and of random masks of their sizes."
    )
    return Grid(caption, header, rows)


def _likeness_row(part: Likeness) -> list[str]:
    def mean(name: str, digits: int = 2) -> str:
        return signed(fmean(getattr(part, name)), digits)

    return [
        part.name,
        f"{part.gates:,}",
        mean("within"),
        mean("across"),
        mean("gap"),
        " / ".join(signed(value) for value in part.gap),
        mean("plain_within"),
        mean("plain_across"),
        f"{100 * fmean(part.universal):.0f}",
        f"{100 * fmean(part.specific):.0f}",
        f"{fmean(part.iou_across):.2f}",
        f"{fmean(part.iou_random):.2f}",
    ]


def study_markdown(config: SharingConfig, result: SharingResult) -> str:
    """Claims, the table of likeness, and languages."""
    claims = Grid(
        "What is claimed, and what came out; the interval is a 95 % Student t-interval over seeds.",
        ["Claim", "Measured", "By seed", "Here"],
        [[c.text, c.figures, c.seeds, c.holds] for c in check_claims(config, result)],
    )
    languages = Grid(
        "Languages: training texts and tokens, entropy of held-out tokens by counts alone, negative log-likelihood of "
        "held-out masked tokens (nats) without masks and under the language's own, and sparsity of the masks.",
        ["Language", "texts", "tokens", "unigram", "model", "masked", "sparsity, expected", "in evaluation"],
        [
            [
                found.name,
                f"{found.sizes['texts']:,}",
                f"{found.sizes['tokens']:,}",
                f"{found.unigram:.2f}",
                f"{found.nll.mean:.2f}",
                f"{found.masked.mean:.2f}",
                f"{found.expected_sparsity.mean:.2f}",
                f"{found.eval_sparsity.mean:.2f}",
            ]
            for found in result.languages
        ],
    )
    parts = [
        f"# {config.title}",
        *(grid_markdown(g) for g in (claims, likeness_grid(config, result), languages)),
    ]
    return "\n\n".join([*parts, *config.notes]) + "\n"


def results_json(
    config: SharingConfig, result: SharingResult, records: Records, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything but the log alphas, which stand in the runs' own files."""
    return {
        "format": 1,
        "title": config.title,
        "interval": "Student t over seeds, 95 %",
        **facts,
        "settings": plain(config.settings),
        "languages": {
            found.name: {
                **found.sizes,
                "unigram": found.unigram,
                **{
                    name: interval_record(getattr(found, name))
                    for name in ("nll", "masked", "expected_sparsity", "eval_sparsity")
                },
            }
            for found in result.languages
        },
        "claims": [asdict(claim) for claim in check_claims(config, result)],
        "groups": result.groups,
        "looks": {str(seed): [asdict(look) for look in looks] for seed, looks in result.looks.items()},
        "likeness": [{**asdict(part), "gap": part.gap} for part in result.likeness],
        "pairs": {f"{one}-{other}": value for (one, other), value in result.pairs.items()},
        "gates": {
            str(seed): {
                "universal": ranking.num_universal,
                "specific": ranking.num_specific,
                "pruned": ranking.num_pruned,
            }
            for seed, ranking in result.ranking.items()
        },
        "seconds": {cell.stem: run.seconds for cell, run in records.items()},
    }
