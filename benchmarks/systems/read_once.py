"""Reads one file in one way, in a process of its own, and prints what that took as JSON.

    python read_once.py WAY PATH

Started by bench_readers. Memory is that of this process alone and of the reading alone: what is imported for a way
is imported before, free heap pages are given back, and the high-water mark of the resident set is reset. (`ru_maxrss`
would not do: a process inherits the mark of the one that started it.)
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["WAYS", "Found", "Way"]


@dataclass
class Found:
    """What a reading came upon; 0 where it did not look.

    Attributes:
        lines: lines of the file.
        records: sentences or texts.
        tokens: words.
        array_bytes: arrays that are kept, without vocabularies.
        held: what is kept.
    """

    lines: int = 0
    records: int = 0
    tokens: int = 0
    array_bytes: int = 0
    held: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Way:
    """A way of reading and the modules it imports before the clock starts."""

    read: Callable[[str], Found]
    modules: tuple[str, ...] = ()


def _lines(path: str) -> Found:
    count = 0
    with open(path, encoding="utf-8") as file:
        for _ in file:
            count += 1
    return Found(lines=count)


def _loop_conll(path: str) -> Found:
    """Sentences as many write it: no check of anything."""
    found = Found()
    words: list[str] = []
    tags: list[str] = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            found.lines += 1
            line = line.rstrip("\n")
            if line:
                word, tag = line.split("\t")
                words.append(word)
                tags.append(tag)
            elif words:
                found.records, found.tokens = found.records + 1, found.tokens + len(words)
                words, tags = [], []
    return found


def _csv_reader(path: str) -> Found:
    found = Found()
    with open(path, encoding="utf-8", newline="") as file:
        for _text, _label in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            found.records += 1
    found.lines = found.records
    return found


def _reader(path: str) -> Any:
    from xferkit.data.records import read_records

    conll = path.endswith(".conll")
    return read_records(
        path, format="conll" if conll else "tsv", task="tagging" if conll else "classification"
    )


def _read(path: str) -> Found:
    reader = _reader(path)
    tokens = sum(len(record.tokens) for record in reader)
    return Found(records=reader.report.rows_out, tokens=tokens)


def _read_with_bar(path: str) -> Found:
    from xferkit.data.readers.progress import with_progress

    reader = _reader(path)
    with _terminal() as terminal:
        tokens = sum(len(record.tokens) for record in with_progress(reader, kind="rich", file=terminal))
    return Found(records=reader.report.rows_out, tokens=tokens)


@contextlib.contextmanager
def _terminal() -> Iterator[Any]:
    """A pseudo-terminal that somebody reads, as a bar that is never drawn costs nothing."""
    import pty

    ours, theirs = pty.openpty()
    shown = bytearray()

    def drain() -> None:
        # The last writer's end being closed is an error on Linux and an empty read elsewhere.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                shown.extend(piece)

    reading = threading.Thread(target=drain, daemon=True)
    reading.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        yield terminal
    reading.join(10)
    os.close(ours)
    if "%" not in shown.decode("utf-8", "replace"):
        raise RuntimeError("the progress bar showed no share of the file on a terminal")


def _encode(path: str) -> Found:
    """As runs do: one pass that counts words and collects labels, one that puts texts into arrays."""
    from collections import Counter

    from xferkit.data.encoding import encode_classification, encode_tagging
    from xferkit.data.lexicon import Lexicon
    from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary

    counts: Counter[str] = Counter()
    names: set[str] = set()
    for record in _reader(path):
        counts.update(record.words())
        if isinstance(record.labels, str):
            names.add(record.labels)
        else:
            names.update(record.labels)
    labels = LabelSet(sorted(names))
    lexicon = Lexicon(WordVocabulary.from_counts(counts), CharVocabulary.from_counts(counts), max_chars=24)
    tokens = counts.total()
    del counts
    reader = _reader(path)
    if path.endswith(".conll"):
        texts, tags = encode_tagging(reader, lexicon, labels)
        assert tags is not None
        # The offsets of texts and tags are one array.
        arrays = [texts.types.flat, texts.types.offsets, tags.flat]
        held: Any = (texts, tags)
    else:
        encoded, classes = encode_classification(reader, lexicon, labels)
        assert classes is not None
        arrays = [encoded.types.flat, encoded.types.offsets, classes]  # type: ignore[union-attr]
        held = (encoded, classes)
    kept = sum(array.numel() * array.element_size() for array in arrays)
    if tokens != arrays[0].numel():
        raise RuntimeError(f"counted {tokens} tokens and encoded {arrays[0].numel()}")
    return Found(records=reader.report.rows_out, tokens=tokens, array_bytes=kept, held=held)


def _datasets(path: str) -> Found:
    """The first load, which writes its own files, and one pass over the rows."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as cache:
        if path.endswith(".conll"):
            rows = datasets.load_dataset("text", data_files=path, split="train", cache_dir=cache)
            found = Found(lines=sum(1 for _ in rows))
        else:
            rows = datasets.load_dataset(
                "csv",
                data_files=path,
                split="train",
                cache_dir=cache,
                delimiter="\t",
                quoting=csv.QUOTE_NONE,
                column_names=["text", "label"],
                keep_default_na=False,
            )
            found = Found(records=sum(1 for _ in rows))
            found.lines = found.records
        del rows
    return found


_READERS = (
    "xferkit.data.records",
    *(f"xferkit.data.readers.{name}" for name in ("formats", "job", "conll", "table")),
)
_BAR = (*_READERS, "xferkit.data.readers.progress", "rich.progress", "rich.console", "pty")
_ENCODING = (*_READERS, "xferkit.data.encoding", "xferkit.data.lexicon", "xferkit.data.vocabulary")

WAYS = {
    "lines": Way(_lines),
    "plain loop": Way(_loop_conll),
    "csv.reader": Way(_csv_reader),
    "read": Way(_read, _READERS),
    "read, bar": Way(_read_with_bar, _BAR),
    "count + encode": Way(_encode, _ENCODING),
    "datasets": Way(_datasets, ("datasets",)),
}


def _status_kib(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
    return None


def _settle() -> int | None:
    """Give free pages back and reset the high-water mark; the resident set in KiB, None where it is not known."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _status_kib("VmRSS")


def measure(way: str, path: str) -> dict[str, Any]:
    """Seconds of CPU and of the wall, bytes at the peak and bytes kept, and what was found."""
    for module in WAYS[way].modules:
        importlib.import_module(module)
    before = _settle()
    start, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = WAYS[way].read(path)
    wall, end = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    peak = _status_kib("VmHWM") if before is not None else None
    after = _settle()
    known = before is not None and peak is not None and after is not None
    return {
        "cpu_s": end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime,
        "wall_s": wall,
        "peak_bytes": max(0, peak - before) * 1024 if known else None,  # type: ignore[operator]
        "kept_bytes": max(0, after - before) * 1024 if known else None,  # type: ignore[operator]
        "lines": found.lines,
        "records": found.records,
        "tokens": found.tokens,
        "array_bytes": found.array_bytes,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
