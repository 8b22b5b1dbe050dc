"""Which file of a folder holds which part of which task, by its name, and which one is no such file."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from xferkit.data.errors import DataError, printable, shown_list
from xferkit.data.readers.table import TEXT_NAMES
from xferkit.data.records import Columns
from xferkit.diagnosis.problem import SplitName

__all__ = ["FORMS", "NAME", "find_files", "without_texts"]

_PARTS: dict[str, SplitName] = {
    "train": "train",
    **dict.fromkeys(("dev", "val", "valid", "validation", "eval"), "dev"),
    "test": "test",
}
#: A name with its task, perhaps a part, and the format.
NAME = re.compile(
    rf"(?P<task>.+?)(?:[-_.](?P<part>{'|'.join(_PARTS)}))?\.(?P<format>tsv|csv|jsonl|json)(?:\.gz)?",
    re.IGNORECASE,
)
FORMS = "NAME.tsv, or NAME-train.tsv with NAME-test.tsv (also .csv, .jsonl, and with .gz)"

#: Bytes and objects of a .json file, at most, among which one with a text is looked for.
_LOOKED_AT, _OBJECTS = 2**20, 100
_BETWEEN = re.compile(r"[\s,\[]*")


def find_files(folder: str | os.PathLike[str]) -> dict[str, dict[SplitName, str]]:
    """The files of a folder by task and split: ``NAME-train``, ``NAME-dev``, ``NAME-test``, or ``NAME`` for all.

    For ``dev`` also ``val``, ``valid``, ``validation`` or ``eval``. Other files are passed over.

    Raises:
        DataError: no such folder, no such file in it, two files for one part of a task, or a file that is called as a
            part and has no task in its name, such as ``train.tsv``.
    """
    root = Path(folder)
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError.at(
            root,
            None,
            f"cannot be read as a folder ({error.strerror or error})",
            "a folder with a file a task",
        ) from None
    found: dict[str, dict[SplitName, str]] = {}
    for entry in entries:
        match = NAME.fullmatch(entry.name)
        if match is None or not entry.is_file():
            continue
        task, split = match["task"], _PARTS[(match["part"] or "train").lower()]
        if match["part"] is None and task.lower() in _PARTS:
            raise DataError.at(
                entry,
                None,
                "the name says which part the file is, but not of which task",
                FORMS,
                reason="no task",
            )
        own = found.setdefault(task, {})
        if split in own:
            raise DataError.at(
                entry,
                None,
                f"a second file for {'the training part of ' if split == 'train' else f'{split} of '}{task!r}, "
                f"beside {printable(os.path.basename(own[split]))}",
                "one file for each part of a task",
                reason="two files",
            )
        own[split] = str(entry)
    if not found:
        raise _no_file(root, entries)
    return found


def _no_file(root: Path, entries: Iterable[Path]) -> DataError:
    """Perhaps there are texts in another form: a folder a task or a class, or a .txt file a class."""
    folders = [entry.name for entry in entries if entry.is_dir()]
    texts = [entry.name for entry in entries if entry.name.lower().removesuffix(".gz").endswith(".txt")]
    others = [
        f"{len(names)} {what}{'s'[: len(names) > 1]} ({shown_list(names)})"
        for what, names in (("folder", folders), (".txt file", texts))
        if names
    ]
    wrong = f"holds no file of labelled texts{', but ' if others else ''}{' and '.join(others)}"
    expected = f"a file a task with a text and its label in each row, {FORMS}" if others else FORMS
    return DataError.at(root, None, wrong, expected, reason="no file")


def without_texts(files: Mapping[SplitName, str], columns: Columns | None, encoding: str) -> bool:
    """Whether a task is none: all its files are .json files without an object that has the key of a text.

    Programs leave such files (settings, results) in folders; tables and JSON lines (.jsonl) are meant to be read.
    """
    given = None if columns is None else columns.text
    keys = (given,) if isinstance(given, str) else TEXT_NAMES
    return all(
        path.lower().removesuffix(".gz").endswith(".json") and not _has_one_of(keys, path, encoding)
        for path in files.values()
    )


def _has_one_of(keys: Iterable[str], path: str, encoding: str) -> bool:
    """Whether one of the first objects of a .json file has such a key: a line, an item of an array, or the whole."""
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            data = file.read(_LOOKED_AT)
        text = data.decode(encoding, "replace").removeprefix("\ufeff")
    except (OSError, EOFError, zlib.error, LookupError):
        return True  # the reader says what is wrong
    decoder, at = json.JSONDecoder(), 0
    for number in range(_OBJECTS):
        between = _BETWEEN.match(text, at)
        try:
            value, at = decoder.raw_decode(text, between.end() if between else at)
        except (ValueError, RecursionError):
            # An object that is longer than what was looked at may be any.
            return number == 0 and len(data) == _LOOKED_AT
        if isinstance(value, dict) and any(key in value for key in keys):
            return True
    return False
