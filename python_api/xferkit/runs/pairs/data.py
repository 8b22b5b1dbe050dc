"""The files of a run on pairs of texts: checked before anything is written, read, and a development set cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xferkit.data.corpus import fingerprint, parse_named_files
from xferkit.data.pairs import PairName, pair_groups, read_pairs
from xferkit.data.seeding import derive_seed
from xferkit.runs.folder import InputFile
from xferkit.runs.inputs import Watch
from xferkit.runs.pairs.config import PairRunConfig

__all__ = ["PairSet", "PairTexts", "plan_pair_files", "read_pair_texts"]

Say = Callable[[str], None]
_ROLES = ("train", "dev", "test")
_MOST_DEV = 1000


@dataclass(frozen=True)
class PairSet:
    """Pairs of texts of two languages: row i of `second` says what row i of `first` says."""

    name: PairName
    first: list[str]
    second: list[str]

    def __len__(self) -> int:
        return len(self.first)

    def rows(self, kept: Tensor) -> PairSet:
        """Those rows."""
        numbers = kept.tolist()
        return PairSet(self.name, [self.first[i] for i in numbers], [self.second[i] for i in numbers])


@dataclass(frozen=True)
class PairTexts:
    """Everything that a run reads, by role."""

    train: list[PairSet]
    dev: list[PairSet]
    test: list[PairSet]


def plan_pair_files(config: PairRunConfig) -> tuple[InputFile, ...]:
    """Check what the files are called and that they are there; the result identifies their content.

    Raises:
        ValueError: no training file, a name that is no pair of languages, or a file that cannot be read.
    """
    if not config.train:
        raise ValueError("train names no file; expected pairs of texts, --train en-de=pairs.tsv ...")
    files = []
    for role in _ROLES:
        given = [f"{name}={path}" for name, path in getattr(config, role).items()]
        for key, path in parse_named_files(given, argument=f"--{role}", shared=True).items():
            files.append(InputFile(role, str(PairName.parse(str(key))), path, fingerprint(path)))
    trained = {PairName.parse(name).pair for name in config.train}
    for name in config.dev:
        if PairName.parse(name).pair not in trained:
            raise ValueError(
                f"--dev {name}: no training file is of that pair of languages; "
                f"expected one of {', '.join(sorted(trained))}"
            )
    for name in config.test:
        pair = PairName.parse(name).pair
        if (
            not config.options.shared and pair not in trained
        ):  # the other way round it would take the wrong towers
            raise ValueError(
                f"--test {name}: with options.shared false each side has an encoder of its own, and none was trained "
                f"on {pair}; expected one of {', '.join(sorted(trained))}"
            )
    return tuple(files)


def read_pair_texts(config: PairRunConfig, say: Say, warn: Say, watch: Watch | None) -> PairTexts:
    """Read all files; where a pair of languages has no development file, training gives a share of itself.

    Raises:
        ValueError: a file is malformed (its line is named), or too small to be cut.
    """
    found = {
        role: [_read(config, name, path, warn, watch) for name, path in getattr(config, role).items()]
        for role in _ROLES
    }
    train, dev = found["train"], found["dev"]
    with_dev = {part.name.pair for part in dev}
    if config.trainer.select == "last" and not dev:
        return PairTexts(train, dev, found["test"])
    kept = []
    for part in train:
        if part.name.pair in with_dev:
            kept.append(part)
            continue
        rest, held = _cut(part, config)
        say(f"{part.name}: {len(held):,} pairs are its development set, {len(rest):,} are trained on.")
        kept.append(rest)
        dev = [*dev, held]
    return PairTexts(kept, dev, found["test"])


def _read(config: PairRunConfig, name: str, path: str, warn: Say, watch: Watch | None) -> PairSet:
    parsed = PairName.parse(name)
    reader = read_pairs(
        path,
        parsed.languages,
        columns={k: v for k, v in config.columns.items() if k in parsed.languages},
        header=config.header,
        delimiter=config.delimiter,
        format=config.format,
        mode=config.mode,
        encoding=config.encoding,
        on_progress=None if watch is None else watch(path),
    )
    first, second = [], []
    for pair in reader:
        first.append(pair.first)
        second.append(pair.second)
    if reader.report.rejected:
        warn(f"{reader.report.summary()}.")
    return PairSet(parsed, first, second)


def _cut(part: PairSet, config: PairRunConfig) -> tuple[PairSet, PairSet]:
    """Training rows and development rows, which share no text."""
    size = min(_MOST_DEV, max(1, round(config.dev_share * len(part))))
    generator = torch.Generator().manual_seed(derive_seed(config.dev_seed, "dev", str(part.name)))
    held = torch.randperm(len(part), generator=generator)[:size].sort().values
    groups = pair_groups(part.first, part.second)
    left = (~torch.isin(groups, groups[held])).nonzero().flatten()
    if len(left) < 2:
        raise ValueError(
            f"--train {part.name}: of {len(part)} pairs of texts {len(left)} are left beside a development set of "
            f"{size}; expected at least 2: give a file with --dev, or --trainer.select last"
        )
    return part.rows(left), part.rows(held)
