"""Files of a million lines: how fast they are read and turned into arrays, and in how much memory.

Every way of reading runs in a fresh process of its own (read_once), all ways once a round in changing order, on
files made up anew and warm in the page cache. ``lines`` is the floor, Python's bare loop over the lines; ``plain
loop`` builds sentences as many write it and ``csv.reader`` splits rows, both without a check; ``datasets`` is its
first load, which writes Arrow files, and one pass over them (of a CoNLL file it has no sentences, so lines alone).
``read`` hands out checked records; ``count + encode`` goes through the file twice, as runs do: words counted, then
texts and labels in arrays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.harness import Options
from benchmarks.measures import rotated, summary
from benchmarks.synthetic_text import Language

__all__ = ["ReaderCase", "cases", "measure", "table"]

_CHILD = Path(__file__).resolve().parent / "read_once.py"
_FLOOR = "lines"
_TAGS, _CLASSES = 17, 5
# Texts to classify are shorter than sentences of treebanks: 9 words on average.
_TEXT_LOG_MEAN = 2.0
_WAYS = {
    "conll": (_FLOOR, "plain loop", "read", "read, bar", "count + encode", "datasets"),
    "tsv": (_FLOOR, "csv.reader", "read", "read, bar", "count + encode", "datasets"),
}


@dataclass(frozen=True)
class ReaderCase:
    """One row: a file of a format and a number of lines."""

    format: str
    num_lines: int
    options: Options

    @property
    def name(self) -> str:
        """The row's name."""
        return f"readers/{self.format}/cpu/N{self.num_lines}"


def _write(case: ReaderCase, path: Path) -> dict[str, int]:
    """The file, and what a reader must find in it."""
    language = Language(0)
    found = {"lines": case.num_lines, "records": 0, "tokens": 0}
    left = case.num_lines
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while left:
            if case.format == "conll":
                sentences, ranks = language.sentences(min(left, 10_000))
                for words, row in zip(sentences, ranks, strict=True):
                    words = words[: left - 1]  # and a blank line; the last one of all may stand alone
                    tagged = zip(words, row.tolist(), strict=False)
                    file.writelines(f"{word}\tT{rank % _TAGS:02}\n" for word, rank in tagged)
                    file.write("\n")
                    found["records"] += bool(words)
                    found["tokens"] += len(words)
                    left -= len(words) + 1
                    if not left:
                        break
            else:
                sentences, ranks = language.sentences(min(left, 10_000), _TEXT_LOG_MEAN)
                for words, row in zip(sentences, ranks, strict=True):
                    file.write(f"{' '.join(words)}\tclass{int(row[0]) % _CLASSES}\n")
                found["records"] += len(sentences)
                found["tokens"] += sum(map(len, sentences))
                left -= len(sentences)
    return found


def _read_once(way: str, path: Path) -> dict[str, Any]:
    """The child's figures.

    Raises:
        RuntimeError: when it failed.
    """
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), TERM="xterm")
    environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environ |= dict.fromkeys(("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"), "1")
    command = [sys.executable, str(_CHILD), way, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise RuntimeError(f"{way} failed on {path.name}: {(done.stderr.strip() or '?').splitlines()[-1]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(case: ReaderCase) -> dict[str, Any]:
    """Makes the file, reads it in every way in every round, and returns the row.

    Raises:
        RuntimeError: a way did not find what stands in the file, or one of ours failed.
    """
    ways = [way for way in _WAYS[case.format] if way != "datasets" or find_spec("datasets") is not None]
    errors: dict[str, str] = {}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"text.{case.format}"
        expected = _write(case, path)
        num_bytes = path.stat().st_size
        for round_index in range(case.options.rounds):
            for i in rotated(len(ways), round_index):
                way = ways[i]
                if way in errors:
                    continue
                try:
                    figures = _read_once(way, path)
                except RuntimeError as error:
                    if way != "datasets":
                        raise
                    errors[way] = str(error)
                    continue
                for key, value in expected.items():
                    if figures[key] not in (0, value):
                        raise RuntimeError(f"{case.name}: {way} found {figures[key]} {key} of {value}")
                runs[way].append(figures)
    variants = {way: _variant(runs[way], runs[_FLOOR], case) for way in ways if way not in errors}
    variants |= {way: {"error": error} for way, error in errors.items()}
    return {
        "name": case.name,
        "op": "readers",
        "pass": case.format,
        "device": "cpu",
        "shape": {"N": case.num_lines},
        "file": {**expected, "bytes": num_bytes},
        "clock": "cpu",
        "rounds": case.options.rounds,
        "variants": variants,
    }


def _variant(runs: list[dict[str, Any]], floor: list[dict[str, Any]], case: ReaderCase) -> dict[str, Any]:
    seconds = [run["cpu_s"] for run in runs]
    entry: dict[str, Any] = {
        f"{c}_ms": summary([1e3 * run[f"{c}_s"] for run in runs]) for c in ("cpu", "wall")
    }
    entry["lines_per_second"] = summary([case.num_lines / s for s in seconds])
    entry["times_floor"] = summary([s / run["cpu_s"] for s, run in zip(seconds, floor, strict=True)])
    for key in ("peak_bytes", "kept_bytes"):
        known = [run[key] for run in runs if run[key] is not None]
        entry[key] = max(known) if known else None
    entry |= {key: runs[0][key] for key in ("records", "tokens", "array_bytes")}
    if entry["array_bytes"]:
        entry["array_bytes_per_token"] = entry["array_bytes"] / entry["tokens"]
    return entry


def table(row: dict[str, Any]) -> str:
    """The row as text."""
    file = row["file"]
    lines = [
        row["name"],
        f"  {file['bytes'] / 1e6:.1f} MB, {file['records']:,} records, {file['tokens']:,} tokens; "
        f"{row['rounds']} rounds, a process each, cpu time",
        f"  {'way':<16} {'p20 ms':>9} {'p50 ms':>9} {'p80 ms':>9} {'wall':>9} {'lines/s':>12} {'of floor':>9} "
        f"{'peak MiB':>9} {'kept MiB':>9} {'array B/token':>14}",
    ]
    for name, entry in row["variants"].items():
        if "error" in entry:
            lines.append(f"  {name:<16} failed: {entry['error'][:90]}")
            continue
        ms = [f"{entry['cpu_ms'][p]:>9.0f}" for p in ("p20", "p50", "p80")]
        sizes = [entry[key] for key in ("peak_bytes", "kept_bytes")]
        mib = [f"{'?' if size is None else format(size / 2**20, '.1f'):>9}" for size in sizes]
        per_token = entry.get("array_bytes_per_token")
        cells = chain(
            ms,
            [f"{entry['wall_ms']['p50']:>9.0f}", f"{entry['lines_per_second']['p50']:>12,.0f}"],
            [f"{entry['times_floor']['p50']:>8.1f}x"],
            mib,
            [f"{'' if per_token is None else format(per_token, '.1f'):>14}"],
        )
        lines.append(f"  {name:<16} {' '.join(cells)}")
    return "\n".join(lines)


def cases(options: Options) -> list[ReaderCase]:
    """Rows: each format small and large, as memory that does not grow with the file shows in both."""
    sizes = (300, 3000) if options.quick else (100_000, 1_000_000)
    return [ReaderCase(format, lines, options) for format in _WAYS for lines in sizes]
