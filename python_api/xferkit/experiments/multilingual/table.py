"""The multilingual table: one tagger for many languages, a row for each way of joining their losses."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xferkit.experiments.multilingual.cell import MultilingualCell, MultilingualOutcome
from xferkit.experiments.multilingual.claims import sentences
from xferkit.experiments.multilingual.config import MultilingualConfig
from xferkit.experiments.multilingual.figures import cosine_maps
from xferkit.experiments.multilingual.files import (
    cells_csv,
    pairs_csv,
    results_json,
    table_csv,
    table_markdown,
    table_tex,
)
from xferkit.experiments.multilingual.page import multilingual_html
from xferkit.experiments.multilingual.plan import plan_cells
from xferkit.experiments.multilingual.summary import TableResult, summarise
from xferkit.experiments.tagging_data import Split, files_fingerprint
from xferkit.report.files import write_atomic
from xferkit.runs.schema import plain

__all__ = ["MultilingualTable"]

#: What a run is given: languages and settings, and the data folder.
Given = tuple[MultilingualConfig, Path]
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def train_cell(cell: MultilingualCell, given: Given) -> MultilingualOutcome:
    """Train `cell` with the experiment's own trainer."""
    from xferkit.experiments.multilingual.training import run_multilingual_cell

    return run_multilingual_cell(cell, *given)


class MultilingualTable:
    """See :class:`~xferkit.experiments.tables.kinds.Table`.

    Beside the page stand ``table.md``, ``table.csv``, ``table.tex``, ``cells.csv``, ``pairs.csv``, ``results.json``
    and, with matplotlib, ``cosines.png``.

    Args:
        config: what is compared.
    """

    subpackages: tuple[str, ...] = (
        "data",
        "methods",
        "metrics",
        "models",
        "objectives",
        "surgery",
        "trainers",
    )
    modules: tuple[str, ...] = (
        "tagging_data",
        "tagging_scores",
        "tagging_settings",
        "multilingual.cell",
        "multilingual.config",
        "multilingual.observer",
        "multilingual.training",
    )
    train: Callable[[MultilingualCell, Any], MultilingualOutcome] = staticmethod(train_cell)

    def __init__(self, config: MultilingualConfig) -> None:
        self.config = config

    def cells(self) -> tuple[MultilingualCell, ...]:
        """All runs."""
        return plan_cells(self.config)

    def given(self, data: Path) -> Given:
        """Configuration and data folder."""
        return self.config, data

    def settings(self) -> Mapping[str, Any]:
        """Those of every run, and the languages' caps, which decide their shares of a batch."""
        caps = {name: language.max_train for name, language in self.config.languages.items()}
        return {**plain(self.config.settings), "max_train": caps}

    def data_fingerprint(self, data: Path) -> str:
        """Over the files of all languages."""
        wanted = [(split, lang) for split in _SPLITS for lang in self.config.languages]
        return files_fingerprint(self.config.settings.files, data, wanted)

    def stem(self, cell: MultilingualCell) -> str:
        """Its method, language and seed."""
        return cell.stem

    def decode(self, values: Mapping[str, Any]) -> MultilingualOutcome:
        """A checked outcome."""
        return MultilingualOutcome.checked(values)

    def phrase(self, outcome: MultilingualOutcome) -> str:
        """The mean score."""
        name = self.config.settings.score_name
        scores = [scores[name] for scores in outcome.test.values()]
        return f"{100 * sum(scores) / len(scores):.1f}"

    def write(
        self,
        records: Mapping[MultilingualCell, MultilingualOutcome],
        facts: Mapping[str, Any],
        folder: Path,
        note: Callable[[str], None],
    ) -> Path:
        """All files of the table; returns report.html."""
        config, result = self.config, summarise(self.config, records)
        results = results_json(config, result, records, facts)
        write_atomic(
            folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
        write_atomic(folder / "cells.csv", cells_csv(config, records))
        write_atomic(folder / "pairs.csv", pairs_csv(config, result))
        write_atomic(folder / "table.csv", table_csv(config, result))
        write_atomic(folder / "table.md", table_markdown(config, result))
        write_atomic(folder / "table.tex", table_tex(config, result))
        if importlib.util.find_spec("matplotlib") is None:
            note("matplotlib is not installed, so no PNG is written; run: pip install 'xfercore[demo]'")
        else:
            _write_png(config, result, folder)
        page = folder / "report.html"
        write_atomic(page, multilingual_html(config, result, records, facts))
        return page

    def sentences(self, records: Mapping[MultilingualCell, MultilingualOutcome]) -> list[str]:
        """What each method did to the means and to single languages."""
        return sentences(self.config, summarise(self.config, records))


def _write_png(config: MultilingualConfig, result: TableResult, folder: Path) -> None:
    from xferkit.report.heat_map import heat_maps_png

    maps = cosine_maps(config, result)
    if maps:
        title = "Cosines of the languages' gradients, whole model"
        write_atomic(folder / "cosines.png", heat_maps_png(title, maps))
