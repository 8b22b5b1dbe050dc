"""From a table's configuration to its single runs."""

from __future__ import annotations

from dataclasses import dataclass

from xferkit.experiments.tables.config import TableConfig
from xferkit.experiments.tagging_cell import LOOKUPS, TaggingCell, reads_target

__all__ = ["METHODS", "Method", "cell_of", "plan_cells"]


@dataclass(frozen=True)
class Method:
    """A method as the tables speak of it."""

    label: str
    note: str


#: What tables call the methods; others go by their name.
METHODS = {
    "majority_tag": Method("Most frequent tag", "the sources' most frequent tag, everywhere"),
    "most_frequent_tag": Method("Tag by word", "each word's most frequent tag in the sources"),
    "pooled": Method("Pooled", "one model on all sources together: the baseline"),
    "man": Method("MAN", "adversarial shared features and a private encoder per source"),
    "man_moe": Method("MAN-MoE", "adversarial shared features, private and predictor experts mixed by gates"),
    "no_c_moe": Method("without C-MoE", "MAN-MoE with one predictor in place of its experts"),
    "no_private_moe": Method("without private MoE", "MAN-MoE without private features"),
    "no_moe": Method("without MoE", "MAN-MoE without both mixtures: adversarial shared features alone"),
    "no_man": Method("without MAN", "MAN-MoE without the adversary"),
}


def cell_of(config: TableConfig, panel: str, target: str, method: str, seed: int) -> TaggingCell:
    """The run that gives `method`'s score on `target`; methods that never read a target's texts share one."""
    languages = config.panels[panel]
    targets = (target,) if reads_target(method) else tuple(languages.targets)
    return TaggingCell(method, 0 if method in LOOKUPS else seed, languages.sources, targets)


def plan_cells(config: TableConfig) -> tuple[TaggingCell, ...]:
    """All runs of a table once, seed by seed, so that a table stopped early holds whole seeds."""
    cells: dict[TaggingCell, None] = {}
    for seed in config.seeds:
        for name, panel in config.panels.items():
            for method in (*LOOKUPS, *config.panel_methods(name)):
                cells |= {cell_of(config, name, target, method, seed): None for target in panel.targets}
    return tuple(cells)
