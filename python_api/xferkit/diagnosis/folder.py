"""A folder of labelled texts, a file or a few files a task, read and split; what is wrong takes one sentence."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from xferkit.data.errors import DataError, close_name, shown, shown_list
from xferkit.data.records import Columns, read_records
from xferkit.diagnosis.folder_files import FORMS, NAME, find_files, without_texts
from xferkit.diagnosis.problem import SplitName

__all__ = ["Row", "TaskFiles", "alike_classes", "read_folder"]

_WORDS: dict[SplitName, str] = {"dev": "development", "test": "test"}

#: A text's place among ten, see :func:`_place`, says which part it is in where there is no file for that part. Places
#: do not depend on which other files there are, so that a text which several tasks have is in the same part of each.
_PLACES: dict[SplitName, frozenset[int]] = {"dev": frozenset({0, 1}), "test": frozenset({2, 3})}
#: Where nothing is trained on, half of the texts for each part; those of above stay where they are.
_HALVES: dict[SplitName, frozenset[int]] = {
    "dev": _PLACES["dev"] | {4, 5, 6},
    "test": _PLACES["test"] | {7, 8, 9},
}
#: Rows that the target is scored on, at least: with fewer, one row is worth more than five points.
_LEAST = 20
#: Rows of a task, at least, before a class for nearly each of them is wondered at, and the share that is nearly each.
_LEAST_FOR_CLASSES, _NEARLY_EACH = 10, 0.8
#: Rows of a file, at least, before its first line is suspected of being a header, and words of such a line at most.
_LEAST_FOR_HEADER, _HEADER_WORDS = 5, 4


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
        dropped: rows of the training split that were left out, as the target is scored on their texts.
    """

    name: str
    files: Mapping[SplitName, str]
    rows: Mapping[SplitName, tuple[Row, ...]] = field(repr=False)
    dropped: int = 0

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


def read_folder(
    folder: str | os.PathLike[str],
    target: str,
    tasks: Sequence[str] | None = None,
    columns: Columns | None = None,
    *,
    encoding: str = "utf-8",
) -> dict[str, TaskFiles]:
    """The tasks of a folder, the target among them.

    Parts without a file are taken from the training file by a hash of each text: two tenths of the texts become the
    development part and two the test part. The places are the same in all tasks, and so is a text that several have;
    equal texts (but for white space) stay together. Rows of a class that would not be trained at all are kept in the
    training part, with the rows of equal texts. Training rows of sources are left out when the target's development or
    test part has their text.

    A task of ``.json`` files without a text is passed over unless it is asked for: programs leave settings and results
    in folders. Where no source would be left it is read, and refused.

    Args:
        folder: where the files are, see :func:`~xferkit.diagnosis.folder_files.find_files`.
        target: the task in question. It may have a test file alone: then it is a target without labels, and a half of
            the file is its development part.
        tasks: those to read beside the target; None: all.
        columns: what holds text and label, where the defaults (text and label by header, or two columns without one)
            do not fit. A delimiter is that of .csv files; others have their own.
        encoding: of the files.

    Raises:
        DataError: a task that does not exist, a file that is not as expected, a header that was read as a row, a class
            of its own for nearly each row, too few rows, a target of one class, or a class in a development or test
            part that no training part has.
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
    if tasks is None:
        others = [name for name in chosen if name != target]
        kept = [name for name in others if not without_texts(found[name], columns, encoding)]
        chosen = [name for name in chosen if name == target or name in (kept or others)]
    read = {
        name: {split: _rows(path, columns, encoding) for split, path in found[name].items()}
        for name in chosen
    }
    if columns is None or columns.header is not False:
        _check_headers([rows for parts in read.values() for rows in parts.values()])
    for name, parts in read.items():
        _check_labels(name, [row for rows in parts.values() for row in rows])
    own = _split(target, found[target], read[target])
    scored = {_plain(row.text) for part in ("dev", "test") for row in own.rows[part]}
    split = {
        name: own if name == target else _split(name, found[name], read[name], scored) for name in chosen
    }
    for name, task in split.items():
        _check_sizes(task, name == target)
    _check_classes(split, target)
    _check_target(own)
    return split


def alike_classes(tasks: Mapping[str, TaskFiles]) -> list[dict[str, list[str]]]:
    """Classes that differ in case, spaces or Unicode form alone: groups of them, by class the tasks that have it."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, task in tasks.items():
        for label in sorted({row.label for rows in task.rows.values() for row in rows}):
            groups.setdefault(_folded(label), {}).setdefault(label, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _folded(label: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    # What does not print (a zero-width space) is no difference that a person sees.
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())


def _rows(path: str, columns: Columns | None, encoding: str) -> tuple[Row, ...]:
    if columns is not None and not path.lower().removesuffix(".gz").endswith(".csv"):
        columns = replace(columns, delimiter=None)
    try:
        return tuple(
            Row(record.text, str(record.labels), path, record.line)
            for record in read_records(path, columns=columns, encoding=encoding)
        )
    except DataError as error:
        more = _more_of(error, path, columns, encoding)
        if not more:
            raise
        also = f" ({more} more such row{'' if more == 1 else 's'} in this file)"
        raise DataError(f"{error}{also}", path=error.path, line=error.line, reason=error.reason) from None


def _more_of(error: DataError, path: str, columns: Columns | None, encoding: str) -> int:
    """Further rows of a file with the same fault, so that all of them can be seen to at once."""
    if error.line is None:
        return 0
    reader = read_records(path, columns=columns, encoding=encoding, mode="skip", keep_rejected=0)
    try:
        for _ in reader:
            pass
    except DataError:
        return 0  # a fault of the whole file
    return max(0, reader.report.reasons.get(error.reason, 0) - 1)


def _split(
    name: str,
    files: Mapping[SplitName, str],
    rows: Mapping[SplitName, tuple[Row, ...]],
    scored: Set[str] | None = None,
) -> TaskFiles:
    """A source, given the texts that the target is scored on, or the target itself."""
    missing = [split for split in _PLACES if split not in rows]
    if "train" not in rows:
        if scored is not None:
            path = next(iter(files.values()))
            raise DataError.at(
                path, None, f"the source {name!r} has no training file", f"{name}-train as well"
            )
        if missing:
            (only,) = rows.values()
            rows = {split: tuple(row for row in only if _place(row) in own) for split, own in _HALVES.items()}
        return TaskFiles(name, files, {"train": (), **rows})
    parts = {split: [row for row in rows["train"] if _place(row) in _PLACES[split]] for split in missing}
    taken = frozenset[int]().union(*(_PLACES[split] for split in missing))
    train = [row for row in rows["train"] if _place(row) not in taken]
    barred = scored or frozenset()
    known = {row.label for row in train if _plain(row.text) not in barred}
    rare = {_plain(row.text) for part in parts.values() for row in part if row.label not in known}
    for split, part in parts.items():
        train += [row for row in part if _plain(row.text) in rare]
        parts[split] = [row for row in part if _plain(row.text) not in rare]
    kept = tuple(row for row in train if _plain(row.text) not in barred)
    found = {**rows, "train": kept, **{split: tuple(part) for split, part in parts.items()}}
    return TaskFiles(name, files, found, len(train) - len(kept))


def _plain(text: str) -> str:
    """What makes texts equal."""
    return " ".join(text.split())


def _place(row: Row) -> int:
    return zlib.crc32(_plain(row.text).encode("utf-8", "surrogatepass")) % 10


def _check_headers(files: Sequence[Sequence[Row]]) -> None:
    """No first line that was read as data is a header of unknown names: it would be a class of its own."""
    first = [rows[0] for rows in files if _may_be_header(rows)]
    count = Counter(row.label for rows in files for row in rows)
    count.subtract(row.label for row in first)
    for row in first:
        if count[row.label]:
            continue
        rows = next(rows for rows in files if rows[0] is row)
        # Where rows of a class of their own are usual, the first one is none the less a row.
        if sum(count[other.label] == 1 for other in rows) <= max(1, len(rows) // 10):
            raise DataError.at(
                row.path,
                row.line,
                f"looks like a header, with {shown(row.text)} for the text and {shown(row.label)} for the label",
                "columns named text and label, or the option columns with their names, such as --columns text=review "
                "label=stars (header=false where it is data)",
                reason="header",
            )


def _check_labels(name: str, rows: Sequence[Row]) -> None:
    """Labels are classes: not a number, a name or a note of its own in nearly each row of a task."""
    classes = list(dict.fromkeys(row.label for row in rows))
    if len(rows) < _LEAST_FOR_CLASSES or len(classes) < _NEARLY_EACH * len(rows):
        return
    raise DataError.at(
        rows[0].path,
        None,
        f"the labels of {name!r} have {len(classes)} different values in {len(rows)} rows, such as "
        f"{shown(classes[0])} and {shown(classes[1])}",
        "classes that several rows share, such as ranges of a number",
        reason="no classes",
    )


def _may_be_header(rows: Sequence[Row]) -> bool:
    row = rows[0]
    match = NAME.fullmatch(os.path.basename(row.path))
    return (
        row.line == 1
        and len(rows) >= _LEAST_FOR_HEADER
        and len(row.text.split()) <= _HEADER_WORDS
        and any(map(str.isalpha, row.label))
        and match is not None
        and match["format"].lower() in ("tsv", "csv")
    )


def _check_sizes(task: TaskFiles, is_target: bool) -> None:
    name, train = task.name, task.rows["train"]
    if "train" not in task.files:
        return
    path = task.files["train"]
    own = [row for rows in task.rows.values() for row in rows if row.path == path]
    total = len(own) + task.dropped
    count = f"{total} row{'' if total == 1 else 's'}"
    if len(train) < 2:
        left = f" ({task.dropped} were left out: the target is scored on their texts)" if task.dropped else ""
        raise DataError.at(
            path,
            own[0].line if total == 1 and own else None,
            f"{name!r} has {count}, of which {len(train)} to train on{left}",
            "at least 2 training rows, so that two batches of it can be compared, and a few to score it on",
            reason="too few rows",
        )
    for split, word in _WORDS.items():
        if not is_target and not task.rows[split]:
            raise DataError.at(
                path,
                None,
                f"{name!r} has {count}, too few to take a {word} part from",
                f"about 20 rows or more, or a file {name}-{split}",
                reason="too few rows",
            )


def _check_classes(tasks: Mapping[str, TaskFiles], target: str) -> None:
    if not any(task.labelled for task in tasks.values()):
        path = next(iter(tasks[target].files.values()))
        raise DataError.at(path, None, "there is no other task and no training file", FORMS)
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
    if len(known) < 2:
        row = next(row for task in tasks.values() for row in task.rows["train"])
        raise DataError.at(
            row.path,
            row.line,
            f"all training rows have the class {shown(row.label)}",
            "at least two different classes",
            reason="one class",
        )


def _check_target(task: TaskFiles) -> None:
    """It has classes to tell apart, and enough rows to see a difference."""
    classes = {row.label for row in task.rows["train"]}
    if len(classes) == 1:
        raise DataError.at(
            task.files["train"],
            None,
            f"all training rows of the target {task.name!r} have the class {shown(*classes)}",
            "at least two classes in each file: a file a task (a domain, a language), not a file a class",
            reason="one class",
        )
    for split, word in _WORDS.items():
        count = len(task.rows[split])
        if count >= _LEAST:
            continue
        missing = [split] if split not in task.files else []
        if not task.labelled:
            # Both parts may have been taken from one file, which the other file would leave whole.
            missing = [part for part in _WORDS if part not in task.files]
        more = f", or a file {task.name}-{missing[0]}" if missing else ""
        given = (task.files[part] for part in (split, "train", *_WORDS) if part in task.files)
        raise DataError.at(
            next(given),
            None,
            f"the target {task.name!r} has {count} {word} row{'' if count == 1 else 's'}",
            f"at least {_LEAST} to measure by: more rows{more}",
            reason="too few rows",
        )
