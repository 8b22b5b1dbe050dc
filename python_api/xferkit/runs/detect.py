"""Is this a file of tagged sentences or of classified texts? Seen from its name and its first lines, and said."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from typing import Literal

from xferkit.data.errors import DataError, printable
from xferkit.data.records import Columns

__all__ = ["detect_task"]

Task = Literal["tagging", "classification"]

_PEEK_BYTES = 2**18
_PEEK_LINES = 200
_TAGGED_SUFFIXES = {".conll", ".conllu", ".bio", ".iob", ".iob2"}
_TOKENS = ("tokens", "words")
_TAGS = ("tags", "slots", "labels", "ner_tags", "pos_tags", "upos")
_CLASSES = ("label", "class", "intent")


def detect_task(path: str, columns: Columns | None = None, format: str = "auto") -> tuple[Task, str]:
    """The task that a labelled file is for, and the reason in a few words.

    Args:
        path: the file, plain or ``.gz``, or a folder of a data set.
        columns: what the caller says of its columns.
        format: what the caller says of its format.

    Raises:
        DataError: the file cannot be read, or nothing in it tells; the sentence says what to give.
    """
    if columns is not None and columns.tags is not None:
        return "tagging", "columns.tags is given"
    if columns is not None and columns.label is not None:
        return "classification", "columns.label is given"
    suffix = _suffix(path)
    if format in ("conll", "conllu") or (format == "auto" and suffix in _TAGGED_SUFFIXES):
        return "tagging", "a word and its tag a line"
    if os.path.isdir(path) or format == "hf":
        return _of_names(path, _dataset_columns(path))
    lines = _first_lines(path)
    if not any(line.strip() for line in lines):
        raise DataError.at(path, 1, "the file is empty", "labelled rows", reason="empty file")
    if format == "jsonl" or (format == "auto" and suffix in (".jsonl", ".json")):
        return _of_names(path, _json_keys(path, lines))
    delimiter = "," if format == "csv" or (format == "auto" and suffix == ".csv") else "\t"
    if columns is not None and columns.delimiter:
        delimiter = columns.delimiter
    header = [name.strip().strip('"').lower() for name in lines[0].split(delimiter)]
    if set(header) & {*_TOKENS, *_TAGS, *_CLASSES, "text", "sentence", "utterance"} and len(header) > 1:
        return _of_names(path, header)
    if delimiter == "\t" and _looks_like_conll(lines):
        return "tagging", "a word and its tag a line, blank lines between sentences"
    return "classification", "a text and its label a line"


def _of_names(path: str, names: list[str]) -> tuple[Task, str]:
    tokens = next((n for n in _TOKENS if n in names), None)
    tags = next((n for n in _TAGS if n in names), None)
    label = next((n for n in _CLASSES if n in names), None)
    if tokens and tags:
        other = f"; --task classification would read {label}" if label else ""
        return "tagging", f"columns {tokens} and {tags}{other}"
    if label:
        return "classification", f"column {label}"
    shown = ", ".join(names[:8]) or "none"
    wrong = f"its columns ({shown}) do not tell whether texts or words are labelled"
    expected = "--task tagging or --task classification, with --columns.tags or --columns.label"
    raise DataError.at(path, 1, wrong, expected, reason="unknown columns")


def _looks_like_conll(lines: list[str]) -> bool:
    filled = [line for line in lines if line.strip() and not line.startswith(("#", "-DOCSTART-"))]
    inner_blank = any(not line.strip() for line in lines[1:-1]) and len(filled) > 1
    one_word = all(len(line.split("\t")[0].split()) <= 1 for line in filled)
    columns = {len(line.split("\t")) if "\t" in line else len(line.split()) for line in filled}
    return inner_blank and one_word and min(columns, default=0) >= 2


def _json_keys(path: str, lines: list[str]) -> list[str]:
    first = next(line for line in lines if line.strip())
    try:
        content = json.loads(first)
    except (ValueError, RecursionError):
        return []
    return [str(key).lower() for key in content] if isinstance(content, dict) else []


def _dataset_columns(path: str) -> list[str]:
    for folder in (path, *sorted(entry.path for entry in os.scandir(path) if entry.is_dir())):
        info = os.path.join(folder, "dataset_info.json")
        try:
            with open(info, encoding="utf-8") as file:
                features = json.loads(file.read(_PEEK_BYTES)).get("features")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(features, dict):
            return [str(name).lower() for name in features]
    return []


def _first_lines(path: str) -> list[str]:
    """The first lines, decoded with whatever goes; what is wrong with them is for the reader to say."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_PEEK_BYTES)
    except OSError as error:
        raise DataError.at(
            path,
            None,
            f"cannot be read ({error.strerror or error})",
            "a file that is there",
            reason="no file",
        ) from None
    if path.lower().endswith(".gz"):
        try:
            raw = zlib.decompressobj(wbits=31).decompress(raw, _PEEK_BYTES)
        except (zlib.error, gzip.BadGzipFile):
            raise DataError.at(
                path, 1, "the name ends in .gz, but the file is not gzip data", "gzip data"
            ) from None
    text = raw.decode("utf-8", errors="replace").removeprefix("\ufeff")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[: min(_PEEK_LINES, max(1, len(lines) - 1))]  # the last one may have been cut


def _suffix(path: str) -> str:
    stem = path[:-3] if path.lower().endswith(".gz") else path
    return os.path.splitext(printable(stem))[1].lower()
