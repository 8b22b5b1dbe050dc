"""Made-up languages in the format of the shared data: a word's ending tells its tag, stems are a language's own."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

__all__ = ["ENDINGS", "read_sentences", "sentence", "write_language", "write_sentences"]

ENDINGS = {"O": "mu", "B-PER": "ka", "I-PER": "lo", "B-LOC": "ti"}

Rows = list[tuple[str, str]]


def sentence(letters: str, rng: random.Random, endings: dict[str, str] | None = None) -> Rows:
    """Six words or so of stems from `letters` and vowels."""
    rows: Rows = []
    while len(rows) < 6:
        run = rng.choice((("O",), ("O",), ("O",), ("B-PER",), ("B-PER", "I-PER"), ("B-LOC",)))
        for tag in run:
            stem = "".join(rng.choice(letters) + rng.choice("aeiou") for _ in range(3))
            rows.append((stem + (endings or ENDINGS)[tag], tag))
    return rows


def write_sentences(path: Path, sentences: list[Rows]) -> None:
    """A word and its tag on each line, a blank line behind each sentence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for rows in sentences:
            file.writelines(f"{word}\t{tag}\n" for word, tag in rows)
            file.write("\n")


def read_sentences(path: Path) -> list[Rows]:
    """What :func:`write_sentences` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        blocks = file.read().strip("\n").split("\n\n")
    return [[tuple(line.split("\t")) for line in block.split("\n")] for block in blocks]


def write_language(folder: Path, language: str, letters: str, endings: dict[str, str] | None = None) -> None:
    """Training, development and test sentences below `folder`."""
    for split, number in (("train", 60), ("dev", 25), ("test", 30)):
        rng = random.Random(f"{language} {split}")
        write_sentences(
            folder / language / f"{split}.tsv.gz", [sentence(letters, rng, endings) for _ in range(number)]
        )
