"""What the engine of tables asks of an experiment, and which experiment a configuration is of."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from xferkit.experiments.cells import Cell, Outcome
from xferkit.runs.files import read_config
from xferkit.runs.schema import nearest

__all__ = ["EXPERIMENTS", "Table", "open_table"]

C = TypeVar("C", bound=Cell)
R = TypeVar("R", bound=Outcome)

#: What ``experiment`` of a configuration may be; where it is not named, it is the first.
EXPERIMENTS = ("tagging_transfer", "multilingual")


class Table(Protocol[C, R]):
    """An experiment with its configuration: what is run, what decides it, and what is made of it.

    Attributes:
        subpackages: those of xferkit whose code decides a result.
        modules: modules of the experiments whose code does.
        train: trains one cell from what :meth:`given` returns. Picklable: a function of a module.
    """

    subpackages: tuple[str, ...]
    modules: tuple[str, ...]
    train: Callable[[C, Any], R]

    def cells(self) -> tuple[C, ...]:
        """All runs once, seed by seed, so that a table that was stopped holds whole seeds."""

    def given(self, data: Path) -> Any:
        """What every run is given; picklable."""

    def settings(self) -> Mapping[str, Any]:
        """The settings that decide a result beside the cell, as plain values."""

    def data_fingerprint(self, data: Path) -> str:
        """SHA-256 over the files that are read; ValueError where one cannot be."""

    def stem(self, cell: C) -> str:
        """Begin of a run's file name."""

    def decode(self, values: Mapping[str, Any]) -> R:
        """A result from its plain values; raises as :class:`~xferkit.experiments.cells.CellStore` wants it."""

    def phrase(self, outcome: R) -> str:
        """A result in a few words, for progress."""

    def write(
        self, records: Mapping[C, R], facts: Mapping[str, Any], folder: Path, note: Callable[[str], None]
    ) -> Path:
        """Write page, figures and tables; return the page."""

    def sentences(self, records: Mapping[C, R]) -> list[str]:
        """What came out, for the terminal."""


def open_table(config: Any) -> Table[Any, Any]:
    """The table of a YAML file, or of what was read from one.

    Raises:
        ValueError: the file cannot be read, names no experiment there is, or is not as that one expects; one
            sentence with file and key.
    """
    from xferkit.experiments.multilingual.config import MultilingualConfig, multilingual_config
    from xferkit.experiments.multilingual.table import MultilingualTable
    from xferkit.experiments.tables.config import TableConfig, table_config
    from xferkit.experiments.tables.transfer import TransferTable

    if isinstance(config, TableConfig):
        return TransferTable(config)
    if isinstance(config, MultilingualConfig):
        return MultilingualTable(config)
    where = os.fspath(config)
    content = read_config(where)
    kind = content.pop("experiment", EXPERIMENTS[0])
    if kind == EXPERIMENTS[0]:
        return TransferTable(table_config(content, where))
    if kind == EXPERIMENTS[1]:
        return MultilingualTable(multilingual_config(content, where))
    hint = nearest(kind, EXPERIMENTS) if isinstance(kind, str) else ""
    raise ValueError(f"{where}: experiment is {kind!r}{hint}; expected one of {', '.join(EXPERIMENTS)}")
