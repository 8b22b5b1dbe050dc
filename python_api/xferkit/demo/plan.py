"""What the demo trains: methods, presets and the list of single runs ("cells")."""

from __future__ import annotations

from dataclasses import dataclass

from xferkit.data.panels import same_convention_sources, sources_for

__all__ = [
    "BASELINE",
    "METHODS",
    "ORACLE",
    "PRESETS",
    "REFERENCE",
    "CellSpec",
    "Method",
    "Preset",
    "plan_cells",
]


@dataclass(frozen=True)
class Method:
    """A method of the demo as the report speaks of it."""

    name: str
    label: str
    note: str


#: All methods in the order of tables and figures.
METHODS: tuple[Method, ...] = (
    Method("pooled", "Pooled", "one model on all sources together: the baseline"),
    Method(
        "same_convention",
        "Same convention (oracle)",
        "pooled, on the sources that capitalise as the target does",
    ),
    Method("man", "MAN", "pooled, with features made alike across languages by an adversary"),
    Method("moe", "MoE, gate per name", "one expert per source; a gate mixes them anew for every name"),
    Method("man_moe", "MAN-MoE", "both: adversarial shared features and experts mixed for every name"),
    Method(
        "language_gate", "Language-level gate", "experts mixed once per language, from a bag of its names"
    ),
    Method(
        "gate_weighted_pooling",
        "Gate-weighted pooling",
        "pooled, each source weighted by its likeness to the target",
    ),
    Method("own", "Own labels (reference)", "the same model trained on the target's own labels"),
)

#: The method every other one is compared with.
BASELINE = "pooled"
#: Knows the target's spelling convention, which the other methods have to find out.
ORACLE = "same_convention"
#: Uses the target's labels; shows what there is to gain.
REFERENCE = "own"


@dataclass(frozen=True)
class CellSpec:
    """One training run: what is trained, on what, and with which seed."""

    target: str
    method: str
    seed: int
    sources: tuple[str, ...]
    lowercase: bool = False
    steps: int = 400

    def describe(self) -> str:
        """One phrase for progress and messages."""
        return f"{self.target} {self.method}{' lower-cased' if self.lowercase else ''} seed {self.seed}"


@dataclass(frozen=True)
class Preset:
    """A size of the demo.

    Attributes:
        name: what ``--preset`` takes.
        seeds: number of seeds of each target, in the order of the report.
        methods: names of the methods trained.
        lowercase_methods: those trained again on lower-cased names, as a control.
        steps: training steps of a run.
    """

    name: str
    seeds: dict[str, int]
    methods: tuple[str, ...]
    lowercase_methods: tuple[str, ...]
    steps: int


_ALL = tuple(method.name for method in METHODS)
_CONTROL = (BASELINE, ORACLE, "language_gate")

#: The sizes: "full" is the experiment, "small" shows within a minute that every part of it runs.
PRESETS: dict[str, Preset] = {
    "full": Preset("full", {"es": 5, "en": 3}, _ALL, _CONTROL, 400),
    "small": Preset("small", {"es": 2}, _ALL, _CONTROL, 40),
}


def plan_cells(preset: Preset) -> tuple[CellSpec, ...]:
    """All runs of `preset`, seed by seed, so that a run stopped early holds whole seeds.

    Sources are the target's panel; the oracle gets those of the target's convention, the upper reference the
    target itself.
    """
    cells = []
    for target, num_seeds in preset.seeds.items():
        panel = sources_for(target)
        subsets = {ORACLE: same_convention_sources(target, panel), REFERENCE: (target,)}
        for seed in range(num_seeds):
            for lowercase, methods in ((False, preset.methods), (True, preset.lowercase_methods)):
                cells += [
                    CellSpec(target, name, seed, subsets.get(name, panel), lowercase, preset.steps)
                    for name in methods
                ]
    return tuple(cells)
