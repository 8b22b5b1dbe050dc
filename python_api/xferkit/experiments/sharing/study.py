"""The study of sharing as the engine of tables runs it: what is trained, what decides it, and what is made of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xferkit.experiments.sharing.cell import HALVES, SharingCell, SharingOutcome
from xferkit.experiments.sharing.claims import sentences
from xferkit.experiments.sharing.config import SharingConfig, sharing_config
from xferkit.experiments.sharing.corpora import read_corpora, texts_fingerprint
from xferkit.experiments.sharing.figures import language_map, mask_maps
from xferkit.experiments.sharing.files import cosines_csv, gates_csv, masks_csv, results_json, study_markdown
from xferkit.experiments.sharing.page import sharing_html
from xferkit.experiments.sharing.summary import summarise
from xferkit.experiments.sharing.training import Given, run_sharing_cell
from xferkit.experiments.tables.run import run_opened, table_conditions
from xferkit.report.files import write_atomic
from xferkit.runs.schema import plain

__all__ = ["SharingStudy", "run_sharing_study"]


def run_sharing_study(
    config: str | os.PathLike[str] | SharingConfig,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    workers: int | None = None,
) -> Path:
    """Train models and masks, and write the report; return the path of report.html.

    Finished runs lie in ``out/cells``, models that are trained in ``out/work``: a study that was stopped goes on from
    its last checkpoint.

    Args:
        config: a YAML file, such as ``configs/interference/small.yaml``, or what was read from one.
        data: folder of the data.
        out: folder, made when it is not there.
        workers: processes of one thread each; None: one a core; 0: none, everything in this process.

    Raises:
        ValueError: the configuration or the data are not as expected, or `out` cannot be used.
        RunError: another process writes to `out`, it cannot be written to, or a run failed.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    read = config if isinstance(config, SharingConfig) else sharing_config(config)
    return run_opened(SharingStudy(read, Path(out)), data, out, workers)


class SharingStudy:
    """See :class:`~xferkit.experiments.tables.kinds.Table`.

    Beside the page stand ``study.md``, ``cosines.csv``, ``masks.csv``, ``gates.csv``, ``results.json`` and, with
    matplotlib, ``masks.png``.

    Args:
        config: the study.
        out: folder of the results, below which models are kept.
    """

    subpackages: tuple[str, ...] = ("data", "masks", "methods", "models", "surgery", "trainers")
    modules: tuple[str, ...] = tuple(
        f"sharing.{name}" for name in ("cell", "config", "corpora", "gradients", "training")
    )
    train: Callable[[SharingCell, Any], SharingOutcome] = staticmethod(run_sharing_cell)

    def __init__(self, config: SharingConfig, out: Path) -> None:
        self.config, self.out = config, out

    def cells(self) -> tuple[SharingCell, ...]:
        """All models, which take longest, then the masks on them."""
        models = [SharingCell("model", seed) for seed in self.config.seeds]
        masks = [
            SharingCell("masks", seed, language, half)
            for seed in self.config.seeds
            for language in self.config.languages
            for half in HALVES
        ]
        return (*models, *masks)

    def given(self, data: Path) -> Given:
        """Configuration and folders; the work is in a folder named after all that decides it.

        The texts are read here once, so that what is wrong with them is told before anything is trained.
        """
        read_corpora(self.config, data)
        conditions = json.dumps(table_conditions(self, data), sort_keys=True)
        identity = hashlib.sha256(conditions.encode()).hexdigest()
        return Given(self.config, data, self.out / "work" / identity[:16], identity)

    def settings(self) -> Mapping[str, Any]:
        """Those of every run, and the languages' order, which numbers them."""
        return {**plain(self.config.settings), "languages": list(self.config.languages)}

    def data_fingerprint(self, data: Path) -> str:
        """Over the files of all languages."""
        return texts_fingerprint(self.config, data)

    def stem(self, cell: SharingCell) -> str:
        """Its part, language, half and seed."""
        return cell.stem

    def decode(self, values: Mapping[str, Any]) -> SharingOutcome:
        """A checked outcome."""
        return SharingOutcome.checked(values)

    def phrase(self, outcome: SharingOutcome) -> str:
        """Likelihood of held-out tokens."""
        if outcome.model is not None:
            return ", ".join(f"{name} {value:.2f}" for name, value in outcome.model.nll.items()) + " nats"
        assert outcome.masks is not None
        found = outcome.masks
        return (
            f"{found.nll:.2f} nats, {found.nll_unmasked:.2f} unmasked, sparsity {found.expected_sparsity:.2f}"
        )

    def write(
        self,
        records: Mapping[SharingCell, SharingOutcome],
        facts: Mapping[str, Any],
        folder: Path,
        note: Callable[[str], None],
    ) -> Path:
        """All files of the study; returns report.html."""
        config, result = self.config, summarise(self.config, records)
        results = results_json(config, result, records, facts)
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomic(folder / "results.json", text)
        write_atomic(folder / "cosines.csv", cosines_csv(result))
        write_atomic(folder / "masks.csv", masks_csv(config, result))
        write_atomic(folder / "gates.csv", gates_csv(config, result))
        write_atomic(folder / "study.md", study_markdown(config, result))
        if importlib.util.find_spec("matplotlib") is None:
            note("matplotlib is not installed, so no PNG is written; run: pip install 'xfercore[demo]'")
        else:
            from xferkit.report.heat_map import heat_maps_png

            maps = [*mask_maps(result), language_map(config, result)]
            write_atomic(
                folder / "masks.png", heat_maps_png("Likeness of masks (centred cosine, hundredths)", maps)
            )
        page = folder / "report.html"
        write_atomic(page, sharing_html(config, result, records, facts))
        return page

    def sentences(self, records: Mapping[SharingCell, SharingOutcome]) -> list[str]:
        """What came out, a sentence a claim."""
        return sentences(self.config, summarise(self.config, records))
