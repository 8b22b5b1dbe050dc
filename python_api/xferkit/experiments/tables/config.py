"""What a table compares: languages, methods, seeds and settings, from one YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xferkit.experiments.tagging_cell import TaggingSettings
from xferkit.methods import method_names
from xferkit.runs.files import read_config
from xferkit.runs.schema import build, flatten, nearest, options_of

__all__ = ["BASELINE", "Panel", "TableConfig", "load_table_config", "table_config"]

#: The method every other one is compared with.
BASELINE = "pooled"


@dataclass(frozen=True)
class Panel:
    """A set of source languages and the targets they are tried on.

    Attributes:
        sources: languages with labels.
        targets: languages without, and what each is to the sources: ``related`` or ``distant``.
        sisters: by target, the sources that are its relatives; what a gate should prefer.
        why: why these languages, in a sentence.
        more_methods: methods that are trained on this panel alone.
    """

    sources: tuple[str, ...] = ()
    targets: dict[str, str] = field(default_factory=dict)
    sisters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    why: str = ""
    more_methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableConfig:
    """A table.

    Attributes:
        title: what it compares, in a line.
        task: what is tagged with what, in a phrase.
        notes: what a reader should know of data and settings, in sentences.
        panels: source sets by name.
        methods: trained on every panel; ``pooled`` must be among them.
        seeds: one run each.
        settings: the same for every run.
    """

    title: str = ""
    task: str = ""
    notes: tuple[str, ...] = ()
    panels: dict[str, Panel] = field(default_factory=dict)
    methods: tuple[str, ...] = (BASELINE, "man", "man_moe")
    seeds: tuple[int, ...] = (1, 2, 3)
    settings: TaggingSettings = field(default_factory=TaggingSettings)

    def __post_init__(self) -> None:
        if not self.panels:
            raise ValueError("panels is empty; expected at least one set of source languages")
        if BASELINE not in self.methods:
            raise ValueError(f"methods lacks {BASELINE!r}, which the others are compared with")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {list(self.seeds)}")
        for name, panel in self.panels.items():
            _check_panel(name, panel)
            methods = [*self.methods, *panel.more_methods]
            for method in methods:
                if method not in method_names():
                    raise ValueError(f"unknown method {method!r}{nearest(method, method_names())}")
            twice = sorted({method for method in methods if methods.count(method) > 1})
            if twice:
                raise ValueError(f"panel {name!r} has {', '.join(twice)} twice; expected each method once")

    def panel_methods(self, panel: str) -> tuple[str, ...]:
        """Methods of a panel, in the order of the table."""
        return (*self.methods, *self.panels[panel].more_methods)


def _check_panel(name: str, panel: Panel) -> None:
    if not panel.sources or len(set(panel.sources)) != len(panel.sources):
        raise ValueError(f"panel {name!r}: sources must be different languages, got {list(panel.sources)}")
    if not panel.targets:
        raise ValueError(f"panel {name!r} has no targets; expected languages and what each is to the sources")
    both = sorted(set(panel.sources) & set(panel.targets))
    if both:
        raise ValueError(f"panel {name!r}: {', '.join(both)} stands among the sources and the targets")
    for target, sisters in panel.sisters.items():
        if target not in panel.targets or not set(sisters) <= set(panel.sources):
            raise ValueError(
                f"panel {name!r}: sisters of {target} are {list(sisters)}; expected sources of one of its targets"
            )
    for target, kind in panel.targets.items():
        if kind not in ("related", "distant"):
            raise ValueError(f"panel {name!r}: {target} is {kind!r}; expected 'related' or 'distant'")


def load_table_config(path: str | os.PathLike[str]) -> TableConfig:
    """The table that a YAML file describes; errors as of :func:`table_config`."""
    return table_config(read_config(path), os.fspath(path))


def table_config(content: dict[str, Any], where: str) -> TableConfig:
    """The table that plain values describe.

    Args:
        content: what a file holds.
        where: the file, for errors.

    Raises:
        ValueError: an unknown key (named with the nearest one), or a value that cannot be; one sentence with file
            and key.
    """
    panels = content.pop("panels", {})
    options = options_of(TableConfig, skip=("panels",))
    values = flatten(content, options, where)
    try:
        if not isinstance(panels, Mapping) or not all(isinstance(p, Mapping) for p in panels.values()):
            raise ValueError("panels must be a mapping of names to settings")
        return build(
            TableConfig, values, panels={str(name): _panel(where, name, p) for name, p in panels.items()}
        )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _panel(where: str, name: Any, content: Mapping[str, Any]) -> Panel:
    return build(Panel, flatten(content, options_of(Panel), f"{where}: panel {name!r}"))
