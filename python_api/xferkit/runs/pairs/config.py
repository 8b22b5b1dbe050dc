"""All settings of a run on pairs of texts, each with a default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from xferkit.data.pair_streams import PairSampler
from xferkit.methods.dual_encoder import DualEncoderConfig
from xferkit.models.hashed_text import HashedEncoderConfig
from xferkit.runs.schema import flat_values
from xferkit.trainers import TrainerConfig

__all__ = ["PAIR_METHODS", "PairRunConfig", "check_numbers"]

#: Methods that train on pairs of texts, with the dataclasses of their settings.
PAIR_METHODS: dict[str, type] = {"dual_encoder": DualEncoderConfig}


@dataclass(frozen=True)
class PairRunConfig:
    """What is trained, on which files, and how.

    Attributes:
        method: name of the method; `-` counts as `_`.
        train: files of pairs of texts, languages: file, en-de=file; en-de/name=file where a pair has several.
        dev: files that choose weights; training files without one give a share of themselves.
        test: files that are tested on at the end, once.
        out: folder of the run; null: nothing is kept.
        columns: language: name or number of its column, where the column is not called like the language.
        header: whether the first row of a table holds the names of columns; null: when it holds those wanted.
        delimiter: of CSV files; null: a comma.
        format: format of all files, "tsv", "csv" or "jsonl"; "auto": seen from the name of each.
        mode: "strict": a malformed row ends the run; "skip": it is left out and counted.
        encoding: character encoding of the files.
        dev_share: share of a training file, at most 1000 pairs, that becomes its development set where `dev` has no
            file of its languages; training pairs with one of its texts are left out.
        dev_seed: seed of that choice, the same for all seeds of training.
        encoder: the text encoder.
        options: settings of the method.
        trainer: how training runs; source_dev is the development score, there is no target.
        select_by: what the development score is: "p@1" or "mrr", the mean over files and directions.
        at: the N of the precisions at N, beside 1, that are reported.
        baselines: score retrieval by shared words and n-grams (tf-idf) on the same files.
        seeds: seeds of training, one model each.
        steps: training steps; null: from the size of the training files.
        batch_size: pairs of texts in a batch, all of one pair of languages; null: as the method says.
        evaluations: how often development data are scored, evenly spread, where `trainer.eval_every` is 0; a
            checkpoint is written each time where `trainer.checkpoint_every` is 0.
        sampler: whose turn a step is: "cycling" (each pair of languages in turn) or "proportional" (to its size).
        workers: seeds trained at once in processes of one thread each; 0: one after the other, in this one.
    """

    method: str = ""
    train: dict[str, str] = field(default_factory=dict)
    dev: dict[str, str] = field(default_factory=dict)
    test: dict[str, str] = field(default_factory=dict)
    out: str | None = None
    columns: dict[str, str | int] = field(default_factory=dict)
    header: bool | None = None
    delimiter: str | None = None
    format: Literal["auto", "tsv", "csv", "jsonl"] = "auto"
    mode: Literal["strict", "skip"] = "strict"
    encoding: str = "utf-8"
    dev_share: float = 0.1
    dev_seed: int = 0
    encoder: HashedEncoderConfig = field(default_factory=HashedEncoderConfig)
    options: Any = None
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(schedule="linear"))
    select_by: Literal["p@1", "mrr"] = "p@1"
    at: tuple[int, ...] = (10,)
    baselines: bool = True
    seeds: tuple[int, ...] = (1,)
    steps: int | None = None
    batch_size: int | None = None
    evaluations: int = 10
    sampler: PairSampler = "cycling"
    workers: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, steps=1, batch_size=2, workers=0, evaluations=1)
        if any(n < 2 for n in self.at) or len(set(self.at)) != len(self.at):
            raise ValueError(f"at must be different numbers, 2 or more, got {list(self.at)}")
        if self.trainer.select == "target_dev":
            raise ValueError(
                "select is target_dev, but pairs of texts have no target language; expected source_dev or last"
            )
        if self.trainer.accumulation != 1:
            raise ValueError(
                f"trainer.accumulation must be 1, as the texts of a batch are each other's negatives, got "
                f"{self.trainer.accumulation}; a batch that does not fit needs a smaller batch_size"
            )

    def values(self) -> dict[str, Any]:
        """All settings, flat, as values that JSON and YAML hold."""
        return flat_values(self)


def check_numbers(config: Any, **least: int) -> None:
    """Refuse seeds that are none, shares outside (0, 1) and numbers that are too small.

    Raises:
        ValueError: one of them.
    """
    if not config.seeds or len(set(config.seeds)) != len(config.seeds) or min(config.seeds) < 0:
        raise ValueError(
            f"seeds must be different numbers, 0 or more, at least one, got {list(config.seeds)}"
        )
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if not 0.0 < config.dev_share < 1.0:
        raise ValueError(f"dev_share must lie between 0 and 1, got {config.dev_share}")
