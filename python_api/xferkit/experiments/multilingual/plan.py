"""From a multilingual table's configuration to its single runs."""

from __future__ import annotations

from xferkit.experiments.multilingual.cell import ALONE, LOOKUP, MultilingualCell
from xferkit.experiments.multilingual.config import MultilingualConfig

__all__ = ["alone_cell", "cell_of", "lookup_cell", "plan_cells", "row_label", "row_note"]

_LABELS = {ALONE: "Each alone", LOOKUP: "Tag by word"}
_NOTES = {
    ALONE: "a model of each language by itself, as many steps with its share of the batches",
    LOOKUP: "each word's most frequent tag in the language's own training sentences",
}


def row_label(config: MultilingualConfig, name: str) -> str:
    """What the table calls a row."""
    row = config.methods.get(name)
    return (row.label if row else _LABELS.get(name, "")) or name


def row_note(config: MultilingualConfig, name: str) -> str:
    """What a row is, in a few words."""
    row = config.methods.get(name)
    return row.note if row else _NOTES.get(name, "")


def cell_of(config: MultilingualConfig, name: str, seed: int) -> MultilingualCell:
    """The run of a row on all languages."""
    row = config.methods[name]
    return MultilingualCell(name, row.method, row.options_text, tuple(config.languages), seed)


def alone_cell(config: MultilingualConfig, language: str, seed: int) -> MultilingualCell:
    """The run of one language by itself."""
    row = config.methods[config.baseline]
    return MultilingualCell(ALONE, row.method, row.options_text, (language,), seed)


def lookup_cell(config: MultilingualConfig) -> MultilingualCell:
    """The one that needs no training."""
    return MultilingualCell(LOOKUP, "", "{}", tuple(config.languages), 0)


def plan_cells(config: MultilingualConfig) -> tuple[MultilingualCell, ...]:
    """All runs once, seed by seed."""
    cells = {lookup_cell(config): None}
    for seed in config.seeds:
        cells |= {cell_of(config, name, seed): None for name in config.methods}
        if config.alone:
            cells |= {alone_cell(config, language, seed): None for language in config.languages}
    return tuple(cells)
