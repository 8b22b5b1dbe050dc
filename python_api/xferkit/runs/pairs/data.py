"""The files of a run on pairs of texts: checked before anything is written, read, and a development set cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    held = {place: _held(part, config) for place, part in enumerate(train) if part.name.pair not in with_dev}
    texts: dict[str, set[str]] = {}  # of the development sets, by language: other pairs may hold the same
    for place, rows in held.items():
        for language, side in _sides(train[place].rows(rows)):
            texts.setdefault(language, set()).update(side)
    kept = []
    for place, part in enumerate(train):
        rest = part.rows(_free(part, held.get(place), texts))
        if len(rest) < 2:
            raise ValueError(
                f"--train {part.name}: of {len(part)} pairs of texts {len(rest)} are left beside the development sets; "
                "expected at least 2: give a file with --dev, or --trainer.select last"
            )
        if place in held:
            dev = [*dev, part.rows(held[place])]
            say(
                f"{part.name}: {len(held[place]):,} pairs are its development set, {len(rest):,} are trained on."
            )
        elif len(rest) < len(part):
            say(
                f"{part.name}: {len(part) - len(rest):,} pairs share a text with a development set and are left out."
            )
        kept.append(rest)
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


def _held(part: PairSet, config: PairRunConfig) -> Tensor:
    """Rows that become a development set."""
    size = min(_MOST_DEV, max(1, round(config.dev_share * len(part))))
    generator = torch.Generator().manual_seed(derive_seed(config.dev_seed, "dev", str(part.name)))
    return torch.randperm(len(part), generator=generator)[:size].sort().values


def _free(part: PairSet, held: Tensor | None, texts: Mapping[str, set[str]]) -> Tensor:
    """Rows that share no text with a development set cut off here, directly or through others of their file."""
    found = [any(text in texts.get(language, ()) for language, text in row) for row in _rows(part)]
    taken = torch.tensor(found, dtype=torch.bool)
    if held is not None:
        groups = pair_groups(part.first, part.second)
        taken |= torch.isin(groups, groups[held])
    return (~taken).nonzero().flatten()


def _sides(part: PairSet) -> list[tuple[str, list[str]]]:
    return [(part.name.first, part.first), (part.name.second, part.second)]


def _rows(part: PairSet) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    for first, second in zip(part.first, part.second, strict=True):
        yield (part.name.first, first), (part.name.second, second)
