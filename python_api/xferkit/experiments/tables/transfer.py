"""The table of tagging transfer: from languages with labels to languages without."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xferkit.experiments.tables.claims import sentences
from xferkit.experiments.tables.config import TableConfig
from xferkit.experiments.tables.facts import facts_shown
from xferkit.experiments.tables.figures import gate_maps
from xferkit.experiments.tables.files import cells_csv, results_json, table_csv, table_markdown, table_tex
from xferkit.experiments.tables.page import table_html
from xferkit.experiments.tables.plan import plan_cells
from xferkit.experiments.tables.summary import PanelResult, summarise
from xferkit.experiments.tagging_cell import TaggingCell, TaggingOutcome, TaggingSettings
from xferkit.experiments.tagging_data import files_fingerprint
from xferkit.report.files import write_atomic
from xferkit.runs.schema import plain

__all__ = ["TransferTable"]

#: What a run is given: the settings and the data folder.
Given = tuple[TaggingSettings, Path]


def train_cell(cell: TaggingCell, given: Given) -> TaggingOutcome:
    """Train `cell` with the experiment's own trainer."""
    from xferkit.experiments.tagging_transfer import run_tagging_cell

    return run_tagging_cell(cell, *given)


class TransferTable:
    """See :class:`~xferkit.experiments.tables.kinds.Table`.

    Beside the page stand ``table.md``, ``table.csv``, ``table.tex``, ``cells.csv``, ``results.json`` and, with
    matplotlib, a PNG of the gates of each source set.

    Args:
        config: what is compared.
    """

    subpackages: tuple[str, ...] = ("data", "methods", "metrics", "models", "objectives", "trainers")
    modules: tuple[str, ...] = (
        "tagging_cell",
        "tagging_data",
        "tagging_scores",
        "tagging_settings",
        "tagging_transfer",
    )
    train: Callable[[TaggingCell, Any], TaggingOutcome] = staticmethod(train_cell)

    def __init__(self, config: TableConfig) -> None:
        self.config = config

    def cells(self) -> tuple[TaggingCell, ...]:
        """All runs."""
        return plan_cells(self.config)

    def given(self, data: Path) -> Given:
        """Settings and data folder."""
        return self.config.settings, data

    def settings(self) -> Mapping[str, Any]:
        """Those of every run."""
        return plain(self.config.settings)

    def data_fingerprint(self, data: Path) -> str:
        """Over the files of all panels."""
        cells = self.cells()
        wanted = {(split, lang) for cell in cells for split in ("train", "dev") for lang in cell.sources}
        wanted |= {
            (split, lang) for cell in cells for split in ("unlabelled", "test") for lang in cell.targets
        }
        return files_fingerprint(self.config.settings.files, data, wanted)  # type: ignore[arg-type]

    def stem(self, cell: TaggingCell) -> str:
        """Its languages, method and seed."""
        return cell.stem

    def decode(self, values: Mapping[str, Any]) -> TaggingOutcome:
        """A checked outcome."""
        return TaggingOutcome.checked(values)

    def phrase(self, outcome: TaggingOutcome) -> str:
        """The scores of the targets."""
        name = self.config.settings.score_name
        return ", ".join(f"{lang} {100 * scores[name]:.1f}" for lang, scores in outcome.targets.items())

    def write(
        self,
        records: Mapping[TaggingCell, TaggingOutcome],
        facts: Mapping[str, Any],
        folder: Path,
        note: Callable[[str], None],
    ) -> Path:
        """All files of the table; returns report.html."""
        config, panels = self.config, summarise(self.config, records)
        results = results_json(config, panels, records, facts)
        write_atomic(
            folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )
        write_atomic(folder / "cells.csv", cells_csv(config, records))
        write_atomic(folder / "table.csv", table_csv(panels))
        write_atomic(folder / "table.md", table_markdown(config, panels))
        write_atomic(folder / "table.tex", table_tex(config, panels))
        if importlib.util.find_spec("matplotlib") is None:
            note("matplotlib is not installed, so no PNGs are written; run: pip install 'xfercore[demo]'")
        else:
            _write_pngs(panels, folder)
        page = folder / "report.html"
        write_atomic(page, table_html(config, panels, records, facts_shown(facts)))
        return page

    def sentences(self, records: Mapping[TaggingCell, TaggingOutcome]) -> list[str]:
        """Where each method helped, where it hurt, where it is open."""
        return sentences(summarise(self.config, records))


def _write_pngs(panels: tuple[PanelResult, ...], folder: Path) -> None:
    from xferkit.report.heat_map import heat_maps_png

    for panel in panels:
        for method in panel.gates:
            title = f"{method}, sources {', '.join(panel.panel.sources)}: weight of each source, %"
            write_atomic(
                folder / f"gates-{panel.name}-{method}.png", heat_maps_png(title, gate_maps(panel, method))
            )
