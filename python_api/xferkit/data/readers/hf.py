"""Data sets that Hugging Face ``datasets`` saved on disk; the package is needed for these alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from xferkit.data.errors import DataError, shown_list
from xferkit.data.readers.job import Flaw, ReadJob, Tally
from xferkit.data.readers.jsonl import ValueChecker
from xferkit.data.records import OnProgress, Record

__all__ = ["read_hf"]

_ROWS_AT_A_TIME = 1000
_FOLDER = "a folder that Dataset.save_to_disk wrote"


def read_hf(job: ReadJob, tally: Tally, on_progress: OnProgress | None) -> Iterator[Record]:
    """A record per row; class numbers become the names that the data set gives them.

    Rows are read from the memory-mapped file a thousand at a time, and checked before they are touched.
    """
    dataset = _load(job)
    checker = ValueChecker(job, "column")
    names = checker.find(dict.fromkeys(dataset.column_names))
    if isinstance(names, Flaw):
        raise job.error(None, names)
    spell = [_speller(dataset.features[name]) for name in names]
    callbacks = [call for call in (job.on_progress, on_progress) if call is not None]
    for start in range(0, len(dataset), _ROWS_AT_A_TIME):
        columns = _columns(job, dataset, names, start)
        rows = zip(*(map(s, column) for s, column in zip(spell, columns, strict=True)), strict=True)
        for number, values in enumerate(rows, start + 1):
            tally.rows_in += 1
            found = checker.values(number, list(values), True)
            if isinstance(found, Flaw):
                tally.reject(number, found)
                continue
            tally.rows_out += 1
            yield found
        for call in callbacks:
            call(start + len(columns[0]), len(dataset))


def _load(job: ReadJob) -> Any:
    path = job.path
    if not os.path.exists(path):
        raise DataError.at(path, None, "no such folder", _FOLDER, reason="cannot be opened")
    if not os.path.isdir(path):
        raise DataError.at(path, None, "is no folder", _FOLDER, reason="cannot be opened")
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        splits = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        example = os.path.join(path, splits[0] if splits else "train")
        raise DataError.at(
            path,
            None,
            f"holds several data sets ({shown_list(splits)})",
            f"the folder of one, such as {example}",
            reason="several data sets",
        )
    for name in ("state.json", "dataset_info.json"):
        if not os.path.isfile(os.path.join(path, name)):
            raise DataError.at(
                path, None, f"is a folder without {name}", f"a file, or {_FOLDER}", reason="no data set"
            )
    try:
        import datasets
    except ImportError:
        raise DataError.at(
            path,
            None,
            "holds a data set of Hugging Face `datasets`, a package that is not installed",
            "it (pip install datasets), or a file in another format",
            reason="package missing",
        ) from None
    try:
        # Memory-mapped: the machine's memory is not filled with it.
        return datasets.load_from_disk(path, keep_in_memory=False)
    except Exception as error:  # the package raises errors of many kinds for damaged folders
        raise _damaged(job, None, error) from error


def _columns(job: ReadJob, dataset: Any, names: list[str], start: int) -> list[list[Any]]:
    try:
        table = dataset.with_format("arrow")[start : start + _ROWS_AT_A_TIME].select(names)
        # Offsets in a damaged file may point anywhere; looking at them first costs little.
        table.validate(full=True)
        return [table.column(name).to_pylist() for name in names]
    except Exception as error:
        raise _damaged(job, start + 1, error) from error


def _damaged(job: ReadJob, line: int | None, error: Exception) -> DataError:
    told = " ".join(str(error).split())[:200] or type(error).__name__
    told = "".join(char if char.isprintable() else "?" for char in told)
    return DataError.at(
        job.path,
        line,
        f"the data set cannot be read ({told})",
        f"undamaged, {_FOLDER}",
        reason="damaged data set",
    )


def _speller(feature: Any) -> Callable[[Any], Any]:
    """What a value of this feature is as a label: the name of its class where classes have names."""
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    if inner is not None and not isinstance(inner, dict):
        spell = _speller(inner)
        return lambda values: [spell(value) for value in values] if isinstance(values, list) else values
    names = getattr(feature, "names", None)
    if not isinstance(names, list):
        return lambda value: value

    def name_of(value: Any) -> Any:
        if not isinstance(value, int) or value == -1:
            # -1 is what `datasets` writes for "not labelled".
            return None
        if 0 <= value < len(names):
            return names[value]
        wrong = f"the class number {value} has no name"
        return Flaw("unknown label", wrong, f"a number from 0 to {len(names) - 1}")

    return name_of
