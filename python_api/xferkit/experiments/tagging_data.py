"""Files of a tagging task in several languages: which part of which file is training, development and test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from xferkit.data.corpus import fingerprint
from xferkit.data.records import Columns, Record, read_records

__all__ = ["Split", "TaggingFiles", "files_fingerprint", "read_split"]

Split = Literal["train", "dev", "test", "unlabelled"]

_PART = re.compile(
    r"^(?P<path>[^\[\]]+)"
    r"(?:\[(?:(?P<first>\d{0,9}):(?P<last>\d{0,9})|(?P<other>!?)(?P<rest>\d{1,9})%(?P<every>[1-9]\d{0,8}))\])?$"
)


@dataclass(frozen=True)
class Part:
    """Some sentences of a file, by their number from 0.

    Attributes:
        path: the file.
        first: first sentence.
        last: the sentence after the last one; None: to the end.
        every: of so many sentences one is taken ...
        rest: ... whose number leaves this rest,
        others: or all but that one.
    """

    path: str
    first: int = 0
    last: int | None = None
    every: int = 1
    rest: int = 0
    others: bool = False

    def takes(self, number: int) -> bool:
        """Whether the sentence is one of them."""
        inside = self.first <= number and (self.last is None or number < self.last)
        return inside and (number % self.every == self.rest) != self.others


@dataclass(frozen=True)
class TaggingFiles:
    """Files by split and language.

    Each split is a mapping from a language, or ``default`` for all that are not named, to a path below the data
    folder, in which ``{lang}`` stands for the language. Behind it, ``[first:last]`` takes these sentences of the
    file alone, counted from 0; ``[0%5]`` every fifth one, and ``[!0%5]`` all the others.

    Attributes:
        format: ``"conll"``: a token and its tag on each line, a blank line behind each sentence; ``"tsv"``: a
            sentence on each line below a header, with columns of tokens and of tags separated by spaces.
        token_column: column of the tokens (``tsv``).
        tag_column: column of the tags (``tsv``).
        train: labelled sentences of the sources.
        dev: sentences of the sources that select the weights and test the gates.
        test: sentences of the targets.
        unlabelled: texts of the targets for training, read without their tags; empty: the ``train`` file.
        max_train: sentences of a training file at most, the first ones; 0: all.
        max_dev: sentences of a development file at most; 0: all.
        max_tokens: longer sentences are left out of training; they stay in development and test.
    """

    format: Literal["conll", "tsv"] = "conll"
    token_column: str = "tokens"
    tag_column: str = "tags"
    train: dict[str, str] = field(default_factory=dict)
    dev: dict[str, str] = field(default_factory=dict)
    test: dict[str, str] = field(default_factory=dict)
    unlabelled: dict[str, str] = field(default_factory=dict)
    max_train: int = 0
    max_dev: int = 0
    max_tokens: int = 100

    def part(self, split: Split, language: str) -> Part:
        """What a split takes of which file below the data folder.

        Raises:
            ValueError: the split names neither the language nor a default, or the path has no meaning.
        """
        paths: dict[str, str] = getattr(self, split)
        if split == "unlabelled" and not paths:
            paths = self.train
        found = paths.get(language, paths.get("default"))
        if found is None:
            raise ValueError(
                f"files.{split} names no file for {language!r}; expected the language or 'default' among its keys"
            )
        match = _PART.match(found)
        if match is None or match["path"].startswith("/") or ".." in Path(match["path"]).parts:
            raise ValueError(
                f"files.{split} of {language!r} is {found!r}; expected a path below the data folder, and behind it "
                "[first:last], [0%5] or [!0%5] for some of its sentences"
            )
        path = match["path"].replace("{lang}", language)
        if match["every"]:
            return Part(path, every=int(match["every"]), rest=int(match["rest"]), others=bool(match["other"]))
        return Part(path, int(match["first"] or 0), int(match["last"]) if match["last"] else None)


def read_split(
    files: TaggingFiles, data: Path, split: Split, language: str, *, labelled: bool = True
) -> list[Record]:
    """The sentences of a split; the tags are not even read where `labelled` is False.

    Args:
        files: where they are.
        data: the data folder.
        split: which of them.
        language: whose.
        labelled: with tags.

    Raises:
        ValueError: no such file, or one that is not as expected; the message names file and line.
    """
    part = files.part(split, language)
    numbered = enumerate(_records(files, data / part.path, labelled))
    sentences: Iterable[Record] = (record for number, record in numbered if part.takes(number))
    limit = {"train": files.max_train, "unlabelled": files.max_train, "dev": files.max_dev}.get(split, 0)
    if split in ("train", "unlabelled"):
        sentences = (record for record in sentences if len(record.tokens) <= files.max_tokens)
    found = list(islice(sentences, limit or None))
    if not found:
        raise ValueError(
            f"{data / part.path} has no sentences for files.{split} of {language!r}; expected some"
        )
    return found


def _records(files: TaggingFiles, path: Path, labelled: bool) -> Iterable[Record]:
    columns = Columns(tokens=files.token_column, tags=files.tag_column) if files.format == "tsv" else None
    return read_records(path, format=files.format, task="tagging", labelled=labelled, columns=columns)


def files_fingerprint(files: TaggingFiles, data: Path, languages: Iterable[tuple[Split, str]]) -> str:
    """SHA-256 over the files of these splits and languages: paths, and the SHA-256 of each content.

    Raises:
        ValueError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted({files.part(split, language).path for split, language in languages}):
        digest.update(f"{path}\0{fingerprint(data / path)}\0".encode())
    return digest.hexdigest()
