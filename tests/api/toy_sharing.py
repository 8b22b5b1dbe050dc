"""A study of sharing that takes seconds: two made-up languages, and records as runs would leave them."""

from __future__ import annotations

import random
from pathlib import Path

from xferkit.data.plain_text import TextFile
from xferkit.experiments.sharing.cell import (
    HALVES,
    GradientLook,
    MaskFound,
    ModelTrained,
    SharingCell,
    SharingOutcome,
)
from xferkit.experiments.sharing.config import ModelSizes, SharingConfig, SharingSettings, StudyLanguage
from xferkit.masks import MaskTrainingConfig
from xferkit.methods.masked_lm import MaskedLmConfig

SITES = {
    "encoder.layers.0.attention/heads": 2,
    "encoder.layers.0.feed_forward/units": 8,
    "encoder.layers.1.attention/heads": 2,
    "encoder.layers.1.feed_forward/units": 8,
}


def write_texts(folder: Path, texts: int = 120) -> None:
    """Two languages of the same grammar and other words."""
    for name, letters in (("xx", "abcdef"), ("yy", "uvwxyz")):
        rng = random.Random(name)
        words = ["".join(rng.choice(letters) for _ in range(3)) for _ in range(20)]
        lines = [" ".join(rng.choice(words) for _ in range(rng.randint(3, 8))) for _ in range(texts)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def config_of(**settings: object) -> SharingConfig:
    """Two seeds, two layers, two heads, eight hidden units."""
    sizes = ModelSizes(dim=8, layers=2, heads=2, feed_forward=8, max_length=12, dropout=0.1)
    given = {
        "vocabulary": 60,
        "steps": 6,
        "cosine_every": 3,
        "cosine_texts": 4,
        "model": sizes,
        "lm": MaskedLmConfig(batch_size=4, warmup_steps=2, bucket=2),
        "masks": MaskTrainingConfig(steps=3),
    }
    return SharingConfig(
        languages={
            name: StudyLanguage((TextFile(f"{name}.txt"),), family="made up") for name in ("xx", "yy")
        },
        seeds=(1, 2),
        settings=SharingSettings(**{**given, **settings}),  # type: ignore[arg-type]
    )


def records_of(
    config: SharingConfig,
    log_alpha: dict[tuple[str, str], dict[str, list[float]]],
    within: float,
    across: float,
) -> dict[SharingCell, SharingOutcome]:
    """Every run of the study: these log alphas by language and half, and looks with these cosines."""
    groups = ["whole", "embeddings", "layer 1", "layer 2", "head"]
    records = {}
    for seed in config.seeds:
        looks = [
            GradientLook(step, {n: [within] * 5 for n in config.languages}, {"xx-yy": [across / step] * 5})
            for step in (1, 2, 3, 4)
        ]
        sizes = {name: {"texts": 10, "tokens": 100, "held_out": 2} for name in config.languages}
        ones = dict.fromkeys(config.languages, 1.0)
        records[SharingCell("model", seed)] = SharingOutcome(
            1.0, model=ModelTrained(groups, looks, ones, ones, sizes, 99, 4)
        )
        for language in config.languages:
            for half in HALVES:
                found = MaskFound(log_alpha[language, half], 1.0, 0.9, 0.5, 0.4, 3)
                records[SharingCell("masks", seed, language, half)] = SharingOutcome(1.0, masks=found)
    return records
