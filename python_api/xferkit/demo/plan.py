"""What the demo trains: methods, presets and the lists of single runs ("cells")."""

from __future__ import annotations

from dataclasses import dataclass

from xferkit.data.panels import SIMILARITY_PANEL, same_convention_sources, sources_for

__all__ = [
    "BASELINE",
    "METHODS",
    "ORACLE",
    "PRESETS",
    "REFERENCE",
    "CellSpec",
    "Method",
    "Preset",
    "SimilaritySpec",
    "plan_cells",
    "plan_similarity",
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
    Method(
        "pcgrad",
        "PCGrad",
        "every source a task; what conflicts in their gradients is projected away, over the whole model",
    ),
    Method(
        "gradvac",
        "GradVac",
        "every source a task; their gradients are turned towards their usual cosine, layer by layer",
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
class SimilaritySpec:
    """One run that compares the languages' gradients: what is trained, and after which steps they are looked at.

    Attributes:
        languages: trained on together.
        seed: of everything.
        focus: consecutive steps that the main figures are means over.
        course: the other steps.
        samples: numbers of names a language of which gradients are taken as well; 0: those of a training batch.
        lowercase: names in lower case, as a control.
        steps: training steps.
    """

    languages: tuple[str, ...]
    seed: int
    focus: tuple[int, ...]
    course: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()
    lowercase: bool = False
    steps: int = 400

    @property
    def method(self) -> str:
        """What runs of this kind are counted as."""
        return "similarity"

    def describe(self) -> str:
        """One phrase for progress and messages."""
        return f"gradients{' lower-cased' if self.lowercase else ''} seed {self.seed}"


@dataclass(frozen=True)
class Preset:
    """A size of the demo.

    Attributes:
        name: what ``--preset`` takes.
        seeds: number of seeds of each target, in the order of the report.
        methods: names of the methods trained.
        lowercase_methods: those trained again on lower-cased names, as a control.
        steps: training steps of a run.
        similarity_seeds: seeds of the comparison of gradients.
        similarity_course: when gradients are looked at besides, as parts of a run.
    """

    name: str
    seeds: dict[str, int]
    methods: tuple[str, ...]
    lowercase_methods: tuple[str, ...]
    steps: int
    similarity_seeds: int = 0
    similarity_course: tuple[float, ...] = ()


_ALL = tuple(method.name for method in METHODS)
_CONTROL = (BASELINE, ORACLE, "language_gate")

_COURSE = (0.0025, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
#: Where in a training gradients are compared: step 150 of 400, as in the trial that the demo repeats.
_FOCUS = 0.375
#: Names a language behind the gradients that are compared as well: a training batch's, and two larger samples.
_SAMPLES = (0, 64, 256)

#: The sizes: "full" is the experiment, "small" shows within a minute that every part of it runs.
PRESETS: dict[str, Preset] = {
    "full": Preset("full", {"es": 5, "en": 3}, _ALL, _CONTROL, 400, 5, _COURSE),
    "small": Preset("small", {"es": 2}, _ALL, _CONTROL, 40, 2, (0.025, 1.0)),
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


def plan_similarity(preset: Preset) -> tuple[SimilaritySpec, ...]:
    """All runs of `preset` that compare gradients, seed by seed: on names as written and lower-cased."""
    middle, steps = round(_FOCUS * preset.steps), preset.steps
    focus = tuple(range(max(1, middle - 2), min(steps, middle + 2) + 1))
    course = tuple(sorted({max(1, round(part * steps)) for part in preset.similarity_course} - set(focus)))
    return tuple(
        SimilaritySpec(SIMILARITY_PANEL, seed, focus, course, () if lowercase else _SAMPLES, lowercase, steps)
        for seed in range(preset.similarity_seeds)
        for lowercase in (False, True)
    )
