"""A folder of labelled texts, a file or a few files a task, read and split; what is wrong takes one sentence."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xferkit.data.errors import DataError, close_name, printable, shown, shown_list
from xferkit.data.records import Columns, read_records
from xferkit.diagnosis.problem import SplitName

__all__ = ["Row", "TaskFiles", "find_files", "read_folder"]

_NAME = re.compile(
    r"(?P<task>.+?)(?:[-_.](?P<split>train|dev|test))?\.(?:tsv|csv|jsonl|json)(?:\.gz)?", re.IGNORECASE
)
_SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
_FORMS = "NAME.tsv, or NAME-train.tsv with NAME-test.tsv (also .csv, .jsonl, and with .gz)"


@dataclass(frozen=True)
class Row:
    """A text with its label.

    Attributes:
        text: the text.
        label: its class.
        path: its file.
        line: its line there, counted from 1.
    """

    text: str
    label: str
    path: str
    line: int


@dataclass(frozen=True)
class TaskFiles:
    """A task of a folder.

    Attributes:
        name: the task.
        files: file of each split that has one.
        rows: rows of each split; the train split is empty where the task has no training file.
    """

    name: str
    files: Mapping[SplitName, str]
    rows: Mapping[SplitName, tuple[Row, ...]] = field(repr=False)

    @property
    def labelled(self) -> bool:
        """Whether it can be trained on."""
        return bool(self.rows["train"])

    def digest(self) -> str:
        """SHA-256 over its name, splits, texts and classes as they were read, wherever the files are."""
        found = hashlib.sha256(self.name.encode())
        for split, rows in sorted(self.rows.items()):
            for row in rows:
                found.update(f"\0{split}\0{row.text}\0{row.label}".encode("utf-8", "surrogatepass"))
        return found.hexdigest()


def find_files(folder: str | os.PathLike[str]) -> dict[str, dict[SplitName, str]]:
    """The files of a folder by task and split: ``NAME-train``, ``NAME-dev``, ``NAME-test``, or ``NAME`` for all.

    Other files are passed over.

    Raises:
        DataError: no such folder, no such file in it, or two files for one part of a task.
    """
    root = Path(folder)
    try:
        entries = sorted(entry for entry in root.iterdir() if entry.is_file())
    except OSError as error:
        raise DataError.at(
            root,
            None,
            f"cannot be read as a folder ({error.strerror or error})",
            "a folder with a file a task",
        ) from None
    found: dict[str, dict[SplitName, str]] = {}
    whole: dict[str, Path] = {}
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is None or entry.name.startswith("."):
            continue
        task = match["task"]
        split: SplitName = "train"
        if match["split"] is None:
            whole[task] = entry
        else:
            split = next(name for name in _SPLITS if name == match["split"].lower())
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
        raise DataError.at(root, None, "holds no file of labelled texts", _FORMS, reason="no file")
    return found


def read_folder(
    folder: str | os.PathLike[str],
    target: str,
    tasks: Sequence[str] | None = None,
    columns: Columns | None = None,
) -> dict[str, TaskFiles]:
    """The tasks of a folder, the target among them.

    Parts without a file are taken from the training file by a hash of each text, so that equal texts stay together:
    of ten parts of the texts two become the test part and two the development part (one of five where only one of them
    is missing). Rows of a class that would not be trained at all are kept in the training part.

    Args:
        folder: where the files are, see :func:`find_files`.
        target: the task in question. It may have a test file alone: then it is a target without labels.
        tasks: those to read beside the target; None: all.
        columns: what holds text and label, where the defaults (text and label by header, or two columns without one)
            do not fit.

    Raises:
        DataError: a task that does not exist, a file that is not as expected, too few rows, or a class in a
            development or test part that no training part has.
    """
    found = find_files(folder)
    for name in (target, *(tasks or ())):
        if name not in found:
            what = "target" if name == target else "task"
            raise DataError.at(
                folder,
                None,
                f"no file for the {what} {shown(name)}{close_name(name, found)}",
                f"one of {shown_list(found)}",
                reason="unknown task",
            )
    chosen = [name for name in found if tasks is None or name in tasks or name == target]
    read = {name: _read(name, found[name], columns, name == target) for name in chosen}
    _check_classes(read, target)
    return read


def _read(name: str, files: Mapping[SplitName, str], columns: Columns | None, is_target: bool) -> TaskFiles:
    rows: dict[SplitName, tuple[Row, ...]] = {
        split: tuple(
            Row(record.text, str(record.labels), path, record.line)
            for record in read_records(path, columns=columns)
        )
        for split, path in files.items()
    }
    if "train" not in rows:
        if not is_target:
            path = next(iter(files.values()))
            raise DataError.at(
                path, None, f"the source {name!r} has no training file", f"{name}-train as well"
            )
        # A target without labels: its development part is a half of what it is tested on.
        if len(rows) == 1:
            ((split, only),) = rows.items()
            parts = _cut(only, {"dev": 1}, 2)
            rows = {"dev": parts["dev"], "test": parts["train"]}
            _check_sizes(name, files[split], only, rows)
        return TaskFiles(name, files, {"train": (), **rows})
    train, path = rows["train"], files["train"]
    missing: tuple[SplitName, ...] = tuple(split for split in ("dev", "test") if split not in rows)
    if missing:
        each = 2 if len(missing) == 2 else 1
        parts = _cut(train, dict.fromkeys(missing, each), 10 if len(missing) == 2 else 5)
        rows = {**rows, **parts}
        known = {row.label for row in rows["train"]}
        for split in missing:
            alone = tuple(row for row in rows[split] if row.label not in known)
            rows["train"] += alone
            rows[split] = tuple(row for row in rows[split] if row.label in known)
    _check_sizes(name, path, train, rows)
    return TaskFiles(name, files, rows)


def _cut(rows: Iterable[Row], parts: Mapping[SplitName, int], of: int) -> dict[SplitName, tuple[Row, ...]]:
    """Rows by split: so many of ``of`` parts for each split that is named, and the rest to train on."""
    place: list[SplitName] = [split for split, count in parts.items() for _ in range(count)]
    place += ["train"] * (of - len(place))
    cut: dict[SplitName, list[Row]] = {split: [] for split in dict.fromkeys(place)}
    for row in rows:
        text = " ".join(row.text.split())
        cut[place[zlib.crc32(text.encode("utf-8", "surrogatepass")) % of]].append(row)
    return {split: tuple(own) for split, own in cut.items()}


def _check_sizes(name: str, path: str, read: Sequence[Row], rows: Mapping[SplitName, Sequence[Row]]) -> None:
    count = f"{len(read)} row{'' if len(read) == 1 else 's'}"
    if "train" in rows and len(rows["train"]) < 2:
        raise DataError.at(
            path,
            read[0].line if len(read) == 1 else None,
            f"{name!r} has {count}, of which {len(rows['train'])} to train on",
            "at least 2 training rows, so that two batches of it can be compared, and a few to score it on",
            reason="too few rows",
        )
    empty = [split for split in ("dev", "test") if not rows[split]]
    if empty:
        missing = "development" if empty[0] == "dev" else "test"
        raise DataError.at(
            path,
            None,
            f"{name!r} has {count}, too few to take a {missing} part from",
            f"about 20 rows or more, or a file {name}-{empty[0]}",
            reason="too few rows",
        )


def _check_classes(tasks: Mapping[str, TaskFiles], target: str) -> None:
    known = {row.label for task in tasks.values() for row in task.rows["train"]}
    for name, task in tasks.items():
        for split in ("dev", "test"):
            for row in task.rows[split]:
                if row.label in known:
                    continue
                whose = "the target" if name == target else "the source"
                raise DataError.at(
                    row.path,
                    row.line,
                    f"unknown class {shown(row.label)} in {whose} {name!r}{close_name(row.label, known)}",
                    f"one of those to train on, {shown_list(sorted(known))}",
                    reason="unknown class",
                )
    if not any(task.labelled for task in tasks.values()):
        path = next(iter(tasks[target].files.values()))
        raise DataError.at(path, None, "there is no other task and no training file", _FORMS)
    if len(known) < 2:
        row = next(row for task in tasks.values() for row in task.rows["train"])
        raise DataError.at(
            row.path,
            row.line,
            f"all training rows have the class {shown(row.label)}",
            "at least two different classes",
            reason="one class",
        )
